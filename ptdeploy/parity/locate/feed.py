"""What an engine is fed to look into it: the rows of a failing case, as its graph takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import EngineFault
from ptdeploy.parity.bounds import Bounds
from ptdeploy.parity.compare import padded
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.report import ParityReport
from ptdeploy.runtime import Engine
from ptdeploy.runtime.probes import Fed

_USUAL_ROW = 4
# A row that differs by less of what another does is not the one that fails.
_LITTLE = 0.1


def failing_rows(
    engine: Engine, reference: Reference, report: ParityReport, bounds: Bounds
) -> tuple[list[ReferenceRow], int]:
    """The failing case with the fewest rows and tokens, and which of its rows to look at.

    Where no case fails it is one usual row.
    """
    failing = [case for case in report.cases if not case.passed and not case.without_prompt]
    if not failing:
        index = min(_USUAL_ROW, len(reference.rows) - 1)
        return [reference.rows[index]], 0
    case = min(failing, key=lambda one: (len(one.rows), sum(one.lengths)))
    rows = [reference.rows[i] for i in case.rows]
    # In a padded batch the shortest row has the most padding to go wrong with.
    shortest = min(range(len(rows)), key=lambda i: rows[i].ids.size)
    try:
        wrong = _differences(rows, engine.logits(*padded(rows, case.padding)), bounds)
    except EngineFault:
        return rows, shortest
    worst = int(np.argmax(wrong))
    return rows, shortest if wrong[shortest] >= _LITTLE * wrong[worst] else worst


def _differences(
    rows: Sequence[ReferenceRow], logits: Sequence[NDArray[np.float32]], bounds: Bounds
) -> NDArray[np.float64]:
    """How far each row's last logits are from its own reference, by the size of what they hold."""
    found = [
        (
            np.abs(np.atleast_2d(one)[-1].astype(np.float64) - np.atleast_2d(row.logits)[-1])
            / bounds.sizes
        ).max()
        for row, one in zip(rows, logits, strict=True)
    ]
    wrong: NDArray[np.float64] = np.nan_to_num(found, nan=np.inf, posinf=np.inf)
    return wrong


def feed_rows(engine: Engine, chosen: Sequence[ReferenceRow], row: int) -> Fed:
    """The rows as the engine's graph takes them, with logits asked for at every position."""
    rows = [one.ids for one in chosen]
    types = [np.zeros_like(one.ids) if one.type_ids is None else one.type_ids for one in chosen]
    return engine.feed(rows, types, row)
