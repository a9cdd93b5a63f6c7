"""Every kind of prompt that PEFT trains is read as PEFT itself reads it; what is no such is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import kinds, tiny

from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint import Checkpoint, read_checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS, WIDTH, LAYERS, HEADS = 5, 32, 2, 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[str], tiny.Trained]:
    """A trained decoder of each kind, made once."""
    made: dict[str, tiny.Trained] = {}

    def get(kind: str) -> tiny.Trained:
        if kind not in made:
            made[kind] = tiny.make(tmp_path_factory.mktemp("k"), "qwen2", "CAUSAL_LM", kind=kind)
        return made[kind]

    return get


@pytest.fixture
def adapter(trained, tmp_path) -> Callable[[str], Path]:
    """A copy of one of them, to damage."""
    return lambda kind: Path(shutil.copytree(trained(kind).adapter, tmp_path / "adapter"))


def read(folder: Path, kind: str) -> Checkpoint:
    return read_checkpoint(folder, **kinds.options(kind))


def pefts_prompt(model: Any, kind: str) -> np.ndarray:
    """What PEFT puts before a row: virtual tokens, or keys and values of all layers."""
    of_task = torch.tensor([kinds.TASK_ID]) if kinds.options(kind) else None
    with torch.no_grad():
        prompt = model.get_prompt(1, of_task)
    if isinstance(prompt, torch.Tensor):
        return prompt[0].numpy()
    return torch.stack([torch.cat([one.keys, one.values]) for one in prompt.layers]).numpy()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_is_read_as_peft_reads_it(trained, kind):
    one = trained(kind)
    checkpoint, want = read(one.adapter, kind), pefts_prompt(one.model, kind)
    found = checkpoint.prefix_kv if kind in kinds.PREFIXES else checkpoint.virtual_tokens
    assert found is not None
    assert found.shape == want.shape
    assert np.abs(found - want).max() < 1e-6
    assert np.abs(want).max() > 0.1, "the test shows nothing"
    assert (checkpoint.virtual_tokens is None) == (kind in kinds.PREFIXES)
    assert checkpoint.num_virtual_tokens == TOKENS


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_inspect_says_what_a_checkpoint_of_every_kind_is(adapter, kind, capsys):
    folder = adapter(kind)
    edit(folder, base_model_name_or_path="some/base")
    told = ["--task-id", str(kinds.TASK_ID)] if kinds.options(kind) else []
    assert main(["inspect", str(folder), *told]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(folder), *told, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["peft_type"] == json.loads((folder / CONFIG).read_text())["peft_type"]
    assert f"PEFT type       {facts['peft_type']}, task CAUSAL_LM" in text
    width = f"{LAYERS} layers with {HEADS} heads of 8" if kind in kinds.PREFIXES else "of 32"
    assert f"{TOKENS} virtual tokens" in text
    assert width in text
    evaluated = kind.startswith("P-Tuning") or "projected" in kind
    assert facts["training_can_resume"] is not evaluated
    assert ("cannot resume" if evaluated else "can resume") in text
    assert "some/base" in text


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of an adapter's config; ... takes one out."""
    config = json.loads((folder / CONFIG).read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))


def edit_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / WEIGHTS)
    changed = change(tensors.pop(name)) if name in tensors else change(torch.zeros(1))
    save_file({**tensors, name: changed.contiguous()}, folder / WEIGHTS)


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[..., 0] = float("nan")
    return tensor


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file({"other": torch.zeros(1), **tensors}, folder / WEIGHTS)


def encoder_beside(folder: Path) -> None:
    save_file(
        {"embedding.weight": torch.zeros(TOKENS, WIDTH)}, folder / "prompt_encoder.safetensors"
    )


PROMPT = "prompt_embeddings"
MULTITASK = "multitask prompt tuning"
# Kind, damage, what is said and how to fix it.
BAD: list[tuple[str, Callable[[Path], None], str, str]] = [
    (
        "prefix tuning",
        lambda a: edit_tensor(a, PROMPT, lambda t: t[:, :-1]),
        "has 63 columns, which are no keys and values of 2 layers with 2 heads",
        "come from two trainings",
    ),
    (
        "prefix tuning",
        lambda a: edit(a, num_attention_heads=3),
        "no keys and values of 2 layers with 3 heads",
        "come from two trainings",
    ),
    (
        "cartridge",
        lambda a: edit_tensor(a, PROMPT, lambda t: t[1:]),
        "num_virtual_tokens = 5",
        "come from two trainings",
    ),
    (
        "prefix tuning",
        lambda a: edit(a, num_layers=...),
        "lacks num_layers",
        "save it again with PEFT",
    ),
    ("cartridge", lambda a: edit(a, token_dim=None), "lacks token_dim", "save it again with PEFT"),
    (
        "prefix tuning, projected",
        lambda a: edit(a, num_attention_heads="four"),
        "num_attention_heads",
        "",
    ),
    (
        "prompt tuning",
        lambda a: edit(a, peft_type="PREFIX_TUNING"),
        "no keys and values of 2 layers",
        "come from two trainings",
    ),
    (
        "prefix tuning",
        lambda a: edit(a, peft_type="PROMPT_TUNING", token_dim=32),
        "has 64 columns, but the config says token_dim = 32",
        "come from two trainings",
    ),
    (
        "prompt tuning",
        lambda a: edit(a, peft_type="MULTITASK_PROMPT_TUNING"),
        "lacks prefix_task_cols, prefix_task_rows",
        "Save the adapter again",
    ),
    (
        MULTITASK,
        lambda a: edit(a, peft_type="PROMPT_TUNING"),
        "of a multitask prompt, but its config says PROMPT_TUNING",
        "come from two trainings",
    ),
    (
        "CPT",
        lambda a: drop(a, PROMPT),
        "holds no 'prompt_embeddings', but its config says CPT",
        "come from two trainings",
    ),
    (
        "CPT",
        lambda a: edit(a, task_type="SEQ_CLS"),
        "PEFT trains CPT for CAUSAL_LM",
        "",
    ),
    (
        MULTITASK,
        lambda a: edit_tensor(a, "prefix_task_cols", lambda t: t[..., :-1]),
        "do not fit one another",
        "Save it again",
    ),
    (
        MULTITASK,
        lambda a: edit_tensor(a, "prefix_task_rows", nan),
        "NaN",
        "earlier checkpoint",
    ),
    *(
        (kind, lambda a: edit_tensor(a, PROMPT, nan), "NaN or infinite", "earlier checkpoint")
        for kind in kinds.KINDS
        if kind != MULTITASK
    ),
    *(
        (kind, encoder_beside, "holds a prompt encoder, but the config says", "two trainings")
        for kind in kinds.KINDS
        if not kind.startswith("P-Tuning") and "projected" not in kind
    ),
    *(
        (
            kind,
            lambda a: edit_tensor(
                a, "base_model.model.layers.0.q_proj.lora_A.weight", torch.ones_like
            ),
            "a LoRA adapter beside the prompt",
            "merge_and_unload()",
        )
        for kind in ("P-Tuning, MLP", "prefix tuning")
    ),
]


@pytest.mark.parametrize(("kind", "damage", "problem", "fix"), BAD)
def test_a_bad_checkpoint_is_refused_and_nothing_written(
    trained, adapter, tmp_path, capsys, kind, damage, problem, fix
):
    folder = adapter(kind)
    damage(folder)
    told = ["--task-id", str(kinds.TASK_ID)] if kinds.options(kind) else []
    refused = refusal(folder, trained(kind).base, tmp_path / "out", capsys, *told)
    assert problem in refused
    assert fix in refused


def refusal(adapter: Path, base: Path, output: Path, capsys: Any, *options: str) -> str:
    """What compile says where it must exit 2 and write nothing."""
    told = ["--target", "ort", "--base", str(base), "-o", str(output), *options]
    before = sorted(output.parent.iterdir())
    assert main(["compile", str(adapter), *told]) == 2
    assert sorted(output.parent.iterdir()) == before
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        (MULTITASK, [], "was trained for 3 tasks, 0 to 2"),
        (MULTITASK, ["--task-id", "3"], "has no task 3; it was trained for 3, 0 to 2"),
        (MULTITASK, ["--task-id", "-1"], "has no task -1"),
        ("P-Tuning, MLP", ["--task-id", "0"], "its config says P_TUNING, which is of one task"),
        ("cartridge", ["--task-id", "0"], "its config says CARTRIDGE, which is of one task"),
        ("prefix tuning", ["--no-freeze-kv"], "PREFIX_TUNING has a prefix KV alone"),
        ("cartridge", ["--no-freeze-kv"], "CARTRIDGE has a prefix KV alone"),
    ],
)
def test_an_option_that_does_not_fit_the_kind_is_refused(
    trained, tmp_path, capsys, kind, options, problem
):
    one = trained(kind)
    assert problem in refusal(one.adapter, one.base, tmp_path / "out", capsys, *options)


def test_a_state_dict_takes_no_task(trained, tmp_path):
    torch.save(trained("P-Tuning, MLP").model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="which is of one task"):
        read_checkpoint(tmp_path / "model.pt", task=Task.CAUSAL_LM, task_id=0)


@pytest.mark.parametrize(
    ("kind", "changes", "own"),
    [
        ("prefix tuning", {"num_key_value_heads": 4}, "has 2 with 4 of 8"),
        ("cartridge", {"num_hidden_layers": 3}, "has 3 with 2 of 8"),
        ("prefix tuning", {"num_attention_heads": 2, "num_key_value_heads": 2}, "2 with 2 of 16"),
    ],
)
def test_a_prefix_of_another_base_is_refused(trained, tmp_path, capsys, kind, changes, own):
    other = tiny.make(tmp_path / "other", "qwen2", "CAUSAL_LM", **changes)
    refused = refusal(trained(kind).adapter, other.base, tmp_path / "out", capsys)
    assert "its prefix KV is of 2 layers with 2 heads of 8, but the base model has" in refused
    assert own in refused
    assert "Pass the right one with --base" in refused


def test_a_prefix_for_an_encoder_that_takes_none_is_refused(tmp_path, capsys):
    trained = tiny.make(tmp_path / "t", "bert", "SEQ_CLS", kind="prefix tuning")
    other = tiny.make(tmp_path / "other", "distilbert", "SEQ_CLS")
    refused = refusal(trained.adapter, other.base, tmp_path / "out", capsys)
    assert "distilbert: takes no keys and values before its text" in refused
