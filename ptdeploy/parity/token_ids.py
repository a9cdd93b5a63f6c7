"""Whether a bundle's tokenizer makes the same token ids of texts as transformers does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ptdeploy.parity.data import DataRow
from ptdeploy.parity.reference import Reference
from ptdeploy.runtime import Engine

Ids = Sequence[int]


@dataclass(frozen=True)
class EncodedTexts:
    """How many texts, pairs and data rows are encoded as they should be, of how many, and the
    number of the first data row that is not."""

    agreed: int
    total: int
    first_other: int | None


def encoded_texts(engine: Engine, reference: Reference, data: Sequence[DataRow]) -> EncodedTexts:
    """Encode all texts whose token ids are known."""
    wanted = {n: row for n, row in enumerate(data, 1) if row.text is not None and row.wanted_ids}
    other = [n for n, row in wanted.items() if not row_agrees(engine, row)]
    total = len(reference.texts) + len(reference.pairs) + len(wanted)
    agreed, first = len(wanted) - len(other), next(iter(other), None)
    if engine.tokenizer is None:
        return EncodedTexts(agreed, total, first)
    agreed += sum(
        tuple(engine.tokenizer.encode(text).ids) == ids
        for text, ids in zip(reference.texts, reference.text_ids, strict=True)
    )
    agreed += sum(pair_agrees(engine, *pair) for pair in wanted_pairs(reference))
    return EncodedTexts(agreed, total, first)


def wanted_pairs(reference: Reference) -> Iterator[tuple[tuple[str, str], Ids, Ids]]:
    """Each pair of texts, the token ids and the segments that transformers makes of it."""
    return zip(reference.pairs, reference.pair_ids, reference.pair_type_ids, strict=True)


def pair_agrees(engine: Engine, pair: tuple[str, str], ids: Ids, type_ids: Ids) -> bool:
    """Whether a pair is encoded so; its segments count where the model has any."""
    assert engine.tokenizer is not None
    found = engine.tokenizer.encode(pair[0], pair=pair[1])
    same = found.ids == list(ids)
    return same and (not engine.takes_segments or found.type_ids == list(type_ids))


def row_agrees(engine: Engine, row: DataRow) -> bool:
    """Whether a data row's text is encoded as the row itself says."""
    if engine.tokenizer is None or row.text is None:
        (found,) = engine.encode([row.given])
    else:
        # However long its text is: the row has other ids then.
        found = engine.tokenizer.encode(row.text, pair=row.pair)
    same = found.ids == row.ids.tolist()
    return same and (row.type_ids is None or found.type_ids == row.type_ids.tolist())
