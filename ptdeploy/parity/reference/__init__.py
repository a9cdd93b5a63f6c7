"""The reference: what PEFT on PyTorch gives for each row alone, computed or read back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import BundleError
from ptdeploy.parity.cases import Source

REFERENCE_NAME = "reference.safetensors"

# What a bundle may spend on its stored reference, in bytes of logits for each row.
_STORED_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """A row's token ids and reference logits, at its last `len(logits)` positions in token tasks.

    `logits` has shape (classes,) for SEQ_CLS and (positions, classes or vocabulary) otherwise.
    `type_ids` is the segment of each token, all 0 where None.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    source: Source = "random"
    type_ids: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Greedy:
    """A row's greedy continuation, and by how much each token's score beat the second one's."""

    ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    margins: NDArray[np.float32]


@dataclass(frozen=True)
class TextRow:
    """A text a rounded engine is judged on: its ids, and the reference's answer at each position.

    `top1` int64 (positions,) is the likeliest token or class, one for SEQ_CLS. `nll` float32
    (tokens - 1,) is how surprising each next token was, in nats; empty but for CAUSAL_LM. `logits`
    float32 (positions, classes) are there for classifiers: a vocabulary's would be too many.
    """

    ids: NDArray[np.int64]
    top1: NDArray[np.int64]
    nll: NDArray[np.float32]
    type_ids: NDArray[np.int64] | None = None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Reference:
    """What an engine must give. `made_by` says what computed it.

    `text_ids` are what transformers makes of `texts`; of `pairs` it makes `pair_ids`, and the
    segments `pair_type_ids`.
    """

    rows: tuple[Row, ...] = field(repr=False)
    greedy: tuple[Greedy, ...] = field(repr=False)
    texts: tuple[str, ...] = ()
    text_ids: tuple[tuple[int, ...], ...] = ()
    made_by: str = ""
    padded_departure: float | None = None
    judged: tuple[TextRow, ...] = field(repr=False, default=())
    judged_on: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    pair_ids: tuple[tuple[int, ...], ...] = ()
    pair_type_ids: tuple[tuple[int, ...], ...] = ()


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    texts: tuple[str, ...]
    made_by: str
    padded_departure: float | None
    rows: _Count
    greedy: _Count
    judged: _Count
    judged_on: str
    sources: tuple[Source, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


def save_reference(reference: Reference, folder: Path, golden: int | None = None) -> str:
    """Write a reference as safetensors into `folder` and return its name.

    Of large vocabularies only the last positions are kept, and of all rows the first `golden`.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
    rows = reference.rows[:golden]
    for i, row in enumerate(_trimmed(row) for row in rows):
        tensors[f"rows.{i:03}.ids"] = row.ids
        tensors[f"rows.{i:03}.logits"] = row.logits
        if row.type_ids is not None:
            tensors[f"rows.{i:03}.type_ids"] = row.type_ids
    for i, one in enumerate(reference.greedy):
        tensors[f"greedy.{i:03}.ids"] = one.ids
        tensors[f"greedy.{i:03}.tokens"] = one.tokens
        tensors[f"greedy.{i:03}.margins"] = one.margins
    for i, text in enumerate(reference.judged):
        tensors[f"judged.{i:03}.ids"] = text.ids
        tensors[f"judged.{i:03}.top1"] = text.top1
        tensors[f"judged.{i:03}.nll"] = text.nll
        if text.type_ids is not None:
            tensors[f"judged.{i:03}.type_ids"] = text.type_ids
        if text.logits is not None:
            tensors[f"judged.{i:03}.logits"] = text.logits
    for i, ids in enumerate(reference.text_ids):
        tensors[f"texts.{i:03}.ids"] = np.asarray(ids, np.int64)
    for i, (ids, types) in enumerate(zip(reference.pair_ids, reference.pair_type_ids, strict=True)):
        tensors[f"pairs.{i:03}.ids"] = np.asarray(ids, np.int64)
        tensors[f"pairs.{i:03}.type_ids"] = np.asarray(types, np.int64)
    metadata = _Metadata(
        reference.texts,
        reference.made_by,
        reference.padded_departure,
        len(rows),
        len(reference.greedy),
        len(reference.judged),
        reference.judged_on,
        tuple(row.source for row in rows),
        reference.pairs,
    )
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        folder / REFERENCE_NAME,
        metadata={"ptdeploy": msgspec.json.encode(metadata).decode()},
    )
    return REFERENCE_NAME


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote. Raises BundleError if anything is missing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = msgspec.json.decode(file.metadata()["ptdeploy"], type=_Metadata)
            if 0 < len(metadata.sources) < metadata.rows:
                raise IndexError(
                    f"its metadata has {len(metadata.sources)} sources for {metadata.rows} rows"
                )
            get, names = file.get_tensor, set(file.keys())

            def types(name: str) -> NDArray[np.int64] | None:
                return get(name) if name in names else None

            def ids_of(kind: str, count: int, what: str) -> tuple[tuple[int, ...], ...]:
                return tuple(tuple(get(f"{kind}.{i:03}.{what}").tolist()) for i in range(count))

            return Reference(
                rows=tuple(
                    Row(
                        get(f"rows.{i:03}.ids"),
                        get(f"rows.{i:03}.logits"),
                        metadata.sources[i] if metadata.sources else "random",
                        types(f"rows.{i:03}.type_ids"),
                    )
                    for i in range(metadata.rows)
                ),
                greedy=tuple(
                    Greedy(
                        get(f"greedy.{i:03}.ids"),
                        get(f"greedy.{i:03}.tokens"),
                        get(f"greedy.{i:03}.margins"),
                    )
                    for i in range(metadata.greedy)
                ),
                texts=metadata.texts,
                text_ids=ids_of("texts", len(metadata.texts), "ids"),
                pairs=metadata.pairs,
                pair_ids=ids_of("pairs", len(metadata.pairs), "ids"),
                pair_type_ids=ids_of("pairs", len(metadata.pairs), "type_ids"),
                made_by=metadata.made_by,
                padded_departure=metadata.padded_departure,
                judged=tuple(
                    TextRow(
                        get(f"judged.{i:03}.ids"),
                        get(f"judged.{i:03}.top1"),
                        get(f"judged.{i:03}.nll"),
                        types(f"judged.{i:03}.type_ids"),
                        get(name) if (name := f"judged.{i:03}.logits") in names else None,
                    )
                    for i in range(metadata.judged)
                ),
                judged_on=metadata.judged_on,
            )
    except (
        SafetensorError,
        KeyError,
        IndexError,
        TypeError,
        OSError,
        msgspec.DecodeError,
    ) as error:
        raise BundleError(
            f"{path}: not a stored reference ({error}).", "Compile the checkpoint again."
        ) from None


def _trimmed(row: Row) -> Row:
    if row.logits.ndim == 1:
        return row
    keep = max(1, _STORED_BYTES // (4 * row.logits.shape[1]))
    return replace(row, logits=row.logits[-keep:])
