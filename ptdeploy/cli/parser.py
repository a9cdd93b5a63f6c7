"""The parser of a command: words and options in any order, and errors of two lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ptdeploy.cli.console import complain, show
from ptdeploy.errors import OutputError
from ptdeploy.printable import printable
from ptdeploy.text_files import argument_text

# No word of a command line can hold it: it marks those that follow "--".
_AS_IT_IS = "\0"


class UsageError(SystemExit):
    """A command line that is not understood; standard error has been told."""

    exit_code = 2

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(self.exit_code)


class CommandParser(argparse.ArgumentParser):
    """argparse's, which by itself takes a command's words in one piece only, and refuses with the
    whole usage.
    """

    _has_commands = False
    _is_mixing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of arguments that have no type of their own.
        self.register("type", None, _text)

    def add_subparsers(self, **kwargs: Any) -> Any:
        self._has_commands = True
        found = super().add_subparsers(**kwargs)
        found.type = str  # what follows a command's name is for its own parser
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """What is not known is refused here: the caller's own usage is another command's."""
        if self._has_commands or self._is_mixing:
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(list(_marked(args)), namespace)
        finally:
            self._is_mixing = False
        if unknown:
            options = [word for word in unknown if word.startswith("-")]
            words = (word.removeprefix(_AS_IT_IS) for word in options or unknown)
            self.error(f"unrecognized arguments: {' '.join(words)}")
        return found, []

    def _print_message(self, message: str, file: Any = None) -> None:
        """Of --help and --version: a console that takes neither is no reason to fail."""
        with suppress(OutputError):
            show(message, end="")

    def error(self, message: str) -> NoReturn:
        fix = f"See {self.prog} --help."
        complain(f"{self.prog}: error: {printable(message)}\n{fix}")
        raise UsageError(message, fix)


def _marked(words: Sequence[str]) -> Iterator[str]:
    """The words, those after "--" marked and it left out: none of them is an option.

    argparse loses it when it takes options and words in turns.
    """
    is_word = False
    for word in words:
        if is_word:
            yield _AS_IT_IS + word
        elif word == "--":
            is_word = True
        else:
            yield word


def path(word: str) -> str:
    """The type of an argument that names a file or a folder; as the locale has it, so that it
    opens. An empty one would be the current folder.
    """
    found = word.removeprefix(_AS_IT_IS)
    if not found:
        raise argparse.ArgumentTypeError("is empty, and must be a path")
    return found


def _text(word: str) -> str:
    return argument_text(word.removeprefix(_AS_IT_IS))
