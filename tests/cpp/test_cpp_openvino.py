"""Over OpenVINO the C++ library gives what the Python runtime gives, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import native
from support.calibration import calibrated
from support.damage import edit
from support.native import ROWS, bits, opened, options_text, text_of
from support.openvino import Change, behind, copied, keep_kv_in, needs_bf16
from support.refusals import python_refusal
from support.siblings import rename_prompt

import ptdeploy
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.errors import BundleError, OutOfMemory

INT8 = {
    "target": "openvino",
    "precision": "int8",
    "quantization": QuantizationOptions(min_agreement=0.0, max_logits_error=1e9),
}
CLASSIFIERS = [kind for kind, (_, task, _) in native.KINDS.items() if task != "CAUSAL_LM"]
CLASSIFIERS.remove("int8 classifier")


@pytest.fixture(scope="module", autouse=True)
def _openvino() -> None:
    native.need_openvino()


@pytest.fixture(scope="module")
def bert(compiled, tmp_path_factory) -> Path:
    return copied(compiled("bert", "SEQ_CLS").bundle, tmp_path_factory.mktemp("openvino") / "bert")


def same_logits(probe: native.Probe, engine: Any) -> None:
    for rows in (ROWS, [ROWS[2]], [[1]], ROWS[::-1]):
        ours = [bits(array) for array in engine.logits(rows)]
        assert probe.ask("logits", "e", text_of(rows)) == ours


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_logits_equal_pythons_bit_for_bit(bundles, probe, tmp_path, kind):
    engine = opened(probe, copied(bundles(kind), tmp_path / "bundle"))
    same_logits(probe, engine)
    assert probe.ask("verify", "e")["passed"]
    mapped = probe.ask("open", "e", engine.bundle.path, "", "", "map")
    assert mapped == {}
    same_logits(probe, engine)


def test_int8_products_have_pythons_scales(compiled, probe):
    one = compiled("bert", "SEQ_CLS", INT8)
    assert json.loads((one.bundle / "engine.json").read_text())["group"] > 0
    same_logits(probe, opened(probe, one.bundle))


def test_activations_at_fixed_scales_equal_pythons(shared, compiled, probe):
    how = {"tokenizer": "characters", "jitter": True}
    one = compiled("bert", "SEQ_CLS", calibrated(shared, "openvino"), **how)
    same_logits(probe, opened(probe, one.bundle))
    assert probe.ask("verify", "e")["passed"]


def test_segments_and_batches_equal_pythons(bert, probe):
    engine = opened(probe, bert)
    segments = [[number % 2 for number in range(len(row))] for row in ROWS]
    theirs = probe.ask("logits", "e", text_of(ROWS), text_of(segments))
    assert theirs == [bits(array) for array in engine.logits(ROWS, token_type_ids=segments)]
    for one, wanted in zip(
        probe.ask("classify", "e", text_of(ROWS)), engine.classify(ROWS), strict=True
    ):
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-15)


@pytest.mark.parametrize(("threads", "tied"), [(1, "0"), (1, "1"), (2, "0"), (2, "1")])
def test_several_threads_share_an_engine(bert, built, monkeypatch, threads, tied):
    if tied == "1" and threads > len(os.sched_getaffinity(0)):
        pytest.skip("a core for each thread")
    engine = ptdeploy.load(bert)
    monkeypatch.setenv("PTDEPLOY_PIN", tied)
    rows = ROWS * 15
    asked = "".join(f"{number} {text_of([row])}\n" for number, row in enumerate(rows))
    done = subprocess.run(
        [built / "ptdeploy-library" / "examples" / "server", bert, "4", str(threads)],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [engine.classify([row])[0] for row in rows]
    wanted = {f"{n}\t{one.label} {one.probability:.3f}" for n, one in enumerate(found)}
    assert set(done.stdout.splitlines()) == wanted


def test_engines_that_are_gone_leave_nothing_that_ends_the_process(bert, built):
    """A signal would, on a CPU with AMX; a process forked then would wait for their threads."""
    assert subprocess.run([built / "gone", bert], check=False, timeout=240).returncode == 0


# What is refused is refused in Python's words.


def refused_alike(probe: native.Probe, bundle: Path, device: str | None = None) -> str:
    """Both refuse it, in the same words: which ones."""
    ours = python_refusal(bundle, device)
    assert ours is not None
    kind = BundleError if isinstance(ours, BundleError) else type(ours)
    assert probe.ask("open", "e", bundle, "", device or "") == {
        "error": kind.__name__,
        "problem": ours.problem,
        "fix": ours.fix,
    }
    return ours.problem


@pytest.mark.parametrize("device", ["gpu", "npu", "cuda"])
def test_a_device_that_is_not_there(bert, probe, device):
    assert device in refused_alike(probe, bert, device).lower()


@pytest.mark.parametrize(("precision", "words"), [("fp8", "no precision 'fp8'"), ("bf16", "bf")])
def test_a_precision_that_is_not_there(compiled, probe, tmp_path, precision, words):
    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "b", precision=precision)
    if probe.ask("open", "e", bundle) == {}:
        assert precision == "bf16"
        same_logits(probe, ptdeploy.load(bundle))
    else:
        assert words in refused_alike(probe, bundle)


def unknown_operator(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Tanh")
    node.op_type, node.domain = "Hardmost", "com.microsoft"


def fixed_rows(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.external_data[0].value = "elsewhere.data"


def turned_weights(model: onnx.ModelProto) -> None:
    taken = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    tensor = next(t for t in model.graph.initializer if t.name in taken and len({*t.dims}) == 2)
    tensor.dims[:] = reversed(tensor.dims)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unknown_operator, "it has no operators com.microsoft.Hardmost"),
        (fixed_rows, "inputs[0] is 'input_ids': 'int64' '(2, ?)'"),
        (weights_elsewhere, "'elsewhere.data', which the manifest"),
        (turned_weights, "OpenVINO cannot load it ("),
    ],
)
def test_a_graph_that_does_not_fit(compiled, probe, tmp_path, change: Change, words):
    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "changed", change)
    shutil.copy(bundle / "model.onnx.data", bundle / "elsewhere.data")
    assert words in refused_alike(probe, bundle)


@pytest.mark.parametrize(
    "text",
    [
        '{"kv_precision":"f64"}',
        '{"group":-1}',
        '{"group":65537}',
        '{"group":1.5}',
        '{"group":1,"more":2}',
        '{"kv_precision":8}',
        "[]",
        " " * 65537,
    ],
)
def test_an_engine_json_that_is_none(compiled, probe, tmp_path, text):
    shutil.copytree(compiled("bert", "SEQ_CLS", INT8).bundle, tmp_path / "b")
    (tmp_path / "b" / "engine.json").write_text(text)
    bundle = copied(tmp_path / "b", tmp_path / "hashed")
    assert "engine.json: does not describe an engine" in refused_alike(probe, bundle)


def test_ids_outside_the_vocabulary_never_reach_it(bert, probe):
    assert probe.ask("open", "e", bert) == {}
    answer = probe.ask("logits", "e", "5,101")
    assert answer["error"] == "InputError"


# Models that write, over the paged cache.

WRITERS = ["fused", "fused, learned positions", "fused, sliding window", "fused, not frozen"]
FREE = {"max_new_tokens": 40, "eos_token_ids": ()}


def same_texts(probe: native.Probe, engine: Any, rows: list[list[int]], **options: Any) -> None:
    chosen = {**FREE, **options}
    ours = [one.token_ids for one in engine.generate(rows, **chosen)]
    theirs = probe.ask("generate", "e", text_of(rows), options_text(chosen))
    assert [one["token_ids"] for one in theirs] == ours


@pytest.mark.parametrize("kind", WRITERS)
def test_it_writes_what_python_writes(bundles, probe, tmp_path, kind):
    engine = opened(probe, copied(bundles(kind), tmp_path / "bundle"))
    same_logits(probe, engine)
    # Twice: the next request gets the buffer of the one before.
    for rows in (ROWS, ROWS, [ROWS[2]], ROWS[::-1]):
        same_texts(probe, engine, rows)
    same_texts(probe, engine, ROWS, repetition_penalty=1.3, min_new_tokens=3)
    assert probe.ask("verify", "e")["passed"]


@pytest.mark.parametrize("tokens", [31, 32, 33, 70])
def test_a_prompts_full_blocks_are_shared_by_rows(bundles, probe, tmp_path, tokens):
    engine = opened(probe, behind(bundles("fused"), tmp_path / "bundle", tokens))
    same_logits(probe, engine)
    same_texts(probe, engine, ROWS)
    same_texts(probe, engine, ROWS)


def test_rows_of_several_prompts_share_a_buffer(bundles, probe, tmp_path):
    engine = opened(probe, copied(bundles("fused"), tmp_path / "bundle"))
    other = rename_prompt(behind(bundles("fused"), tmp_path / "other", 70), "long")
    engine.load_prompt(other, "long")
    assert probe.ask("load", "e", other, "long") == {}
    for names in (["default", "long", None, "long"], ["long"] * 4, ["default"] * 4):
        asked = " ".join(
            "-" if name is None else "*" if name == "default" else f"+{name}" for name in names
        )
        ours = [one.token_ids for one in engine.generate(ROWS, prompt=names, **FREE)]
        theirs = probe.ask("generate", "e", text_of(ROWS), options_text(FREE), f"each {asked}")
        assert [one["token_ids"] for one in theirs] == ours


def test_long_texts_run_in_pieces_beside_short_ones(bundles, probe, tmp_path):
    engine = opened(probe, behind(bundles("fused"), tmp_path / "bundle", 33))
    rows = [[7 + n % 90 for n in range(600)], [5, 6], [9 + n % 70 for n in range(530)]]
    same_texts(probe, engine, rows, max_new_tokens=5)
    theirs = probe.ask("logits", "e", text_of(rows))
    assert theirs == [bits(array) for array in engine.logits(rows)]


@pytest.mark.parametrize("kv", ["f16", "u8"])
def test_a_cache_in_fewer_bits(bundles, probe, tmp_path, kv):
    bundle = behind(bundles("fused"), tmp_path / "bundle", 37)
    keep_kv_in(bundle, kv)
    engine = opened(probe, bundle)
    same_logits(probe, engine)
    for _ in range(2):
        same_texts(probe, engine, ROWS)


@needs_bf16
def test_products_and_cache_in_bf16(bundles, probe, tmp_path):
    bundle = behind(bundles("fused"), tmp_path / "bundle", 37)
    keep_kv_in(bundle, "bf16")
    edit(bundle, lambda manifest: manifest.update(precision="bf16"))
    engine = opened(probe, bundle)
    same_logits(probe, engine)
    for _ in range(2):
        same_texts(probe, engine, ROWS)


def test_int8_weights_write_the_same(compiled, probe):
    asked = QuantizationOptions(accuracy_level=4, min_agreement=0.0, max_perplexity_ratio=1e9)
    how = {"target": "openvino", "precision": "int8", "quantization": asked}
    engine = opened(probe, compiled("qwen2", "CAUSAL_LM", how).bundle)
    same_logits(probe, engine)
    same_texts(probe, engine, ROWS)


@pytest.mark.parametrize("tokens", [5, 40])
def test_a_session_goes_on_where_pythons_does(bundles, probe, tmp_path, tokens):
    engine = opened(probe, behind(bundles("fused"), tmp_path / "bundle", tokens))
    ours = {"s": engine.session(200)}
    probe.ask("session-open", "s", "e 200")

    def turn(name: str) -> None:
        want = ours[name].generate(9, eos_token_ids=())
        got = probe.ask("session-generate", name, "max_new_tokens=9 eos_token_ids=")
        assert got["token_ids"] == want.token_ids

    ours["s"].append([5, 6, 7])
    probe.ask("session-append", "s", "5,6,7")
    turn("s")
    ours["f"] = ours["s"].fork()
    probe.ask("session-fork", "s", "f")
    turn("s")
    ours["s"].rollback(11)
    probe.ask("session-rollback", "s", "11")
    turn("s")
    turn("f")


def test_several_threads_write_at_once(bundles, built, tmp_path):
    bundle = copied(bundles("fused"), tmp_path / "bundle")
    engine = ptdeploy.load(bundle, threads=1)
    rows = ROWS * 5
    asked = "".join(f"{number} {text_of([row])}\n" for number, row in enumerate(rows))
    done = subprocess.run(
        [built / "ptdeploy-library" / "examples" / "server", bundle, "4", "1"],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    texts = ["".join(f"{one}," for one in engine.generate([row])[0].token_ids) for row in rows]
    assert set(done.stdout.splitlines()) == {f"{n}\t{text}" for n, text in enumerate(texts)}


def test_attention_that_cannot_be_paged_is_refused(bundles, probe, tmp_path):
    assert "it has no GroupQueryAttention" in refused_alike(
        probe, copied(bundles("plain"), tmp_path / "plain")
    )

    def capped(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                node.attribute.append(onnx.helper.make_attribute("softcap", 30.0))

    refused = refused_alike(probe, copied(bundles("fused"), tmp_path / "capped", capped))
    assert "(a soft cap, a rotation, a bias or sinks are not carried over)" in refused


def test_more_than_fits_in_memory_is_refused_before_it_is_taken(bundles, probe, tmp_path):
    bundle = copied(bundles("fused"), tmp_path / "bundle")
    edit(bundle, lambda manifest: manifest["limits"].update(max_context=2**31 - 1))
    engine = opened(probe, bundle)
    answer = probe.ask("session-open", "s", "e 2147483000")
    assert answer["error"] == "OutOfMemory"
    with pytest.raises(OutOfMemory) as refused:
        engine.session(2147483000)
    # How much is left changes from one to the next.
    said, ours = answer["problem"].split(", but"), refused.value.problem.split(", but")
    assert said[0] == ours[0]
    assert said[0].startswith("The KV buffer for 1 rows of")
    assert said[0].endswith("would take 512.0 GiB")


def test_a_kv_buffer_is_a_cpus(bundles, probe, tmp_path):
    """Whatever OpenVINO finds: a bundle that was compiled for a CPU opens there alone."""
    bundle = copied(bundles("fused"), tmp_path / "bundle")
    for device in ("gpu", "npu"):
        ours, theirs = python_refusal(bundle, device), probe.ask("open", "e", bundle, "", device)
        assert ours is not None
        assert f"keeps a KV buffer on cpu only, not on {device}" in ours.problem
        assert theirs == {"error": "TargetUnavailable", "problem": ours.problem, "fix": ours.fix}
    unknown = probe.ask("open", "e", bundle, "", "cuda")
    assert "not on 'cuda'" in unknown["problem"]
