"""Numbers that are not finite, or a multiple of what they should be."""

from __future__ import annotations

import numpy as np

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect

# ONNX's number of the type float16.
_FP16 = 10


def not_finite(suspect: Suspect) -> Cause | None:
    """Infinity or NaN, which 16 bits reach sooner."""
    if np.isfinite(suspect.ours).all():
        return None
    half = suspect.ours.dtype == np.float16 or any(
        node.op_type == "Cast" and any(a.name == "to" and a.i == _FP16 for a in node.attribute)
        for node in suspect.graph.behind(suspect.value, set(suspect.graph.taken(suspect.module)))
    )
    if half:
        return Cause("fp16 overflow: numbers above 65504 became infinite")
    return Cause("NaN or infinity comes out of finite numbers")


def multiple(suspect: Suspect) -> Cause | None:
    """All numbers times the same factor."""
    ours, theirs = suspect.ours.astype(np.float64), suspect.theirs.astype(np.float64)
    factor = float((ours * theirs).sum() / ((theirs**2).sum() or 1.0))
    if np.isfinite(factor) and np.allclose(ours, factor * theirs, rtol=1e-5, atol=1e-6):
        return Cause(f"it gives {factor:.6g} times what the model gives")
    return None
