"""Prompts are compiled over an engine that is there, and put into its bundle and taken out."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save
from support import damage, tiny
from support.without_torch import run_without_torch

import ptdeploy
from ptdeploy.bundle import locked, read_bundle
from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.cli.main import main
from ptdeploy.commands import prompts
from ptdeploy.errors import (
    BaseModelError,
    BundleError,
    CheckpointError,
    InputError,
    OutputError,
    ParityError,
)
from ptdeploy.parity.reference.store import load_reference

ROW = [5, 9, 30, 4]


@pytest.fixture
def bundle(compiled, tmp_path) -> Path:
    """A copy of a classifier's bundle."""
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def pack(packed) -> Path:
    return packed("bert", "SEQ_CLS").path


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in sorted(folder.rglob("*"))
        if one.is_file()
    }


def test_the_same_checkpoint_gives_the_same_pack(compiled, packed, tmp_path):
    one, made = compiled("bert", "SEQ_CLS"), packed("bert", "SEQ_CLS")
    again = ptdeploy.compile_prompt(
        made.adapter,
        over=one.bundle,
        base=str(one.trained.base),
        output=tmp_path / "other.prompt",
    )
    assert content(again.path) == content(made.path)


def test_a_pack_is_added_without_torch_and_answers_as_peft_does(bundle, pack, packed, compiled):
    run_without_torch(
        """
        import sys, ptdeploy
        ptdeploy.prompt_add(sys.argv[1], sys.argv[2], name="legal")
        ptdeploy.prompt_default(sys.argv[1], "legal")
        """,
        str(bundle),
        str(pack),
    )
    assert list(ptdeploy.prompt_list(bundle)) == ["default", "legal"]
    (logits,) = ptdeploy.load(bundle).logits([ROW])
    assert logits.shape == (5,)
    report = ptdeploy.verify(
        bundle, checkpoint=packed("bert", "SEQ_CLS").adapter, base=compiled_base(compiled)
    )
    assert report.passed


def compiled_base(compiled) -> str:
    return str(compiled("bert", "SEQ_CLS").trained.base)


def test_a_checkpoint_is_added_as_its_pack_would_be(bundle, pack, packed, compiled, tmp_path):
    shutil.copytree(bundle, tmp_path / "of checkpoint")
    ptdeploy.prompt_add(bundle, pack, name="legal")
    ptdeploy.prompt_add(
        tmp_path / "of checkpoint",
        packed("bert", "SEQ_CLS").adapter,
        name="legal",
        base=compiled_base(compiled),
    )
    assert content(bundle) == content(tmp_path / "of checkpoint")


def test_the_order_of_adding_leaves_no_trace(bundle, pack, tmp_path):
    shutil.copytree(bundle, tmp_path / "other")
    for place, names in ((bundle, "abc"), (tmp_path / "other", "cab")):
        for name in names:
            ptdeploy.prompt_add(place, pack, name=name)
    ptdeploy.prompt_remove(bundle, "b")
    ptdeploy.prompt_add(bundle, pack, name="b")
    assert content(bundle) == content(tmp_path / "other")


def test_the_engines_files_are_not_copied(bundle, pack):
    before = {name: (bundle / name).stat().st_ino for name in ("model.onnx", "model.onnx.data")}
    ptdeploy.prompt_add(bundle, pack)
    ptdeploy.prompt_default(bundle, "other")
    assert before == {name: (bundle / name).stat().st_ino for name in before}
    assert (bundle / "model.onnx.data").stat().st_nlink == 1


def test_a_running_engine_answers_while_its_bundle_changes(bundle, pack):
    engine = ptdeploy.load(bundle)
    (before,) = engine.logits([ROW])
    ptdeploy.prompt_add(bundle, pack)
    ptdeploy.prompt_default(bundle, "other")
    ptdeploy.prompt_remove(bundle, "default")
    np.testing.assert_array_equal(engine.logits([ROW])[0], before)
    assert ptdeploy.load(bundle).logits([ROW])[0].shape == (5,)


def test_a_bundle_is_whole_to_who_opens_it_while_prompts_come_and_go(bundle, pack):
    ptdeploy.prompt_add(bundle, pack)
    stop, seen, wrong = threading.Event(), set[str](), list[BaseException]()

    def read() -> None:
        while not stop.is_set():
            try:
                found = read_bundle(bundle)
                found.check_unchanged()
                seen.add(str(found.manifest.default_prompt))
            except BaseException as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for name in ("other", "default"):
            ptdeploy.prompt_default(bundle, name)
    stop.set()
    reader.join()
    # Its files may be replaced between reading and asking; nothing else may be found.
    assert all("were replaced while they were opened" in str(one) for one in wrong), wrong
    assert seen == {"other", "default"}


def test_one_changes_a_bundle_at_a_time(bundle, pack):
    before = content(bundle)
    with locked(bundle), pytest.raises(OutputError, match="another process is changing it"):
        ptdeploy.prompt_add(bundle, pack)
    assert content(bundle) == before


def test_who_rebuilds_a_bundle_by_its_name_changes_it_too(bundle):
    before = content(bundle)
    for output in (None, bundle, bundle / ".." / bundle.name):
        with locked(bundle), pytest.raises(OutputError, match="another process is changing it"):
            ptdeploy.rebuild(bundle, output=output, force=True)
    assert content(bundle) == before


def test_a_bundle_that_is_moved_while_a_prompt_is_added_is_left_alone(bundle, pack, monkeypatch):
    before, moved = content(bundle), bundle.with_name("moved")

    def move(draft: object, _: object) -> object:
        bundle.rename(moved)
        return draft

    monkeypatch.setattr(prompts, "prove", move)
    with pytest.raises(OutputError, match="was moved away or removed meanwhile"):
        ptdeploy.prompt_add(bundle, pack)
    assert content(moved) == before
    assert [one.name for one in bundle.parent.iterdir()] == ["moved"]


def test_a_bundle_that_becomes_another_meanwhile_is_left_alone(bundle, pack, monkeypatch):
    """As where a file system has no locks."""

    def change(draft: object, _: object) -> object:
        damage.edit(bundle, lambda manifest: manifest["versions"].update(another="1"))
        return draft

    monkeypatch.setattr(prompts, "prove", change)
    with pytest.raises(OutputError, match="has become another bundle meanwhile"):
        ptdeploy.prompt_add(bundle, pack)
    assert list(ptdeploy.prompt_list(bundle)) == ["default"]


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(bundle, pack, packed, capsys):
    before, one = content(bundle), packed("bert", "SEQ_CLS")
    for prompt in (pack, one.adapter):
        assert main(["prompt", "add", str(bundle), str(prompt), "--name", "default"]) == 2
        said = capsys.readouterr().err
        assert "has a prompt 'default' already" in said
        # Nothing was wrong with what it read.
        assert "failed" not in said
    assert content(bundle) == before
    ptdeploy.prompt_add(bundle, pack, name="default", replace=True)
    assert ptdeploy.load(bundle).logits([ROW])[0].shape == (5,)
    assert len(ptdeploy.prompt_list(bundle)) == 1


@pytest.mark.parametrize(
    ("action", "name", "reason"),
    [
        ("remove", "nobody", "has no prompt 'nobody'; there is 'default', 'other'."),
        ("default", "nobody", "has no prompt 'nobody'; there is 'default', 'other'."),
        ("remove", "default", "'default' is its default prompt."),
    ],
)
def test_what_cannot_be_changed_changes_nothing(bundle, pack, action, name, reason, capsys):
    ptdeploy.prompt_add(bundle, pack)
    before = content(bundle)
    assert main(["prompt", action, str(bundle), name]) == 2
    assert reason in capsys.readouterr().err
    assert content(bundle) == before


def refused(capsys, *told: object) -> str:
    assert main(["prompt", *map(str, told)]) == 2
    error: str = capsys.readouterr().err
    return error.removeprefix(f"ptdeploy: {told[1]}: ")


def test_a_classifier_is_told_of_other_prompts_and_never_of_its_base_alone(bundle, pack, capsys):
    assert refused(capsys, "remove", bundle, "default") == (
        "'default' is its default prompt.\nIt is the only one. Add another first, ptdeploy prompt "
        "add BUNDLE PROMPT, and make that the default: ptdeploy prompt default BUNDLE NAME\n"
    )
    ptdeploy.prompt_add(bundle, pack)
    assert refused(capsys, "remove", bundle, "default") == (
        "'default' is its default prompt.\nMake another one the default first: "
        "ptdeploy prompt default BUNDLE NAME\n"
    )
    assert refused(capsys, "default", bundle, "--none") == (
        "a classifier has no base model alone: its head belongs to a prompt.\n"
        "Name a prompt: there is 'default', 'other'.\n"
    )


def test_the_base_alone_is_offered_for_the_default_only_where_it_can_be_that(
    compiled, packed, tmp_path, capsys
):
    one, pack = compiled("qwen2", "CAUSAL_LM"), packed("qwen2", "CAUSAL_LM").path
    bundle = Path(shutil.copytree(one.bundle, tmp_path / "with prompt"))
    ptdeploy.prompt_add(bundle, pack)
    assert "--none" not in refused(capsys, "remove", bundle, "default")
    told = {"base": str(one.trained.base), "task": "CAUSAL_LM", "target": "ort"}
    alone = ptdeploy.compile(**told, output=tmp_path / "alone").path
    ptdeploy.prompt_add(alone, pack)
    ptdeploy.prompt_default(alone, "other")
    first = "'other' is its default prompt.\nMake the base model alone the default first: "
    assert (
        refused(capsys, "remove", alone, "other")
        == f"{first}ptdeploy prompt default BUNDLE --none\n"
    )
    ptdeploy.prompt_add(alone, pack, name="more")
    assert "or with --none the base model alone" in refused(capsys, "remove", alone, "other")


def test_a_pack_of_another_task_is_refused_for_good_and_one_of_another_precision_is_not(
    bundle, pack, packed, tmp_path, capsys
):
    decoders = packed("qwen2", "CAUSAL_LM").path
    assert refused(capsys, "add", bundle, decoders).endswith(
        f"{decoders}: is a prompt for CAUSAL_LM, and the engine of {bundle} is for SEQ_CLS.\n"
        "Add it to a bundle for CAUSAL_LM.\n"
    )
    other = Path(shutil.copytree(pack, tmp_path / "pack"))
    damage.edit(other, lambda manifest: manifest.update(precision="int8"))
    assert refused(capsys, "add", bundle, other).endswith(
        f"{other}: was proven over an engine in int8, and that of {bundle} is in fp32.\n"
        "Compile its checkpoint over this bundle: ptdeploy compile CHECKPOINT --over BUNDLE\n"
    )


def test_the_list_says_which_is_the_default(bundle, pack, capsys):
    ptdeploy.prompt_add(bundle, pack, labels="a,b,c,d,e")
    assert main(["prompt", "list", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["default_prompt"] == "default"
    assert found["prompts"]["other"]["labels"] == ["a", "b", "c", "d", "e"]
    assert main(["prompt", "list", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "other: 3 virtual tokens" in shown
    assert shown.endswith(", 5 labels\n")


def test_the_list_gives_no_head_to_a_prompt_without_one_and_counts_one_as_one(
    compiled, tmp_path, capsys
):
    written = compiled("gpt2", "CAUSAL_LM").bundle
    bundle = Path(shutil.copytree(written, tmp_path / "bundle"))
    damage.edit(
        bundle, lambda manifest: manifest["prompts"]["default"].update(num_virtual_tokens=1)
    )
    assert main(["prompt", "list", str(bundle)]) == 0
    assert ": 1 virtual token, " in capsys.readouterr().out
    assert main(["prompt", "list", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"]["default"]["head"] is None


def test_a_pack_of_other_weights_is_refused(pack, bundle, tmp_path):
    shutil.copytree(pack, tmp_path / "pack")
    file = tmp_path / "pack" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["base"]["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))
    before = content(bundle)
    with pytest.raises(BaseModelError, match="has other weights than base") as refused:
        ptdeploy.prompt_add(bundle, tmp_path / "pack")
    assert refused.value.fix == "Add it to a bundle of the base model that it was trained on."
    assert content(bundle) == before


@pytest.mark.parametrize("command", ["add", "default", "remove"])
def test_a_change_that_is_refused_names_no_option_that_the_command_lacks(
    bundle, pack, command, tmp_path
):
    ptdeploy.prompt_add(bundle, pack)
    (bundle / "notes.txt").touch()
    before = content(bundle)
    change = {
        "add": lambda: ptdeploy.prompt_add(bundle, pack, name="x"),
        "default": lambda: ptdeploy.prompt_default(bundle, "other"),
        "remove": lambda: ptdeploy.prompt_remove(bundle, "other"),
    }[command]
    with pytest.raises(
        OutputError, match=r"'notes.txt', which is not of .* it is left alone"
    ) as why:
        change()
    assert why.value.fix == "Move it elsewhere."
    assert content(bundle) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_virtual_tokens": 2**40}, "num_virtual_tokens must be from 1 to"),
        ({"prefix_kv": [2, 2, 4, 3, 8]}, "prefix_kv is not what the graph takes"),
        ({"prefix_kv": [2, 2, 4, -3, 8]}, r"prefix_kv\[3\] must be from 1 to"),
        ({"labels": []}, "labels are missing"),
    ],
)
def test_what_a_pack_says_of_its_prompt_must_fit_the_engine(pack, bundle, tmp_path, change, reason):
    """The pack is blamed by its place, not the engine."""
    shutil.copytree(pack, tmp_path / "lie")
    damage.edit(tmp_path / "lie", lambda manifest: manifest["prompt"].update(change))
    before = content(bundle)
    with pytest.raises(BundleError, match=rf"lie/manifest.json: prompts\['x'\].*{reason}"):
        ptdeploy.prompt_add(bundle, tmp_path / "lie", name="x")
    assert content(bundle) == before


def test_a_pack_whose_reference_is_another_prompts_is_not_added(packed, compiled, bundle, tmp_path):
    """Whatever a pack says of its parity, the engine is compared anew."""
    shutil.copytree(packed("bert", "SEQ_CLS").path, tmp_path / "pack")
    file = tmp_path / "pack" / "reference.safetensors"
    with safe_open(file, "np") as opened:
        told = opened.metadata()
    tensors = load_file(file)
    tensors["rows.000.logits"] = tensors["rows.000.logits"] + 1
    damage.replace(tmp_path / "pack", file.name, save(tensors, told))
    before = content(bundle)
    with pytest.raises(ParityError, match="does not match"):
        ptdeploy.prompt_add(bundle, tmp_path / "pack")
    assert content(bundle) == before


def test_a_pack_is_held_to_the_thresholds_of_the_bundles_engine(pack, bundle, tmp_path):
    """Not to those that are stored in it, which are of another engine or made up."""
    shutil.copytree(pack, tmp_path / "pack")
    file = tmp_path / "pack" / "reference.safetensors"
    loose = {"max_abs": 1e9, "relative": 1.0, "cosine": -1.0, "kl": 1e9, "min_top1_agreement": 0.0}

    def store(off: float) -> None:
        with safe_open(file, "np") as opened:
            told = json.loads(opened.metadata()["ptdeploy"])
        tensors = load_file(file)
        tensors["rows.000.logits"] = tensors["rows.000.logits"] + np.float32(off)
        changed = {"ptdeploy": json.dumps({**told, "thresholds": loose})}
        damage.replace(tmp_path / "pack", file.name, save(tensors, changed))

    store(0.001)
    before = content(bundle)
    with pytest.raises(ParityError, match="does not match"):
        ptdeploy.prompt_add(bundle, tmp_path / "pack")
    assert content(bundle) == before
    store(-0.001)
    ptdeploy.prompt_add(bundle, tmp_path / "pack", name="x")
    added = read_bundle(bundle).by_default("x")
    assert load_reference(added).thresholds == PRECISIONS["fp32"].thresholds


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    """Checkpoints that are no prompts for the classifier's engine."""
    folder = tmp_path_factory.mktemp("strangers")
    tiny.make(folder / "weights", "bert", "SEQ_CLS", seed=1)
    tiny.make(folder / "config", "bert", "SEQ_CLS", intermediate_size=32)
    tiny.make(folder / "task", "bert", "TOKEN_CLS")
    tiny.make(folder / "prefix", "bert", "SEQ_CLS", kind="prefix tuning")
    return folder


@pytest.mark.parametrize(
    ("stranger", "error", "reason"),
    [
        ("weights", BaseModelError, "has other weights than"),
        ("config", BaseModelError, "has another configuration than"),
        ("task", CheckpointError, "was trained for TOKEN_CLS, and the engine of"),
        ("prefix", CheckpointError, "holds a prefix KV alone, and the engine of"),
    ],
)
def test_a_prompt_of_another_base_task_or_kind_is_refused(
    strangers, bundle, stranger, error, reason, tmp_path
):
    before, place = content(bundle), tmp_path / "new.prompt"
    told = {"base": str(strangers / stranger / "base")}
    adapter = strangers / stranger / "adapter"
    with pytest.raises(error, match=reason):
        ptdeploy.compile_prompt(adapter, over=bundle, output=place, **told)
    with pytest.raises(error, match=reason):
        ptdeploy.prompt_add(bundle, adapter, name="x", **told)
    assert content(bundle) == before
    assert not place.exists()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bundle"]


def test_a_pack_for_a_bundle_and_a_bundle_for_a_pack_are_called_what_they_are(bundle, pack):
    with pytest.raises(BundleError, match="is a pack, which holds a prompt and no engine, not a b"):
        ptdeploy.load(pack)
    with pytest.raises(InputError, match="is a bundle, and a prompt is added from a pack") as why:
        ptdeploy.prompt_add(bundle, bundle, name="x", base="b")
    assert why.value.fix.endswith("ptdeploy compile CHECKPOINT --over BUNDLE -o PACK")


def test_another_tools_manifest_makes_no_pack_of_a_checkpoint(bundle, packed, compiled, tmp_path):
    adapter = Path(shutil.copytree(packed("bert", "SEQ_CLS").adapter, tmp_path / "run"))
    (adapter / "manifest.json").write_text(json.dumps({"format": "parquet", "files": []}))
    ptdeploy.prompt_add(bundle, adapter, name="legal", base=compiled_base(compiled))
    assert list(ptdeploy.prompt_list(bundle)) == ["default", "legal"]
    assert ptdeploy.inspect(adapter)["kind"] == "checkpoint"


@pytest.mark.parametrize(
    "option", ["--device=cpu", "--precision=fp32", "--no-freeze-kv", "--cpp-tokenizer"]
)
def test_an_engines_option_is_refused_over_an_engine(bundle, option, capsys, tmp_path):
    told = ["compile", str(tmp_path), "--over", str(bundle), option]
    assert main(told) == 2
    assert "is about an engine, and --over takes that of its bundle" in capsys.readouterr().err


def test_a_checkpoint_needs_a_name_and_a_pack_takes_no_checkpoints_options(bundle, pack, packed):
    with pytest.raises(InputError, match="does not say what its prompt is called"):
        ptdeploy.prompt_add(bundle, packed("bert", "SEQ_CLS").adapter)
    with pytest.raises(InputError, match=r"^task_id is about a checkpoint"):
        ptdeploy.prompt_add(bundle, pack, task_id=1)


def test_a_pack_of_the_causal_task_goes_into_its_bundle(compiled, packed, tmp_path, capsys):
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    pack = packed("qwen2", "CAUSAL_LM").path
    assert main(["prompt", "add", str(tmp_path / "bundle"), str(pack), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["prompts"]["other"]["prefix_kv"][3] == 3
    assert main(["inspect", str(pack)]) == 0
    assert "proven over" in capsys.readouterr().out


def test_a_pack_whose_folder_no_prompt_can_be_called_as_wants_a_name(bundle, packed, tmp_path):
    adapter, place = packed("bert", "SEQ_CLS").adapter, tmp_path / "my pack é.prompt"
    with pytest.raises(InputError, match="no prompt can be called 'my pack é'"):
        ptdeploy.compile_prompt(adapter, over=bundle, output=place)
    assert not place.exists()


def test_the_files_of_a_bundle_may_lie_in_folders(compiled, packed, tmp_path):
    one = compiled("bert", "SEQ_CLS", tokenizer="characters")
    bundle = Path(shutil.copytree(one.bundle, tmp_path / "bundle"))
    moved = {"graph/onnx": "model", "text": "tokenizer", "trained": "prompt"}

    def move(manifest):
        for folder, role in moved.items():
            roles = {role, "weights"} if role == "model" else {role}
            for entry in manifest["files"]:
                if entry["role"] in roles:
                    place = f"{folder}/{Path(entry['path']).name}"
                    (bundle / folder).mkdir(parents=True, exist_ok=True)
                    (bundle / entry["path"]).rename(bundle / place)
                    entry["path"] = place

    damage.edit(bundle, move)
    adapter = packed("bert", "SEQ_CLS").adapter
    how = {"base": str(one.trained.base)}
    pack = ptdeploy.compile_prompt(adapter, over=bundle, output=tmp_path / "x.prompt", **how)
    names = ["manifest.json", "parity.json", "prompt.safetensors", "reference.safetensors"]
    assert sorted(one.name for one in pack.path.iterdir()) == names
    ptdeploy.prompt_add(bundle, pack.path, name="legal")
    ptdeploy.prompt_default(bundle, "legal")
    ptdeploy.prompt_remove(bundle, "default")
    assert not (bundle / "trained").exists()
    assert len(ptdeploy.load(bundle).classify(["a text"])) == 1
