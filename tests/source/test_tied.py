"""Models whose embeddings are their output layer too, and training that parted the two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import kinds, tiny
from support.copies import train_copies
from transformers.cache_utils import DynamicCache

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.parity.reference.peft import _check_taken, peft_model, row_logits
from ptdeploy.program.prompt import freeze
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

IDS = np.array([5, 9, 33, 71, 8], np.int64)
EMBEDDINGS, HEAD = "embed_tokens", "lm_head"
_TASK = Task.CAUSAL_LM


def base_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def tied_base(folder: Path, architecture: str = "qwen2") -> Path:
    torch.manual_seed(0)
    config = tiny.base_config(architecture, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert HEAD not in "".join(load_file(folder / "model.safetensors")), "they are not tied"
    return folder


def untied_base(folder: Path) -> Path:
    """A base with an output layer of its own in its file, and a configuration that says it has
    none: what merge_and_unload() leaves of LoRA with modules_to_save=["lm_head"]."""
    tied_base(folder)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = table + 0.2 * torch.randn_like(table)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train(folder: Path, base: Path, kind: str, modules: tuple[str, ...]) -> None:
    """Save an adapter and a state dict with those modules trained beside the prompt."""
    train_copies(folder, base_of(base), "CAUSAL_LM", kind, modules)
    shutil.copy(folder / "adapter" / "adapter_config.json", folder)


def pefts_logits(folder: Path, base: Path) -> np.ndarray:
    """What PEFT's own loader makes of the adapter."""
    model = peft.PeftModel.from_pretrained(base_of(base), folder / "adapter").eval()
    return row_logits(model, _TASK, IDS)


def both_logits(path: Path, base: Path, **told: Any) -> tuple[np.ndarray, np.ndarray]:
    """The reference's, and those of the model that engines are exported from."""
    checkpoint = read_checkpoint(path, task=_TASK, **told)
    found = resolve_base(checkpoint, str(base))
    model = load_model(checkpoint, found)
    prefix = freeze(checkpoint, model, True, False).prefix_kv
    assert prefix is not None
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(torch.from_numpy(prefix.copy())):
        cache.update(keys[None], values[None], layer)
    mask = torch.ones(1, prefix.shape[3] + IDS.size, dtype=torch.long)
    with torch.no_grad():
        ids = torch.from_numpy(IDS)[None]
        logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[0]
    return row_logits(peft_model(checkpoint, found), _TASK, IDS), logits.numpy()


@pytest.mark.parametrize("saved", ["adapter", "full.pt"])
@pytest.mark.parametrize("modules", [(EMBEDDINGS,), (HEAD,), (EMBEDDINGS, HEAD)])
@pytest.mark.parametrize("kind", ["prefix tuning", "cartridge", "P-Tuning, MLP", "prompt tuning"])
def test_a_trained_copy_leaves_what_it_was_tied_to(tmp_path, kind, modules, saved):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, kind, modules)
    want = pefts_logits(tmp_path, base)
    reference, exported = both_logits(tmp_path / saved, base)
    assert np.array_equal(reference, want)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", ["adapter", "full.pt"])
def test_an_output_layer_of_the_bases_own_is_kept(tmp_path, saved):
    base = untied_base(tmp_path / "base")
    train(tmp_path, base, "P-Tuning, MLP", ())
    want = pefts_logits(tmp_path, base)
    reference, exported = both_logits(tmp_path / saved, base)
    assert np.array_equal(reference, want)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)
    tied = tied_base(tmp_path / "tied")
    assert np.abs(pefts_logits(tmp_path, tied) - want).max() > 0.1, "the test shows nothing"


def test_a_state_dict_brings_both_where_the_base_has_no_weights(tmp_path):
    base = untied_base(tmp_path / "base")
    train(tmp_path, base, "P-Tuning, MLP", ())
    want = pefts_logits(tmp_path, base)
    (base / "model.safetensors").unlink()
    reference, exported = both_logits(tmp_path / "full.pt", base)
    assert np.allclose(reference, want, rtol=0, atol=1e-5)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)


def test_a_bare_base_and_bare_virtual_tokens_keep_its_own_output_layer(tmp_path):
    base = untied_base(tmp_path / "base")
    tokens = torch.randn(5, 32)
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    model = base_of(base)
    with torch.no_grad():
        text = model.get_input_embeddings()(torch.from_numpy(IDS))
        want = model(inputs_embeds=torch.cat([tokens, text])[None]).logits[0, 5:].numpy()
        plain = model(input_ids=torch.from_numpy(IDS)[None]).logits[0].numpy()
    reference, exported = both_logits(tmp_path / "tokens.npy", base)
    assert np.allclose(reference, want, rtol=0, atol=1e-5)
    assert np.allclose(exported, want, rtol=0, atol=1e-5)
    bundle = ptdeploy.compile(
        base=str(base), task="CAUSAL_LM", target="ort", output=tmp_path / "out"
    )
    (logits,) = ptdeploy.load(bundle.path).logits([IDS.tolist()])
    assert np.allclose(logits, plain, rtol=0, atol=1e-5)


def test_a_prompt_for_an_engine_names_what_it_was_trained_with(tmp_path):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, "prompt tuning", ())
    out = tmp_path / "out"
    bundle = ptdeploy.compile(tmp_path / "adapter", base=str(base), target="ort", output=out)
    train(tmp_path, base, "prompt tuning", (HEAD,))
    with pytest.raises(ptdeploy.BaseModelError, match="has other weights than base") as refused:
        ptdeploy.prompt_add(bundle.path, tmp_path / "adapter", name="other", base=str(base))
    assert refused.value.fix.startswith("The checkpoint brings its own lm_head.weight, which no ")


@pytest.mark.parametrize(
    ("kind", "modules", "make"),
    [
        ("cartridge", (EMBEDDINGS,), tied_base),
        ("prompt tuning", (HEAD,), tied_base),
        ("prompt tuning", (), untied_base),
    ],
)
def test_an_engine_has_them_apart_too(tmp_path, kind, modules, make):
    base = make(tmp_path / "base")
    train(tmp_path, base, kind, modules)
    bundle = ptdeploy.compile(
        tmp_path / "adapter", base=str(base), target="ort", output=tmp_path / "out"
    )
    (logits,) = ptdeploy.load(bundle.path).logits([IDS.tolist()])
    assert np.allclose(logits, pefts_logits(tmp_path, base), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "saved"), [("P-Tuning, MLP", "full.pt"), ("multitask prompt tuning", "adapter")]
)
def test_a_conversion_says_which_modules_were_trained_in_a_copy(tmp_path, kind, saved):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, kind, (HEAD,))
    (tmp_path / "adapter_config.json").unlink()
    told: dict[str, Any] = {**kinds.options(kind), "task": _TASK, "base": str(base)}
    (tmp_path / "again").mkdir()
    ptdeploy.convert(tmp_path / saved, to="peft", output=tmp_path / "again" / "adapter", **told)
    got = pefts_logits(tmp_path / "again", base)
    reference, _ = both_logits(tmp_path / saved, base, **kinds.options(kind))
    assert np.allclose(got, reference, rtol=0, atol=1e-5)


def test_a_state_dict_says_what_was_copied_where_its_config_does_not(tmp_path):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, "prompt tuning", (HEAD,))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": None}))
    reference, exported = both_logits(tmp_path / "full.pt", base)
    assert np.array_equal(reference, pefts_logits(tmp_path, base))
    assert np.allclose(exported, reference, rtol=0, atol=1e-5)


def test_a_tensor_that_peft_leaves_out_is_named_with_another_way(tmp_path):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, "prompt tuning", (HEAD,))
    for saved, way in (("adapter", "full state dict"), ("full.pt", "save_pretrained")):
        checkpoint = read_checkpoint(tmp_path / saved, task=_TASK)
        found = resolve_base(checkpoint, str(base))
        model = peft_model(checkpoint, found)
        with torch.no_grad():
            model.get_base_model().lm_head.modules_to_save["default"].weight += 1
        with pytest.raises(CheckpointError, match=r"does not load lm_head\.weight") as refused:
            _check_taken(checkpoint, model)
        assert way in refused.value.fix


def test_embeddings_that_peft_trains_in_vain_are_left_out_with_a_note(tmp_path):
    base = tied_base(tmp_path / "base")
    train(tmp_path, base, "prompt tuning", (EMBEDDINGS,))
    checkpoint = read_checkpoint(tmp_path / "adapter")
    (note,) = resolve_base(checkpoint, str(base)).notes
    assert "left out model.embed_tokens.weight" in note
