"""A trained prompt from one format into another: exactly, or refused by name."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import checked, having, instance
from ptdeploy.bundle.contents import check_in_no_bundle
from ptdeploy.commands.request import ConvertRequest
from ptdeploy.errors import CheckpointError, InputError, OutputError
from ptdeploy.files import check_folder, read_regular, write_folder, write_new, write_whole
from ptdeploy.printable import number_of
from ptdeploy.program.kinds import kind_of
from ptdeploy.progress import Progress
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.checkpoint import (
    BaseReference,
    Checkpoint,
    read_any_task,
    read_checkpoint,
)
from ptdeploy.source.checkpoint.adapter_files import adapter_files, peft_kind
from ptdeploy.source.checkpoint.bare_tensor import NUMPY
from ptdeploy.source.checkpoint.peft_adapter import ENCODER_NAME, WEIGHT_NAMES
from ptdeploy.source.checkpoint.peft_config import CONFIG_NAME
from ptdeploy.text_files import library_path

_TENSORS = ("npy", "prefix-kv")
Check = Callable[[Path], None]
_MAGIC = b"\x93NUMPY"
_ADAPTER = {CONFIG_NAME, ENCODER_NAME, *WEIGHT_NAMES}


@dataclass(frozen=True)
class Converted:
    """What convert wrote: where, PEFT's name of its kind or the bare tensor's, and its shape.

    `notes` say what of the checkpoint is not in it.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    checkpoint: Checkpoint = field(repr=False)
    notes: tuple[str, ...] = ()


@checked(request=instance(ConvertRequest), progress=having("stage", "note"))
def convert_checkpoint(request: ConvertRequest, progress: Progress) -> Converted:
    """See ptdeploy.convert."""
    from ptdeploy.program.prompt import evaluated_prompt

    output = Path(request.output)
    replaceable = _replaceable(output, request.to) if request.force else None
    _check_output(output, request.to, replaceable)
    for given in (request.checkpoint, request.base or "", output):
        library_path(given)
    with progress.stage("read the checkpoint"):
        whole = request.to == "full"
        reader = read_any_task if whole else read_checkpoint
        checkpoint = reader(
            request.checkpoint, request.adapter, request.task, task_id=request.task_id
        )
        _check_held(checkpoint, request.to)
        if whole and checkpoint.num_tasks > 1 and request.task_id is not None:
            raise InputError(
                "--task-id: --to full holds a multitask prompt with all of its tasks, with which "
                "its training goes on.",
                "Leave it out; --to peft --task-id N makes one task a prompt of its own.",
            )
        _check_is_another(output, checkpoint)
        base = resolve_base(checkpoint, request.base) if request.base else None
        prompt = evaluated_prompt(checkpoint)
    if checkpoint.text_from_zero:
        prompt = _placed(checkpoint, base or resolve_base(checkpoint), progress)
    if request.to == "prefix-kv" and prompt.ndim == 2:
        prompt = _as_prefix(checkpoint, prompt, base or resolve_base(checkpoint), progress)
    if request.to in _TENSORS:
        _write_tensor(output, prompt, replaceable)
        kind = "PREFIX_KV" if prompt.ndim == 5 else "VIRTUAL_TOKENS"
    else:
        named = BaseReference(request.base) if request.base else checkpoint.base
        contents = adapter_files(checkpoint, prompt, named, whole)
        write_folder(output, contents, replaceable)
        kind = peft_kind(checkpoint, whole)
    notes = _notes(checkpoint, request.to)
    for note in notes:
        progress.note(note)
    return Converted(output, kind, prompt.shape, checkpoint, notes)


def _check_output(output: Path, to: str, replaceable: Check | None) -> None:
    """Refuse, before any work, a place that cannot be written to, or would not be read back."""
    if to in _TENSORS and output.suffix != NUMPY:
        raise InputError(
            f"-o {output}: a bare tensor is written as {NUMPY}.", f"End its name in {NUMPY}."
        )
    if os.path.lexists(output):
        if replaceable is None:
            raise OutputError(
                f"{output}: exists already.", "Choose another -o, or replace it with --force."
            )
        replaceable(output)
    check_folder(output.parent, "-o")
    check_in_no_bundle(output.parent, "-o ", "Choose another -o.")


def _write_tensor(output: Path, prompt: NDArray[np.float32], replaceable: Check | None) -> None:
    buffer = io.BytesIO()
    np.save(buffer, prompt)
    if replaceable is None or not os.path.lexists(output):
        write_new(output, buffer.getvalue())
        return
    replaceable(output)
    write_whole(output, buffer.getvalue())


def _replaceable(output: Path, to: str) -> Check:
    """A check of what is at `output`, or was: raises OutputError unless convert writes such."""
    noun, fits = (
        (f"{NUMPY} file", _is_numpy)
        if to in _TENSORS
        else ("folder of an adapter's own files alone", _is_adapter)
    )

    def check(found: Path) -> None:
        if found.is_symlink() or not fits(found):
            raise OutputError(
                f"{output}: is no {noun}, so --force leaves it alone.", "Choose another -o."
            )

    return check


def _is_numpy(file: Path) -> bool:
    return file.is_file() and read_regular(file, len(_MAGIC)).startswith(_MAGIC)


def _is_adapter(folder: Path) -> bool:
    """Whether it has an adapter's own files and no others, or is empty."""
    if not folder.is_dir():
        return False
    names = {one.name for one in folder.iterdir() if one.is_file() and not one.is_symlink()}
    whole = len(names) == len(list(folder.iterdir()))
    return whole and names <= _ADAPTER and (not names or CONFIG_NAME in names)


def _check_is_another(output: Path, checkpoint: Checkpoint) -> None:
    """Raises OutputError if what is converted lies where it would be replaced."""
    file = checkpoint.weights_file
    for read in (checkpoint.path, file, file.parent):
        if output.exists() and output.samefile(read):
            raise OutputError(
                f"{output}: is the checkpoint itself, so --force leaves it alone.",
                "Choose another -o.",
            )


def _check_held(checkpoint: Checkpoint, to: str) -> None:
    """Raises CheckpointError if a format cannot hold all that was trained."""
    where = f"{checkpoint.path}: "
    if to in _TENSORS and checkpoint.heads:
        raise CheckpointError(
            f"{where}holds a trained head ({', '.join(checkpoint.heads)}), which a bare tensor "
            "cannot.",
            "--to peft holds both.",
        )
    needs_head = kind_of(checkpoint.task).has_trained_head
    if needs_head and checkpoint.weights and not checkpoint.heads:
        raise CheckpointError(
            f"{where}nothing in it says which of its {len(checkpoint.weights)} weights are the "
            "trained head.",
            "Save the adapter with PEFT's save_pretrained where it was trained.",
        )
    if to == "full" and not checkpoint.resumable:
        raise CheckpointError(
            f"{where}what made its prompt is not in it, so training cannot resume.",
            "--to peft holds the prompt as it is.",
        )


def _as_prefix(
    checkpoint: Checkpoint, tokens: NDArray[np.float32], base: BaseModel, progress: Progress
) -> NDArray[np.float32]:
    """The keys and values that a decoder keeps of virtual tokens.

    Raises CheckpointError if the base model is no decoder.
    """
    from ptdeploy.program.prompt import prefix_kv
    from ptdeploy.source.base_weights import load_model

    if not base.kind.needs_prefix_kv:
        raise CheckpointError(
            f"{checkpoint.path}: virtual tokens of an encoder see the text behind them, so no keys "
            "and values stand for them.",
            "--to npy has them as virtual tokens.",
        )
    with progress.stage(f"load the base model {base.name}"):
        model = load_model(checkpoint, base)
    with progress.stage(f"run {number_of(checkpoint.num_virtual_tokens, 'virtual token')}"):
        return prefix_kv(model, tokens)


def _placed(checkpoint: Checkpoint, base: BaseModel, progress: Progress) -> NDArray[np.float32]:
    """ChatGLM's prefix KV as other formats number it, which takes the base model's rotations."""
    from ptdeploy.program.prompt import trained_prefix
    from ptdeploy.source.base_weights import load_model

    with progress.stage(f"load the base model {base.name}"):
        return trained_prefix(checkpoint, load_model(checkpoint, base), True)


def _notes(checkpoint: Checkpoint, to: str) -> tuple[str, ...]:
    """What of the checkpoint the format does not hold, and does not need to run."""
    notes = []
    if left := len(set(checkpoint.weights) - set(checkpoint.heads)):
        notes.append(
            f"{left} weights of the base model stay with it: a prompt is trained over them"
        )
    if checkpoint.encoder is not None and to != "full":
        notes.append(
            f"the {checkpoint.encoder.kind} that made the prompt is left out; --to full keeps it"
        )
    if checkpoint.num_tasks > 1 and to != "full":
        notes.append(f"of its tasks it is {checkpoint.task_id} alone")
    return tuple(notes)
