"""The head that was trained with a prompt: its parameters become inputs, a row's own by its prompt.

So one graph serves prompts with different heads, and a batch may mix them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ptdeploy.bundle.signature import BATCH, CLASSES, PROMPTS
from ptdeploy.bundle.task import TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "head."


@dataclass
class _Given:
    """What a trace in progress was given: each row's prompt, (batch,), and the parameters of all
    prompts, (prompts, ...), by their names in the model."""

    rows: torch.Tensor | None = None
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def of_rows(self, name: str) -> torch.Tensor:
        """A parameter for each row: (batch, ...)."""
        return self.parameters[name][self.rows]


class RowLinear(nn.Module):
    """A Linear whose weight and bias are of each row's own prompt.

    A large weight is not copied for each row: every prompt's product is computed, and the row's own
    one taken, which costs little beside the model as long as prompts are few.
    """

    def __init__(self, path: str, given: _Given, has_bias: bool, is_output: bool) -> None:
        super().__init__()
        self.path, self.given, self.has_bias, self.is_output = path, given, has_bias, is_output

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, [sequence,] width) to (batch, [sequence,] out)."""
        weight, bias = f"{self.path}.weight", f"{self.path}.bias"
        rows = hidden if hidden.dim() == 3 else hidden[:, None]
        if self.is_output:
            product = rows @ self.given.of_rows(weight).transpose(1, 2)
        else:
            every = rows[None] @ self.given.parameters[weight].transpose(1, 2)[:, None]
            product = every[self.given.rows, torch.arange(hidden.shape[0])]
        if self.has_bias:
            product = product + self.given.of_rows(bias)[:, None]
        return product if hidden.dim() == 3 else product[:, 0]


class RowNorm(nn.Module):
    """A LayerNorm whose weight and bias are of each row's own prompt."""

    def __init__(self, path: str, given: _Given, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.path, self.given, self.eps = path, given, norm.eps
        self.has_bias = norm.bias is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, [sequence,] width) to the same shape."""

        def wide(name: str) -> torch.Tensor:
            rows = self.given.of_rows(f"{self.path}.{name}")
            return rows[:, None] if hidden.dim() == 3 else rows

        plain = nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)
        scaled = plain * wide("weight")
        return scaled + wide("bias") if self.has_bias else scaled


class Head:
    """A model's head with its parameters as inputs. The model is changed for good."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, NDArray[np.float32]]):
        self._given = _Given()
        self.specs = tuple(_specs(model, parameters))
        paths = {name.removeprefix(PREFIX).rpartition(".")[0] for name in parameters}
        output = _output(model, paths)
        for path in sorted(paths):
            module = model.get_submodule(path)
            taken: nn.Module
            if isinstance(module, nn.LayerNorm):
                taken = RowNorm(path, self._given, module)
            else:
                taken = RowLinear(path, self._given, module.bias is not None, path == output)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, taken)

    def start(self, rows: torch.Tensor | None, parameters: Sequence[torch.Tensor]) -> None:
        """Use these parameters, in the order of `specs`, for what is traced from here on."""
        names = (spec.name.removeprefix(PREFIX) for spec in self.specs)
        self._given.rows = rows
        self._given.parameters = dict(zip(names, parameters, strict=True))


def trained_head(
    model: PreTrainedModel, trained: Collection[str]
) -> dict[str, NDArray[np.float32]]:
    """The parameters outside of the base model that a prompt brings with it, by their input's name.

    Those are the ones that are `trained`, and all of the last layer, which has a row or a column
    for each of the prompt's own labels. Empty where the head is made of other parts than Linear and
    LayerNorm: it then stays in the graph.
    """
    names = [name for name, _ in model.named_parameters() if not _in_base(model, name)]
    paths = dict.fromkeys(name.rpartition(".")[0] for name in names)
    output = _output(model, paths)
    chosen = [name for name in names if name in trained or name.rpartition(".")[0] == output]
    modules = {model.get_submodule(name.rpartition(".")[0]) for name in chosen}
    if output is None or not all(type(one) in (nn.Linear, nn.LayerNorm) for one in modules):
        return {}
    state = dict(model.named_parameters())
    # A layer goes over as a whole.
    whole = [n for n in names if model.get_submodule(n.rpartition(".")[0]) in modules]
    return {f"{PREFIX}{name}": state[name].detach().float().numpy() for name in whole}


def _specs(
    model: PreTrainedModel, parameters: Mapping[str, NDArray[np.float32]]
) -> Iterator[TensorSpec]:
    output = _output(model, {name.removeprefix(PREFIX).rpartition(".")[0] for name in parameters})
    for name, array in parameters.items():
        sizes: tuple[int | str, ...] = array.shape
        if name.removeprefix(PREFIX).rpartition(".")[0] == output:
            sizes = (CLASSES, *sizes[1:])
        meaning = f"{name.removeprefix(PREFIX)} of every prompt's head"
        yield TensorSpec(name, "head", "float32", (PROMPTS, *sizes), meaning)


def _in_base(model: PreTrainedModel, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")


def _output(model: PreTrainedModel, paths: Collection[str]) -> str | None:
    """The last Linear among the modules that gives a number for each label."""
    labels = int(model.config.num_labels)
    found = [
        path
        for path in (name for name, _ in model.named_modules())
        if path in paths
        and isinstance(model.get_submodule(path), nn.Linear)
        and model.get_submodule(path).out_features == labels
    ]
    return found[-1] if found else None


def prompt_index() -> TensorSpec:
    """The input that says which prompt's head, or prefix KV, a row has."""
    return TensorSpec("prompt_index", "prompt", "int64", (BATCH,), "which prompt a row has")
