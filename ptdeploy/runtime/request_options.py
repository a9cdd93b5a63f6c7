"""What a request to continue texts may ask for: options of generation, and room for new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ptdeploy.arguments import Check, flag, listed, number, whole
from ptdeploy.bundle import GenerationOptions
from ptdeploy.bundle.schema import Limits
from ptdeploy.errors import InputError
from ptdeploy.runtime import sampling
from ptdeploy.runtime.batching import Ids
from ptdeploy.runtime.prompt_inputs import RowPrompt

# What a request may change, and what kind of value each is.
_OPTIONS: dict[str, Check] = {
    "max_new_tokens": whole(),
    "min_new_tokens": whole(),
    "do_sample": flag,
    "temperature": number,
    "top_k": whole(),
    "top_p": number,
    "min_p": number,
    "repetition_penalty": number,
    "eos_token_ids": lambda name, value: tuple(whole()(name, one) for one in listed(name, value)),
}
_SAMPLES = ("temperature", "top_k", "top_p", "min_p")


def with_options(
    generation: GenerationOptions,
    asked: Mapping[str, Any],
    vocabulary: int,
    others: Sequence[str] = (),
) -> GenerationOptions:
    """A model's defaults with what a request changes; what is None stays.

    `others` are what else a request may have.
    Temperature 0 asks for no sampling, any other of what sampling reads asks for it.
    Raises InputError for an option that there is not, or one of another kind or range.
    """
    changes = {}
    for name, value in asked.items():
        if name not in _OPTIONS:
            raise InputError(f"No option {name!r}; there is {', '.join((*_OPTIONS, *others))}.")
        if value is not None:
            changes[name] = _OPTIONS[name](name, value)
    if changes.get("temperature") == 0:
        changes = {**changes, "temperature": 1.0, "do_sample": False}
    elif any(name in changes for name in _SAMPLES):
        changes.setdefault("do_sample", True)
    options = msgspec.structs.replace(generation, **changes)
    sampling.check(options, vocabulary)
    return options


def budgets_of(
    ids: Sequence[Ids],
    prompts: Sequence[RowPrompt],
    options: GenerationOptions,
    asked: bool,
    limits: Limits,
) -> list[int]:
    """How many tokens each row may be continued with, behind its own prompt.

    What the model takes by default ends with its context. Raises InputError if so many were `asked`
    for that a row would leave it.
    """
    context = limits.max_context
    rooms = [
        context - row.size - (0 if one is None else one.length)
        for row, one in zip(ids, prompts, strict=True)
    ]
    wanted = options.max_new_tokens
    if not asked:
        return [min(wanted, room) for room in rooms]
    least = min(rooms)
    if wanted > least:
        where = f"row {rooms.index(least)}" if len(rooms) > 1 else "the text"
        raise InputError(
            f"{wanted} new tokens do not fit: {where} leaves {least} of the model's {context} "
            "positions.",
            f"Ask for at most {least}, or shorten the text." if least else "Shorten the text.",
        )
    return [wanted] * len(rooms)
