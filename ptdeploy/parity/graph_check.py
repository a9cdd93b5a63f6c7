"""The very graph that an engine was built from, run by another engine that can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from ptdeploy.backends import get_backend
from ptdeploy.bundle import MODEL, Bundle, Manifest
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.thresholds import thresholds_for
from ptdeploy.runtime import Engine, open_engine

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from ptdeploy.backends.session import DeviceArray, Session


def as_graph_check(reference: Reference, manifest: Manifest) -> Reference:
    """A bundle's reference with the thresholds of its graph check.

    They are the engine's but for TF32: the graph check multiplies in fp32.
    """
    own = _precision(manifest)
    if own == manifest.precision:
        return reference
    thresholds = thresholds_for(own, manifest.quantization, manifest.prompt.head)
    return replace(reference, thresholds=thresholds)


def _precision(manifest: Manifest) -> str:
    return "fp32" if manifest.precision == "tf32" else manifest.precision


class _Taken:
    """A session that refuses inputs which the bundle's own engine would not take."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._bundle, self._session = bundle, session
        self._backend = get_backend(bundle.manifest.target)
        self._seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        return self._session.run(inputs)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        self._check(inputs)
        return self._session.bind(inputs, outputs)

    def _check(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> None:
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        key = tuple(shapes.items())
        if key in self._seen:
            return
        if not self._backend.takes(self._bundle, shapes):
            raise BaseModelError(
                "The engine's optimization profiles do not take what the graph is checked with: "
                f"{shapes}.",
                "Compile with a larger --profile, or report this with the model's name.",
            )
        self._seen.add(key)


@contextmanager
def open_graph_check(bundle: Bundle, target: str) -> Iterator[Engine]:
    """Open the graph of a bundle that still has its ONNX, with `target` on its default device.

    What runs is held against the shapes that the bundle's own engine takes.
    bfloat16, for which no CPU has kernels, is emulated: fp32 arithmetic, and every value rounded
    to bfloat16.
    """
    manifest = bundle.manifest
    device = get_backend(target).devices[0]
    precision = _precision(manifest)
    around = partial(_Taken, bundle)
    changes = {"target": target, "device": device, "precision": precision}
    if precision != "bf16":
        own = replace(bundle, manifest=msgspec.structs.replace(manifest, **changes))
        yield open_engine(own, around=around)
        return
    # Not beside the bundle's files: those may be on a disk that is only read.
    with TemporaryDirectory() as folder:
        files = _emulated(bundle, Path(folder))
        graph = manifest.graph
        wide = msgspec.structs.replace(
            graph, inputs=_widened(graph.inputs), outputs=_widened(graph.outputs)
        )
        others = tuple(one for one in manifest.files if one.role not in ("model", "weights"))
        changed = msgspec.structs.replace(
            manifest, files=(*files, *others), graphs={MODEL: wide}, **changes
        )
        yield open_engine(replace(bundle, manifest=changed), around=around)


def _widened(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        msgspec.structs.replace(spec, dtype="float32") if spec.dtype == "bfloat16" else spec
        for spec in specs
    )


def _emulated(bundle: Bundle, folder: Path) -> tuple[msgspec.Struct, ...]:
    import onnx_ir as ir

    from ptdeploy.targets.onnx_model import write_model

    source = bundle.in_folder("model")
    assert source is not None, "the caller's bundle has its ONNX"
    model = emulate_bfloat16(ir.load(source))
    return tuple(
        msgspec.structs.replace(entry, path=str(folder / entry.path))
        for entry in write_model(model, folder)
    )


def emulate_bfloat16(model: ir.Model) -> ir.Model:
    """The graph in float32, with a rounding to bfloat16 wherever a value was bfloat16."""
    import numpy as np
    import onnx_ir as ir

    narrow, wide = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == narrow:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = wide
    for value in graph.inputs:
        if value.dtype == narrow:
            value.dtype = wide
    for node in list(graph):
        target = node.attributes.get("to")
        to_narrow = node.op_type == "Cast" and target is not None and target.as_int() == narrow
        for output in node.outputs:
            if output.dtype != narrow:
                continue
            output.dtype = wide
            if to_narrow:
                node.attributes["to"] = ir.AttrInt64("to", wide.value)
            _round(graph, node, output)
    return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Put Cast to bfloat16 and back behind a value, and give the result its name."""
    import onnx_ir as ir

    users = list(value.uses())
    casts = []
    read = value
    for dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT):
        cast = ir.node("Cast", [read], attributes={"to": dtype.value})
        read = cast.outputs[0]
        read.dtype = dtype
        casts.append(cast)
    graph.insert_after(node, casts)
    for user, index in users:
        user.replace_input_with(index, read)
    for index, output in enumerate(graph.outputs):
        if output is value:
            read.shape, name = value.shape, value.name
            value.name, read.name = f"{name}.exact", name
            graph.outputs[index] = read
