"""Buffers that a model reckons from its configuration, and that files may hold all the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What transformers has kept in state dicts in some version, by the end of the name.
_COMPUTED = re.compile(
    r"(^|[._])(position_ids|token_type_ids|inv_freq|masked_bias|causal_mask|cos_cached|sin_cached"
    r"|cos_sin_cache|norm_factor|scale_attn|relative_position_index|num_batches_tracked|slopes"
    r"|embed_positions|embed_scale|alibi|_float_tensor|version)$"
)
# A causal mask under a bias' name: square, where a linear layer's bias has one dimension.
_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|crossattention)\.bias$")


def is_computed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of that name and shape is no parameter in any version of transformers."""
    if _MASK.search(name):
        return len(shape) >= 2 and shape[-1] == shape[-2]
    return _COMPUTED.search(name) is not None


def is_kept_no_more(name: str, shape: tuple[int, ...], model: PreTrainedModel) -> bool:
    """Whether transformers leaves such a tensor out when it loads `model`, which lacks it."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return (
        is_computed(name, shape)
        or any(name == buffer for buffer, _ in model.named_buffers())
        or any(re.search(pattern, name) for pattern in ignored)
    )
