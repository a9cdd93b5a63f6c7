"""Why a compilation writes no bundle, and the way out that fits the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.task import Activations
from ptdeploy.errors import EngineFault, ParityError
from ptdeploy.parity.checks import quantization_failures
from ptdeploy.parity.quality import Quality
from ptdeploy.parity.report import ParityReport

_LINES = 8
_MORE_BITS = "fp32, or fp16 on a GPU"
# Of a logits error; an engine that answers every text alike has 1.
_MORE_THAN_QUANTIZATION = 0.9
_SIXTEEN_BITS = {"float16": "65504", "bfloat16": "3.4e38"}


@dataclass(frozen=True)
class Compiled:
    """What was compiled: its architecture, how it computes, and the target's other precisions.

    `left` says what its user has now.
    """

    architecture: str
    activations: Activations
    precisions: Sequence[str]
    left: str = "no bundle was written"


def refuse_mismatch(report: ParityReport, compiled: Compiled) -> None:
    """Raises EngineFault where the engine failed, ParityError where its numbers do not match."""
    if report.passed:
        return
    # Before faults: what is not finite cannot be decoded either.
    if lost := _overflowed(report, compiled):
        raise ParityError(*lost)
    if faults := report.faults():
        raise EngineFault(
            f"The engine fails on what it must take; {compiled.left}.\n  "
            + "\n  ".join(faults[:_LINES]),
            f"Its graph does not fit the target {report.target} on {report.device}: compile for "
            "another target or device, or report this with the base model's name.",
        )
    bound = f" within {report.largest_allowed:.2g}" if _is_too_far(report) else ""
    lines = report.failures()
    more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
    raise ParityError(
        f"The engine does not match {report.reference}{bound}; {compiled.left}.\n  "
        + "\n  ".join([*lines[:_LINES], *more]),
        _way_out(report, compiled),
    )


def _is_too_far(report: ParityReport) -> bool:
    """Whether logits miss the one bound of all, and not another or an output's own."""
    return report.largest_allowed is not None and report.max_abs > report.largest_allowed


def _overflowed(report: ParityReport, compiled: Compiled) -> tuple[str, str] | None:
    """What to say where numbers are not finite: the reference's are, so the engine lost them."""
    run = [case for one in report.each() for case in one.cases]
    cases = [case for case in run if case.max_abs is None and not case.stopped]
    if not cases:
        return None
    first = f"{cases[0].name}, lengths {list(cases[0].lengths)}"
    largest = _SIXTEEN_BITS.get(compiled.activations)
    if largest is None:
        return (
            f"The engine gives numbers that are not finite in {len(cases)} of "
            f"{len(run)} cases, first in {first}, where {report.reference}, gives finite "
            f"ones; {compiled.left}.",
            "Its activations leave the range of float32 in another order of operations: the "
            "model's weights are too large to be computed with safely.",
        )
    wider = [p for p in ("bf16", "fp32") if p in compiled.precisions and p != report.precision]
    return (
        f"Values overflow 16 bits: {report.precision} computes in {compiled.activations}, whose "
        f"largest number is {largest}, and logits are not finite in {len(cases)} of "
        f"{len(run)} cases, first in {first}; {compiled.left}.",
        f"Compile with --precision {' or '.join(wider)}"
        + (": bfloat16 is as small and has float32's range." if "bf16" in wider else "."),
    )


def _way_out(report: ParityReport, compiled: Compiled) -> str:
    """The fix for the first cause that holds."""
    numbers = not all(run.passed for one in report.each() for run in one.runs)
    if not all(effect.passed for one in report.each() for effect in one.effects):
        return (
            "No bits that are lost leave a prompt out or put one in, and no option accepts it: see "
            "with --precision fp32 whether its graph agrees, and report this with the base model's "
            "name."
        )
    # Of several prompts' engine the first may hold where another does not.
    for one in report.each() if not numbers else ():
        if one.quality is not None and quantization_failures(one.quality, one.quality_allowed):
            return _quantization_way_out(one.quality, one.quality_allowed)
    if report.texts_agreed < report.texts_total and not numbers:
        return (
            "Only the tokenizer differs: tokenizer.json does not say all that this tokenizer does. "
            "Save the tokenizer that training used again with save_pretrained and put it beside "
            "the checkpoint."
        )
    if report.precision in ("fp16", "bf16", "tf32"):
        wider = {"fp16": "fp32, or bf16 if values are large", "bf16": "fp16 or fp32"}
        return f"Compile with --precision {wider.get(report.precision, 'fp32')}."
    return (
        f"If {compiled.architecture} is in the README's support table, report this with the base "
        "model's name; the others are not tested."
    )


def _quantization_way_out(quality: Quality, allowed: Quantization | None) -> str:
    error = quality.logits_error
    most = None if allowed is None else allowed.max_logits_error
    finer, other = "try more bits or a smaller --block-size", ""
    if allowed is not None and allowed.calibrated:
        # A block size is for weights alone.
        other = "leave out --calibration, give it other texts, "
        finer = f"{other}try more bits"
    if error is not None and error > _MORE_THAN_QUANTIZATION:
        return (
            "That is more than quantization costs most models: see with --precision fp32 whether "
            f"its graph agrees. If it does, {finer}."
        )
    own = "evaluate it on your own text with --quality-text"
    if error is not None and most is not None and error <= most:
        return (
            f"Its logits error is {error:.2g}, of at most {most}, but answers change that are no "
            f"near ties: {other}{own}, keep more bits (--precision {_MORE_BITS}), or accept them "
            "with --min-agreement."
        )
    return f"{finer[0].upper()}{finer[1:]}, {own}, or accept less."
