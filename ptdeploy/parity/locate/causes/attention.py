"""Attention that looks at the wrong tokens, in the wrong heads, or on another scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptdeploy.parity.locate.causes.suspect import Cause, Suspect, permuted


def heads(suspect: Suspect) -> Cause | None:
    """What goes out of an attention, its heads in another order."""
    count = getattr(suspect.peft.model.get_base_model().config, "num_attention_heads", 0)
    width = suspect.ours.shape[-1]
    if not count or width % count or suspect.ours.ndim != 3:
        return None
    ours, theirs = (
        np.moveaxis(a.astype(np.float32).reshape(-1, count, width // count), 1, 0).reshape(
            count, -1
        )
        for a in (suspect.ours, suspect.theirs)
    )
    if permuted(ours, theirs, 1e-3):
        return Cause("its heads are in another order")
    return None


def attributes(suspect: Suspect) -> Cause | None:
    """A fused attention with another window or scale, or with only one of its inputs rotated."""
    node = next((n for n in suspect.behind if n.op_type == "GroupQueryAttention"), None)
    module = suspect.torch_module
    if node is None or module is None:
        return None
    given = {a.name: a.i or a.f for a in node.attribute}
    window = getattr(module, "sliding_window", suspect.peft.base.sliding_window)
    if given.get("local_window_size", -1) != (window or -1):
        return Cause(
            f"its sliding window is {given.get('local_window_size', 'absent')}, but the model's is "
            f"{window}"
        )
    if sum(one.op_type == "RotaryEmbedding" for one in suspect.nodes) == 1:
        return Cause("position numbering: only one of queries and keys is rotated")
    scaling = getattr(module, "scaling", None)
    if scaling is not None and not np.isclose(given.get("scale", scaling), scaling, rtol=1e-4):
        return Cause(
            f"scores are scaled by {given['scale']:g}, but the model's scale is {scaling:g}"
        )
    return None


def padded(suspect: Suspect) -> Cause | None:
    """An encoder's fused attention on another scale, or that looks at padding or past the text."""
    node = next((n for n in suspect.behind if n.op_type == "MultiHeadAttention"), None)
    if node is None:
        return None
    scaling = getattr(suspect.torch_module, "scaling", None)
    for given in (a.f for a in node.attribute if a.name == "scale"):
        if scaling is None or np.isclose(given, scaling, rtol=1e-4):
            continue
        return Cause(f"scores are scaled by {given:g}, but the model's scale is {scaling:g}")
    keys = node.input[4] if len(node.input) > 4 else ""
    if not keys:
        return Cause("mask value: padding is not masked")
    if any(one.op_type != "Cast" for one in suspect.graph.behind(keys, set())):
        return Cause("mask value: what it hides is not the request's padding")
    return None


def mask(suspect: Suspect) -> Cause | None:
    """Attention that falls on keys which a token must not see, or on all keys alike."""
    softmax = next((n for n in reversed(suspect.behind) if n.op_type == "Softmax"), None)
    if softmax is None or softmax.output[0] not in suspect.values:
        return None
    weights = suspect.values[softmax.output[0]]
    if weights.ndim != 4 or weights.shape[0] != len(suspect.lengths):
        return None
    shares = weights[suspect.row].max(axis=0)
    seen, real = _seen(suspect, *shares.shape)
    hidden = np.where(seen, 0, shares)[:real]
    if hidden.max(initial=0) > 1e-4:
        return Cause(
            f"mask value: a token puts {hidden.max():.0%} of a head's attention where it must not "
            "look"
        )
    looked = weights[suspect.row][:, :real][:, seen[:real]]
    if looked.size > 4 and np.ptp(looked) < 1e-6:
        return Cause("mask value: it hides the scores themselves; a head looks at all alike")
    return None


def _seen(suspect: Suspect, queries: int, keys: int) -> tuple[NDArray[np.bool_], int]:
    """Which keys each query may look at, shape (queries, keys), and how many queries are real."""
    length, n = suspect.lengths[suspect.row], suspect.prefix
    place, query = np.arange(keys)[None], np.arange(queries)[:, None]
    if suspect.is_causal:
        past = int(suspect.given("lengths")[suspect.row])
        slots = keys - suspect.given("ids").shape[1]
        return (place < past) | ((place >= slots) & (place - slots <= query)), queries
    if suspect.prompt.prefix_kv is not None:
        return place <= n + query, length
    return np.broadcast_to(place < n + length, (queries, keys)), n + length


def scale(suspect: Suspect) -> Cause | None:
    """Scores that are not scaled as the model scales them."""
    module = suspect.torch_module
    scaling = getattr(module, "scaling", None)
    if scaling is None or not any(n.op_type == "Softmax" for n in suspect.behind):
        return None
    scalars = [
        float(array.ravel()[0])
        for _, array in suspect.constants
        if array.size == 1 and np.issubdtype(array.dtype, np.floating)
    ]
    wanted = (scaling, scaling**0.5, 1 / scaling)
    if not any(np.isclose(s, w, rtol=1e-3) for s in scalars for w in wanted):
        return Cause(f"attention scores are not scaled by the model's {scaling:g}")
    return None
