"""How long a text becomes that a chat template is about to make: asked before it is made.

A list may hold one long text a thousand times, and `replace` may put a long text in place of each
letter: what they are written as is no matter of what lies in memory.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from itertools import islice
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

# Characters of any text that a template makes, and items of a list it makes of an iterator.
MOST_TEXT = 16 * 1024 * 1024
MOST_ITEMS = 1_000_000
# Values that are written out, lists in lists counted each time.
MOST_VALUES = 200_000
# Of a number that is rounded.
_MOST_DIGITS = 1000
_TEXT = (str, bytes, bytearray)
_VIEWS = (set, frozenset, KeysView, ValuesView, ItemsView)
_Sizer = Callable[..., int]


def too_long() -> SecurityError:
    return SecurityError(f"it makes a text of more than {MOST_TEXT} characters")


def weight(value: Any) -> tuple[int, int]:
    """Characters that a value is written as, nearly, and how deep it is nested.

    Raises SecurityError as soon as they, or the values in it, are too many.
    """
    size, count, deepest, stack = 0, 1, 0, [(value, 0)]
    while stack:
        one, depth = stack.pop()
        deepest = max(deepest, depth)
        size += _own(one)
        if size > MOST_TEXT:
            raise too_long()
        parts = _parts(one)
        count += len(parts)
        if count > MOST_VALUES:
            raise SecurityError(f"it writes more than {MOST_VALUES} values")
        stack.extend((part, depth + 1) for part in parts)
    return size, deepest


def check_length(value: Sequence[Any], times: int = 1) -> None:
    """Raises SecurityError if a text or list, so many times over, is too long."""
    if isinstance(value, _TEXT):
        if len(value) * times > MOST_TEXT:
            raise too_long()
    elif len(value) * times > MOST_ITEMS:
        raise SecurityError(f"it makes a list of more than {MOST_ITEMS} items")


def listed(value: Any) -> Any:
    """An iterator's items as a list, so that they can be looked at before they are used."""
    if not isinstance(value, Iterator):
        return value
    items = list(islice(value, MOST_ITEMS + 1))
    check_length(items)
    return items


def check_growth(name: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Raises SecurityError if a filter, or a method as `str.NAME`, would make too long a text.

    So it does where they are not given what they take, since nothing then says how long.
    """
    if (sizer := SIZERS.get(name)) is None:
        return
    try:
        size = sizer(*args, **options)
    except (TypeError, AttributeError, ValueError) as error:
        raise SecurityError(f"it gives {name} what that does not take ({error})") from error
    if size > MOST_TEXT:
        raise too_long()


def _own(value: Any) -> int:
    """Characters of a value without its parts."""
    if isinstance(value, _TEXT):
        return len(value)
    return value.bit_length() // 3 + 1 if isinstance(value, int) else 1


def _parts(value: Any) -> Collection[Any]:
    """The values that one is written with."""
    if value is None or isinstance(value, (str, int, float)):
        return ()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, _VIEWS) else ()


def _size(value: Any) -> int:
    return weight(value)[0]


# Their parameters are those of Jinja's filters, since a template may name any of them.


def _replaced(s: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old = (one if isinstance(one, _TEXT) else str(one) for one in (s, old))
    places: int = text.count(old) if old else len(text) + 1
    return len(text) + places * _size(new)


def _joined(value: Any, d: Any = "", attribute: Any = None) -> int:
    return _size(value) + len(value) * _size(d)


def _centered(value: Any, width: int = 80) -> int:
    return _size(value) + width


def _indented(s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> int:
    whole = s if isinstance(s, str) else str(s)
    step: int = width if isinstance(width, int) else len(width)
    return len(whole) + (whole.count("\n") + 1) * step


def _wrapped(
    s: Any,
    width: Any = 79,
    break_long_words: Any = True,
    wrapstring: Any = None,
    break_on_hyphens: Any = True,
) -> int:
    per_letter = 1 + len(wrapstring or "\n")
    return len(s) * per_letter


def _linked(
    value: Any,
    trim_url_limit: Any = None,
    nofollow: Any = False,
    target: Any = None,
    rel: Any = None,
    extra_schemes: Any = None,
) -> int:
    per_letter = 100 + _size(target) + _size(rel)
    return len(value) * per_letter


def _as_json(value: Any, **options: Any) -> int:
    size, depth = weight(value)
    indent = options.get("indent") or 0
    step = indent if isinstance(indent, int) else len(indent)
    separators = options.get("separators") or ()
    per_value: int = 1 + (depth + 1) * step + sum(map(len, separators))
    return size * per_value


def _printed(value: Any) -> int:
    size, depth = weight(value)
    return size * (1 + depth)


def _items(value: Any) -> int:
    return _pieces(len(value))


def _batched(value: Any, linecount: int, fill_with: Any = None) -> int:
    return _pieces(linecount)


def _sliced(value: Any, slices: int, fill_with: Any = None) -> int:
    return _pieces(slices)


def _pieces(count: int) -> int:
    return MOST_TEXT + 1 if count > MOST_ITEMS else 0


def _rounded(value: Any, precision: int = 0, method: Any = "common") -> int:
    """Jinja and Python raise ten to the power of the precision."""
    return MOST_TEXT + 1 if abs(precision) > _MOST_DIGITS else 0


def _summed(iterable: Any, attribute: Any = None, start: Any = 0) -> int:
    """Lists are copied with each that is added."""
    return 0 if isinstance(start, (int, float)) else len(iterable) * _size(iterable)


def _translated(text: Any, table: Any, *_: Any) -> int:
    if isinstance(text, bytes):
        return len(text)
    values = table.values() if isinstance(table, Mapping) else table
    return len(text) * max(map(_size, values), default=1)


def _padded(text: Any, width: int, *_: Any) -> int:
    return len(text) + width


# By filter, or by method of texts and numbers.
SIZERS: dict[str, _Sizer] = {
    "replace": _replaced,
    "join": _joined,
    "center": _centered,
    "indent": _indented,
    "wordwrap": _wrapped,
    "tojson": _as_json,
    "pprint": _printed,
    "urlize": _linked,
    "list": _items,
    "batch": _batched,
    "slice": _sliced,
    "round": _rounded,
    "sum": _summed,
    "str.replace": _replaced,
    "str.join": lambda between, items: _joined(items, between),
    "str.expandtabs": lambda text, tabsize=8: len(text) + text.count("\t") * tabsize,
    "str.translate": _translated,
    **dict.fromkeys(("str.center", "str.ljust", "str.rjust", "str.zfill"), _padded),
    "int.to_bytes": lambda _, length=1, byteorder="big", *, signed=False: length,
}
