"""What keeps a chat template's cost within the size of its messages.

Jinja's sandbox keeps a template from Python's objects; here it is kept from time and memory: a
bundle's template is short, but loops within loops and text times text are as long as they like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Characters of a text that a template makes, rounds of all its loops together, and calls.
MOST_TEXT = 16 * 1024 * 1024
MOST_ROUNDS = 1_000_000
MOST_CALLS = 1_000_000
_COUNTED, _JOINED, _SIZED = "ptdeploy_counted", "ptdeploy_joined", "ptdeploy_sized"
# A width within a format, as in "%0999999999d" and "{:>999999999}".
_WIDE = re.compile(r"\d{7,}")


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

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._rounds = self._calls = 0
        self.filters |= {_COUNTED: self._counted, _JOINED: _joined, _SIZED: _of_size}
        for name in ("center", "indent", "wordwrap", "join", "replace", "format"):
            self.filters[name] = _bounded(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        found: nodes.Template = _Bounded().visit(tree)
        return found

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._rounds += 1
            if self._rounds > MOST_ROUNDS:
                raise SecurityError(f"its loops run more than {MOST_ROUNDS} times")
            yield item

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise SecurityError(f"it calls more than {MOST_CALLS} functions")
        _check_numbers((*args, *kwargs.values()))
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "").startswith("format"):
            _check_widths(owner)
        return _of_size(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_numbers(right if isinstance(right, tuple) else (right,))
            _check_widths(left)
        if operator == "**" and (abs(left) > 2**64 or abs(right) > 64):
            raise SecurityError("it asks for a great power")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                sized = isinstance(one, (str, list, tuple)) and isinstance(other, int)
                if sized and len(one) * other > MOST_TEXT:
                    raise SecurityError(f"it makes a text of more than {MOST_TEXT} characters")
        return _of_size(super().call_binop(context, operator, left, right))


def _joined(values: list[Any]) -> str:
    return joined(map(str, values))


def joined(pieces: Iterable[str]) -> str:
    """A rendering's pieces as one text. Raises SecurityError where it is too long."""
    found: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_TEXT:
            raise SecurityError(f"it makes a text of more than {MOST_TEXT} characters")
        found.append(piece)
    return "".join(found)


def _bounded(function: Any) -> Any:
    from functools import wraps

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        return _of_size(function(*args, **kwargs))

    return bounded


def _check_numbers(values: Any) -> None:
    """A width or a count is a number of characters, or of bytes of one."""
    for value in values if isinstance(values, tuple) else ():
        if isinstance(value, int) and abs(value) > MOST_TEXT:
            raise SecurityError(f"it asks for more than {MOST_TEXT} of something")


def _check_widths(form: str) -> None:
    if _WIDE.search(form):
        raise SecurityError("it asks for a text of a great width")


def _of_size(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_TEXT:
        raise SecurityError(f"it makes a text of more than {MOST_TEXT} characters")
    return value
