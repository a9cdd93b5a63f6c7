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
    gate = "gate_" if experts.has_gate else ""
    count = experts.down_proj.shape[0]
    shares = hidden_states.new_zeros(hidden_states.shape[0], count)
    shares = shares.scatter(1, top_k_index, top_k_weights.to(hidden_states.dtype))

    def linear(states: torch.Tensor, name: str) -> torch.Tensor:
        weight = getattr(experts, name)
        states = states @ (weight if experts.is_transposed else weight.transpose(1, 2))
        return states + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else states

    states = linear(hidden_states[None], f"{gate}up_proj")
    states = experts._apply_gate(states) if gate else experts.act_fn(states)
    states = linear(states, "down_proj")
    if experts.has_post_expert_norm:
        states = experts.post_expert_norm(states)
    return (states * shares.T[..., None]).sum(0)
