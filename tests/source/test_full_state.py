"""A whole PeftModel's own state dict is read, whatever its kind of prompt, by the config beside."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from support import kinds, tiny
from transformers import AutoModelForCausalLM

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError, PtdeployError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.program.prompt import evaluated_prompt
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import Checkpoint, load_full, read_checkpoint

IDS = np.array([5, 9, 33, 71, 8], np.int64)
MULTITASK = "multitask prompt tuning"
State = dict[str, torch.Tensor]
OWN = "prompt_encoder.default."
# Kinds whose prompt something makes, which a model that was loaded for inference has no more.
MADE = ("P-Tuning, MLP", "P-Tuning, LSTM", "CPT", "prefix tuning, projected")


def state_of(model: Any) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def saved(folder: Path, model: Any, state: State | None = None, with_config: bool = True) -> Path:
    """The state dict as a user saves it, and the config as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    torch.save(state_of(model) if state is None else state, folder / "model.pt")
    if with_config:
        model.peft_config["default"].save_pretrained(str(folder))
    return folder / "model.pt"


def given(kind: str) -> dict[str, Any]:
    return {"task": Task.CAUSAL_LM, **kinds.options(kind)}


def reference_logits(checkpoint: Checkpoint, base: Path) -> np.ndarray:
    return row_logits(
        peft_model(checkpoint, resolve_base(checkpoint, str(base))), checkpoint.task, IDS
    )


def models_logits(model: Any, kind: str) -> np.ndarray:
    """PEFT's own of a live model."""
    ids = torch.from_numpy(IDS)[None]
    told = {"task_ids": torch.tensor([kinds.TASK_ID])} if kinds.options(kind) else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **told).logits
    return logits[0, -IDS.size :].numpy()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_state_dict_of_every_kind_is_read_as_the_adapter_is(trained, tmp_path, kind):
    one = trained(kind)
    path = saved(tmp_path / "run", one.model)
    checkpoint = read_checkpoint(path, **given(kind))
    adapter = read_checkpoint(one.adapter, **given(kind))
    assert checkpoint.kind == adapter.kind
    assert checkpoint.task_id == adapter.task_id
    assert checkpoint.resumable
    assert np.abs(evaluated_prompt(checkpoint) - evaluated_prompt(adapter)).max() < 1e-6
    found = reference_logits(checkpoint, one.base)
    assert np.abs(found - models_logits(one.model, kind)).max() < 1e-6


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_training_goes_on_from_a_state_dict_that_was_made_full(trained, tmp_path, kind):
    one = trained(kind)
    path = saved(tmp_path / "the run", one.model)
    told = {} if kind == MULTITASK else kinds.options(kind)
    full = ptdeploy.convert(path, to="full", output=tmp_path / "full", **told).path
    back = load_full(AutoModelForCausalLM.from_pretrained(one.base), full)
    # PEFT cuts CPT's delta to its bounds where it lies, when the model runs.
    tasks = {"task_ids": torch.tensor([0])} if kind == MULTITASK else {}
    with torch.no_grad():
        one.model(input_ids=torch.tensor([[5, 6, 7]]), **tasks)
    ours, theirs = back.prompt_encoder.state_dict(), one.model.prompt_encoder.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    with pytest.raises(CheckpointError, match="is no folder that save_full wrote") as refused:
        load_full(AutoModelForCausalLM.from_pretrained(one.base), path)
    assert f"ptdeploy convert {shlex.quote(str(path))} --to full" in refused.value.fix


@pytest.mark.parametrize("kind", MADE)
def test_a_model_that_was_loaded_for_inference_has_its_prompt_evaluated(trained, tmp_path, kind):
    one = trained(kind)
    base = AutoModelForCausalLM.from_pretrained(one.base)
    model = PeftModel.from_pretrained(base, one.adapter).eval()
    checkpoint = read_checkpoint(saved(tmp_path / "run", model))
    want = evaluated_prompt(read_checkpoint(one.adapter))
    assert np.array_equal(evaluated_prompt(checkpoint), want)
    found = reference_logits(checkpoint, one.base)
    assert np.abs(found - models_logits(one.model, kind)).max() < 1e-5


def test_a_delta_of_cpts_that_was_not_cut_yet_is_cut_as_peft_does(trained, tmp_path):
    """As an optimizer leaves it: PEFT cuts it when the prompt is used next."""
    one = trained("CPT")
    state = state_of(one.model)
    torch.manual_seed(3)
    state[f"{OWN}delta_embedding.weight"] = 3 * torch.randn(5, 32)
    state[f"{OWN}delta_embedding.weight"][3] = 0
    checkpoint = read_checkpoint(saved(tmp_path / "run", one.model, state))
    model = tiny.make(tmp_path / "again", "qwen2", "CAUSAL_LM", kind="CPT").model
    model.load_state_dict(state)
    with torch.no_grad():
        want = model.get_prompt(1)[0].numpy()
    assert np.abs(evaluated_prompt(checkpoint) - want).max() < 1e-6
    uncut = state[f"{OWN}embedding.weight"] + state[f"{OWN}delta_embedding.weight"]
    assert np.abs(uncut.numpy() - want).max() > 1, "the test shows nothing"


def test_a_multitask_state_dict_needs_no_config_but_a_task(trained, tmp_path):
    one = trained(MULTITASK)
    path = saved(tmp_path / "run", one.model, with_config=False)
    with pytest.raises(CheckpointError, match="was trained for 3 tasks"):
        read_checkpoint(path, task=Task.CAUSAL_LM)
    checkpoint = read_checkpoint(path, **given(MULTITASK))
    found = reference_logits(checkpoint, one.base)
    assert np.abs(found - models_logits(one.model, MULTITASK)).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_a_state_dict_in_safetensors_is_the_same_prompt(trained, tmp_path, dtype):
    one = trained("prefix tuning, projected")
    state = {name: tensor.to(dtype) for name, tensor in state_of(one.model).items()}
    folder = tmp_path / "run"
    path = saved(folder, one.model, state)
    path.unlink()
    # What is tied is stored once, as save_model does.
    stored = {name: tensor for name, tensor in state.items() if not name.startswith("word_emb")}
    save_file(stored, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    want = evaluated_prompt(read_checkpoint(one.adapter))
    assert 0 < np.abs(evaluated_prompt(checkpoint) - want).max() < 0.05


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning"])
def test_a_classifiers_head_comes_with_its_state_dict(trained, tmp_path, kind):
    one = trained(kind, "bert", "SEQ_CLS")
    bundle = ptdeploy.compile(
        saved(tmp_path / "run", one.model), target="ort", base=str(one.base), output=tmp_path / "b"
    )
    assert bundle.manifest.prompt.source.format == "full state dict"
    (logits,) = ptdeploy.load(bundle.path).logits([IDS.tolist()])
    ids = torch.from_numpy(IDS)[None]
    with torch.no_grad():
        want = one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
    assert np.abs(logits - want).max() < 1e-5


def test_inspect_says_what_a_state_dict_of_every_kind_is(trained, tmp_path, capsys):
    for number, kind in enumerate(kinds.KINDS):
        path = saved(tmp_path / str(number), trained(kind).model)
        assert main(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["format"] == "full state dict"
        assert facts["training_can_resume"]
        assert facts["num_virtual_tokens"] == 5
        assert facts["num_tasks"] == (kinds.TASKS if kind == MULTITASK else 1)


def without(name: str) -> Callable[[State, Path], object]:
    return lambda state, _: state.pop(OWN + name)


def edited(**fields: Any) -> Callable[[State, Path], object]:
    def edit(_: State, folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def put(name: str, tensor: torch.Tensor) -> Callable[[State, Path], object]:
    return lambda state, _: state.update({OWN + name: tensor})


def untrained(state: State, folder: Path) -> None:
    """The MLP filtered out: what its table holds is no prompt."""
    for name in [name for name in state if "mlp_head" in name]:
        del state[name]
    edited(inference_mode=False)(state, folder)


BAD: list[tuple[str, Callable[[State, Path], object], str]] = [
    ("prompt tuning", edited(peft_type="CPT"), "holds an evaluated .* its config says CPT"),
    ("P-Tuning, MLP", untrained, "holds an evaluated .* its config says P_TUNING"),
    ("CPT", edited(peft_type="PROMPT_TUNING"), "holds CPT, but its config says PROMPT_TUNING"),
    ("cartridge", edited(peft_type="PREFIX_TUNING"), "holds a cartridge, but its config says"),
    ("prefix tuning", edited(num_virtual_tokens=4), "num_virtual_tokens = 4"),
    ("prefix tuning", edited(num_layers=3), "no keys and values of 3 layers"),
    ("prefix tuning, projected", without("transform.2.bias"), "misses transform.2.bias"),
    ("prefix tuning, projected", without("embedding.weight"), "has no 'embedding.weight'"),
    ("cartridge", without("frozen_embedding"), "num_virtual_tokens = 5"),
    ("cartridge", put("frozen_embedding", torch.ones(1, 3)), "unequal widths"),
    ("cartridge", put("trainable_embedding", torch.ones(4, 64).log() / 0), "NaN or infinite"),
    ("CPT", edited(cpt_tokens_type_mask=[1, 2]), "says no cpt_tokens_type_mask"),
    ("CPT", put("delta_embedding.weight", torch.ones(0)), "is empty"),
    (MULTITASK, without("prefix_task_rows"), "a multitask prompt lacks prefix_task_rows"),
    (MULTITASK, put("prefix_task_rows", torch.ones(3, 2, 9)), "do not fit one another"),
    ("prompt tuning", put("embedding.weight", torch.ones(5, 9)), "has 9 columns"),
]


@pytest.mark.parametrize(("kind", "damage", "words"), BAD)
def test_a_damaged_state_dict_is_refused_by_name(trained, tmp_path, kind, damage, words):
    one = trained(kind)
    state = state_of(one.model)
    path = saved(tmp_path / "run", one.model, state)
    damage(state, tmp_path / "run")
    torch.save(state, path)
    output = tmp_path / "out"
    with pytest.raises(PtdeployError, match=words):
        ptdeploy.compile(
            path, target="ort", base=str(one.base), output=output, **kinds.options(kind)
        )
    assert not output.exists()
