"""The C++ library gives what the Python runtime gives, and refuses what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import native, tiny
from support.damage import DAMAGE, edit, first_file, fix_slots, replace
from support.native import CAUSAL, KINDS, ROWS, bits, options_text, text_of
from support.refusals import python_refusal, same_refusal
from support.values import VALUES

import ptdeploy
from ptdeploy.printable import printable, printable_lines


@pytest.fixture(scope="module")
def probe(built) -> Iterator[native.Probe]:
    running = native.Probe(str(built / "probe"))
    yield running
    running.close()


def opened(probe: native.Probe, bundle: Path) -> ptdeploy.runtime.Engine:
    """Open a bundle as `e` in the probe, and in Python."""
    assert probe.ask("open", "e", bundle) == {}
    return ptdeploy.load(bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_pythons_bit_for_bit(bundles, probe, kind):
    engine = opened(probe, bundles(kind))
    for rows in (ROWS, [ROWS[2]], [[1]], ROWS[::-1]):
        theirs = probe.ask("logits", "e", text_of(rows))
        assert theirs == [bits(array) for array in engine.logits(rows)]


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
    edit(bundle, lambda m: m.update(head="sigmoid"))
    engine = opened(probe, bundle)
    for one, wanted in zip(
        probe.ask("classify", "e", text_of(ROWS)), engine.classify(ROWS), strict=True
    ):
        assert (one["label"], one["index"]) == (wanted.label, wanted.index)
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-15)
        assert sum(one["probabilities"]) != pytest.approx(1)


def test_a_regression_gives_its_logits_and_no_classes(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m.update(head="regression"))
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
        ([[5]], {"top_p": 1.5}),
        ([[5]], {"min_p": 2.0}),
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
    numbers = re.compile(r"(?<=\d)\.0\b")  # Python writes 0.0 where C++ writes 0
    assert theirs["problem"] == numbers.sub("", refusal.value.problem)


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


def narrowed(source: Path, folder: Path, axes: dict[str, tuple[int, int]]) -> Path:
    """A copy of a bundle whose graph runs with one size of an axis, of inputs by their names.

    Nothing says so: ONNX Runtime fails when it runs with another size.
    """
    import onnx
    from onnx import helper

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    constants: dict[str, Any] = {"none": [0]}
    nodes = []
    for name, (axis, size) in axes.items():
        constants |= {f"{name}.axis": axis, f"{name}.size": size}
        for node in model.graph.node:
            node.input[:] = [f"{name}.narrow" if one == name else one for one in node.input]
        # 0 where the axis has that size, else behind the end of a table of one 0.
        nodes += [
            helper.make_node("Shape", [name], [f"{name}.shape"]),
            helper.make_node("Gather", [f"{name}.shape", f"{name}.axis"], [f"{name}.found"]),
            helper.make_node("Sub", [f"{name}.found", f"{name}.size"], [f"{name}.off"]),
            helper.make_node("Mul", [f"{name}.off", f"{name}.off"], [f"{name}.place"]),
            helper.make_node("Gather", ["none", f"{name}.place"], [f"{name}.zero"]),
            helper.make_node("Add", [name, f"{name}.zero"], [f"{name}.narrow"]),
        ]
    for name, value in constants.items():
        array = np.array(value, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    replace(folder, "model.onnx", model.SerializeToString())
    return folder


def with_slots(source: Path, folder: Path, slots: int) -> Path:
    """A copy of a bundle whose KV buffer has that many slots and no other number."""
    import onnx

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "slots":
                dim.dim_value = slots
    replace(folder, "model.onnx", model.SerializeToString())
    edit(folder, lambda m: fix_slots(m, slots))
    return folder


def in_half(source: Path, folder: Path, dtype: str) -> Path:
    """A copy of a bundle whose graph takes and gives keys and values in 16 bits."""
    import onnx
    from onnx import helper

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    kinds = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
    for value in (*model.graph.input[3:], *model.graph.output[1:]):
        name, given = value.name, value in model.graph.input
        for node in model.graph.node:
            names = node.input if given else node.output
            names[:] = [f"{name}.wide" if one == name else one for one in names]
        value.type.tensor_type.elem_type = kinds[dtype]
        ends = [name, f"{name}.wide"] if given else [f"{name}.wide", name]
        to = onnx.TensorProto.FLOAT if given else kinds[dtype]
        cast = helper.make_node("Cast", ends[:1], ends[1:], to=to)
        model.graph.node.insert(0 if given else len(model.graph.node), cast)
    replace(folder, "model.onnx", model.SerializeToString())

    def say(manifest: dict[str, Any]) -> None:
        for spec in (*manifest["inputs"][3:], *manifest["outputs"][1:]):
            spec["dtype"] = dtype

    edit(folder, say)
    return folder


def test_a_buffer_of_fixed_slots_has_that_many(bundles, probe, tmp_path):
    context = ptdeploy.load(bundles("fused")).manifest.limits.max_context
    bundle = with_slots(bundles("fused"), tmp_path / "bundle", context)
    engine = opened(probe, bundle)
    ours = [one.token_ids for one in engine.generate(ROWS, 9, eos_token_ids=())]
    theirs = probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=9 eos_token_ids=")
    assert [one["token_ids"] for one in theirs] == ours
    assert probe.ask("logits", "e", text_of(ROWS)) == [bits(one) for one in engine.logits(ROWS)]
    probe.ask("session-open", "s", "e 20")
    probe.ask("session-append", "s", "5,6,7")
    assert "error" not in probe.ask("session-generate", "s", "max_new_tokens=9")


def test_a_prefill_runs_as_many_tokens_as_the_engine_takes(bundles, probe, tmp_path):
    bundle = narrowed(bundles("fused"), tmp_path / "bundle", {"input_ids": (1, 1)})
    edit(bundle, lambda m: m["limits"].update(max_prefill=1))
    engine = opened(probe, bundle)
    assert probe.ask("logits", "e", text_of(ROWS)) == [bits(one) for one in engine.logits(ROWS)]


def test_logits_of_every_token_come_in_small_pieces_where_sizes_are_fixed(
    bundles, probe, tmp_path, monkeypatch
):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(max_prefill=512))
    engine = opened(probe, bundle)
    kept = []
    bind = engine._session.bind

    def recorded(inputs, outputs):
        kept.append(inputs["logits_positions"].size)
        return bind(inputs, outputs)

    monkeypatch.setattr(engine._session, "bind", recorded)
    rows = [list(range(100)) * 2]
    assert probe.ask("logits", "e", text_of(rows)) == [bits(one) for one in engine.logits(rows)]
    assert sorted(kept) == [1, 7, 64, 64, 64]


@pytest.mark.parametrize(
    ("kind", "method"), [("encoder classifier", "classify"), ("token classifier", "tag")]
)
def test_a_classifier_runs_as_many_rows_as_the_engine_takes(bundles, probe, tmp_path, kind, method):
    whole = opened(probe, bundles(kind))
    bundle = narrowed(
        bundles(kind),
        tmp_path / "bundle",
        {"input_ids": (0, 2), "attention_mask": (0, 2), "token_type_ids": (0, 2)},
    )
    edit(bundle, lambda m: m["limits"].update(max_batch=2))
    assert probe.ask("open", "e", bundle) == {}
    theirs = probe.ask("logits", "e", text_of(ROWS))
    pairs = [*whole.logits(ROWS[:2]), *whole.logits(ROWS[2:])]
    assert theirs == [bits(one) for one in pairs]
    assert len(probe.ask(method, "e", text_of(ROWS))) == len(ROWS)


def test_a_bundle_for_another_engine_is_refused(bundles, probe, tmp_path):
    shutil.copytree(bundles("fused"), tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda m: m.update(target="trt", device="cuda"))
    answer = probe.ask("open", "e", tmp_path / "bundle")
    assert answer["error"] == "TargetUnavailable"
    assert "no backend for the target trt" in answer["problem"]
    assert "-DPTDEPLOY_TENSORRT=ON" in answer["fix"]


def test_another_device_or_an_unknown_one_is_refused(bundles, probe):
    for device in ("cuda", "abacus"):
        answer = probe.ask("open", "e", bundles("fused"), "", device)
        assert answer["error"] == "TargetUnavailable"
        assert f"not on '{device}'" in answer["problem"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keys_in_half_precision_are_refused_by_name(bundles, probe, tmp_path, dtype):
    bundle = in_half(bundles("fused"), tmp_path / "bundle", dtype)
    assert ptdeploy.load(bundle).layout.dtype == dtype
    answer = probe.ask("open", "e", bundle)
    assert answer["error"] == "TargetUnavailable"
    assert f"in float32, not in {dtype}" in answer["problem"]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_bundle_is_refused_as_in_python(compiled, probe, tmp_path, damage):
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled(*damage.bundle).bundle, bundle)
    damage.do(bundle)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert damage.reason in theirs["problem"].replace("\\\\", "\\")
    assert same_refusal(theirs, ours, damage.same_words), (theirs, ours)


def test_a_bundle_reached_through_links_and_odd_paths_opens(compiled, probe, tmp_path):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    shutil.copytree(source, tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx.data").rename(tmp_path / "bundle" / "moved")
    (tmp_path / "bundle" / "model.onnx.data").symlink_to("moved")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    edit(tmp_path / "bundle", lambda m: first_file(m).update(path=".//./model.onnx"))
    for path in (tmp_path / "link", f"{tmp_path}//link/./", f"{tmp_path}/bundle/../link"):
        assert probe.ask("open", "e", path) == {}
        assert python_refusal(Path(path)) is None
    assert probe.ask("read", "e", "parity") == (source / "parity.json").read_text()
    assert probe.ask("read", "e", "tokenizer") == ""


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
    words = 1 + max(map(max, ROWS))

    def fewer(manifest: dict[str, Any]) -> None:
        manifest["limits"]["vocab_size"] = words
        manifest["generation"]["eos_token_ids"] = []

    edit(bundle, fewer)
    before = ptdeploy.load(bundles(kind)).generate(ROWS, 16, eos_token_ids=())
    engine = opened(probe, bundle)
    if kind == "fused":
        assert max(max(one.token_ids) for one in before) >= words, "the test shows nothing"
    options: dict[str, Any]
    for options in ({}, {"temperature": 50.0, "seed": 7, "min_new_tokens": 3}):
        ours = engine.generate(ROWS, 16, logprobs=True, **options)
        asked = options_text({"max_new_tokens": 16, "logprobs": 1, **options})
        theirs = probe.ask("generate", "e", text_of(ROWS), asked)
        assert [one["token_ids"] for one in theirs] == [one.token_ids for one in ours]
        assert max(max(one.token_ids) for one in ours) < words
    session = engine.session(40)
    session.append(ROWS[0])
    said = session.generate(8)
    session.append(said.token_ids)
    probe.ask("session-open", "s", "e 40")
    probe.ask("session-append", "s", text_of([ROWS[0]]))
    assert probe.ask("session-generate", "s", "max_new_tokens=8")["token_ids"] == said.token_ids


JSON_ERROR = re.compile(r"malformed|truncated|codec can't|surrogate|Expected `object`, got")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@example(place=0.0078125, byte=128)
def test_any_changed_byte_of_the_manifest_is_judged_as_in_python(
    compiled, probe, tmp_path, place, byte
):
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, bundle)
    original = (compiled("gpt2", "CAUSAL_LM").bundle / "manifest.json").read_bytes()
    content = bytearray(original)
    content[int(place * len(content))] = byte
    (bundle / "manifest.json").write_bytes(content)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    same_words = ours is None or not JSON_ERROR.search(ours.problem)
    assert same_refusal(theirs, ours, same_words), (theirs, ours)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_field_is_judged_as_in_python(compiled, probe, tmp_path, data):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        shutil.copytree(source, bundle)
    manifest = json.loads((source / "manifest.json").read_text())
    place: Any = manifest
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.booleans()):
            place = inner
            continue
        place[key] = data.draw(VALUES)
        break
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert same_refusal(theirs, ours, True), (theirs, ours)


def test_sha256_of_every_length_around_a_block(built, tmp_path):
    """With the processor's instructions and without."""
    for size in (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 1000, 3 << 20):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "file").write_bytes(content)
        got = native.checked([str(built / "hash"), str(tmp_path / "file")]).split()
        assert set(got) == {hashlib.sha256(content).hexdigest()}
        assert len(got) == 3
