"""Weights in the bundle that are not the checkpoint's, and constants that are not the model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect, permuted

if TYPE_CHECKING:
    import onnx

_NEAR = 1e-5


def weights(suspect: Suspect) -> Cause | None:
    """A parameter of the module that neither the graph nor its prompt holds as it is."""
    module, constants = suspect.torch_module, suspect.constants
    if module is None or any(array.dtype == np.uint8 for _, array in constants):
        return None
    floats = [(name, a) for name, a in constants if np.issubdtype(a.dtype, np.floating)]
    for name, parameter in module.named_parameters(recurse=False):
        want = parameter.detach().float().numpy()
        sized = [(key, array) for key, array in floats if array.size == want.size]
        if sized:
            words = _least_wrong(suspect, name, want, sized)
        elif name == "bias" and np.abs(want).max() > _NEAR:
            words = "its bias is missing from the graph"
        else:
            words = ""
        if words:
            return Cause(words)
    return None


def _least_wrong(
    suspect: Suspect,
    name: str,
    want: NDArray[np.float32],
    sized: Sequence[tuple[str, NDArray[Any]]],
) -> str:
    """What is wrong with the constant that is nearest to a parameter; empty if it is the same."""
    import torch

    is_linear = isinstance(suspect.torch_module, torch.nn.Linear) and name == "weight"
    found: list[tuple[int, str]] = []
    for key, array in sized:
        # A prompt's file holds a head's parameters as PyTorch does.
        as_torch = key in suspect.prompt.head or _reads_transposed(suspect.nodes, key)
        turned = is_linear and not as_torch
        found.append(_weight_words(name, array, want.T if turned else want))
    return min(found, key=lambda one: one[0])[1]


def _weight_words(name: str, ours: NDArray[Any], want: NDArray[np.float32]) -> tuple[int, str]:
    """How many numbers of a weight differ, and how, in words."""
    if ours.size == want.T.size and ours.shape == want.T.shape != want.shape:
        want = want.T
    ours = ours.astype(np.float32).reshape(want.shape)
    # Half precision keeps 11 bits; a fault in fewer shows in the output first.
    wrong = ~np.isclose(ours, want, rtol=1e-3, atol=1e-6)
    count = int(wrong.sum())
    if not count:
        return 0, ""
    words = f"{count} of {want.size} numbers of its {name} are not the checkpoint's"
    if not ours.any():
        words = f"its {name} is zero in the bundle"
    elif want.ndim == 2 and want.shape[0] == want.shape[1] and np.allclose(ours, want.T, 1e-3):
        words = f"its {name} is transposed"
    elif want.ndim == 2 and (permuted(ours, want) or permuted(ours.T, want.T)):
        words += "; they are the right rows in another order"
    elif want.ndim == 1 and np.allclose(np.sort(ours), np.sort(want), 1e-3):
        words += "; they are the right numbers in another order"
    return count, words


def epsilon(suspect: Suspect) -> Cause | None:
    """A norm whose epsilon is not the model's."""
    module = suspect.torch_module
    want = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if want is None:
        return None
    for node in suspect.nodes:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and not np.isclose(attribute.f, want, rtol=1e-3, atol=0):
                return Cause(f"its epsilon is {attribute.f:g}, but the model's is {want:g}")
    return None


def _reads_transposed(nodes: Sequence[onnx.NodeProto], name: str) -> bool:
    return any(
        name in node.input and any(a.name == "transB" and a.i for a in node.attribute)
        for node in nodes
    )
