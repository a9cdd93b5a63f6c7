"""What PyTorch's modules take and give for one row, in the order they compute it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.source.base import quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel

    from ptdeploy.parity.reference.plain import PromptedModel

# Larger numbers are a mask's.
_MASKED = 1e30


@dataclass(frozen=True, eq=False)
class Event:
    """One tensor that went into a module ("input") or came out of it ("output")."""

    module: str
    what: str
    tensor: NDArray[np.float32] = field(repr=False)


def trace_row(
    model: PeftModel | PromptedModel,
    ids: NDArray[np.int64],
    type_ids: NDArray[np.int64] | None = None,
) -> list[Event]:
    """Run PEFT on one unpadded row and keep every module's float tensors.

    A module that runs more than once is left out: its calls cannot be told apart in a graph.
    """
    import torch

    from ptdeploy.parity.reference.peft import row_inputs

    events: list[Event] = []
    calls: Counter[str] = Counter()
    handles = []

    def keep(module: str, what: str, given: Any) -> None:
        for tensor in _tensors(given):
            events.append(Event(module, what, tensor))

    for name, module in model.get_base_model().named_modules():
        if not name:
            continue

        def before(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
            calls[name] += 1
            # The cache is one object that all layers share, and is no input of theirs alone.
            keep(name, "input", [*args, *(v for k, v in kwargs.items() if "past" not in k)])

        def after(_: Any, __: Any, output: Any, name: str = name) -> None:
            keep(name, "output", output)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        with torch.no_grad(), quiet_libraries():
            model(**row_inputs(ids, type_ids))
    finally:
        for handle in handles:
            handle.remove()
    return [event for event in events if calls[event.module] == 1]


def _tensors(given: Any) -> Iterator[NDArray[np.float32]]:
    import torch

    if isinstance(given, torch.Tensor):
        if given.is_floating_point() and given.dim() > 1:
            array = given.detach().float().numpy()
            if np.abs(array).max(initial=0) < _MASKED:
                yield array.copy()
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from _tensors(one)
    elif isinstance(given, dict):
        for one in given.values():
            yield from _tensors(one)
