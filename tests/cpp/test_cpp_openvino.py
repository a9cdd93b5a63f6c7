"""Over OpenVINO the C++ library gives what the Python runtime gives, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import native
from support.native import ROWS, bits, opened, text_of
from support.openvino import Change, copied
from support.refusals import python_refusal

import ptdeploy
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.errors import BundleError

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


def test_segments_and_batches_equal_pythons(bert, probe):
    engine = opened(probe, bert)
    segments = [[number % 2 for number in range(len(row))] for row in ROWS]
    theirs = probe.ask("logits", "e", text_of(ROWS), text_of(segments))
    assert theirs == [bits(array) for array in engine.logits(ROWS, token_type_ids=segments)]
    for one, wanted in zip(
        probe.ask("classify", "e", text_of(ROWS)), engine.classify(ROWS), strict=True
    ):
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-15)


@pytest.mark.parametrize("threads", [1, 2])
def test_several_threads_share_an_engine(bert, built, threads):
    engine = ptdeploy.load(bert)
    rows = ROWS * 15
    asked = "".join(f"{number} {text_of([row])}\n" for number, row in enumerate(rows))
    done = subprocess.run(
        [built / "ptdeploy-library" / "examples" / "server", bert, "4", str(threads)],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    labels = [engine.classify([row])[0].label for row in rows]
    wanted = {f"{number}\t{label}" for number, label in enumerate(labels)}
    assert set(done.stdout.splitlines()) == wanted


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
        (fixed_rows, "inputs[0] is 'input_ids': 'int64' '(2, )'"),
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
