"""The base model: found, checked against the checkpoint before any work, then loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ptdeploy.checkpoint import Checkpoint
from ptdeploy.errors import BaseModelError, TargetUnavailable
from ptdeploy.task import Graph, Task

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class BaseModel:
    """A base model that fits its checkpoint: where it is, its configuration, and its limits.

    `max_positions` counts the positions left for virtual tokens and text together;
    `sliding_window` is how far back, in tokens, a writing decoder's layers that have one see.
    `last_token_head` says that the class logits are read at the last token (decoders), not at the
    first.
    """

    name: str
    revision: str | None
    config: PretrainedConfig = field(repr=False)
    max_positions: int
    sliding_window: int | None
    embedding_dim: int
    num_labels: int
    last_token_head: bool
    token_type_ids: bool

    def context(self, graph: Graph) -> int:
        """Positions for virtual tokens and text together in that graph."""
        if self.sliding_window is None or graph.route == "fused":
            return self.max_positions
        # There new tokens follow the whole buffer, free slots included, so a row's last token may
        # lie nearly two contexts behind its first, and no window may end between them.
        return min(self.max_positions, self.sliding_window // 2)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep torch's and transformers' advice to their developers off our users' terminals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "transformers", "onnxscript")]
    levels = [logger.level for logger in loggers]
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def resolve_base(checkpoint: Checkpoint, override: str | None = None) -> BaseModel:
    """Find the base model and check that the checkpoint fits it, by shape and by name.

    Only the configuration is read, no weights. `override` is a local folder or a hub id.
    Raises BaseModelError if there is none, it cannot be read, or the checkpoint does not fit it.
    """
    name = override or checkpoint.base.name
    if name is None:
        raise BaseModelError(
            f"{checkpoint.path}: does not name its base model.",
            "Pass the folder or hub id of the model it was trained on with --base.",
        )
    revision = None if override else checkpoint.base.revision
    config = _load_config(name, revision)
    skeleton, num_labels = _skeleton(checkpoint, config, name)
    table = skeleton.get_input_embeddings().weight
    embedding_dim = int(table.shape[1])
    if checkpoint.token_dim != embedding_dim:
        raise BaseModelError(
            f"{checkpoint.weights_file}: the virtual tokens have {checkpoint.token_dim} columns, "
            f"but the embeddings of base model {name} have {embedding_dim}.",
            "The checkpoint was trained on another base model. Pass the right one with --base.",
        )
    _check_names(checkpoint, skeleton, name)
    max_positions = _max_positions(config, skeleton)
    if checkpoint.num_virtual_tokens >= max_positions:
        raise BaseModelError(
            f"{checkpoint.weights_file}: {checkpoint.num_virtual_tokens} virtual tokens leave no "
            f"room for text in the {max_positions} positions of base model {name}.",
            "Pass the base model it was trained on with --base, or train with fewer.",
        )
    if checkpoint.labels and len(checkpoint.labels) != num_labels:
        raise BaseModelError(
            f"--labels names {len(checkpoint.labels)} classes, but the head has {num_labels}."
        )
    return BaseModel(
        name=name,
        revision=revision,
        config=config,
        max_positions=max_positions,
        sliding_window=_sliding_window(config) if checkpoint.task is Task.CAUSAL_LM else None,
        embedding_dim=embedding_dim,
        num_labels=num_labels,
        last_token_head=checkpoint.task is Task.SEQ_CLS and hasattr(skeleton, "score"),
        token_type_ids=_is_encoder(checkpoint, skeleton)
        and int(getattr(config, "type_vocab_size", 0) or 0) > 1,
    )


def load_pretrained(checkpoint: Checkpoint, base: BaseModel, **options: Any) -> PreTrainedModel:
    """Load the base model alone, in float32 and for evaluation, without the checkpoint's weights.

    Where the base has a configuration but no weights, a full state dict brings all of them, and
    the model is built from the configuration.
    """
    from safetensors import SafetensorError

    auto = _auto_class(checkpoint.task)
    config = base.config
    try:
        with quiet_libraries():
            model = auto.from_pretrained(
                base.name,
                revision=base.revision,
                config=config,
                dtype="float32",
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, OSError) or not _covers(checkpoint, base):
            raise BaseModelError(
                f"{base.name}: the base model's weights cannot be loaded "
                f"({str(error).splitlines()[0]}).",
                "Pass a folder that holds its weights with --base.",
            ) from None
        with quiet_libraries():
            model = auto.from_config(config, **options).float()
    return model.eval()


def load_model(checkpoint: Checkpoint, base: BaseModel) -> PreTrainedModel:
    """Load the base model with the checkpoint's head, or with all of its weights, laid over it.

    Attention is the eager kind: it exports to the plain operators that passes work on.
    """
    import torch

    from ptdeploy.experts import use_dense_experts

    model = load_pretrained(checkpoint, base, attn_implementation="eager")
    _fix_frequencies(model)
    use_dense_experts(model)
    result = model.load_state_dict(
        {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.weights.items()},
        strict=False,
    )
    assert not result.unexpected_keys, "resolve_base checks every name"
    model.tie_weights()
    return model


def _load_config(name: str, revision: str | None) -> PretrainedConfig:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise TargetUnavailable(
            "Compiling needs transformers, which is not installed here.",
            "pip install 'ptdeploy[compile]'",
        ) from None
    try:
        with quiet_libraries():
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers checks untrusted fields by raising anything
        raise BaseModelError(
            f"{name}: the base model's configuration cannot be read "
            f"({str(error).splitlines()[0]}).",
            "Pass the folder or hub id of the base model with --base.",
        ) from None


def _auto_class(task: Task) -> Any:
    import transformers

    return {
        Task.SEQ_CLS: transformers.AutoModelForSequenceClassification,
        Task.TOKEN_CLS: transformers.AutoModelForTokenClassification,
        Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
    }[task]


def _skeleton(
    checkpoint: Checkpoint, config: PretrainedConfig, name: str
) -> tuple[PreTrainedModel, int]:
    """The model without memory (on torch's meta device), with as many classes as the head has."""
    import torch

    auto = _auto_class(checkpoint.task)

    def build() -> PreTrainedModel:
        try:
            with torch.device("meta"), quiet_libraries():
                return auto.from_config(config)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BaseModelError(
                f"{name}: a {config.model_type} model cannot do {checkpoint.task.value} with its "
                f"configuration ({reason[:200]}).",
                "Pass the base model that the checkpoint was trained on with --base.",
            ) from None

    if checkpoint.task is Task.CAUSAL_LM:
        return build(), 0
    # The adapter's config does not say how many classes there are: the head's own shape does.
    head = {n: checkpoint.weights[n].shape for n in checkpoint.heads}
    for num_labels in sorted({shape[0] for shape in head.values() if shape}):
        config.num_labels = num_labels
        model = build()
        shapes = _shapes(model)
        if all(shapes.get(n) == shape for n, shape in head.items()):
            return model, num_labels
    return build(), int(config.num_labels)


def _shapes(model: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_names(checkpoint: Checkpoint, skeleton: PreTrainedModel, name: str) -> None:
    if not checkpoint.heads and checkpoint.task is not Task.CAUSAL_LM:
        raise BaseModelError(
            f"{checkpoint.weights_file}: holds no trained head, but {checkpoint.task.value} "
            "needs one.",
            "Save the adapter again with PEFT's save_pretrained: it keeps the classifier.",
        )
    shapes = _shapes(skeleton)
    for key, value in checkpoint.weights.items():
        if key not in shapes:
            heads = [n for n in shapes if not n.startswith(f"{skeleton.base_model_prefix}.")]
            raise BaseModelError(
                f"{checkpoint.weights_file}: holds {key!r}, which base model {name} "
                f"({skeleton.config.model_type}) does not have; its head is "
                f"{', '.join(heads) or 'absent'}.",
                "The checkpoint was trained on another base model. Pass the right one with --base.",
            )
        if shapes[key] != value.shape:
            raise BaseModelError(
                f"{checkpoint.weights_file}: {key} has shape {value.shape}, but base model {name} "
                f"expects {shapes[key]}.",
                "The checkpoint was trained on another base model. Pass the right one with --base.",
            )


def _is_encoder(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> bool:
    """Decoders call their class head `score`; GPT-2 would embed token types as words."""
    return checkpoint.task is not Task.CAUSAL_LM and not hasattr(skeleton, "score")


def _max_positions(config: PretrainedConfig, skeleton: PreTrainedModel) -> int:
    """Positions the model can number and attend over; models without a limit get a large one."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    for module_name, module in skeleton.named_modules():
        # RoBERTa numbers from padding_idx + 1, so its table is that much longer than its context.
        offset = getattr(module, "padding_idx", None)
        if module_name.endswith("position_embeddings") and offset is not None:
            limit -= offset + 1
    # Past its original length longrope turns all positions by other frequencies, those of tokens
    # that are in the KV already too: keys that were right for a shorter text are then wrong.
    originals = [
        int(rope["original_max_position_embeddings"])
        for rope in _rope_parameters(config)
        if rope.get("rope_type") == "longrope"
    ]
    return min([limit, *originals])


def _rope_parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The rotary settings of a model, one for each kind of layer where kinds differ."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in found.values() if isinstance(value, Mapping)]
    return kinds or [found]


def _fix_frequencies(model: PreTrainedModel) -> None:
    """Keep rotary frequencies that depend on the text's length at those of a short text.

    Within `max_positions` they never change, and a graph cannot ask.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {name: _constant(kind) for name, kind in kinds.items()}
        elif isinstance(kinds, str):
            module.rope_type = _constant(kinds)


def _constant(rope_type: str) -> str:
    return "default" if "dynamic" in rope_type or rope_type == "longrope" else rope_type


def _sliding_window(config: PretrainedConfig) -> int | None:
    """The window of the layers that have one, in tokens."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not window or "sliding_attention" not in kinds:
        return None
    return int(window) if getattr(config, "use_sliding_window", True) else None


def _covers(checkpoint: Checkpoint, base: BaseModel) -> bool:
    """Whether the checkpoint brings every weight of the model itself."""
    skeleton, _ = _skeleton(checkpoint, base.config, base.name)
    tied = set(getattr(skeleton, "all_tied_weights_keys", {}) or {})
    return set(_shapes(skeleton)) - tied <= set(checkpoint.weights)
