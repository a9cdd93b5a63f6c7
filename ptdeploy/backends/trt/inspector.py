"""What the engine inspector says of an engine: layers, types, kernels and memory."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

from ptdeploy.backends.layers import EngineLayers, Layer, module_of_nodes
from ptdeploy.backends.trt.vendor import Vendor

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# The inspector's words, alone ("Half") or in a format ("Row major linear FP16 format"). The first
# that is found counts: "BFloat16" has "Float" in it too.
_DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8": "float8",
    "fp4": "float4",
    "fp32": "float32",
    "float": "float32",
    "int64": "int64",
    "int32": "int32",
    "uint8": "uint8",
    "int8": "int8",
    "int4": "int4",
    "bool": "bool",
}


def read_layers(vendor: Vendor, engine: Any, profiles: Sequence[str]) -> EngineLayers:
    """A deserialized engine's layers, its weights, and the scratch space of a context by profile.

    An engine that was built without ProfilingVerbosity.DETAILED gives its layers' names alone.
    """
    inspector = engine.create_engine_inspector()
    as_json = vendor.module.LayerInformationFormat.JSON
    memory: dict[str, int] = {}
    # Some versions' bindings cannot give a plain number here.
    with contextlib.suppress(TypeError):
        memory["weights"] = int(engine.get_engine_stat())
    for index, name in enumerate(profiles):
        size = int(engine.get_device_memory_size_for_profile_v2(index))
        memory[f"scratch of a context in profile {name}"] = size
    return EngineLayers(
        tuple(
            read_layer(inspector.get_layer_information(index, as_json))
            for index in range(engine.num_layers)
        ),
        memory,
    )


def read_layer(information: str) -> Layer:
    """One layer, from what the inspector gives for it in JSON: an object, or a name alone.

    Metadata lists the ONNX nodes that it was made of; TensorRT does not always escape it.
    """
    try:
        found = json.loads(information, strict=False)
    except json.JSONDecodeError:
        said = re.search(r'"Name": "([^"]*)"', information)
        found = {"Name": said[1] if said else information.strip(), "Metadata": information}
    if not isinstance(found, dict):
        found = {"Name": str(found)}
    name = str(found.get("Name", ""))
    nodes = _NODE.findall(str(found.get("Metadata", ""))) or name.split(" + ")
    return Layer(
        name,
        module_of_nodes(nodes),
        str(found.get("LayerType", "")),
        _types(found.get("Inputs")),
        _types(found.get("Outputs")),
        len(nodes) > 1,
        str(found.get("TacticName", "")),
    )


def _types(tensors: Any) -> tuple[str, ...]:
    given = tensors if isinstance(tensors, list) else []
    return tuple(_dtype(one) for one in given if isinstance(one, dict))


def _dtype(tensor: dict[str, Any]) -> str:
    words = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or tensor.get("Format", ""))
    lower = words.lower()
    return next((dtype for word, dtype in _DTYPES.items() if word in lower), words)
