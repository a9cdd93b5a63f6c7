"""diff says what changed from one bundle to another, and nothing where nothing did."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import damage, tiny

import ptdeploy
from ptdeploy.bundle import PromptInfo, read_bundle
from ptdeploy.cli.main import main
from ptdeploy.commands import diff, speeds
from ptdeploy.parity.quality import row_logits
from ptdeploy.parity.reference.store import load_reference


def test_a_bundle_differs_from_itself_in_nothing(compiled, capsys):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    assert main(["diff", bundle, bundle, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for part in ("versions", "settings", "parity", "files", "operators"):
        assert found[part] == []
    assert found["logits_max_abs"] == 0
    assert found["speed"] == []


def test_another_precision_shows_in_settings_graph_size_and_logits(compiled, tmp_path, capsys):
    one = compiled("bert", "SEQ_CLS")
    rounded = ptdeploy.compile(
        one.trained.adapter,
        target="ort",
        base=str(one.trained.base),
        output=tmp_path / "int8",
        precision="int8",
        quantization=ptdeploy.QuantizationOptions(min_agreement=0.0),
    )
    assert main(["diff", str(one.bundle), str(rounded.path)]) == 0
    out = capsys.readouterr().out
    assert "precision: fp32 -> int8" in out
    assert "MatMulIntegerToFloat: none -> " in out
    assert "model.onnx.data: " in out
    assert "logits: at most 0.0" in out


def test_prompts_with_other_numbers_of_labels_give_other_logits(compiled, tmp_path, capsys):
    one = compiled("bert", "SEQ_CLS")
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS", num_labels=4)
    other = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path / "other",
        name="four",
    )
    assert main(["diff", str(one.bundle), str(other.path)]) == 0
    out = capsys.readouterr().out
    assert "logits: of another kind" in out
    assert "default_prompt: default -> four" in out
    assert "prompt.labels: " in out
    assert "prompt.source.files.adapter_model.safetensors: " in out
    # One graph takes them both.
    assert "graph." not in out


def test_a_graphs_tensors_that_changed_are_shown_by_role(compiled, tmp_path):
    two = (("gpt2", "SEQ_CLS"), ("bert", "SEQ_CLS"))
    found = ptdeploy.diff(*(compiled(*one).bundle for one in two))
    changes = {one.name: (one.before, one.after) for one in found.settings}
    assert changes["graph.inputs.table"] == (None, "float32 (virtual, 32)")
    assert changes["graph.inputs.prefix"] == ("float32 (prefixes, 4, prefix, 8)", None)
    assert "graph.inputs.ids" not in changes


def test_a_reference_that_does_not_fit_its_bundle_is_refused_here_too(compiled, tmp_path, capsys):
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    damage.rewrite_reference(bundle, lambda tensors, _: tensors["rows.000.ids"].fill(5000))
    assert main(["diff", str(bundle), str(bundle)]) == 2
    assert "rows.000.ids holds a token id outside 0 to 100" in capsys.readouterr().err


def test_logits_of_other_classes_are_not_compared(compiled, tmp_path, capsys):
    two = tiny.make(tmp_path, "bert", "SEQ_CLS", num_labels=2)
    other = ptdeploy.compile(
        two.adapter, target="ort", base=str(two.base), output=tmp_path / "two.bundle"
    )
    assert main(["diff", str(compiled("bert", "SEQ_CLS").bundle), str(other.path)]) == 0
    assert "logits: of another kind" in capsys.readouterr().out


@pytest.mark.parametrize("row", [0, 3, -1])
def test_logits_that_are_not_finite_in_any_row_are_said_to_be(compiled, capsys, monkeypatch, row):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    rows = load_reference(read_bundle(bundle)).rows
    spoiled = rows[row].ids

    def not_finite(engine, asked):
        logits = row_logits(engine, asked)
        return logits * np.nan if np.array_equal(asked.ids, spoiled) else logits

    monkeypatch.setattr(diff, "row_logits", not_finite)
    assert main(["diff", bundle, bundle]) == 0
    assert "logits: not finite on the first bundle's stored rows" in capsys.readouterr().out
    assert main(["diff", bundle, bundle, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["logits_max_abs"], found["logits_finite"]) == (None, False)


def test_a_graph_check_is_not_taken_for_the_engines_parity(compiled, tmp_path, capsys):
    ran = compiled("bert", "SEQ_CLS").bundle
    pending = Path(shutil.copytree(ran, tmp_path / "pending"))

    def only_graph(manifest):
        prompt = damage.the_prompt(manifest)
        prompt.update(graph_parity=prompt["parity"], parity=None)
        manifest["files"] = [one for one in manifest["files"] if one["role"] != "parity"]

    damage.edit(pending, only_graph)
    assert main(["diff", str(ran), str(pending)]) == 0
    out = capsys.readouterr().out
    assert "  engine: passed yes, cases " in out
    assert " -> pending" in out
    assert "  graph check: none -> passed yes, cases " in out
    assert main(["verify", str(pending)]) == 0
    capsys.readouterr()
    assert main(["diff", str(ran), str(pending)]) == 0
    out = capsys.readouterr().out
    assert "pending" not in out.replace(str(pending), "")
    assert "  graph check: none -> passed yes, cases " in out


def test_other_tasks_are_not_timed_together(compiled, capsys):
    paths = [str(compiled(*one).bundle) for one in (("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"))]
    assert main(["diff", *paths]) == 0
    assert "logits: of another kind" in capsys.readouterr().out
    assert main(["diff", *paths, "--speed"]) == 2


@pytest.mark.parametrize(("context", "sizes"), [(40, (19, 16)), (16, (6, 5))])
def test_bundles_of_other_contexts_are_timed_by_what_fits_both(compiled, capsys, context, sizes):
    large = str(compiled("gpt2", "CAUSAL_LM").bundle)
    small = str(compiled("gpt2", "CAUSAL_LM", {"max_context": context}).bundle)
    for pair in ([large, small], [small, large]):
        capsys.readouterr()
        assert main(["diff", *pair, "--speed", "--rounds", "1", "--json"]) == 0
        speed = json.loads(capsys.readouterr().out)["speed"]
        tokens, new = sizes
        assert [one["request"] for one in speed] == [
            f"first token after {tokens}",
            f"{new} tokens after {tokens}",
        ]


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_limit_that_cannot_be_is_refused(compiled, limit):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    assert main(["diff", bundle, bundle, "--max-slowdown", limit]) == 2
    assert main(["diff", bundle, bundle, "--speed", "--rounds", "0"]) == 2


class Clock:
    """Advanced by requests alone, by as much as the test says that each bundle's take."""

    def __init__(self, seconds: dict[Path, float]) -> None:
        self.now, self.seconds, self.taken = 0.0, seconds, 0

    def perf_counter(self) -> float:
        return self.now

    def timing(self, requests):
        return lambda engine, *sizes: {
            name: partial(self.take, run, self.seconds[engine.bundle.path])
            for name, run in requests(engine, *sizes).items()
        }

    def take(self, run, seconds: float) -> None:
        run()
        self.now += seconds
        self.taken += 1


@pytest.mark.parametrize(("seconds", "code"), [(0.14, 0), (0.16, 1), (0.05, 0)])
def test_a_slower_bundle_fails_the_gate(compiled, tmp_path, capsys, monkeypatch, seconds, code):
    before = compiled("gpt2", "CAUSAL_LM").bundle
    after = shutil.copytree(before, tmp_path / "after")
    clock = Clock({before: 0.1, after: seconds})
    monkeypatch.setattr(speeds, "time", clock)
    monkeypatch.setattr(speeds, "_requests", clock.timing(speeds._requests))
    options = ["--max-slowdown", "1.5", "--rounds", "7"]
    assert main(["diff", str(before), str(after), *options]) == code
    out = capsys.readouterr().out
    assert ("TOO SLOW" in out) is bool(code)
    assert f"100.00 -> {1000 * seconds:.2f} ms" in out
    assert clock.taken == 2 * 2 * (1 + 7 * (8 if code else 1))


def test_what_else_the_machine_does_makes_no_bundle_too_slow(monkeypatch):
    clock, rng = Clock({}), np.random.default_rng(0)

    def request(seconds: float) -> None:
        clock.now += seconds * rng.choice([1, 2, 3, 5, 8])

    monkeypatch.setattr(speeds, "time", clock)
    for slower, is_slow in ((1.0, False), (1.6, True)):
        found = [
            speeds._speed("", partial(request, 0.1), partial(request, 0.1 * slower), timing)
            for timing in [speeds.Timing(15, 1.15)] * 20
        ]
        assert {one.too_slow for one in found} == {is_slow}
        assert max(one.rounds for one in found) <= 120
        assert min(one.rounds for one in found) == (120 if is_slow else 15)


def test_a_prompt_that_came_to_a_bundle_is_named(compiled, packed, tmp_path, capsys):
    before, after = compiled("bert", "SEQ_CLS").bundle, tmp_path / "after"
    shutil.copytree(before, after)
    ptdeploy.prompt_add(after, packed("bert", "SEQ_CLS").path, name="legal")
    assert main(["diff", str(before), str(after)]) == 0
    assert "prompts.legal: none -> 3 virtual tokens, " in capsys.readouterr().out


def _changed(before, after) -> dict[str, tuple[object, object]]:
    found = ptdeploy.diff(before, after)
    every = found.settings + found.files + found.parity
    return {one.name: (one.before, one.after) for one in every}


def test_another_file_of_the_same_size_is_a_difference(compiled, tmp_path, capsys):
    bundle = compiled("bert", "SEQ_CLS", tokenizer="characters").bundle
    before, after = (shutil.copytree(bundle, tmp_path / name) for name in ("before", "after"))
    content = json.loads((bundle / "tokenizer.json").read_bytes())
    damage.replace(before, "tokenizer.json", json.dumps(content).encode())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    damage.replace(after, "tokenizer.json", json.dumps(content).encode())
    assert list(_changed(before, after)) == ["tokenizer.json"]
    assert main(["diff", str(before), str(after)]) == 0
    size = (before / "tokenizer.json").stat().st_size
    assert size == (after / "tokenizer.json").stat().st_size
    assert f"tokenizer.json: tokenizer, {size} bytes, " in capsys.readouterr().out


def test_the_tokenizers_settings_are_compared(compiled, tmp_path):
    before = compiled("bert", "SEQ_CLS", tokenizer="characters").bundle
    after = Path(shutil.copytree(before, tmp_path / "after"))
    damage.edit(after, lambda m: m["tokenizer"].update(split_special_tokens=True))
    assert _changed(before, after) == {"tokenizer.split_special_tokens": (False, True)}


def test_every_field_of_a_prompt_that_is_no_default_is_compared(compiled, packed, tmp_path):
    before, after = (tmp_path / name for name in ("before", "after"))
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, before)
    ptdeploy.prompt_add(before, packed("bert", "SEQ_CLS").path, name="legal")
    shutil.copytree(before, after)

    def change(manifest):
        legal = manifest["prompts"]["legal"]
        legal.update(labels=["a", "b", "c"], head="sigmoid", kind="another")
        legal["source"]["adapter"] = "other"
        legal["parity"]["max_abs"] = 0.5

    damage.edit(after, change)
    found = _changed(before, after)
    names = ("labels", "head", "kind", "source.adapter", "engine.max_abs")
    assert set(found) == {f"prompts.legal.{name}" for name in names}
    assert found["prompts.legal.head"] == ("softmax", "sigmoid")
    assert found["prompts.legal.engine.max_abs"][1] == 0.5


def test_another_default_is_told_from_another_prompt(compiled, packed, tmp_path):
    before, after = (tmp_path / name for name in ("before", "after"))
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, before)
    ptdeploy.prompt_add(before, packed("bert", "SEQ_CLS").path, name="legal")
    shutil.copytree(before, after)
    ptdeploy.prompt_default(after, "legal")
    found = _changed(before, after)
    assert found["default_prompt"] == ("default", "legal")
    assert not [name for name in found if name.startswith("prompts.")]


def test_no_field_of_a_manifest_is_forgotten(compiled):
    manifest = read_bundle(compiled("bert", "SEQ_CLS").bundle).manifest
    other = msgspec.structs.replace(manifest, default_prompt=None)
    settings = diff._settings(read_bundle(compiled("bert", "SEQ_CLS").bundle), other)
    shown = set(settings) | {"versions", "files", "graphs"}
    assert set(manifest.__struct_fields__) <= shown
    prompt = {*settings["prompts"]["default"], "parity", "graph_parity"}
    assert set(PromptInfo.__struct_fields__) <= prompt


def test_what_differs_in_long_values_is_shown():
    many = tuple(f"label-{i}" for i in range(40))
    words = diff._change_words(diff.Change("labels", many, (*many[:30], "other", *many[31:])))
    before, after = words.split(" -> ")
    assert "label-30" in before
    assert "other" in after
