"""The graph that OpenVINO really runs: its own compiled one, layer by layer."""

from __future__ import annotations

import math
from typing import Any

from ptdeploy.backends.layers import EngineLayers, Layer, module_of_nodes, without_module
from ptdeploy.backends.openvino.open import dtype_name


def read_layers(compiled: Any) -> EngineLayers:
    """The layers of a compiled model, and its weights as they lie in memory."""
    layers: list[Layer] = []
    beside: list[list[Layer]] = []
    made: dict[str, Layer] = {}
    constants: set[str] = set()
    weights = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = _said(node, "layerType")
        givers = [_name(port.get_source_output().get_node()) for port in node.inputs()]
        if kind == "Const":
            weights += sum(map(_size, node.outputs()))
        # What is made of constants alone, such as transposed weights, is made once.
        if kind == "Const" or (givers and constants.issuperset(givers)):
            constants.add(_name(node))
        if kind in ("Input", "Output") or _name(node) in constants:
            continue
        layer = _layer(node, kind)
        before = [made[name] for name in givers if name in made]
        made[layer.name] = layer
        layers.append(layer)
        beside.append(before)
        for one in before:
            beside[layers.index(one)].append(layer)
    named = tuple(map(without_module, layers, beside))
    return EngineLayers(named, {"weights": weights})


def _layer(node: Any, kind: str) -> Layer:
    """One step; the nodes of the graph that it was made of say which module it belongs to."""
    kernel = _said(node, "primitiveType")
    nodes = [name for name in _said(node, "originalLayersNames").split(",") if name]
    return Layer(
        _name(node),
        module_of_nodes(nodes),
        kind,
        tuple(_dtype(port) for port in node.inputs()),
        tuple(_dtype(port) for port in node.outputs()),
        len(nodes) > 1,
        # Before a request there may be none: it is chosen by the request's shapes.
        "" if kernel.startswith(("undef", "unknown")) else kernel,
    )


def _name(node: Any) -> str:
    return str(node.get_friendly_name())


def _said(node: Any, what: str) -> str:
    info = node.get_rt_info()
    return str(info[what].astype(str)) if what in info else ""


def _dtype(port: Any) -> str:
    return dtype_name(port.get_element_type().get_type_name())


def _size(port: Any) -> int:
    shape = port.get_partial_shape()
    if shape.is_dynamic:
        return 0
    bits = math.prod(axis.get_length() for axis in shape) * port.get_element_type().bitwidth
    return int(bits) // 8
