"""A decoder of transformers as OpenVINO's stateful model: its KV cache is the model's own state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from openvino import opset13
from transformers import DynamicCache

_PLACEHOLDER = 5


class _Past(DynamicCache):
    """A cache that appends to the tensors it was given, layer by layer keys and values."""

    def __init__(self, past: list[torch.Tensor]) -> None:
        super().__init__()
        self.past = past
        self.joined: list[Any] = [None] * len(past)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *rest: Any, **more: Any
    ) -> Any:
        for number, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.joined[number] = torch.cat([self.past[number], new], 2)
        return self.joined[2 * layer], self.joined[2 * layer + 1]

    def get_seq_length(self, layer: int = 0) -> int:
        return int(self.past[0].shape[2])


class _Step(torch.nn.Module):
    """Tokens and past in; logits of the last one, and the past with them, out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, position_ids: Any, past: list[torch.Tensor]) -> Any:
        cache = _Past(past)
        slots = torch.arange(past[0].shape[2] + input_ids.shape[1])
        seen = slots[None, None, None, :] <= position_ids[:, None, :, None]
        logits = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits, *cache.joined


def _sizes(config: Any) -> tuple[int, int]:
    return config.num_key_value_heads, config.hidden_size // config.num_attention_heads


def exported(model: Any) -> torch.export.ExportedProgram:
    """The model's step, any number of rows, tokens and past tokens."""
    heads, size = _sizes(model.config)
    layers = model.config.num_hidden_layers
    past = [torch.zeros(2, heads, _PLACEHOLDER, size) for _ in range(2 * layers)]
    places = torch.arange(_PLACEHOLDER, _PLACEHOLDER + 3)[None].expand(2, 3).contiguous()
    any_size = torch.export.Dim.DYNAMIC
    rows = {0: any_size, 1: any_size}
    shapes = (rows, rows, [{0: any_size, 2: any_size}] * len(past))
    with torch.no_grad():
        return torch.export.export(
            _Step(model), (torch.zeros_like(places), places, past), dynamic_shapes=shapes
        )


def make_stateful(graph: Any, config: Any) -> None:
    """Turn the past that goes in and out into state, which `beam_idx` reorders, as OpenVINO's
    runtime wants it to fuse both with attention."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    for place, name in enumerate(("input_ids", "position_ids")):
        graph.inputs[place].set_names({name})
    graph.outputs[0].set_names({"logits"})
    beams = opset13.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).set_names({"beam_idx"})
    pairs = {}
    for number in range(2 * config.num_hidden_layers):
        past, present = graph.inputs[2 + number], graph.outputs[1 + number]
        past.set_names({f"past.{number}"})
        present.set_names({f"present.{number}"})
        pairs[f"past.{number}"] = f"present.{number}"
        takers = past.get_target_inputs()
        chosen = opset13.gather(past, beams, opset13.constant(0))
        for taker in takers:
            taker.replace_source_output(chosen.output(0))
    graph.add_parameters([beams])
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, pairs)
    heads, size = _sizes(config)
    ids = opset13.shape_of(graph.input("input_ids"), output_type="i64")
    rows = opset13.gather(ids, opset13.constant([0]), opset13.constant(0))
    none = opset13.concat([rows, opset13.constant(np.array([heads, 0, size], np.int64))], 0)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            empty = opset13.broadcast(opset13.constant(np.float32(0)), none)
            node.set_arguments([empty.output(0)])
    graph.validate_nodes_and_infer_types()
