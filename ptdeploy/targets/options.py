"""What a user may ask of one target's engines: each target has a struct of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from ptdeploy.errors import InputError


class TargetOptions(Protocol):
    """A target's options; every field of it has a default."""

    about: ClassVar[str]
    """Whose options they are, as in "is about TensorRT's engines"."""

    def given(self) -> list[str]:
        """The command line's names of what was asked for."""
        ...


@dataclass(frozen=True)
class NoOptions:
    """Of a target that has none."""

    about: ClassVar[str] = "nothing"

    def given(self) -> list[str]:
        return []


Own = TypeVar("Own", bound=TargetOptions)


def own_options(target: str, kind: type[Own], asked: TargetOptions | None) -> Own:
    """What was asked, as the target's own options; its defaults where nothing was.

    Raises InputError if something was asked of another target's.
    """
    if isinstance(asked, kind):
        return asked
    if asked is not None and (given := asked.given()):
        raise InputError(
            f"{given[0]} is about {asked.about}; the target {target} has none.",
            f"Leave {given[0]} out.",
        )
    return kind()
