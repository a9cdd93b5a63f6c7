"""Every checkpoint format gives the virtual tokens that PEFT's own get_prompt gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from support import tiny

from ptdeploy.bundle.task import Task
from ptdeploy.commands.inspect import inspect
from ptdeploy.errors import CheckpointError, OutputError
from ptdeploy.program.prompt import evaluate_prompt_encoder
from ptdeploy.source.checkpoint import load_full, read_checkpoint, save_full


@pytest.fixture(scope="module", params=["MLP", "LSTM"])
def trained(request, tmp_path_factory) -> tiny.Trained:
    return tiny.make(tmp_path_factory.mktemp("t"), "bert", "SEQ_CLS", request.param)


def pefts_prompt(model: PeftModel) -> np.ndarray:
    with torch.no_grad():
        return model.get_prompt(1)[0].numpy()


def near(a: np.ndarray | None, b: np.ndarray) -> bool:
    """Equal but for the rounding that an LSTM's own two runs differ by."""
    return a is not None and a.shape == b.shape and float(np.abs(a - b).max()) < 1e-6


def virtual_tokens(path: Path, task: Task | None = None) -> np.ndarray:
    checkpoint = read_checkpoint(path, task=task)
    if checkpoint.encoder is not None:
        return evaluate_prompt_encoder(checkpoint.encoder)
    assert checkpoint.virtual_tokens is not None
    return checkpoint.virtual_tokens


def contiguous(model: PeftModel) -> dict[str, torch.Tensor]:
    """A state dict that safetensors can write: no two names share memory."""
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def write_torch(model: PeftModel, path: Path) -> None:
    torch.save(model.state_dict(), path)


def write_legacy(model: PeftModel, path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def write_safetensors(model: PeftModel, path: Path) -> None:
    save_file(contiguous(model), path)


def write_parallel(model: PeftModel, path: Path) -> None:
    torch.save({f"module.{name}": t for name, t in model.state_dict().items()}, path)


def write_nested(model: PeftModel, path: Path) -> None:
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_torch, "model.pt"),
        (write_torch, "model.bin"),
        (write_legacy, "model.pth"),
        (write_safetensors, "model.safetensors"),
        (write_parallel, "model.pt"),
        (write_nested, "model.pt"),
    ],
)
def test_a_full_state_dict_is_evaluated_as_peft_does(trained, tmp_path, write, name):
    write(trained.model, tmp_path / name)
    got = virtual_tokens(tmp_path / name, Task.SEQ_CLS)
    assert np.abs(got - pefts_prompt(trained.model)).max() < 1e-6
    checkpoint = read_checkpoint(tmp_path / name, task=Task.SEQ_CLS)
    assert checkpoint.heads == ("classifier.bias", "classifier.weight")
    assert checkpoint.resumable


def test_a_peft_adapter_in_safetensors_is_read(trained):
    assert near(virtual_tokens(trained.adapter), pefts_prompt(trained.model))
    assert not read_checkpoint(trained.adapter).resumable


def test_a_peft_adapter_in_bin_is_read(trained, tmp_path):
    trained.model.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert (tmp_path / "bin" / "adapter_model.bin").is_file()
    assert near(virtual_tokens(tmp_path / "bin"), pefts_prompt(trained.model))


def test_a_bfloat16_adapter_is_read_without_rounding(trained, tmp_path):
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "a"))
    from safetensors.torch import load_file

    tensors = {n: t.bfloat16() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dtype == "bfloat16"
    want = tensors["prompt_embeddings"].float().numpy()
    assert np.array_equal(checkpoint.virtual_tokens, want)


def test_a_trainer_checkpoint_with_an_adapter_is_read(trained, tmp_path):
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "checkpoint-10"))
    (folder / "trainer_state.json").write_text("{}")
    torch.save({"state": {}}, folder / "optimizer.pt")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.format == "Trainer checkpoint with a PEFT adapter"
    assert near(checkpoint.virtual_tokens, pefts_prompt(trained.model))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_trainer_checkpoint_with_a_full_state_dict_is_read(trained, tmp_path, name):
    (tmp_path / "trainer_state.json").write_text("{}")
    (write_safetensors if name.endswith("safetensors") else write_torch)(
        trained.model, tmp_path / name
    )
    shutil.copy(trained.adapter / "adapter_config.json", tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "Trainer checkpoint with a full state dict"
    assert np.abs(virtual_tokens(tmp_path) - pefts_prompt(trained.model)).max() < 1e-6


def test_a_sharded_state_dict_is_read(trained, tmp_path):
    import json

    tensors = contiguous(trained.model)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = read_checkpoint(tmp_path, task=Task.SEQ_CLS).files
    assert files.keys() == {"model.safetensors.index.json", *shards}
    got = virtual_tokens(tmp_path, Task.SEQ_CLS)
    assert np.abs(got - pefts_prompt(trained.model)).max() < 1e-6


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../y.pt"}}')
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_checkpoint(tmp_path, task=Task.SEQ_CLS)


def test_a_second_adapter_is_chosen_by_name(tmp_path):
    from peft import PromptEncoderConfig

    one = tiny.make(tmp_path, "bert", "SEQ_CLS")
    config = PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=24, token_dim=32
    )
    one.model.add_adapter("second", config)
    one.model.set_adapter("second")
    one.model.save_pretrained(tmp_path / "two")
    assert read_checkpoint(tmp_path / "two", "default").num_virtual_tokens == 5
    assert read_checkpoint(tmp_path / "two", "second").num_virtual_tokens == 3
    torch.save(one.model.state_dict(), tmp_path / "two.pt")
    checkpoint = read_checkpoint(tmp_path / "two.pt", "second", Task.SEQ_CLS)
    assert checkpoint.num_virtual_tokens == 3
    assert (
        np.abs(evaluate_prompt_encoder(checkpoint.encoder) - pefts_prompt(one.model)).max() < 1e-6
    )


def fresh_base(trained: tiny.Trained):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(trained.base, num_labels=tiny.LABELS)


def test_save_full_keeps_what_training_needs(trained, tmp_path):
    save_full(trained.model, tmp_path / "full")
    facts = inspect(tmp_path / "full")
    assert facts["training_can_resume"]
    assert facts["prompt_evaluated"]
    back = load_full(fresh_base(trained), tmp_path / "full")
    assert near(pefts_prompt(back.eval()), pefts_prompt(trained.model))
    for part in ("prompt_encoder", "base_model.classifier.modules_to_save"):
        for name, tensor in trained.model.get_submodule(part).state_dict().items():
            assert torch.equal(back.get_submodule(part).state_dict()[name], tensor)
    before = back.prompt_encoder["default"].mlp_head[0].weight.detach().clone()
    back.train()
    optimizer = torch.optim.SGD([p for p in back.parameters() if p.requires_grad], lr=1.0)
    ids = torch.arange(8)[None]
    back(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1])
    ).loss.backward()
    optimizer.step()
    assert not torch.equal(before, back.prompt_encoder["default"].mlp_head[0].weight)


def test_peft_itself_loads_what_save_full_wrote(trained, tmp_path):
    save_full(trained.model, tmp_path / "full")
    back = PeftModel.from_pretrained(fresh_base(trained), tmp_path / "full").eval()
    assert near(pefts_prompt(back), pefts_prompt(trained.model))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            for model in (back, trained.model)
        )
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_save_full_refuses_a_model_whose_mlp_is_gone(trained, tmp_path):
    loaded = PeftModel.from_pretrained(fresh_base(trained), trained.adapter)
    with pytest.raises(CheckpointError, match="MLP is gone"):
        save_full(loaded, tmp_path / "full")


def test_save_full_overwrites_nothing(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        save_full(trained.model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_load_full_needs_a_prompt_encoder(trained):
    with pytest.raises(CheckpointError, match="no prompt encoder"):
        load_full(fresh_base(trained), trained.adapter)


def test_a_stale_evaluated_prompt_is_refused(trained, tmp_path):
    from safetensors.torch import load_file

    from ptdeploy.program.prompt import freeze

    save_full(trained.model, tmp_path / "full")
    file = tmp_path / "full" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "prompt_embeddings": tensors["prompt_embeddings"] + 0.01}, file)
    with pytest.raises(CheckpointError, match="another training step"):
        freeze(read_checkpoint(tmp_path / "full"), trained.model.get_base_model(), False, False)
