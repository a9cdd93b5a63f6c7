"""An engine held to itself: batches and decode steps against its own rows alone.

How far quantization may take a row from the reference, the evaluation text says. What the row is
put beside, and in how many steps it is computed, must not matter: that is held against the same
engine's row alone, within what quantization itself may move a logit of that text by. Of other
precisions batches are held to the reference, and decode steps, whose tokens may part from the
reference's at a near tie, to the engine's own prefill, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.errors import EngineFault
from ptdeploy.parity.measure import finite, log_softmax
from ptdeploy.parity.quality import Quality
from ptdeploy.parity.reference import Greedy, ReferenceRow
from ptdeploy.parity.report import CaseResult, GreedyResult, OutputError
from ptdeploy.runtime import Engine
from ptdeploy.runtime.generation import Generated
from ptdeploy.runtime.prompt_choice import DEFAULT, OnePrompt

# The largest of thousands of differences lies about four root mean squares off; and twice that, as
# activations in int8 may be quantized otherwise in a batch, where they differ in their last bits:
# two runs as near to the reference as that are so near to one another.
_ROOT_MEAN_SQUARES = 8

# The engine's logits of a row that runs alone, and why it failed there, where it did.
Alone = tuple[NDArray[np.float32], str | None]


def own_bound(quality: Quality | None, scale: float) -> float:
    """What a logit may be off the engine's own row alone.

    That is eight times the root mean square of what quantization costs on the evaluation text, or
    twice what sums in fp32 may differ by where that is more. Only that text counts, as its bounds
    judge it: the rows alone are judged by nothing, so that a faulty one would allow itself all.
    `scale` is the reference's largest logit.
    """
    error = None if quality is None else quality.rms_error
    return float(_own_bounds(np.array([error or 0.0]), np.array([scale]))[0])


def own_outputs(
    quality: Quality | None, scales: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """The same of each output, by its own largest value; None where one bound is that of all."""
    if quality is None or quality.rms_outputs is None or scales is None:
        return None
    return _own_bounds(np.array([error or 0.0 for error in quality.rms_outputs]), scales)


def _own_bounds(errors: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    exact = PRECISIONS["fp32"].thresholds
    assert exact is not None, "fp32 quantizes no weights"
    return np.asarray(np.maximum(2 * exact.allowed(scales), _ROOT_MEAN_SQUARES * errors))


def row_alone(engine: Engine, row: ReferenceRow, prompt: OnePrompt = DEFAULT) -> Alone:
    """The engine's logits of a row alone, at the positions that the reference has.

    Where it fails on the row they are NaN.
    """
    types = None if row.type_ids is None else [row.type_ids]
    try:
        return kept(engine.logits([row.ids], token_type_ids=types, prompt=prompt)[0], row), None
    except EngineFault as error:
        return np.full_like(row.logits, np.nan), error.problem


def kept(logits: NDArray[np.float32], row: ReferenceRow) -> NDArray[np.float32]:
    """A row's logits at the positions that the reference has, without the memory of the others."""
    if len(np.atleast_2d(logits)) == len(np.atleast_2d(row.logits)):
        return logits
    return logits[-len(row.logits) :].copy()


def held_to_own(
    case: CaseResult,
    logits: Sequence[NDArray[np.float32]],
    own: Sequence[Alone],
    allowed: float,
    outputs: NDArray[np.float64] | None,
) -> CaseResult:
    """The case, failed where its rows' `logits` are further than `allowed` from the engine's `own`.

    Those are of the same rows, each alone. `outputs` is what each output may be off by.
    """
    apart = apart_outputs(logits, [alone for alone, _ in own])
    most = finite(apart.max())
    within = most is not None and most <= allowed
    output = None if outputs is None else furthest(apart, outputs)
    return msgspec.structs.replace(
        case,
        own_max_abs=most,
        own_output=output,
        passed=case.passed and within and output is None,
        stopped=case.stopped or next((why for _, why in own if why is not None), None),
    )


def furthest(apart: NDArray[np.float64], allowed: NDArray[np.float64]) -> OutputError | None:
    """The output that is furthest over its own bound; None where all are within theirs."""
    over = apart > allowed
    if not over.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = int(np.where(over, apart / allowed, 0).argmax())
    return OutputError(worst, finite(apart[worst]), float(allowed[worst]))


def greedy_held_to_own(
    result: GreedyResult,
    engine: Engine,
    text: Greedy,
    row: Generated,
    allowed: float,
    prompt: OnePrompt,
) -> GreedyResult:
    """A continued row's result, held to the engine's own prefill.

    The text and what the engine continued it with run alone, in one pass. What decode steps found
    of a token's log probability may be off that by `allowed`, and a token that is not the
    reference's may lie below the likeliest by as much.
    """
    tokens = row.token_ids
    ids = np.concatenate([text.ids, np.asarray(tokens[:-1], np.int64)])
    try:
        logits = engine.logits([ids], prompt=prompt)[0][-len(tokens) :].astype(np.float64)
    except EngineFault as error:
        return msgspec.structs.replace(result, passed=False, stopped=error.problem)
    chosen = logits[np.arange(len(tokens)), np.asarray(tokens)]
    best = logits.max(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        own = log_softmax(logits)[np.arange(len(tokens)), np.asarray(tokens)]
        apart = finite(float(np.abs(own - row.logprobs).max()))
    behind = None
    if result.agreed < result.total:
        behind = finite(float((best - chosen).max()))
    measured = [apart] if result.agreed == result.total else [apart, behind]
    near = all(one is not None and one <= allowed for one in measured)
    return msgspec.structs.replace(
        result, behind=behind, steps_apart=apart, passed=result.passed and near
    )


def apart_outputs(
    logits: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """How far each output of rows is from other logits of them, at the positions of both."""
    each = [_apart(got, other) for got, other in zip(logits, others, strict=True)]
    return np.asarray(np.max(each, axis=0))


def _apart(got: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same of one row; infinity where a number is not finite."""
    got, own = np.atleast_2d(got), np.atleast_2d(own)
    count = min(len(got), len(own))
    with np.errstate(invalid="ignore", over="ignore"):
        between = np.abs(got[-count:].astype(np.float64) - own[-count:])
    # NaN sorts high: what is not finite must never hide behind a maximum.
    return np.asarray(np.where(np.isfinite(between), between, np.inf).max(0))
