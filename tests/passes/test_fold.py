"""Constants are folded as onnxscript does, by the shapes that a traced graph says already."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript.optimizer import _constant_folding
from support.graphs import NOTHING, given_rows, graph, random, run, weight
from torch import nn

from ptdeploy.passes import PassContext, fold

CONTEXT = PassContext(NOTHING)
FOLDING = _constant_folding.FoldConstantsPass


class _Shaped(nn.Module):
    """Constants of the trace, shapes that are computed, a broadcast, a product and a reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = rows.shape
        places = torch.arange(length)[None].expand(batch, length)
        hidden = self.linear(rows).reshape(batch, length, 2, 4).transpose(1, 2)
        seen = (places[:, None, :] <= places[:, :, None]) & mask[:, None, :]
        scores = (hidden @ hidden.transpose(2, 3)).masked_fill(~seen[:, None], -9.0)
        return (scores.softmax(-1) @ hidden).mean(1) * (torch.ones(4) + 1)


@pytest.fixture(scope="module")
def traced() -> bytes:
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        _Shaped().eval(),
        (torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)),
        dynamo=True,
        dynamic_shapes=(dynamic, dynamic),
        verbose=False,
        optimize=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@pytest.fixture
def inferred(monkeypatch) -> list[str]:
    """The nodes whose types and shapes onnxscript worked out."""
    names: list[str] = []
    theirs = FOLDING._do_inference

    def recorded(folded: object, node: ir.Node) -> None:
        names.append(node.op_type)
        theirs(folded, node)

    monkeypatch.setattr(FOLDING, "_do_inference", recorded)
    return names


def _folded(model: bytes) -> bytes:
    after = fold.run(ir.from_proto(onnx.ModelProto.FromString(model)), CONTEXT)
    return ir.to_proto(after).SerializeToString(deterministic=True)


def test_a_traced_graph_is_folded_alike_and_inferred_only_where_it_says_nothing(
    traced, inferred, monkeypatch
):
    ours = _folded(traced)
    some = len(inferred)
    inferred.clear()
    monkeypatch.setattr(fold, "_known_shapes_kept", nullcontext)
    assert _folded(traced) == ours
    assert len(inferred) > 2 * some
    assert len(onnx.ModelProto.FromString(ours).graph.node) < len(
        onnx.ModelProto.FromString(traced).graph.node
    )


def test_a_value_without_a_shape_gets_one(inferred):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))
    doubled = ir.node("Add", [x, x])
    folded = fold.run(graph(doubled, inputs=[x], weights={}), CONTEXT)
    assert inferred
    (node,) = folded.graph
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    assert node.outputs[0].shape == ir.Shape(["n", 4])


def test_onnxscript_infers_as_before_after_a_block_that_failed():
    before = FOLDING._do_inference

    def fail() -> None:
        with fold._known_shapes_kept():
            assert FOLDING._do_inference is not before
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert FOLDING._do_inference is before


def test_a_weight_that_is_read_in_another_shape_is_stored_in_it(tmp_path):
    """Too large for onnxscript to fold; a product must find its matrix."""
    x, experts = given_rows(64), weight("experts", random(4, 96, 64))
    shape, perm = weight("shape", np.array([-1, 64])), {"perm": [1, 0]}
    one = ir.node("Reshape", [experts, shape], attributes={"allowzero": 1})
    turned = ir.node("Transpose", one.outputs, attributes=perm)
    product = ir.node("MatMul", [x, turned.outputs[0]])
    model = graph(one, turned, product, inputs=[x], weights={"experts": experts, "shape": shape})
    wanted = random(3, 64, seed=1) @ random(4, 96, 64).reshape(-1, 64).T
    model = fold.run(model, CONTEXT)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]
    assert list(model.graph.initializers) == ["experts.reshaped"]
    np.testing.assert_allclose(run(model, tmp_path, x=random(3, 64, seed=1)), wanted, atol=1e-3)
