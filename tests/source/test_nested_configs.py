"""Base models of text and images: their sizes stand in the text_config of their configuration."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import row_logits
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.source.meaning import generation_defaults

# Longer than the window of 12.
IDS = np.array([5, 9, 33, 71, 8] * 5, np.int64)
_EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3() -> Any:
    text = {**tiny.base_config("gemma3").to_dict(), "eos_token_id": 7}
    return transformers.Gemma3Config(
        text_config=text, vision_config=_EYES, mm_tokens_per_image=4, num_labels=tiny.LABELS
    )


def qwen3_5(kind: str = "full_attention") -> Any:
    text = tiny.base_config("qwen3", layer_types=["full_attention"] * 2).to_dict()
    text["layer_types"] = [kind, "full_attention"]
    text = {**text, "eos_token_id": 7, "model_type": "qwen3_5_text", "rope_parameters": None}
    return transformers.Qwen3_5Config(text_config=text)


_CONFIGS = {"gemma3": gemma3, "qwen3_5": qwen3_5}
_WINDOWS = {"gemma3": 12, "qwen3_5": None}


def trained(folder: Path, architecture: str, task: str) -> tiny.Trained:
    torch.manual_seed(0)
    config = _CONFIGS[architecture]()
    auto: Any = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    }[task]
    base = auto.from_config(config).eval()
    base.save_pretrained(folder / "base")
    # Some classes keep the configuration of their text alone; a model from the hub has all of it.
    config.save_pretrained(folder / "base")
    model = tiny.tune(base, folder, task, "P-Tuning, MLP", 5)
    return tiny.Trained(model, folder / "base", folder / "adapter")


def resolve(one: tiny.Trained) -> BaseModel:
    return resolve_base(read_checkpoint(one.adapter), str(one.base))


@pytest.mark.parametrize("architecture", _CONFIGS)
def test_the_limits_are_those_of_the_text(tmp_path, architecture):
    base = resolve(trained(tmp_path, architecture, "CAUSAL_LM"))
    assert base.config.get_text_config() is not base.config, "the test shows nothing"
    assert base.max_positions == 64
    assert base.sliding_window == _WINDOWS[architecture]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("gemma3", "CAUSAL_LM"), ("gemma3", "SEQ_CLS"), ("qwen3_5", "CAUSAL_LM")],
)
def test_an_engine_is_equal_to_peft(tmp_path, architecture, task):
    one = trained(tmp_path, architecture, task)
    bundle = ptdeploy.compile(
        one.adapter, base=str(one.base), target="ort", output=tmp_path / "out"
    )
    engine = ptdeploy.load(bundle.path)
    (logits,) = engine.logits([IDS.tolist()])
    want = row_logits(one.model, Task(task), IDS)
    assert logits.shape == want.shape
    assert np.allclose(logits, want, rtol=0, atol=1e-5)
    if task == "CAUSAL_LM":
        assert bundle.manifest.generation.eos_token_ids == (7,)


@pytest.mark.parametrize(("whole", "text", "eos"), [([1, 9], 3, (1, 9)), (None, 3, (3,))])
def test_rows_end_at_the_tokens_of_the_whole_model(tmp_path, whole, text, eos):
    one = trained(tmp_path, "gemma3", "CAUSAL_LM")
    file = one.base / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["eos_token_id"] = text
    file.write_text(json.dumps({**config, "eos_token_id": whole}))
    (one.base / "generation_config.json").write_text("{}")
    options, notes = generation_defaults(resolve(one))
    assert options.eos_token_ids == eos
    shown = ", ".join(map(str, eos))
    (note,) = notes
    assert f"a row ends at config.json's, {shown}, where" in note


def test_a_hybrid_model_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(_CONFIGS, "qwen3_5", partial(qwen3_5, "linear_attention"))
    one = trained(tmp_path, "qwen3_5", "CAUSAL_LM")
    with pytest.raises(BaseModelError, match="qwen3_5_text: its layers keep more"):
        ptdeploy.compile(one.adapter, base=str(one.base), target="ort", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
