"""Likely causes of a departure: known faults, each looked for where the first tensor departs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle
from ptdeploy.bundle.task import Task
from ptdeploy.parity.locate.graph import ModuleGraph
from ptdeploy.parity.locate.trace import Event

if TYPE_CHECKING:
    import onnx
    import torch

    from ptdeploy.parity.reference.peft import PeftSource

_FP16 = 10
_FUSED = {
    "GroupQueryAttention",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "MultiHeadAttention",
    "Attention",
}
_NEAR = 1e-5


@dataclass(frozen=True)
class Suspect:
    """The tensor that departs first: PyTorch's event, the graph's value, and what it is made of."""

    module: str
    event: Event
    value: str
    ours: NDArray[Any] = field(repr=False)
    theirs: NDArray[np.float32] = field(repr=False)
    graph: ModuleGraph = field(repr=False)
    behind: Sequence[onnx.NodeProto] = field(repr=False)
    prefix: int
    row: int
    lengths: tuple[int, ...]
    values: Mapping[str, NDArray[Any]] = field(repr=False)
    feed: Mapping[str, NDArray[Any]] = field(repr=False)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The module's own nodes that the value depends on."""
        live = {id(node) for node in self.graph.behind(self.value, set())}
        return [n for n in self.graph.nodes(self.module, inside=False) if id(n) in live]


@dataclass(frozen=True)
class Cause:
    """What is wrong in words, and the module to blame if it is another than the suspect's."""

    words: str
    module: str = ""


def likely_cause(suspect: Suspect, peft: PeftSource, bundle: Bundle) -> Cause:
    """The first known cause that fits; empty words where none does."""
    for look in (
        _prompt,
        _parameters,
        _not_finite,
        _epsilon,
        _rotary,
        _positions,
        _activation,
        _heads,
        _prefix_kv,
        _attention_attributes,
        _mask,
        _scale,
        _multiple,
    ):
        found = look(suspect, peft, bundle)
        if found is not None:
            return found
    fused = [node.op_type for node in suspect.behind if node.op_type in _FUSED]
    if fused:
        return Cause(f"the fused operator {fused[-1]} computes something else than the module")
    return Cause("")


def _prompt(suspect: Suspect, peft: PeftSource, bundle: Bundle) -> Cause | None:
    n = suspect.prefix
    if bundle.manifest.task is Task.CAUSAL_LM or suspect.ours.ndim != 3:
        return None
    if suspect.ours.shape[1] <= n or suspect.graph.module(suspect.value):
        return None
    wrong: NDArray[np.bool_] = np.any(_wrong(suspect.ours, suspect.theirs), axis=(0, 2))
    if not wrong[:n].any() or wrong[n:].any():
        return None
    rows, want = suspect.ours[0, :n], suspect.theirs[0, :n]
    how = "they are the right rows in another order" if _permuted(rows, want) else ""
    count = int(wrong[:n].sum())
    words = f"{count} of {n} virtual tokens in the graph are not the checkpoint's"
    return Cause(f"{words}; {how}" if how else words, "prompt_encoder")


def _parameters(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    import torch

    module = _torch_module(peft, suspect.module)
    if module is None:
        return None
    constants = list(suspect.graph.constants(suspect.nodes))
    if any(array.dtype == np.uint8 for _, array in constants):
        return None
    for name, parameter in module.named_parameters(recurse=False):
        want = parameter.detach().float().numpy()
        sized = [
            (key, array)
            for key, array in constants
            if array.size == want.size and np.issubdtype(array.dtype, np.floating)
        ]
        if not sized:
            if name == "bias" and np.abs(want).max() > _NEAR:
                return Cause("its bias is missing from the graph")
            continue
        best: tuple[int, str] | None = None
        for key, array in sized:
            is_linear = isinstance(module, torch.nn.Linear) and name == "weight"
            turned = is_linear and not _reads_transposed(suspect.nodes, key)
            words = _weight_words(name, array, want.T if turned else want)
            count = 0 if words is None else words[0]
            if best is None or count < best[0]:
                best = (count, "" if words is None else words[1])
        if best is not None and best[0]:
            return Cause(best[1])
    return None


def _weight_words(
    name: str, ours: NDArray[Any], want: NDArray[np.float32]
) -> tuple[int, str] | None:
    """How many numbers of a weight differ, and how, in words; None if none does."""
    if ours.size == want.T.size and ours.shape == want.T.shape != want.shape:
        want = want.T
    ours = ours.astype(np.float32).reshape(want.shape)
    # Half precision keeps 11 bits; a fault in fewer shows in the output first.
    wrong = ~np.isclose(ours, want, rtol=1e-3, atol=1e-6)
    count = int(wrong.sum())
    if not count:
        return None
    words = f"{count} of {want.size} numbers of its {name} are not the checkpoint's"
    if not ours.any():
        words = f"its {name} is zero in the graph"
    elif want.ndim == 2 and want.shape[0] == want.shape[1] and np.allclose(ours, want.T, 1e-3):
        words = f"its {name} is transposed"
    elif want.ndim == 2 and (_permuted(ours, want) or _permuted(ours.T, want.T)):
        words += "; they are the right rows in another order"
    elif want.ndim == 1 and np.allclose(np.sort(ours), np.sort(want), 1e-3):
        words += "; they are the right numbers in another order"
    return count, words


def _not_finite(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    if np.isfinite(suspect.ours).all():
        return None
    half = suspect.ours.dtype == np.float16 or any(
        node.op_type == "Cast" and any(a.name == "to" and a.i == _FP16 for a in node.attribute)
        for node in suspect.graph.behind(suspect.value, set(suspect.graph.taken(suspect.module)))
    )
    if half:
        return Cause("fp16 overflow: numbers above 65504 became infinite")
    return Cause("NaN or infinity comes out of finite numbers")


def _epsilon(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    module = _torch_module(peft, suspect.module)
    want = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if want is None:
        return None
    for node in suspect.nodes:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and not np.isclose(attribute.f, want, rtol=1e-3, atol=0):
                return Cause(f"its epsilon is {attribute.f:g}, but the model's is {want:g}")
    return None


def _rotary(suspect: Suspect, peft: PeftSource, bundle: Bundle) -> Cause | None:
    module = _torch_module(peft, suspect.module)
    frequencies = getattr(module, "inv_freq", None)
    if frequencies is None:
        return None
    inverse = frequencies.float().numpy()
    for _, array in suspect.graph.constants(suspect.nodes):
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
                return Cause(f"position numbering: positions are off by {shift:+d}")
    return Cause("position numbering: the angles are not those of the row's own positions")


def _positions(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    """An embedding whose rows are right ones at the wrong places."""
    import torch

    module = _torch_module(peft, suspect.module)
    if not isinstance(module, torch.nn.Embedding) or suspect.ours.ndim != 3:
        return None
    if "pos" not in suspect.module and not suspect.module.endswith("wpe"):
        return None
    table = module.weight.detach().float().numpy()
    found = [_nearest(table, row) for row in suspect.ours[0]]
    wanted = [_nearest(table, row) for row in suspect.theirs[0]]
    shifts = {a - b for a, b in zip(found, wanted, strict=True) if a is not None and b is not None}
    if len(shifts) == 1 and shifts != {0}:
        return Cause(f"position numbering: positions are off by {shifts.pop():+d}")
    if shifts - {0}:
        return Cause("position numbering: positions are not those of the row alone")
    return None


def _activation(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    import torch
    from torch.nn import functional

    module = _torch_module(peft, suspect.module)
    if module is None or list(module.parameters()) or suspect.event.what != "output":
        return None
    given = [suspect.values[n] for n in suspect.graph.taken(suspect.module) if n in suspect.values]
    known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "the exact GELU": functional.gelu,
        "GELU's tanh approximation": lambda x: functional.gelu(x, approximate="tanh"),
        "GELU's sigmoid approximation": lambda x: x * torch.sigmoid(1.702 * x),
        "ReLU": functional.relu,
        "SiLU": functional.silu,
        "tanh": torch.tanh,
        "nothing": lambda x: x,
    }
    made = suspect.values.get(suspect.value)
    for array in given:
        if made is None or array.size != made.size:
            continue
        x = torch.from_numpy(array.astype(np.float32))
        with torch.no_grad():
            for name, function in known.items():
                if np.allclose(function(x).numpy().reshape(made.shape), made, atol=1e-4, rtol=1e-3):
                    return Cause(f"it computes {name}, but the model has {type(module).__name__}")
    return None


def _heads(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    """What goes out of an attention, its heads in another order."""
    heads = getattr(peft.model.get_base_model().config, "num_attention_heads", 0)
    width = suspect.ours.shape[-1]
    if not heads or width % heads or suspect.ours.ndim != 3:
        return None
    ours, theirs = (
        np.moveaxis(a.astype(np.float32).reshape(-1, heads, width // heads), 1, 0).reshape(
            heads, -1
        )
        for a in (suspect.ours, suspect.theirs)
    )
    if _permuted(ours, theirs, 1e-3):
        return Cause("its heads are in another order")
    return None


def _prefix_kv(suspect: Suspect, peft: PeftSource, bundle: Bundle) -> Cause | None:
    shape = bundle.manifest.prompt.prefix_kv
    layer = _layer_number(suspect.module)
    attends = any(n.op_type in ("Softmax", *_FUSED) for n in suspect.behind)
    if shape is None or layer is None or layer >= shape[0] or not attends:
        return None
    from ptdeploy.program.prompt import prefix_kv

    want = prefix_kv(peft.model.get_base_model(), virtual_tokens(peft))[layer]
    if bundle.manifest.task is Task.CAUSAL_LM:
        from safetensors.numpy import load_file

        path = bundle.opened("prompt")
        assert path is not None, "read_bundle checks it"
        candidates = [load_file(path)["prefix_kv"][layer]]
        near = [np.abs(candidates[0][part] - want[part]).max() for part in (0, 1)]
    else:
        # A classifier has it in the graph, keys and values apart, as it is or repeated.
        live = suspect.graph.behind(suspect.value, set())
        sized = [a for _, a in suspect.graph.constants(live) if a.size == want[0].size]
        near = [
            min((np.abs(a.ravel() - want[part].ravel()).max() for a in sized), default=0.0)
            for part in (0, 1)
        ]
    for part, difference in zip(("keys", "values"), near, strict=True):
        if difference > 1e-4 * max(1.0, float(np.abs(want).max())):
            return Cause(f"stale prefix KV: layer {layer}'s {part} are not the checkpoint's")
    return None


def _attention_attributes(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    node = next((n for n in suspect.behind if n.op_type == "GroupQueryAttention"), None)
    module = _torch_module(peft, suspect.module)
    if node is None or module is None:
        return None
    given = {a.name: a.i or a.f for a in node.attribute}
    window = getattr(module, "sliding_window", peft.base.sliding_window)
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


def _mask(suspect: Suspect, peft: PeftSource, bundle: Bundle) -> Cause | None:
    """Attention that falls on keys which a token must not see."""
    softmax = next((n for n in reversed(suspect.behind) if n.op_type == "Softmax"), None)
    if softmax is None or softmax.output[0] not in suspect.values:
        return None
    weights = suspect.values[softmax.output[0]]
    if weights.ndim != 4 or weights.shape[0] != len(suspect.lengths):
        return None
    shares = weights[suspect.row].max(axis=0)
    queries, keys = shares.shape
    length, n = suspect.lengths[suspect.row], suspect.prefix
    causal = bundle.manifest.task is Task.CAUSAL_LM or bundle.manifest.prompt.prefix_kv is not None
    place = np.arange(keys)[None]
    if bundle.manifest.task is Task.CAUSAL_LM:
        past = int(suspect.feed["past_lengths"][suspect.row])
        slots = keys - suspect.feed["input_ids"].shape[1]
        seen = (place < past) | ((place >= slots) & (place - slots <= np.arange(queries)[:, None]))
        real = queries
    elif causal:
        seen, real = place <= n + np.arange(queries)[:, None], length
    else:
        seen, real = np.broadcast_to(place < n + length, shares.shape), n + length
    hidden = np.where(seen, 0, shares)[:real]
    if not hidden.max(initial=0) > 1e-4:
        looked = weights[suspect.row][:, :real][:, seen[:real]]
        if looked.size > 4 and np.ptp(looked) < 1e-6:
            return Cause("mask value: it hides the scores themselves; a head looks at all alike")
        return None
    return Cause(
        f"mask value: a token puts {hidden.max():.0%} of a head's attention where it must not look"
    )


def _scale(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    module = _torch_module(peft, suspect.module)
    scaling = getattr(module, "scaling", None)
    if scaling is None or not any(n.op_type == "Softmax" for n in suspect.behind):
        return None
    scalars = [
        float(array.ravel()[0])
        for _, array in suspect.graph.constants(suspect.nodes)
        if array.size == 1 and np.issubdtype(array.dtype, np.floating)
    ]
    wanted = (scaling, scaling**0.5, 1 / scaling)
    if not any(np.isclose(s, w, rtol=1e-3) for s in scalars for w in wanted):
        return Cause(f"attention scores are not scaled by the model's {scaling:g}")
    return None


def _multiple(suspect: Suspect, peft: PeftSource, _: Bundle) -> Cause | None:
    ours, theirs = suspect.ours.astype(np.float64), suspect.theirs.astype(np.float64)
    factor = float((ours * theirs).sum() / ((theirs**2).sum() or 1.0))
    if np.isfinite(factor) and np.allclose(ours, factor * theirs, rtol=1e-5, atol=1e-6):
        return Cause(f"it gives {factor:.6g} times what the model gives")
    return None


def virtual_tokens(peft: PeftSource) -> NDArray[np.float32]:
    """What PEFT's own prompt encoder gives, shape (num_virtual_tokens, token_dim)."""
    import torch

    with torch.no_grad():
        tokens: NDArray[np.float32] = peft.model.get_prompt(batch_size=1)[0].float().numpy()
    return tokens


def _torch_module(peft: PeftSource, path: str) -> torch.nn.Module | None:
    try:
        module: torch.nn.Module = peft.model.get_base_model().get_submodule(path)
    except AttributeError:
        return None
    # PEFT keeps a trained head beside the one it replaces.
    trained = getattr(module, "modules_to_save", None)
    if trained is not None:
        module = trained[peft.checkpoint.adapter]
    return module if path else None


def _reads_transposed(nodes: Sequence[onnx.NodeProto], name: str) -> bool:
    return any(
        name in node.input and any(a.name == "transB" and a.i for a in node.attribute)
        for node in nodes
    )


def _wrong(ours: NDArray[Any], theirs: NDArray[np.float32]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.isclose(ours, theirs, rtol=1e-3, atol=1e-5)
    return ~near


def _permuted(ours: NDArray[Any], theirs: NDArray[np.float32], near: float = 1e-4) -> bool:
    """Whether the rows are the same ones in another order."""
    if ours.shape != theirs.shape or np.allclose(ours, theirs, atol=near):
        return False
    left, right = (a[np.lexsort(np.round(a, 3).T[::-1])] for a in (ours, theirs))
    return bool(np.allclose(left, right, atol=near))


def _nearest(table: NDArray[np.float32], row: NDArray[Any]) -> int | None:
    distance = np.abs(table - row).max(-1)
    index = int(distance.argmin())
    return index if distance[index] < 1e-4 else None


def _layer_number(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)
