"""Attention that turns its inputs by a table gives what it gave when they came turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import random

from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.passes import PassContext, rotary

POSITIONS, HEADS, KV_HEADS = 48, 4, 2
IDS = TensorSpec("ids", "ids", "int64", ("batch", "sequence"), "")
LENGTHS = TensorSpec("lengths", "lengths", "int64", ("batch",), "")
CONTEXT = PassContext(Signature((IDS, LENGTHS), ()), rotary_positions=POSITIONS)


FLOAT32, INT64 = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)


class Draft:
    """A graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def of(self, array: Any) -> ir.Value:
        name = f"constant.{len(self.constants)}"
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        self.constants.append(value)
        return value

    def do(
        self, kind: str, *inputs: ir.Value, outputs: int = 1, domain: str = "", **how: Any
    ) -> Any:
        node = ir.node(kind, inputs, attributes=how, num_outputs=outputs, domain=domain)
        for output in node.outputs:
            output.name = f"{kind}.{len(self.nodes)}.{output.index()}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def angles(self, lengths: ir.Value, new: ir.Value, width: int, by_length: bool) -> ir.Value:
        """Those of each token, (batch, sequence, width)."""
        places = self.do("Range", self.of(0), new, self.of(1))
        positions = self.do(
            "Add",
            self.do("Unsqueeze", lengths, self.of([1])),
            self.do("Unsqueeze", places, self.of([0])),
        )
        turned = self.do(
            "Mul",
            self.do("Cast", self.do("Unsqueeze", positions, self.of([2])), to=1),
            self.of((10000.0 ** -(np.arange(width) / width)).astype(np.float32)),
        )
        if by_length:
            tokens = self.do("Cast", self.do("ReduceMax", lengths, keepdims=0), to=1)
            turned = self.do("Div", turned, tokens)
        return turned


def attention(
    head: int = 16,
    angles: int | None = None,
    layers: int = 1,
    *,
    by_length: bool = False,
    keys_too: bool = True,
    read_twice: bool = False,
) -> ir.Model:
    """`layers` attentions over x, whose queries and keys are turned by the tokens' positions.

    `by_length` has the angles depend on how many tokens there are.
    """
    ids = ir.Value(name="ids", type=INT64, shape=ir.Shape(["batch", "sequence"]))
    lengths = ir.Value(name="lengths", type=INT64, shape=ir.Shape(["batch"]))
    x = ir.Value(name="x", type=FLOAT32, shape=ir.Shape(["batch", "sequence", 8]))
    buffer = ir.Shape(["batch", KV_HEADS, "slots", head])
    pasts = [ir.Value(name=f"past.{i}", type=FLOAT32, shape=buffer) for i in range(2 * layers)]
    draft = Draft()
    do, of = draft.do, draft.of
    new = do("Squeeze", do("Shape", ids, start=1, end=2))
    turned = draft.angles(lengths, new, head // 2 if angles is None else angles, by_length)
    cos, sin = do("Cos", turned), do("Sin", turned)
    last = do("Cast", do("Sub", do("Add", lengths, new), of(1)), to=6)
    filled = do("Cast", do("Add", do("ReduceMax", lengths, keepdims=0), new), to=6)
    part = {} if angles is None else {"rotary_embedding_dim": 2 * angles}
    how = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    outputs: list[ir.Value] = []
    for layer in range(layers):
        q, k, v = (
            do("MatMul", x, of(random(8, count * head, seed=layer + place)))
            for place, count in enumerate((HEADS, KV_HEADS, KV_HEADS))
        )
        q = do("RotaryEmbedding", q, cos, sin, num_heads=HEADS, **part)
        if keys_too:
            k = do("RotaryEmbedding", k, cos, sin, num_heads=KV_HEADS, **part)
        given = (q, k, v, *pasts[2 * layer : 2 * layer + 2], last, filled)
        outputs += do("GroupQueryAttention", *given, outputs=3, domain="com.microsoft", **how)
        outputs += [do("Neg", q)] if read_twice else []
    for output in outputs:
        output.type = FLOAT32
    opsets = {"": 23, "com.microsoft": 1}
    graph = ir.Graph(
        [ids, lengths, x, *pasts],
        outputs,
        nodes=draft.nodes,
        initializers=draft.constants,
        opset_imports=opsets,
        name="test",
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, lengths: list[int], new: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = len(lengths)
    feed = {
        "ids": np.zeros((rows, new), np.int64),
        "lengths": np.array(lengths, np.int64),
        "x": random(rows, new, 8, seed=3),
    }
    for place, one in enumerate(model.graph.inputs[3:]):
        feed[str(one.name)] = random(rows, KV_HEADS, POSITIONS, one.shape[3], seed=place)
    return session.run(None, feed)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# ONNX Runtime's operator takes several tokens behind a past for one row only.
requests = st.one_of(
    st.tuples(st.lists(st.integers(0, POSITIONS - 1), min_size=1, max_size=3), st.just(1)),
    st.tuples(st.integers(0, POSITIONS - 9).map(lambda n: [n]), st.integers(1, 9)),
    st.tuples(st.integers(1, 3).map(lambda rows: [0] * rows), st.integers(1, POSITIONS)),
)


@given(requests, st.sampled_from([(16, None), (16, 8), (32, None), (32, 8), (48, None)]))
@settings(max_examples=40, deadline=None)
def test_it_computes_the_same_wherever_tokens_stand(request, widths):
    before = attention(*widths, layers=2)
    after = rotary.run(attention(*widths, layers=2), CONTEXT)
    assert {"RotaryEmbedding", "Cos", "Sin"} & {*operators(before)}
    assert not {"RotaryEmbedding", "Cos", "Sin"} & {*operators(after)}
    assert {"rotary.cos", "rotary.sin"} <= {*after.graph.initializers}
    for one, other in zip(run(after, *request), run(before, *request), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"head": 8},
        {"head": 24},
        {"head": 16, "angles": 4},
        {"by_length": True},
        {"keys_too": False},
        {"read_twice": True},
    ],
    ids=str,
)
def test_what_the_operator_or_a_table_cannot_do_stays(how):
    model = attention(**how)
    before = operators(model)
    assert operators(rotary.run(model, CONTEXT)) == before
    assert not [name for name in model.graph.initializers if "rotary" in name]


def test_it_is_for_engines_whose_attention_has_a_table():
    model = rotary.run(attention(), PassContext(CONTEXT.signature))
    assert "RotaryEmbedding" in operators(model)


def test_a_table_that_is_large_beside_the_weights_is_not_made(monkeypatch):
    monkeypatch.setattr(rotary, "_ALWAYS", 1000)
    assert "RotaryEmbedding" in operators(rotary.run(attention(), CONTEXT))
    monkeypatch.setattr(rotary, "_SHARE", 0.1)
    assert "RotaryEmbedding" not in operators(rotary.run(attention(), CONTEXT))
