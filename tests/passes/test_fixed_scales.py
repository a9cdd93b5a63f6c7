"""Products of activations at a fixed scale: near the product in fp32, and shared where they can."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import NOTHING, graph, random, run, weight

from ptdeploy.bundle import Quantization
from ptdeploy.passes import PassContext, fixed_scales
from ptdeploy.passes.fixed_scales import FixedScale, products

WIDTH, COLUMNS = 48, 40
ORT = PassContext(NOTHING, Quantization(8, 0, 0, 0.97, 1.02, activations="int8"))
OPENVINO = PassContext(NOTHING, Quantization(8, 0, 4, 0.97, 1.02), weights="DequantizeLinear")
CONTEXTS = pytest.mark.parametrize("context", [ORT, OPENVINO], ids=["ort", "openvino"])


def scale(seed: int = 0) -> FixedScale:
    """One that all of `text` is within: no factor is under a fifth, and no value over 32."""
    factors = np.random.default_rng(seed).uniform(0.2, 2, WIDTH).astype(np.float32)
    return FixedScale(factors, 64 / factors.min() / 255, 128)


def given() -> ir.Value:
    shape = ir.Shape(["batch", "tokens", WIDTH])
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def text() -> np.ndarray:
    return random(2, 5, WIDTH, seed=3)


def layer(*weights: ir.Value, bias: ir.Value | None = None) -> ir.Model:
    """The sum of x's products with weights, the first with a bias where there is one."""
    x = given()
    nodes = [ir.node("MatMul", [x, one]) for one in weights]
    outputs = [node.outputs[0] for node in nodes]
    if bias is not None:
        nodes.append(ir.node("Add", [bias, outputs[0]]))
        outputs[0] = nodes[-1].outputs[0]
    if len(outputs) > 1:
        nodes.append(ir.node("Sum", outputs))
    constants = [*weights, *([] if bias is None else [bias])]
    return graph(*nodes, inputs=[x], weights={one.name: one for one in constants})


def with_scales(context: PassContext, *scales: FixedScale | None) -> PassContext:
    return dataclasses.replace(context, scales=scales)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@CONTEXTS
@pytest.mark.parametrize("biases", [0, 1, COLUMNS])
def test_a_product_is_near_the_one_of_floats(tmp_path, context, biases):
    w = random(WIDTH, COLUMNS)

    def made() -> ir.Model:
        bias = weight("b", random(biases, seed=9)) if biases else None
        return layer(weight("w", w), bias=bias)

    want = run(made(), tmp_path, x=text())
    used = scale()
    got = run(fixed_scales.run(made(), with_scales(context, used)), tmp_path, x=text())
    # Half a step of each activation by its weight, half a code of each weight by its activation.
    weights = w * used.factors[:, None]
    rounding = used.step / 2 * np.abs(weights).sum(0)
    codes = np.abs(weights).max(0) / 254
    bound = rounding + codes * (np.abs(text() / used.factors) + used.step / 2).sum(-1)[..., None]
    assert np.abs(got - want).max() > 0
    assert (np.abs(got - want) <= bound + 1e-4).all()
    # No more than a tenth of what rounding could do at worst: signs and factors are right.
    assert np.abs(got - want).mean() < 0.1 * bound.mean()


@CONTEXTS
def test_a_token_alone_gives_the_same_bits_as_beside_others(tmp_path, context):
    model = fixed_scales.run(
        layer(weight("w", random(WIDTH, COLUMNS))), with_scales(context, scale())
    )
    together = run(model, tmp_path, x=text())
    alone = run(model, tmp_path, x=text()[1:, 2:3])
    if context is ORT:
        assert np.array_equal(together[1:, 2:3], alone)
    assert np.allclose(together[1:, 2:3], alone, atol=1e-5)


def test_a_bias_goes_into_the_product():
    made = layer(weight("w", random(WIDTH, COLUMNS)), bias=weight("b", random(COLUMNS)))
    model = fixed_scales.run(made, with_scales(ORT, scale()))
    assert operators(model) == ["Mul", "QuantizeLinear", "MatMulIntegerToFloat"]
    assert "w" not in model.graph.initializers


def test_what_is_read_several_times_becomes_codes_once():
    used = scale()
    one, other = weight("one", random(WIDTH, COLUMNS)), weight("other", random(WIDTH, COLUMNS))
    model = fixed_scales.run(layer(one, other, one), with_scales(ORT, used, used, used))
    assert operators(model).count("QuantizeLinear") == 1
    packed = {node.inputs[1] for node in model.graph if node.op_type == "MatMulIntegerToFloat"}
    assert len(packed) == 2


@CONTEXTS
def test_a_product_without_a_scale_stays_for_other_passes(context):
    one, other = weight("one", random(WIDTH, COLUMNS)), weight("other", random(WIDTH, COLUMNS))
    model = fixed_scales.run(layer(one, other), with_scales(context, None, scale()))
    (left,) = products(model)
    assert left.node.inputs[1].name == "one"
    assert left.given.name == "x"


@pytest.mark.parametrize("count", [1, 3])
def test_scales_are_of_all_products_or_the_graph_is_another(count):
    one, other = weight("one", random(WIDTH, COLUMNS)), weight("other", random(WIDTH, COLUMNS))
    with pytest.raises(ValueError, match="zip"):
        fixed_scales.run(layer(one, other), with_scales(ORT, *[scale()] * count))
