"""Embeddings in 8 bits: what is stored, and that a lookup gives it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph, random, run, weight

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.passes import PassContext, dequantize, embeddings, head
from ptdeploy.passes.embeddings import quantize_rows

INT4 = Quantization(4, 32, 4, 0, 9)
SIGNATURE = Signature(
    (
        TensorSpec("ids", "ids", "int64", ("n",), "token ids"),
        TensorSpec("segments", "segments", "int64", ("n",), "segment of each token"),
    ),
    (),
)
CONTEXT = PassContext(SIGNATURE, INT4, quantizes_embeddings=True)


def lookup(table: np.ndarray, *nodes: ir.Node, **more: ir.Value) -> tuple[ir.Model, ir.Value]:
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(("n",)))
    stored = weight("table", table)
    found = ir.node("Gather", [stored, ids])
    return graph(found, *nodes, inputs=[ids], weights={"table": stored, **more}), stored


def test_a_lookup_gives_each_row_within_half_a_step(tmp_path):
    table = random(50, 24)
    table[7] = 0
    model, _ = lookup(table)
    model = embeddings.run(model, CONTEXT)
    assert "table" not in model.graph.initializers
    assert model.graph.initializers["table.q"].const_value.dtype == ir.DataType.INT8
    ids = np.array([7, 0, 49, 3])
    found = run(model, tmp_path, ids=ids)
    steps = np.abs(table[ids]).max(-1, keepdims=True) / 127
    assert (np.abs(found - table[ids]) <= 0.5001 * steps).all()
    assert not found[0].any()


def test_a_table_that_something_else_reads_stays_beside_its_codes(tmp_path):
    table = random(50, 24)
    model, stored = lookup(table)
    other = ir.node("Identity", [stored])
    other.outputs[0].name = "other"
    model.graph.append(other)
    embeddings.run(model, CONTEXT)
    assert {"table", "table.q", "table.scale"} <= set(model.graph.initializers)


def test_codes_and_scales_of_half_precision_are_of_what_is_stored():
    rows = random(5, 16).astype(np.float16)
    codes, scales = quantize_rows(rows)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert np.abs(codes).max() <= 127
    assert (np.abs(codes * scales - rows) <= 0.51 * scales).all()


@pytest.mark.parametrize(
    "context",
    [PassContext(SIGNATURE, INT4), PassContext(SIGNATURE, None, quantizes_embeddings=True)],
)
def test_without_being_asked_for_it_stays_as_it_is(context):
    model, _ = lookup(random(50, 24))
    assert [one.op_type for one in embeddings.run(model, context).graph] == ["Gather"]


def test_what_is_no_table_of_words_stays(tmp_path):
    """Ids that are reckoned, such as positions, look up a small table."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(("n",)))
    stored = weight("table", random(50, 24))
    reckoned = ir.node("Identity", [ids])
    model = graph(
        reckoned,
        ir.node("Gather", [stored, reckoned.outputs[0]]),
        inputs=[ids],
        weights={"table": stored},
    )
    kinds = [one.op_type for one in embeddings.run(model, CONTEXT).graph]
    assert kinds == ["Identity", "Gather"]


@pytest.mark.parametrize("kind", ["Clip", "Min", "Max"])
def test_ids_may_be_kept_within_bounds_first(kind):
    """Where virtual tokens have ids behind the model's own."""
    model, _ = lookup(random(50, 24))
    gather = model.graph.node(0)
    inputs = [gather.inputs[1], *([None] if kind == "Clip" else []), weight("most", np.array(49))]
    bound = ir.node(kind, inputs)
    model.graph.register_initializer(inputs[-1])
    model.graph.insert_before(gather, bound)
    gather.replace_input_with(1, bound.outputs[0])
    embeddings.run(model, CONTEXT)
    assert {"table.q", "table.scale"} <= set(model.graph.initializers)


def test_what_segments_look_up_stays():
    model, _ = lookup(random(2, 24))
    model.graph.inputs[0].name = "segments"
    assert [one.op_type for one in embeddings.run(model, CONTEXT).graph] == ["Gather"]


def test_a_head_that_is_tied_has_the_same_codes(tmp_path):
    table = random(50, 32)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(("n",)))
    stored = weight("table", table)
    found = ir.node("Gather", [stored, ids])
    turned = ir.node("Transpose", [stored], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [found.outputs[0], turned.outputs[0]])
    model = graph(found, turned, product, inputs=[ids], weights={"table": stored})
    int8 = Quantization(8, 0, 4, 0, 9)
    context = PassContext(SIGNATURE, int8, weights="DequantizeLinear", quantizes_embeddings=True)
    for one in (head, dequantize, embeddings):
        model = one.run(model, context)
    codes = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert len(codes) == 1
    assert "table" not in model.graph.initializers
    rounded = np.multiply(*quantize_rows(table))
    wanted = rounded[[3, 49]] @ rounded.T
    np.testing.assert_allclose(run(model, tmp_path, ids=np.array([3, 49])), wanted, atol=1e-4)
