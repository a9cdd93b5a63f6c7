"""All passes together change the graph and no value, and hold it to its signature."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxscript import FLOAT, script
from onnxscript import opset18 as op

from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.passes import PassContext, run_passes


@script(default_opset=op)
def messy(x: FLOAT["batch", 4]) -> FLOAT["batch", 4]:  # noqa: F821, UP037 (axis names)
    two = op.Add(op.Constant(value_float=1.0), op.Constant(value_float=1.0))
    first = op.Mul(x, two)
    again = op.Mul(x, two)
    unused = op.Neg(first)  # noqa: F841
    return op.Add(op.Tanh(first), op.Identity(again))


SPECS = (
    TensorSpec("x", "ids", "float32", ("batch", 4), "input"),
    TensorSpec("return_val", "logits", "float32", ("batch", 4), "output"),
)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@given(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4), min_size=1))
@settings(max_examples=15, deadline=None)
def test_passes_change_the_graph_and_no_value(rows):
    x = np.array(rows, np.float32)
    proto = messy.to_model_proto()
    before = ir.from_proto(proto)
    named = msgspec.structs.replace(SPECS[1], name=before.graph.outputs[0].name)
    context = PassContext(Signature(SPECS[:1], (named,)))
    after = run_passes(ir.from_proto(proto), context)
    assert np.array_equal(run(before, x), run(after, x))
    assert len(list(after.graph)) < len(list(before.graph))


def test_a_graph_that_is_not_its_signature_is_refused():
    named = msgspec.structs.replace(SPECS[1], name="logits")
    context = PassContext(Signature(SPECS[:1], (named,)))
    with pytest.raises(ValueError, match="logits"):
        run_passes(ir.from_proto(messy.to_model_proto()), context)
