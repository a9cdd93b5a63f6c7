"""State dicts that are old, wrapped, or a trainer's give the model that was trained."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import tiny

from ptdeploy.bundle.task import Task
from ptdeploy.errors import BaseModelError, CheckpointError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import Checkpoint, read_checkpoint
from ptdeploy.source.checkpoint.names import ENCODER, unwrap

State = dict[str, torch.Tensor]
IDS = np.array([5, 9, 33, 71, 8], np.int64)
HEAD = "classifier.modules_to_save.default"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS")


@pytest.fixture(scope="module")
def wants(trained) -> np.ndarray:
    return row_logits(trained.model, Task.SEQ_CLS, IDS)


def resolve(file: Path, base: Path, task: Task) -> tuple[Checkpoint, BaseModel]:
    checkpoint = read_checkpoint(file, task=task)
    return checkpoint, resolve_base(checkpoint, str(base))


def same_as_trained(file: Path, trained: tiny.Trained, wants: np.ndarray) -> None:
    """The engine's model has the trained tensors, and the reference gives the trained logits."""
    checkpoint, base = resolve(file, trained.base, Task.SEQ_CLS)
    live = trained.model.state_dict()
    for name, tensor in load_model(checkpoint, base).state_dict().items():
        name = name.replace("classifier.", f"{HEAD}.")
        assert torch.equal(tensor, live[f"base_model.{name}"]), name
    got = row_logits(peft_model(checkpoint, base), Task.SEQ_CLS, IDS)
    assert np.allclose(got, wants, atol=1e-6)


def before_all(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def around(module: str, wrapper: str) -> Callable[[State], State]:
    def wrap(state: State) -> State:
        return {
            f"{module}.{wrapper}.{name.removeprefix(module + '.')}"
            if name.startswith(f"{module}.")
            else name: tensor
            for name, tensor in state.items()
        }

    return wrap


def fsdp(state: State) -> State:
    """Every layer, and the whole, in a wrapper of its own."""
    inner = {
        name.replace(".layer.0.", ".layer.0._fsdp_wrapped_module.")
        .replace(".layer.1.", ".layer.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
        .replace("prompt_encoder.default.", "prompt_encoder.default._fsdp_wrapped_module."): tensor
        for name, tensor in state.items()
    }
    return before_all("_fsdp_wrapped_module.")(inner)


@pytest.mark.parametrize(
    "wrap",
    [
        before_all("model."),
        before_all("module."),
        before_all("_orig_mod."),
        before_all("_forward_module.model."),
        before_all("model._orig_mod.module."),
        before_all("net.tuned."),
        around("base_model", "_orig_mod"),
        around("base_model", "module"),
        around("base_model.bert.encoder", "_orig_mod"),
        around("prompt_encoder.default", "module"),
        around("base_model.classifier.modules_to_save.default", "_fsdp_wrapped_module"),
        fsdp,
    ],
)
def test_wrappers_anywhere_in_a_name_change_nothing(trained, tmp_path, wants, wrap):
    torch.save(wrap(trained.model.state_dict()), tmp_path / "model.pt")
    same_as_trained(tmp_path / "model.pt", trained, wants)


@pytest.mark.parametrize("name", ["last.ckpt", "last.pt"])
@pytest.mark.parametrize("hyper_parameters", [{}, {"lr": 0.1, "layers": [1, 2]}])
def test_a_lightning_checkpoint_is_read(trained, tmp_path, wants, name, hyper_parameters):
    state = {f"model.{n}": tensor for n, tensor in trained.model.state_dict().items()}
    state["train_accuracy.tp"] = torch.tensor([3])
    stored = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "hyper_parameters": hyper_parameters,
    }
    torch.save(stored, tmp_path / name)
    same_as_trained(tmp_path / name, trained, wants)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "module", "model", "net"])
def test_a_state_dict_under_any_key_is_found(trained, tmp_path, wants, key):
    stored = {key: trained.model.state_dict(), "step": 7, "optimizer": {"m": torch.ones(2)}}
    torch.save(stored, tmp_path / "model.pt")
    same_as_trained(tmp_path / "model.pt", trained, wants)


def test_averages_beside_the_state_dict_do_not_hide_it(trained, tmp_path, wants):
    state = trained.model.state_dict()
    averages = {name: tensor * 0.9 for name, tensor in state.items()}
    torch.save({"ema": averages, "state_dict": state}, tmp_path / "model.pt")
    same_as_trained(tmp_path / "model.pt", trained, wants)


def test_two_models_in_one_state_dict_are_refused_by_name(trained, tmp_path):
    state = trained.model.state_dict()
    both = {**before_all("model.")(state), **before_all("ema_model.")(state)}
    torch.save({"state_dict": both}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds 2 models with a prompt") as refused:
        read_checkpoint(tmp_path / "model.pt", task=Task.SEQ_CLS)
    assert "state_dict.ema_model., state_dict.model." in refused.value.problem


def test_what_needs_unpickling_is_named_and_not_unpickled(trained, tmp_path):
    stored = {"state_dict": trained.model.state_dict(), "hyper_parameters": argparse.Namespace(a=1)}
    torch.save(stored, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"\(argparse\.Namespace\)") as refused:
        read_checkpoint(tmp_path / "last.ckpt", task=Task.SEQ_CLS)
    assert "not unpickled" in refused.value.problem
    assert "['state_dict']" in refused.value.fix


WRAPPERS = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_names_come_out_of_any_wrappers_as_they_went_in(data):
    names = [
        "prompt_encoder.default.embedding.weight",
        "prompt_encoder.default.mlp_head.0.weight",
        "base_model.model.layers.0.self_attn.q_proj.weight",
        "base_model.score.modules_to_save.default.weight",
        "word_embeddings.weight",
    ]
    before = data.draw(st.lists(st.sampled_from([*WRAPPERS, "model", "net", "a.b"]), max_size=3))
    wrapped: dict[str, torch.Tensor] = {}
    for number, name in enumerate(names):
        parts = []
        for part in name.split("."):
            parts += [*data.draw(st.lists(st.sampled_from(WRAPPERS), max_size=2)), part]
        # What stands before the first part of all names is the same: it wraps the model.
        parts = parts[parts.index(name.split(".")[0]) :]
        wrapped[".".join([*before, *parts])] = torch.tensor(number)
    got = unwrap(Path("x.pt"), {**wrapped, "other.weight": torch.tensor(9)}, ENCODER)
    got.pop("other.weight", None)
    assert {name: int(tensor) for name, tensor in got.items()} == {
        n: i for i, n in enumerate(names)
    }


def causal(size: int = 64) -> torch.Tensor:
    return torch.tril(torch.ones(size, size, dtype=torch.uint8))[None, None]


LAYER = "model.layers.0.self_attn"
OLD: dict[str, dict[str, torch.Tensor]] = {
    "bert": {
        "bert.embeddings.position_ids": torch.arange(64)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.int64),
    },
    "roberta": {"roberta.embeddings.position_ids": torch.arange(64)[None].int()},
    "distilbert": {"distilbert.embeddings.position_ids": torch.arange(64)[None]},
    "electra": {"electra.embeddings.position_ids": torch.arange(64)[None]},
    "gpt2": {
        "transformer.h.0.attn.bias": causal(),
        "transformer.h.1.attn.bias": causal().bool(),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.masked_bias": torch.tensor(float("-inf")),
    },
    "gptj": {
        "transformer.h.0.attn.bias": causal().float(),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
        "transformer.h.0.attn.scale_attn": torch.tensor(2.8),
        "transformer.h.0.attn.embed_positions": torch.ones(64, 4),
    },
    "gpt_neo": {
        "transformer.h.0.attn.attention.bias": causal(),
        "transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": causal().bool(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.norm_factor": torch.tensor(2.8),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
    },
    "gpt_bigcode": {"transformer.bias": causal()[0, 0].bool()},
    "falcon": {"transformer.h.0.self_attention.rotary_emb.inv_freq": torch.ones(4)},
    "bloom": {"transformer.alibi": torch.ones(4, 1, 64)},
    "mpt": {"transformer.alibi": torch.ones(4, 1, 64)},
    "opt": {"model.decoder.version": torch.tensor([2.0])},
    **{
        architecture: {
            f"{LAYER}.rotary_emb.inv_freq": torch.ones(4).half(),
            f"{LAYER}.rotary_emb.cos_cached": torch.ones(1, 1, 64, 8),
            f"{LAYER}.rotary_emb.sin_cached": torch.full((1, 1, 64, 8), float("nan")),
        }
        for architecture in ("llama", "qwen2", "mistral", "gemma2", "phi", "phi3", "stablelm")
    },
    "qwen3": {"model.rotary_emb.inv_freq": torch.ones(4)},
}


@pytest.mark.parametrize("architecture", sorted(OLD))
def test_buffers_of_older_transformers_are_left_out_with_a_note(tmp_path, architecture):
    task = Task.SEQ_CLS if architecture in tiny.ENCODERS else Task.CAUSAL_LM
    one = tiny.make(tmp_path, architecture, task.value)
    buffers = {f"base_model.{name}": tensor for name, tensor in OLD[architecture].items()}
    torch.save({**one.model.state_dict(), **buffers}, tmp_path / "full.pt")
    checkpoint, base = resolve(tmp_path / "full.pt", one.base, task)
    assert len(base.notes) == 1
    assert "left out" in base.notes[0]
    assert sorted(OLD[architecture])[0] in base.notes[0]
    got = load_model(checkpoint, base).state_dict()
    want = one.model.get_base_model().state_dict()
    assert all(torch.equal(got[name], want[name]) for name in got if "classifier" not in name)
    reference = row_logits(peft_model(checkpoint, base), task, IDS)
    assert np.allclose(reference, row_logits(one.model, task, IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor", "advice"),
    [
        ("bert.encoder.layer.0.extra.weight", torch.ones(3, 3), "another base model"),
        ("bert.encoder.layer.0.attention.bias", torch.ones(32), "another base model"),
        ("bert.extra_counts", torch.ones(3, dtype=torch.int64), "another base model"),
        (
            "bert.encoder.layer.0.output.dense.weight.absmax",
            torch.ones(8, dtype=torch.uint8),
            "full precision",
        ),
    ],
)
def test_a_foreign_tensor_is_refused_by_name(trained, tmp_path, name, tensor, advice):
    state = {**trained.model.state_dict(), f"base_model.{name}": tensor}
    torch.save(state, tmp_path / "full.pt")
    with pytest.raises(BaseModelError, match=name.replace(".", r"\.")) as refused:
        resolve(tmp_path / "full.pt", trained.base, Task.SEQ_CLS)
    assert advice in refused.value.fix


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda tensor: (tensor * 100).to(torch.int8), "torch.int8"),
        (lambda tensor: tensor.fill_(float("nan")), "NaN"),
    ],
)
def test_a_weight_that_is_no_finite_number_is_refused_by_name(trained, tmp_path, spoil, part):
    name = "bert.encoder.layer.0.output.dense.weight"
    state = trained.model.state_dict()
    state[f"base_model.{name}"] = spoil(state[f"base_model.{name}"].clone())
    torch.save(state, tmp_path / "full.pt")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as refused:
        resolve(tmp_path / "full.pt", trained.base, Task.SEQ_CLS)
    assert part in refused.value.problem


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapters_file_stands_for_its_folder(trained, name):
    by_file = read_checkpoint(trained.adapter / name)
    by_folder = read_checkpoint(trained.adapter)
    assert by_file.path == by_folder.path == trained.adapter
    assert by_file.files == by_folder.files


def test_an_adapter_under_another_name_says_what_to_call_it(trained, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copy(trained.adapter / "adapter_model.safetensors", file)
    with pytest.raises(CheckpointError, match="holds an adapter") as refused:
        read_checkpoint(file)
    assert "adapter_model.safetensors" in refused.value.fix


def test_an_adapter_saved_from_a_wrapper_is_read(trained, tmp_path):
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(before_all("module.")(tensors), folder / "adapter_model.bin")
    got = read_checkpoint(folder)
    assert np.array_equal(got.virtual_tokens, tensors["prompt_embeddings"].numpy())
    assert got.heads == ("classifier.bias", "classifier.weight")


def test_a_tied_model_saved_without_its_head_is_whole(tmp_path):
    one = tiny.make(tmp_path, "gpt2", "CAUSAL_LM")
    state = {
        name: tensor.contiguous().clone()
        for name, tensor in one.model.state_dict().items()
        if name != "base_model.lm_head.weight" and "word_embeddings" not in name
    }
    state["base_model.transformer.wte.weight"] += 0.5
    save_file(state, tmp_path / "model.safetensors")
    checkpoint, base = resolve(tmp_path / "model.safetensors", one.base, Task.CAUSAL_LM)
    model = load_model(checkpoint, base)
    want = state["base_model.transformer.wte.weight"]
    assert torch.equal(model.lm_head.weight, want)
    assert torch.equal(peft_model(checkpoint, base).get_base_model().lm_head.weight, want)


def test_a_head_that_was_not_copied_for_the_adapter_is_the_trained_one(trained, tmp_path, wants):
    state = trained.model.state_dict()
    for part in ("weight", "bias"):
        state[f"base_model.classifier.{part}"] = state.pop(f"base_model.{HEAD}.{part}")
        del state[f"base_model.classifier.original_module.{part}"]
    torch.save(state, tmp_path / "model.pt")
    same_as_trained(tmp_path / "model.pt", trained, wants)


def test_a_folder_of_several_state_dicts_asks_which(trained, tmp_path):
    for name in ("epoch=1.ckpt", "epoch=2.ckpt"):
        torch.save({"state_dict": trained.model.state_dict()}, tmp_path / name)
    with pytest.raises(CheckpointError, match="nothing says which") as refused:
        read_checkpoint(tmp_path)
    assert str(tmp_path / "epoch=2.ckpt") in refused.value.problem


@pytest.mark.parametrize(
    ("name", "way_out"), [("zero_to_fp32.py", "zero_to_fp32.py"), ("0.distcp", "dcp_to_torch")]
)
def test_shards_of_several_processes_are_to_be_joined_first(tmp_path, name, way_out):
    place = tmp_path / "two words"
    place.mkdir()
    (place / name).write_bytes(b"")
    (place / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="one for each process") as refused:
        read_checkpoint(place)
    assert way_out in refused.value.fix
    assert str(place) in shlex.split(refused.value.fix)


@pytest.mark.parametrize("before", ["", "model."])
def test_p_tuning_as_its_authors_name_it_is_refused_with_the_way_out(tmp_path, before):
    lstm = torch.nn.LSTM(8, 4, num_layers=2, bidirectional=True).state_dict()
    state = {f"{before}prompt_encoder.lstm_head.{name}": tensor for name, tensor in lstm.items()}
    state[f"{before}prompt_encoder.embedding.weight"] = torch.ones(5, 8)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="as P-Tuning's authors name it") as refused:
        read_checkpoint(tmp_path / "model.pt", task=Task.CAUSAL_LM)
    assert "numpy.save" in refused.value.fix


LORA = "bert.encoder.layer.0.output.dense.lora_"
PREFIX = {"prefix_encoder.embedding.weight": torch.ones(5, 128)}
TABLE = {"prompt_encoder.default.embedding.weight": torch.ones(5, 32)}


@pytest.mark.parametrize("part", ["A.default.weight", "magnitude_vector.default.weight"])
@pytest.mark.parametrize("before", ["base_model.", "model.base_model."])
def test_lora_beside_a_prompt_is_refused_with_the_way_out(trained, tmp_path, part, before):
    whole = before.removesuffix("base_model.")
    state = {f"{whole}{name}": tensor for name, tensor in trained.model.state_dict().items()}
    torch.save({**state, f"{before}{LORA}{part}": torch.ones(8, 64)}, tmp_path / "full.pt")
    with pytest.raises(CheckpointError, match="a LoRA adapter beside the prompt") as refused:
        read_checkpoint(tmp_path / "full.pt", task=Task.SEQ_CLS)
    assert "merge_and_unload()" in refused.value.fix
    assert "--base" in refused.value.fix


def test_prompts_of_two_kinds_in_a_state_dict_are_refused_by_name(trained, tmp_path):
    torch.save({**trained.model.state_dict(), **PREFIX}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="2 kinds: P-Tuning, P-Tuning v2") as refused:
        read_checkpoint(tmp_path / "model.pt", task=Task.SEQ_CLS)
    assert "Save the one to compile by itself" in refused.value.fix


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("delta_embedding.weight", "CPT"),
        ("transform.0.weight", "prefix tuning with a projection"),
        ("trainable_embedding", "a cartridge"),
        ("embedding.weight", "an evaluated P-Tuning, prompt tuning or prefix tuning"),
    ],
)
def test_a_state_dict_of_another_kind_is_named_with_the_way_out(tmp_path, more, kind):
    own = {f"prompt_encoder.default.{more}": torch.ones(5, 32), "base_model.x": torch.ones(1)}
    torch.save({**own, **({} if "trainable" in more else TABLE)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(tmp_path / "model.pt", task=Task.CAUSAL_LM)
    assert f"holds {kind}, of which a state dict does not say enough" in refused.value.problem
    assert "model.save_pretrained(FOLDER)" in refused.value.fix


def test_a_state_dict_of_no_prompt_says_what_it_holds(tmp_path):
    torch.save({name: torch.ones(2, 2) for name in ("a.w", "b.w", "c.w", "d.w")}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"It holds 4 tensors: a\.w, b\.w, c\.w, \.\.\."):
        read_checkpoint(tmp_path / "m.pt", task=Task.SEQ_CLS)


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "flat parameters"),
        ({"prompt_encoder.default.embedding.weight": torch.ones(0)}, "is empty"),
        ({"bert.embeddings.word_embeddings.weight": torch.ones(9, 3)}, "no 'prompt_encoder"),
    ],
)
def test_one_processs_share_is_refused(tmp_path, state, part):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=part):
        read_checkpoint(tmp_path / "model.pt", task=Task.SEQ_CLS)


def test_a_torchscript_program_is_no_state_dict(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "model.pt", task=Task.SEQ_CLS)


def test_a_model_loaded_for_inference_has_no_encoder_to_save(trained, tmp_path):
    state = trained.model.state_dict()
    kept = {n: t for n, t in state.items() if "mlp_head" not in n}
    torch.save(kept, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match="holds an evaluated P-Tuning, prompt tuning or"
    ) as refused:
        read_checkpoint(tmp_path / "model.pt", task=Task.SEQ_CLS)
    assert "save its adapter: model.save_pretrained" in refused.value.fix


def test_the_note_is_printed(trained, tmp_path, capsys):
    from ptdeploy.cli.main import main

    buffer = {"base_model.bert.embeddings.position_ids": torch.arange(64)[None]}
    torch.save({**trained.model.state_dict(), **buffer}, tmp_path / "full.pt")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            {
                **json.loads((trained.adapter / "adapter_config.json").read_text()),
                "base_model_name_or_path": str(trained.base),
            }
        )
    )
    out = str(tmp_path / "bundle")
    assert main(["compile", str(tmp_path / "full.pt"), "--target", "ort", "-o", out]) == 0
    assert "note: left out bert.embeddings.position_ids" in capsys.readouterr().err
