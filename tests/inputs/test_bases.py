"""Bases that are stored quantized, beside an adapter, resized, or elsewhere than it was said."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny

import ptdeploy
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.reference.peft import peft_model, row_logits
from ptdeploy.source.base import BaseModel, resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import Checkpoint, read_checkpoint

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
IDS = np.array([5, 9, 33, 71, 8], np.int64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("decoder"), "llama", "CAUSAL_LM")


def resolve(checkpoint: Path, base: Path | None, task: Task | None = None) -> Any:
    source = read_checkpoint(checkpoint, task=task)
    return source, resolve_base(source, None if base is None else str(base))


def reference_logits(checkpoint: Checkpoint, base: BaseModel) -> np.ndarray:
    return row_logits(peft_model(checkpoint, base), checkpoint.task, IDS)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def quantized(base: Path, folder: Path, config: dict[str, object]) -> Path:
    """A copy of a base whose configuration says how its weights are stored."""
    copy = Path(shutil.copytree(base, folder / "quantized"))
    edit_json(copy / "config.json", quantization_config=config)
    return copy


# --- stored quantized -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "nvfp4"}, "nvfp4"),
        ({"quant_method": "of-the-future"}, "of-the-future"),
        ({}, "an unnamed method"),
    ],
)
def test_a_method_that_torch_cannot_undo_is_named(trained, tmp_path, capsys, config, method):
    base = quantized(trained.base, tmp_path, config)
    arguments = ["compile", str(trained.adapter), "--base", str(base), "--target", "ort"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"stored quantized, by {method}" in message
    assert "full precision" in message
    assert not (tmp_path / "out").exists()


def test_fp8_is_dequantized_with_a_note(decoder, tmp_path):
    base = quantized(
        decoder.base,
        tmp_path,
        {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
    )
    tensors = load_file(base / WEIGHTS)
    wants = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        wants[name] = (codes.float() * scale[:, None, :, None]).reshape(rows, columns)
        tensors[name] = codes.reshape(rows, columns)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    check_dequantized(decoder.adapter, base, wants, "fp8")


def test_mxfp4_is_dequantized_with_a_note(tmp_path):
    one = tiny.make(tmp_path, "gpt_oss", "CAUSAL_LM")
    base = quantized(one.base, tmp_path, {"quant_method": "mxfp4"})
    tensors = load_file(base / WEIGHTS)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    wants = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        codes = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 127, (experts, outer, inner // 32), dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = codes, scales
        pairs = torch.stack([values[codes.long() & 15], values[codes.long() >> 4]], -1)
        scaled = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        wants[name] = scaled.reshape(experts, outer, inner).transpose(1, 2)
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    check_dequantized(one.adapter, base, wants, "mxfp4")


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


def to_4_bits(
    tensors: dict[str, torch.Tensor], name: str, nested: bool, stored: torch.Tensor
) -> torch.Tensor:
    """Store a weight as bitsandbytes does, and give what is meant, value by value."""
    blocksize = 64
    codes = torch.randint(0, 16, (stored.numel(),))
    scales = torch.rand(stored.numel() // blocksize) + 0.1
    state: dict[str, object] = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "float16"}
    state["shape"] = list(stored.shape)
    packed = [int(codes[i]) * 16 + int(codes[i + 1]) for i in range(0, codes.numel(), 2)]
    tensors[name] = torch.tensor(packed, dtype=torch.uint8)[:, None]
    tensors[f"{name}.quant_map"] = torch.tensor(NF4)
    tensors[f"{name}.absmax"] = scales
    if nested:
        steps = torch.linspace(-1, 1, 256)
        rough = torch.randint(0, 256, scales.shape, dtype=torch.uint8)
        coarse = torch.rand(math.ceil(scales.numel() / 8)) * 0.1
        state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.5}
        tensors[f"{name}.absmax"] = rough
        tensors[f"{name}.nested_absmax"] = coarse
        tensors[f"{name}.nested_quant_map"] = steps
        scales = torch.stack([steps[int(r)] * coarse[i // 8] + 0.5 for i, r in enumerate(rough)])
    content = json.dumps(state).encode()
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(content), dtype=torch.uint8
    )
    meant = [NF4[int(code)] * float(scales[i // blocksize]) for i, code in enumerate(codes)]
    return torch.tensor(meant).half().float().reshape(stored.shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bitsandbytes_4_bits_are_dequantized_with_a_note(tmp_path, architecture, nested):
    one = tiny.make(tmp_path, architecture, "CAUSAL_LM")
    base = quantized(one.base, tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    tensors = load_file(base / WEIGHTS)
    wants = {}
    layers = ("_proj.weight",) if architecture == "llama" else ("c_attn.weight", "c_proj.weight")
    for name in [n for n in tensors if n.endswith(layers)]:
        # bitsandbytes keeps GPT-2's layers, which are transposed, as linear ones.
        stored = tensors[name] if architecture == "llama" else tensors[name].T
        meant = to_4_bits(tensors, name, nested, stored)
        wants[name] = meant if architecture == "llama" else meant.T
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    check_dequantized(one.adapter, base, wants, "bitsandbytes_4bit")


def test_bitsandbytes_8_bits_are_dequantized_with_a_note(decoder, tmp_path):
    base = quantized(decoder.base, tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    tensors = load_file(base / WEIGHTS)
    wants = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        scale = tensors[name].abs().amax(1)
        codes = (tensors[name] / scale[:, None] * 127).round().to(torch.int8)
        layer = name.removesuffix(".weight")
        tensors |= {name: codes, f"{layer}.SCB": scale}
        tensors[f"{layer}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        wants[name] = codes.float() * scale[:, None] / 127
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    check_dequantized(decoder.adapter, base, wants, "bitsandbytes_8bit")


def test_a_broken_4_bit_base_is_refused(decoder, tmp_path):
    base = quantized(decoder.base, tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    tensors = load_file(base / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.weight"
    to_4_bits(tensors, name, False, tensors[name])
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    source, found = resolve(decoder.adapter, base)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_model(source, found)


def check_dequantized(
    adapter: Path, base: Path, wants: dict[str, torch.Tensor], method: str
) -> None:
    """The model and its reference both have the dequantized weights, in float32."""
    assert wants
    source, found = resolve(adapter, base)
    assert any(f"stored in {method}" in note for note in found.notes)
    model = load_model(source, found)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    reference = peft_model(source, found).get_base_model().state_dict()
    for name, want in wants.items():
        assert torch.allclose(model.state_dict()[name], want, rtol=1e-6, atol=1e-7), name
        assert torch.equal(reference[name], model.state_dict()[name])
    assert model.generation_config.eos_token_id == 2


# --- base and adapter in one folder ---------------------------------------------------------


def test_a_base_and_its_adapter_may_share_a_folder(trained, tmp_path):
    both = Path(shutil.copytree(trained.base, tmp_path / "both"))
    shutil.copytree(trained.adapter, both, dirs_exist_ok=True)
    source, found = resolve(both, both)
    want = trained.model.get_base_model().state_dict()
    for name, tensor in load_model(source, found).state_dict().items():
        name = name.replace("classifier.", "classifier.modules_to_save.default.")
        assert torch.equal(tensor, want[name]), name
    want_logits = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(source, found), want_logits, atol=1e-6)


def test_a_base_that_returns_tuples_to_its_callers_gives_the_same_logits(trained, tmp_path):
    base = Path(shutil.copytree(trained.base, tmp_path / "base"))
    edit_json(base / "config.json", return_dict=False)
    source, found = resolve(trained.adapter, base)
    want_logits = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(source, found), want_logits, atol=1e-6)
    told = {"base": str(base), "target": "ort", "output": tmp_path / "bundle"}
    bundle = ptdeploy.compile(trained.adapter, **told)
    assert np.allclose(ptdeploy.load(bundle.path).logits([IDS])[0], want_logits, atol=1e-5)


def test_an_adapter_of_another_kind_beside_the_base_stays_out_of_it(trained, tmp_path):
    base = Path(shutil.copytree(trained.base, tmp_path / "both"))
    (base / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}'
    )
    source, found = resolve(trained.adapter, base)
    load_model(source, found)


def test_a_lost_base_beside_the_adapter_is_pointed_at(trained, tmp_path):
    both = Path(shutil.copytree(trained.base, tmp_path / "both"))
    shutil.copytree(trained.adapter, both, dirs_exist_ok=True)
    edit_json(both / "adapter_config.json", base_model_name_or_path="/mnt/training/bert")
    with pytest.raises(BaseModelError, match="/mnt/training/bert") as refused:
        resolve(both, None)
    assert f"{both} holds a model itself" in refused.value.fix


# --- embeddings that were resized -----------------------------------------------------------


def resized(folder: Path, architecture: str, task: str, tied: bool, rows: int) -> tiny.Trained:
    """Trained after its base's token embeddings were resized; PEFT saved them with the adapter."""
    torch.manual_seed(0)
    config = tiny.base_config(architecture, tie_word_embeddings=tied)
    auto = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    }[task]
    base = auto.from_config(config)
    base.save_pretrained(folder / "base")
    base.resize_token_embeddings(rows)
    peft_config = PromptEncoderConfig(
        task_type=task,
        num_virtual_tokens=5,
        token_dim=32,
        num_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=24,
    )
    model = get_peft_model(base, peft_config).eval()
    model.save_pretrained(folder / "adapter", save_embedding_layers=True)
    torch.save(model.state_dict(), folder / "full.pt")
    return tiny.Trained(model, folder / "base", folder / "adapter")


@pytest.mark.parametrize("rows", [tiny.VOCABULARY + 2, 128, 90])
@pytest.mark.parametrize(
    ("architecture", "task", "tied"),
    [
        ("llama", "CAUSAL_LM", False),
        ("llama", "CAUSAL_LM", True),
        ("gpt2", "CAUSAL_LM", True),
        ("bert", "SEQ_CLS", True),
        ("llama", "SEQ_CLS", False),
    ],
)
@pytest.mark.parametrize("saved", ["adapter", "full.pt"])
def test_resized_embeddings_come_with_the_checkpoint(
    tmp_path, architecture, task, tied, rows, saved
):
    one = resized(tmp_path, architecture, task, tied, rows)
    source, found = resolve(tmp_path / saved, one.base, Task(task))
    assert f"embeddings, of {rows} tokens; the base model has 101" in found.notes[0]
    model = load_model(source, found)
    table = one.model.get_base_model().get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, table)
    wants = row_logits(one.model, Task(task), IDS)
    assert np.allclose(reference_logits(source, found), wants, atol=1e-5)


def test_resized_embeddings_are_equal_to_peft_end_to_end(tmp_path, capsys):
    import ptdeploy

    one = resized(tmp_path, "llama", "CAUSAL_LM", False, tiny.VOCABULARY + 2)
    arguments = ["compile", str(one.adapter), "--base", str(one.base), "--target", "ort"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert "brings its own token embeddings" in capsys.readouterr().err
    ids = [5, 102, 9, 101]
    (got,) = ptdeploy.load(tmp_path / "out").generate([ids], 6, eos_token_ids=())
    want = list(ids)
    for _ in range(6):
        logits = row_logits(one.model, Task.CAUSAL_LM, np.array(want))
        want.append(int(logits[-1].argmax()))
    assert got.token_ids == want[len(ids) :]


def test_a_head_that_stayed_as_it_was_is_refused_by_name(tmp_path):
    one = resized(tmp_path, "llama", "CAUSAL_LM", False, 128)
    tensors = load_file(one.adapter / ADAPTER)
    tensors = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(tensors, one.adapter / ADAPTER)
    source, found = resolve(one.adapter, one.base)
    with pytest.raises(BaseModelError, match=r"lm_head\.weight as \(101, 32\)"):
        load_model(source, found)


# --- what the adapter says of its base and its task -----------------------------------------


@pytest.mark.parametrize("named", [None, "CAUSAL_LM"])
def test_the_reference_is_told_the_task(trained, tmp_path, named):
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", task_type=named)
    source, found = resolve(adapter, trained.base, Task.SEQ_CLS)
    want = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(source, found), want, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "/mnt/training/models/bert",
        "C:\\Users\\me\\models\\bert",
        "\\\\server\\share\\bert",
        "./models/bert",
        "../bert",
        "~/models-that-are-not-here/bert",
        "out/models/bert",
    ],
)
def test_a_base_that_is_on_another_machine_is_said_to_be(trained, tmp_path, name):
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(BaseModelError, match="is not on this machine") as refused:
        resolve(adapter, None)
    assert str(adapter) in refused.value.problem
    assert "--base" in refused.value.fix


def test_odd_places_for_a_base_say_what_they_are(trained, tmp_path):
    source = read_checkpoint(trained.adapter)

    def refused(base: Path) -> str:
        with pytest.raises(BaseModelError, match="configuration cannot be read") as error:
            resolve_base(source, str(base))
        return error.value.fix

    assert "It holds an adapter" in refused(trained.adapter)
    assert "not one of its files" in refused(trained.base / WEIGHTS)
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert "GGUF is not read" in refused(tmp_path)
    assert "GGUF is not read" in refused(tmp_path / "model-q4.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "of-the-future"}')
    resolved = tmp_path / "unknown"
    resolved.mkdir()
    shutil.move(tmp_path / "config.json", resolved)
    assert "--base" in refused(resolved)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2", "text_config": {"n_layer": 2}}, "no part that a gpt2 has"),
        ({"model_type": "musicgen"}, "Multiple valid text configs"),
    ],
)
def test_a_base_of_several_parts_or_none_for_text_is_refused(trained, tmp_path, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=f"configuration cannot be read .*{words}"):
        resolve_base(read_checkpoint(trained.adapter), str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers is 10000000; at most 4096 is"),
        ({"n_layer": 5000}, "n_layer is 5000; at most 4096 is"),
        ({"num_local_experts": 10**9}, "num_local_experts is 1000000000; at most 131072 is"),
        ({"num_labels": 100_000_000}, "num_labels is 100000000; at most 1000000 is"),
        (
            {"max_position_embeddings": 10**13},
            "max_position_embeddings is 10000000000000; at most 2147483647 is",
        ),
        ({"hidden_size": 2**31}, "hidden_size is 2147483648; at most 2147483647 is"),
        ({"vocab_size": 10**60}, "vocab_size is a number of more than 128 bits; at most"),
        ({"vocab_size": math.inf}, "vocab_size is inf; at most 2147483647 is"),
        ({"text_config": {"num_hidden_layers": 10_000_000}}, "num_hidden_layers is 10000000"),
        ({"parts": [{"depths": [2, 10**9]}]}, "depths is 1000000000; at most 4096 is"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "config.4.0.0.json"])
def test_a_base_of_more_than_any_model_has_is_refused_before_it_is_made(
    trained, tmp_path, change, words, name
):
    base = Path(shutil.copytree(trained.base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / name).write_text(json.dumps({**config, **change}))
    with pytest.raises(BaseModelError, match=f"configuration cannot be read .*{words}") as refused:
        resolve(trained.adapter, base)
    assert f"({name}: " in refused.value.problem


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_without_end_is_not_read(trained, tmp_path, name):
    base = Path(shutil.copytree(trained.base, tmp_path / "base"))
    (base / name).touch()
    os.truncate(base / name, 3 << 30)
    for given in (base, base / name):
        with pytest.raises(BaseModelError) as refused:
            resolve(trained.adapter, given)
        said = f"({name} has 3221225472 bytes; at most 16777216 are read)."
        assert refused.value.problem.endswith(said)


def test_an_adapters_config_of_any_age_is_read(trained, tmp_path):
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    file = adapter / "adapter_config.json"
    edit_json(file, from_the_future={"a": 1}, another=None)
    source, found = resolve(adapter, trained.base)
    want = row_logits(trained.model, Task.SEQ_CLS, IDS)
    assert np.allclose(reference_logits(source, found), want, atol=1e-6)
    config = json.loads(file.read_text())
    kept = ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "encoder_hidden_size")
    file.write_text(json.dumps({name: config[name] for name in kept}))
    source, found = resolve(adapter, trained.base)
    assert np.allclose(reference_logits(source, found), want, atol=1e-6)
