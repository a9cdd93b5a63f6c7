"""What ONNX Runtime raises, in one line and as the error that it is."""

from __future__ import annotations

import re

from ptdeploy.errors import EngineFault, OutOfMemory
from ptdeploy.memory import out_of_memory, ran_out_of_memory

_NODE = re.compile(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)")


def reason(error: Exception) -> str:
    """Its first line, the operator and its module before what the operator says."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    found = _NODE.search(line)
    if found is None:
        return line.rstrip(".")
    operator, name, words = found[1], found[2], found[3]
    module = name.removesuffix(f"/{operator}")
    return f"{operator}{f' at {module}' if module else ''}: {words.strip().rstrip('.')}"


def lacks_kernel(why: str) -> bool:
    """Whether that reason is an operator that it has no kernel for, in that type."""
    return "find an implementation" in why


def run_error(error: Exception, device: str) -> EngineFault | OutOfMemory:
    """What a run on `device` that failed is: memory that ran out, or a fault of the engine."""
    if ran_out_of_memory(error):
        fix = "Send fewer rows at once, or fewer tokens."
        return out_of_memory("the request does not fit", error, fix, device)
    return EngineFault(f"ONNX Runtime failed ({reason(error)}).")
