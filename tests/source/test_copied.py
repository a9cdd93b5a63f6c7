"""Modules that PEFT trained in a copy: which they are, and which it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from support import native, tiny
from support.copies import train_copies

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.program.prompt import evaluated_prompt
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

SEQ_CLS = Task.SEQ_CLS
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
    # PEFT finds the token embeddings of a classifier under its own name too, and runs that copy.
    ("SEQ_CLS", "bert", "word_embeddings"),
    ("TOKEN_CLS", "roberta", "embeddings.word_embeddings"),
    ("SEQ_CLS", "bloom", "word_embeddings"),
    ("SEQ_CLS", "llama", "word_embeddings"),
    ("CAUSAL_LM", "bloom", "word_embeddings"),
]


def train(folder: Path, case: tuple[str, str, str], kind: str = "P-Tuning, MLP") -> Any:
    """Save a base, and the adapter and the state dicts of the trained model, and return that."""
    task, architecture, module = case
    torch.manual_seed(0)
    more = {"is_decoder": True, "tie_word_embeddings": True} if task == "CAUSAL_LM" else {}
    base = AUTO[task].from_config(tiny.base_config(architecture, **more)).eval()
    base.save_pretrained(folder / "base")
    trained = train_copies(folder, base, task, kind, [module])
    safetensors.torch.save_model(trained, str(folder / "shared.safetensors"))
    # As other writers have it, which say nothing of the names that they leave out.
    shared = safetensors.torch.load_file(folder / "shared.safetensors")
    safetensors.torch.save_file(shared, folder / "unsaid.safetensors")
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


@pytest.mark.parametrize(
    "saved", ["adapter", "full.pt", "shared.safetensors", "unsaid.safetensors"]
)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_copy_is_read_as_peft_runs_it(tmp_path, case, saved):
    task = Task(case[0])
    want = row_logits(train(tmp_path, case), task, IDS)
    reference, exported = both_logits(tmp_path / saved, tmp_path / "base", task)
    assert np.allclose(reference, want, rtol=0, atol=1e-5)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", ["full.pt", "shared.safetensors", "unsaid.safetensors"])
@pytest.mark.parametrize(
    "case",
    [
        ("SEQ_CLS", "llama", "embed_tokens"),
        ("SEQ_CLS", "bert", "bert.embeddings"),
        ("SEQ_CLS", "distilbert", "distilbert.embeddings"),
        ("CAUSAL_LM", "llama", "embed_tokens"),
    ],
    ids="-".join,
)
def test_a_state_dict_has_the_untrained_embeddings_too(tmp_path, case, saved):
    """They are what PEFT runs, whatever the base that is named has in their place."""
    task = Task(case[0])
    want = row_logits(train(tmp_path, case), task, IDS)
    other = AUTO[case[0]].from_pretrained(tmp_path / "base", num_labels=tiny.LABELS)
    with torch.no_grad():
        table = other.get_input_embeddings().weight
        table += torch.randn_like(table)
    other.save_pretrained(tmp_path / "other")
    reference, exported = both_logits(tmp_path / saved, tmp_path / "other", task)
    assert np.allclose(reference, want, rtol=0, atol=1e-5)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", ["adapter", "full.pt"])
def test_without_its_prompt_a_model_has_the_embeddings_that_text_has_beside_it(
    tmp_path, monkeypatch, saved
):
    """What the copy changes is no effect of the prompt: an engine without that is still told."""
    trained = train(tmp_path, ("CAUSAL_LM", "llama", "embed_tokens"))
    asked = {"base": str(tmp_path / "base"), "task": "CAUSAL_LM", "target": "ort"}
    asked |= {"precision": "int8", "quantization": native.LOOSE, "output": tmp_path / "bundle"}
    bundle = ptdeploy.compile(tmp_path / saved, **asked).path
    report = ptdeploy.verify(bundle)
    assert report.passed
    assert [one.told for one in report.effects] == [True, True]
    assert all(abs(one.missing) < 0.1 for one in report.effects)
    (ours,) = ptdeploy.load(bundle).logits([IDS], prompt=None)
    with torch.no_grad():
        other = trained.get_base_model()(torch.from_numpy(IDS)[None]).logits[0].numpy()
    assert np.abs(ours - other).max() > 1
    honest = CausalLM.logits
    monkeypatch.setattr(
        CausalLM, "logits", lambda self, *rows, **_: honest(self, *rows, prompt=None)
    )
    assert ptdeploy.verify(bundle).effects[0].missing == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("saved", ["adapter", "full.pt"])
def test_a_copy_within_a_copy_is_refused_with_the_way_out(tmp_path, saved):
    train(tmp_path, ("SEQ_CLS", "bert", "embeddings"))
    with pytest.raises(BaseModelError, match=r"a copy of a module within a copy of") as refused:
        resolve_base(read_checkpoint(tmp_path / saved, task=SEQ_CLS), str(tmp_path / "base"))
    assert refused.value.fix == "Train it again with modules_to_save=['bert.embeddings']."


@pytest.mark.parametrize("saved", ["full.pt", "shared.safetensors"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_peft_runs_the_same_copy_of_a_converted_state_dict(tmp_path, case, saved):
    task = Task(case[0])
    want = row_logits(train(tmp_path, case), task, IDS)
    told: dict[str, Any] = {"task": task, "base": str(tmp_path / "base")}
    ptdeploy.convert(tmp_path / saved, to="peft", output=tmp_path / "again", **told)
    base = AUTO[task].from_pretrained(tmp_path / "base", num_labels=tiny.LABELS).eval()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert np.allclose(row_logits(again, task, IDS), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["P-Tuning, MLP", "prefix tuning"])
def test_an_engine_has_the_token_embeddings_that_peft_runs(tmp_path, kind):
    want = row_logits(train(tmp_path, ("SEQ_CLS", "bert", "word_embeddings"), kind), SEQ_CLS, IDS)
    told: dict[str, Any] = {"base": str(tmp_path / "base")}
    bundle = ptdeploy.compile(tmp_path / "adapter", target="ort", output=tmp_path / "out", **told)
    (logits,) = ptdeploy.load(bundle.path).logits([IDS.tolist()])
    assert np.allclose(logits, want, rtol=0, atol=1e-5)
    ptdeploy.convert(tmp_path / "adapter", to="peft", output=tmp_path / "again", **told)
    base = AUTO["SEQ_CLS"].from_pretrained(tmp_path / "base", num_labels=tiny.LABELS).eval()
    again = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert np.allclose(row_logits(again, SEQ_CLS, IDS), want, rtol=0, atol=1e-5)


def test_only_a_copy_that_never_runs_is_left_out_with_a_note(tmp_path):
    for module in ("word_embeddings", "embeddings.word_embeddings"):
        train(tmp_path / module, ("SEQ_CLS", "bert", module))
        checkpoint = read_checkpoint(tmp_path / module / "adapter")
        found = resolve_base(checkpoint, str(tmp_path / module / "base"))
        said = [note for note in found.notes if "left out bert.embeddings" in note]
        assert len(said) == (module != "word_embeddings")


def test_token_embeddings_of_another_size_are_refused_by_name(tmp_path):
    train(tmp_path, ("SEQ_CLS", "llama", "word_embeddings"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["word_embeddings.weight"] = tensors["word_embeddings.weight"][:-1].clone()
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(BaseModelError, match=r"word_embeddings\.weight has shape \(100, 32\)"):
        resolve_base(read_checkpoint(tmp_path / "adapter"), str(tmp_path / "base"))
