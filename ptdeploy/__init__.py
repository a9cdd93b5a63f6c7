"""ptdeploy: compile language models with trained prompts, prove them equal, run them without torch.

This is the whole public API. A name is imported when it is first asked for: nothing heavy before it
is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptdeploy.api import (
        compile,
        compile_prompt,
        convert,
        diff,
        inspect,
        load,
        profile,
        prompt_add,
        prompt_default,
        prompt_list,
        prompt_remove,
        rebuild,
        verify,
    )
    from ptdeploy.bundle import Bundle, Pack, PromptInfo
    from ptdeploy.bundle.quantization import QuantizationOptions
    from ptdeploy.bundle.task import Task
    from ptdeploy.commands.convert import Converted
    from ptdeploy.commands.diff import Difference
    from ptdeploy.commands.profile import Profile
    from ptdeploy.errors import (
        BaseModelError,
        BundleError,
        CheckpointError,
        EngineFault,
        InputError,
        NoSuchMethod,
        OutOfMemory,
        OutputError,
        ParityError,
        PtdeployError,
        TargetUnavailable,
    )
    from ptdeploy.parity.report import ParityReport
    from ptdeploy.progress import Progress
    from ptdeploy.runtime import CausalLM, Classifier, Engine, TokenClassifier
    from ptdeploy.runtime.conversation import Conversation
    from ptdeploy.runtime.generation import Generated
    from ptdeploy.runtime.prompt_choice import Default
    from ptdeploy.source.checkpoint import load_full, save_full
    from ptdeploy.targets.openvino_options import OpenVinoOptions
    from ptdeploy.targets.options import TargetOptions
    from ptdeploy.targets.trt.options import TrtOptions

__version__ = "0.1.0"
_FROM = {
    "api": (
        "compile",
        "compile_prompt",
        "convert",
        "diff",
        "inspect",
        "load",
        "profile",
        "prompt_add",
        "prompt_default",
        "prompt_list",
        "prompt_remove",
        "rebuild",
        "verify",
    ),
    "bundle": ("Bundle", "Pack", "PromptInfo"),
    "bundle.quantization": ("QuantizationOptions",),
    "bundle.task": ("Task",),
    "commands.convert": ("Converted",),
    "commands.diff": ("Difference",),
    "commands.profile": ("Profile",),
    "errors": (
        "BaseModelError",
        "BundleError",
        "CheckpointError",
        "EngineFault",
        "InputError",
        "NoSuchMethod",
        "OutOfMemory",
        "OutputError",
        "ParityError",
        "PtdeployError",
        "TargetUnavailable",
    ),
    "parity.report": ("ParityReport",),
    "progress": ("Progress",),
    "runtime": ("CausalLM", "Classifier", "Engine", "TokenClassifier"),
    "runtime.conversation": ("Conversation",),
    "runtime.generation": ("Generated",),
    "runtime.prompt_choice": ("Default",),
    "source.checkpoint": ("load_full", "save_full"),
    "targets.openvino_options": ("OpenVinoOptions",),
    "targets.options": ("TargetOptions",),
    "targets.trt.options": ("TrtOptions",),
}
_MODULES = {name: f"ptdeploy.{module}" for module, names in _FROM.items() for name in names}
__all__ = [
    "BaseModelError",
    "Bundle",
    "BundleError",
    "CausalLM",
    "CheckpointError",
    "Classifier",
    "Conversation",
    "Converted",
    "Default",
    "Difference",
    "Engine",
    "EngineFault",
    "Generated",
    "InputError",
    "NoSuchMethod",
    "OpenVinoOptions",
    "OutOfMemory",
    "OutputError",
    "Pack",
    "ParityError",
    "ParityReport",
    "Profile",
    "Progress",
    "PromptInfo",
    "PtdeployError",
    "QuantizationOptions",
    "TargetOptions",
    "TargetUnavailable",
    "Task",
    "TokenClassifier",
    "TrtOptions",
    "compile",
    "compile_prompt",
    "convert",
    "diff",
    "inspect",
    "load",
    "load_full",
    "profile",
    "prompt_add",
    "prompt_default",
    "prompt_list",
    "prompt_remove",
    "rebuild",
    "save_full",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'ptdeploy' has no attribute {name!r}")
    found = getattr(importlib.import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
