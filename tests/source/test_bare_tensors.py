"""A tensor by itself is a prompt: virtual tokens or a prefix KV, with a task and a base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import kinds, tiny

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint import read_checkpoint

TOKENS = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
PREFIX = np.random.default_rng(1).normal(size=(2, 2, 2, 5, 8)).astype(np.float32)


def numpy_file(array: np.ndarray, folder: Path) -> Path:
    np.save(folder / "prompt.npy", array)
    return folder / "prompt.npy"


def swapped(array: np.ndarray, folder: Path) -> Path:
    return numpy_file(array.astype(">f4"), folder)


def fortran(array: np.ndarray, folder: Path) -> Path:
    return numpy_file(np.asfortranarray(array), folder)


def safetensors(array: np.ndarray, folder: Path) -> Path:
    save_file({"anything": torch.from_numpy(array)}, folder / "prompt.safetensors")
    return folder / "prompt.safetensors"


def torch_tensor(array: np.ndarray, folder: Path) -> Path:
    torch.save(torch.from_numpy(array), folder / "prompt.pt")
    return folder / "prompt.pt"


def torch_parameter(array: np.ndarray, folder: Path) -> Path:
    torch.save(torch.nn.Parameter(torch.from_numpy(array)), folder / "prompt.pt")
    return folder / "prompt.pt"


def torch_dictionary(array: np.ndarray, folder: Path) -> Path:
    torch.save({"prompt": torch.from_numpy(array)}, folder / "prompt.pt")
    return folder / "prompt.pt"


WRITERS = [
    numpy_file,
    swapped,
    fortran,
    safetensors,
    torch_tensor,
    torch_parameter,
    torch_dictionary,
]


def test_an_adapters_one_tensor_under_another_file_name_is_told_what_to_call_it(tmp_path):
    save_file({"prompt_embeddings": torch.from_numpy(TOKENS)}, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="holds an adapter") as refused:
        read_checkpoint(tmp_path / "adapter.safetensors", task=Task.CAUSAL_LM)
    assert "Name it adapter_model.safetensors" in refused.value.fix


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("array", [TOKENS, PREFIX], ids=["virtual tokens", "prefix"])
def test_a_tensor_is_read_from_every_kind_of_file(tmp_path, write, array):
    checkpoint = read_checkpoint(write(array, tmp_path), task=Task.CAUSAL_LM)
    found = checkpoint.virtual_tokens if array is TOKENS else checkpoint.prefix_kv
    assert np.array_equal(found, array)
    assert checkpoint.num_virtual_tokens == 5
    assert checkpoint.token_dim == (32 if array is TOKENS else 16)
    assert not checkpoint.of_peft


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_tensors_other_types_are_widened(tmp_path, dtype):
    save_file({"x": torch.from_numpy(TOKENS).to(dtype)}, tmp_path / "p.safetensors")
    checkpoint = read_checkpoint(tmp_path / "p.safetensors", task=Task.CAUSAL_LM)
    want = torch.from_numpy(TOKENS).to(dtype).float().numpy()
    assert np.array_equal(checkpoint.virtual_tokens, want)
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")


def pickled(_: np.ndarray, folder: Path) -> Path:
    np.save(folder / "prompt.npy", np.array([{"a": 1}], object), allow_pickle=True)
    return folder / "prompt.npy"


def cut(array: np.ndarray, folder: Path) -> Path:
    path = numpy_file(array, folder)
    path.write_bytes(path.read_bytes()[:-7])
    return path


def empty(_: np.ndarray, folder: Path) -> Path:
    (folder / "prompt.npy").touch()
    return folder / "prompt.npy"


def shaped(*shape: int, dtype: Any = np.float32) -> Callable[[np.ndarray, Path], Path]:
    return lambda _, folder: numpy_file(np.ones(shape, dtype), folder)


def not_finite(_: np.ndarray, folder: Path) -> Path:
    return numpy_file(np.full((5, 32), np.nan, np.float32), folder)


@pytest.mark.parametrize(
    ("write", "options", "problem"),
    [
        (shaped(5), {}, "neither virtual tokens, (tokens, width), nor a prefix KV"),
        (shaped(2, 3, 2, 5, 8), {}, "neither virtual tokens"),
        (shaped(0, 32), {}, "neither virtual tokens"),
        (shaped(5, 32, dtype=np.int64), {}, "holds int64 values, not floating point"),
        (shaped(5, 32, dtype=np.complex64), {}, "holds complex64 values"),
        (not_finite, {}, "NaN or infinite"),
        (pickled, {}, "not a whole .npy file"),
        (cut, {}, "not a whole .npy file"),
        (empty, {}, "not a whole .npy file"),
        (numpy_file, {"task": None}, "a tensor alone says no task"),
        (numpy_file, {"adapter": "x"}, "holds one tensor alone"),
        (numpy_file, {"task_id": 0}, "holds one tensor alone"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, write, options, problem):
    path = write(TOKENS, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path, **{"task": Task.CAUSAL_LM, **options})
    assert problem in refused.value.problem
    assert refused.value.problem.startswith(f"{path}: ")


CASES = [
    ("prompt tuning", "SEQ_CLS", "bert"),
    ("prompt tuning", "CAUSAL_LM", "gpt2"),
    ("prefix tuning", "CAUSAL_LM", "qwen2"),
    ("prefix tuning", "TOKEN_CLS", "roberta"),
]


@pytest.mark.parametrize(("kind", "task", "architecture"), CASES)
def test_a_bare_tensor_runs_as_the_adapter_it_is_from(compiled, tmp_path, kind, task, architecture):
    """Over a base that has the trained head: its reference is transformers' own model."""
    one = compiled(architecture, task, kind=kind)
    base = Path(shutil.copytree(one.trained.base, tmp_path / "base"))
    give_head(one.trained, base)
    checkpoint = read_checkpoint(one.trained.adapter)
    array = checkpoint.prefix_kv if kind in kinds.PREFIXES else checkpoint.virtual_tokens
    bundle = tmp_path / "bundle"
    told = ["--task", task, "--base", str(base), "--target", "ort", "-o", str(bundle), "-q"]
    assert main(["compile", str(numpy_file(array, tmp_path)), *told]) == 0
    report = json.loads((bundle / "prompts/default/parity.json").read_text())
    assert report["reference"].startswith("transformers ")
    assert max(case["max_abs"] for case in report["cases"]) < 1e-5
    rows = [[5, 6, 7], [8], [9, 10, 11, 12]]
    pairs = zip(
        ptdeploy.load(bundle).logits(rows), ptdeploy.load(one.bundle).logits(rows), strict=True
    )
    for ours, theirs in pairs:
        assert np.abs(ours - theirs).max() < 1e-5
    again = ["--checkpoint", str(tmp_path / "prompt.npy"), "--base", str(base), "--locate", "-q"]
    assert main(["verify", str(bundle), *again]) == 0


def give_head(trained: tiny.Trained, base: Path) -> None:
    """Write the trained head into a base model's own weights."""
    from safetensors.torch import load_file

    tensors = load_file(base / "model.safetensors")
    for name, array in read_checkpoint(trained.adapter).weights.items():
        assert name in tensors
        tensors[name] = torch.from_numpy(array)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def test_inspect_says_what_a_bare_tensor_is(tmp_path, capsys):
    path = numpy_file(PREFIX, tmp_path)
    assert main(["inspect", str(path), "--task", "CAUSAL_LM"]) == 0
    text = capsys.readouterr().out
    assert "bare tensor" in text
    assert "PEFT type       none, task CAUSAL_LM" in text
    assert "5 virtual tokens, 2 layers with 2 heads of 8" in text
    assert "not named: pass --base" in text
    assert "cannot resume" in text
