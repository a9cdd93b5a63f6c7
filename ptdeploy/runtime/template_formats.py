"""How long a text becomes that a chat template makes of a format: `"%5d" % x`, `"{:>5}".format(x)`.

A format asks for widths, and a width may stand in the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from string import Formatter
from typing import Any

from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from ptdeploy.runtime.template_growth import MOST_TEXT, too_long, weight

# Key, width, precision and conversion, as Python's own reader of such a format finds them.
_PERCENT = re.compile(
    r"%(?:\(([^)]*)\))?[-#0 +]*(\*|[0-9]+)?(?:\.(\*|[0-9]+)?)?[hlL]?(.)", re.DOTALL
)


def check_percent(form: str | bytes, values: Any) -> None:
    """Raises SecurityError if `form % values` would be too long a text."""
    form = form.decode("latin-1") if isinstance(form, bytes) else form
    given = values if isinstance(values, tuple) else (values,)
    longest = max((weight(one)[0] for one in given), default=0)
    # A width of "*" is one of the values.
    widest = max((abs(one) for one in given if isinstance(one, int)), default=0)
    size = len(form)
    for key, width, precision, conversion in map(re.Match.groups, _PERCENT.finditer(form)):
        if "(" in (key or ""):
            raise SecurityError("it asks for a format whose key holds a bracket")
        size += sum(widest if one == "*" else int(one) for one in (width, precision) if one)
        size += longest if conversion != "%" else 0
        if size > MOST_TEXT:
            raise too_long()


def measured(environment: Environment, method: Callable[..., str]) -> Callable[..., str]:
    """A text's `format` or `format_map` in Jinja's sandbox, measured field by field.

    It raises SecurityError before a field is made that would make too long a text.
    Source: Jinja's SandboxedEnvironment.wrap_str_format.
    """
    form: str = method.__self__  # type: ignore[attr-defined]

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        formatter: _Measured = (
            _MeasuredEscape(environment, escape=form.escape)
            if isinstance(form, Markup)
            else _MeasuredPlain(environment)
        )
        formatter.size = len(form)
        if method.__name__ == "format":
            return type(form)(formatter.vformat(form, args, kwargs))
        if len(args) != 1 or kwargs:
            raise TypeError("format_map() takes one argument")
        return type(form)(formatter.vformat(form, (), args[0]))

    return wrapper


class _Measured(Formatter):
    size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        weight(value)  # it is written out, if only to be formatted
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        # Any number in it, put there by a value or not, may be a width.
        widths = sum(map(int, re.findall(r"\d+", format_spec)))
        self._check(weight(value)[0] + widths)
        text: str = super().format_field(value, format_spec)
        self._check(len(text))
        self.size += len(text)
        return text

    def _check(self, more: int) -> None:
        if self.size + more > MOST_TEXT:
            raise too_long()


class _MeasuredPlain(_Measured, SandboxedFormatter):
    pass


class _MeasuredEscape(_Measured, SandboxedEscapeFormatter):
    pass
