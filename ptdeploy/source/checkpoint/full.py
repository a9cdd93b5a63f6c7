"""What PEFT's save_pretrained leaves out: the prompt encoder, so that training resumes."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.errors import CheckpointError, OutputError
from ptdeploy.files import disk_refusal

if TYPE_CHECKING:
    from peft import PeftModel


def save_full(peft_model: PeftModel, path: str | Path) -> Path:
    """Save a P-Tuned PeftModel whole: adapter, evaluated prompt, and prompt encoder.

    The folder is a PEFT adapter folder (PEFT itself can load it for inference) plus
    `prompt_encoder.safetensors` with the embedding table and the MLP or LSTM above it, of the
    active adapter. Returns the folder.
    Raises CheckpointError if the model is not P-Tuned or holds an evaluated prompt only, and
    OutputError if the folder exists and is not empty.
    """
    from peft import PeftType
    from safetensors.torch import save_file

    from ptdeploy.source.checkpoint.peft_adapter import ENCODER_NAME

    path = Path(path)
    name = str(peft_model.active_adapter)
    config = peft_model.peft_config[name]
    if config.peft_type != PeftType.P_TUNING:
        raise CheckpointError(f"save_full: the model is {config.peft_type}, not P-Tuned.")
    encoder = peft_model.prompt_encoder[name]
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    if not any(key.startswith("mlp_head.") for key in tensors):
        raise CheckpointError(
            "save_full: the model holds an evaluated prompt only; its MLP is gone.",
            "Call save_full on the model that was trained, not on one loaded for inference.",
        )
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        what = "not empty" if path.is_dir() else "no folder"
        raise OutputError(f"{path}: exists and is {what}.", "Choose another folder.")
    # Half a checkpoint would be read as one of another kind: it gets its name when it is whole.
    working = path.absolute().with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        # PEFT would put an adapter that is not called 'default' into a folder below.
        peft_model.save_pretrained(str(working), selected_adapters=[name])
        folder = working if name == "default" else working / name
        save_file(tensors, str(folder / ENCODER_NAME), metadata={"format": "pt"})
        os.rename(working, path)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        if reason := error.strerror if isinstance(error, OSError) else disk_refusal(error):
            raise OutputError(f"{path}: cannot be written ({reason}).") from error
        raise
    return path


def load_full(base: Any, path: str | Path, adapter: str | None = None) -> PeftModel:
    """Load what `save_full` wrote onto a base model, ready to train on.

    `base` is the transformers model that the adapter was trained on. The PeftModel's prompt encoder
    and head hold the saved model's tensors bit for bit.
    Raises CheckpointError if the folder has no prompt encoder.
    """
    import torch
    from peft import PromptEncoderConfig, get_peft_model, set_peft_model_state_dict

    from ptdeploy.source.checkpoint import read_checkpoint
    from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME
    from ptdeploy.source.checkpoint.tensors import read_tensors

    checkpoint = read_checkpoint(path, adapter)
    if checkpoint.encoder is None:
        raise CheckpointError(
            f"{path}: has no prompt encoder, so training cannot resume from it.",
            "Only ptdeploy.source.checkpoint.save_full or a full state dict keeps the MLP or LSTM.",
        )
    folder = checkpoint.weights_file.parent
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{path}: has no {CONFIG_NAME}; load_full reads save_full's folders.")
    # PeftModel.from_pretrained refuses is_trainable for prompt learning, so the model is built as
    # for a new training, and then given the trained tensors.
    config = PromptEncoderConfig.from_pretrained(str(folder))
    config.inference_mode = False
    model = get_peft_model(base, config, checkpoint.adapter)
    set_peft_model_state_dict(model, read_tensors(checkpoint.weights_file), checkpoint.adapter)
    model.prompt_encoder[checkpoint.adapter].load_state_dict(
        {name: torch.from_numpy(array) for name, array in checkpoint.encoder.tensors.items()}
    )
    return model
