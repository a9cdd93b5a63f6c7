"""Which prompt a request's rows have: one for all of them, or one each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ptdeploy import arguments
from ptdeploy.errors import InputError
from ptdeploy.runtime.prompts import Prompt

_SHOWN = 20


class Default(Enum):
    """What a request has that names no prompt."""

    PROMPT = "default"

    def __repr__(self) -> str:
        return "DEFAULT"


# The bundle's default prompt; where it has none, the base model alone.
DEFAULT: Final = Default.PROMPT
OnePrompt = str | None | Default
# A prompt's name, None for the base model without one, or one of those for each row.
PromptChoice = OnePrompt | Sequence[OnePrompt]


@dataclass(frozen=True)
class Chosen:
    """A request's prompts, held while it runs: one for all of its rows, or `each` row's own."""

    prompts: tuple[Prompt | None, ...]
    each: bool = False

    def of(self, rows: int) -> list[Prompt | None]:
        """The prompt of each of so many rows. Raises InputError if there are not as many."""
        if not self.each:
            return [self.prompts[0]] * rows
        if len(self.prompts) != rows:
            raise InputError(
                f"prompt names {len(self.prompts)}, but the request has {rows} rows.",
                "Name one for each row, or one for all.",
            )
        return list(self.prompts)

    def lengths(self, rows: int) -> list[int]:
        """How many positions each row's prompt takes."""
        return [0 if one is None else one.length for one in self.of(rows)]


def first_of(choice: PromptChoice) -> OnePrompt:
    """The choice of a request's first row."""
    return choice if isinstance(choice, str | None | Default) else choice[0]


def prompt_choice(name: str, value: Any) -> Any:
    """Check a parameter: DEFAULT, None, a name, or a tuple of those made of a sequence."""
    if isinstance(value, str | None | Default):
        return one_prompt(name, value)
    otherwise = "is a name, None, or a list of those, one for each row"
    return tuple(one_prompt(name, one) for one in arguments.listed(name, value, otherwise))


def one_prompt(name: str, value: Any) -> OnePrompt:
    """Check a parameter: DEFAULT, None or a name."""
    if value is None or isinstance(value, Default):
        return value
    return str(arguments.text(name, value))


def in_words(names: Iterable[str]) -> str:
    """Names for an error, the first of them where they are many."""
    every = sorted(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(map(repr, every[:_SHOWN])) + more if every else "none"
