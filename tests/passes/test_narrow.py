"""The last layer for the tokens that are read: the same numbers, from fewer rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support import graphs

from ptdeploy.passes import PassContext, narrow

WIDTH = 8


def value(shape: list[object], dtype: ir.DataType = ir.DataType.FLOAT) -> dict[str, object]:
    return {"type": ir.TensorType(dtype), "shape": ir.Shape(shape)}


def node(op: str, inputs: list[ir.Value | None], shape: list[object], domain="", **attributes):
    made = ir.node(op, inputs, attributes=attributes, domain=domain)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made.outputs[0].shape = ir.Shape(shape)
    made.outputs[0].name = f"{op}.{id(made)}"
    return made


def parts() -> tuple[ir.Value, dict[str, ir.Value], list[ir.Node]]:
    """What is given, the weights and the nodes of one attention, its residual norm, a product."""
    rows = ["batch", "tokens", WIDTH]
    x = ir.Value(name="x", **value(rows))
    weights = {
        name: graphs.weight(name, graphs.random(WIDTH, WIDTH, seed=seed))
        for seed, name in enumerate(("q", "k", "v", "out"))
    }
    for name in ("scale", "bias"):
        weights[name] = graphs.weight(name, graphs.random(WIDTH, seed=7))
    for one in weights.values():
        one.shape = ir.Shape(one.const_value.shape)
    heads = [node("MatMul", [x, weights[name]], rows) for name in ("q", "k", "v")]
    attention = node(
        "MultiHeadAttention",
        [one.outputs[0] for one in heads],
        rows,
        domain="com.microsoft",
        num_heads=2,
    )
    total = node("Add", [attention.outputs[0], x], rows)
    norm = node(
        "LayerNormalization", [total.outputs[0], weights["scale"], weights["bias"]], rows, axis=-1
    )
    product = node("MatMul", [norm.outputs[0], weights["out"]], rows)
    return x, weights, [*heads, attention, total, norm, product]


def layer(*, index: int = 0, read_twice: bool = False) -> tuple[ir.Model, ir.Value]:
    """A layer, of which token `index` is read.

    `read_twice` has the output read as a whole too.
    """
    x, weights, nodes = parts()
    product = nodes[-1]
    weights["index"] = graphs.weight("index", np.array(index))
    weights["index"].shape = ir.Shape(())
    read = node("Gather", [product.outputs[0], weights["index"]], ["batch", WIDTH], axis=1)
    nodes.append(read)
    if read_twice:
        axes = graphs.weight("axes", np.array([1]))
        weights["axes"] = axes
        mean = node("ReduceMean", [product.outputs[0], axes], ["batch", WIDTH], keepdims=0)
        nodes += [mean, node("Add", [read.outputs[0], mean.outputs[0]], ["batch", WIDTH])]
    model = graphs.graph(*nodes, inputs=[x], weights=weights)
    model.opset_imports["com.microsoft"] = 1
    return model, x


def tagger(*, made_flat: bool) -> ir.Model:
    """A layer and each row's own head, of which the tokens are read that `places` names.

    `made_flat` has them made a list first, which they are.
    """
    x, weights, nodes = parts()
    head = ir.Value(name="head", **value(["batch", WIDTH, 3]))
    bias = ir.Value(name="head_bias", **value(["batch", 1, 3]))
    places = ir.Value(name="places", **value(["kept"], ir.DataType.INT64))
    scores = node("MatMul", [nodes[-1].outputs[0], head], ["batch", "tokens", 3])
    biased = node("Add", [scores.outputs[0], bias], ["batch", "tokens", 3])
    nodes += [scores, biased]
    index = places
    if made_flat:
        weights["all"] = graphs.weight("all", np.array([-1]))
        nodes.append(node("Reshape", [places, weights["all"]], ["kept"]))
        index = nodes[-1].outputs[0]
        index.type = ir.TensorType(ir.DataType.INT64)
    nodes.append(node("Gather", [biased.outputs[0], index], ["batch", "kept", 3], axis=1))
    model = graphs.graph(*nodes, inputs=[x, head, bias, places], weights=weights)
    model.opset_imports["com.microsoft"] = 1
    return model


def taken(model: ir.Model, places: str = "first_token") -> list[str | None]:
    """What the graph takes tokens of, each as a row of its own, by a value so named."""
    return [
        one.inputs[0].name
        for one in model.graph
        if one.op_type == "Gather" and one.inputs[1].name.endswith(places)
    ]


def given() -> np.ndarray:
    return graphs.random(3, 5, WIDTH, seed=11)


def test_the_layer_computes_one_token_and_gives_the_same(tmp_path) -> None:
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    before = graphs.run(layer()[0], tmp_path / "before", x=given())
    model, x = layer()
    narrow.run(model, PassContext(graphs.NOTHING))
    # The layer's input once, for the queries and the residual: keys and values stay wide.
    assert taken(model) == ["x"]
    wide = [one for one in model.graph if x in one.inputs and one.op_type == "MatMul"]
    assert [one.inputs[1].name for one in wide] == ["k", "v"]
    after = graphs.run(model, tmp_path / "after", x=given())
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("made_flat", [False, True])
def test_the_layer_and_the_head_compute_the_tokens_that_an_input_names(
    made_flat: bool, tmp_path
) -> None:
    feed = {
        "x": given(),
        "head": graphs.random(3, WIDTH, 3, seed=12),
        "head_bias": graphs.random(3, 1, 3, seed=13),
        "places": np.array([2, 3, 4]),
    }
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    before = graphs.run(tagger(made_flat=made_flat), tmp_path / "before", **feed)
    model = tagger(made_flat=made_flat)
    narrow.run(model, PassContext(graphs.NOTHING))
    # The layer's input is all that tokens are taken of, and nothing of what is computed.
    assert taken(model, "places") == ["x"]
    operators = [one.op_type for one in model.graph]
    assert operators.count("Gather") == 1
    assert "Reshape" not in operators
    after = graphs.run(model, tmp_path / "after", **feed)
    assert after.shape == (3, 3, 3)
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(
    ("what", "changed"), [("another token", {"index": 2}), ("all tokens too", {"read_twice": True})]
)
def test_what_else_is_read_keeps_the_layer_whole(what: str, changed: dict, tmp_path) -> None:
    model, _ = layer(**changed)
    narrow.run(model, PassContext(graphs.NOTHING))
    assert taken(model) == [], what
    assert graphs.run(model, tmp_path, x=given()).shape == (3, WIDTH)


def test_an_attention_with_a_bias_for_each_query_keeps_its_queries(tmp_path) -> None:
    model, _ = layer()
    attention = next(one for one in model.graph if one.op_type == "MultiHeadAttention")
    bias = graphs.weight("attention_bias", graphs.random(1, 2, 5, 5))
    model.graph.register_initializer(bias)
    attention.resize_inputs(6)
    attention.replace_input_with(5, bias)
    before = graphs.run(model, tmp_path, x=given())
    narrow.run(model, PassContext(graphs.NOTHING))
    assert taken(model) == [attention.outputs[0].name, "x"]
    np.testing.assert_allclose(graphs.run(model, tmp_path, x=given()), before, atol=1e-6)
