"""torch's table of what each operation is in ONNX, made once in a process.

torch's exporter makes it anew for each program: a fifth of what a small model's compilation takes.
For each of some 500 operations it reads and parses the source of a Python function, only to know
which domain the function belongs to, which its operator set says too.
An exporter whose insides are others than these makes its table as it does: that costs time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

_made: dict[Any, Any] = {}


@contextmanager
def one_registry() -> Iterator[None]:
    """Have torch's exporter, in this block, take copies of one table for each operator set."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    registries: Any = ONNXRegistry
    theirs = registries.__dict__.get("from_torchlib")
    if not isinstance(theirs, classmethod):
        yield
        return

    def ours(cls: Any, *args: Any, **options: Any) -> Any:
        key = (cls, args, tuple(sorted(options.items())))
        if key not in _made:
            with _signatures_unread():
                _made[key] = theirs.__get__(None, cls)(*args, **options)
        whole = _made[key]
        copy = cls()
        copy.__dict__.update(whole.__dict__)
        copy.functions = {target: list(found) for target, found in whole.functions.items()}
        return copy

    registries.from_torchlib = classmethod(ours)
    try:
        yield
    finally:
        registries.from_torchlib = theirs


@contextmanager
def _signatures_unread() -> Iterator[None]:
    """Have onnxscript's functions give their domain, in this block, with their source unread."""
    try:
        from onnxscript._internal.values import TracedOnnxFunction
    except ImportError:
        yield
        return
    functions: Any = TracedOnnxFunction
    theirs = functions.__dict__.get("function_ir")
    if not isinstance(theirs, property):
        yield
        return
    functions.function_ir = property(lambda one: SimpleNamespace(domain=one.opset.domain))
    try:
        yield
    finally:
        functions.function_ir = theirs
