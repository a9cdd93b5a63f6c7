"""A prompt in the bundle that is not the checkpoint's: virtual tokens, or their prefix KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect, permuted

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource


def virtual_tokens(suspect: Suspect) -> Cause | None:
    """Virtual tokens in the graph that are not the checkpoint's, where the text's own are."""
    n = suspect.prefix
    if suspect.is_causal or suspect.ours.ndim != 3:
        return None
    if suspect.ours.shape[1] <= n or suspect.graph.module(suspect.value):
        return None
    wrong: NDArray[np.bool_] = np.any(_wrong(suspect.ours, suspect.theirs), axis=(0, 2))
    if not wrong[:n].any() or wrong[n:].any():
        return None
    rows, want = suspect.ours[0, :n], suspect.theirs[0, :n]
    how = "they are the right rows in another order" if permuted(rows, want) else ""
    count = int(wrong[:n].sum())
    words = f"{count} of {n} virtual tokens in the graph are not the checkpoint's"
    return Cause(f"{words}; {how}" if how else words, "prompt_encoder")


def prefix_kv(suspect: Suspect) -> Cause | None:
    """Keys or values of the prompt, frozen from another one."""
    shape = suspect.bundle.manifest.prompt.prefix_kv
    layer = _layer_number(suspect.module)
    if shape is None or layer is None or layer >= shape[0] or not suspect.attends:
        return None
    from ptdeploy.program.prompt import prefix_kv as evaluate

    want = evaluate(suspect.peft.model.get_base_model(), pefts_prompt(suspect.peft))[layer]
    near = _bundles(suspect, layer, want) if suspect.is_causal else _graphs(suspect, want)
    for part, difference in zip(("keys", "values"), near, strict=True):
        if difference > 1e-4 * max(1.0, float(np.abs(want).max())):
            return Cause(f"stale prefix KV: layer {layer}'s {part} are not the checkpoint's")
    return None


def _bundles(suspect: Suspect, layer: int, want: NDArray[np.float32]) -> list[float]:
    """How far a bundle's keys and values of one layer are from what they should be."""
    from safetensors.numpy import load_file

    path = suspect.bundle.opened("prompt")
    assert path is not None, "read_bundle checks it"
    found = load_file(path)["prefix_kv"][layer]
    return [float(np.abs(found[part] - want[part]).max()) for part in (0, 1)]


def _graphs(suspect: Suspect, want: NDArray[np.float32]) -> list[float]:
    """The same where the graph holds them, keys and values apart, as they are or repeated."""
    live = suspect.graph.behind(suspect.value, set())
    sized = [a for _, a in suspect.graph.constants(live) if a.size == want[0].size]
    return [
        min((float(np.abs(a.ravel() - want[part].ravel()).max()) for a in sized), default=0.0)
        for part in (0, 1)
    ]


def pefts_prompt(peft: PeftSource) -> NDArray[np.float32]:
    """What PEFT's own prompt encoder gives, shape (num_virtual_tokens, token_dim)."""
    import torch

    with torch.no_grad():
        tokens: NDArray[np.float32] = peft.model.get_prompt(batch_size=1)[0].float().numpy()
    return tokens


def _wrong(ours: NDArray[Any], theirs: NDArray[np.float32]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.isclose(ours, theirs, rtol=1e-3, atol=1e-5)
    return ~near


def _layer_number(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)
