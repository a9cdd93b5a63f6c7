"""Freezing: the prompt encoder evaluated once, and for a decoder its prefix KV."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import BaseModelError, CheckpointError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.runtime.prompts import prompt_sha256
from ptdeploy.source.checkpoint import Checkpoint, PromptEncoderState
from ptdeploy.source.checkpoint.prefix import side_by_side
from ptdeploy.source.glm import placed_prefix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ptdeploy.bundle.signature import Signature
    from ptdeploy.bundle.task import TensorSpec

PROMPT_NAME = "prompt.safetensors"

# An evaluated prompt stored beside its encoder must be that encoder's output, not an older one's.
# In 16 bits it was off by up to 0.7 of the type's steps at its largest value, on random encoders.
_STALE, _STEPS = 1e-4, 4
_BFLOAT16_STEP, _FLOAT16_STEP = 2.0**-7, 2.0**-10


@dataclass(frozen=True)
class Prompt:
    """A frozen prompt.

    `virtual_tokens` has shape (num_virtual_tokens, token_dim), float32; None where a prefix KV was
    trained itself. `prefix_kv` is there for a causal decoder, and where it was trained: shape
    (layers, 2, kv heads, num_virtual_tokens, head dim), float32, keys before values; it comes
    first, so it depends on nothing else. `head` holds parameters of the head that was trained with
    it, float32, by the names of the graph's inputs.
    """

    virtual_tokens: NDArray[np.float32] | None = field(repr=False)
    prefix_kv: NDArray[np.float32] | None = field(repr=False, default=None)
    head: Mapping[str, NDArray[np.float32]] = field(repr=False, default_factory=dict)

    @property
    def num_virtual_tokens(self) -> int:
        if self.virtual_tokens is not None:
            return int(self.virtual_tokens.shape[0])
        assert self.prefix_kv is not None
        return int(self.prefix_kv.shape[3])

    @property
    def sha256(self) -> str:
        """See prompt_sha256."""
        return prompt_sha256(self.virtual_tokens, self.prefix_kv)


def own_sizes(signature: Signature, prompts: Iterable[Prompt]) -> dict[str, int]:
    """The largest size that one of the prompts gives to each named axis of a graph's inputs."""
    found: dict[str, int] = {}
    for prompt in prompts:
        for spec in signature.inputs:
            for axis, size in zip(spec.shape, _given(spec, prompt), strict=False):
                if isinstance(axis, str):
                    found[axis] = max(found.get(axis, 1), size)
    return found


def _given(spec: TensorSpec, prompt: Prompt) -> tuple[int, ...]:
    """The shape in which a prompt alone is given to an input; () if the input is no prompt's."""
    if spec.role == "head":
        return (1, *prompt.head[spec.name].shape)
    if spec.role == "table" and prompt.virtual_tokens is not None:
        return prompt.virtual_tokens.shape
    if spec.role == "prefix" and prompt.prefix_kv is not None:
        layers, two, *rest = prompt.prefix_kv.shape
        return (layers * two, *rest) if len(spec.shape) == 4 else (1, layers * two, *rest)
    return ()


def evaluate_prompt_encoder(encoder: PromptEncoderState) -> NDArray[np.float32]:
    """Run the prompt encoder once over its own embedding table.

    Returns the virtual tokens, shape (num_virtual_tokens, token_dim), float32; of a projection the
    keys and values, (num_virtual_tokens, layers * 2 * token_dim).
    Raises CheckpointError if the layers' shapes do not fit one another.
    Source: PEFT's PromptEncoder, PrefixEncoder and CPTEmbedding, peft/tuners/p_tuning/model.py,
    prefix_tuning/model.py and cpt/model.py (Liu et al. 2021, "GPT Understands, Too"; Li
    and Liang 2021).
    """
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in encoder.tensors.items()}
    hidden = tensors["embedding.weight"]
    try:
        with torch.no_grad():
            if encoder.kind == "LSTM":
                lstm = torch.nn.LSTM(
                    input_size=hidden.shape[1],
                    hidden_size=encoder.hidden_size,
                    num_layers=encoder.num_layers,
                    bidirectional=True,
                    batch_first=True,
                )
                prefix = "lstm_head."
                lstm.load_state_dict(
                    {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
                )
                hidden = lstm(hidden[None])[0][0]
            name, between = "mlp_head", torch.relu
            if encoder.kind == "projection":
                name, between = "transform", torch.tanh
            if encoder.kind == "delta":
                hidden = hidden + tensors["delta_embedding.weight"]
            layers = {"MLP": (0, 2, 4), "delta": ()}.get(encoder.kind, (0, 2))
            for layer in layers:
                hidden = torch.nn.functional.linear(
                    hidden, tensors[f"{name}.{layer}.weight"], tensors[f"{name}.{layer}.bias"]
                )
                if layer != layers[-1]:
                    hidden = between(hidden)
    except (RuntimeError, ValueError, IndexError) as error:
        if ran_out_of_memory(error):
            raise
        raise CheckpointError(
            f"The {encoder.kind} prompt encoder's layers do not fit one another "
            f"({str(error).splitlines()[0]}).",
            "The checkpoint is damaged. Save it again from the trained model.",
        ) from error
    return cast("NDArray[np.float32]", hidden.numpy())


def freeze(
    checkpoint: Checkpoint, model: PreTrainedModel, with_prefix_kv: bool, with_head: bool
) -> Prompt:
    """Evaluate the prompt once, and for a causal decoder the keys and values it leaves behind.

    `with_head` takes along the head that was trained with it.

    Raises CheckpointError if an evaluated prompt and the encoder beside it disagree or the encoder
    gives NaN, and BaseModelError if the base model is not causal.
    """
    from ptdeploy.program.head import trained_head

    if checkpoint.is_base:
        # A token of its own stands in for a prompt: programs take shapes from it, and nothing else.
        token = model.get_input_embeddings().weight[:1].detach().numpy()
        return Prompt(token, prefix_kv(model, token))
    head = trained_head(model, checkpoint.weights) if with_head else {}
    found = evaluated_prompt(checkpoint)
    if checkpoint.prefix_kv is not None:
        return Prompt(None, trained_prefix(checkpoint, model, with_prefix_kv), head)
    return Prompt(found, prefix_kv(model, found) if with_prefix_kv else None, head)


def evaluated_prompt(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """A checkpoint's virtual tokens, (tokens, width), or its prefix KV, float32.

    What is stored is taken as it is, as PEFT does; else the prompt encoder is evaluated.
    Raises CheckpointError if what is stored and the encoder beside it disagree, or the encoder
    gives NaN.
    """
    encoder = checkpoint.encoder
    made = None if encoder is None else evaluate_prompt_encoder(encoder)
    if checkpoint.prefix_kv is not None:
        if made is not None:
            _check_stale(checkpoint, side_by_side(checkpoint.prefix_kv), made)
        return checkpoint.prefix_kv
    if checkpoint.virtual_tokens is not None:
        if made is not None:
            _check_stale(checkpoint, checkpoint.virtual_tokens, made)
        return checkpoint.virtual_tokens
    assert made is not None, "a Checkpoint has virtual tokens or an encoder"
    if made.shape[1] != checkpoint.token_dim or not np.isfinite(made).all():
        raise CheckpointError(
            f"{checkpoint.weights_file}: the prompt encoder gives NaN or the wrong width "
            f"{made.shape[1]} instead of {checkpoint.token_dim}.",
            "The training diverged or the file is damaged; deploy an earlier checkpoint.",
        )
    return made


def _check_stale(
    checkpoint: Checkpoint, stored: NDArray[np.float32], evaluated: NDArray[np.float32]
) -> None:
    """Raises CheckpointError unless the stored prompt is what the encoder beside it gives."""
    if stored.shape == evaluated.shape:
        most = max(_STALE, _STEPS * _step(stored) * float(np.abs(stored).max()))
        if np.allclose(stored, evaluated, rtol=_STALE, atol=most):
            return
        how = f"they differ by {np.abs(stored - evaluated).max():.2g}"
    else:
        how = f"their shapes are {stored.shape} and {evaluated.shape}"
    raise CheckpointError(
        f"{checkpoint.weights_file}: prompt_embeddings is not what the prompt encoder beside it "
        f"gives ({how}).",
        "One of the two files is from another training step. Save both again together.",
    )


def _step(values: NDArray[np.float32]) -> float:
    """The step at 1 of the type with 16 bits that values were computed in, 0 of none.

    It is told from the values: a conversion may have stored them in float32 since.
    """
    if not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any():
        return _BFLOAT16_STEP
    with np.errstate(over="ignore"):
        held = np.array_equal(values, values.astype(np.float16))
    return _FLOAT16_STEP if held else 0.0


def trained_prefix(
    checkpoint: Checkpoint, model: PreTrainedModel, takes_prefix: bool
) -> NDArray[np.float32]:
    """The checkpoint's own prefix KV, numbered as here all are.

    Raises BaseModelError if the base has none of its shape.
    """
    import torch

    found = checkpoint.prefix_kv
    assert found is not None, "the caller has one"
    if takes_prefix or not is_encoder(model):
        table = model.get_input_embeddings().weight
        with torch.no_grad():
            own = tuple(_keys_and_values(model, table[None, : found.shape[3]]).shape)
    else:
        own = encoders_prefix_shape(model, found.shape[3])
    if (own[:3], own[4]) != (found.shape[:3], found.shape[4]):
        raise BaseModelError(
            f"{checkpoint.weights_file}: its prefix KV is of {found.shape[0]} layers with "
            f"{found.shape[2]} heads of {found.shape[4]}, but the base model has {own[0]} with "
            f"{own[2]} of {own[4]}.",
            "The checkpoint was trained on another base model. Pass the right one with --base.",
        )
    return placed_prefix(checkpoint, model)


def is_encoder(model: PreTrainedModel) -> bool:
    """Whether a model's tokens see each other both ways: transformers' encoders have one module of
    all embeddings, its decoders one of words alone."""
    return hasattr(backbone(model), "embeddings")


def encoders_prefix_shape(model: PreTrainedModel, tokens: int) -> tuple[int, ...]:
    """The shape of an encoder's prefix KV. Raises BaseModelError if it takes none."""
    config, kind = model.config, model.config.model_type
    takes = inspect.signature(backbone(model).forward).parameters
    if "past_key_values" not in takes or not hasattr(model, "classifier"):
        raise BaseModelError(
            f"{kind}: takes no keys and values before its text, which a trained prefix KV is.",
            "PEFT trains none on it either. Pass the base model it was trained on with --base.",
        )
    heads = int(config.num_attention_heads)
    return int(config.num_hidden_layers), 2, heads, tokens, int(config.hidden_size) // heads


def save_prompt(prompt: Prompt, folder: Path) -> str:
    """Write virtual tokens, prefix KV if any and head as safetensors; gives the file's name."""
    from safetensors.numpy import save_file

    tensors = dict(prompt.head)
    if prompt.virtual_tokens is not None:
        tensors["virtual_tokens"] = prompt.virtual_tokens
    if prompt.prefix_kv is not None:
        tensors["prefix_kv"] = prompt.prefix_kv
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / PROMPT_NAME)
    return PROMPT_NAME


def prefix_kv(model: PreTrainedModel, virtual_tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every layer's keys and values for the virtual tokens, at positions 0 to n-1.

    Returns shape (layers, 2, kv heads, num_virtual_tokens, head dim), float32.
    Raises BaseModelError if what follows the prompt changes them: then they are no constants.
    """
    import torch

    tokens = torch.from_numpy(virtual_tokens)[None]
    alone = _keys_and_values(model, tokens)
    table = model.get_input_embeddings().weight
    followed = _keys_and_values(model, torch.cat([tokens, table[None, :1]], dim=1))
    difference = (alone - followed[..., : tokens.shape[1], :]).abs().max().item()
    if difference > 1e-4 * max(1.0, alone.abs().max().item()):
        raise BaseModelError(
            f"{model.config.model_type}: the keys and values of the virtual tokens change with the "
            f"text after them (by {difference:.2g}), so the model is not a causal decoder.",
            "Pass the base model the checkpoint was trained on with --base.",
        )
    return cast("NDArray[np.float32]", alone.numpy())


def _keys_and_values(model: PreTrainedModel, embeds: torch.Tensor) -> torch.Tensor:
    import torch
    from transformers.cache_utils import DynamicCache

    kind = model.config.model_type
    # A cache that knows the model's configuration forgets what a sliding window has left.
    cache = DynamicCache()
    try:
        with torch.no_grad():
            backbone(model)(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        tensors = [(layer.keys, layer.values) for layer in cache.layers]
        if without := [at for at, (keys, _) in enumerate(tensors) if keys is None]:
            raise ValueError(f"layer {without[0]} keeps none")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"{kind}: its layers keep more, or something else, than keys and values "
            f"({str(error).splitlines()[0][:200]}), which is not supported.",
            "The README's support table has the models that work.",
        ) from error
    if not tensors:
        raise BaseModelError(
            f"{kind}: gives no KV cache, so cannot generate.",
            "The README's support table has the models that work.",
        )
    shapes = {tuple(tensor.shape) for pair in tensors for tensor in pair}
    if len(shapes) > 1:
        raise BaseModelError(
            f"{kind}: its layers have keys and values of different shapes {sorted(shapes)}, "
            "which is not supported.",
            "The README's support table has the models that work.",
        )
    return torch.stack([torch.cat(pair) for pair in tensors])


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head."""
    return cast(
        "torch.nn.Module", getattr(model, model.base_model_prefix, None) or model.get_decoder()
    )
