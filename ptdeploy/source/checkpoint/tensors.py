"""Reading tensor files that we do not trust: safetensors, and torch files without unpickling."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy.errors import CheckpointError, TargetUnavailable
from ptdeploy.files import POINTER_FIX, POINTER_PROBLEM, is_pointer, read_regular
from ptdeploy.memory import out_of_memory, ran_out_of_memory

if TYPE_CHECKING:
    import torch

TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_LONGEST_NAME = 255
_COPY_AGAIN = "Copy the file again from where it was saved."
_SAVE_STATE = "Save torch.save(model.state_dict(), path) from the model that was trained."
MAX_JSON_BYTES = 16 * 1024 * 1024
# Tensors of a file; and how much more than it they may be, beside what is free: views and small
# expanded buffers are no harm.
_MAX_TENSORS, _FOLDS, _FREE = 1_000_000, 16, 64 << 20
_MAX_DEPTH = 8
# How torch's files start, pickles and zips of them, and what its tars before 0.1.10 held.
_STARTS = (b"\x80", b"PK")
_TAR_MEMBERS = ("sys_info", "pickle", "storages", "tensors")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors or torch file, or of a sharded index.

    Torch files are read with `weights_only=True`, memory mapped where their format allows it.
    Tensors in dictionaries there have the dictionaries' keys before their names, joined by dots:
    what a training loop saves beside its state dict is then told apart by name.
    Raises CheckpointError if the file is truncated, or if reading it would need to unpickle
    anything other than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    _refuse_pointer(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def tensor_names(path: Path) -> Collection[str]:
    """The names that read_tensors gives for a file. Raises CheckpointError as that does."""
    if path.name.endswith(".index.json"):
        found = read_json(path).get("weight_map")
        return found if isinstance(found, dict) else ()
    if path.suffix != ".safetensors":
        return read_tensors(path).keys()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}).", _COPY_AGAIN
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object. Raises CheckpointError naming the line that does not parse."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes, not a configuration.")
    _refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).", _COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, not an object.")
    return value


def _refuse_pointer(path: Path) -> None:
    if is_pointer(path):
        raise CheckpointError(f"{path}: {POINTER_PROBLEM}", POINTER_FIX)


def require_torch() -> Any:
    """Import torch, or say which extra brings it."""
    try:
        import torch
    except ImportError as error:
        raise TargetUnavailable(
            "Reading a checkpoint needs PyTorch, which is not installed here.",
            "pip install 'ptdeploy[compile]'",
        ) from error
    return torch


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    require_torch()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if ran_out_of_memory(error):
            raise out_of_memory(f"{path} does not fit", error) from error
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}).",
            "The file is damaged or was cut short. Copy it again from where it was saved.",
        ) from error


def shared_names(path: Path) -> dict[str, str]:
    """The names that safetensors' save_model left out of a file, each with the one that it kept of
    the same tensor."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="np") as file:
        held = set(file.keys())
        said = file.metadata() or {}
    return {out: kept for out, kept in said.items() if kept in held and out not in held}


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    torch = require_torch()
    try:
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file makes torch's reader raise anything
        if ran_out_of_memory(error):
            raise out_of_memory(f"{path} does not fit", error) from error
        raise _unreadable(path, error) from error
    if isinstance(loaded, torch.Tensor):
        loaded = {"": loaded}
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: holds a {type(loaded).__name__}, not a state dict.", _SAVE_STATE
        )
    tensors = dict(islice(_named(loaded, "", _MAX_DEPTH), _MAX_TENSORS))
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor.", _SAVE_STATE)
    _check_sizes(path, tensors)
    return tensors


def _check_sizes(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError if the tensors would take far more memory than their file.

    A tensor may say that it is larger than what is stored of it, as one that was expanded.
    """
    import torch

    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"{path}: {name} is {tensor.layout} on {tensor.device}: its values are not stored "
                "one by one.",
                "Save it as a dense tensor.",
            )
        total += tensor.numel() * tensor.element_size()
        if total > _FOLDS * path.stat().st_size + _FREE:
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)}, which is far more than the file "
                f"of {path.stat().st_size} bytes stores.",
                "It was expanded before it was saved: save tensor.contiguous().",
            )


def _named(loaded: Mapping[Any, Any], before: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    for key, value in loaded.items():
        if isinstance(value, torch.Tensor):
            yield f"{before}{key}", value
        elif isinstance(value, dict) and depth > 1:
            yield from _named(value, f"{before}{key}.", depth - 1)


def _pickled(path: Path, error: Exception) -> CheckpointError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({found[1]})" if found else ""
    return CheckpointError(
        f"{path}: holds pickled Python objects{what}, not only tensors. It was not unpickled, "
        "because that runs code from the file.",
        "Where it was trained, save its tensors alone: "
        "torch.save(torch.load(path, weights_only=False)['state_dict'], new_path) for a trainer's "
        "checkpoint, torch.save(model.state_dict(), path) or "
        "ptdeploy.save_full(model, path) for a model.",
    )


def tensor_files(path: Path) -> list[Path]:
    """The files that read_tensors reads: a file itself, or an index and the shards it names.

    Raises CheckpointError as that does of an index.
    """
    return [path, *_shards(path)] if path.name.endswith(".index.json") else [path]


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in _shards(index):
        tensors.update(read_tensors(shard))
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files beside an index that hold its tensors, in the order of their names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise CheckpointError(f"{index}: has no 'weight_map'.", _COPY_AGAIN)
    names = list(shards.values())
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{index}: its 'weight_map' names something else than files.", _COPY_AGAIN
        )
    for shard in sorted(set(names)):
        if Path(shard).name != shard or shard.endswith(".index.json"):
            raise CheckpointError(
                f"{index}: names a shard outside its folder or another index: {shard!r}."
            )
        if len(shard.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise CheckpointError(f"{index}: names a shard that no file system can hold.")
    return [index.parent / shard for shard in sorted(set(names))]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What torch could not read. Its own advice, to unpickle whatever it is, is never passed on."""
    words = str(error)
    if "TorchScript" in words:
        return CheckpointError(f"{path}: is a TorchScript program, not a state dict.", _SAVE_STATE)
    if _is_legacy_tar(path):
        return CheckpointError(
            f"{path}: is in torch's legacy .tar format, which torch unpickles before it checks it.",
            "Where it was saved, save its tensors anew: with today's torch.save(state_dict, path), "
            "or as safetensors.",
        )
    start = b""
    with contextlib.suppress(OSError):
        start = read_regular(path, 1)
    known = not start or start.startswith(_STARTS)
    if known and re.search("WeightsUnpickler|[Uu]nsupported", words):
        return _pickled(path, error)
    first = words.splitlines()[0] if words else ""
    told = [one for one in re.split(r"(?<=\.)\s+", first) if "weights_only" not in one]
    reason = " ".join(told) if known else "it starts as no such file does"
    return CheckpointError(
        f"{path}: not a whole torch file ({reason.rstrip('.') or type(error).__name__}).",
        "The file is damaged or was cut short. Copy it again from where it was saved.",
    )


def _is_legacy_tar(path: Path) -> bool:
    """Whether a file is what torch saved before 0.1.10: a tar of pickles."""
    try:
        with tarfile.open(path, "r:") as archive:
            return any(one.name in _TAR_MEMBERS for one in islice(archive, len(_TAR_MEMBERS)))
    except (tarfile.TarError, OSError, ValueError):
        return False
