"""Every kind of prompt that PEFT trains is read as PEFT itself reads it; what is no such is not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import kinds, tiny
from transformers import AutoModelForCausalLM

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError
from ptdeploy.program.prompt import evaluated_prompt, freeze
from ptdeploy.source.checkpoint import Checkpoint, load_full, read_checkpoint, save_full

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS, WIDTH, LAYERS, HEADS = 5, 32, 2, 2
PROMPT = "prompt_embeddings"
MULTITASK = "multitask prompt tuning"
# Kinds of which PEFT saves what something gives, and not that itself.
MADE = ("P-Tuning, MLP", "P-Tuning, LSTM", "CPT", "prefix tuning, projected")


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
    width = f"{LAYERS} layers with {HEADS} heads of 8" if kind in kinds.PREFIXES else "32 wide"
    assert f"{TOKENS} virtual tokens" in text
    assert width in text
    evaluated = kind in MADE
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
        if kind not in MADE
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


def fresh(trained: tiny.Trained) -> Any:
    return AutoModelForCausalLM.from_pretrained(trained.base)


def step(model: Any) -> Any:
    """One step of training, all that is random in it repeatable."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.arange(5, 13)[None]
    several = model.active_peft_config.peft_type == "MULTITASK_PROMPT_TUNING"
    told = {"task_ids": torch.tensor([kinds.TASK_ID])} if several else {}
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model(**batch, **told).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_save_full_and_load_full_keep_every_kind_bit_for_bit(trained, tmp_path, kind):
    one = trained(kind)
    save_full(one.model, tmp_path / "full")
    back = load_full(fresh(one), tmp_path / "full").eval()
    ours, theirs = back.prompt_encoder.state_dict(), one.model.prompt_encoder.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    named = {"base_model_name_or_path": None}
    configs = [model.peft_config["default"].to_dict() | named for model in (back, one.model)]
    assert configs[0] == configs[1]
    trainable = {name for name, p in back.named_parameters() if p.requires_grad}
    assert (
        trainable == {name for name, p in one.model.named_parameters() if p.requires_grad} != set()
    )
    # A second save's tensors are the first's, byte for byte.
    save_full(back, tmp_path / "again")
    for file in sorted((tmp_path / "full").glob("*.safetensors")):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_training_goes_on_from_what_save_full_wrote(trained, tmp_path, kind):
    one = trained(kind)
    save_full(one.model, tmp_path / "full")
    resumed = step(load_full(fresh(one), tmp_path / "full"))
    # The same training, without an interruption.
    model = tiny.make(tmp_path / "same", "qwen2", "CAUSAL_LM", kind=kind).model
    uninterrupted = step(model)
    before, after, same = (
        model.prompt_encoder.state_dict() for model in (one.model, resumed, uninterrupted)
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(after[name], same[name]) for name in after)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_peft_itself_loads_what_save_full_wrote_of_every_kind(trained, tmp_path, kind):
    one = trained(kind)
    save_full(one.model, tmp_path / "full")
    back = PeftModel.from_pretrained(fresh(one), tmp_path / "full").eval()
    assert np.abs(pefts_prompt(back, kind) - pefts_prompt(one.model, kind)).max() < 1e-6


def test_a_saved_projection_says_that_training_can_resume(trained, tmp_path, capsys):
    save_full(trained("prefix tuning, projected").model, tmp_path / "full")
    checkpoint = read_checkpoint(tmp_path / "full")
    assert checkpoint.resumable
    assert checkpoint.encoder is not None
    assert checkpoint.encoder.kind == "projection"
    assert main(["inspect", str(tmp_path / "full")]) == 0
    text = capsys.readouterr().out
    assert "projection, hidden size 16, 2 layers" in text
    assert "can resume from here" in text
    base = fresh(trained("prefix tuning, projected"))
    assert freeze(checkpoint, base, True, False).prefix_kv is not None


def test_a_stale_prefix_beside_its_projection_is_refused(trained, tmp_path):
    one = trained("prefix tuning, projected")
    save_full(one.model, tmp_path / "full")
    edit_tensor(tmp_path / "full", PROMPT, lambda tensor: tensor + 0.01)
    with pytest.raises(CheckpointError, match="another training step"):
        freeze(read_checkpoint(tmp_path / "full"), fresh(one), True, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["P-Tuning, MLP", "P-Tuning, LSTM", "prefix tuning, projected"])
def test_what_a_model_in_16_bits_saved_whole_is_not_stale(trained, tmp_path, kind, dtype):
    one = trained(kind)
    model = copy.deepcopy(one.model).to(dtype)
    save_full(model, tmp_path / "full")
    found = evaluated_prompt(read_checkpoint(tmp_path / "full"))
    ptdeploy.convert(tmp_path / "full", to="full", output=tmp_path / "again", base=str(one.base))
    assert np.array_equal(found, evaluated_prompt(read_checkpoint(tmp_path / "again")))
    edit_tensor(tmp_path / "full", PROMPT, lambda tensor: tensor + tensor.abs().max() / 8)
    with pytest.raises(CheckpointError, match="another training step"):
        evaluated_prompt(read_checkpoint(tmp_path / "full"))


def test_a_projection_without_its_weights_is_refused(trained, tmp_path, capsys):
    one = trained("prefix tuning, projected")
    save_full(one.model, tmp_path / "full")
    file = tmp_path / "full" / "prompt_encoder.safetensors"
    tensors = load_file(file)
    del tensors["transform.2.weight"]
    save_file(tensors, file)
    refused = refusal(tmp_path / "full", one.base, tmp_path / "out", capsys)
    assert "the projection prompt encoder misses transform.2.weight" in refused


@pytest.mark.parametrize("kind", MADE)
def test_save_full_refuses_what_makes_no_prompt_any_more(trained, tmp_path, kind):
    one = trained(kind)
    loaded = PeftModel.from_pretrained(fresh(one), one.adapter)
    with pytest.raises(CheckpointError, match="is gone"):
        save_full(loaded, tmp_path / "full")
    with pytest.raises(CheckpointError, match="training cannot resume"):
        load_full(fresh(one), one.adapter)


def test_save_full_refuses_what_is_no_prompt(trained, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(fresh(trained("CPT")), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(CheckpointError, match="the model is LORA, no prompt"):
        save_full(model, tmp_path / "full")
    assert not (tmp_path / "full").exists()
