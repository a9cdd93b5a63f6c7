"""The last layer for the token that is read: the same numbers, from fewer rows."""

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


def layer(*, index: int = 0, read_twice: bool = False) -> tuple[ir.Model, ir.Value]:
    """One attention, its residual norm and a product, of which token `index` is read.

    `read_twice` has the output read as a whole too.
    """
    rows = ["batch", "tokens", WIDTH]
    x = ir.Value(name="x", **value(rows))
    weights = {
        name: graphs.weight(name, graphs.random(WIDTH, WIDTH, seed=seed))
        for seed, name in enumerate(("q", "k", "v", "out"))
    }
    for name in ("scale", "bias"):
        weights[name] = graphs.weight(name, graphs.random(WIDTH, seed=7))
    weights["index"] = graphs.weight("index", np.array(index))
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
    nodes = [*heads, attention, total, norm, product]
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


def taken(model: ir.Model) -> list[str | None]:
    """What the graph takes the first token of, as a row of its own."""
    return [
        one.inputs[0].name
        for one in model.graph
        if one.op_type == "Gather" and one.inputs[1].const_value.numpy().ndim == 1
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
