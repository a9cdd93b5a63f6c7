"""What keeps a chat template's cost within the size of its messages.

Jinja's sandbox keeps a template from Python's objects; here it is kept from time and memory: a
bundle's template is short, but loops within loops and text times text are as long as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from time import monotonic
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ptdeploy.runtime.template_formats import check_percent, measured
from ptdeploy.runtime.template_growth import (
    MOST_TEXT,
    check_growth,
    check_length,
    listed,
    too_long,
    weight,
)

# Rounds of all loops of a template together, and calls.
MOST_ROUNDS = 1_000_000
MOST_CALLS = 1_000_000
# What is short enough each time may still be asked for again and again.
MOST_SECONDS = 60
_COUNTED, _JOINED, _SIZED = "ptdeploy_counted", "ptdeploy_joined", "ptdeploy_sized"
_SIZED_TYPES = (str, bytes, list, tuple)
# Of a whole number that a template reckons with: to divide takes its length squared.
_MOST_BITS = 65_536
# Filters that write nothing of what they are given; all others may make text of it.
_STRUCTURAL = {
    *("abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby"),
    *("int", "items", "last", "length", "list", "map", "max", "min", "random", "reject"),
    *("rejectattr", "reverse", "round", "select", "selectattr", "slice", "sort", "sum", "unique"),
}


class _Bounded(NodeTransformer):
    """Sends what loops, text ~ text and {% set %} blocks give through filters that count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filtered(node.filter, _SIZED)
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=getattr(node, "lineno", 1))


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """For one rendering of one template: it counts what that does."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_written)
        # What a {% set %} block, a macro and a {% filter %} block make of their pieces.
        self.concat = joined  # type: ignore[method-assign]
        self._rounds = self._calls = 0
        self._end = monotonic() + MOST_SECONDS
        self.globals.pop("lipsum")
        self.filters |= {_COUNTED: self._counted, _JOINED: _joined, _SIZED: _of_size}

    def bound_filters(self) -> None:
        """Once all filters are there."""
        own = (_COUNTED, _JOINED, _SIZED)
        self.filters |= {n: self._bounded(n, f) for n, f in self.filters.items() if n not in own}

    def _check_time(self) -> None:
        if monotonic() > self._end:
            raise SecurityError(f"it takes more than {MOST_SECONDS} seconds")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        found: nodes.Template = _Bounded().visit(tree)
        return found

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._check_time()
            self._rounds += 1
            if self._rounds > MOST_ROUNDS:
                raise SecurityError(f"its loops run more than {MOST_ROUNDS} times")
            yield item

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_time()
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise SecurityError(f"it calls more than {MOST_CALLS} functions")
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            kind = "int" if isinstance(owner, int) else "str"
            args = tuple(map(listed, args))
            check_growth(f"{kind}.{getattr(obj, '__name__', '')}", (owner, *args), kwargs)
        return _of_size(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return measured(self, value) if super().wrap_str_format(value) is not None else None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._check_time()
        for one, other in ((left, right), (right, left)):
            _of_size(one)
            if operator == "*" and isinstance(one, _SIZED_TYPES) and isinstance(other, int):
                check_length(one, other)
        if operator == "%" and isinstance(left, (str, bytes)):
            check_percent(left, right)
        if operator == "**" and (abs(left) > 2**64 or abs(right) > 64):
            raise SecurityError("it asks for a great power")
        return _of_size(super().call_binop(context, operator, left, right))

    def _bounded(self, name: str, function: Any) -> Any:
        # Some are given the template's context before their value.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._check_time()
            given = list(map(listed, args[first:]))
            kwargs = {key: listed(value) for key, value in kwargs.items()}
            if name not in _STRUCTURAL:
                weight([*given, *kwargs.values()])
            if name == "format" and given:
                check_percent(str(given[0]), kwargs or tuple(given[1:]))
            check_growth(name, given, kwargs)
            return _of_size(function(*args[:first], *given, **kwargs))

        return bounded


def _written(value: Any) -> Any:
    """What a template prints, once it is known to be short enough."""
    if not isinstance(value, str):
        weight(value)
    return value


def _joined(values: list[Any]) -> str:
    return joined(str(_written(one)) for one in values)


def joined(pieces: Iterable[str]) -> str:
    """A rendering's pieces as one text. Raises SecurityError where it is too long."""
    found: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_TEXT:
            raise too_long()
        found.append(piece)
    return "".join(found)


def _of_size(value: Any) -> Any:
    if isinstance(value, _SIZED_TYPES):
        check_length(value)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise SecurityError(f"it asks for a number of more than {_MOST_BITS} bits")
    return value
