"""Modules that PEFT trained in a copy: which they are, and what of them it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from support import kinds, tiny

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.program.prompt import evaluated_prompt
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

IDS = np.array([5, 9, 33, 71, 8], np.int64)
AUTO: dict[str, Any] = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
}
# Task, architecture and module: token embeddings that no classifier's head is, and a module within
# which weights are tied.
CASES = [
    ("SEQ_CLS", "llama", "embed_tokens"),
    ("TOKEN_CLS", "qwen2", "norm"),
    ("SEQ_CLS", "roberta", "LayerNorm"),
    ("CAUSAL_LM", "bert", "cls"),
    ("CAUSAL_LM", "roberta", "lm_head"),
]


def train(folder: Path, case: tuple[str, str, str], kind: str = "P-Tuning, MLP") -> Any:
    """Save a base, and the adapter and the state dicts of the trained model, and return that."""
    task, architecture, module = case
    torch.manual_seed(0)
    more = {"is_decoder": True, "tie_word_embeddings": True} if task == "CAUSAL_LM" else {}
    base = AUTO[task].from_config(tiny.base_config(architecture, **more)).eval()
    base.save_pretrained(folder / "base")
    told = kinds.KINDS[kind](base, task_type=task, num_virtual_tokens=5)
    told.modules_to_save = [module]
    trained = peft.get_peft_model(base, told).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if ".modules_to_save." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(folder / "adapter")
    torch.save(trained.state_dict(), folder / "full.pt")
    safetensors.torch.save_model(trained, str(folder / "shared.safetensors"))
    return trained


def both_logits(path: Path, base: Path, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The reference's, and those of the model that engines are exported from."""
    checkpoint = read_checkpoint(path, task=task)
    found = resolve_base(checkpoint, str(base))
    model = load_model(checkpoint, found)
    with torch.no_grad():
        text = model.get_input_embeddings()(torch.from_numpy(IDS))
        rows = torch.cat([torch.from_numpy(evaluated_prompt(checkpoint)), text])[None]
        logits = model(inputs_embeds=rows).logits[0]
    own = logits if task is Task.SEQ_CLS else logits[-IDS.size :]
    return row_logits(peft_model(checkpoint, found), task, IDS), own.numpy()


@pytest.mark.parametrize("saved", ["adapter", "full.pt", "shared.safetensors"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_copy_is_read_as_peft_runs_it(tmp_path, case, saved):
    task = Task(case[0])
    want = row_logits(train(tmp_path, case), task, IDS)
    reference, exported = both_logits(tmp_path / saved, tmp_path / "base", task)
    assert np.allclose(reference, want, rtol=0, atol=1e-5)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_peft_runs_the_same_copy_of_a_converted_state_dict(tmp_path, case):
    task = Task(case[0])
    want = row_logits(train(tmp_path, case), task, IDS)
    told: dict[str, Any] = {"task": task, "base": str(tmp_path / "base")}
    ptdeploy.convert(tmp_path / "full.pt", to="peft", output=tmp_path / "again", **told)
    base = AUTO[task].from_pretrained(tmp_path / "base", num_labels=tiny.LABELS).eval()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert np.allclose(row_logits(again, task, IDS), want, rtol=0, atol=1e-5)
