"""Quantized weights behind DequantizeLinear: what is stored, and that products are of what is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.graphs import NOTHING, given_rows, graph, random, run, weight

from ptdeploy.bundle import Quantization
from ptdeploy.parity.graph_check import emulate_bfloat16
from ptdeploy.passes import PassContext, dequantize
from ptdeploy.passes.dequantize import quantize

INT8, INT4 = Quantization(8, 0, 0, 0, 9), Quantization(4, 16, 0, 0, 9)
FP8 = Quantization(8, 0, 0, 0, 9, "float8e4m3fn")
FINITE = st.floats(-1e4, 1e4, width=32)


def restored(matrix: np.ndarray, wanted: Quantization) -> np.ndarray:
    codes, scales = quantize(matrix, wanted)
    wide = codes.astype(np.float32)
    if not wanted.block_size:
        return wide * scales
    return wide * np.repeat(scales, wanted.block_size, axis=0)


@given(arrays.arrays(np.float32, (32, 3), elements=FINITE))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("wanted", [INT8, INT4], ids=["int8", "int4"])
def test_a_value_is_off_by_half_a_step_at_most(wanted, matrix):
    _, scales = quantize(matrix, wanted)
    step = np.repeat(scales, wanted.block_size, 0) if wanted.block_size else scales[None]
    assert (np.abs(restored(matrix, wanted) - matrix) <= 0.5001 * step + 1e-30).all()


@given(arrays.arrays(np.float32, (16, 2), elements=FINITE))
@settings(max_examples=60, deadline=None)
def test_a_float8_is_off_by_a_sixteenth_at_most(matrix):
    """Three bits of mantissa, and near zero the smallest step of all."""
    _, scales = quantize(matrix, FP8)
    bound = np.abs(matrix) / 16 + scales * 2.0**-10
    assert (np.abs(restored(matrix, FP8) - matrix) <= bound * 1.001 + 1e-30).all()


@pytest.mark.parametrize("wanted", [INT8, INT4, FP8], ids=["int8", "int4", "fp8"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm transB", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_product_is_of_the_rounded_weights(tmp_path, wanted, kind, dtype):
    matrix = random(32, 48).astype(dtype)
    turned = kind in ("Gemm transB", "tied")
    x, stored = given_rows(32), weight("w", np.ascontiguousarray(matrix.T) if turned else matrix)
    values, nodes = {"w": stored}, []
    fed = x
    if dtype == np.float16:
        nodes.append(ir.node("Cast", [x], attributes={"to": ir.DataType.FLOAT16.value}))
        fed = nodes[0].outputs[0]
    if kind == "tied":
        ids = weight("ids", np.array([0, 1]))
        values["ids"] = ids
        nodes.append(ir.node("Gather", [stored, ids]))
        nodes.append(ir.node("Transpose", [stored], attributes={"perm": [1, 0]}))
        nodes.append(ir.node("MatMul", [fed, nodes[-1].outputs[0]]))
    elif kind == "MatMul":
        nodes.append(ir.node("MatMul", [fed, stored]))
    else:
        values["b"] = weight("b", random(48, seed=2).astype(dtype))
        attributes = {"transB": 1} if turned else {}
        nodes.append(ir.node("Gemm", [fed, stored, values["b"]], attributes=attributes))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], attributes={"to": 1}))
    model = graph(*nodes, inputs=[x], weights=values)
    model = dequantize.run(model, PassContext(NOTHING, wanted, weights="DequantizeLinear"))
    operators = [node.op_type for node in model.graph]
    assert operators.count("DequantizeLinear") == 1
    assert ("w" in model.graph.initializers) is (kind == "tied")

    feed = random(5, 32, seed=1)
    want = feed.astype(dtype).astype(np.float32) @ restored(matrix, wanted)
    if kind.startswith("Gemm"):
        want = want + values["b"].const_value.numpy().astype(np.float32)
    near = 1e-4 if dtype == np.float32 else 0.05
    np.testing.assert_allclose(run(model, tmp_path, x=feed), want, atol=near)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_columns_that_are_no_whole_number_of_blocks_end_in_zeros(tmp_path, kind):
    """As MatMulNBits has them; two products of one input read the same longer one."""
    x, left, right = given_rows(40), random(40, 8), random(40, 24, seed=3)
    values = {"left": weight("left", left), "right": weight("right", right)}
    nodes = [ir.node(kind, [x, one]) for one in values.values()]
    nodes.append(ir.node("Concat", [node.outputs[0] for node in nodes], attributes={"axis": 1}))
    model = graph(*nodes, inputs=[x], weights=values)
    model = dequantize.run(model, PassContext(NOTHING, INT4, weights="DequantizeLinear"))
    read = ["Pad", "DequantizeLinear", kind, "DequantizeLinear", kind, "Concat"]
    assert [node.op_type for node in model.graph] == read
    assert "left" not in model.graph.initializers
    assert model.graph.initializers["left.q"].shape == (48, 8)
    feed, padded = random(5, 40, seed=1), ((0, 8), (0, 0))
    stored = [restored(np.pad(one, padded), INT4)[:40] for one in (left, right)]
    wanted = np.concatenate([feed @ one for one in stored], 1)
    np.testing.assert_allclose(run(model, tmp_path, x=feed), wanted, atol=1e-4)


def test_engines_with_an_operator_of_their_own_are_left_to_it():
    x, w = given_rows(32), weight("w", random(32, 8))
    model = graph(ir.node("MatMul", [x, w]), inputs=[x], weights={"w": w})
    model = dequantize.run(model, PassContext(NOTHING, INT8))
    assert [node.op_type for node in model.graph] == ["MatMul"]


@given(arrays.arrays(np.float32, (3, 4), elements=FINITE))
@settings(max_examples=25, deadline=None)
def test_emulated_bfloat16_rounds_every_value_that_was_one(tmp_path_factory, feed):
    """Not only the result: 1 + 2^-9 is 1 in bfloat16, and stays so in what is computed from it."""
    x = given_rows(4)
    narrow, wide = ({"to": t.value} for t in (ir.DataType.BFLOAT16, ir.DataType.FLOAT))
    small = weight("small", np.full(4, 1 + 2.0**-7).astype(ml_dtypes.bfloat16))
    first = ir.node("Cast", [x], attributes=narrow)
    product = ir.node("Mul", [first.outputs[0], small])
    back = ir.node("Cast", [product.outputs[0]], attributes=wide)
    for node in (first, product):
        node.outputs[0].dtype = ir.DataType.BFLOAT16
    model = emulate_bfloat16(graph(first, product, back, inputs=[x], weights={"small": small}))
    got = run(model, tmp_path_factory.mktemp("graph"), x=feed)
    rounded = feed.astype(ml_dtypes.bfloat16).astype(np.float32)
    want = (rounded * np.float32(1 + 2.0**-7)).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got, want)
