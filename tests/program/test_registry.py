"""torch's table of translations to ONNX is made once and is what torch makes of it."""

from __future__ import annotations

import pytest
import torch
from onnxscript._internal.values import TracedOnnxFunction
from torch import nn
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.exporter._registration import ONNXRegistry

from ptdeploy.program import registry
from ptdeploy.program.registry import one_registry


@pytest.fixture(autouse=True)
def _made_anew(monkeypatch):
    monkeypatch.setattr(registry, "_made", {})


@pytest.fixture
def read(monkeypatch) -> list[TracedOnnxFunction]:
    """The functions whose source was read."""
    functions = []
    theirs = TracedOnnxFunction.function_ir.fget
    assert theirs is not None

    def recorded(function):
        functions.append(function)
        return theirs(function)

    monkeypatch.setattr(TracedOnnxFunction, "function_ir", property(recorded))
    return functions


def _of(made: ONNXRegistry) -> dict[object, list[tuple[object, ...]]]:
    return {
        target: [(one.onnx_function, str(one.signature), one.is_complex) for one in found]
        for target, found in made.functions.items()
    }


@pytest.mark.parametrize("opset", [18, 20])
def test_it_is_torchs_own_and_no_source_was_read(opset, read):
    wanted = ONNXRegistry.from_torchlib(opset_version=opset)
    assert read
    read.clear()
    with one_registry():
        made = ONNXRegistry.from_torchlib(opset_version=opset)
    assert not read
    assert made.opset_version == wanted.opset_version == opset
    assert len(made.functions) > 400
    assert _of(made) == _of(wanted)


def test_what_one_export_registers_is_not_in_the_next():
    with one_registry():
        first = ONNXRegistry.from_torchlib(opset_version=20)
        before = len(first.get_decomps(torch.ops.aten.relu.default))
        first.register_op(torch.ops.aten.relu.default, lambda x: x)
        second = ONNXRegistry.from_torchlib(opset_version=20)
    assert len(first.get_decomps(torch.ops.aten.relu.default)) == before + 1
    assert len(second.get_decomps(torch.ops.aten.relu.default)) == before


def test_a_second_export_makes_none(monkeypatch):
    asked = []
    theirs = _registration.onnxscript_apis.get_torchlib_ops

    def recorded():
        asked.append(1)
        return theirs()

    monkeypatch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", recorded)
    with one_registry():
        for _ in range(2):
            torch.onnx.export(nn.ReLU().eval(), (torch.randn(3),), dynamo=True, verbose=False)
    assert len(asked) == 1


def test_torch_makes_its_own_after_a_block_that_failed():
    before = ONNXRegistry.__dict__["from_torchlib"], TracedOnnxFunction.__dict__["function_ir"]

    def fail() -> None:
        with one_registry():
            assert ONNXRegistry.__dict__["from_torchlib"] is not before[0]
            ONNXRegistry.from_torchlib()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    now = ONNXRegistry.__dict__["from_torchlib"], TracedOnnxFunction.__dict__["function_ir"]
    assert now == before


def test_a_torch_of_other_insides_makes_its_own(monkeypatch):
    theirs = staticmethod(lambda: "another")
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", theirs)
    with one_registry():
        assert ONNXRegistry.from_torchlib() == "another"
    monkeypatch.undo()
    monkeypatch.setattr(TracedOnnxFunction, "function_ir", None)
    with one_registry(), pytest.raises(AttributeError):
        ONNXRegistry.from_torchlib()
