"""Small graphs for tests of passes, and how to run one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from ptdeploy.backends.ort.open import session_options
from ptdeploy.bundle.signature import Signature
from ptdeploy.targets.onnx_model import MODEL, write_model

NOTHING = Signature((), ())


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph(*nodes: ir.Node, inputs: list[ir.Value], weights: dict[str, ir.Value]) -> ir.Model:
    """A model with one output, `y`, that is its last node's."""
    output = nodes[-1].outputs[0]
    output.name, output.dtype = "y", ir.DataType.FLOAT
    built = ir.Graph(
        inputs,
        [output],
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports={"": 21},
        name="test",
    )
    return ir.Model(built, ir_version=10)


def weight(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(array, name=name))


def given_rows(width: int) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", width]))


def run(model: ir.Model, folder, **feed: np.ndarray) -> np.ndarray:
    """Through the target's own writer, so that external data is covered too."""
    write_model(model, folder)
    session = onnxruntime.InferenceSession(
        str(folder / MODEL), session_options("cpu"), providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], feed)[0]
