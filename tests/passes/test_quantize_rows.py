"""Products of int8 by int8: each token by a scale of its own, and near the product in fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import NOTHING, graph, random, run, weight

from ptdeploy.bundle import Quantization
from ptdeploy.passes import PassContext, quantize_rows

CONTEXT = PassContext(NOTHING, Quantization(8, 0, 0, 0.97, 1.02, activations="int8"))
WIDTH, COLUMNS = 48, 40


def given() -> ir.Value:
    shape = ir.Shape(["batch", "tokens", WIDTH])
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def product(*before: str) -> ir.Model:
    """A product of a constant matrix, by what other operators make of x."""
    x = given()
    nodes: list[ir.Node] = []
    for kind in before:
        nodes.append(ir.node(kind, [nodes[-1].outputs[0] if nodes else x]))
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = x.shape, x.type
    read = nodes[-1].outputs[0] if nodes else x
    w = weight("w", random(WIDTH, COLUMNS))
    nodes.append(ir.node("MatMul", [read, w]))
    return graph(*nodes, inputs=[x], weights={"w": w})


def text(*scales: float) -> np.ndarray:
    rows = random(2, 5, WIDTH, seed=3)
    rows[0, : len(scales)] *= np.array(scales, np.float32)[:, None]
    return rows


@pytest.mark.parametrize("before", [(), ("Gelu",), ("Relu",), ("Tanh",)])
def test_every_token_is_near_its_product_whatever_its_size(tmp_path, before):
    x = text(1, 1e-6, 1e4, 0)
    want = run(product(*before), tmp_path, x=x)
    got = run(quantize_rows.run(product(*before), CONTEXT), tmp_path, x=x)
    # What Gelu leaves of a small token is small beside the largest that it gives below zero.
    size = np.abs(want).max(-1, keepdims=True).clip(0.17 if before == ("Gelu",) else 1e-30)
    assert (np.abs(got - want) <= 0.05 * size).all()


def test_a_token_alone_gives_the_same_bits_as_beside_others(tmp_path):
    model = quantize_rows.run(product(), CONTEXT)
    x = text(1, 1e-6, 1e4)
    together = run(model, tmp_path, x=x)
    alone = run(model, tmp_path, x=x[1:, 2:3])
    assert np.array_equal(together[1:, 2:3], alone)


def test_what_several_products_read_is_quantized_once():
    x = given()
    values = {name: weight(name, random(WIDTH, COLUMNS, seed=i)) for i, name in enumerate("qkv")}
    nodes = [ir.node("MatMul", [x, one]) for one in values.values()]
    model = quantize_rows.run(graph(*nodes, inputs=[x], weights=values), CONTEXT)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulIntegerToFloat") == 3
    assert "MatMul" not in kinds


def test_a_product_of_all_tokens_as_rows_is_quantized_with_its_bias(tmp_path):
    """As a Conv1D layer is exported."""

    def layer() -> ir.Model:
        x, rows = given(), weight("rows", np.array([-1, WIDTH]))
        w, bias = weight("w", random(COLUMNS, WIDTH)), weight("bias", random(COLUMNS, seed=1))
        flat = ir.node("Reshape", [x, rows])
        product = ir.node("Gemm", [flat.outputs[0], w, bias], attributes={"transB": 1})
        return graph(flat, product, inputs=[x], weights={"rows": rows, "w": w, "bias": bias})

    model = quantize_rows.run(layer(), CONTEXT)
    assert "Gemm" not in [one.op_type for one in model.graph]
    assert "w" not in model.graph.initializers
    want = run(layer(), tmp_path, x=text(1, 1e4))
    got = run(model, tmp_path, x=text(1, 1e4))
    assert (np.abs(got - want) <= 0.05 * np.abs(want).max(-1, keepdims=True)).all()


def test_products_of_one_token_for_each_text_stay_as_they_are():
    pooled = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", WIDTH])
    )
    w = weight("w", random(WIDTH, COLUMNS))
    model = graph(ir.node("MatMul", [pooled, w]), inputs=[pooled], weights={"w": w})
    assert [one.op_type for one in quantize_rows.run(model, CONTEXT).graph] == ["MatMul"]


def test_a_matrix_is_off_by_at_most_half_a_step_of_its_column():
    matrix = random(WIDTH, COLUMNS) * np.float32(3)
    matrix[:, 0] = 0
    codes, steps = quantize_rows.quantize(matrix)
    assert codes.dtype == np.int8
    assert (np.abs(codes * steps - matrix) <= 0.5001 * steps).all()
