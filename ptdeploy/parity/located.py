"""Where an engine first departs from PyTorch: the types of the answer."""

from __future__ import annotations

import msgspec


class ModuleError(msgspec.Struct, frozen=True):
    """One tensor of the model, PyTorch's against the engine's, in the order PyTorch computes them.

    `module` is its path in the transformers model; `what` says whether it is the module's output or
    what goes into it. `relative` is the largest difference over the tensor's own largest value.
    """

    module: str
    what: str
    value: str
    relative: float | None
    departs: bool


class Located(msgspec.Struct, frozen=True):
    """The first module whose tensor departs, and why as far as it is known.

    `module` is empty where every tensor that can be compared agrees. `operators` are the graph's
    nodes between the last tensors that agree and the one that departs, the departing one last.
    """

    module: str
    operator: str
    dtype: str
    operators: tuple[str, ...]
    cause: str
    lengths: tuple[int, ...]
    compared: int
    modules: tuple[ModuleError, ...]
