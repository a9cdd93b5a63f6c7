"""Positions that are not those of the row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect


def rotary(suspect: Suspect) -> Cause | None:
    """Rotary angles of other frequencies, or of other positions."""
    module = suspect.torch_module
    frequencies = getattr(module, "inv_freq", None)
    if frequencies is None:
        return None
    inverse = frequencies.float().numpy()
    for _, array in suspect.constants:
        if array.size == inverse.size and not np.allclose(array.ravel(), inverse, rtol=1e-4):
            return Cause("its frequencies are not the model's (rope theta or scaling)")
    count = suspect.ours.shape[1]
    places = np.arange(suspect.prefix, suspect.prefix + count)
    for shift in (1, -1, suspect.prefix, -suspect.prefix, 2, -2):
        angles = np.outer(places + shift, inverse)
        for wave in (np.cos(angles), np.sin(angles)):
            full = np.concatenate([wave, wave], axis=-1)
            if full.shape == suspect.ours.shape[1:] and np.allclose(
                suspect.ours[0], full, atol=1e-4
            ):
                return _off_by(shift)
    return Cause("position numbering: the angles are not those of the row's own positions")


def table(suspect: Suspect) -> Cause | None:
    """A table by which attention turns queries and keys, of other angles than the model's."""
    node = next((n for n in suspect.behind if n.op_type == "GroupQueryAttention"), None)
    held = dict(suspect.constants)
    tables = [held[name] for name in (node.input[7:9] if node else ()) if name in held]
    if len(tables) < 2:
        return None
    # Some models scale cosines and sines by a number of their own.
    scale, count = np.abs(tables).max(), len(tables[0])
    buffers = suspect.peft.model.get_base_model().named_buffers()
    frequencies = [one.float().numpy() for name, one in buffers if name.endswith("inv_freq")]
    for shift in (0, 1, -1, suspect.prefix, -suspect.prefix):
        for inverse in frequencies:
            angles = np.outer(np.arange(count) + shift, inverse)
            wanted = scale * np.array([np.cos(angles), np.sin(angles)])
            if wanted.shape == np.shape(tables) and np.allclose(tables, wanted, atol=1e-3):
                return _off_by(shift) if shift else None
    return Cause("its rotary table is not the model's (rope theta, scaling or positions)")


def learned(suspect: Suspect) -> Cause | None:
    """A position embedding whose rows are right ones at the wrong places."""
    import torch

    module = suspect.torch_module
    if not isinstance(module, torch.nn.Embedding) or suspect.ours.ndim != 3:
        return None
    if "pos" not in suspect.module and not suspect.module.endswith("wpe"):
        return None
    table = module.weight.detach().float().numpy()
    found = [_nearest(table, row) for row in suspect.ours[0]]
    wanted = [_nearest(table, row) for row in suspect.theirs[0]]
    shifts = {a - b for a, b in zip(found, wanted, strict=True) if a is not None and b is not None}
    if len(shifts) == 1 and shifts != {0}:
        return _off_by(shifts.pop())
    if shifts - {0}:
        return Cause("position numbering: positions are not those of the row alone")
    return None


def _off_by(shift: int) -> Cause:
    return Cause(f"position numbering: positions are off by {shift:+d}")


def _nearest(table: NDArray[np.float32], row: NDArray[Any]) -> int | None:
    distance = np.abs(table - row).max(-1)
    index = int(distance.argmin())
    return index if distance[index] < 1e-4 else None
