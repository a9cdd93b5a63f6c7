"""Other software's telemetry: off unless the user asked for it."""

from __future__ import annotations

import os
import sys
from typing import Any

# Each is read once, when its library is loaded. hf_xet goes by huggingface_hub's.
_OFF = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off() -> None:
    """Switch off what libraries report of their use; a variable that is set already stays.

    `ORT_DISABLE_TELEMETRY=0` allows ONNX Runtime's, `HF_HUB_DISABLE_TELEMETRY=0` that of Hugging
    Face's libraries. What was imported before has read its variable already.
    """
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)


def import_onnxruntime() -> Any:
    """The module onnxruntime, which writes no device id and looks up no host when it is loaded.

    Its own `disable_telemetry_events()` comes too late for both. Raises ImportError.
    """
    switch_off()
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """The module openvino, whose import would otherwise report to its makers and keep a client id.

    There is no variable for it: it goes by a file in the user's home, and where that is missing it
    reports. It has a stand-in of its own for when the package openvino-telemetry is not there, and
    finds none here. Raises ImportError.
    """
    name = "openvino_telemetry"
    absent = name not in sys.modules and "openvino" not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if absent:
            sys.modules.pop(name, None)  # of two threads the other may have done it
    return openvino
