"""Mixtures of experts as a graph can hold them: all experts for all tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE = "ptdeploy_dense"


def use_dense_experts(model: PreTrainedModel) -> None:
    """Make every mixture of experts in `model` run all of them, weighed by 0 where not chosen.

    transformers' own ways either loop over what the tokens chose, which no graph can, or gather a
    copy of an expert's weights for each token, which no memory holds. A model without such a
    mixture stays as it is.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(DENSE, _dense)
    model.set_experts_implementation(DENSE)


def _dense(
    experts: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """All experts of a layer as two products, each with one matrix: such are quantized as any, and
    every engine has a fast one.

    What an expert adds is linear in its inner activations, so that they are weighed, and the second
    product sums over experts too.
    """
    count = experts.down_proj.shape[0]
    shares = hidden_states.new_zeros(hidden_states.shape[0], count)
    shares = shares.scatter(1, top_k_index, top_k_weights.to(hidden_states.dtype))
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    up, down = getattr(experts, name), experts.down_proj
    if experts.is_transposed:
        states = hidden_states @ up.transpose(0, 1).reshape(up.shape[1], -1)
    else:
        states = hidden_states @ up.reshape(-1, up.shape[2]).T
        down = down.transpose(1, 2)
    states = states.unflatten(-1, (count, -1))
    if experts.has_bias:
        states = states + getattr(experts, f"{name}_bias")
    states = experts._apply_gate(states) if experts.has_gate else experts.act_fn(states)
    if experts.has_post_expert_norm:
        return _normed(experts, states.transpose(0, 1) @ down, shares)
    given: torch.Tensor = (states * shares[..., None]).flatten(1) @ down.reshape(-1, down.shape[2])
    # From the left: a bias is no weight to be quantized.
    return given + (experts.down_proj_bias.T @ shares.T).T if experts.has_bias else given


def _normed(experts: Any, states: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The weighed sum of what each expert gives, (experts, tokens, width), behind a norm."""
    if experts.has_bias:
        states = states + experts.down_proj_bias[:, None]
    given: torch.Tensor = experts.post_expert_norm(states) * shares.T[..., None]
    return given.sum(0)
