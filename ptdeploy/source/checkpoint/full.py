"""What PEFT's save_pretrained leaves out: the prompt encoder, so that training resumes."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy import arguments
from ptdeploy.arguments import checked, maybe, output, refused
from ptdeploy.errors import CheckpointError, OutputError
from ptdeploy.files import disk_refusal
from ptdeploy.printable import shell_word

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def _peft_model(name: str, value: Any) -> Any:
    from peft import PeftModel

    if not isinstance(value, PeftModel):
        raise refused(name, value, "a peft.PeftModel")
    return value


def _transformers_model(name: str, value: Any) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(value, PreTrainedModel):
        raise refused(name, value, "a model of transformers, as its from_pretrained gives")
    return value


@checked(peft_model=_peft_model, path=arguments.path)
def save_full(peft_model: PeftModel, path: str | Path) -> Path:
    """Save a PeftModel with a trained prompt whole, so that training can resume.

    The folder is a PEFT adapter folder (PEFT itself can load it for inference), of the active
    adapter. Where PEFT keeps what an encoder gives only (P-Tuning, prefix tuning with a projection,
    CPT), `prompt_encoder.safetensors` in it has the embedding table and what is above it; all other
    kinds are whole as PEFT saves them. Returns the folder.
    Raises CheckpointError if the model has no such prompt or holds an evaluated prompt only, and
    OutputError if the folder exists and is not empty.
    """
    from safetensors.torch import save_file

    from ptdeploy.source.checkpoint.peft_adapter import ENCODER_NAME

    path = Path(output("path", path))
    name = str(peft_model.active_adapter)
    tensors = _encoder_tensors(peft_model, name)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        what = "not empty" if path.is_dir() else "no folder"
        raise OutputError(f"{path}: exists and is {what}.", "Choose another folder.")
    # Half a checkpoint would be read as one of another kind: it gets its name when it is whole.
    working = path.absolute().with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        # PEFT would put an adapter that is not called 'default' into a folder below.
        peft_model.save_pretrained(str(working), selected_adapters=[name])
        folder = working if name == "default" else working / name
        if tensors:
            # PEFT has evaluated the prompt, and CPT's delta was cut to its bounds with that.
            tensors = _encoder_tensors(peft_model, name)
            save_file(tensors, str(folder / ENCODER_NAME), metadata={"format": "pt"})
        os.rename(working, path)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        if reason := error.strerror if isinstance(error, OSError) else disk_refusal(error):
            raise OutputError(f"{path}: cannot be written ({reason}).") from error
        raise
    return path


def _encoder_tensors(peft_model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """What PEFT would leave out of an adapter; none of the kinds that it saves whole.

    Raises CheckpointError if the adapter is no prompt, or its encoder is gone already.
    """
    from ptdeploy.source.checkpoint.types import KINDS

    config = peft_model.peft_config[name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in KINDS:
        raise CheckpointError(
            f"save_full: the model is {kind}, no prompt that ptdeploy compiles.",
            f"It saves {', '.join(KINDS)}.",
        )
    projected = kind == "PREFIX_TUNING" and config.prefix_projection
    words = "projection" if projected else {"P_TUNING": "MLP", "CPT": "delta"}.get(kind)
    if words is None:
        return {}
    found = peft_model.prompt_encoder[name].state_dict()
    layers = {"MLP": "mlp_head.", "projection": "transform.", "delta": "delta_embedding."}[words]
    # A CPT that was loaded for inference has a delta too, of nothing but zeros.
    if not any(key.startswith(layers) for key in found) or (
        words == "delta" and config.inference_mode
    ):
        raise CheckpointError(
            f"save_full: the model holds an evaluated prompt only; its {words} is gone.",
            "Call save_full on the model that was trained, not on one loaded for inference.",
        )
    return {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}


@checked(base=_transformers_model, path=arguments.path, adapter=maybe(arguments.text))
def load_full(base: Any, path: str | Path, adapter: str | None = None) -> PeftModel:
    """Load what `save_full` wrote onto a base model, ready to train on.

    `base` is the transformers model that the adapter was trained on. The PeftModel's prompt encoder
    and head hold the saved model's tensors bit for bit. The adapter keeps its folder's name, but
    one that no module can have becomes `default`.
    Raises CheckpointError if what made the prompt was not saved.
    """
    import torch
    from peft import get_peft_model, set_peft_model_state_dict

    from ptdeploy.source.checkpoint import read_any_task
    from ptdeploy.source.checkpoint.peft_adapter import WEIGHT_NAMES, read_adapter
    from ptdeploy.source.checkpoint.peft_config import BEGAN_AS, CONFIG_NAME
    from ptdeploy.source.checkpoint.peft_objects import module_name, own_config
    from ptdeploy.source.checkpoint.tensors import read_json

    checkpoint = read_any_task(path, adapter)
    if not checkpoint.resumable:
        raise CheckpointError(
            f"{path}: has no prompt encoder, so training cannot resume from it.",
            "Only ptdeploy.save_full or a full state dict keeps what made the prompt.",
        )
    folder = checkpoint.weights_file.parent
    if checkpoint.weights_file.name not in WEIGHT_NAMES:
        raise CheckpointError(
            f"{path}: is no folder that save_full wrote.",
            f"Make one of it: ptdeploy convert {shell_word(path)} --to full -o FOLDER",
        )
    # PeftModel.from_pretrained refuses is_trainable for prompt learning, so the model is built as
    # for a new training, and then given the trained tensors.
    config, name = own_config(checkpoint), module_name(checkpoint.adapter)
    config.inference_mode = False
    model = get_peft_model(base, config, name)
    began_as = read_json(folder / CONFIG_NAME)
    for field in BEGAN_AS:
        if field in began_as:
            setattr(config, field, began_as[field])
    tensors = read_adapter(checkpoint.weights_file)
    if checkpoint.encoder is not None:
        # An encoder has a table of its own in the place of what it gives.
        own = {n: torch.from_numpy(array) for n, array in checkpoint.encoder.tensors.items()}
        tensors["prompt_embeddings"] = own["embedding.weight"]
    set_peft_model_state_dict(model, tensors, name)
    if checkpoint.encoder is not None:
        model.prompt_encoder[name].load_state_dict(own)
    return model
