"""Encoders: ptdeploy's engines, and what runs beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from worker import Encoder

# A peer takes no virtual tokens: its rows are that many tokens longer.
_VIRTUAL = 20


class Ptdeploy(Encoder):
    """A bundle through its public API."""

    def __init__(self, path: Path, threads: int) -> None:
        import ptdeploy

        self._engine: Any = ptdeploy.load(path, threads=threads)

    def run(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self._engine.logits(ids.tolist()))


class OpenvinoOverOurs(Encoder):
    """OpenVINO alone over a bundle's graph, fed what ptdeploy feeds it."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        import ptdeploy

        # It only makes the inputs.
        self._engine: Any = ptdeploy.load(path, threads=1)
        self._request = (
            openvino.Core()
            .compile_model(path / "model.onnx", "CPU", _openvino(threads))
            .create_infer_request()
        )
        self._fed: dict[tuple[int, ...], Any] = {}

    def run(self, ids: np.ndarray) -> np.ndarray:
        if ids.shape not in self._fed:
            rows = list(ids)
            fed = self._engine.feed(rows, [np.zeros_like(row) for row in rows], 0)
            self._fed[ids.shape] = fed.feed
        self._request.infer(self._fed[ids.shape], share_inputs=True)
        return np.asarray(self._request.get_tensor("logits").data)


class PlainOpenvino(Encoder):
    """OpenVINO over a plain export of the base model."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        model = openvino.Core().compile_model(path, "CPU", _openvino(threads))
        self._request = model.create_infer_request()

    def run(self, ids: np.ndarray) -> np.ndarray:
        self._request.infer(_plain(ids), share_inputs=True)
        return np.asarray(self._request.get_tensor("logits").data)


class PlainOnnxruntime(Encoder):
    """ONNX Runtime over a plain export of the base model."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, _plain(ids))[0])


def _openvino(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _plain(ids: np.ndarray) -> dict[str, np.ndarray]:
    longer = np.concatenate([np.full((len(ids), _VIRTUAL), 5), ids], axis=1)
    return {"input_ids": longer, "attention_mask": np.ones_like(longer)}


KINDS: dict[str, type[Encoder]] = {
    "encoder": Ptdeploy,
    "OpenVINO on our graph": OpenvinoOverOurs,
    "OpenVINO, plain export": PlainOpenvino,
    "ONNX Runtime, plain export": PlainOnnxruntime,
}
