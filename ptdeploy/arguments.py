"""The door of every public function: what its parameters may be, checked before anything else.

A check is a function of a parameter's name and value; it gives the value as the function wants it,
or raises InputError. Ranges that hang on a model or on one another are the function's own business.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import Enum
from numbers import Real
from typing import Any, ParamSpec, TypeVar

from ptdeploy.errors import InputError, OutOfMemory
from ptdeploy.threads import lacks_threads, no_threads

Check = Callable[[str, Any], Any]
P = ParamSpec("P")
R = TypeVar("R")
# Of any count: sizes, rows, tokens. Products of two of them fit in 64 bits.
MOST = 2**31 - 1
# More rows, or tokens in a row, than any request has; a range says how long it is at no cost.
ITEMS = 2**24
# As file systems have them.
_PATH, _NAME = 4095, 255
MOST_THREADS = 1024


def checked(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function's parameters checked by name, in this order, at each call."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def at_the_door(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name, check in checks.items():
                if name in bound.arguments:
                    bound.arguments[name] = check(name, bound.arguments[name])
            with enough_memory_and_threads():
                return function(*bound.args, **bound.kwargs)

        return at_the_door

    return wrap


@contextmanager
def enough_memory_and_threads() -> Iterator[None]:
    """What this process has too little of as our errors. A generator runs when its door was left:
    it has this inside.
    """
    try:
        yield
    except RuntimeError as error:
        if not lacks_threads(error):
            raise
        raise no_threads() from error
    except MemoryError as error:
        raise OutOfMemory(
            "There is not enough memory for what was asked.",
            "Ask for less at once, or give this process more.",
        ) from error


def whole(least: int = -(2**63), most: int = 2**63 - 1) -> Check:
    """A whole number, numpy's included; a truth is none.

    Without bounds its range is the function's own business, and any of 64 bits passes here.
    """
    wanted = "a whole number"
    if least > -(2**63):
        wanted += f" from {least} to {most}"
    elif most < 2**63 - 1:
        wanted += f" of at most {most}"

    def check(name: str, value: Any) -> int:
        found = None
        if not is_truth(value):
            try:
                found = operator.index(value)
            except Exception:  # a stranger's __index__ raises anything
                found = None
        if found is None or not least <= found <= most:
            raise refused(name, value, wanted)
        return found

    return check


def number(name: str, value: Any) -> float:
    """A finite number."""
    # Numpy has its spans of time among whole numbers.
    is_number = isinstance(value, Real) and type(value).__name__ != "timedelta64"
    if is_number and not is_truth(value):
        try:
            found = float(value)
        except Exception:  # too large, or a stranger's __float__
            found = math.nan
        if math.isfinite(found):
            return found
    raise refused(name, value, "a finite number")


def flag(name: str, value: Any) -> bool:
    if is_truth(value):
        return bool(value)
    raise refused(name, value, "True or False")


def text(name: str, value: Any) -> str:
    """A string, not empty, that can be written as UTF-8 and has no NUL."""
    if isinstance(value, str) and value and "\0" not in value:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            pass
        else:
            return str(value)
    empty = isinstance(value, str) and not value
    raise refused(name, value, "text, not empty" if empty else "text")


def path(name: str, value: Any) -> str:
    """A path as a string or a pathlib.Path: not empty, and no longer than file systems have."""
    found = raw = None
    if isinstance(value, (str, os.PathLike)):
        try:
            found = os.fspath(value)
            raw = os.fsencode(found)
        except Exception:  # no Unicode, or a stranger's __fspath__
            found = None
    if not isinstance(found, str) or not found or raw is None or "\0" in found:
        raise refused(name, value, "a path: text, or a pathlib.Path")
    if len(raw) > _PATH or max(map(len, raw.split(os.fsencode(os.sep)))) > _NAME:
        raise refused(name, found, f"at most {_PATH} bytes long, and each name {_NAME}")
    return found


def output(name: str, value: Any) -> str:
    """A path to write to. A `~` that the shell left, as in `--output=~/x`, is the home folder
    unless something of that very name lies here."""
    found = path(name, value)
    if found.startswith("~") and not os.path.lexists(found.partition(os.sep)[0]):
        return os.path.expanduser(found)
    return found


def listed(name: str, value: Any, otherwise: str = "") -> list[Any]:
    """The items of a list, tuple, array or other sequence. Text, bytes and streams are none.

    `otherwise` is what is said of those, with their type behind it.
    """
    if isinstance(value, bytes | bytearray):
        raise InputError(
            f"{name} is bytes, not text and not a list.", "Decode it: text.decode('utf-8')."
        )
    kinds = (str, memoryview, Mapping, Set)
    if not isinstance(value, kinds) and callable(getattr(type(value), "__len__", None)):
        try:
            if len(value) <= ITEMS:
                return list(value)
        except Exception:  # an array without axes, or a stranger's __len__ and __iter__
            pass
        else:
            raise InputError(f"{name} has {len(value)} items; at most {ITEMS} are read.")
    if otherwise:
        raise InputError(f"{name} {otherwise}, but {type(value).__name__}.")
    raise refused(name, value, "a list")


def one_of(kind: type[Enum]) -> Check:
    """A member of an enumeration, or its value."""

    def check(name: str, value: Any) -> Any:
        try:
            return kind(value)
        except Exception as error:  # what compares with a stranger's value raises anything
            words = ", ".join(str(one.value) for one in kind)
            raise refused(name, value, f"one of {words}") from error

    return check


def check_fields(request: Any, **checks: Check) -> None:
    """Check each field of a frozen dataclass in this order, from its __post_init__."""
    if checks.keys() != {one.name for one in fields(request)}:
        raise TypeError(f"Every field of {type(request).__name__} needs a check: {sorted(checks)}.")
    for name, check in checks.items():
        object.__setattr__(request, name, check(name, getattr(request, name)))


def instance(kind: type[Any], **checks: Check) -> Check:
    """An object of a class of ours; one with its fields as they are wanted, where not None."""
    if checks and checks.keys() != {one.name for one in fields(kind)}:
        raise TypeError(f"Every field of {kind.__name__} needs a check: {sorted(checks)}.")

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise refused(name, value, f"a ptdeploy.{kind.__name__}")
        given = {one: getattr(value, one) for one in checks}
        found = {
            one: checks[one](f"{name}.{one}", what)
            for one, what in given.items()
            if what is not None
        }
        return replace(value, **found) if found else value

    return check


def having(*methods: str) -> Check:
    """An object that can be called so."""

    def check(name: str, value: Any) -> Any:
        if not all(callable(getattr(type(value), one, None)) for one in methods):
            raise refused(name, value, f"an object with {' and '.join(methods)}()")
        return value

    return check


def maybe(check: Check) -> Check:
    """None, or what `check` takes."""
    return lambda name, value: None if value is None else check(name, value)


# As every sampler has them, and whatever says when to stop: a threading.Event.
SEED = maybe(whole(0, 2**64 - 1))
CANCEL = maybe(having("is_set"))


def is_truth(value: Any) -> bool:
    """Whether it is a truth value, numpy's included, without importing numpy."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def refused(name: str, value: Any, wanted: str) -> InputError:
    """What is said of a value that a parameter may not have."""
    return InputError(f"{name} is {shown(value)}; it must be {wanted}.")


def shown(value: Any) -> str:
    """A value in a few characters: a stranger's by its type alone."""
    if value is not None and not isinstance(value, (bool, int, float, str)):
        return f"of type {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    words = repr(value[:40] if isinstance(value, str) else value)
    return words + "..." if isinstance(value, str) and len(value) > 40 else words
