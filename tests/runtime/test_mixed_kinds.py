"""An encoder's engine that takes prompts of either kind: virtual tokens and prefix KV."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from support import tiny
from support.damage import edit, with_layers
from support.siblings import rename_prompt, renamed

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError, BundleError, CheckpointError, InputError

ALL = {"prompt_kinds": "all"}
# One holds the id that RoBERTa's kind pads with.
ROWS = [[5, 6, 7], [40], list(range(10, 30)), [9, 1, 11, 12], [5, 1, 7]]
NAMES = ["default", "prefix", "short", "prefix", "short"]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "SEQ_CLS"), ("roberta", "SEQ_CLS"), ("roberta", "TOKEN_CLS")],
)
def test_rows_of_either_kind_share_a_batch(siblings, architecture, task):
    one = siblings(architecture, task, names=("short", "prefix"), options=ALL)
    engine = one.engine()
    assert engine.manifest.graph.route == "fused"
    for names in (NAMES, NAMES[::-1], ["prefix"] * 5, ["short"] * 5, ["default"] * 5):
        for ids, name, logits in zip(ROWS, names, engine.logits(ROWS, prompt=names), strict=True):
            wanted = one.alone(ids, name)
            assert logits.shape == wanted.shape
            assert np.abs(logits - wanted).max() < 1e-5


@pytest.fixture(scope="module")
def strangers(compiled, tmp_path_factory):
    """Adapters of either kind over the base of the bundle that they are for."""
    first = compiled("bert", "SEQ_CLS", ALL).trained
    folder = tmp_path_factory.mktemp("kinds")
    for name, kind in (("prefix", "prefix tuning"), ("tokens", "prompt tuning")):
        tiny.another(folder / name, first, "SEQ_CLS", 7, 4, 5, kind)
    return folder


def test_prompts_of_either_kind_are_added_and_proven_together(compiled, strangers, tmp_path):
    made = compiled("bert", "SEQ_CLS", ALL)
    shutil.copytree(made.bundle, tmp_path / "b")
    for name in ("prefix", "tokens"):
        adapter, base = strangers / name / "adapter", str(made.trained.base)
        pack = ptdeploy.compile_prompt(adapter, over=made.bundle, base=base, output=tmp_path / name)
        ptdeploy.prompt_add(tmp_path / "b", pack.path, name=name)
    report = ptdeploy.verify(tmp_path / "b")
    assert report.passed
    assert all(case.mixed for one in report.each() for case in one.cases[-2:])
    kinds = {name: one.prefix_kv for name, one in ptdeploy.prompt_list(tmp_path / "b").items()}
    assert kinds == {"default": None, "prefix": (2, 2, 4, 7, 8), "tokens": None}
    engine = ptdeploy.load(made.bundle)
    engine.load_prompt(tmp_path / "prefix")
    assert len(engine.classify(ROWS, prompt="prefix")[0].probabilities) == 4


def test_the_engine_is_the_same_whichever_kind_comes_first(compiled, strangers, tmp_path):
    made = compiled("bert", "SEQ_CLS", ALL)
    other = ptdeploy.compile(
        strangers / "prefix" / "adapter",
        base=str(made.trained.base),
        target="ort",
        output=tmp_path / "b",
        prompt_kinds="all",
    )
    for name in ("model.onnx", "model.onnx.data"):
        assert (other.path / name).read_bytes() == (made.bundle / name).read_bytes()
    engine = ptdeploy.load(other.path)
    engine.load_prompt(renamed(made.bundle, tmp_path / "c", "tokens"))
    wanted = ptdeploy.load(made.bundle).logits(ROWS)
    assert all(map(np.array_equal, engine.logits(ROWS, prompt="tokens"), wanted))


def test_an_engine_of_one_kind_says_how_to_take_both(compiled, strangers, tmp_path):
    made = compiled("bert", "SEQ_CLS")
    with pytest.raises(CheckpointError, match="holds a prefix KV alone") as raised:
        ptdeploy.compile_prompt(
            strangers / "prefix" / "adapter",
            over=made.bundle,
            base=str(made.trained.base),
            output=tmp_path / "p",
        )
    assert "--prompt-kinds all" in str(raised.value.fix)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 2, 4, 7, 8), r"inputs\[4\].shape is '\(prefixes, 4, 4, prefix, 8\)'; it must be"),
        ((2, 2, 2, 7, 16), "it must be"),
        ((2, 2, 4, 6, 8), "is not the shape of a prefix KV"),
        (None, "token_dim and prefix_kv are both null"),
    ],
)
def test_a_prefix_of_another_shape_is_refused(siblings, tmp_path, shape, reason):
    """A layer less would give the rows beside it another prompt's prefix."""
    one = siblings("bert", "SEQ_CLS", names=("short", "prefix"), options=ALL)
    renamed(one.of("prefix").bundle, tmp_path / "b", "lie")
    edit(tmp_path / "b", lambda m: m["prompts"]["lie"].update(prefix_kv=shape))
    engine = one.engine()
    with pytest.raises(BundleError, match=reason):
        engine.load_prompt(tmp_path / "b", "lie")


def test_what_cannot_take_both_is_refused(tmp_path, capsys):
    made = tiny.make(tmp_path / "d", "distilbert", "SEQ_CLS")
    told = {"base": str(made.base), "target": "ort", "output": tmp_path / "b"}
    with pytest.raises(BaseModelError, match="distilbert: takes no keys and values before its"):
        ptdeploy.compile(made.adapter, prompt_kinds="all", **told)
    with pytest.raises(InputError, match="prompt_kinds"):
        ptdeploy.compile(made.adapter, prompt_kinds="some", **told)
    with pytest.raises(
        InputError, match=r"^prompt_kinds all takes .* freeze_kv=False runs virtual tokens"
    ):
        ptdeploy.compile(made.adapter, prompt_kinds="all", freeze_kv=False, **told)
    command = ["compile", str(made.adapter), "--over", str(tmp_path), "--prompt-kinds", "all"]
    assert main(command) == 2
    assert "--prompt-kinds: is about an engine" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def prefixes(compiled):
    return compiled("bert", "SEQ_CLS", kind="prefix tuning").bundle


@pytest.mark.parametrize("layers", [1, 4])
def test_a_prefix_of_other_layers_gives_no_neighbour_its_own(prefixes, tmp_path, layers):
    """Where the graph does not say how many there are, those of one would be read as the next's."""
    with_layers(prefixes, tmp_path / "lie", "default", layers)
    rename_prompt(tmp_path / "lie", "a")
    engine = ptdeploy.load(prefixes)
    with pytest.raises(BundleError, match=f"is of {layers} layers, and those beside it are of 2"):
        engine.load_prompt(tmp_path / "lie", "a")
    assert list(engine.prompts) == ["default"]


def test_a_bundles_other_prompts_are_held_against_the_engine_too(prefixes, tmp_path):
    shutil.copytree(prefixes, tmp_path / "two")
    shutil.copytree(prefixes / "prompts/default", tmp_path / "two/prompts/a")

    def add(manifest: dict[str, Any]) -> None:
        manifest["prompts"]["a"] = manifest["prompts"]["default"]
        own = [one for one in manifest["files"] if one["of"] == "default"]
        for one in own:
            path = one["path"].replace("/default/", "/a/")
            manifest["files"].append({**one, "path": path, "of": "a"})

    edit(tmp_path / "two", add)
    with_layers(tmp_path / "two", tmp_path / "lie", "a", 4)
    engine = ptdeploy.load(tmp_path / "lie")
    with pytest.raises(BundleError, match="is of 4 layers, and those beside it are of 2"):
        engine.logits(ROWS[:2], prompt=["a", "default"])
    assert engine.logits(ROWS)
    edit(tmp_path / "two", lambda m: m["prompts"]["a"].update(labels=[]))
    engine = ptdeploy.load(tmp_path / "two")
    with pytest.raises(BundleError, match=r"prompts\['a'\].labels are missing"):
        engine.classify(ROWS, prompt="a")
