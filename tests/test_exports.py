"""Graphs that tests share are the ones torch would export: of the same weights and settings."""

from __future__ import annotations

import os
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from support.exports import TO_ONNX, kept_exports, shape_of, shared_export
from support.shared import Shared
from torch import nn

from ptdeploy.bundle import RequestLimits
from ptdeploy.bundle.signature import BATCH, Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.program.program import Program

X, Y = (
    TensorSpec(name, role, "float32", (BATCH, 4), "")
    for name, role in (("x", "ids"), ("y", "logits"))
)
SIGNATURE = Signature((X,), (Y,))
LIMITS = RequestLimits(64, 101, None, max_sequence=64)


class Scaled(nn.Module):
    """Weights, a setting, and a shift: a buffer or, with `loose`, a tensor made of the weights."""

    def __init__(self, seed: int, scale: float = 2.0, loose: bool = False) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 4, generator=random))
        self.register_buffer("shift", torch.randn(4, generator=random))
        self.scale = scale
        made = 1 + self.weight[0].detach()
        self.given = (lambda: made) if loose else (lambda: self.shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight * self.scale + self.given()


def program(module: nn.Module) -> Program:
    return Program(module, SIGNATURE)


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.fixture
def export(tmp_path):
    """`export(module)` gives its shared graph; `export.anew` are the modules that were exported."""
    shared, anew = Shared(tmp_path / "shared"), []

    def exporter(one: Program, limits: RequestLimits, opset: int | None) -> ir.Model:
        anew.append(one.module)
        return TO_ONNX(one, limits, opset)

    def get(module: nn.Module) -> bytes:
        return content(shared_export(shared, program(module), LIMITS, None, exporter))

    get.anew = anew
    return get


def alone(module: nn.Module) -> bytes:
    return content(TO_ONNX(program(module), LIMITS))


def test_a_graph_is_exported_once_and_holds_each_ones_weights(export):
    one, other = Scaled(1), Scaled(2)
    graphs = [export(one), export(other), export(one)]
    assert export.anew == [one]
    assert graphs == [alone(one), alone(other), alone(one)]
    assert graphs[0] != graphs[1]


def test_what_was_made_of_weights_is_not_given_to_other_weights(export):
    one, other = Scaled(1, loose=True), Scaled(2, loose=True)
    graphs = [export(one), export(other), export(one), export(other)]
    assert export.anew == [one, other]
    assert graphs == [alone(one), alone(other)] * 2


def other_scale(module: Scaled) -> None:
    module.scale = 3.0


def other_type(module: Scaled) -> None:
    module.half()


def tied(module: Scaled) -> None:
    module.also = module.weight


def more(module: Scaled) -> None:
    module.register_buffer("more", torch.zeros(4))


def other_forward(module: Scaled) -> None:
    module.forward = lambda x: x


@pytest.mark.parametrize("change", [other_scale, other_type, tied, more, other_forward])
def test_another_setting_or_shape_is_another_graph(change: Callable[[Scaled], None]):
    module = Scaled(1)
    before = shape_of(program(module), None)
    assert shape_of(program(Scaled(2)), None) == before
    assert shape_of(program(module), 23) != before
    change(module)
    assert shape_of(program(module), None) != before


def test_graphs_are_kept_while_our_code_is_the_same_and_dropped_when_unused(tmp_path, monkeypatch):
    kept, code, made = tmp_path / "kept", tmp_path / "code", []
    (code / "program").mkdir(parents=True)
    monkeypatch.setattr("support.exports._PACKAGE", code)

    def ask() -> None:
        kept_exports(kept).folder("one", made.append)

    ask()
    ask()
    assert len(made) == 1
    (code / "program" / "new.py").write_text("")
    ask()
    assert len(made) == 2
    for folder in kept.iterdir():
        os.utime(folder, (0, 0))
    # Listed, and gone when it is looked at, as where another test process drops it.
    (kept / "gone").symlink_to("nowhere")
    ask()
    (kept / "gone").unlink()
    assert [one.name for one in kept.iterdir()] == [made[1].parent.name]
