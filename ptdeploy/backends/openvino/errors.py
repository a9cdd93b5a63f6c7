"""What OpenVINO raises, in one line and as the error that it is."""

from __future__ import annotations

import re

from ptdeploy.errors import EngineFault, OutOfMemory
from ptdeploy.memory import out_of_memory, ran_out_of_memory

# Where in its sources it was raised; of a check that failed, its C++ too.
_PLACE = re.compile(r"(?:Exception from|Check '.*' failed at) \S+:\d+:?")
_FRONTEND = re.compile(r"FrontEnd API failed with \w+:")
_NODE = re.compile(r"\[CPU\] (\w+) node with name '([^']*)'")
_UNCONVERTED = re.compile(r"No conversion rule found for operations: (.*)")
_FAILED = re.compile(r"Conversion is failed for: (.*)")
_NONE = ("", "Summary:", "Model wasn't fully converted.")


def reason(error: Exception) -> str:
    """What it says without its sources' places, the operator and its module before it."""
    text = str(error)
    unknown = _UNCONVERTED.search(text)
    if unknown is not None:
        return f"it has no operators {unknown[1].strip()}"
    failed = _FAILED.search(text)
    if failed is not None:
        return f"it cannot convert {failed[1].strip()}"
    node = _NODE.search(text)
    plain = _FRONTEND.sub("", _PLACE.sub("", _NODE.sub("", text)))
    lines = [line.strip() for line in plain.splitlines() if line.strip() not in _NONE]
    words = (lines[0] if lines else type(error).__name__).rstrip(".:")
    if node is None:
        return words
    module = node[2].rpartition("/")[0]
    return f"{node[1]}{f' at {module}' if module else ''}: {words}"


def lacks_kernel(error: Exception) -> bool:
    """Whether that error is an operator that OpenVINO does not have."""
    return type(error).__name__ == "OpConversionFailure"


def run_error(error: Exception) -> EngineFault | OutOfMemory:
    """What a run that failed is: memory that ran out, or a fault of the engine."""
    if ran_out_of_memory(error):
        return out_of_memory(
            "the request does not fit", error, "Send fewer rows at once, or fewer tokens."
        )
    return EngineFault(f"OpenVINO failed ({reason(error)}).")
