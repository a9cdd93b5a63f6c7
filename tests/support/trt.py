"""Graphs of one node or two, and what TensorRT is asked to make of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.engine_file import EngineInfo, Profile
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.targets.trt.builder import Request
from ptdeploy.targets.trt.options import TrtOptions

NO_GPU = pytest.mark.skipif(cuda.unavailable() is None, reason="there is a GPU here")
X = TensorSpec("x", "ids", "float32", ("batch", 4), "")
Y = TensorSpec("y", "logits", "float32", ("batch", 4), "")
PROFILE = Profile("requests", {"x": ((1, 4), (2, 4), (8, 4))})
INFO = EngineInfo(
    flavor="rtx",
    version="1.7.1.116",
    gpu="",
    compute_capabilities=(),
    profiles=(PROFILE,),
    tf32=False,
    strip_weights=False,
    version_compatible=False,
    hardware_compatibility="none",
    workspace=None,
    optimization_level=None,
    precisions={"float32": {"Relu": 1}},
    onnx_sha256="",
)


def save(folder: Path, *nodes: onnx.NodeProto, constants=(), out: TensorSpec = Y) -> Path:
    """A graph from x to y as an ONNX file."""

    def declared(spec: TensorSpec) -> onnx.ValueInfoProto:
        dtype = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[spec.dtype]
        return helper.make_tensor_value_info(spec.name, dtype, list(spec.shape))

    graph = helper.make_graph(
        list(nodes), "g", [declared(X)], [declared(out)], initializer=list(constants)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def request(onnx_file: Path, signature=None, options=None, tf32=False) -> Request:
    signature = signature or Signature((X,), (Y,))
    return Request(onnx_file, signature, (PROFILE,), tf32, options or TrtOptions())


def relu(folder: Path) -> Path:
    return save(folder, helper.make_node("Relu", ["x"], ["y"], name="layer.0/Relu"))
