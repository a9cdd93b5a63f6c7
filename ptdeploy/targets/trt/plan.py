"""Which shapes an engine takes: limits, and one optimization profile or a decoder's two."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Literal

import msgspec

from ptdeploy.backends.trt.engine_file import Profile
from ptdeploy.bundle import RequestLimits
from ptdeploy.bundle.signature import CLASSES, PREFIX, PREFIXES, PROMPTS, VIRTUAL
from ptdeploy.errors import InputError
from ptdeploy.runtime.layout import KEPT, PREFILL
from ptdeploy.runtime.prompt_inputs import MOST_IN_A_RUN
from ptdeploy.targets.trt.options import Range, TrtOptions, read_profile

if TYPE_CHECKING:
    from ptdeploy.bundle.signature import Signature

# The text beside the virtual tokens, unless told. A decoder's buffer has a fixed number of slots,
# each of which every step reads; a classifier's scratch memory is that of its largest request.
DEFAULT_ROOM = 4096
_BATCH = Range(1, 8, 32)
_ROWS = Range(1, 1, 8)
_TOKENS = 128
# Room for the labels of prompts that come later: they may have more than the bundle's own.
_CLASSES = 1024
# TensorRT takes memory that begins at a multiple of so many bytes.
_ALIGNMENT = 256
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def bounded(
    limits: RequestLimits, options: TrtOptions, causal: bool, max_context: int | None
) -> RequestLimits:
    """The limits as an engine with profiles has them: everything has a largest size.

    Raises InputError if the asked profile is larger than the model.
    """
    ranges = read_profile(options.profile)
    batch, sequence = ranges.get("batch"), ranges.get("seq")
    if not causal:
        longest = min(limits.max_sequence, DEFAULT_ROOM) if sequence is None else sequence.max
        _check("seq", longest, limits.max_sequence, "tokens of text beside the virtual tokens")
        return msgspec.structs.replace(
            limits,
            max_sequence=longest,
            max_context=longest + limits.max_context - limits.max_sequence,
            max_batch=(batch or _BATCH).max,
        )
    virtual = limits.max_context - limits.max_sequence
    # So many slots that every row of the buffer begins where TensorRT takes memory.
    usual = -(-(virtual + DEFAULT_ROOM) // _ALIGNMENT) * _ALIGNMENT
    context = limits.max_context if max_context else min(limits.max_context, usual)
    if batch and limits.max_batch not in (None, batch.max):
        raise InputError(
            f"--profile has batches of {batch.max}, --max-batch {limits.max_batch}: "
            "give one of them, or the same in both."
        )
    prefill = min(PREFILL, context) if sequence is None else sequence.max
    _check("seq", prefill, context, "tokens of context, virtual tokens included")
    return msgspec.structs.replace(
        limits,
        max_context=context,
        max_sequence=context - virtual,
        max_batch=batch.max if batch else limits.max_batch or _ROWS.max,
        max_prefill=prefill,
    )


def refuse_split_rows(signature: Signature, limits: RequestLimits) -> None:
    """Raises InputError if a KV buffer has rows that begin where TensorRT takes no memory.

    A prefill runs over one row of a larger buffer.
    """
    past = [spec for spec in signature.inputs if spec.role == "past"]
    if not past or (limits.max_batch or 1) == 1:
        return
    _, heads, _, width = past[0].shape
    assert isinstance(heads, int)
    assert isinstance(width, int)
    slot = heads * width * _BYTES[past[0].dtype]
    step = _ALIGNMENT // gcd(_ALIGNMENT, slot)
    less = limits.max_context // step * step
    if less == limits.max_context:
        return
    fits = f"{less + step} or {less}" if less else str(step)
    raise InputError(
        f"--max-context {limits.max_context}: a row of the KV buffer would take "
        f"{limits.max_context} times {slot} bytes, and TensorRT takes rows that begin at multiples "
        f"of {_ALIGNMENT} bytes alone.",
        f"Compile with --max-context {fits}, a multiple of {step}, or with --max-batch 1.",
    )


def profiles(
    signature: Signature,
    limits: RequestLimits,
    options: TrtOptions,
    own: Mapping[str, int] | None = None,
) -> tuple[Profile, ...]:
    """The optimization profiles for a signature, in the order they are looked through.

    `own` is the largest size that the bundle's own prompts have of an axis, one by one.
    An engine without past KV has one. A decoder has two: `decode`, a token for each row of a batch,
    and `prefill`, many tokens of one row.
    """
    ranges = read_profile(options.profile)
    assert limits.max_batch is not None
    virtual = limits.max_context - limits.max_sequence
    if limits.max_prefill is None:
        text = _up_to(ranges.get("seq", Range(1, _TOKENS, 1 << 30)), limits.max_sequence)
        prompts = _of_prompts(signature, limits, own or {})
        # A row is its virtual tokens and its text; beside a shorter prompt's row some of those are
        # positions too that logits are read of.
        before = virtual if VIRTUAL in prompts else 0
        whole = Range(text.min, text.opt + before, text.max + before)
        kept = Range(text.min, text.opt, text.max + before)
        batch = _up_to(ranges.get("batch", _BATCH), limits.max_batch)
        sizes = {"batch": batch, "sequence": whole, "kept": kept, **prompts}
        return (Profile("requests", _shapes(signature, sizes)),)
    slots = Range(1, min(1024, limits.max_context), limits.max_context)
    one = Range(1, 1, 1)
    rows = _up_to(ranges.get("batch", _ROWS), limits.max_batch)
    tokens = _up_to(ranges.get("seq", Range(1, _TOKENS, 1 << 30)), limits.max_prefill)
    kept = Range(1, 1, min(KEPT, tokens.max))
    prompts = _of_prompts(signature, limits, own or {})
    decode = {"batch": rows, "sequence": one, "kept": one, "slots": slots, **prompts}
    prefill = {"batch": one, "sequence": tokens, "kept": kept, "slots": slots, **prompts}
    return (
        Profile("decode", _shapes(signature, decode)),
        Profile("prefill", _shapes(signature, prefill)),
    )


def _of_prompts(
    signature: Signature, limits: RequestLimits, own: Mapping[str, int]
) -> dict[str, Range]:
    """Room for what belongs to prompts, as far as the signature has it: tuned for one of them."""
    virtual = max(limits.max_context - limits.max_sequence, 1)
    # A run has no more prompts than rows. Those that come later may be longer: as long as they can
    # be, in runs of few rows.
    most = min(MOST_IN_A_RUN, limits.max_batch or MOST_IN_A_RUN)
    later = min(most * limits.max_context, MOST_IN_A_RUN * _TOKENS)
    prefixes = own.get(PREFIXES, 1)
    sizes = {
        VIRTUAL: Range(1, virtual, max(most * max(virtual, _TOKENS), limits.max_context, later)),
        PROMPTS: Range(1, 1, most),
        CLASSES: Range(1, own.get(CLASSES, 8), _CLASSES),
        PREFIX: Range(1, virtual, limits.max_context),
        # Of each prompt as many as of the bundle's own: they belong to the layers of one model.
        PREFIXES: Range(1, prefixes, most * prefixes),
    }
    named = {axis for spec in signature.inputs for axis in spec.shape}
    return {
        axis: Range(size.min, size.opt, max(size.max, own.get(axis, 1)))
        for axis, size in sizes.items()
        if axis in named
    }


def _up_to(wanted: Range, most: int) -> Range:
    return Range(wanted.min, min(wanted.opt, most), most)


def _shapes(
    signature: Signature, sizes: dict[str, Range]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    def shape(axes: tuple[int | str, ...], end: Literal["min", "opt", "max"]) -> tuple[int, ...]:
        return tuple(getattr(sizes[a], end) if isinstance(a, str) else a for a in axes)

    return {
        spec.name: (shape(spec.shape, "min"), shape(spec.shape, "opt"), shape(spec.shape, "max"))
        for spec in signature.inputs
    }


def _check(axis: str, asked: int, most: int, what: str) -> None:
    if asked > most:
        raise InputError(f"--profile: {axis} goes to {asked}, but the model has {most} {what}.")
