"""convert: every kind of prompt into every format that can hold it, without changing a number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import kinds, nemo, tiny
from transformers import AutoModelForCausalLM

import ptdeploy
from ptdeploy import files
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import CheckpointError, InputError, OutputError
from ptdeploy.progress import Progress
from ptdeploy.source.checkpoint import load_full, read_checkpoint

CAUSAL = Task.CAUSAL_LM
# What PEFT calls the kind once it is a prompt by itself.
PEFT = {
    "P-Tuning, MLP": "P_TUNING",
    "P-Tuning, LSTM": "P_TUNING",
    "prompt tuning": "PROMPT_TUNING",
    "multitask prompt tuning": "PROMPT_TUNING",
    "CPT": "CPT",
    "prefix tuning": "PREFIX_TUNING",
    "prefix tuning, projected": "PREFIX_TUNING",
    "cartridge": "CARTRIDGE",
}


def convert(checkpoint: Path, to: str, output: Path, **how: Any) -> Path:
    return ptdeploy.convert(checkpoint, to=to, output=output, **how).path


def prompt(checkpoint: Path, **how: Any) -> np.ndarray:
    """What is in a checkpoint, virtual tokens or prefix KV, as it is stored."""
    found = read_checkpoint(checkpoint, **how)
    array = found.virtual_tokens if found.prefix_kv is None else found.prefix_kv
    assert array is not None
    return array


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_goes_through_every_format_and_back_bit_for_bit(trained, tmp_path, kind):
    adapter, told = trained(kind).adapter, kinds.options(kind)
    want = prompt(adapter, **told)
    bare = convert(adapter, "npy", tmp_path / "p.npy", **told)
    assert np.array_equal(np.load(bare), want)
    own = convert(adapter, "peft", tmp_path / "own", **told)
    assert np.array_equal(prompt(own), want)
    assert read_checkpoint(own).kind == PEFT[kind]
    back = convert(bare, "peft", tmp_path / "back", task=CAUSAL)
    assert np.array_equal(prompt(back), want)
    again = convert(back, "npy", tmp_path / "again.npy")
    assert again.read_bytes() == bare.read_bytes()
    twice = convert(own, "peft", tmp_path / "twice")
    for file in sorted(own.iterdir()):
        assert (twice / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_peft_loads_the_adapter_and_gives_the_same(trained, tmp_path, kind):
    """What was PEFT's own, and what went through a bare tensor."""
    one, told = trained(kind), kinds.options(kind)
    own = convert(one.adapter, "peft", tmp_path / "own", **told)
    bare = convert(one.adapter, "npy", tmp_path / "p.npy", **told)
    back = convert(bare, "peft", tmp_path / "back", task=CAUSAL, base=str(one.base))
    ids = torch.tensor([[5, 6, 7, 8]])
    of_task = {"task_ids": torch.tensor([kinds.TASK_ID])} if told else {}
    with torch.no_grad():
        want = one.model(input_ids=ids, attention_mask=torch.ones_like(ids), **of_task).logits
    for folder in (own, back):
        base = AutoModelForCausalLM.from_pretrained(one.base)
        model = PeftModel.from_pretrained(base, folder).eval()
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert (found - want)[:, -4:].abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["bert", "qwen2"])
@pytest.mark.parametrize("kind", ["P-Tuning, LSTM", "prefix tuning"])
def test_a_trained_head_comes_along(trained, tmp_path, kind, architecture):
    one = trained(kind, architecture, "SEQ_CLS")
    own = convert(one.adapter, "peft", tmp_path / "own")
    ours, theirs = read_checkpoint(own).weights, read_checkpoint(one.adapter).weights
    assert ours.keys() == theirs.keys() != set()
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name
    base = type(one.model.get_base_model()).from_pretrained(one.base, num_labels=tiny.LABELS)
    model = PeftModel.from_pretrained(base, own).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found, want = (
            m(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for m in (model, one.model)
        )
    assert (found - want).abs().max() < 1e-5


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_training_resumes_from_a_state_dict_made_full(trained, tmp_path, encoder):
    one = trained(f"P-Tuning, {encoder}", "bert", "SEQ_CLS")
    torch.save(one.model.state_dict(), tmp_path / "model.pt")
    told = {"to": "full", "task": Task.SEQ_CLS, "output": tmp_path / "full"}
    done = ptdeploy.convert(tmp_path / "model.pt", **told)
    assert any("weights of the base model stay with it" in note for note in done.notes)
    base = type(one.model.get_base_model()).from_pretrained(one.base, num_labels=tiny.LABELS)
    back = load_full(base, done.path)
    ours, theirs = back.prompt_encoder.state_dict(), one.model.prompt_encoder.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert read_checkpoint(done.path).resumable
    plain = ptdeploy.convert(done.path, to="peft", output=tmp_path / "plain")
    assert plain.notes == (f"the {encoder} that made the prompt is left out; --to full keeps it",)
    assert not read_checkpoint(plain.path).resumable


def test_a_multitask_prompt_is_full_with_all_of_its_tasks(trained, tmp_path):
    one = trained("multitask prompt tuning")
    done = ptdeploy.convert(one.adapter, to="full", output=tmp_path / "full")
    assert done.kind == "MULTITASK_PROMPT_TUNING"
    assert done.notes == ()
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (done.path, one.adapter)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    back = load_full(AutoModelForCausalLM.from_pretrained(one.base), done.path)
    assert back.active_peft_config.num_tasks == kinds.TASKS
    for number in range(kinds.TASKS):
        assert np.array_equal(
            prompt(done.path, task_id=number), prompt(one.adapter, task_id=number)
        )


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma3"])
def test_virtual_tokens_as_prefix_kv_answer_alike(trained, tmp_path, architecture):
    one = trained("P-Tuning, MLP", architecture)
    told = {"base": str(one.base), "target": "ort"}
    kept = convert(one.adapter, "prefix-kv", tmp_path / "kv.npy", base=str(one.base))
    assert np.load(kept).ndim == 5
    rows = [[5, 6, 7], [8], [9, 10, 11, 12]]
    bundles = [
        ptdeploy.compile(kept, output=tmp_path / "b", task=CAUSAL, **told),
        ptdeploy.compile(one.adapter, output=tmp_path / "a", **told),
    ]
    ours, theirs = (ptdeploy.load(bundle.path).logits(rows) for bundle in bundles)
    for one_row, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one_row, other)


def test_a_trained_prefix_is_itself_without_a_base(trained, tmp_path):
    adapter = trained("cartridge").adapter
    kept = convert(adapter, "prefix-kv", tmp_path / "kv.npy")
    assert np.array_equal(np.load(kept), prompt(adapter))


def test_what_peft_has_no_loader_for_becomes_an_adapter(trained, tmp_path):
    base = trained("prompt tuning", "gpt2").base
    path, table = nemo.table_archive(tmp_path / "p.nemo", "one", "two")
    folder = convert(path, "peft", tmp_path / "own", adapter="two", base=str(base))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    want = table.prompt_table["two"].prompt_embeddings.weight
    assert torch.equal(model.get_prompt(1)[0], want)
    assert json.loads((folder / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)


def refused(error: type[Exception], checkpoint: Path, to: str, output: Path, **how: Any) -> str:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(error) as found:
        ptdeploy.convert(checkpoint, to=to, output=output, **how)
    assert sorted(output.parent.rglob("*")) == before
    return str(found.value)


@pytest.mark.parametrize("kind", ["P-Tuning, MLP", "CPT", "prefix tuning, projected"])
def test_what_made_a_prompt_is_not_made_up(trained, tmp_path, kind):
    text = refused(CheckpointError, trained(kind).adapter, "full", tmp_path / "out")
    assert "what made its prompt is not in it" in text
    assert text.endswith("\nto peft holds the prompt as it is.")


def test_what_a_format_cannot_hold_is_refused_by_name(trained, tmp_path):
    classifier = trained("P-Tuning, MLP", "bert", "SEQ_CLS").adapter
    for to in ("npy", "prefix-kv"):
        text = refused(CheckpointError, classifier, to, tmp_path / "out.npy")
        assert "holds a trained head (classifier.bias, classifier.weight)" in text
    several = trained("multitask prompt tuning").adapter
    text = refused(ptdeploy.InputError, several, "full", tmp_path / "out", task_id=1)
    assert "holds a multitask prompt with all of its tasks" in text
    np.save(tmp_path / "p.npy", np.ones((5, 32), np.float32))
    base = {"base": str(trained("P-Tuning, MLP", "bert", "SEQ_CLS").base), "task": Task.SEQ_CLS}
    text = refused(CheckpointError, tmp_path / "p.npy", "prefix-kv", tmp_path / "out.npy", **base)
    assert "virtual tokens of an encoder see the text" in text
    assert "does not name its base model" in refused(
        ptdeploy.BaseModelError, tmp_path / "p.npy", "prefix-kv", tmp_path / "o.npy", task=CAUSAL
    )


def test_a_stale_prompt_is_refused(trained, tmp_path):
    torch.save(trained("P-Tuning, MLP").model.state_dict(), tmp_path / "model.pt")
    full = convert(tmp_path / "model.pt", "full", tmp_path / "full", task=CAUSAL)
    other = trained("P-Tuning, LSTM").adapter / "adapter_model.safetensors"
    (full / "adapter_model.safetensors").write_bytes(other.read_bytes())
    assert "another training step" in refused(CheckpointError, full, "npy", tmp_path / "p.npy")


def test_nothing_is_replaced_and_a_tensor_has_its_suffix(trained, tmp_path):
    adapter = trained("prompt tuning").adapter
    (tmp_path / "there").mkdir()
    for to, name in (("peft", "there"), ("full", "there"), ("peft", "link")):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("nowhere")
        assert "exists already" in refused(OutputError, adapter, to, tmp_path / name)
    assert "End its name in .npy" in refused(InputError, adapter, "npy", tmp_path / "tensor")
    assert "one of peft, full, npy, prefix-kv" in refused(
        InputError, adapter, "onnx", tmp_path / "out"
    )


class Meanwhile(Progress):
    """While the checkpoint is read somebody else writes to the same place."""

    def __init__(self, place: Path) -> None:
        super().__init__(quiet=True)
        self._place = place

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        yield
        self._place.write_text("mine")


@pytest.mark.parametrize("system", ["renames without replacing", "does not"])
@pytest.mark.parametrize("to", ["npy", "peft"])
def test_what_came_meanwhile_is_not_replaced(trained, tmp_path, monkeypatch, to, system):
    if system == "does not":
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    place, adapter = tmp_path / "out.npy", trained("prompt tuning").adapter
    with pytest.raises(OutputError, match="exists already"):
        ptdeploy.convert(adapter, to=to, output=place, progress=Meanwhile(place))
    assert place.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]
    place.unlink()
    convert(adapter, to, place)
    assert list(tmp_path.iterdir()) == [place]


def test_another_base_is_refused_where_one_is_given(trained, tmp_path):
    wide = tiny.make(tmp_path / "wide", "gpt2", "CAUSAL_LM", hidden_size=48)
    adapter = trained("prompt tuning", "gpt2").adapter
    text = refused(ptdeploy.BaseModelError, adapter, "peft", tmp_path / "out", base=str(wide.base))
    assert "have 32 columns, but the embeddings of base model" in text


def test_the_command_says_what_it_wrote(trained, tmp_path, capsys):
    adapter = str(trained("prefix tuning").adapter)
    assert main(["convert", adapter, "--to", "npy", "-o", str(tmp_path / "p.npy")]) == 0
    text = capsys.readouterr()
    assert "read      PEFT adapter, PREFIX_TUNING, CAUSAL_LM" in text.out
    assert f"wrote     {tmp_path / 'p.npy'}: prefix KV (2, 2, 2, 5, 8)" in text.out
    assert "read the checkpoint" in text.err
    told = ["--to", "peft", "-o", str(tmp_path / "own"), "--json", "-q"]
    assert main(["convert", str(tmp_path / "p.npy"), "--task", "CAUSAL_LM", *told]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["shape"]) == ("PREFIX_TUNING", [2, 2, 2, 5, 8])
    assert main(["convert", adapter, "--to", "npy", "-o", str(tmp_path / "p.npy")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["exchanges folders", "does not"])
@pytest.mark.parametrize("to", ["npy", "peft"])
def test_force_replaces_what_convert_wrote_and_nothing_else(
    trained, tmp_path, monkeypatch, to, system
):
    if system == "does not":
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    before, after = trained("P-Tuning, LSTM").adapter, trained("P-Tuning, MLP").adapter
    work = tmp_path / "work"
    work.mkdir()
    place, want = work / "out.npy", convert(after, to, tmp_path / "want.npy")
    for _ in range(2):
        convert(before, to, place, force=True)
    convert(after, to, place, force=True)
    assert contents(place) == contents(want)
    assert list(work.iterdir()) == [place]
    if to == "npy":
        place.write_text("not a tensor")
    else:
        (place / "README.md").write_text("mine")
    kept = contents(place)
    assert "so force=True leaves it alone" in refused(OutputError, after, to, place, force=True)
    (work / "link.npy").symlink_to(tmp_path / "want.npy")
    told = refused(OutputError, after, to, work / "link.npy", force=True)
    assert "so force=True leaves it alone" in told
    assert contents(place) == kept


def test_force_replaces_nothing_that_came_meanwhile(trained, tmp_path):
    place, adapter = tmp_path / "out.npy", trained("prompt tuning").adapter
    for to in ("npy", "peft"):
        with pytest.raises(OutputError, match="so force=True leaves it alone"):
            ptdeploy.convert(adapter, to=to, output=place, force=True, progress=Meanwhile(place))
        assert place.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [place]
        place.unlink()


def test_force_does_not_replace_what_is_converted(trained, tmp_path):
    own = convert(trained("P-Tuning, MLP").adapter, "peft", tmp_path / "own")
    kept = contents(own)
    assert "is the checkpoint itself" in refused(OutputError, own, "peft", own, force=True)
    bare = convert(own, "npy", tmp_path / "p.npy")
    told = refused(OutputError, bare, "npy", bare, task=CAUSAL, force=True)
    assert "is the checkpoint itself" in told
    assert contents(own) == kept


def contents(place: Path) -> dict[str, bytes]:
    found = [place] if place.is_file() else sorted(place.iterdir())
    return {one.name if place.is_dir() else "": one.read_bytes() for one in found}
