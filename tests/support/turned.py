"""Attention over a KV buffer, its queries and keys turned by their positions: small graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from hypothesis import strategies as st
from support.graphs import random

from ptdeploy.bundle.signature import OFFSETS, Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.runtime.joined import offsets_of

POSITIONS, HEADS, KV_HEADS = 48, 4, 2
SIGNATURE = Signature(
    (
        TensorSpec("ids", "ids", "int64", ("batch", "sequence"), ""),
        TensorSpec("lengths", "lengths", "int64", ("batch",), ""),
    ),
    (),
)
JOINING = Signature((*SIGNATURE.inputs, TensorSpec("offsets", "offsets", "int64", OFFSETS, "")), ())
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

    def linear(self, x: ir.Value, width: int, seed: int, bias: bool) -> Any:
        product = self.do("MatMul", x, self.of(random(8, width, seed=seed)))
        return self.do("Add", product, self.of(random(width, seed=seed))) if bias else product

    def angles(self, lengths: ir.Value, places: ir.Value, width: int, by_length: bool) -> ir.Value:
        """Those of each token, (batch, sequence, width), by its place behind the past."""
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
    joins: bool = False,
    turns: bool = True,
    biases: tuple[bool, bool, bool] = (False, False, False),
    **how: Any,
) -> ir.Model:
    """`layers` attentions over x, whose queries and keys are turned by the tokens' positions.

    `by_length` has the angles depend on how many tokens there are. With `joins` a token's place
    behind the past is an input. `how` are further attributes of the attention.
    """
    ids = ir.Value(name="ids", type=INT64, shape=ir.Shape(["batch", "sequence"]))
    lengths = ir.Value(name="lengths", type=INT64, shape=ir.Shape(["batch"]))
    x = ir.Value(name="x", type=FLOAT32, shape=ir.Shape(["batch", "sequence", 8]))
    buffer = ir.Shape(["batch", KV_HEADS, "slots", head])
    pasts = [ir.Value(name=f"past.{i}", type=FLOAT32, shape=buffer) for i in range(2 * layers)]
    draft = Draft()
    do, of = draft.do, draft.of
    new = do("Squeeze", do("Shape", ids, start=1, end=2))
    offsets = ir.Value(name="offsets", type=INT64, shape=ir.Shape(OFFSETS))
    places = do("Range", of(0), new, of(1))
    if joins:
        place, *hidden = (do("Gather", offsets, of(part)) for part in range(3))
        places = do("Sub", do("Sub", place, hidden[0]), hidden[1])
    turned = draft.angles(lengths, places, head // 2 if angles is None else angles, by_length)
    cos, sin = do("Cos", turned), do("Sin", turned)
    last = do("Cast", do("Sub", do("Add", lengths, new), of(1)), to=6)
    filled = do("Cast", do("Add", do("ReduceMax", lengths, keepdims=0), new), to=6)
    part = {} if angles is None else {"rotary_embedding_dim": 2 * angles}
    how = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, **how}
    outputs: list[ir.Value] = []
    for layer in range(layers):
        q, k, v = (
            draft.linear(x, count * head, layer + place, biases[place])
            for place, count in enumerate((HEADS, KV_HEADS, KV_HEADS))
        )
        if turns:
            q = do("RotaryEmbedding", q, cos, sin, num_heads=HEADS, **part)
        if turns and keys_too:
            k = do("RotaryEmbedding", k, cos, sin, num_heads=KV_HEADS, **part)
        given = (q, k, v, *pasts[2 * layer : 2 * layer + 2], last, filled)
        outputs += do("GroupQueryAttention", *given, outputs=3, domain="com.microsoft", **how)
        outputs += [do("Neg", q)] if read_twice else []
    for output in outputs:
        output.type = FLOAT32
    opsets = {"": 23, "com.microsoft": 1}
    graph = ir.Graph(
        [ids, lengths, *([offsets] if joins else []), x, *pasts],
        outputs,
        nodes=draft.nodes,
        initializers=draft.constants,
        opset_imports=opsets,
        name="test",
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, lengths: list[int], new: int, **given: np.ndarray) -> list[np.ndarray]:
    """What a graph gives for rows of `new` tokens behind pasts; `given` are inputs of another."""
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = len(lengths)
    feed = {
        "ids": np.zeros((rows, new), np.int64),
        "lengths": np.array(lengths, np.int64),
        "x": random(rows, new, 8, seed=3),
    }
    names = [str(one.name) for one in model.graph.inputs]
    if "offsets" in names:
        feed["offsets"] = offsets_of([new])
    for place, one in enumerate(model.graph.inputs[-len(names) + names.index("x") + 1 :]):
        feed[str(one.name)] = random(rows, KV_HEADS, POSITIONS, one.shape[3], seed=place)
    return session.run(None, {**feed, **given})


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# ONNX Runtime's operator takes several tokens behind a past for one row only.
REQUESTS = st.one_of(
    st.tuples(st.lists(st.integers(0, POSITIONS - 1), min_size=1, max_size=3), st.just(1)),
    st.tuples(st.integers(0, POSITIONS - 9).map(lambda n: [n]), st.integers(1, 9)),
    st.tuples(st.integers(1, 3).map(lambda rows: [0] * rows), st.integers(1, POSITIONS)),
)
