"""How many weights a graph multiplies with were quantized, by whatever pass."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import NOTHING, given_rows, graph, random, weight

from ptdeploy.bundle import Quantization
from ptdeploy.errors import BaseModelError
from ptdeploy.passes import PassContext, dequantize, quantize
from ptdeploy.passes.counted import CountedWeights, bytes_of_constants, count_weights, notes_on

WANTED = Quantization(8, 32, 4, 0, 9)
CONTEXTS = {
    "MatMulNBits": PassContext(NOTHING, WANTED),
    "DequantizeLinear": PassContext(NOTHING, WANTED, weights="DequantizeLinear"),
}


def two_layers() -> ir.Model:
    """A product of a matrix and a bias, and one of four experts' matrices as one tensor."""
    x, w, experts = given_rows(64), weight("w", random(64, 64)), weight("e", random(4, 64, 8))
    first = ir.node("Gemm", [x, w, weight("b", random(64))], name="up/Gemm")
    last = ir.node("MatMul", [first.outputs[0], experts], name="mlp.experts/MatMul")
    return graph(first, last, inputs=[x], weights={"w": w, "b": first.inputs[2], "e": experts})


@pytest.mark.parametrize("operator", CONTEXTS)
def test_what_no_pass_quantizes_is_counted_where_it_is_read(operator):
    one = quantize if operator == "MatMulNBits" else dequantize
    counted = count_weights(one.run(two_layers(), CONTEXTS[operator]), WANTED)
    assert counted.quantized == 64 * 64
    assert counted.left == {"mlp.experts": 4 * 64 * 8}
    assert counted.share == pytest.approx(2 / 3)
    assert counted.largest_left() == "mlp.experts"


def test_where_most_stay_it_is_refused_and_where_many_do_it_is_said():
    words = r"^mixtral: int4 would quantize 49% of the weights in products.* in layers\.1\.experts"
    with pytest.raises(BaseModelError, match=words):
        notes_on(CountedWeights(49, {"layers.0": 1, "layers.1.experts": 50}), "mixtral", "int4")
    (said,) = notes_on(CountedWeights(60, {"layers.0": 30, "head": 10}), "mixtral", "int4")
    assert said.startswith("int4 quantizes 60% of the weights in products")
    assert said.endswith("most of them in layers.0.")
    assert notes_on(CountedWeights(99, {"head": 1}), "mixtral", "int4") == ()
    assert notes_on(CountedWeights(0, {}), "mixtral", "int4") == ()


def test_a_weight_that_is_read_twice_counts_once():
    x, w = given_rows(32), weight("w", random(32, 32))
    turned = ir.node("Transpose", [w], attributes={"perm": [1, 0]})
    first = ir.node("MatMul", [x, w], name="a/MatMul")
    last = ir.node("MatMul", [first.outputs[0], turned.outputs[0]], name="b/MatMul")
    model = graph(first, turned, last, inputs=[x], weights={"w": w})
    assert count_weights(model, WANTED).left == {"a": 32 * 32}


def test_products_of_one_token_do_not_count_where_activations_are_quantized():
    x, w = given_rows(32), weight("w", random(32, 32))
    model = graph(ir.node("MatMul", [x, w], name="pooler/MatMul"), inputs=[x], weights={"w": w})
    assert count_weights(model, WANTED).share == 0
    rows = msgspec.structs.replace(WANTED, activations="int8")
    assert count_weights(model, rows).share == 1


def test_constants_take_their_bytes_and_equal_ones_once():
    model = two_layers()
    assert bytes_of_constants(model) == 4 * (64 * 64 + 64 + 4 * 64 * 8)
    tied = ir.Value(name="tied", const_value=model.graph.initializers["w"].const_value)
    model.graph.register_initializer(tied)
    assert bytes_of_constants(model) == 4 * (64 * 64 + 64 + 4 * 64 * 8)
    codes = np.zeros((64, 8), np.uint8)
    model.graph.register_initializer(weight("q", codes))
    assert bytes_of_constants(model) == 4 * (64 * 64 + 64 + 4 * 64 * 8) + 512
