"""The base model: found, and checked against the checkpoint before any weight is read."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.bundle import Route
from ptdeploy.bundle.task import Task
from ptdeploy.errors import BaseModelError, TargetUnavailable
from ptdeploy.files import POINTER_FIX, POINTER_PROBLEM, pointer_in
from ptdeploy.program.kinds import ProgramKind, kind_of
from ptdeploy.source import glm
from ptdeploy.source.base_config import check_config_files
from ptdeploy.source.buffers import is_computed, is_kept_no_more
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.checkpoint.names import TEXT_EMBEDDINGS
from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME
from ptdeploy.source.quantized_base import check_quantization, is_quantization
from ptdeploy.source.tied import text_embeddings, unused_copies

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class BaseModel:
    """A base model that fits its checkpoint: where it is, its configuration, and its limits.

    `max_positions` counts the positions left for virtual tokens and text together;
    `sliding_window` is how far back, in tokens, a writing decoder's layers that have one see.
    `vocab_size` counts its embeddings. `type_vocab_size` is how many segments (token_type_ids) it
    tells apart, 0 without. `kind` builds its program. `notes` say what was made to fit, for the
    user to read.
    """

    name: str
    revision: str | None
    config: PretrainedConfig = field(repr=False)
    max_positions: int
    sliding_window: int | None
    embedding_dim: int
    vocab_size: int
    num_labels: int
    type_vocab_size: int
    kind: ProgramKind
    notes: tuple[str, ...] = ()

    @property
    def pad_token_id(self) -> int | None:
        """The id of padding, where the configuration names one and it is a token."""
        found = getattr(self.config.get_text_config(), "pad_token_id", None)
        return found if isinstance(found, int) and 0 <= found < self.vocab_size else None

    def context(self, graph: Route) -> int:
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
    # To set a level costs a look at every logger of the process: not within another such block.
    louder = [(one, one.level) for one in loggers if one.level != logging.ERROR]
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger, _ in louder:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for logger, level in louder:
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
            "Pass the folder or hub id of the model it was trained on with --base."
            + _model_beside(checkpoint),
        )
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    if (unfetched := pointer_in(Path(name))) is not None:
        raise BaseModelError(f"{unfetched}: {POINTER_PROBLEM}", POINTER_FIX)
    revision = None if override else checkpoint.base.revision
    config = _load_config(checkpoint, name, revision, override)
    if checkpoint.text_from_zero and config.model_type not in glm.ARCHITECTURES:
        raise BaseModelError(
            f"{name}: is a {config.model_type} model, but the checkpoint's prefix KV is ChatGLM's, "
            f"which runs on transformers' {' and '.join(glm.ARCHITECTURES)} alone.",
            glm.HOW,
        )
    quantized = check_quantization(config, name)
    skeleton, num_labels, resized = _skeleton(checkpoint, config, name)
    table = skeleton.get_input_embeddings().weight
    embedding_dim = int(table.shape[1])
    has_tokens = checkpoint.prefix_kv is None and not checkpoint.is_base
    if has_tokens and checkpoint.token_dim != embedding_dim:
        raise BaseModelError(
            f"{checkpoint.weights_file}: the virtual tokens have {checkpoint.token_dim} columns, "
            f"but the embeddings of base model {name} have {embedding_dim}.",
            "The checkpoint was trained on another base model. Pass the right one with --base.",
        )
    _check_positions(skeleton, name)
    kind = kind_of(checkpoint.task, skeleton)
    dropped = _check_names(checkpoint, skeleton, name)
    _check_text_embeddings(checkpoint, skeleton, name)
    unused = _unused(checkpoint, skeleton)
    max_positions = _max_positions(config.get_text_config(), skeleton)
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
        sliding_window=_sliding_window(config.get_text_config()) if kind.keeps_kv_buffer else None,
        embedding_dim=embedding_dim,
        vocab_size=int(table.shape[0]),
        num_labels=num_labels,
        type_vocab_size=_segments(config) if _tells_segments(kind, skeleton) else 0,
        kind=kind,
        notes=tuple(note for note in (quantized, resized, dropped, *unused) if note),
    )


def _check_positions(skeleton: PreTrainedModel, name: str) -> None:
    """Refuse what transformers' BERTs had before 5: it now adds absolute positions in silence."""
    config = skeleton.config
    asked = getattr(config, "position_embedding_type", None) or "absolute"
    adds = any(path.endswith("position_embeddings") for path, _ in skeleton.named_modules())
    code = sys.modules[type(skeleton).__module__]
    if asked != "absolute" and adds and "position_embedding_type" not in inspect.getsource(code):
        raise BaseModelError(
            f'{name}: config.json asks for position_embedding_type "{asked}", which '
            f"{type(skeleton).__name__} of this transformers does not read: it has absolute "
            "positions alone.",
            "Train on a base model with absolute positions, and pass that with --base.",
        )


def _check_text_embeddings(checkpoint: Checkpoint, skeleton: PreTrainedModel, name: str) -> None:
    shape = tuple(skeleton.get_input_embeddings().weight.shape)
    trained = checkpoint.text_embeddings
    found = text_embeddings(checkpoint, skeleton) if trained is None else {TEXT_EMBEDDINGS: trained}
    for own, table in found.items():
        if table.shape != shape:
            raise BaseModelError(
                f"{checkpoint.weights_file}: {own} has shape {table.shape}, but base model {name} "
                f"expects {shape}.",
                "The checkpoint was trained on another base model. Pass the right one with --base.",
            )


def _unused(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> list[str]:
    """A note on each trained copy that does not run, unless PEFT's second one runs in its place."""
    if checkpoint.text_embeddings is not None:
        return []
    return [
        f"left out {name}: beside virtual tokens PEFT trains it in a copy that it never runs, and "
        "takes the untrained one"
        for name in sorted(unused_copies(checkpoint, skeleton))
    ]


def _load_config(
    checkpoint: Checkpoint, name: str, revision: str | None, override: str | None
) -> PretrainedConfig:
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise TargetUnavailable(
            "Compiling needs transformers, which is not installed here.",
            "pip install 'ptdeploy[compile]'",
        ) from error
    named = "" if override else f", which {checkpoint.path} names"
    if _is_path(name) and not Path(name).exists():
        raise BaseModelError(
            f"{name}: the base model{named}, is not on this machine."
            if named
            else f"{name}: the base model is not on this machine.",
            "Pass the folder where it is here, or its hub id, with --base."
            + _model_beside(checkpoint),
        )
    try:
        with quiet_libraries():
            check_config_files(name, revision)
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        # How a caller takes outputs is no part of a model; a part for text has a flag of its own.
        config.return_dict = _text_part(config).return_dict = True
    except Exception as error:  # transformers checks untrusted fields by raising anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "Pass the folder or hub id of the base model with --base." + _model_beside(checkpoint)
        if Path(name).suffix == ".gguf" or (Path(name).is_dir() and any(Path(name).glob("*.gguf"))):
            fix = "GGUF is not read: pass the model as transformers saves it with --base."
        elif Path(name).is_dir() and (Path(name) / CONFIG_NAME).is_file():
            fix = f"It holds an adapter. {fix}"
        elif Path(name).is_file():
            fix = "Pass the folder that the model was saved to, not one of its files."
        elif checkpoint.text_from_zero:
            fix = f"ChatGLM's own model is remote code, which ptdeploy does not run. {glm.HOW}"
        raise BaseModelError(
            f"{name}: the base model's configuration cannot be read ({reason}).", fix
        ) from error
    return config


def _text_part(config: PretrainedConfig) -> PretrainedConfig:
    """Raises ValueError unless a configuration has one part for text, or is one itself."""
    from transformers import PretrainedConfig

    part: object = config.get_text_config()
    if not isinstance(part, PretrainedConfig):
        raise ValueError(f"its text_config is no part that a {config.model_type} has")
    return part


def _is_path(name: str) -> bool:
    """Whether a base model's name can be no hub id, but a path here or on another system."""
    return Path(name).is_absolute() or "\\" in name or name[:1] in ".~" or name.count("/") > 1


def _model_beside(checkpoint: Checkpoint) -> str:
    """Advice where the base model lies in the adapter's own folder."""
    folder = checkpoint.weights_file.parent
    return f" {folder} holds a model itself." if (folder / "config.json").is_file() else ""


def build_skeleton(task: Task, config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model without memory, on torch's meta device.

    Raises BaseModelError if transformers makes no such model of the configuration.
    """
    import torch

    try:
        with torch.device("meta"), quiet_libraries():
            model: PreTrainedModel = kind_of(task).auto_class().from_config(config)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BaseModelError(
            f"{name}: a {config.model_type} model cannot do {task.value} with its "
            f"configuration ({reason[:200]}).",
            "Pass the base model that the checkpoint was trained on with --base.",
        ) from error
    return model


def _skeleton(
    checkpoint: Checkpoint, config: PretrainedConfig, name: str
) -> tuple[PreTrainedModel, int, str | None]:
    """The model without memory, with the vocabulary and the classes that the checkpoint brings.

    Returns its number of classes too, and a note where the vocabulary is not the base's.
    """
    skeleton = build_skeleton(checkpoint.task, config, name)
    rows = _vocabulary(checkpoint, skeleton)
    note = None
    if rows is not None:
        text = config.get_text_config()
        note = (
            f"{checkpoint.weights_file.name} brings its own token embeddings, of {rows} tokens; "
            f"the base model has {text.vocab_size}"
        )
        text.vocab_size = rows
        skeleton = build_skeleton(checkpoint.task, config, name)
    if not kind_of(checkpoint.task).has_trained_head:
        return skeleton, 0, note
    # The adapter's config does not say how many classes there are: the head's own shape does.
    head = {n: checkpoint.weights[n].shape for n in _heads(checkpoint, skeleton)}
    for num_labels in (None, *sorted({shape[0] for shape in head.values() if shape})):
        if num_labels is not None:
            config.num_labels = num_labels
            skeleton = build_skeleton(checkpoint.task, config, name)
        shapes = _shapes(skeleton)
        if all(shapes.get(n) == shape for n, shape in head.items()):
            break
    return skeleton, int(config.num_labels), note


def _vocabulary(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> int | None:
    """The rows of the checkpoint's own token embeddings, where the base has more or fewer."""
    table = skeleton.get_input_embeddings().weight
    for name, parameter in skeleton.named_parameters():
        own = checkpoint.weights.get(name)
        if parameter is table and own is not None:
            same_width = own.ndim == 2 and own.shape[1] == table.shape[1]
            return own.shape[0] if same_width and own.shape != table.shape else None
    return None


def _heads(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> tuple[str, ...]:
    """The trained head: what PEFT marks as such, or what stands beside the model's body."""
    body = f"{skeleton.base_model_prefix}."
    return checkpoint.heads or tuple(n for n in checkpoint.weights if not n.startswith(body))


def _shapes(model: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_names(checkpoint: Checkpoint, skeleton: PreTrainedModel, name: str) -> str | None:
    """Refuse what the base model has no place for; a note on buffers that were left out."""
    brings = not checkpoint.of_peft or _heads(checkpoint, skeleton)
    if not brings and kind_of(checkpoint.task).has_trained_head:
        raise BaseModelError(
            f"{checkpoint.weights_file}: holds no trained head, but {checkpoint.task.value} "
            "needs one.",
            "Save the adapter again with PEFT's save_pretrained: it keeps the classifier.",
        )
    shapes = _shapes(skeleton)
    dropped = []
    found = {key: value.shape for key, value in checkpoint.weights.items()}
    found.update({key: tensor.shape for key, tensor in checkpoint.unusable.items()})
    for key, shape in found.items():
        if key not in shapes and is_kept_no_more(key, shape, skeleton):
            dropped.append(key)
        elif key not in shapes:
            raise _foreign(checkpoint, key, skeleton, name)
        elif key in checkpoint.unusable:
            if not is_computed(key, shape):
                raise checkpoint.unusable[key].error
            dropped.append(key)
        elif shapes[key] != shape and is_computed(key, shape):
            dropped.append(key)
        elif shapes[key] != shape:
            raise BaseModelError(
                f"{checkpoint.weights_file}: {key} has shape {shape}, but base model {name} "
                f"expects {shapes[key]}.",
                "The checkpoint was trained on another base model. Pass the right one with --base.",
            )
    if not dropped:
        return None
    more = f" and {len(dropped) - 2} more" if len(dropped) > 2 else ""
    return (
        f"left out {', '.join(sorted(dropped)[:2])}{more}: this transformers reckons "
        f"{'it' if len(dropped) == 1 else 'them'} itself"
    )


def _foreign(
    checkpoint: Checkpoint, key: str, skeleton: PreTrainedModel, name: str
) -> BaseModelError:
    """The error for a tensor that the base model has no place for."""
    where = f"{checkpoint.weights_file}: holds {key!r}"
    outer, copy, _ = key.partition(".modules_to_save.")
    if copy:
        return BaseModelError(
            f"{where}, a copy of a module within a copy of {outer}: modules_to_save names the end "
            "of both their names, and PEFT says nothing of which it runs.",
            f"Train it again with modules_to_save=[{outer!r}].",
        )
    if is_quantization(key):
        return BaseModelError(
            f"{where}: the base model was quantized in training, and its weights are no numbers "
            "alone.",
            "Compile the adapter that save_pretrained wrote, with the base model in full precision "
            "as --base.",
        )
    body = f"{skeleton.base_model_prefix}."
    heads = [n for n in _shapes(skeleton) if not n.startswith(body)]
    return BaseModelError(
        f"{where}, which base model {name} ({skeleton.config.model_type}) does not have; its head "
        f"is {', '.join(heads) or 'absent'}.",
        "The checkpoint was trained on another base model. Pass the right one with --base.",
    )


def _tells_segments(kind: ProgramKind, skeleton: PreTrainedModel) -> bool:
    """Decoders call their class head `score`; GPT-2 would embed token types as words."""
    return kind.takes_segments and not hasattr(skeleton, "score")


def _segments(config: PretrainedConfig) -> int:
    """How many segments (token_type_ids) an encoder tells apart; 0 where it has but one."""
    found = int(getattr(config, "type_vocab_size", 0) or 0)
    return found if found > 1 else 0


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


def _sliding_window(config: PretrainedConfig) -> int | None:
    """The window of the layers that have one, in tokens."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not window or "sliding_attention" not in kinds:
        return None
    return int(window) if getattr(config, "use_sliding_window", True) else None
