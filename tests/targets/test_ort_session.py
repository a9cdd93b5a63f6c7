"""ONNX Runtime's session on a GPU, by a binding that copies as its own does there."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from support.damage import replace

import ptdeploy
from ptdeploy.backends.ort import open as open_
from ptdeploy.backends.ort.open import providers
from ptdeploy.backends.ort.session import OrtSession
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.errors import BundleError


def seen_by(pointer: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    held = (ctypes.c_byte * size).from_address(pointer)
    return np.frombuffer(held, dtype).reshape(shape)


class Binding:
    """Host inputs are copied when they are bound, host outputs written when the session ran."""

    def __init__(self) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}

    def bind_input(self, name, device, index, dtype, shape, pointer):
        assert device == "cpu"
        self.inputs[name] = seen_by(pointer, shape, dtype).copy()

    def bind_output(self, name, device, index, dtype, shape, pointer):
        assert device == "cpu"
        self.outputs[name] = seen_by(pointer, shape, dtype)


class Doubling:
    def io_binding(self) -> Binding:
        return Binding()

    def get_outputs(self):
        return [SimpleNamespace(name="y")]

    def run_with_iobinding(self, binding: Binding) -> None:
        binding.outputs["y"][...] = 2 * binding.inputs["x"]


def test_a_step_on_a_gpu_sees_what_its_host_arrays_hold_when_it_runs():
    given, got = np.zeros(3, np.int64), np.zeros(3, np.int64)
    step = OrtSession(Doubling(), "cuda").bind({"x": given}, {"y": got})
    for value in (5, 7):
        given[:] = value
        step()
        assert got.tolist() == [2 * value] * 3


def test_no_session_computes_float32_in_tf32():
    """ONNX Runtime does where it is not told."""
    assert providers("cuda") == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    package = Path(ptdeploy.__file__).parent
    code = "".join(file.read_text() for file in sorted(package.rglob("*.py")))
    assert code.count("InferenceSession(") == code.count("providers=providers(") > 3
    assert code.count("enable_fallback=") == code.count("providers=providers(")


def test_a_graph_that_does_not_load_is_tried_once(compiled, tmp_path, capsys):
    """ONNX Runtime's Python prints on stdout that it falls back, and tries the same again."""
    bundle = shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    replace(bundle, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        ptdeploy.load(bundle)
    assert capsys.readouterr().out == ""


class Failing:
    """onnxruntime of a machine whose CUDA does not start; `sound` says whether a CPU opens all."""

    def __init__(self, monkeypatch, sound: bool) -> None:
        self._module, self._sound = import_onnxruntime(), sound
        monkeypatch.setattr(open_, "import_onnxruntime", lambda: self)

    def __getattr__(self, name: str):
        return getattr(self._module, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, *_, providers, enable_fallback=True, **__):
        if enable_fallback:
            print("EP Error")
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        if not self._sound:
            raise RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : It is cut")


def test_cuda_that_does_not_start_says_so_and_prints_nothing(compiled, monkeypatch, capsys):
    bundle = compiled("bert", "SEQ_CLS").bundle
    Failing(monkeypatch, sound=True)
    with pytest.raises(ptdeploy.TargetUnavailable, match="did not start") as refused:
        ptdeploy.load(bundle, device="cuda")
    assert "(CUDA failure 100: no CUDA-capable device is detected)" in refused.value.problem
    Failing(monkeypatch, sound=False)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        ptdeploy.load(bundle, device="cuda")
    assert capsys.readouterr().out == ""
