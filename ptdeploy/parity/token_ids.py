"""Whether a bundle's tokenizer makes the same token ids of texts as transformers does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptdeploy.parity.data import DataRow
from ptdeploy.parity.reference import Reference
from ptdeploy.runtime import Engine

Ids = Sequence[int]


def texts_agreed(engine: Engine, reference: Reference, data: Sequence[DataRow]) -> tuple[int, int]:
    """How many texts, pairs and data rows are encoded as they should be, and of how many."""
    wanted = [row for row in data if row.text is not None and row.wanted_ids]
    total = len(reference.texts) + len(reference.pairs) + len(wanted)
    agreed = sum(_data_agrees(engine, row) for row in wanted)
    if engine.tokenizer is None:
        return agreed, total
    agreed += sum(
        tuple(engine.tokenizer.encode(text).ids) == ids
        for text, ids in zip(reference.texts, reference.text_ids, strict=True)
    )
    return agreed + sum(pair_agrees(engine, *pair) for pair in wanted_pairs(reference)), total


def wanted_pairs(reference: Reference) -> Iterator[tuple[tuple[str, str], Ids, Ids]]:
    """Each pair of texts, the token ids and the segments that transformers makes of it."""
    return zip(reference.pairs, reference.pair_ids, reference.pair_type_ids, strict=True)


def pair_agrees(engine: Engine, pair: tuple[str, str], ids: Ids, type_ids: Ids) -> bool:
    """Whether a pair is encoded so; its segments count where the model has any."""
    assert engine.tokenizer is not None
    found = engine.tokenizer.encode(pair[0], pair=pair[1])
    same = found.ids == list(ids)
    return same and (not engine.takes_segments or found.type_ids == list(type_ids))


def _data_agrees(engine: Engine, row: DataRow) -> bool:
    """Whether a data row's text is encoded as the row itself says."""
    (found,) = engine.encode([row.given])
    same = found.ids == row.ids.tolist()
    return same and (row.type_ids is None or found.type_ids == row.type_ids.tolist())
