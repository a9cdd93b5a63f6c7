"""One tensor in a file, `.npy`, safetensors or torch: virtual tokens, or a prefix KV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError, PtdeployError
from ptdeploy.files import sha256_of
from ptdeploy.source.checkpoint.assemble import finite
from ptdeploy.source.checkpoint.names import EVALUATED
from ptdeploy.source.checkpoint.tensors import (
    TENSOR_SUFFIXES,
    read_tensors,
    require_torch,
    tensor_names,
)
from ptdeploy.source.checkpoint.types import BaseReference, Checkpoint, NoTaskNamed

if TYPE_CHECKING:
    import torch

NUMPY = ".npy"


def matches(path: Path) -> bool:
    """Whether `path` is a file of numpy's, or of one tensor that is no module's or adapter's."""
    if not path.is_file():
        return False
    if path.suffix == NUMPY:
        return True
    if path.suffix not in TENSOR_SUFFIXES:
        return False
    try:
        (name,) = tensor_names(path)
    except ValueError:  # none, or several
        return False
    except PtdeployError:  # a broken file is another reader's to name
        return False
    # A module's parameter has the module's name too: a model's state dict, cut to one tensor. And
    # an adapter's file has a config of its own, whatever the file is called.
    return "." not in name and not EVALUATED.fullmatch(name)


def read(
    path: Path,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
) -> Checkpoint:
    """Read virtual tokens, (tokens, width), or a prefix KV, (layers, 2, heads, tokens, dim).

    Such a file says neither its task (`task`) nor its base model (`--base`).
    Raises CheckpointError if it holds anything else, or values that are not finite.
    """
    if adapter is not None or task_id is not None:
        option = "--adapter" if adapter is not None else "--task-id"
        raise CheckpointError(f"{path}: holds one tensor alone.", f"Leave {option} out.")
    name, tensor = _tensor(path)
    array = finite(path, name, tensor)
    if array.ndim not in (2, 5) or not array.size or (array.ndim == 5 and array.shape[1] != 2):
        raise CheckpointError(
            f"{path}: its tensor has shape {array.shape}, which is neither virtual tokens, "
            "(tokens, width), nor a prefix KV, (layers, 2, heads, tokens, head dim).",
            "Save it in one of these shapes; keys stand before values.",
        )
    if task is None:
        raise NoTaskNamed(
            f"{path}: a tensor alone says no task.",
            f"Pass --task, one of {', '.join(one.value for one in Task)}.",
        )
    return _checkpoint(path, task, array, str(tensor.dtype).removeprefix("torch."))


def _checkpoint(path: Path, task: Task, array: NDArray[np.float32], dtype: str) -> Checkpoint:
    prefix = array.ndim == 5
    return Checkpoint(
        path=path,
        weights_file=path,
        format="bare tensor",
        adapter="default",
        task=task,
        num_virtual_tokens=int(array.shape[3 if prefix else 0]),
        token_dim=int(array.shape[2] * array.shape[4] if prefix else array.shape[1]),
        kind="PREFIX_KV" if prefix else "VIRTUAL_TOKENS",
        virtual_tokens=None if prefix else array,
        prefix_kv=array if prefix else None,
        encoder=None,
        weights={},
        heads=(),
        base=BaseReference(None, None),
        dtype=dtype,
        files={path.name: sha256_of(path)},
    )


def _tensor(path: Path) -> tuple[str, torch.Tensor]:
    """The file's one tensor, and what to call it."""
    if path.suffix != NUMPY:
        ((name, tensor),) = read_tensors(path).items()
        return name or "its tensor", tensor
    torch = require_torch()
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise CheckpointError(
                f"{path}: holds {array.dtype} values, not floating point.",
                "Save it as it was trained, as floating point.",
            )
        return "its array", torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise CheckpointError(
            f"{path}: not a whole .npy file ({str(error).splitlines()[0]}).",
            "The file is damaged or was cut short. Save it again with numpy.save.",
        ) from error
