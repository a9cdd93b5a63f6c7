"""Casts that the trace says are needed are those that torch finds by running the program again."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.onnx._internal.fx.passes import type_promotion

from ptdeploy.program.promotion import promoted_by_trace

INTERPRETER = type_promotion._TypePromotionInterpreter


class _Mixed(nn.Module):
    """Operations whose inputs are of one type, of several, or numbers."""

    def forward(self, floats: torch.Tensor, ints: torch.Tensor) -> torch.Tensor:
        halves = floats.half()
        sums = floats + ints + 1
        chosen = torch.where(ints > 2, halves * 3, floats)
        return sums / ints + chosen * halves + torch.add(ints, ints, alpha=2).sqrt()


def _exported() -> bytes:
    dynamic = {0: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        _Mixed().eval(),
        (torch.randn(3, 4), torch.arange(12).reshape(3, 4)),
        dynamo=True,
        dynamic_shapes=(dynamic, dynamic),
        verbose=False,
        optimize=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


@pytest.fixture
def run_again(monkeypatch) -> list[fx.Node]:
    """The operations that torch ran while it promoted types."""
    nodes: list[fx.Node] = []

    def recorded(interpreter: fx.Interpreter, target, args, kwargs):
        nodes.append(target)
        return fx.Interpreter.call_function(interpreter, target, args, kwargs)

    monkeypatch.setattr(INTERPRETER, "call_function", recorded, raising=False)
    return nodes


def test_a_program_of_many_types_is_exported_alike_and_run_only_where_it_is_cast(run_again):
    wanted = _exported()
    whole = len(run_again)
    run_again.clear()
    with promoted_by_trace():
        assert _exported() == wanted
    assert 0 < len(run_again) < whole


def test_a_program_of_one_type_is_not_run_again(run_again):
    module = nn.ReLU().eval()
    with promoted_by_trace():
        torch.onnx.export(module, (torch.randn(3),), dynamo=True, verbose=False, optimize=False)
    assert not run_again


def test_torch_promotes_as_before_after_a_block_that_failed():
    before = INTERPRETER.run_node

    def fail() -> None:
        with promoted_by_trace():
            assert INTERPRETER.run_node is not before
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert INTERPRETER.run_node is before


def test_a_torch_of_other_insides_exports_as_it_does(monkeypatch):
    wanted = _exported()
    monkeypatch.delattr(type_promotion, "get_type_promotion_rule")
    before = INTERPRETER.run_node
    with promoted_by_trace():
        assert INTERPRETER.run_node is before
    monkeypatch.undo()
    assert _exported() == wanted
