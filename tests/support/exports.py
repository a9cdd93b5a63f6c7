"""Programs of one shape are exported to ONNX once: torch traces for seconds, whatever the weights.

What is kept is a graph and which of the program's parameters and buffers its tensors are. Another
program of the same modules, settings and shapes gets that graph over its own tensors. Where a graph
holds a tensor of another origin, made of weights perhaps, only a program of equal weights gets it.

Graphs are kept from session to session, until what makes them changes: our code or its libraries.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from support.shared import Shared
from torch.onnx._internal.exporter._core import TorchTensor

import ptdeploy
from ptdeploy.bundle import RequestLimits
from ptdeploy.program import export
from ptdeploy.program.program import Program

Exporter = Callable[[Program, RequestLimits, int | None], ir.Model]
TO_ONNX: Exporter = export.to_onnx


_LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript", "numpy")
# What a program and its export are made by: program/ and what it imports.
_CODE = ("program", "source", "passes", "runtime", "bundle")
_PACKAGE = Path(ptdeploy.__file__).parent
_A_DAY = 24 * 60 * 60


def made_by() -> str:
    """The digest of all that a graph depends on beside its program."""
    files = [Path(__file__), *(one for name in _CODE for one in (_PACKAGE / name).rglob("*.py"))]
    return _digest(
        [
            *((name, version(name)) for name in _LIBRARIES),
            *((path.name, path.read_bytes()) for path in sorted(files)),
        ]
    )


def kept_exports(folder: Path) -> Shared:
    """The graphs that this code keeps in a folder; what nobody used for a day is dropped."""
    mine = folder / made_by()
    mine.mkdir(parents=True, exist_ok=True)
    os.utime(mine)
    for other in folder.iterdir():
        # Another test process may drop it first.
        with contextlib.suppress(FileNotFoundError):
            if other.stat().st_mtime < time.time() - _A_DAY:
                shutil.rmtree(other, ignore_errors=True)
    return Shared(mine)


@contextmanager
def exported_once(shared: Shared) -> Iterator[None]:
    """Let compilations in this block take a graph that any test process exported."""

    def to_onnx(program: Program, limits: RequestLimits, opset: int | None = None) -> ir.Model:
        model = shared_export(shared, program, limits, opset)
        _leave_out_what_was_imported()
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_onnx", to_onnx)
        yield


@functools.cache
def _leave_out_what_was_imported() -> None:
    """Collecting garbage, as each compilation does, no longer looks through what exports import."""
    gc.freeze()


def shared_export(
    shared: Shared,
    program: Program,
    limits: RequestLimits,
    opset: int | None = None,
    real: Exporter = TO_ONNX,
) -> ir.Model:
    """The program's graph: exported by `real`, or kept from a program of the same shape."""
    fresh: list[ir.Model] = []

    def fill(folder: Path) -> None:
        fresh.append(real(program, limits, opset))
        _save(fresh[0], program, folder)

    key = ("export", shape_of(program, opset), limits.of_engine())
    folder = shared.folder(key, fill)
    if not fresh and (folder / "weights").read_text() not in ("any", weights_of(program)):
        folder = shared.folder((*key, weights_of(program)), fill)
    return fresh[0] if fresh else _load(folder, program)


def _save(model: ir.Model, program: Program, folder: Path) -> None:
    names = {_place(tensor): name for name, tensor in _tensors(program).items()}
    origins = {
        name: names.get(_place(value.const_value.raw))
        for name, value in model.graph.initializers.items()
    }
    (folder / "origins").write_text(json.dumps(origins))
    (folder / "weights").write_text(weights_of(program) if None in origins.values() else "any")
    (folder / "counters").write_text(json.dumps([getattr(_names(model), one) for one in _COUNTERS]))
    (folder / "graph").write_bytes(ir.to_proto(model).SerializeToString())


def _load(folder: Path, program: Program) -> ir.Model:
    model = ir.from_proto(onnx.ModelProto.FromString((folder / "graph").read_bytes()))
    for one, count in zip(_COUNTERS, json.loads((folder / "counters").read_text()), strict=True):
        setattr(_names(model), one, count)
    tensors = _tensors(program)
    for name, origin in json.loads((folder / "origins").read_text()).items():
        if origin is not None:
            model.graph.initializers[name].const_value = TorchTensor(tensors[origin], name=name)
    return model


# How many values and nodes were given a name: what passes name has the numbers after these.
_COUNTERS = ("_value_counter", "_node_counter")


def _names(model: ir.Model) -> Any:
    return model.graph._name_authority


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _tensors(program: Program) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; tied ones once."""
    return {**dict(program.module.named_parameters()), **dict(program.module.named_buffers())}


def weights_of(program: Program) -> str:
    """The digest of all parameters and buffers."""
    return _digest([(name, _plain(tensor)) for name, tensor in _tensors(program).items()])


def shape_of(program: Program, opset: int | None) -> str:
    """The digest of all that a trace depends on but the values of parameters and buffers."""
    lowered = program.lowered
    facts: list[object] = [program.signature, opset, lowered and lowered.name]
    first: dict[int, str] = {}
    for path, module in program.module.named_modules():
        facts += [path, _plain(type(module))]
        facts.append(_plain({k: v for k, v in vars(module).items() if k not in _SEEN}))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            facts.append(name)
            if tensor is not None:
                # Tied weights are one tensor.
                tied = first.setdefault(id(tensor), f"{path}.{name}")
                facts += [tied, tensor.shape, tensor.stride(), tensor.dtype]
    return _digest(facts)


# What modules hold in these is looked at one by one.
_SEEN = {"_parameters", "_buffers", "_modules"}
# Where a model was loaded from.
_WHERE = {"_name_or_path", "name_or_path"}


def _plain(value: Any) -> object:
    """What a value says, without its place in memory."""
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return (value.dtype, value.shape, hashlib.sha256(content).hexdigest())
    if isinstance(value, dict):
        return [(str(key), _plain(one)) for key, one in value.items() if key not in _WHERE]
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (FunctionType, MethodType)):
        code = inspect.unwrap(value).__code__
        return (value.__qualname__, code.co_filename, code.co_firstlineno, code.co_code)
    if isinstance(value, type):
        return (value.__module__, value.__qualname__, _plain(getattr(value, "forward", None)))
    if hasattr(value, "to_dict"):  # a configuration
        return (_plain(value.to_dict()), getattr(value, "_attn_implementation", None))
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    return type(value).__qualname__


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
