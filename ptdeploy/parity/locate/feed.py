"""What an engine is fed to look into it: the rows of a failing case, as its graph takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.reference import Reference, Row
from ptdeploy.parity.report import ParityReport
from ptdeploy.runtime import CausalLM, Engine
from ptdeploy.runtime.batching import pack

_USUAL_ROW = 4


@dataclass(frozen=True)
class Fed:
    """What the engine was given: rows as one batch, and where one row's tokens lie in it.

    The row is `row` of the batch's `rows`. Each row is fed `width` tokens; the first `taken` of
    them are real: the last `taken` tokens of the row. `prefix` counts the virtual tokens before
    them. The graph computes those too (`runs_prefix`), or they were frozen, and PyTorch's positions
    of them are left out.
    """

    feed: Mapping[str, NDArray[Any]]
    row: int
    rows: int
    width: int
    taken: int
    prefix: int
    runs_prefix: bool


def failing_rows(reference: Reference, report: ParityReport) -> tuple[list[Row], int]:
    """The failing case with the fewest rows and tokens, and which of its rows to look at.

    Where no case fails it is one usual row.
    """
    failing = [case for case in report.cases if not case.passed]
    if not failing:
        index = min(_USUAL_ROW, len(reference.rows) - 1)
        return [reference.rows[index]], 0
    case = min(failing, key=lambda one: (len(one.rows), sum(one.lengths)))
    rows = [reference.rows[i] for i in case.rows]
    # In a padded batch the shortest row has the most padding to go wrong with.
    return rows, min(range(len(rows)), key=lambda i: rows[i].ids.size)


def feed_rows(engine: Engine, chosen: Sequence[Row], row: int) -> Fed:
    """The rows as the engine's graph takes them, with logits asked for at every position."""
    rows = [one.ids for one in chosen]
    count, prefix = len(rows), engine.manifest.prompt.num_virtual_tokens
    if not isinstance(engine, CausalLM):
        batch = pack(rows)
        feed: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if engine.takes_segments:
            types = [np.zeros_like(r.ids) if r.type_ids is None else r.type_ids for r in chosen]
            feed["token_type_ids"] = pack(types).input_ids
        inside = engine.manifest.prompt.prefix_kv is None
        return Fed(feed, row, count, batch.input_ids.shape[1], rows[row].size, prefix, inside)
    kv = engine.buffer(count, max(one.size for one in rows))
    if count == 1:
        ids = engine.fed(rows[0])
        return Fed(kv.feed(ids[None], every_position=True), 0, 1, ids.size, ids.size, prefix, False)
    for index, one in enumerate(rows):
        kv.prefill(index, engine.fed(one)[:-1], every_position=True)
    last = np.asarray([[one[-1]] for one in rows], np.int64)
    return Fed(kv.feed(last, every_position=True), row, count, 1, 1, prefix, False)
