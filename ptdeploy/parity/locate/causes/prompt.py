"""A prompt in the bundle that is not the checkpoint's: virtual tokens, or their prefix KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect, permuted

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource

# How far a right prefix KV may be off, over its largest number: as a file holds it, and as a graph
# in half precision does.
_NEAR, _NEAR_IN_GRAPH = 1e-4, 1e-2


def virtual_tokens(suspect: Suspect) -> Cause | None:
    """Virtual tokens that are not the checkpoint's, where the text's own embeddings are."""
    n, stored = suspect.prefix, suspect.prompt.virtual_tokens
    if stored is None or suspect.prompt.prefix_kv is not None or suspect.ours.ndim != 3:
        return None
    if suspect.ours.shape[1] <= n or suspect.graph.module(suspect.value):
        return None
    wrong: NDArray[np.bool_] = np.any(_wrong(suspect.ours, suspect.theirs), axis=(0, 2))
    if not wrong[:n].any() or wrong[n:].any():
        return None
    rows, want = suspect.ours[0, :n], suspect.theirs[0, :n]
    count = f"{int(wrong[:n].sum())} of {n} virtual tokens"
    if _wrong(stored, want).any():
        words = f"{count} in the bundle are not the checkpoint's"
    else:
        words = f"the graph looks up {count} wrong; the bundle holds the checkpoint's"
    how = "; they are the right rows in another order" if permuted(rows, want) else ""
    return Cause(words + how, "prompt_encoder")


def prefix_kv(suspect: Suspect) -> Cause | None:
    """Keys or values of the prompt, frozen from another one, or taken from another place."""
    stored, layer = suspect.prompt.prefix_kv, _layer_number(suspect.module)
    if stored is None or layer is None or layer >= len(stored) or not suspect.attends:
        return None
    want = pefts_prefix(suspect.peft)[layer]
    if want.shape != stored[layer].shape:
        return None
    scale = max(1.0, float(np.abs(want).max()))
    taken = _taken(suspect, want[0].shape)
    for part, name in enumerate(("keys", "values")):
        if _apart(stored[layer][part], want[part]) > _NEAR * scale:
            return Cause(f"stale prefix KV: layer {layer}'s {name} are not the checkpoint's")
        if taken and min(_apart(one, want[part]) for one in taken) > _NEAR_IN_GRAPH * scale:
            return Cause(f"layer {layer} takes other {name} than those of its prefix KV")
    return None


def _taken(suspect: Suspect, shape: tuple[int, ...]) -> list[NDArray[Any]]:
    """What the module takes that may be its row's prefix keys or values; none of a KV buffer."""
    values = (suspect.values.get(name) for name in suspect.graph.taken(suspect.module))
    return [one[suspect.row] for one in values if one is not None and one.shape[1:] == shape]


def _apart(ours: NDArray[Any], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max())


def pefts_prefix(peft: PeftSource) -> list[NDArray[np.float32]]:
    """What PEFT's own prompt is as prefix KV: of each layer (2, kv heads, virtual tokens, dim).

    A layer with a sliding window may keep fewer tokens.
    """
    import torch

    from ptdeploy.program.prompt import prefix_kv as evaluate

    with torch.no_grad():
        prompt: Any = peft.model.get_prompt(batch_size=1)
    if isinstance(prompt, torch.Tensor):
        return list(evaluate(peft.model.get_base_model(), prompt[0].float().numpy()))
    # Of the kinds that train a prefix KV itself it is a cache.
    return [torch.cat([one.keys, one.values]).float().numpy() for one in prompt.layers]


def _wrong(ours: NDArray[Any], theirs: NDArray[np.float32]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.isclose(ours, theirs, rtol=1e-3, atol=1e-5)
    return ~near


def _layer_number(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)
