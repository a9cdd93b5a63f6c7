"""Another activation function than the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect

if TYPE_CHECKING:
    import torch


def activation(suspect: Suspect) -> Cause | None:
    """A module without weights that computes another known function of what it was given."""
    import torch

    module, made = suspect.torch_module, suspect.values.get(suspect.value)
    if module is None or list(module.parameters()) or suspect.event.what != "output":
        return None
    taken = suspect.graph.taken(suspect.module)
    given = [suspect.values[name] for name in taken if name in suspect.values]
    for array in given:
        if made is None or array.size != made.size:
            continue
        x = torch.from_numpy(array.astype(np.float32))
        with torch.no_grad():
            for name, function in _functions().items():
                if np.allclose(function(x).numpy().reshape(made.shape), made, atol=1e-4, rtol=1e-3):
                    return Cause(f"it computes {name}, but the model has {type(module).__name__}")
    return None


def _functions() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    import torch
    from torch.nn import functional

    return {
        "the exact GELU": functional.gelu,
        "GELU's tanh approximation": lambda x: functional.gelu(x, approximate="tanh"),
        "GELU's sigmoid approximation": lambda x: x * torch.sigmoid(1.702 * x),
        "ReLU": functional.relu,
        "SiLU": functional.silu,
        "tanh": torch.tanh,
        "nothing": lambda x: x,
    }
