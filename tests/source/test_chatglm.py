"""P-Tuning v2 of ChatGLM, on transformers' GLM: a text numbered from 0 behind unrotated keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support import tiny
from transformers import AutoModelForCausalLM, DynamicCache

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError, CheckpointError, PtdeployError
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint

TOKENS, LAYERS, HEADS, DIM = 5, 2, 2, 8
KV = LAYERS * 2 * HEADS * DIM
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12]]
# Of the configuration that ChatGLM's own code saves, what the prefix hangs on.
CONFIG = {
    "model_type": "chatglm",
    "num_layers": LAYERS,
    "multi_query_attention": True,
    "multi_query_group_num": HEADS,
    "num_attention_heads": 4,
    "kv_channels": DIM,
    "pre_seq_len": TOKENS,
}


class PrefixEncoder(torch.nn.Module):
    """As ChatGLM2's modeling_chatglm.py has it."""

    def __init__(self, projection: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(TOKENS, KV)
        if projection:
            self.trans = torch.nn.Sequential(
                torch.nn.Linear(KV, 32), torch.nn.Tanh(), torch.nn.Linear(32, KV)
            )
        self.projection = projection

    def get_prompt(self) -> list[torch.Tensor]:
        """As its models' get_prompt, of each layer (2, heads, tokens, head dim)."""
        past = self.embedding(torch.arange(TOKENS)[None])
        past = self.trans(past) if self.projection else past
        past = past.view(1, TOKENS, LAYERS * 2, HEADS, DIM)
        return list(past.permute([2, 0, 3, 1, 4])[:, 0].split(2))


def trained(folder: Path, projection: bool = False) -> PrefixEncoder:
    """A checkpoint as ChatGLM's ptuning/ saves it: the prefix encoder alone, and the config."""
    torch.manual_seed(0)
    encoder = PrefixEncoder(projection)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    folder.mkdir()
    state = {f"transformer.prefix_encoder.{n}": t for n, t in encoder.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return encoder


def own_logits(base: Path, encoder: PrefixEncoder, row: list[int]) -> torch.Tensor:
    """What ChatGLM's own way gives: keys as they were trained, and a text numbered from 0."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(encoder.get_prompt()):
        cache.update(keys[None], values[None], layer)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, TOKENS + len(row), dtype=torch.int64),
            position_ids=torch.arange(len(row))[None],
            past_key_values=cache,
        ).logits[0]


@pytest.mark.parametrize(("architecture", "projection"), [("glm", True), ("glm4", False)])
def test_a_compiled_prefix_gives_what_chatglms_numbering_gives(tmp_path, architecture, projection):
    base = tiny.make(tmp_path, architecture, "CAUSAL_LM").base
    encoder, bundle = trained(tmp_path / "p", projection), tmp_path / "bundle"
    told = ["--base", str(base), "-q"]
    compile_ = ["compile", str(tmp_path / "p"), *told, "--target", "ort", "-o", str(bundle)]
    assert main(compile_) == 0
    report = json.loads((bundle / "prompts/default/parity.json").read_text())
    assert report["reference"].startswith("transformers ")
    assert max(case["max_abs"] for case in report["cases"]) < 1e-5
    for row, found in zip(ROWS, ptdeploy.load(bundle).logits(ROWS), strict=True):
        want = own_logits(base, encoder, row).numpy()
        assert np.abs(found - want).max() < 1e-5
        assert np.abs(want).max() > 0.1, "the test shows nothing"
    checkpoint = ["--checkpoint", str(tmp_path / "p"), "--locate"]
    assert main(["verify", str(bundle), *checkpoint, *told]) == 0


def test_an_adapter_of_it_is_numbered_as_peft_numbers_texts(tmp_path):
    base = tiny.make(tmp_path, "glm", "CAUSAL_LM").base
    encoder = trained(tmp_path / "p")
    done = ptdeploy.convert(tmp_path / "p", to="peft", output=tmp_path / "own", base=str(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, done.path).eval()
    for row in ROWS:
        ids = torch.tensor([row])
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        assert (found - own_logits(base, encoder, row)).abs().max() < 1e-5


def test_inspect_says_what_it_is(tmp_path, capsys):
    trained(tmp_path / "p")
    assert main(["inspect", str(tmp_path / "p")]) == 0
    text = capsys.readouterr().out
    assert "ChatGLM P-Tuning v2 state dict" in text
    assert f"{TOKENS} virtual tokens, {LAYERS} layers with {HEADS} heads of {DIM}" in text
    assert "not named: pass --base" in text


def refusal(error: type[PtdeployError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as refused:
        call()
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"position_encoding_2d": True}, "of the first ChatGLM, whose positions are of two"),
        ({"multi_query_attention": ...}, "of the first ChatGLM"),
        ({"multi_query_group_num": 3}, "no keys and values of 2 layers with 3 heads of 8"),
        ({"multi_query_attention": False}, "2 layers with 4 heads of 8"),
        ({"kv_channels": None}, "kv_channels is None, not a positive whole number"),
        ({"num_layers": 3}, "no keys and values of 3 layers"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, problem):
    trained(tmp_path / "p")
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not ...}
    (tmp_path / "p" / "config.json").write_text(json.dumps(config))
    assert problem in refusal(CheckpointError, lambda: read_checkpoint(tmp_path / "p"))


def test_remote_code_and_other_bases_are_refused_with_what_is_missing(tmp_path):
    trained(tmp_path / "p")
    checkpoint = read_checkpoint(tmp_path / "p")
    remote: dict[str, Any] = {**CONFIG, "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLM"}}
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "config.json").write_text(json.dumps(remote))
    other = tiny.make(tmp_path, "qwen2", "CAUSAL_LM").base
    for base, problem in (
        (tmp_path / "remote", "ChatGLM's own model is remote code, which ptdeploy does not run"),
        (other, "is a qwen2 model, but the checkpoint's prefix KV is ChatGLM's"),
    ):
        text = refusal(BaseModelError, lambda base=base: resolve_base(checkpoint, str(base)))
        assert problem in text
        assert "converted to transformers' GLM" in text
