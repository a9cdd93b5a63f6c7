"""The program of a task on a base model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ptdeploy.bundle import Graph
from ptdeploy.bundle.task import Operators, Task
from ptdeploy.program.kinds import BuildOptions
from ptdeploy.program.program import Program
from ptdeploy.program.prompt import Prompt
from ptdeploy.source.base import BaseModel
from ptdeploy.targets import Attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_program(
    task: Task,
    model: PreTrainedModel,
    base: BaseModel,
    prompt: Prompt,
    freeze_kv: bool = True,
    operators: Operators | None = "onnxruntime",
    refuses: Callable[[Attention], str] = lambda _: "",
) -> tuple[Program, Graph]:
    """The base model's program. Arguments are those of `BuildOptions`."""
    return base.kind.build(model, base, prompt, BuildOptions(freeze_kv, operators, refuses))


def needs_prefix_kv(task: Task, base: BaseModel) -> bool:
    """Whether the program starts from the prompt's prefix KV: every causal decoder does."""
    return base.kind.needs_prefix_kv
