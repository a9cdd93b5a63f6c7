"""Likely causes of a mismatch: known faults, each looked for where the first tensor shows it.

One file for each family of faults. A detector takes the suspect and gives a cause, or None.
"""

from __future__ import annotations

from collections.abc import Callable

from ptdeploy.parity.locate.causes.activations import activation
from ptdeploy.parity.locate.causes.attention import attributes, heads, mask, padded, scale
from ptdeploy.parity.locate.causes.numbers import multiple, not_finite
from ptdeploy.parity.locate.causes.positions import learned, rotary, table
from ptdeploy.parity.locate.causes.prompt import prefix_kv, virtual_tokens
from ptdeploy.parity.locate.causes.suspect import FUSED, Cause, Suspect
from ptdeploy.parity.locate.causes.weights import epsilon, weights

__all__ = ["DETECTORS", "Cause", "Suspect", "likely_cause"]

# In this order: the first that finds something is believed. What reads the fault off a constant
# comes before what guesses it from numbers.
DETECTORS: tuple[Callable[[Suspect], Cause | None], ...] = (
    virtual_tokens,
    weights,
    not_finite,
    epsilon,
    rotary,
    table,
    learned,
    activation,
    heads,
    prefix_kv,
    attributes,
    padded,
    mask,
    scale,
    multiple,
)


def likely_cause(suspect: Suspect) -> Cause:
    """The first known cause that fits; empty words where none does."""
    for detect in DETECTORS:
        found = detect(suspect)
        if found is not None:
            return found
    fused = [node.op_type for node in suspect.behind if node.op_type in FUSED]
    if fused:
        return Cause(f"the fused operator {fused[-1]} computes something else than the module")
    return Cause("")
