"""Every weight of an engine comes from a file; what none holds is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny

from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

WEIGHTS = "model.safetensors"
IDS = np.array([5, 9, 33, 71, 8], np.int64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS")


@pytest.fixture(scope="module")
def no_pooler(tmp_path_factory) -> tiny.Trained:
    """Trained on a base that was saved as a masked language model, which has no pooler."""
    return on(
        tmp_path_factory.mktemp("no-pooler"),
        transformers.AutoModelForMaskedLM.from_config(tiny.base_config("bert")),
    )


def on(folder: Path, base: transformers.PreTrainedModel) -> tiny.Trained:
    """A classifier that PEFT trained on a saved base, whatever that base holds."""
    base.save_pretrained(folder / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=tiny.LABELS
    )
    config = PromptEncoderConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=5,
        token_dim=32,
        num_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=24,
    )
    peft = get_peft_model(model, config).eval()
    peft.save_pretrained(folder / "adapter")
    torch.save(peft.state_dict(), folder / "full.pt")
    return tiny.Trained(peft, folder / "base", folder / "adapter")


def load(checkpoint: Path, base: Path, task: Task | None = None) -> transformers.PreTrainedModel:
    source = read_checkpoint(checkpoint, task=task)
    return load_model(source, resolve_base(source, str(base)))


def reference_logits(checkpoint: Path, base: Path, task: Task = Task.SEQ_CLS) -> np.ndarray:
    source = read_checkpoint(checkpoint, task=task)
    return row_logits(peft_model(source, resolve_base(source, str(base))), task, IDS)


def without(base: Path, folder: Path, *names: str) -> Path:
    """A copy of a base that lacks some of its tensors."""
    return edited(base, folder, lambda tensors: [tensors.pop(name) for name in names])


def edited(base: Path, folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    copy = Path(shutil.copytree(base, folder / "edited"))
    tensors = load_file(copy / WEIGHTS)
    edit(tensors)
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_weight_that_no_file_holds_is_refused_by_name_in_every_precision(
    no_pooler, tmp_path, capsys, precision
):
    arguments = ["compile", str(no_pooler.adapter), "--base", str(no_pooler.base)]
    options = ["--target", "ort", "--precision", precision, "-o", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 2
    message = capsys.readouterr().err
    assert "lacks bert.pooler.dense.bias, bert.pooler.dense.weight" in message
    assert "drawn at random in training and are not in adapter_model.safetensors" in message
    assert "Save the full state dict" in message
    assert "export" not in message
    assert not (tmp_path / "out").exists()


def test_the_reference_refuses_it_too(no_pooler):
    source = read_checkpoint(no_pooler.adapter)
    with pytest.raises(BaseModelError, match=r"bert\.pooler\.dense\.weight"):
        peft_model(source, resolve_base(source, str(no_pooler.base)))


def test_a_full_state_dict_brings_what_the_base_lacks(no_pooler):
    file = no_pooler.base.parent / "full.pt"
    model = load(file, no_pooler.base, Task.SEQ_CLS)
    live = no_pooler.model.state_dict()
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias"):
        assert torch.equal(model.state_dict()[name], live[f"base_model.{name}"])
    want = row_logits(no_pooler.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(file, no_pooler.base), want, atol=1e-6)


def test_an_adapter_that_brings_it_is_enough(no_pooler, tmp_path):
    adapter = Path(shutil.copytree(no_pooler.adapter, tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    live = no_pooler.model.state_dict()
    pooler = {n: live[n] for n in live if ".pooler." in n}
    save_file({**load_file(file), **pooler}, file)
    load(adapter, no_pooler.base)
    want = row_logits(no_pooler.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(adapter, no_pooler.base), want, atol=1e-6)


def test_half_a_head_in_the_adapter_is_not_enough(trained, tmp_path):
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.classifier.bias"]
    save_file(tensors, file)
    base = without(trained.base, tmp_path, "classifier.weight", "classifier.bias")
    with pytest.raises(BaseModelError, match=r"lacks classifier\.bias: it was drawn at random"):
        load(adapter, base)


def test_a_head_that_only_the_adapter_has_is_fine(trained, tmp_path):
    base = without(trained.base, tmp_path, "classifier.weight", "classifier.bias")
    want = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(trained.adapter, base), want, atol=1e-6)


def test_a_base_whose_head_has_other_classes_is_fine(trained, tmp_path):
    def seven_classes(tensors):
        tensors["classifier.weight"] = torch.zeros(7, 32)
        tensors["classifier.bias"] = torch.zeros(7)

    base = edited(trained.base, tmp_path, seven_classes)
    config = json.loads((base / "config.json").read_text())
    config["id2label"] = {str(i): f"L{i}" for i in range(7)}
    config["label2id"] = {f"L{i}": i for i in range(7)}
    (base / "config.json").write_text(json.dumps(config))
    assert load(trained.adapter, base).config.num_labels == tiny.LABELS
    want = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(trained.adapter, base), want, atol=1e-6)


def test_a_weight_of_another_shape_is_refused_by_name(trained, tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"

    def narrow(tensors):
        tensors[name] = torch.zeros(32, 48)

    with pytest.raises(BaseModelError, match=name.replace(".", r"\.")) as refused:
        load(trained.adapter, edited(trained.base, tmp_path, narrow))
    assert "(32, 48)" in refused.value.problem
    assert "(32, 64)" in refused.value.problem


def test_a_shard_without_its_tensor_is_refused_by_name(trained, tmp_path):
    base = Path(shutil.copytree(trained.base, tmp_path / "sharded"))
    tensors = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    names = sorted(tensors)
    lost = next(name for name in names[1::2] if "attention" in name)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in parts.items():
        kept = {name: tensors[name] for name in part if name != lost}
        save_file(kept, base / shard, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {n: shard for shard, part in parts.items() for n in part},
    }
    (base / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=lost.replace(".", r"\.")):
        load(trained.adapter, base)
    (base / "two.safetensors").unlink()
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load(trained.adapter, base)


def test_weights_of_another_architecture_are_told_from_a_lost_one(trained, tmp_path):
    base = Path(shutil.copytree(trained.base, tmp_path / "mixed"))
    other = tiny.make(tmp_path / "gpt2", "gpt2", "CAUSAL_LM")
    shutil.copy(other.base / WEIGHTS, base / WEIGHTS)
    with pytest.raises(BaseModelError, match="holds none of the") as refused:
        load(trained.adapter, base)
    assert "of two models" in refused.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_base_that_is_not_finite_is_refused_by_name(trained, tmp_path, value):
    def spoil(tensors):
        tensors["bert.encoder.layer.0.output.dense.weight"][3, 4] = value

    with pytest.raises(BaseModelError, match=r"layer\.0\.output\.dense\.weight holds NaN"):
        load(trained.adapter, edited(trained.base, tmp_path, spoil))


def test_what_the_checkpoint_overrides_may_be_broken_in_the_base(trained, tmp_path):
    def spoil(tensors):
        tensors["classifier.weight"].fill_(float("nan"))

    load(trained.adapter, edited(trained.base, tmp_path, spoil))


@pytest.mark.parametrize(
    ("architecture", "task", "name"),
    [
        ("llama", "CAUSAL_LM", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "CAUSAL_LM", "model.norm.bias"),
        ("llama", "CAUSAL_LM", "lm_head.bias"),
        ("bert", "SEQ_CLS", "bert.encoder.layer.0.attention.self.distance_embedding.weight"),
        ("bert", "SEQ_CLS", "bert.embeddings.more_embeddings.weight"),
    ],
)
def test_a_weight_of_a_layer_that_the_model_has_no_place_for_is_refused(
    tmp_path, architecture, task, name
):
    one = tiny.make(tmp_path, architecture, task)
    base = edited(one.base, tmp_path, lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(BaseModelError, match=f"holds {name}, which a {architecture} model"):
        load(one.adapter, base)


@pytest.mark.parametrize(
    ("architecture", "task", "names"),
    [
        ("llama", "CAUSAL_LM", ("model.layers.2.self_attn.q_proj.bias", "mtp.norm.weight")),
        ("llama", "CAUSAL_LM", ("model.visual.norm.weight", "score.weight")),
        ("llama", "CAUSAL_LM", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
        ("gpt2", "CAUSAL_LM", ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("bert", "TOKEN_CLS", ("bert.pooler.dense.weight", "cls.predictions.bias")),
        ("bert", "SEQ_CLS", ("classifier.dense.weight", "bert.embeddings.position_ids")),
    ],
)
def test_what_the_base_holds_for_other_tasks_stays_out(tmp_path, architecture, task, names):
    one = tiny.make(tmp_path, architecture, task)
    more = {name: torch.ones(32, 32) for name in names}
    load(one.adapter, edited(one.base, tmp_path, lambda tensors: tensors.update(more)))


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_positions_that_transformers_no_longer_computes_are_refused(tmp_path, architecture, kind):
    one = tiny.make(tmp_path, architecture, "SEQ_CLS", position_embedding_type=kind)
    with pytest.raises(BaseModelError, match=f'asks for position_embedding_type "{kind}"'):
        load(one.adapter, one.base)


def test_absolute_and_rotary_positions_may_be_named(tmp_path):
    named = {"bert": ("SEQ_CLS", "absolute"), "llama": ("CAUSAL_LM", "rope")}
    for architecture, (task, kind) in named.items():
        folder = tmp_path / architecture
        one = tiny.make(folder, architecture, task, position_embedding_type=kind)
        load(one.adapter, one.base)


def test_quantized_weights_of_which_the_config_says_nothing_are_refused(trained, tmp_path):
    name = "bert.encoder.layer.0.output.dense"

    def quantize(tensors):
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.SCB"] = weight.abs().amax(1)
        scaled = weight / tensors[f"{name}.SCB"][:, None] * 127
        tensors[f"{name}.weight"] = scaled.round().to(torch.int8)

    with pytest.raises(BaseModelError, match=r"dense\.SCB: its weights are quantized"):
        load(trained.adapter, edited(trained.base, tmp_path, quantize))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_a_base_in_16_bits_is_loaded_as_it_is(trained, tmp_path, dtype, name):
    base = Path(shutil.copytree(trained.base, tmp_path / "half"))
    tensors = {n: t.to(dtype) for n, t in load_file(base / WEIGHTS).items()}
    (base / WEIGHTS).unlink()
    if name == WEIGHTS:
        save_file(tensors, base / name, metadata={"format": "pt"})
    else:
        torch.save(tensors, base / name)
    model = load(trained.adapter, base).state_dict()
    assert all(t.dtype == torch.float32 for t in model.values())
    layer = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(model[layer], tensors[layer].float())


@pytest.mark.parametrize("keep", [0, 7, 3000, -50])
@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_cut_weights_are_refused(trained, tmp_path, name, keep):
    base = Path(shutil.copytree(trained.base, tmp_path / "cut"))
    tensors = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    save_file(tensors, base / name, metadata={"format": "pt"})
    if name != WEIGHTS:
        torch.save(tensors, base / name)
    content = (base / name).read_bytes()
    (base / name).write_bytes(content[:keep])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load(trained.adapter, base)


def test_distilberts_layer_before_the_classifier_is_in_the_adapter(tmp_path):
    one = on(tmp_path, transformers.AutoModel.from_config(tiny.base_config("distilbert")))
    want = row_logits(one.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(one.adapter, one.base), want, atol=1e-6)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_whole_base_of_every_architecture_lacks_nothing(tmp_path, architecture):
    task = "SEQ_CLS" if architecture in tiny.ENCODERS else "CAUSAL_LM"
    one = tiny.make(tmp_path, architecture, task)
    model = load(one.adapter, one.base)
    body = one.model.get_base_model().state_dict()
    for name, tensor in model.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(tensor, body[name]), name
