"""The base model with its frozen prompt, as a module whose inputs and outputs are declared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

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
from ptdeploy.bundle.task import TensorSpec


@dataclass(frozen=True)
class Lowered:
    """What a model's attention is traced as: inside `traced`, in an ONNX of at least `opset`.

    `name` says what that is.
    """

    name: str
    traced: Callable[[], AbstractContextManager[None]]
    opset: int


@dataclass(frozen=True)
class Program:
    """A traceable module with its signature; its inputs are positional and in that order.

    `lowered` says how its attention is traced, None for the model's own arithmetic.
    """

    module: nn.Module = field(repr=False)
    signature: Signature
    lowered: Lowered | None = field(repr=False, default=None)

    @property
    def architecture(self) -> str:
        """The model's, in transformers' word."""
        return str(self.module.model.config.model_type)  # type: ignore[union-attr]

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
