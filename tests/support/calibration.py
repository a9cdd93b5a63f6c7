"""Texts of random letters to calibrate tiny encoders on, and how they are compiled with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.shared import Shared

import ptdeploy


def sentences(count: int) -> str:
    """So many lines of 4 to 29 letters and blanks."""
    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz ")
    lengths = random.integers(4, 30, count)
    return "".join(f"{''.join(random.choice(letters, length))}\n" for length in lengths)


def calibrated(shared: Shared, target: str) -> dict[str, Any]:
    """What compile is told, for an engine that no evaluation text refuses."""
    folder = shared.folder("calibration", lambda one: (one / "texts").write_text(sentences(40)))
    asked = ptdeploy.QuantizationOptions(
        calibration=folder / "texts", min_agreement=0.0, max_logits_error=1e9
    )
    return {"target": target, "precision": "int8", "quantization": asked}
