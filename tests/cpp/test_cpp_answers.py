"""The C++ library gives what the Python runtime gives, bit for bit, and refuses what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from support import native, tiny
from support.calibration import calibrated
from support.damage import edit, replace
from support.native import CAUSAL, KINDS, ROWS, bits, opened, options_text, text_of

import ptdeploy
from ptdeploy.printable import printable, printable_lines


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_pythons_bit_for_bit(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    for rows in (ROWS, [ROWS[2]], [[1]], ROWS[::-1]):
        theirs = probe.ask("logits", "e", text_of(rows))
        assert theirs == [bits(array) for array in engine.logits(rows)]


def renamed(source: Path, folder: Path) -> Path:
    """A copy of a bundle whose tensors have other names, by their places alone."""
    import onnx

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    graph = manifest["graphs"]["model"]
    specs = [*graph["inputs"], *graph["outputs"]]
    names = {spec["name"]: f"tensor {place}" for place, spec in enumerate(specs)}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for spec in specs:
        spec["name"] = names[spec["name"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    replace(folder, "model.onnx", model.SerializeToString())
    prompt = "prompts/default/prompt.safetensors"
    # The trained head's tensors have the names of their inputs.
    tensors = {
        names[name] if name.startswith("head.") else name: one
        for name, one in load_file(folder / prompt).items()
    }
    replace(folder, prompt, save(tensors))
    return folder


@pytest.mark.parametrize(
    "kind", ["encoder classifier", "token classifier", "decoder classifier", "fused", "plain"]
)
def test_tensors_are_known_by_their_roles_whatever_their_names(bundles, probe, tmp_path, kind):
    opened(probe, bundles(kind))
    before = probe.ask("logits", "e", text_of(ROWS))
    engine = opened(probe, renamed(bundles(kind), tmp_path / "bundle"))
    assert probe.ask("logits", "e", text_of(ROWS)) == before
    assert before == [bits(array) for array in engine.logits(ROWS)]
    if kind in CAUSAL:
        ours = [one.token_ids for one in engine.generate(ROWS, 9, eos_token_ids=())]
        theirs = probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=9 eos_token_ids=")
        assert [one["token_ids"] for one in theirs] == ours


SEGMENTS = [[0, 0, 1], [1], [0, 1, 0, 1, 1, 0, 1, 1], [0, 1]]


@pytest.mark.parametrize("kind", ["encoder classifier", "token classifier", "int8 classifier"])
def test_segments_of_rows_equal_pythons_bit_for_bit(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    ours = engine.logits(ROWS, token_type_ids=SEGMENTS)
    theirs = probe.ask("logits", "e", text_of(ROWS), text_of(SEGMENTS))
    assert theirs == [bits(array) for array in ours]
    assert theirs != probe.ask("logits", "e", text_of(ROWS))
    if kind == "token classifier":
        tags = probe.ask("tag", "e", text_of(ROWS), text_of(SEGMENTS))
        for got, row in zip(tags, engine.tag(ROWS, token_type_ids=SEGMENTS), strict=True):
            assert [one["label"] for one in got] == [one.label for one in row]
    else:
        classes = probe.ask("classify", "e", text_of(ROWS), text_of(SEGMENTS))
        for one, wanted in zip(
            classes, engine.classify(ROWS, token_type_ids=SEGMENTS), strict=True
        ):
            assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-15)


def test_activations_at_fixed_scales_equal_pythons_bit_for_bit(shared, compiled, probe):
    how = {"tokenizer": "characters", "jitter": True}
    one = compiled("bert", "SEQ_CLS", calibrated(shared, "ort"), **how)
    engine = opened(probe, one.bundle)
    assert engine.manifest.quantization.calibrated > 0
    theirs = probe.ask("logits", "e", text_of(ROWS))
    assert theirs == [bits(array) for array in engine.logits(ROWS)]
    assert probe.ask("verify", "e")["passed"]


@pytest.mark.parametrize(
    ("kind", "segments"),
    [
        ("encoder classifier", [[0, 0, 2], *SEGMENTS[1:]]),
        ("encoder classifier", [[0, 0, -1], *SEGMENTS[1:]]),
        ("encoder classifier", [[0, 0], *SEGMENTS[1:]]),
        ("encoder classifier", SEGMENTS[:2]),
        ("decoder classifier", SEGMENTS),
        ("encoder classifier without segments", SEGMENTS),
        ("fused", SEGMENTS),
    ],
)
def test_segments_that_do_not_fit_are_refused_as_in_python(bundles, probe, kind, segments):
    engine = opened(probe, bundles(kind))
    with pytest.raises(ptdeploy.InputError) as refused:
        engine.logits(ROWS, token_type_ids=segments)
    assert probe.ask("logits", "e", text_of(ROWS), text_of(segments)) == {
        "error": "InputError",
        "problem": refused.value.problem,
        "fix": refused.value.fix,
    }


def test_each_class_of_a_sigmoid_has_pythons_probability(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(head="sigmoid"))
    engine = opened(probe, bundle)
    for one, wanted in zip(
        probe.ask("classify", "e", text_of(ROWS)), engine.classify(ROWS), strict=True
    ):
        assert (one["label"], one["index"]) == (wanted.label, wanted.index)
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-15)
        assert sum(one["probabilities"]) != pytest.approx(1)


def test_a_regression_gives_its_logits_and_no_classes(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(head="regression"))
    engine = opened(probe, bundle)
    values = [list(one.values) for one in engine.regress(ROWS)]
    theirs = probe.ask("logits", "e", text_of(ROWS))
    assert theirs == [bits(np.asarray(one)) for one in values]
    assert "its head is a regression" in probe.ask("classify", "e", text_of(ROWS))["problem"]


@pytest.mark.parametrize("kind", CAUSAL)
def test_greedy_tokens_equal_pythons_over_64_steps_of_unequal_rows(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    for rows in (ROWS, [ROWS[1]]):
        for options in ({"eos_token_ids": ()}, {"repetition_penalty": 1.3}, {"min_new_tokens": 9}):
            ours = engine.generate(rows, 64, logprobs=True, **options)
            asked = options_text({"max_new_tokens": 64, "logprobs": 1, **options})
            theirs = probe.ask("generate", "e", text_of(rows), asked)
            assert [one["token_ids"] for one in theirs] == [one.token_ids for one in ours]
            assert [one["stopped"] for one in theirs] == [one.stopped for one in ours]
            for one, other in zip(theirs, ours, strict=True):
                assert one["logprobs"] == pytest.approx(other.logprobs, abs=1e-5)
        assert any(len(one.token_ids) == 64 for one in ours)


@pytest.mark.parametrize("kind", ["fused", "plain", "fused, not frozen"])
def test_a_prefill_in_pieces_equals_pythons(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    rows = [[(7 * i) % tiny.VOCABULARY for i in range(600)], ROWS[0]]
    assert probe.ask("logits", "e", text_of(rows)) == [bits(one) for one in engine.logits(rows)]
    (long, short) = engine.generate(rows, 5, eos_token_ids=())
    theirs = probe.ask("generate", "e", text_of(rows), "max_new_tokens=5 eos_token_ids=")
    assert [one["token_ids"] for one in theirs] == [long.token_ids, short.token_ids]


@pytest.mark.parametrize("kind", ["encoder classifier", "decoder classifier", "int8 classifier"])
def test_classes_equal_pythons(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    rows = ROWS * 5  # more than one batch
    for ours, theirs in zip(
        engine.classify(rows), probe.ask("classify", "e", text_of(rows)), strict=True
    ):
        assert (theirs["label"], theirs["index"]) == (ours.label, ours.index)
        # Of equal logits; the two exp() may differ in the last bits of a double.
        assert theirs["probabilities"] == pytest.approx(ours.probabilities, rel=1e-14)


def test_token_labels_equal_pythons(bundles, probe):
    engine = opened(probe, bundles("token classifier"))
    for ours, theirs in zip(engine.tag(ROWS), probe.ask("tag", "e", text_of(ROWS)), strict=True):
        assert [one["token_id"] for one in theirs] == [one.token_id for one in ours]
        assert [one["label"] for one in theirs] == [one.label for one in ours]
        for one, other in zip(theirs, ours, strict=True):
            assert one["probability"] == pytest.approx(other.probability, rel=1e-14)


@pytest.mark.parametrize("kind", ["fused", "plain", "fused, not frozen"])
def test_a_session_goes_on_where_pythons_does(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    ours = engine.session(200)
    probe.ask("session-open", "s", "e 200")
    free = {"eos_token_ids": ()}

    def turn(name: str, conversation: Any) -> None:
        want = conversation.generate(9, **free)
        got = probe.ask(
            "session-generate", name, options_text({"max_new_tokens": 9, "eos_token_ids": ()})
        )
        assert got["token_ids"] == want.token_ids
        assert probe.ask("session-ids", name) == conversation.token_ids

    ours.append([5, 6, 7])
    probe.ask("session-append", "s", "5,6,7")
    turn("s", ours)
    fork = ours.fork()
    probe.ask("session-fork", "s", "f")
    ours.append([8])
    probe.ask("session-append", "s", "8")
    turn("s", ours)
    ours.rollback(11)
    probe.ask("session-rollback", "s", "11")
    turn("s", ours)
    turn("f", fork)
    # And the whole equals the same tokens in one go.
    (alone,) = engine.generate([ours.token_ids[:-9]], 9, **free)
    assert alone.token_ids == ours.token_ids[-9:]


def test_rows_end_when_the_caller_says_so_or_all_when_cancelled(bundles, probe):
    opened(probe, bundles("fused"))
    free = "max_new_tokens=20 eos_token_ids="
    whole = [one["token_ids"] for one in probe.ask("generate", "e", text_of(ROWS), free)]
    some = probe.ask("generate", "e", text_of(ROWS), f"{free} stop_after=3")
    assert [one["token_ids"] for one in some] == [row[:3] for row in whole]
    assert {one["stopped"] for one in some} == {"caller"}
    some = probe.ask("generate", "e", text_of(ROWS), f"{free} cancel_after=4")
    assert [one["token_ids"] for one in some] == [row[:4] for row in whole]
    assert {one["stopped"] for one in some} == {"cancelled"}


def test_sampling_is_repeatable_row_by_row_and_follows_the_distribution(bundles, probe):
    from ptdeploy.runtime.sampling import distribution

    engine = opened(probe, bundles("fused"))
    asked = "max_new_tokens=12 eos_token_ids= temperature=0.9 top_k=20 top_p=0.95"
    batch = probe.ask("generate", "e", text_of(ROWS), f"{asked} seed=3")
    assert batch == probe.ask("generate", "e", text_of(ROWS), f"{asked} seed=3")
    for i, row in enumerate(ROWS):
        assert probe.ask("generate", "e", text_of([row]), f"{asked} seed={3 + i}") == [batch[i]]
    # 2000 first tokens of one row, each with its own seed.
    drawn = []
    for seed in range(0, 2000, 100):
        many = probe.ask(
            "generate", "e", text_of([ROWS[0]] * 100), f"{asked} seed={seed} max_new_tokens=1"
        )
        drawn += [one["token_ids"][0] for one in many]
    options = engine.options(
        1, {"eos_token_ids": (), "temperature": 0.9, "top_k": 20, "top_p": 0.95}
    )
    tokens, probabilities = distribution(engine.logits([ROWS[0]])[0][-1], options)
    assert set(drawn) <= set(tokens.tolist())
    counts = np.array([drawn.count(token) for token in tokens])
    spread = np.sqrt(2000 * probabilities * (1 - probabilities))
    assert (np.abs(counts - 2000 * probabilities) <= 4.5 * spread + 1).all()


def test_min_p_and_equal_scores_cut_as_in_python(bundles, probe):
    engine = opened(probe, bundles("fused"))
    for options in ({"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0}):
        (ours,) = engine.generate([ROWS[0]], 16, seed=1, eos_token_ids=(), **options)
        asked = options_text({"max_new_tokens": 16, "seed": 1, "eos_token_ids": (), **options})
        (theirs,) = probe.ask("generate", "e", text_of([ROWS[0]]), asked)
        assert theirs["token_ids"] == ours.token_ids, options


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([[5, 101]], {}),
        ([[-1]], {}),
        ([[5], [5] * 700], {}),
        ([[5] * 600], {"max_new_tokens": 200}),
        ([[5]], {"max_new_tokens": -1}),
        ([[5]], {"temperature": -1.5}),
        ([[5]], {"top_p": 1.5}),
        ([[5]], {"top_p": 1.0000001}),
        ([[5]], {"top_p": 20.0}),
        ([[5]], {"min_p": 2.0}),
        ([[5]], {"min_p": 150.0}),
        ([[5]], {"min_p": -1e-5}),
        ([[5]], {"min_p": -0.00012345}),
        ([[5]], {"min_p": 1234567890123456.0}),
        ([[5]], {"min_p": 1e16}),
        ([[5]], {"min_p": 1.7976931348623157e308}),
        ([[5]], {"top_k": -3}),
        ([[5]], {"repetition_penalty": 0.0}),
        ([[5]], {"min_new_tokens": -2}),
        ([[5]], {"eos_token_ids": (5, 101), "min_new_tokens": 2}),
        ([[5]], {"eos_token_ids": (-1,)}),
    ],
)
def test_bad_requests_are_refused_in_pythons_words(bundles, probe, rows, options):
    engine = opened(probe, bundles("fused"))
    with pytest.raises(ptdeploy.InputError) as refusal:
        engine.generate(rows, **options)
    theirs = probe.ask("generate", "e", text_of(rows), options_text(options))
    assert theirs["error"] == "InputError"
    assert theirs["problem"] == refusal.value.problem


def test_a_programs_locale_changes_no_words(bundles, built):
    probe = native.Probe(str(built / "probe"))
    opened(probe, bundles("fused"))
    asked = ("top_p=1.5", "max_new_tokens=5 eos_token_ids=1234567")
    before = [probe.ask("generate", "e", "5", one)["problem"] for one in asked]
    assert before[0].startswith("top_p is 1.5;")
    assert probe.ask("commas") == {}
    assert [probe.ask("generate", "e", "5", one)["problem"] for one in asked] == before
    probe.close()


def test_a_method_for_another_task_is_refused(bundles, probe):
    opened(probe, bundles("fused"))
    assert "its task is CAUSAL_LM" in probe.ask("classify", "e", "5")["problem"]
    opened(probe, bundles("encoder classifier"))
    assert "its task is SEQ_CLS" in probe.ask("generate", "e", "5", "")["problem"]
    assert probe.ask("session-open", "s", "e 5")["error"] == "InputError"


def test_more_rows_than_the_bundle_allows_are_refused(bundles, probe, tmp_path):
    shutil.copytree(bundles("fused"), tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda m: m["limits"].update(max_batch=2))
    opened(probe, tmp_path / "bundle")
    answer = probe.ask("generate", "e", text_of(ROWS), "")
    assert answer["problem"] == "4 rows at once, but the bundle was compiled for 2."


@given(st.text())
@example("\x1b[2J\x9b31m\u202e\r\n\t\x00\x7f\u2028\ufffe\U0001f600\u200d caf\u00e9")
def test_printable_text_is_pythons(probe, text):
    content = text.encode("utf-8", "surrogatepass").hex()
    assert probe.ask("printable", content) == [printable(text), printable_lines(text)]


def test_bytes_that_are_no_utf8_are_printable_too(probe):
    for content, want in (
        (b"a\x9b31m", "a\\x9b31m"),
        (b"\xe2\x82", "\\xe2\\x82"),
        (b"\xc0\xaf\xff\xf8", "\\xc0\\xaf\\xff\\xf8"),
        (b"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"),
    ):
        assert probe.ask("printable", content.hex()) == [want, want]


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_no_token_past_the_vocabulary_is_chosen(bundles, probe, tmp_path, kind):
    """Logits may be wider than the embedding: what lies behind it would be looked up nowhere."""
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    rows, words = [[5, 6, 7], [9, 10, 11, 12, 13]], 17

    def fewer(manifest: dict[str, Any]) -> None:
        manifest["limits"]["vocab_size"] = words
        manifest["generation"]["eos_token_ids"] = []

    edit(bundle, fewer)
    before = ptdeploy.load(bundles(kind)).generate(rows, 16, eos_token_ids=())
    engine = opened(probe, bundle)
    assert max(max(one.token_ids) for one in before) >= words, "the test shows nothing"
    options: dict[str, Any]
    for options in ({}, {"temperature": 50.0, "seed": 7, "min_new_tokens": 3}):
        ours = engine.generate(rows, 16, logprobs=True, **options)
        asked = options_text({"max_new_tokens": 16, "logprobs": 1, **options})
        theirs = probe.ask("generate", "e", text_of(rows), asked)
        for found in ([one["token_ids"] for one in theirs], [one.token_ids for one in ours]):
            assert max(map(max, found)) < words
        if not options:  # each language draws its own numbers
            assert [one["token_ids"] for one in theirs] == [one.token_ids for one in ours]
    session = engine.session(40)
    session.append(rows[0])
    said = session.generate(8)
    session.append(said.token_ids)
    probe.ask("session-open", "s", "e 40")
    probe.ask("session-append", "s", text_of([rows[0]]))
    assert probe.ask("session-generate", "s", "max_new_tokens=8")["token_ids"] == said.token_ids


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_a_bundle_without_a_default_prompt_answers_as_the_base_model(
    bundles, probe, tmp_path, kind
):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    edit(bundle, lambda manifest: manifest.update(default_prompt=None))
    engine = opened(probe, bundle)
    theirs = probe.ask("logits", "e", text_of(ROWS))
    assert theirs == [bits(array) for array in engine.logits(ROWS)]
    assert theirs != [bits(array) for array in engine.logits(ROWS, prompt="default")]
    told = probe.ask("info", "e")
    assert (told["prompt"], told["num_virtual_tokens"]) == ("", 0)
    assert told["max_sequence"] == engine.manifest.limits.max_context
