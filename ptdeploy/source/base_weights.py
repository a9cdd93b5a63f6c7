"""The base model's weights: loaded, and every one of them from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ptdeploy.errors import BaseModelError
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.source.base import BaseModel, build_skeleton, quiet_libraries
from ptdeploy.source.buffers import is_computed
from ptdeploy.source.checkpoint import Checkpoint
from ptdeploy.source.quantized_base import (
    dequantized,
    is_bitsandbytes,
    is_quantization,
    read_bitsandbytes,
)
from ptdeploy.source.tied import (
    text_embeddings,
    tied_weights,
    trained_apart,
    untie,
    unused_copies,
)
from ptdeploy.threads import lacks_threads, no_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A folder may hold a base model and an adapter, and transformers would put the one into the other:
# it is told to look for the adapter's configuration where there is none.
_NO_ADAPTER = {"subfolder": "no-adapter-of-the-base"}
_NAMED = 4


def load_pretrained(checkpoint: Checkpoint, base: BaseModel, **options: Any) -> PreTrainedModel:
    """Load the base model alone, in float32 and for evaluation, without the checkpoint's weights.

    Where the base has a configuration but no weights, a full state dict brings all of them, and
    the model is built from the configuration.
    Raises BaseModelError by name for every weight that neither the base's files nor the checkpoint
    hold in the right shape (transformers draws those at random), and for every one that is not
    finite.
    """
    loader: Any = base.kind.auto_class()
    source: dict[str, Any] = {"pretrained_model_name_or_path": base.name, "revision": base.revision}
    try:
        with quiet_libraries():
            if is_bitsandbytes(base.config):
                skeleton = build_skeleton(checkpoint.task, base.config, base.name)
                state = read_bitsandbytes(base.name, base.revision, skeleton)
                source = {"pretrained_model_name_or_path": None, "state_dict": state}
                loader = type(skeleton)  # the automatic class takes no state dict
            model, report = loader.from_pretrained(
                **source,
                config=dequantized(base.config),
                dtype="float32",
                # Mismatches are reported, and _check_report refuses what the checkpoint lacks.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                adapter_kwargs=_NO_ADAPTER,
                trust_remote_code=False,
                **options,
            )
            if "state_dict" in source and model.can_generate():
                _give_generation_config(model, base)
    except Exception as error:  # damaged files and missing packages make it raise anything
        if lacks_threads(error):
            raise no_threads() from error
        if ran_out_of_memory(error):
            raise out_of_memory(
                f"the weights of base model {base.name} do not fit in float32",
                error,
                "A compilation loads them twice, one after the other.",
            ) from error
        if not isinstance(error, OSError) or not _covers(checkpoint, base):
            raise _unloadable(base, error) from error
        with quiet_libraries():
            model = base.kind.auto_class().from_config(base.config, **options)
    else:
        _check_report(checkpoint, base, model, report)
    model = model.float().eval()
    _check_finite(checkpoint, base, model)
    return model


def load_model(checkpoint: Checkpoint, base: BaseModel) -> PreTrainedModel:
    """Load the base model with the checkpoint's head, or with all of its weights, laid over it.

    Attention is the eager kind: it exports to the plain operators that passes work on.
    Raises BaseModelError as load_pretrained does.
    """
    import torch

    from ptdeploy.source.experts import use_dense_experts

    model = load_pretrained(checkpoint, base, attn_implementation="eager")
    _fix_frequencies(model)
    use_dense_experts(model)
    own, unused = model.state_dict(), unused_copies(checkpoint, model)
    # What is not the model's own was found to be a buffer of another version: see resolve_base.
    brought = {
        name: value
        for name, value in checkpoint.weights.items()
        if name in own and own[name].shape == value.shape and name not in unused
    }
    brought |= text_embeddings(checkpoint, model)
    untie(model, brought, checkpoint.copied)
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value)) for name, value in brought.items()}, strict=False
    )
    return model


def _give_generation_config(model: PreTrainedModel, base: BaseModel) -> None:
    """What transformers does itself where it reads the weights."""
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(
            base.name, revision=base.revision
        )


def _unloadable(base: BaseModel, error: Exception) -> BaseModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    problem = f"{base.name}: the base model's weights cannot be loaded ({reason})."
    if isinstance(error, ImportError):
        return BaseModelError(
            problem,
            "Install what it asks for, or pass a base that is saved without it with --base.",
        )
    return BaseModelError(problem, "Pass a folder that holds its weights with --base.")


def _check_report(
    checkpoint: Checkpoint, base: BaseModel, model: PreTrainedModel, report: dict[str, Any]
) -> None:
    """Refuse what transformers drew at random and the checkpoint does not bring either."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    brought = _brought(checkpoint, model)

    def lacks(name: str) -> bool:
        return name in own and name not in brought and not is_computed(name, own[name])

    missing = sorted(name for name in report["missing_keys"] if lacks(name))
    mismatched = sorted(
        (name, tuple(stored), tuple(expected))
        for name, stored, expected in report["mismatched_keys"]
        if lacks(name)
    )
    where = checkpoint.weights_file.name
    leftovers = sorted(n for n in report["unexpected_keys"] if is_quantization(n))
    if leftovers:
        raise BaseModelError(
            f"base model {base.name} holds {_listed(leftovers)}: its weights are quantized, and "
            "its config.json does not say how.",
            "Pass the same model in full precision with --base.",
        )
    if len(missing) > 1 and not set(own) - set(report["missing_keys"]) - brought:
        held = _listed(sorted(report["unexpected_keys"])) or "nothing"
        raise BaseModelError(
            f"base model {base.name} holds none of the {len(own)} weights of a "
            f"{base.config.model_type} model: it lacks {_listed(missing)}, and holds {held}.",
            "Its weights and its config.json are of two models. Pass the base model that the "
            "checkpoint was trained on with --base.",
        )
    if missing:
        one = len(missing) == 1
        raise BaseModelError(
            f"base model {base.name} lacks {_listed(missing)}: {'it was' if one else 'they were'} "
            f"drawn at random in training and {'is' if one else 'are'} not in {where}.",
            "Save the full state dict, torch.save(model.state_dict(), PATH), from the model that "
            "was trained, and compile that. If the base was whole when it was trained on, pass "
            "the whole one with --base.",
        )
    if mismatched:
        name, stored, expected = mismatched[0]
        more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise BaseModelError(
            f"base model {base.name} holds {name} as {stored}, but the model needs {expected}, "
            f"and {where} does not bring it{more}.",
            "Its weights and its config.json do not fit one another, or the checkpoint was trained "
            "on another base model. Pass the right one with --base.",
        )
    if left_out := _left_out(report["unexpected_keys"], model, brought):
        raise BaseModelError(
            f"base model {base.name} holds {_listed(left_out)}, which a {base.config.model_type} "
            "model with its config.json has no place for and would run without.",
            "Its weights and its config.json do not fit one another, or this transformers no "
            "longer computes them. Pass the base model that the checkpoint was trained on with "
            "--base.",
        )


def _left_out(names: Iterable[str], model: PreTrainedModel, brought: set[str]) -> list[str]:
    """Tensors that `model` lacks, of a part of it that runs as the base has it.

    Whole parts that it lacks are of another task or more layers: a pooler, a head, what predicts
    several tokens.
    """
    from torch import nn

    modules = dict(model.named_modules())
    base = [name for name in model.state_dict() if name not in brought]

    def is_left_out(name: str) -> bool:
        part = name.rpartition(".")[0]
        while part not in modules:
            part = part.rpartition(".")[0]
        if part in ("", model.base_model_prefix) or isinstance(modules[part], nn.ModuleList):
            return False
        return any(one.startswith(f"{part}.") for one in base)

    # Their shapes are not told: no parameter has the name that a causal mask has.
    return sorted(name for name in names if not is_computed(name, (1, 1)) and is_left_out(name))


def _check_finite(checkpoint: Checkpoint, base: BaseModel, model: PreTrainedModel) -> None:
    import torch

    brought = _brought(checkpoint, model)
    for name, tensor in model.state_dict().items():
        if name in brought or is_computed(name, tuple(tensor.shape)):
            continue
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        low, high = torch.aminmax(tensor)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise BaseModelError(
                f"base model {base.name}: {name} holds NaN or infinite values.",
                "The file is damaged, or its training diverged. Pass a sound one with --base.",
            )


def _brought(checkpoint: Checkpoint, model: PreTrainedModel) -> set[str]:
    """The names that the checkpoint's weights fill, those tied to one of them included."""
    brought = set(checkpoint.weights) - unused_copies(checkpoint, model)
    brought |= set(text_embeddings(checkpoint, model))
    for target, source in tied_weights(model).items():
        # What was trained in a copy of its module leaves the other as the base has it.
        ends = (target, source), (source, target)
        if any(a in brought and not trained_apart(a, b, checkpoint.copied) for a, b in ends):
            brought |= {target, source}
    return brought


def _covers(checkpoint: Checkpoint, base: BaseModel) -> bool:
    """Whether the checkpoint brings every weight of the model itself."""
    skeleton = build_skeleton(checkpoint.task, base.config, base.name)
    brought = _brought(checkpoint, skeleton)
    return all(
        name in brought or is_computed(name, tuple(tensor.shape))
        for name, tensor in skeleton.state_dict().items()
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


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
