"""What torch's exporter is asked to leave out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import config

from ptdeploy.program.export import _without_stack_traces


class _Doubled(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2


def _traced() -> dict[str, bool]:
    """The operations of a traced program, and whether torch noted the lines that called each."""
    program = torch.export.export(_Doubled().eval(), (torch.randn(3),))
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return {str(node.target): bool(node.stack_trace) for node in nodes}


@pytest.mark.skipif(
    not hasattr(config, "do_not_emit_stack_traces"), reason="this torch always notes lines"
)
def test_a_program_is_traced_alike_without_the_lines_of_its_code():
    assert _traced() == {"aten.mul.Tensor": True}
    with _without_stack_traces():
        assert _traced() == {"aten.mul.Tensor": False}


def test_torch_notes_lines_as_before_after_a_block_that_failed():
    before = vars(config).copy()

    def fail() -> None:
        with _without_stack_traces():
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert vars(config) == before


def test_a_torch_without_the_switch_is_left_alone(monkeypatch):
    monkeypatch.delattr(config, "do_not_emit_stack_traces", raising=False)
    before = vars(config).copy()
    with _without_stack_traces():
        assert vars(config) == before
