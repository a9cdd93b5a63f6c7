"""Whether a reference fits a bundle's engine: all of it must be what that can be asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Limits, Manifest, RequestLimits
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import BatchCase, batches
from ptdeploy.parity.reference import Greedy, Reference, ReferenceRow, TextRow
from ptdeploy.runtime import ENGINES


def check_fits(reference: Reference, manifest: Manifest) -> None:
    """Raises ValueError unless the engine can be asked for all of it."""
    if not reference.rows:
        raise ValueError("it holds no rows")
    if not reference.cases:
        raise ValueError("it holds no cases")
    for i, row in enumerate(reference.rows):
        _check_row(f"rows.{i:03}", row, manifest)
    for i, case in enumerate(reference.cases):
        _check_case(f"cases[{i}]", case, manifest.limits)
    for i, one in enumerate(reference.greedy):
        _check_greedy(f"greedy.{i:03}", one, manifest.request_limits)
    if reference.base_greedy is not None and ENGINES[manifest.task].takes_base:
        _check_greedy("without_prompt", reference.base_greedy, manifest.request_limits)
    for i, text in enumerate(reference.evaluation):
        _check_text(f"evaluation.{i:03}", text, manifest)


def cut_to(reference: Reference, manifest: Manifest, where: str | Path) -> Reference:
    """The part of a reference that the engine takes, in the cases of this engine's batches.

    `where` is what the reference came with, from another engine. Raises InputError if too little is
    left to judge by.
    """
    limits = manifest.request_limits
    most = limits.max_sequence
    rows = tuple(row for row in reference.rows if row.ids.size <= most)
    base = reference.base_greedy
    left = replace(
        reference,
        rows=rows,
        base_greedy=base if base and base.ids.size + base.tokens.size <= most else None,
        cases=batches([row.source for row in rows], limits.max_batch),
        greedy=tuple(o for o in reference.greedy if o.ids.size + o.tokens.size <= most),
        evaluation=tuple(text for text in reference.evaluation if text.ids.size <= most),
    )
    for had, has, what in (
        (reference.rows, rows, "row"),
        (reference.greedy, left.greedy, "row with its continuation"),
        (reference.evaluation, left.evaluation, "evaluation text"),
        (_together(reference, limits), _together(left, limits), "batch of several rows"),
    ):
        if had and not has:
            raise InputError(
                f"{where}: was proven over an engine of a longer context, and no {what} of its "
                f"reference fits in the {most} tokens of text that this bundle takes beside it.",
                "Compile its checkpoint over this bundle: ptdeploy compile CHECKPOINT --over "
                "BUNDLE",
            )
    return left


def _together(reference: Reference, limits: Limits) -> bool:
    return limits.max_batch != 1 and any(len(case.rows) > 1 for case in reference.cases)


def _check_row(name: str, row: ReferenceRow, manifest: Manifest) -> None:
    _check_ids(f"{name}.ids", row.ids, manifest.request_limits)
    _check_segments(f"{name}.type_ids", row.type_ids, row.ids.size, manifest.request_limits)
    shape, tokens, task_engine = row.logits.shape, row.ids.size, ENGINES[manifest.task]
    engine = task_engine.logit_shape(manifest, tokens)
    fits = len(shape) == len(engine) and shape[-1] == engine[-1]
    if not fits or not (task_engine.one_answer or 1 <= shape[0] <= tokens):
        raise ValueError(f"{name}.logits has shape {shape}, but the engine gives {engine}")
    _check_type(f"{name}.logits", row.logits, np.float32)
    if not np.isfinite(row.logits).all():
        raise ValueError(f"{name}.logits holds a number that is not finite")
    if row.without_prompt is not None:
        _check_logits(f"{name}.without_prompt", row.without_prompt, shape)


def _check_case(name: str, case: BatchCase, limits: Limits) -> None:
    most = limits.max_batch
    if most is not None and len(case.rows) > most:
        raise ValueError(f"{name} has {len(case.rows)} rows, but the bundle takes at most {most}")


def _check_greedy(name: str, one: Greedy, limits: RequestLimits) -> None:
    _check_ids(f"{name}.ids", one.ids, limits)
    room = limits.max_sequence - one.ids.size
    if not 1 <= _length(f"{name}.tokens", one.tokens, np.int64) <= room:
        raise ValueError(
            f"{name}.tokens has {one.tokens.size} tokens, but its text leaves room for {room}"
        )
    _check_length(f"{name}.margins", one.margins, np.float32, one.tokens.size)


def _check_text(name: str, text: TextRow, manifest: Manifest) -> None:
    task_engine, tokens = ENGINES[manifest.task], text.ids.size
    _check_ids(f"{name}.ids", text.ids, manifest.request_limits)
    _check_segments(f"{name}.type_ids", text.type_ids, tokens, manifest.request_limits)
    _check_length(f"{name}.top1", text.top1, np.int64, task_engine.positions(tokens))
    surprises = tokens - 1 if task_engine.writes else 0
    _check_length(f"{name}.nll", text.nll, np.float32, surprises)
    if text.logits is not None or _has_logits(manifest):
        wanted = (text.top1.size, task_engine.logit_shape(manifest, tokens)[-1])
        _check_text_logits(f"{name}.logits", text.logits, wanted)


def _has_logits(manifest: Manifest) -> bool:
    """Whether a quantized engine is evaluated by its logits themselves."""
    if ENGINES[manifest.task].writes:
        return False
    asked = manifest.quantization is not None and manifest.quantization.max_logits_error is not None
    return asked or manifest.prompt.head != "softmax"


def _check_text_logits(
    name: str, logits: NDArray[np.float32] | None, wanted: tuple[object, ...]
) -> None:
    if logits is None:
        raise ValueError(f"File does not contain tensor {name}")
    _check_logits(name, logits, wanted)


def _check_logits(name: str, logits: NDArray[np.float32], wanted: tuple[object, ...]) -> None:
    _check_type(name, logits, np.float32)
    if logits.shape != wanted:
        raise ValueError(f"{name} has shape {logits.shape}, not {wanted}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name} holds a number that is not finite")


def _check_ids(name: str, ids: NDArray[np.int64], limits: RequestLimits) -> None:
    if not 1 <= _length(name, ids, np.int64) <= limits.max_sequence:
        raise ValueError(
            f"{name} has {ids.size} tokens, but the bundle takes 1 to {limits.max_sequence}"
        )
    if ids.min() < 0 or ids.max() >= limits.vocab_size:
        raise ValueError(f"{name} holds a token id outside 0 to {limits.vocab_size - 1}")


def _check_segments(
    name: str, types: NDArray[np.int64] | None, tokens: int, limits: RequestLimits
) -> None:
    if types is None:
        return
    _check_length(name, types, np.int64, tokens)
    if types.min() < 0 or types.max() >= limits.type_vocab_size:
        raise ValueError(
            f"{name} holds a segment that the bundle does not take: it has {limits.type_vocab_size}"
        )


def _check_length(name: str, array: NDArray[np.generic], dtype: type, wanted: int) -> None:
    found = _length(name, array, dtype)
    if found != wanted:
        raise ValueError(f"{name} has {found} entries, not {wanted}")


def _length(name: str, array: NDArray[np.generic], dtype: type) -> int:
    _check_type(name, array, dtype)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, but is a list")
    return array.size


_TYPES = {"float32": "F32", "int64": "I64"}


def _check_type(name: str, array: NDArray[np.generic], dtype: type) -> None:
    found, wanted = array.dtype.name, np.dtype(dtype).name
    if found != wanted:
        raise ValueError(f"{name} is {_TYPES.get(found, found)}, not {_TYPES[wanted]}")
