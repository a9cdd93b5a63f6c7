"""P-Tuning v2 as its authors save it, against its own model: transformers' with past KV."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import tiny

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError
from ptdeploy.source.checkpoint import read_checkpoint

TOKENS, LAYERS, HEADS, WIDTH = 5, 2, 4, 32
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12]]


class PrefixEncoder(torch.nn.Module):
    """As THUDM/P-tuning-v2's model/prefix_encoder.py has it."""

    def __init__(self, projection: bool) -> None:
        super().__init__()
        if projection:
            self.embedding = torch.nn.Embedding(TOKENS, WIDTH)
            self.trans = torch.nn.Sequential(
                torch.nn.Linear(WIDTH, 24),
                torch.nn.Tanh(),
                torch.nn.Linear(24, LAYERS * 2 * WIDTH),
            )
        else:
            self.embedding = torch.nn.Embedding(TOKENS, LAYERS * 2 * WIDTH)
        self.projection = projection

    def forward(self, prefix: torch.Tensor) -> torch.Tensor:
        found = self.embedding(prefix)
        return self.trans(found) if self.projection else found


def get_prompt(encoder: PrefixEncoder) -> list[torch.Tensor]:
    """As its models' get_prompt: (2, batch, heads, tokens, head dim) of each layer."""
    past = encoder(torch.arange(TOKENS)[None])
    past = past.view(1, TOKENS, LAYERS * 2, HEADS, WIDTH // HEADS)
    return list(past.permute([2, 0, 3, 1, 4]).split(2))


def trained(
    folder: Path, architecture: str, task: str, projection: bool
) -> tuple[Path, PrefixEncoder, Any]:
    """A model's folder as the Trainer writes it, with its prefix encoder and itself."""
    torch.manual_seed(0)
    model = tiny._AUTO[task].from_config(tiny.base_config(architecture)).eval()
    encoder = PrefixEncoder(projection)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = model.state_dict()
    state.update({f"prefix_encoder.{n}": t for n, t in encoder.state_dict().items()})
    model.config.pre_seq_len = TOKENS
    model.config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder, encoder, model


@pytest.mark.parametrize("projection", [False, True])
def test_the_prefix_is_what_its_own_code_gives(tmp_path, projection):
    folder, encoder, _ = trained(tmp_path, "bert", "SEQ_CLS", projection)
    for path in (folder, folder / "pytorch_model.bin"):
        checkpoint = read_checkpoint(path, task=Task.SEQ_CLS)
        with torch.no_grad():
            want = torch.stack(get_prompt(encoder))[:, :, 0].numpy()
        assert checkpoint.prefix_kv.shape == want.shape == (LAYERS, 2, HEADS, TOKENS, 8)
        assert np.abs(checkpoint.prefix_kv - want).max() < 1e-6
        assert checkpoint.heads == ("classifier.bias", "classifier.weight")


def test_inspect_says_what_it_is(tmp_path, capsys):
    trained(tmp_path, "bert", "SEQ_CLS", projection=True)
    assert main(["inspect", str(tmp_path), "--task", "SEQ_CLS"]) == 0
    text = capsys.readouterr().out
    assert "P-Tuning v2 state dict" in text
    assert "prefix KV of 5 virtual tokens, 2 layers with 4 heads of 8, float32" in text
    assert "task SEQ_CLS" in text
    assert "cannot resume from here" in text
    assert "not named: pass --base" in text


@pytest.mark.parametrize(
    ("architecture", "task", "projection"),
    [("bert", "SEQ_CLS", True), ("roberta", "TOKEN_CLS", False)],
)
def test_a_compiled_model_gives_what_its_own_code_gives(tmp_path, architecture, task, projection):
    (tmp_path / "model").mkdir()
    folder, encoder, model = trained(tmp_path / "model", architecture, task, projection)
    bundle = tmp_path / "bundle"
    told = ["--task", task, "--base", str(folder), "--target", "ort", "-o", str(bundle), "-q"]
    assert main(["compile", str(folder), *told]) == 0
    report = json.loads((bundle / "prompts/default/parity.json").read_text())
    assert report["reference"].startswith("transformers ")
    assert max(case["max_abs"] for case in report["cases"]) < 1e-5
    from transformers.cache_utils import DynamicCache

    for row, found in zip(ROWS, ptdeploy.load(bundle).logits(ROWS), strict=True):
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(get_prompt(encoder)):
            cache.update(keys, values, layer)
        with torch.no_grad():
            want = model(
                input_ids=torch.tensor([row]),
                attention_mask=torch.ones(1, TOKENS + len(row), dtype=torch.int64),
                past_key_values=cache,
            ).logits[0]
        assert np.abs(found - want.numpy()).max() < 1e-5


class RobertaPrefix(torch.nn.Module):
    """As THUDM's model/sequence_classification.py has it: a linear layer behind the pooler."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = tiny.base_config("roberta")
        self.roberta = transformers.RobertaModel(config, add_pooling_layer=True)
        self.classifier = torch.nn.Linear(WIDTH, tiny.LABELS)
        self.prefix_encoder = PrefixEncoder(projection=False)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        config.architectures = ["RobertaForSequenceClassification"]
        config.save_pretrained(folder)
        torch.save(self.eval().state_dict(), folder / "pytorch_model.bin")

    def forward(self, row: list[int]) -> torch.Tensor:
        cache = transformers.DynamicCache()
        for layer, (keys, values) in enumerate(get_prompt(self.prefix_encoder)):
            cache.update(keys, values, layer)
        mask = torch.ones(1, TOKENS + len(row), dtype=torch.int64)
        ids = torch.tensor([row])
        pooled = self.roberta(ids, attention_mask=mask, past_key_values=cache)[1]
        return self.classifier(pooled)[0]


def test_robertas_own_head_of_one_layer_is_read(tmp_path):
    (tmp_path / "model").mkdir()
    model = RobertaPrefix(tmp_path / "model")
    base = tmp_path / "base"
    made = transformers.RobertaForSequenceClassification(model.roberta.config)
    made.roberta.load_state_dict(model.roberta.state_dict(), strict=False)
    made.save_pretrained(base)
    bundle = tmp_path / "bundle"
    told = ["--task", "SEQ_CLS", "--base", str(base), "--target", "ort", "-o", str(bundle), "-q"]
    assert main(["compile", str(tmp_path / "model"), *told]) == 0
    for row, found in zip(ROWS, ptdeploy.load(bundle).logits(ROWS), strict=True):
        with torch.no_grad():
            assert np.abs(found - model(row).numpy()).max() < 1e-5
    state = torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=True)
    del state["roberta.pooler.dense.bias"]
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"misses roberta\.pooler\.dense\.bias"):
        read_checkpoint(tmp_path / "model", task=Task.SEQ_CLS)


def _config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        del state[name]
        torch.save(state, folder / "pytorch_model.bin")

    return change


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_config(num_attention_heads=3), "no keys and values of 2 layers with 3 heads"),
        (_config(num_hidden_layers=4), "no keys and values of 4 layers"),
        (_config(hidden_size=None), "hidden_size is None, not a positive whole number"),
        (_without("prefix_encoder.trans.2.bias"), "misses prefix_encoder.trans.2.bias"),
        (_without("prefix_encoder.embedding.weight"), "misses prefix_encoder.embedding.weight"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    ],
)
def test_a_bad_checkpoint_is_refused(tmp_path, damage, problem):
    folder, _, _ = trained(tmp_path, "bert", "SEQ_CLS", True)
    damage(folder)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(folder, task=Task.SEQ_CLS)
    assert problem in refused.value.problem


def test_virtual_tokens_under_the_encoders_name_are_named_as_such(tmp_path):
    folder, _, _ = trained(tmp_path, "bert", "SEQ_CLS", False)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["prefix_encoder.embedding.weight"]
    torch.save({**state, "prefix_encoder.weight": torch.ones(5, 32)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="virtual tokens that the authors' --prompt trains"):
        read_checkpoint(folder, task=Task.SEQ_CLS)


def test_a_task_is_asked_for(tmp_path):
    folder, _, _ = trained(tmp_path, "bert", "SEQ_CLS", True)
    with pytest.raises(CheckpointError, match="says no task"):
        read_checkpoint(folder)
