"""The base model with its frozen prompt, as a module whose inputs and outputs are declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from ptdeploy.bundle.signature import (
    BATCH,
    CLASSES,
    KEPT,
    PREFIX,
    PREFIXES,
    PROMPTS,
    SEQUENCE,
    SLOTS,
    VIRTUAL,
    Signature,
)
from ptdeploy.bundle.task import Operators, TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lowered:
    """A model, and the operators that its attention is traced as."""

    model: PreTrainedModel
    operators: Operators


@dataclass(frozen=True)
class Program:
    """A traceable module with its signature; its inputs are positional and in that order.

    `lowered` is the model whose attention updates the buffer in place while the module is traced.
    """

    module: nn.Module = field(repr=False)
    signature: Signature
    lowered: Lowered | None = field(repr=False, default=None)

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Small inputs of the declared shapes, every axis larger than one."""
        return examples(self.signature.inputs)


def examples(inputs: tuple[TensorSpec, ...]) -> tuple[torch.Tensor, ...]:
    """Small inputs of the given shapes: ones, every axis larger than one."""
    # Every one another, so that the tracer takes none of them for one and the same.
    sizes = {BATCH: 2, SEQUENCE: 5, SLOTS: 11, KEPT: 3}
    sizes |= {VIRTUAL: 7, PROMPTS: 4, CLASSES: 6, PREFIXES: 512, PREFIX: 9}
    shapes = [[sizes[a] if isinstance(a, str) else a for a in spec.shape] for spec in inputs]
    return tuple(
        torch.ones(shape, dtype=getattr(torch, spec.dtype))
        for shape, spec in zip(shapes, inputs, strict=True)
    )
