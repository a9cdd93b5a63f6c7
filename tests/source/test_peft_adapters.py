"""PEFT's adapters as they come: of any version, element type and kind, several in one folder."""

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

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.errors import CheckpointError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.program.prompt import evaluated_prompt
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = np.array([5, 9, 33, 71, 8], np.int64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_half_an_adapter_is_read_without_rounding(trained, tmp_path, kind, dtype):
    folder = Path(shutil.copytree(trained(kind).adapter, tmp_path / "a"))
    halves = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    found = read_checkpoint(folder, **kinds.options(kind))
    whole = {name: tensor.float() for name, tensor in halves.items()}
    save_file(whole, folder / WEIGHTS)
    assert np.array_equal(
        evaluated_prompt(found), evaluated_prompt(read_checkpoint(folder, **kinds.options(kind)))
    )
    if not kinds.options(kind):
        assert found.dtype == str(dtype).removeprefix("torch.")


# What PEFT's configuration of any prompt had at first, and what later versions wrote besides.
_FIRST = (
    *("base_model_name_or_path", "inference_mode", "num_attention_heads", "num_layers"),
    *("num_transformer_submodules", "num_virtual_tokens", "peft_type", "task_type", "token_dim"),
)
_LATER = {"0.2": (), "0.4": ("auto_mapping", "revision"), "0.18": ("peft_version",)}
_P_TUNING = ("encoder_dropout", "encoder_hidden_size", "encoder_num_layers")
# By kind: what it had from the version on that brought it.
_OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "P-Tuning, MLP": ("0.2", (*_P_TUNING, "encoder_reparameterization_type")),
    "P-Tuning, LSTM": ("0.2", (*_P_TUNING, "encoder_reparameterization_type")),
    "prompt tuning": (
        "0.2",
        ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"),
    ),
    "prefix tuning": ("0.2", ("encoder_hidden_size", "prefix_projection")),
    "prefix tuning, projected": ("0.2", ("encoder_hidden_size", "prefix_projection")),
    "multitask prompt tuning": ("0.4", ("num_tasks", "num_ranks", "prompt_tuning_init")),
}
VERSIONS = [
    (kind, version)
    for kind, (first, _) in _OWN.items()
    for version in _LATER
    if float(version) >= float(first)
]


@pytest.mark.parametrize(("kind", "version"), VERSIONS)
def test_a_config_of_any_version_is_read(trained, tmp_path, kind, version):
    one = trained(kind)
    folder = Path(shutil.copytree(one.adapter, tmp_path / "a"))
    written = json.loads((folder / CONFIG).read_text())
    later = [name for since, names in _LATER.items() if since <= version for name in names]
    kept = {name: written.get(name) for name in (*_FIRST, *_OWN[kind][1], *later)}
    (folder / CONFIG).write_text(json.dumps(kept))
    found = read_checkpoint(folder, **kinds.options(kind))
    want = read_checkpoint(one.adapter, **kinds.options(kind))
    assert (found.kind, found.task, found.projected) == (want.kind, want.task, want.projected)
    assert np.array_equal(evaluated_prompt(found), evaluated_prompt(want))
    base = resolve_base(found, str(one.base))
    logits = row_logits(peft_model(found, base), Task.CAUSAL_LM, IDS)
    wanted = row_logits(peft_model(want, resolve_base(want, str(one.base))), Task.CAUSAL_LM, IDS)
    assert np.array_equal(logits, wanted)


def test_adapters_of_several_kinds_in_one_folder_are_chosen_by_name(trained, tmp_path):
    named = {"default": "P-Tuning, MLP", "prefix": "prefix tuning", "soft": "prompt tuning"}
    whole = tmp_path / "all"
    for name, kind in named.items():
        place = whole if name == "default" else whole / name
        shutil.copytree(trained(kind).adapter, place, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="holds 3 adapters: default ") as refused:
        read_checkpoint(whole)
    assert "default (P_TUNING), prefix (PREFIX_TUNING), soft (PROMPT_TUNING)" in str(refused.value)
    for name, kind in named.items():
        found, want = read_checkpoint(whole, name), read_checkpoint(trained(kind).adapter)
        assert found.kind == want.kind
        assert np.array_equal(evaluated_prompt(found), evaluated_prompt(want))


def same_logits(found: Path, one: tiny.Trained, task: Task, **options: Any) -> None:
    """What PEFT gives of an adapter is what the trained model gave."""
    checkpoint = read_checkpoint(found, **options)
    base = resolve_base(checkpoint, str(one.base))
    logits = row_logits(peft_model(checkpoint, base), task, IDS)
    want = read_checkpoint(one.adapter, **options)
    wanted = row_logits(peft_model(want, resolve_base(want, str(one.base))), task, IDS)
    assert np.array_equal(logits, wanted)


def reconfigured(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(
    "init", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED", "TEXT"]
)
def test_what_a_prompt_began_as_need_not_be_at_hand(trained, tmp_path, init):
    one = trained("multitask prompt tuning")
    folder = reconfigured(
        Path(shutil.copytree(one.adapter, tmp_path / "a")),
        prompt_tuning_init=init,
        prompt_tuning_init_state_dict_path=str(tmp_path / "of the training machine.safetensors"),
        prompt_tuning_init_text="what this is",
        tokenizer_name_or_path=str(tmp_path / "none"),
    )
    options = kinds.options("multitask prompt tuning")
    same_logits(folder, one, Task.CAUSAL_LM, **options)
    ptdeploy.convert(folder, to="full", output=tmp_path / "full", base=str(one.base))
    base = transformers.AutoModelForCausalLM.from_pretrained(one.base)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "full"))
    assert model.peft_config["default"].num_virtual_tokens == 5


@pytest.mark.parametrize("name", ["lr-0.001", "train", "keys", "named"])
def test_an_adapters_folder_may_have_any_name(trained, tmp_path, name):
    one = trained("P-Tuning, MLP", "bert", "SEQ_CLS")
    shutil.copytree(one.adapter, tmp_path / "all" / name)
    assert read_checkpoint(tmp_path / "all").adapter == name
    same_logits(tmp_path / "all", one, Task.SEQ_CLS)


@pytest.mark.parametrize("name", ["lr-0.001", "train", "named"])
def test_training_goes_on_from_a_folder_of_any_name(trained, tmp_path, name):
    one = trained("P-Tuning, MLP", "bert", "SEQ_CLS")
    ptdeploy.save_full(one.model, tmp_path / "all" / name)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(one.base)
    model = ptdeploy.load_full(base, tmp_path / "all").eval()
    assert model.active_adapter == (name if name == "named" else "default")
    assert np.array_equal(
        row_logits(model, Task.SEQ_CLS, IDS), row_logits(one.model, Task.SEQ_CLS, IDS)
    )


def test_an_adapter_with_a_byte_order_mark_from_a_wrapped_model_is_the_same(trained, tmp_path):
    one = trained("P-Tuning, MLP", "bert", "SEQ_CLS")
    folder = Path(shutil.copytree(one.adapter, tmp_path / "a"))
    (folder / CONFIG).write_text((folder / CONFIG).read_text(), encoding="utf-8-sig")
    wrapped = {f"module.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(wrapped, folder / WEIGHTS)
    same_logits(folder, one, Task.SEQ_CLS)


# Embeddings are trained beside a prefix KV alone: before virtual tokens PEFT takes the base's own.
@pytest.mark.parametrize(
    ("architecture", "kind", "modules"),
    [
        ("bert", "prefix tuning", ["word_embeddings", "pooler", "LayerNorm"]),
        ("bert", "prompt tuning", ["pooler", "LayerNorm"]),
        ("qwen2", "prefix tuning", ["embed_tokens", "v_proj"]),
    ],
)
def test_whatever_modules_were_trained_beside_the_prompt_come_along(
    tmp_path, architecture, kind, modules
):
    config = tiny.base_config(architecture)
    torch.manual_seed(0)
    base: Any = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    base.save_pretrained(tmp_path / "base")
    told = kinds.KINDS[kind](base, task_type="SEQ_CLS", num_virtual_tokens=5)
    told.modules_to_save = list(modules)
    model = peft.get_peft_model(base, told).eval()
    trained = [p for name, p in model.named_parameters() if ".modules_to_save." in name]
    assert len(trained) > len(modules), "the test shows nothing"
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    bundle = ptdeploy.compile(
        tmp_path / "adapter", target="ort", base=str(tmp_path / "base"), output=tmp_path / "out"
    )
    (logits,) = ptdeploy.load(bundle.path).logits([IDS.tolist()])
    assert np.abs(logits - row_logits(model, Task.SEQ_CLS, IDS)).max() < 1e-5
    with torch.no_grad():
        plain = base(input_ids=torch.from_numpy(IDS)[None]).logits
    assert np.abs(logits - plain.numpy()).max() > 1e-3
