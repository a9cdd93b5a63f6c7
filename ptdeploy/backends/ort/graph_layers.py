"""The graph that ONNX Runtime really runs: its own optimised one, layer by layer."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from ptdeploy.backends.layers import EngineLayers, Layer, module_of_nodes, without_module
from ptdeploy.backends.ort.open import session_options, start
from ptdeploy.bundle import Bundle
from ptdeploy.errors import TargetUnavailable

if TYPE_CHECKING:
    import onnx

HAS_ONNX = importlib.util.find_spec("onnx") is not None


def read_layers(bundle: Bundle, device: str) -> EngineLayers:
    """Open a bundle's engine as a request would, and read the graph it has made for itself.

    Raises TargetUnavailable where the engine cannot run or onnx is not installed.
    """
    if not HAS_ONNX:
        raise TargetUnavailable(
            "Reading the graph that ONNX Runtime runs needs onnx, which running it does not.",
            "pip install onnx",
        )
    with tempfile.TemporaryDirectory(prefix="ptdeploy-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = session_options(device)
        options.optimized_model_filepath = str(optimised)
        start(bundle, device, options)
        return read_optimised(bundle, optimised)


def read_optimised(bundle: Bundle, optimised: Path) -> EngineLayers:
    """The layers of a graph that ONNX Runtime optimised from a bundle's own, and its weights."""
    import onnx

    model = bundle.opened("model")
    assert model is not None, "start checks it"
    own = onnx.load(model, load_external_data=False).graph
    graph = onnx.load(optimised, load_external_data=False).graph
    known = {(node.name, node.op_type) for node in own.node}
    dtypes = {tensor.name: _dtype(tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dtypes[value.name] = _dtype(value.type.tensor_type.elem_type)
    layers = [
        Layer(
            node.name,
            module_of_nodes([node.name]),
            node.op_type,
            tuple(dtypes.get(name, "") for name in node.input if name),
            tuple(dtypes.get(name, "") for name in node.output if name),
            (node.name, node.op_type) not in known,
        )
        for node in graph.node
    ]
    beside = _neighbours(graph)
    weights = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    )
    return EngineLayers(
        tuple(
            without_module(layer, [layers[i] for i in beside[index]])
            for index, layer in enumerate(layers)
        ),
        {"weights": weights},
    )


def _neighbours(graph: onnx.GraphProto) -> dict[int, list[int]]:
    """By a node's index those of the nodes it takes from and gives to."""
    producers: dict[str, int] = {}
    found: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name in producers:
                found[index].append(producers[name])
                found[producers[name]].append(index)
        producers.update(dict.fromkeys(node.output, index))
    return found


def _dtype(number: int) -> str:
    import onnx

    if not number:
        return ""
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return "float32" if name == "float" else name
