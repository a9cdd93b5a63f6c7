"""Bounds of the caller's own that nothing here could be held to: refused, not passed over."""

from __future__ import annotations

from collections.abc import Sequence

from ptdeploy.commands.bounds import refuse_logits_error
from ptdeploy.commands.request import VerifyRequest
from ptdeploy.errors import InputError
from ptdeploy.parity.data import DataRow, has_whole_logits
from ptdeploy.parity.thresholds import Overrides
from ptdeploy.runtime import Engine

# A prompt's name; None is the base model alone.
Names = Sequence[str | None]


def check_bounds(
    request: VerifyRequest,
    overrides: Overrides,
    engine: Engine,
    names: Names,
    given: Sequence[DataRow],
) -> None:
    """Raises InputError if a bound could not be held against anything.

    `names` are the prompts to be compared, `given` the data's rows.
    """
    beside = request.checkpoint is not None or all(has_whole_logits(row, engine) for row in given)
    _check_scores(overrides, given, beside)
    _check_quantization(overrides, engine, names)
    quantized = engine.manifest.quantization is not None
    # A token is scored by those before it.
    follows = any(row.ids.size > 1 for row in given)
    scored = engine.writes and (quantized or (follows and beside))
    if overrides.max_perplexity_ratio is not None and not scored:
        raise InputError(
            "--thresholds: max_perplexity_ratio is of a causal model with quantized weights, or of "
            "data of two tokens or more, given to a causal model and to PEFT.",
            "Pass the data with --data and the checkpoint with --checkpoint, or leave it out."
            if engine.writes
            else "Leave it out: a classifier has no perplexity.",
        )


def _check_scores(overrides: Overrides, given: Sequence[DataRow], beside: bool) -> None:
    """The same for bounds on what labelled data scores, where PEFT does it `beside` or not."""
    asked = (overrides.min_accuracy, overrides.max_accuracy_drop)
    if any(one is not None for one in asked) and all(row.labels is None for row in given):
        raise InputError(
            "--thresholds: asks for an accuracy, but no labelled data was given.",
            'Pass a file with "label" in its rows with --data.',
        )
    if overrides.max_squared_error is not None and all(row.values is None for row in given):
        raise InputError(
            "--thresholds: max_squared_error is for labelled data given to a regression.",
            'Pass a file with a number as "label" in its rows with --data.',
        )
    if overrides.max_accuracy_drop is not None and not beside:
        raise InputError(
            "--thresholds: max_accuracy_drop is beside PEFT's accuracy, which nothing here says.",
            "Pass the checkpoint with --checkpoint, or bound the accuracy with min_accuracy.",
        )


def _check_quantization(overrides: Overrides, engine: Engine, names: Names) -> None:
    quantized = engine.manifest.quantization is not None
    if quantized and overrides.relative is not None and overrides.max_abs is None:
        raise InputError(
            "--thresholds: relative is added to max_abs, which nothing bounds where weights are "
            "quantized.",
            "Give max_abs too, or leave relative out.",
        )
    if overrides.max_logits_error is None:
        return
    prompts = engine.manifest.prompts
    heads = {"softmax" if name is None else prompts[name].head for name in names}
    refuse_logits_error(engine.writes, heads, str, "--thresholds: ")
