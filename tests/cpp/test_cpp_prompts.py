"""Many prompts over one engine in C++: each row is bit for bit what it is in Python."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from support.damage import PROMPT, edit, flip, replace, shift_reference, with_layers
from support.native import REPOSITORY, TESTS, Probe, bits, checked, opened, text_of
from support.openvino import behind, copied
from support.pack_damage import PACK_DAMAGE, Change
from support.parity import assert_same
from support.places import by_places
from support.refusals import same_refusal
from support.siblings import ROWS, Siblings, rename_prompt, renamed
from support.tools import bound_by_modes, tool

import ptdeploy
from ptdeploy.errors import PtdeployError
from ptdeploy.runtime.prompt_choice import DEFAULT

NAMES = ["long", "default", "short", None, "long", DEFAULT, "short"]
FREE = "max_new_tokens=12 eos_token_ids="
# ALiBi is bloom's; where a window is shorter than a prompt, it ends within another of the prompt's
# tokens in each row.
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}),
    ("gpt2", {}),
    ("bloom", {}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"options": {"freeze_kv": False}}),
    ("bloom", {"options": {"freeze_kv": False}}),
]
CLASSIFIERS = [
    ("bert", "SEQ_CLS"),
    ("bert", "TOKEN_CLS"),
    ("qwen2", "SEQ_CLS"),
    ("gpt2", "SEQ_CLS"),
]


def word(prompt: Any) -> str:
    return "-" if prompt is None else "*" if prompt is DEFAULT else f"+{prompt}"


def each(prompts: Sequence[Any]) -> str:
    return " ".join(["each", *map(word, prompts)])


def one(prompt: Any) -> str:
    return f"all {word(prompt)}"


@pytest.fixture
def both(probe) -> Callable[..., Any]:
    """Opens siblings' prompts over one engine as `e` in the probe, and in Python."""

    def open_(siblings: Siblings, most: int | str = "") -> Any:
        assert probe.ask("open", "e", siblings.first.bundle, "", "", "", most) == {}
        for name, other in siblings.others.items():
            assert probe.ask("load", "e", other.bundle, name) == {}
        return siblings.engine(**({"max_prompts": most} if most else {}))

    return open_


def same_logits(probe: Probe, engine: Any, rows: list[list[int]], names: Sequence[Any]) -> None:
    ours = [bits(array) for array in engine.logits(rows, prompt=list(names))]
    assert probe.ask("logits", "e", text_of(rows), "", each(names)) == ours


@pytest.mark.parametrize(("architecture", "how"), DECODERS)
def test_rows_that_a_decoder_continues_have_their_own_prompts(
    siblings, both, probe, architecture, how
):
    engine = both(siblings(architecture, "CAUSAL_LM", **how))
    # Each request finds the last one's KV buffer, whose rows begin with other prefixes.
    for names in (NAMES, NAMES[::-1], [None] * len(ROWS), ["long"] * len(ROWS), NAMES):
        same_logits(probe, engine, ROWS, names)
        ours = engine.greedy(ROWS, 12, prompt=list(names))
        theirs = probe.ask("generate", "e", text_of(ROWS), FREE, each(names))
        assert [row["token_ids"] for row in theirs] == ours
        for place in (0, 3):
            alone = probe.ask("generate", "e", text_of([ROWS[place]]), FREE, one(names[place]))
            assert alone[0]["token_ids"] == ours[place]


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_graph_of_before_mixed_prompts_joins_what_it_joined(
    compiled, probe, tmp_path, architecture
):
    engine = opened(probe, by_places(compiled(architecture, "CAUSAL_LM").bundle, tmp_path / "old"))
    assert not engine.layout.mixes
    names = [None, DEFAULT, DEFAULT, None, DEFAULT, None, DEFAULT]
    same_logits(probe, engine, ROWS, names)
    ours = engine.greedy(ROWS, 12, prompt=names)
    theirs = probe.ask("generate", "e", text_of(ROWS), FREE, each(names))
    assert [row["token_ids"] for row in theirs] == ours


@pytest.mark.parametrize(("architecture", "task"), CLASSIFIERS)
def test_rows_that_are_classified_have_their_own_heads(siblings, both, probe, architecture, task):
    engine = both(siblings(architecture, task))
    names = [name or "short" for name in NAMES]
    for asked in (names, names[::-1], ["long"] * len(ROWS)):
        same_logits(probe, engine, ROWS, asked)
    method = "classify" if task == "SEQ_CLS" else "tag"
    ours = getattr(engine, method)(ROWS, prompt=names)
    theirs = probe.ask(method, "e", text_of(ROWS), "", each(names))
    for mine, yours in zip(ours, theirs, strict=True):
        if task == "SEQ_CLS":
            assert (yours["label"], yours["index"]) == (mine.label, mine.index)
            assert yours["probabilities"] == pytest.approx(mine.probabilities, rel=1e-12)
        else:
            assert [token["label"] for token in yours] == [token.label for token in mine]


def test_a_text_that_ends_in_padding_is_read_where_python_reads_it(siblings, both, probe):
    engine = both(siblings("qwen2", "SEQ_CLS", names=("long",), kind="prefix tuning"))
    assert engine.prompts["default"].padding_id == 0
    rows = [[5, 6, 0, 0], [0], [0, 0, 0], [0, 7, 0], [9, 10, 11, 12, 13]]
    for names in (["default"] * 5, ["long"] * 5, ["default", "long"] * 2 + ["default"]):
        same_logits(probe, engine, rows, names)


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_a_prefix_that_was_trained_itself_is_one_of_them(siblings, both, probe, task):
    engine = both(siblings("qwen2", task, names=("long", "prefix")))
    names = ["prefix", "default", "long", "prefix", "default", "prefix", "long"]
    same_logits(probe, engine, ROWS, names)


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("roberta", "TOKEN_CLS")])
def test_rows_of_either_kind_share_an_encoders_batch(siblings, both, probe, architecture, task):
    one_of = siblings(
        architecture, task, names=("short", "prefix"), options={"prompt_kinds": "all"}
    )
    engine = both(one_of)
    rows = [row for row in ROWS if 1 not in row]
    for names in (
        ["default", "prefix", "short", "prefix", "short", "default", "prefix"],
        ["prefix"] * 7,
        ["short"] * 7,
        ["short", "default"] * 3 + ["short"],
    ):
        same_logits(probe, engine, rows, names)


def test_prompts_are_listed_with_what_they_are(siblings, both, probe):
    engine = both(siblings("bert", "SEQ_CLS"))
    found = probe.ask("prompts", "e")
    assert [item["name"] for item in found] == list(engine.prompts)
    for item in found:
        info = engine.prompt_info(item["name"])
        room = engine.limits_beside(info.num_virtual_tokens).max_sequence
        assert (item["kind"], item["labels"]) == (info.kind, list(info.labels))
        assert (item["num_virtual_tokens"], item["max_sequence"]) == (
            info.num_virtual_tokens,
            room,
        )
        assert item["columns"] == len(info.labels)
        assert probe.ask("prompt", "e", f"+{item['name']}") == item
    assert probe.ask("prompt", "e", "*") == found[0]
    # What the bundle is stays what its default prompt is.
    assert probe.ask("info", "e")["labels"] == list(engine.prompt.info.labels)


def test_a_name_a_base_model_and_nothing_are_three_things(siblings, both, probe):
    engine = both(siblings("qwen2", "CAUSAL_LM"))
    found = {
        name: probe.ask("logits", "e", "5,6,7", "", one(name))
        for name in ("default", DEFAULT, None, "long")
    }
    assert found["default"] == found[DEFAULT] == probe.ask("logits", "e", "5,6,7")
    assert len({str(found[name]) for name in (DEFAULT, None, "long")}) == 3
    assert found[None] == [bits(array) for array in engine.logits([[5, 6, 7]], prompt=None)]
    assert probe.ask("prompt", "e", "-")["num_virtual_tokens"] == 0


@pytest.mark.parametrize(
    ("task", "prompts"),
    [
        ("CAUSAL_LM", "nobody"),
        ("CAUSAL_LM", ["long", "nobody", "long"]),
        ("CAUSAL_LM", 'it\'s_"no\\body"'),
        ("CAUSAL_LM", "é" * 70),
        ("CAUSAL_LM", ["long", "short"]),
        ("SEQ_CLS", None),
        ("SEQ_CLS", ["long", None, "short"]),
        ("SEQ_CLS", ["long"] * 4),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_pythons_words(siblings, both, probe, task, prompts):
    engine = both(siblings("qwen2" if task == "CAUSAL_LM" else "bert", task))
    rows = ROWS[:3]
    with pytest.raises(ptdeploy.InputError) as refused:
        engine.logits(rows, prompt=prompts)
    asked = each(prompts) if isinstance(prompts, list) else one(prompts)
    assert same_refusal(probe.ask("logits", "e", text_of(rows), "", asked), refused.value, True)


def test_texts_may_be_as_long_as_fits_beside_their_own_prompts(siblings, both, probe):
    engine = both(siblings("qwen2", "CAUSAL_LM"))
    room = {
        name: engine.limits_beside(
            0 if name is None else engine.prompt_info(name).num_virtual_tokens
        ).max_sequence
        for name in ("long", "short", None)
    }
    names = list(room)
    rows = [[5] * room[name] for name in names]
    same_logits(probe, engine, rows, names)
    for place, name in enumerate(names):
        longer = [[*row, *[6] * (i == place)] for i, row in enumerate(rows)]
        refusal = probe.ask("logits", "e", text_of(longer), "", each(names))
        assert (
            f"Row {place} has {room[name] + 1} tokens, but at most {room[name]} fit"
            in (refusal["problem"])
        )
    # As many new tokens as the fullest row leaves.
    rows = [[5] * (room["long"] - 4), [5], [5]]
    many = probe.ask("generate", "e", text_of(rows), "max_new_tokens=5", each(names))
    assert "row 0 leaves 4 of the" in many["problem"]
    free = "max_new_tokens=4 eos_token_ids="
    few = probe.ask("generate", "e", text_of(rows), free, each(names))
    assert [row["token_ids"] for row in few] == engine.greedy(rows, 4, prompt=names)
    # Where none is asked for, as many as each row has room for.
    rows = [[5] * room["long"], [5] * (room["short"] - 2), [5]]
    own = probe.ask("generate", "e", text_of(rows), "eos_token_ids= do_sample=False", each(names))
    wanted = engine.generate(rows, prompt=names, eos_token_ids=(), do_sample=False)
    assert [row["token_ids"] for row in own] == [one.token_ids for one in wanted]
    assert [len(one.token_ids) for one in wanted[:2]] == [0, 2] < [len(wanted[2].token_ids)]


@pytest.mark.parametrize("options", [{}, {"freeze_kv": False}], ids=["frozen", "run"])
def test_a_session_goes_on_after_its_prompt_was_unloaded(siblings, both, probe, options):
    engine = both(siblings("qwen2", "CAUSAL_LM", options=options))
    (wanted,) = engine.greedy([ROWS[0]], 9, prompt="long")
    assert probe.ask("session-open", "s", "e 40 +long") == {}
    probe.ask("session-append", "s", text_of([ROWS[0]]))
    first = probe.ask("session-generate", "s", "max_new_tokens=3 eos_token_ids=")["token_ids"]
    assert probe.ask("unload", "e", "long") == {}
    assert "has no prompt 'long'" in probe.ask("session-open", "t", "e 40 +long")["problem"]
    probe.ask("session-fork", "s", "f")
    for name in "fs":
        more = probe.ask("session-generate", name, "max_new_tokens=6 eos_token_ids=")
        assert first + more["token_ids"] == wanted
    rest = engine.limits_beside(engine.prompt_info("long").num_virtual_tokens).max_sequence
    assert probe.ask("session-open", "s", f"e {rest} +short") == {}
    assert "max_tokens is" in probe.ask("session-open", "s", "e 100000 -")["problem"]


def test_a_fork_of_an_unloaded_prompts_session_leaves_nothing_behind(bundles, built, tmp_path):
    """Its prompt is gone with the last session: 150 KB, over and over."""
    engine, other = tmp_path / "engine", tmp_path / "other"
    copied(bundles("fused"), engine)
    rename_prompt(behind(bundles("fused"), other, 600), "long")
    for bundle in (engine, other):
        edit(bundle, lambda manifest: manifest.update(target="ort"))
    probe = Probe(str(built / "probe"))
    assert probe.ask("open", "e", engine) == {}

    def rounds(count: int) -> int:
        for _ in range(count):
            assert probe.ask("load", "e", other, "long") == {}
            assert probe.ask("session-open", "s", "e 20 +long") == {}
            assert probe.ask("unload", "e", "long") == {}
            assert probe.ask("session-fork", "s", "f") == {}
        return probe.memory()

    before = rounds(20)
    assert rounds(100) - before < 5_000_000
    probe.close()


def test_an_unloaded_prompt_is_unknown_and_may_come_back(siblings, both, probe, tmp_path):
    one_of = siblings("bert", "SEQ_CLS")
    both(one_of)
    before = probe.ask("logits", "e", text_of(ROWS), "", one("long"))
    assert probe.ask("unload", "e", "long") == {}
    assert [item["name"] for item in probe.ask("prompts", "e")] == ["default", "short"]
    for asked in (("logits", "e", text_of(ROWS), "", one("long")), ("unload", "e", "long")):
        assert "has no prompt 'long'; it has 'default', 'short'." in probe.ask(*asked)["problem"]
    other = renamed(one_of.of("short").bundle, tmp_path / "b", "long")
    assert probe.ask("load", "e", other, "long") == {}
    short = probe.ask("logits", "e", text_of(ROWS), "", one("short"))
    assert probe.ask("logits", "e", text_of(ROWS), "", one("long")) == short
    assert probe.ask("unload", "e", "long") == {}
    assert probe.ask("load", "e", one_of.of("long").bundle, "long") == {}
    assert probe.ask("logits", "e", text_of(ROWS), "", one("long")) == before
    assert (
        "is the prompt of requests that name none" in probe.ask("unload", "e", "default")["problem"]
    )


def test_memory_has_the_prompts_used_last_and_answers_stay(siblings, both, probe):
    one_of = siblings("bert", "SEQ_CLS")
    engine = both(one_of, 1)
    for name in ("default", "long", "short", "long", "default", "default", "short"):
        same_logits(probe, engine, ROWS, [name] * len(ROWS))
    same_logits(probe, engine, ROWS[:3], ["default", "long", "short"])


def test_a_file_that_is_gone_or_another_is_not_read_again(siblings, probe, tmp_path):
    one_of = siblings("bert", "SEQ_CLS")
    for name in ("long", "short"):
        shutil.copytree(one_of.of(name).bundle, tmp_path / name)
    assert probe.ask("open", "e", one_of.first.bundle, "", "", "", 1) == {}
    for name in ("long", "short"):
        assert probe.ask("load", "e", tmp_path / name, name) == {}
    rows = text_of(ROWS)
    wanted = probe.ask("logits", "e", rows, "", one("short"))
    probe.ask("logits", "e", rows)
    shutil.copy(tmp_path / "short" / PROMPT, tmp_path / "long" / PROMPT)
    refused = probe.ask("logits", "e", rows, "", one("long"))
    assert "was changed since the prompt was loaded" in refused["problem"]
    shutil.rmtree(tmp_path / "short")
    refused = probe.ask("logits", "e", rows, "", one("short"))
    assert "cannot be read (No such file or directory)" in refused["problem"]
    # Others go on, and so does that one once its file is back.
    assert "error" not in probe.ask("logits", "e", rows)
    shutil.copytree(one_of.of("short").bundle, tmp_path / "short")
    assert probe.ask("logits", "e", rows, "", one("short")) == wanted


@pytest.fixture
def two(compiled, packed, tmp_path) -> Callable[..., Path]:
    """A bundle with two prompts, of 3 and of 5 labels where it has labels."""

    def make(architecture: str, task: str) -> Path:
        shutil.copytree(compiled(architecture, task).bundle, tmp_path / "bundle")
        ptdeploy.prompt_add(tmp_path / "bundle", packed(architecture, task).path, name="legal")
        return tmp_path / "bundle"

    return make


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_the_prompts_of_a_bundle_are_asked_for_by_name(two, probe, architecture, task):
    bundle = two(architecture, task)
    engine = ptdeploy.load(bundle)
    assert probe.ask("open", "e", bundle, "", "", "", 1) == {}
    assert [item["name"] for item in probe.ask("prompts", "e")] == ["default", "legal"]
    same_logits(probe, engine, ROWS, ["legal", "default"] * 3 + ["legal"])
    # A bundle that was moved away keeps its own.
    bundle.rename(bundle.with_name("moved"))
    same_logits(probe, engine, ROWS, ["default", "legal"] * 3 + ["default"])


def test_a_prompt_comes_from_a_pack_or_another_bundle_by_the_name_it_has(
    compiled, packed, two, probe
):
    pack = packed("qwen2", "CAUSAL_LM").path
    several = two("qwen2", "CAUSAL_LM")
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    assert probe.ask("open", "e", compiled("qwen2", "CAUSAL_LM").bundle) == {}
    for path, name in ((pack, ""), (pack, "again"), (several, "legal")):
        assert probe.ask("load", "e", path, name) == {}
        engine.load_prompt(path, name or None)
    only = compiled("qwen2", "CAUSAL_LM").bundle
    assert "has no prompt 'new'; it has 'default'." in str(
        refused_alike(probe, engine, only, "new")
    )
    assert [item["name"] for item in probe.ask("prompts", "e")] == list(engine.prompts)
    same_logits(probe, engine, ROWS[:4], ["other", "again", "legal", "default"])


def refused_alike(probe: Probe, engine: Any, path: Path, name: str, same_words: bool = True) -> Any:
    """What both say who will not take in a prompt, for one reason."""
    theirs = probe.ask("load", "e", path, name)
    with pytest.raises(PtdeployError) as ours:
        engine.load_prompt(path, name or None)
    assert same_refusal(theirs, ours.value, same_words), (theirs, ours.value)
    return theirs


def test_what_is_neither_a_pack_nor_a_bundle_is_refused(siblings, both, probe, tmp_path):
    engine = both(siblings("bert", "SEQ_CLS"))
    (tmp_path / "file.prompt").touch()
    for name in ("nowhere.prompt", "file.prompt"):
        found = refused_alike(probe, engine, tmp_path / name, "")
        assert f"{tmp_path / name}: no such pack or bundle." in str(found)


def test_names_that_none_can_have_or_one_has_are_refused(siblings, both, probe, two):
    one_of = siblings("bert", "SEQ_CLS")
    engine = both(one_of)
    long = one_of.of("long").bundle
    for name in ("long", "", "../x", "a b", "x" * 65, ".x", "é"):
        refused_alike(probe, engine, long, name)
    several = two("bert", "SEQ_CLS")
    assert "has no prompt 'lagel'; it has 'default', 'legal'" in str(
        refused_alike(probe, engine, several, "lagel")
    )
    ptdeploy.prompt_default(several, "legal")
    edit(several, lambda manifest: manifest.update(default_prompt=None))
    assert "has no default prompt" in probe.ask("load", "e", several, "")["problem"]
    assert [item["name"] for item in probe.ask("prompts", "e")] == list(engine.prompts)


@pytest.mark.parametrize("other", [("distilbert", "SEQ_CLS"), ("bert", "TOKEN_CLS")])
def test_a_prompt_of_another_engine_is_refused(compiled, siblings, both, probe, other):
    engine = both(siblings("bert", "SEQ_CLS"))
    refused = refused_alike(probe, engine, compiled(*other).bundle, "")
    assert "its engine is another one than that of" in refused["problem"]


def test_a_prompt_that_leaves_no_room_or_lies_is_refused(siblings, both, probe, tmp_path):
    one_of = siblings("bert", "SEQ_CLS")
    engine = both(one_of)
    bundle = renamed(one_of.of("long").bundle, tmp_path / "b", "other")
    info = engine.prompts["long"]

    def say(field: str, value: Any) -> Callable[[dict[str, Any]], object]:
        return lambda manifest: manifest["prompts"]["other"].__setitem__(field, value)

    for field, value, problem in (
        ("num_virtual_tokens", 64, "leaves no room in limits.max_context"),
        ("num_virtual_tokens", 8, "has shape"),
        ("num_virtual_tokens", 2**31, "must be from 1 to"),
        ("labels", [], "labels are missing"),
        ("labels", ["a", "b", "c"], "has shape"),
        ("token_dim", 16, "it must be '(virtual, 16)'"),
        ("prefix_kv", [2, 2, 4, 9, 8], "prefix_kv is not what the graph takes"),
        ("sha256", "0" * 64, "are not those of prompt.sha256"),
        ("sha256", "0", "is no SHA-256"),
    ):
        edit(bundle, say(field, value))
        assert problem in refused_alike(probe, engine, bundle, "other")["problem"]
        edit(bundle, say(field, getattr(info, field)))
    flip(bundle / PROMPT, 0.9)
    assert "was changed" in refused_alike(probe, engine, bundle, "other")["problem"]
    assert "other" not in [item["name"] for item in probe.ask("prompts", "e")]


@pytest.mark.parametrize("layers", [1, 4])
def test_a_prefix_of_other_layers_is_refused(compiled, probe, tmp_path, layers):
    bundle = compiled("bert", "SEQ_CLS", kind="prefix tuning").bundle
    engine = opened(probe, bundle)
    with_layers(bundle, tmp_path / "lie", "default", layers)
    rename_prompt(tmp_path / "lie", "a")
    problem = refused_alike(probe, engine, tmp_path / "lie", "a")["problem"]
    assert f"is of {layers} layers, and those beside it are of 2" in problem


def test_a_bundles_other_prompts_are_held_against_the_engine_too(two, probe, tmp_path):
    bundle = two("bert", "SEQ_CLS")
    edit(bundle, lambda m: m["prompts"]["legal"].update(labels=[]))
    engine = opened(probe, bundle)
    refused = probe.ask("logits", "e", text_of(ROWS), "", one("legal"))
    with pytest.raises(PtdeployError) as ours:
        engine.logits(ROWS, prompt="legal")
    assert same_refusal(refused, ours.value, True), (refused, ours.value)
    assert "prompts['legal'].labels are missing" in refused["problem"]
    same_logits(probe, engine, ROWS, ["default"] * len(ROWS))


@pytest.fixture
def pack(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed("bert", "SEQ_CLS").path, tmp_path / "pack"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *PACK_DAMAGE,
        (lambda m: m.update(format="ptdeploy-bundle"), "reads 'ptdeploy-bundle' version 4"),
        (lambda m: m.update(format=7), "not a valid manifest"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "was changed since"),
        (lambda m: m["prompt"].update(num_virtual_tokens=64), "leaves no room"),
        (lambda m: m["prompt"].update(labels=["a"]), "has shape"),
    ],
)
def test_a_pack_that_lies_is_refused_as_in_python(compiled, probe, pack, change: Change, reason):
    bundle = compiled("bert", "SEQ_CLS").bundle
    engine = opened(probe, bundle)
    edit(pack, change)
    # What a JSON parser says is its own.
    refused = refused_alike(probe, engine, pack, "new", "not a valid manifest" not in reason)
    assert reason in refused["problem"]
    assert [item["name"] for item in probe.ask("prompts", "e")] == ["default"]


LOADS = """
import sys, ptdeploy
try:
    ptdeploy.load(sys.argv[1]).load_prompt(sys.argv[2], "new")
except ptdeploy.BundleError as error:
    print(error.problem)
"""


def test_a_cut_file_that_cannot_be_read_is_refused_as_in_python(compiled, built, pack):
    bundle = compiled("bert", "SEQ_CLS").bundle
    file = pack / json.loads((pack / "manifest.json").read_text())["files"][0]["path"]
    file.write_bytes(b"cut")
    file.chmod(0)
    wanted = f"{file}: cannot be read (Permission denied)."
    probe = Probe(*bound_by_modes(), str(built / "probe"))
    assert probe.ask("open", "e", bundle) == {}
    refused = probe.ask("load", "e", pack, "new")
    assert refused == {"error": "BundleError", "problem": wanted, "fix": ""}
    probe.close()
    command = [*bound_by_modes(), sys.executable, "-c", LOADS, str(bundle), str(pack)]
    assert checked(command) == f"{wanted}\n"


def test_a_folder_that_is_no_pack_and_no_bundle_is_refused_as_in_python(compiled, probe, tmp_path):
    engine = opened(probe, compiled("bert", "SEQ_CLS").bundle)
    (tmp_path / "empty").mkdir()
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "manifest.json").write_text(" " * (4 * 1024 * 1024 + 1))
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "manifest.json")
    for name in ("none", "empty", "huge", "fifo"):
        refused_alike(probe, engine, tmp_path / name, "new")


def test_whatever_byte_of_a_packs_manifest_changed_both_say_the_same(compiled, probe, pack):
    engine = opened(probe, compiled("bert", "SEQ_CLS").bundle)
    file = pack / "manifest.json"
    whole, random, refused = file.read_bytes(), np.random.default_rng(3), 0
    for _ in range(80):
        content = bytearray(whole)
        content[random.integers(len(content))] = random.integers(256)
        file.write_bytes(content)
        theirs = probe.ask("load", "e", pack, "new")
        ours: PtdeployError | None = None
        try:
            engine.load_prompt(pack, "new")
            engine.unload_prompt("new")
        except PtdeployError as error:
            ours = error
            refused += 1
        assert same_refusal(theirs, ours, False), (theirs, ours)
        probe.ask("unload", "e", "new")
    assert refused > 30


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_verify_proves_every_prompt_and_batches_that_mix_them(two, probe, architecture, task):
    bundle = two(architecture, task)
    ours = ptdeploy.verify(bundle)
    assert probe.ask("open", "v", bundle) == {}
    theirs = probe.ask("verify", "v")
    assert theirs["passed"]
    assert_same(theirs, ours)
    first, second = theirs, theirs["prompts"][0]
    assert (first["prompt"], second["prompt"]) == ("default", "legal")
    assert_same(second, ours.prompts[0])
    for report in (first, second):
        assert [
            one["name"] for one in report["cases"] if one["mixed"] and not one["without_prompt"]
        ] == [
            # Beside rows of the base model alone.
            *(["mixed prompts, left-padded"] if task == "CAUSAL_LM" else []),
            "mixed prompts, right-padded",
            "mixed prompts, left-padded",
        ]


def test_one_prompt_that_does_not_match_fails_the_bundle_by_its_name(two, probe):
    bundle = two("bert", "SEQ_CLS")
    shift_reference(bundle, "legal")
    ours = ptdeploy.verify(bundle)
    assert probe.ask("open", "v", bundle) == {}
    theirs = probe.ask("verify", "v")
    assert not theirs["passed"]
    assert_same(theirs, ours)
    assert all(one.startswith("prompt 'legal': ") for one in theirs["failures"])
    # A prompt's file that changed since the bundle was opened is none that it was proven with.
    flip(bundle / "prompts/legal/reference.safetensors", 0.5)
    assert "its SHA-256 is not the manifest's" in probe.ask("verify", "v")["problem"]


def test_verify_proves_the_bundles_own_prompts_whatever_was_loaded(two, packed, probe):
    bundle = two("bert", "SEQ_CLS")
    assert probe.ask("open", "v", bundle) == {}
    assert probe.ask("unload", "v", "legal") == {}
    assert probe.ask("load", "v", bundle, "default") != {}
    assert probe.ask("load", "v", packed("bert", "SEQ_CLS").path, "guest") == {}
    theirs = probe.ask("verify", "v")
    assert theirs["passed"]
    assert [one["prompt"] for one in (theirs, *theirs["prompts"])] == ["default", "legal"]


def test_a_base_model_without_a_prompt_is_proven_beside_those_that_were_added(
    packed, probe, tmp_path
):
    pack = packed("qwen2", "CAUSAL_LM")
    base = json.loads((pack.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    ptdeploy.compile(base=base, task="CAUSAL_LM", target="ort", output=tmp_path / "base")
    ptdeploy.prompt_add(tmp_path / "base", pack.path, name="legal")
    engine = opened(probe, tmp_path / "base")
    same_logits(probe, engine, ROWS, [None, "legal", DEFAULT, "legal", None, DEFAULT, "legal"])
    theirs, ours = probe.ask("verify", "e"), ptdeploy.verify(tmp_path / "base")
    assert theirs["passed"]
    assert_same(theirs, ours)
    assert [one["prompt"] for one in (theirs, *theirs["prompts"])] == ["", "legal"]


def test_a_bundle_with_many_prompts_opens_under_a_low_limit_of_open_files(
    compiled, packed, built, tmp_path
):
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    ptdeploy.prompt_add(bundle, packed("bert", "SEQ_CLS").path, name="p0")
    folder = bundle / "prompts"
    names = [f"p{i}" for i in range(1, 120)]
    for name in names:
        shutil.copytree(folder / "p0", folder / name, copy_function=os.link)

    def more(manifest: dict[str, Any]) -> None:
        files = [one for one in manifest["files"] if one["of"] == "p0"]
        for name in names:
            manifest["prompts"][name] = manifest["prompts"]["p0"]
            for one in files:
                path = one["path"].replace("/p0/", f"/{name}/")
                manifest["files"].append({**one, "path": path, "of": name})

    edit(bundle, more)
    probe = Probe("sh", "-c", f"ulimit -n 64; exec {built / 'probe'}")
    assert probe.ask("open", "e", bundle, "", "", "", 5) == {}
    assert len(probe.ask("prompts", "e")) == 121
    rows, each_one = text_of([[5, 6, 7]] * 60), each([f"p{i}" for i in range(60, 120)])
    found = probe.ask("logits", "e", rows, "", each_one)
    assert len({str(row) for row in found}) == 1
    assert found[:1] == probe.ask("logits", "e", "5,6,7", "", one("p0"))
    probe.close()


def test_a_heads_numbers_that_are_not_finite_are_refused(siblings, both, probe, tmp_path):
    one_of = siblings("bert", "SEQ_CLS")
    engine = both(one_of)
    bundle = renamed(one_of.of("long").bundle, tmp_path / "b", "other")
    tensors = load_file(bundle / PROMPT)
    (name, *_) = (key for key in tensors if key not in ("virtual_tokens", "prefix_kv"))
    tensors[name].flat[1] = np.inf
    replace(bundle, PROMPT, save(tensors))
    assert "is not finite" in refused_alike(probe, engine, bundle, "other")["problem"]


def test_threads_that_first_ask_for_a_prompt_together_share_one_stack(tmp_path):
    """Its memory is the engine's for as long as it is open, once."""
    folder = REPOSITORY / "ptdeploy" / "cpp"
    names = ("element_type", "errors", "host_backend", "manifest", "printable", "prompts")
    sources = (folder / "src" / f"{name}.cc" for name in ("prompt_inputs", *names))
    checked(
        [
            *(tool("c++"), "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{folder / 'include'}", f"-I{folder / 'src'}", '-DPTDEPLOY_VERSION=""'),
            # What reads a prompt's file is not called, nor what it needs linked.
            *("-ffunction-sections", "-Wl,--gc-sections", "-pthread"),
            *(str(TESTS / "stacks.cc"), *map(str, sources), "-o", str(tmp_path / "stacks")),
        ]
    )
    assert checked([str(tmp_path / "stacks")]) == "1"
