"""Parts of a transformers model traced as what engines have kernels for.

A decoder's attention updates the KV buffer in place, whatever its architecture, instead of being
searched for in the exported graph afterwards. With ONNX Runtime's own operators, attention, rotary
embedding and RMSNorm become one node each. With standard ones, attention is a TensorScatter into
the buffer and products over all of it, and the rest stays the model's own arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache

from ptdeploy.bundle.task import Operators
from ptdeploy.program.tracing import own_attention, why_it_fails, why_not_all
from ptdeploy.targets import Attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "ptdeploy_gqa"
# What a model passes to its attention without changing what the fused operator computes.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}


class SharedCache(Cache):  # type: ignore[misc]
    """Past and present KV in one buffer, which attention updates where it lies.

    `past` holds keys and values by turns, each (batch, kv heads, slots, head dim). A row's slots
    are filled from the first one on, `past_lengths` of them, int64 (batch,); slots and tokens
    count alike, so a sliding window is one of tokens. The new tokens are numbered from there on, by
    their `offsets`, int64 (new tokens,).
    """

    def __init__(
        self, past: tuple[torch.Tensor, ...], past_lengths: torch.Tensor, offsets: torch.Tensor
    ) -> None:
        self.past = past
        self.present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.past_lengths = past_lengths
        self.positions = past_lengths[:, None] + offsets[None]
        new_tokens = offsets.shape[0]
        self.last_slot = (past_lengths + new_tokens - 1).to(torch.int32)
        self.filled = (past_lengths.max() + new_tokens).to(torch.int32)
        self.layers: list[Any] = []

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The operator writes them into the buffer itself.
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@dataclass
class _Trace:
    """The cache of the trace in progress, and why a layer could not be fused."""

    cache: SharedCache | None = None
    operators: Operators = "onnxruntime"
    refused: str | None = None
    # The last position that masks are tried at; none while exporting, when tensors have no values.
    last_position: int | None = None
    layers: set[int] = field(default_factory=set)
    # What the layers ask of the operator, each kind once, in their order.
    asked: dict[Attention, None] = field(default_factory=dict)


_TRACE = _Trace()


def start(cache: SharedCache) -> None:
    """Make `cache` the one that the fused attention reads and writes from here on."""
    _TRACE.cache = cache
    _TRACE.layers.clear()
    _TRACE.asked.clear()
    _TRACE.refused = None


@dataclass(frozen=True)
class _Mask:
    """What a model is given for an attention mask: the rule that it would be made by."""

    visible: Callable[..., torch.Tensor]

    def window(self, last: int) -> int | None:
        """How many tokens back the rule lets a token see, itself included; None for all.

        Tried at positions `last` and the one before. Raises ValueError if it is no such rule.
        """
        one, positions = torch.zeros((), dtype=torch.int64), torch.arange(last + 1)
        sizes = []
        for position in (last - 1, last):
            seen = self.visible(one, one, torch.tensor(position), positions)
            sizes.append(int(seen.sum()))
            if not seen[max(position + 1 - sizes[-1], 0) : position + 1].all():
                raise ValueError("a mask of its own")
        if sizes == [last, last + 1]:
            return None
        if sizes[0] != sizes[1]:
            raise ValueError("a mask of its own")
        return sizes[0]


def _mask(*_: Any, mask_function: Callable[..., torch.Tensor], **__: Any) -> _Mask:
    return _Mask(mask_function)


def _why_not_masked(mask: object, sliding_window: int | None, last: int) -> str | None:
    """Why a causal operator told of that window does not see what the mask lets it see."""
    if mask is None:
        return None
    if not isinstance(mask, _Mask):
        return "its attention takes a mask of its own"
    try:
        window = mask.window(last)
    except (ValueError, RuntimeError, TypeError, IndexError):
        return "its attention takes a mask of its own"
    told = sliding_window if sliding_window and sliding_window <= last else None
    if window == told:
        return None
    return f"its attention is told of a window of {told} tokens, its mask has one of {window}"


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | _Mask | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    cache = _TRACE.cache
    assert cache is not None, "only a program with a SharedCache is traced with this attention"
    layer = int(cast("Any", module).layer_idx)
    unknown = sorted(k for k in options.keys() - _HARMLESS if isinstance(options[k], torch.Tensor))
    if unknown:
        _TRACE.refused = f"its attention takes {', '.join(unknown)}"
    if _TRACE.last_position is not None and (
        why := _why_not_masked(attention_mask, sliding_window, _TRACE.last_position)
    ):
        _TRACE.refused = why
    if value.shape[-1] != query.shape[-1]:
        _TRACE.refused = "its values are narrower than its keys"
    past = cache.past[2 * layer], cache.past[2 * layer + 1]
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    rule = _Rule(scale, int(sliding_window or 0), float(softcap or 0), s_aux)
    _TRACE.asked[
        Attention(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=query.shape[-1],
            window=rule.window,
            softcap=rule.softcap,
            sinks=s_aux is not None,
        )
    ] = None
    compute = _grouped_query if _TRACE.operators == "onnxruntime" else _over_buffer
    output, cache.present[layer] = compute(query, key, value, past, cache, rule)
    _TRACE.layers.add(layer)
    return output, None


@dataclass(frozen=True)
class _Rule:
    """How scores become weights: a window in tokens and a soft cap, 0 for none.

    `sinks` (heads,) are scores that take part in the softmax and belong to no token.
    """

    scale: float
    window: int
    softcap: float
    sinks: torch.Tensor | None


_Pair = tuple[torch.Tensor, torch.Tensor]


def _grouped_query(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past: _Pair,
    cache: SharedCache,
    rule: _Rule,
) -> tuple[torch.Tensor, _Pair]:
    """Attention and the update of the buffer as ONNX Runtime's one operator."""
    batch, heads, new, head_dim = query.shape

    def flat(states: torch.Tensor) -> torch.Tensor:
        return states.transpose(1, 2).reshape(batch, new, -1)

    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": key.shape[1]}
    attributes["scale"] = rule.scale
    if rule.window:
        attributes["local_window_size"] = rule.window
    if rule.softcap:
        attributes["softcap"] = rule.softcap
    # After four inputs that are not used: what each head may look at besides the text.
    sinks = () if rule.sinks is None else (None, None, None, None, rule.sinks)
    output, *present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (flat(query), flat(key), flat(value), *past, cache.last_slot, cache.filled, *sinks),
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=((batch, new, heads * head_dim), past[0].shape, past[1].shape),
        version=1,
    )
    return output.view(batch, new, heads, head_dim), (present[0], present[1])


def _over_buffer(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past: _Pair,
    cache: SharedCache,
    rule: _Rule,
) -> tuple[torch.Tensor, _Pair]:
    """Attention over all slots of the buffer, after the new tokens were written into it."""
    batch, heads, new, head_dim = query.shape
    kv_heads, slots = past[0].shape[1:3]
    keys, values = (
        torch.onnx.ops.symbolic(
            "TensorScatter",
            (buffer, states, cache.past_lengths),
            {"axis": 2, "mode": "linear"},
            dtype=buffer.dtype,
            shape=buffer.shape,
            version=24,
        )
        for buffer, states in zip(past, (key, value), strict=True)
    )
    # Queries of one group share a key: side by side they are one product, and no key is repeated.
    grouped = (query * rule.scale).reshape(batch, kv_heads, heads // kv_heads * new, head_dim)
    scores = (grouped @ keys.transpose(2, 3)).reshape(batch, heads, new, slots)
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    back = cache.positions[:, :, None] - torch.arange(slots)[None, None]
    visible = back >= 0
    if rule.window:
        visible = visible & (back < rule.window)
    scores = torch.where(visible[:, None], scores, torch.finfo(scores.dtype).min)
    if rule.sinks is not None:
        sinks = rule.sinks.reshape(1, heads, 1, 1).expand(batch, heads, new, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :slots]
    output = weights.reshape(batch, kv_heads, heads // kv_heads * new, slots) @ values
    return output.reshape(batch, heads, new, head_dim).transpose(1, 2), (keys, values)


def why_not_fused(
    model: PreTrainedModel,
    program: nn.Module,
    inputs: tuple[Any, ...],
    operators: Operators,
    refuses: Callable[[Attention], str],
) -> str:
    """Why a program with a SharedCache cannot be traced fused, or "" if all its layers can.

    `refuses` says why the engine cannot compute an attention, "" if it can.
    """
    config = model.config.get_text_config()
    _TRACE.last_position = int(getattr(config, "max_position_embeddings", 0) or 1 << 17) - 1
    try:
        with fused(model, operators):
            why = why_it_fails(program, inputs)
    finally:
        _TRACE.last_position = None
    if why := why or _TRACE.refused or why_not_all(model, len(_TRACE.layers)):
        return why
    return next((why for attention in _TRACE.asked if (why := refuses(attention))), "")


def attentions_asked() -> tuple[Attention, ...]:
    """What the layers of the last model that was tried ask of the operator, each kind once."""
    return tuple(_TRACE.asked)


@contextmanager
def fused(model: PreTrainedModel, operators: Operators) -> Iterator[None]:
    """Trace `model` with attention over a SharedCache inside this block.

    With ONNX Runtime's operators its rotary embedding and RMSNorm are fused too: a rotary function
    or a norm is replaced only if the operator gives what it gives, tried on random numbers; any
    other stays as the model computes it.
    """
    _TRACE.operators = operators
    code = sys.modules[type(model).__module__]
    rotary = getattr(code, "apply_rotary_pos_emb", None)
    own = operators == "onnxruntime"
    if own and rotary is not None and _is_half_rotary(rotary):
        code.apply_rotary_pos_emb = _partial_rotary  # type: ignore[attr-defined]
    norms = [m for m in model.modules() if own and type(m).__name__.endswith("RMSNorm")]
    for norm in norms:
        if (operator := _norm_operator(norm)) is not None:
            norm.forward = operator
    try:
        with own_attention(model, ATTENTION, _attention, _mask):
            yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
        if rotary is not None:
            code.apply_rotary_pos_emb = rotary  # type: ignore[attr-defined]
        _TRACE.cache = None


def _rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    half = cos.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]

    def rotate(states: torch.Tensor) -> torch.Tensor:
        # The operator on (batch, tokens, heads * width): then the layouts around it cancel out.
        batch, heads, new, width = states.shape
        flat = states.transpose(1, 2).reshape(batch, new, heads * width)
        rotated = torch.onnx.ops.rotary_embedding(flat, cos, sin, num_heads=heads)
        return rotated.view(batch, new, heads, width).transpose(1, 2)

    return rotate(q), rotate(k)


def _partial_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn as much of each head, from its start, as `cos` is wide; the rest passes."""
    width = cos.shape[-1]
    if width == q.shape[-1]:
        return _rotary(q, k, cos, sin)
    turned = _rotary(q[..., :width], k[..., :width], cos, sin)
    q, k = (torch.cat([a, b[..., width:]], dim=-1) for a, b in zip(turned, (q, k), strict=True))
    return q, k


def _is_half_rotary(function: Any) -> bool:
    """Whether it rotates the first half of each head against the second, as the operator does.

    Where it takes fewer angles than a head has room for, it must leave the rest as it is.
    """
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 3, 8, generator=random) for heads in (4, 2))
    for width in (8, 4):
        angles = torch.randn(2, 3, width // 2, generator=random)
        cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))
        try:
            theirs = function(q, k, cos, sin)
        except (TypeError, RuntimeError, ValueError):
            return width < 8
        pairs = zip(_partial_rotary(q, k, cos, sin), theirs, strict=True)
        if not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for a, b in pairs):
            return False
    return True


def _norm_operator(norm: nn.Module) -> Any:
    """The operator for an RMSNorm, its weight as the operator multiplies it, or None."""
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, torch.Tensor) or epsilon is None or weight.dim() != 1:
        return None
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + float(epsilon))
    with torch.no_grad():
        theirs = type(norm).forward(norm, x)
        # Gemma stores its weights as what is added to one.
        for scale in (weight, nn.Parameter(1.0 + weight, requires_grad=False)):
            if torch.allclose(theirs, plain * scale, atol=1e-5, rtol=1e-5):
                break
        else:
            return None

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            (hidden_states, scale),
            {"axis": -1, "epsilon": float(epsilon), "stash_type": 1},
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
            version=1,
        )

    return forward
