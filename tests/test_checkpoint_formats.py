"""Checkpoints as tools other than a bare torch.save leave them, and save_full under strain.

test_formats.py has each format once; here are their combinations and the tools' wrappings.
"""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tiny
import torch
from damage import ADAPTER, CONFIG, edit_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModelForSequenceClassification

from ptdeploy.base import load_model, resolve_base
from ptdeploy.checkpoint import Checkpoint, load_full, read_checkpoint, save_full
from ptdeploy.checkpoint.tensors import read_tensors, sha256_file
from ptdeploy.errors import CheckpointError, OutputError, PtdeployError
from ptdeploy.inspect import describe, inspect
from ptdeploy.parity.peft_reference import peft_model
from ptdeploy.prompt import evaluate_prompt_encoder, freeze
from ptdeploy.task import Task

NEAR = 1e-6


@pytest.fixture(scope="module", params=["MLP", "LSTM"])
def trained(request, tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS", request.param)


def pefts_prompt(model: PeftModel) -> np.ndarray:
    with torch.no_grad():
        return model.get_prompt(1)[0].float().numpy()


def frozen(checkpoint: Checkpoint, model: PeftModel) -> np.ndarray:
    return freeze(checkpoint, model.get_base_model(), with_prefix_kv=False).virtual_tokens


def state_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def second_adapter(trained: tiny.Trained, kind: str = "MLP") -> PeftModel:
    """A new model with the adapters 'default' (5 virtual tokens) and 'second' (3), active."""
    model = get_peft_model(fresh_base(trained), prompt_config(5))
    model.add_adapter("second", prompt_config(3, kind))
    model.set_adapter("second")
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def prompt_config(virtual_tokens: int, kind: str = "MLP", **more: object) -> PromptEncoderConfig:
    return PromptEncoderConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=virtual_tokens,
        token_dim=32,
        encoder_hidden_size=24,
        encoder_reparameterization_type=kind,
        **more,
    )


def fresh_base(trained: tiny.Trained, **options: object):
    return AutoModelForSequenceClassification.from_pretrained(
        trained.base, num_labels=tiny.LABELS, **options
    )


# State dicts


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_any_wrapping_of_a_state_dict_is_taken_off(trained, tmp_path, prefix):
    """torch.compile of DistributedDataParallel, and the other way round."""
    torch.save({prefix + n: t for n, t in state_of(trained.model).items()}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt", task=Task.SEQ_CLS)
    assert np.abs(frozen(checkpoint, trained.model) - pefts_prompt(trained.model)).max() < NEAR
    assert checkpoint.heads == ("classifier.bias", "classifier.weight")
    reference = peft_model(checkpoint, resolve_base(checkpoint, str(trained.base)))
    assert np.abs(pefts_prompt(reference) - pefts_prompt(trained.model)).max() < NEAR


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_inside_a_training_checkpoint_is_found(trained, tmp_path, key, prefix):
    state = {prefix + name: tensor for name, tensor in state_of(trained.model).items()}
    extra = {"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, "lr": 1e-3}
    torch.save({key: state, **extra}, tmp_path / "m.pth")
    checkpoint = read_checkpoint(tmp_path / "m.pth", task=Task.SEQ_CLS)
    assert np.abs(frozen(checkpoint, trained.model) - pefts_prompt(trained.model)).max() < NEAR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_a_state_dict_of_any_float_type_is_evaluated_in_float32(trained, tmp_path, dtype, suffix):
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state_of(trained.model).items()
    }
    file = tmp_path / f"model{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    checkpoint = read_checkpoint(file, task=Task.SEQ_CLS)
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    prefix = "prompt_encoder.default."
    rounded = {n.removeprefix(prefix): t.float() for n, t in state.items() if n.startswith(prefix)}
    want = evaluated_by_peft(trained, rounded)
    assert np.abs(frozen(checkpoint, trained.model) - want).max() < NEAR


def evaluated_by_peft(trained: tiny.Trained, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """What PEFT's own prompt encoder gives with these tensors."""
    encoder = deepcopy(trained.model.prompt_encoder["default"])
    encoder.load_state_dict(tensors)
    with torch.no_grad():
        return encoder(torch.arange(5)).numpy()


def test_bfloat16_in_a_torch_adapter_is_not_rounded_again(trained, tmp_path):
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "a"))
    tensors = {n: t.bfloat16() for n, t in load_file(folder / ADAPTER).items()}
    (folder / ADAPTER).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dtype == "bfloat16"
    want = tensors["prompt_embeddings"].float().numpy()
    assert np.array_equal(frozen(checkpoint, trained.model), want)


def test_a_full_state_dict_brings_its_own_base_weights(tmp_path):
    """The base model was trained too, so the folder of the untrained one is not what it ran on."""
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    with torch.no_grad():
        for parameter in trained.model.get_base_model().parameters():
            parameter.add_(0.5)
    torch.save(trained.model.state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt", task=Task.SEQ_CLS)
    base = resolve_base(checkpoint, str(trained.base))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        want = trained.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        theirs = peft_model(checkpoint, base)(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).logits
    assert torch.allclose(theirs, want, atol=1e-6)
    ours = load_model(checkpoint, base).state_dict()
    for name, value in checkpoint.weights.items():
        assert np.array_equal(ours[name].numpy(), value), name


def test_tied_weights_that_safetensors_stored_once_are_all_there(tmp_path):
    trained = tiny.make(tmp_path, "gpt2", "CAUSAL_LM")
    model = trained.model.get_base_model()
    with torch.no_grad():
        model.transformer.wte.weight.add_(0.25)
    save_model(trained.model, str(tmp_path / "model.safetensors"))
    checkpoint = read_checkpoint(tmp_path / "model.safetensors", task=Task.CAUSAL_LM)
    ours = load_model(checkpoint, resolve_base(checkpoint, str(trained.base)))
    assert torch.equal(ours.transformer.wte.weight, model.transformer.wte.weight)
    assert torch.equal(ours.lm_head.weight, model.transformer.wte.weight)


# Trainer folders


def shard(state: dict[str, torch.Tensor], folder: Path, stem: str, suffix: str) -> Path:
    names = sorted(state)
    parts = {f"{stem}-0000{i}-of-00002{suffix}": names[i - 1 :: 2] for i in (1, 2)}
    for part, inside in parts.items():
        tensors = {name: state[name] for name in inside}
        (save_file if suffix == ".safetensors" else torch.save)(tensors, folder / part)
    index = folder / f"{stem}{suffix}.index.json"
    weight_map = {name: part for part, inside in parts.items() for name in inside}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def trainer_adapter(trained: tiny.Trained, folder: Path) -> None:
    trained.model.save_pretrained(folder)


def trainer_full_adapter(trained: tiny.Trained, folder: Path) -> None:
    save_full(trained.model, folder)


def trainer_safetensors(trained: tiny.Trained, folder: Path) -> None:
    save_file(state_of(trained.model), folder / "model.safetensors")


def trainer_bin(trained: tiny.Trained, folder: Path) -> None:
    torch.save(trained.model.state_dict(), folder / "pytorch_model.bin")


def trainer_shards(trained: tiny.Trained, folder: Path) -> None:
    shard(state_of(trained.model), folder, "model", ".safetensors")


def trainer_bin_shards(trained: tiny.Trained, folder: Path) -> None:
    shard(state_of(trained.model), folder, "pytorch_model", ".bin")


TRAINERS = [
    trainer_adapter,
    trainer_full_adapter,
    trainer_safetensors,
    trainer_bin,
    trainer_shards,
    trainer_bin_shards,
]


@pytest.mark.parametrize("write", TRAINERS)
def test_a_trainer_checkpoint_of_any_make_is_read(trained, tmp_path, write):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    write(trained, folder)
    (folder / "trainer_state.json").write_text("{}")
    torch.save({"state": {}}, folder / "optimizer.pt")
    torch.save({"python": 1}, folder / "rng_state.pth")
    checkpoint = read_checkpoint(folder, task=Task.SEQ_CLS)
    assert checkpoint.format.startswith("Trainer checkpoint")
    assert np.abs(frozen(checkpoint, trained.model) - pefts_prompt(trained.model)).max() < NEAR
    assert describe(inspect(folder, task=Task.SEQ_CLS))


@pytest.mark.parametrize("write", TRAINERS)
def test_every_file_that_holds_a_tensor_is_hashed(trained, tmp_path, write):
    """The manifest's source must change when a weight does."""
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    write(trained, folder)
    files = read_checkpoint(folder, task=Task.SEQ_CLS).files
    holders = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")]
    assert {path.name: sha256_file(path) for path in holders}.items() <= files.items()


def test_a_shard_that_lacks_a_tensor_its_index_promises_is_refused(trained, tmp_path):
    index = shard(state_of(trained.model), tmp_path, "model", ".safetensors")
    edit_json(index, lambda i: i["weight_map"].update(ghost="model-00001-of-00002.safetensors"))
    with pytest.raises(CheckpointError, match="ghost"):
        read_checkpoint(index, task=Task.SEQ_CLS)


# Adapters with another name


def test_an_adapter_with_another_name_is_found_in_its_folder(trained, tmp_path):
    model = second_adapter(trained)
    model.save_pretrained(tmp_path / "out", selected_adapters=["second"])
    checkpoint = read_checkpoint(tmp_path / "out")
    assert (checkpoint.adapter, checkpoint.num_virtual_tokens) == ("second", 3)
    assert np.array_equal(frozen(checkpoint, model), pefts_prompt(model))
    inner = read_checkpoint(tmp_path / "out" / "second")
    assert np.array_equal(frozen(inner, model), pefts_prompt(model))


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_save_full_keeps_the_active_adapter_under_its_name(trained, tmp_path, kind):
    model = second_adapter(trained, kind)
    save_full(model, tmp_path / "full")
    checkpoint = read_checkpoint(tmp_path / "full")
    assert (checkpoint.adapter, checkpoint.resumable) == ("second", True)
    back = load_full(fresh_base(trained), tmp_path / "full")
    assert back.active_adapter == "second"
    assert np.array_equal(pefts_prompt(back.eval()), pefts_prompt(model))
    theirs = PeftModel.from_pretrained(fresh_base(trained), tmp_path / "full" / "second").eval()
    # PEFT evaluates an LSTM for saving in another batch, which rounds its last bit otherwise.
    assert np.abs(pefts_prompt(theirs) - pefts_prompt(model)).max() < NEAR


def test_one_of_several_adapters_in_a_state_dict_needs_a_name(trained, tmp_path):
    model = second_adapter(trained)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="--adapter"):
        read_checkpoint(tmp_path / "m.pt", task=Task.SEQ_CLS)
    checkpoint = read_checkpoint(tmp_path / "m.pt", "second", Task.SEQ_CLS)
    assert np.abs(frozen(checkpoint, model) - pefts_prompt(model)).max() < NEAR


# save_full and load_full


def step(model: PeftModel) -> None:
    """One step of training on one batch, without dropout."""
    model.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = torch.arange(12).reshape(2, 6)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 2]))
    output.loss.backward()
    optimizer.step()


def test_training_resumes_exactly_where_it_stopped(tmp_path):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS", "MLP")
    save_full(trained.model, tmp_path / "full")
    back = load_full(fresh_base(trained), tmp_path / "full")
    step(back)
    step(trained.model)
    ours, theirs = dict(back.named_parameters()), dict(trained.model.named_parameters())
    moved = [name for name in theirs if theirs[name].requires_grad]
    assert any("mlp_head" in name for name in moved)
    assert any("classifier" in name for name in moved)
    for name in moved:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_second_save_after_resuming_is_read_again(tmp_path):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS", "LSTM")
    save_full(trained.model, tmp_path / "one")
    back = load_full(fresh_base(trained), tmp_path / "one")
    step(back)
    save_full(back, tmp_path / "two")
    checkpoint = read_checkpoint(tmp_path / "two")
    assert np.abs(frozen(checkpoint, back) - pefts_prompt(back)).max() < NEAR
    assert not np.allclose(pefts_prompt(back), pefts_prompt(trained.model))


def half_precision(trained: tiny.Trained, dtype: torch.dtype) -> PeftModel:
    """A model trained wholly in half precision, prompt encoder included."""
    kind = "LSTM" if hasattr(trained.model.prompt_encoder["default"], "lstm_head") else "MLP"
    model = get_peft_model(fresh_base(trained, dtype=dtype), prompt_config(5, kind))
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_comes_back_bit_for_bit(trained, tmp_path, dtype):
    model = half_precision(trained, dtype)
    save_full(model, tmp_path / "full")
    back = load_full(fresh_base(trained, dtype=dtype), tmp_path / "full").eval()
    assert np.array_equal(pefts_prompt(back), pefts_prompt(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_models_own_rounding_is_not_called_stale(trained, tmp_path, dtype):
    """Its evaluated prompt was computed and rounded in half precision, the encoder's is not."""
    model = half_precision(trained, dtype)
    save_full(model, tmp_path / "full")
    departure = np.abs(frozen(read_checkpoint(tmp_path / "full"), model) - pefts_prompt(model))
    assert departure.max() < 0.1


def test_save_full_in_the_middle_of_training_saves_no_dropout(trained, tmp_path):
    """The prompt beside the encoder is the one that is deployed, whatever mode the model is in."""
    model = get_peft_model(
        fresh_base(trained), prompt_config(5, "LSTM", encoder_dropout=0.5, encoder_num_layers=2)
    )
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.train()
    save_full(model, tmp_path / "full")
    assert model.training
    assert model.prompt_encoder.training
    want = pefts_prompt(model.eval())
    checkpoint = read_checkpoint(tmp_path / "full")
    assert np.abs(checkpoint.virtual_tokens - want).max() < NEAR
    assert np.abs(frozen(checkpoint, model) - want).max() < NEAR


@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "TOKEN_CLS"), ("gpt2", "CAUSAL_LM"), ("qwen2", "SEQ_CLS")]
)
def test_save_full_serves_every_task(tmp_path, architecture, task):
    trained = tiny.make(tmp_path, architecture, task)
    save_full(trained.model, tmp_path / "full")
    checkpoint = read_checkpoint(tmp_path / "full")
    assert checkpoint.task is Task(task)
    assert checkpoint.resumable
    assert np.abs(frozen(checkpoint, trained.model) - pefts_prompt(trained.model)).max() < NEAR
    assert resolve_base(checkpoint, str(trained.base)).config.model_type == architecture


def test_save_full_refuses_a_path_that_is_a_file(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file"):
        save_full(trained.model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_save_full_refuses_a_folder_that_cannot_be_made(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="below"):
        save_full(trained.model, tmp_path / "file" / "below")


def test_save_full_refuses_what_is_not_p_tuned(trained, tmp_path):
    from peft import LoraConfig

    model = get_peft_model(fresh_base(trained), LoraConfig(target_modules=["query"]))
    with pytest.raises(CheckpointError, match="LORA"):
        save_full(model, tmp_path / "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("path", ["nothing", "empty"])
def test_load_full_of_nothing_is_refused(trained, tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=path):
        load_full(fresh_base(trained), tmp_path / path)


def test_load_full_onto_another_base_is_refused(trained, tmp_path):
    save_full(trained.model, tmp_path / "full")
    wide = AutoModelForSequenceClassification.from_config(tiny.base_config("bert", hidden_size=48))
    with pytest.raises(PtdeployError, match="48"):
        load_full(wide, tmp_path / "full")


# Any input at all


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["P_TUNING", "MLP", "LSTM", "SEQ_CLS", "CAUSAL_LM"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(data=st.data())
@QUICK
def test_any_value_of_any_config_field_is_read_or_refused(trained, tmp_path, data):
    folder = tmp_path / "adapter"
    if not folder.exists():
        shutil.copytree(trained.adapter, folder)
    config = json.loads((trained.adapter / CONFIG).read_text())
    for field in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[field] = data.draw(JSON)
    # An LSTM of 10**18 layers is a matter of its own: test_bad_input.py.
    if isinstance(config["encoder_num_layers"], int):
        config["encoder_num_layers"] = min(config["encoder_num_layers"], 1000)
    (folder / CONFIG).write_text(json.dumps(config))
    try:
        read_checkpoint(folder)
    except CheckpointError as error:
        assert str(error)


@given(content=JSON)
@QUICK
def test_any_json_is_refused_as_a_config(trained, tmp_path, content):
    folder = tmp_path / "adapter"
    if not folder.exists():
        shutil.copytree(trained.adapter, folder)
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        read_checkpoint(folder)


def write_zip(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(tensors, file)


def write_legacy(tensors: dict[str, torch.Tensor], file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "suffix"), [(write_zip, ".pt"), (write_legacy, ".bin"), (save_file, ".safetensors")]
)
def test_a_tensor_file_with_any_bytes_changed_is_read_or_refused(tmp_path, write, suffix):
    """Not by hypothesis: what breaks torch are plain random bytes in the first kilobyte."""
    file = tmp_path / f"model{suffix}"
    write({"a": torch.ones(5, 8), "b.c": torch.ones(3).half()}, file)
    whole = file.read_bytes()
    random = Random(0)
    faults = set()
    for _ in range(1500):
        content = bytearray(whole)
        for _ in range(random.choice((1, 1, 2, 6))):
            place = random.randrange(min(len(content), 1200))
            content[place : place + random.randrange(3)] = random.randbytes(random.randrange(3))
        file.write_bytes(content)
        try:
            read_tensors(file)
        except CheckpointError as error:
            assert str(error)
        except Exception as error:
            faults.add(f"{type(error).__name__}: {error}"[:80])
    assert faults == set()


def test_evaluating_twice_gives_the_same_bits(trained, tmp_path):
    torch.save(trained.model.state_dict(), tmp_path / "m.pt")
    encoder = read_checkpoint(tmp_path / "m.pt", task=Task.SEQ_CLS).encoder
    assert encoder is not None
    one, two = evaluate_prompt_encoder(encoder), evaluate_prompt_encoder(encoder)
    assert np.array_equal(one, two)
