"""A bundle's reference file: written once, and checked against the bundle whenever it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle
from ptdeploy.bundle.precision import Thresholds
from ptdeploy.bundle.tensor_file import open_tensors
from ptdeploy.errors import BundleError, InputError
from ptdeploy.parity.cases import WIDEST, BatchCase, Padding
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow, TextRow
from ptdeploy.parity.reference.fits import check_fits, cut_to

REFERENCE_NAME = "reference.safetensors"

# What a bundle may spend on its reference, in bytes of logits for each row.
_ROW_BYTES = 1 << 20
# Each is one run of the engine.
_MOST_CASES = 10_000
# The tensors of a row that is continued without a prompt; older references have none.
_BASE = "without_prompt"


# The user's own data is never stored.
_Stored = Literal["random", "text"]
_Count = Annotated[int, msgspec.Meta(ge=0)]
# What a logit may be off by, at least: below 0 nothing would be within it.
_Bound = Annotated[float, msgspec.Meta(ge=0)]


class _Case(msgspec.Struct, forbid_unknown_fields=True):
    rows: Annotated[tuple[_Count, ...], msgspec.Meta(min_length=1, max_length=WIDEST)]
    padding: Padding


class _Thresholds(msgspec.Struct, forbid_unknown_fields=True):
    """Thresholds as they are stored: every one of them is there. JSON has finite numbers only."""

    max_abs: _Bound
    relative: _Bound
    cosine: float
    kl: float
    min_top1_agreement: float


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    made_by: str
    texts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    padded_mismatch: float | None
    rows: _Count
    sources: tuple[_Stored, ...]
    cases: Annotated[tuple[_Case, ...], msgspec.Meta(max_length=_MOST_CASES)]
    thresholds: _Thresholds
    greedy: _Count
    evaluation: _Count
    evaluated_on: str


def save_reference(reference: Reference, folder: Path) -> str:
    """Write a reference as safetensors into `folder` and return its name.

    Of large vocabularies only the last positions are kept.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
    for i, row in enumerate(_trimmed(row) for row in reference.rows):
        tensors[f"rows.{i:03}.ids"] = row.ids
        tensors[f"rows.{i:03}.logits"] = row.logits
        if row.type_ids is not None:
            tensors[f"rows.{i:03}.type_ids"] = row.type_ids
        if row.without_prompt is not None:
            tensors[f"rows.{i:03}.without_prompt"] = row.without_prompt
    continued = {f"greedy.{i:03}": one for i, one in enumerate(reference.greedy)}
    if reference.base_greedy is not None:
        continued[_BASE] = reference.base_greedy
    for name, one in continued.items():
        tensors[f"{name}.ids"] = one.ids
        tensors[f"{name}.tokens"] = one.tokens
        tensors[f"{name}.margins"] = one.margins
    for i, text in enumerate(reference.evaluation):
        tensors[f"evaluation.{i:03}.ids"] = text.ids
        tensors[f"evaluation.{i:03}.top1"] = text.top1
        tensors[f"evaluation.{i:03}.nll"] = text.nll
        if text.type_ids is not None:
            tensors[f"evaluation.{i:03}.type_ids"] = text.type_ids
        if text.logits is not None:
            tensors[f"evaluation.{i:03}.logits"] = text.logits
    for i, ids in enumerate(reference.text_ids):
        tensors[f"texts.{i:03}.ids"] = np.asarray(ids, np.int64)
    for i, (ids, types) in enumerate(zip(reference.pair_ids, reference.pair_type_ids, strict=True)):
        tensors[f"pairs.{i:03}.ids"] = np.asarray(ids, np.int64)
        tensors[f"pairs.{i:03}.type_ids"] = np.asarray(types, np.int64)
    metadata = _Metadata(
        made_by=reference.made_by,
        texts=reference.texts,
        pairs=reference.pairs,
        padded_mismatch=reference.padded_mismatch,
        rows=len(reference.rows),
        sources=cast("tuple[_Stored, ...]", tuple(row.source for row in reference.rows)),
        cases=tuple(_Case(case.rows, case.padding) for case in reference.cases),
        thresholds=_Thresholds(**msgspec.structs.asdict(reference.thresholds)),
        greedy=len(reference.greedy),
        evaluation=len(reference.evaluation),
        evaluated_on=reference.evaluated_on,
    )
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        folder / REFERENCE_NAME,
        metadata={"ptdeploy": msgspec.json.encode(metadata).decode()},
    )
    return REFERENCE_NAME


def referred(bundle: Bundle) -> tuple[str | None, ...]:
    """Whose references a bundle holds, the default prompt's first; None is the base model alone."""
    manifest = bundle.manifest
    held = {entry.of for entry in manifest.files if entry.role == "reference"}
    every = (manifest.default_prompt, None, *sorted(manifest.prompts))
    return tuple(name for name in dict.fromkeys(every) if name in held)


def load_reference(bundle: Bundle, cut: bool = False) -> Reference:
    """Read the reference of a bundle's default prompt, or of the base model alone.

    Its file is not trusted: it must fit the bundle's engine. `cut` leaves out what that does not
    take, where the reference was made for another engine: see cut_to.

    Raises InputError if it holds none, BundleError if that is damaged or does not fit the engine.
    """
    path = bundle.file("reference")
    if path is None:
        raise InputError(
            f"{bundle.path}: holds no stored reference.", "Pass the checkpoint with --checkpoint."
        )
    try:
        with bundle.reading("reference") as opened:
            assert opened is not None, "it has a path"
            reference = _read(opened)
        if cut:
            reference = cut_to(reference, bundle.manifest, bundle.path)
        check_fits(reference, bundle.manifest)
    except ValueError as error:
        raise BundleError(
            f"{path}: not a stored reference ({error}).", "Compile the checkpoint again."
        ) from error
    return reference


def _read(path: Path) -> Reference:
    """Read what `save_reference` wrote. Raises BundleError if anything is missing."""
    from safetensors import SafetensorError

    try:
        with open_tensors(path) as file:
            metadata = msgspec.json.decode(file.metadata()["ptdeploy"], type=_Metadata)
            if len(metadata.sources) != metadata.rows:
                raise IndexError(
                    f"its metadata has {len(metadata.sources)} sources for {metadata.rows} rows"
                )
            return _from_tensors(_Tensors(file), metadata)
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
        ) from error


class _Tensors:
    """A safetensors file's tensors by name; a missing one is None, or an error of the library."""

    def __init__(self, file: Any):
        self._file, self._names = file, set(file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor: NDArray[Any] = self._file.get_tensor(name)
        return tensor

    def get(self, name: str) -> NDArray[Any] | None:
        return self[name] if name in self._names else None

    def ids(self, kind: str, count: int, what: str = "ids") -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self[f"{kind}.{i:03}.{what}"].tolist()) for i in range(count))


def _from_tensors(tensors: _Tensors, metadata: _Metadata) -> Reference:
    rows = []
    for i in range(metadata.rows):
        name = f"rows.{i:03}"
        ids, logits = tensors[f"{name}.ids"], tensors[f"{name}.logits"]
        types, without = (tensors.get(f"{name}.{what}") for what in ("type_ids", "without_prompt"))
        rows.append(ReferenceRow(ids, logits, metadata.sources[i], types, without))
    greedy = [_continued(tensors, f"greedy.{i:03}") for i in range(metadata.greedy)]
    base = None if tensors.get(f"{_BASE}.ids") is None else _continued(tensors, _BASE)
    text_ids = tensors.ids("texts", len(metadata.texts))
    pair_ids = tensors.ids("pairs", len(metadata.pairs))
    pair_type_ids = tensors.ids("pairs", len(metadata.pairs), "type_ids")
    evaluation = [
        TextRow(
            *(tensors[f"evaluation.{i:03}.{what}"] for what in ("ids", "top1", "nll")),
            *(tensors.get(f"evaluation.{i:03}.{what}") for what in ("type_ids", "logits")),
        )
        for i in range(metadata.evaluation)
    ]
    return Reference(
        rows=tuple(rows),
        greedy=tuple(greedy),
        cases=tuple(_case(i, case, metadata) for i, case in enumerate(metadata.cases)),
        thresholds=Thresholds(**msgspec.structs.asdict(metadata.thresholds)),
        texts=metadata.texts,
        text_ids=text_ids,
        made_by=metadata.made_by,
        padded_mismatch=metadata.padded_mismatch,
        evaluation=tuple(evaluation),
        evaluated_on=metadata.evaluated_on,
        pairs=metadata.pairs,
        pair_ids=pair_ids,
        pair_type_ids=pair_type_ids,
        base_greedy=base,
    )


def _continued(tensors: _Tensors, name: str) -> Greedy:
    return Greedy(*(tensors[f"{name}.{what}"] for what in ("ids", "tokens", "margins")))


def _case(index: int, case: _Case, metadata: _Metadata) -> BatchCase:
    """A stored case with its rows' source, which gives it its name."""
    beyond = [row for row in case.rows if row >= metadata.rows]
    if beyond:
        raise IndexError(f"cases[{index}] has row {beyond[0]} of {metadata.rows}")
    sources = {metadata.sources[row] for row in case.rows}
    if len(sources) > 1:
        raise IndexError(f"cases[{index}] has rows of {' and '.join(sorted(sources))}")
    return BatchCase(case.rows, case.padding, *sources)


def _trimmed(row: ReferenceRow) -> ReferenceRow:
    if row.logits.ndim == 1:
        return row
    keep = max(1, _ROW_BYTES // (4 * row.logits.shape[1]))
    without = None if row.without_prompt is None else row.without_prompt[-keep:]
    return replace(row, logits=row.logits[-keep:], without_prompt=without)
