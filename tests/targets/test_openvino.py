"""OpenVINO runs the very graph that ONNX Runtime does, and says what it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.alone import SUPPORTED
from support.graphs import NOTHING, given_rows, graph, random, weight
from support.openvino import copied, cpu_has_bf16, needs_bf16

import ptdeploy
from ptdeploy.backends import NoKernel, get_backend
from ptdeploy.backends.openvino.open import (
    Computing,
    Opening,
    compile_graph,
    read_graph,
    unavailable,
)
from ptdeploy.backends.openvino.profile import own_times
from ptdeploy.backends.openvino.session import OpenVinoSession, shared
from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.bundle import Bundle, RequestLimits, read_bundle
from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.bundle.signature import Found, check_signature
from ptdeploy.cli.main import main
from ptdeploy.files import sha256_of
from ptdeploy.parity.report import ParityReport
from ptdeploy.runtime import open_engine
from ptdeploy.targets import BuildRequest, get_target
from ptdeploy.targets.onnx_model import run_with_inner
from ptdeploy.targets.openvino_options import OpenVinoOptions

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

CLASSIFIERS = [(architecture, task) for architecture, task in SUPPORTED if task != "CAUSAL_LM"]
ROWS = [[5, 6, 7, 8, 9], [40, 41], [60], list(range(3, 30))]


@pytest.fixture(scope="module")
def bert(compiled, tmp_path_factory) -> Path:
    """A classifier's bundle for OpenVINO."""
    bundle = compiled("bert", "SEQ_CLS").bundle
    return copied(bundle, tmp_path_factory.mktemp("openvino") / "bert")


def properties(engine: Any) -> Callable[[str], Any]:
    return engine._session.native()[0].get_property


def feed_of(engine: Any) -> dict[str, Any]:
    rows = [np.array(row) for row in ROWS]
    return engine.feed(rows, [np.zeros_like(row) for row in rows], 0).feed


# What it computes.


@pytest.mark.parametrize(("architecture", "task"), CLASSIFIERS)
def test_it_gives_what_onnx_runtime_gives(compiled, tmp_path, architecture, task):
    bundle = compiled(architecture, task).bundle
    theirs = ptdeploy.load(bundle)
    ours = ptdeploy.load(copied(bundle, tmp_path / "ours"))
    assert type(ours) is type(theirs)
    for rows in (ROWS, [ROWS[1]], ROWS[:1] * 9):
        for one, other in zip(ours.logits(rows), theirs.logits(rows), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_compilation_is_verified_with_openvino_itself(compiled, capsys):
    one = compiled("distilbert", "TOKEN_CLS", {"target": "openvino"})
    manifest = read_bundle(one.bundle).manifest
    assert (manifest.target, manifest.device, manifest.precision) == ("openvino", "cpu", "fp32")
    assert manifest.versions["openvino"] == import_openvino().__version__.partition("-")[0]
    assert manifest.prompt.parity is not None
    for file in ("model.onnx", "model.onnx.data"):
        theirs = compiled("distilbert", "TOKEN_CLS").bundle / file
        assert sha256_of(one.bundle / file) == sha256_of(theirs)
    checkpoint = [str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main(["verify", str(one.bundle), "--checkpoint", *checkpoint, "--locate"]) == 0
    shown = capsys.readouterr().out
    assert "parity holds" in shown
    assert "every module agrees" in shown


def test_a_wrong_weight_is_located_by_openvinos_own_values(compiled, tmp_path):
    one = compiled("bert", "SEQ_CLS")

    def change(model: onnx.ModelProto) -> None:
        (node,) = [n for n in model.graph.node if n.name == f"{module}/Gelu"]
        node.op_type = "Relu"
        del node.attribute[:]

    module = "bert.encoder.layer.1.intermediate.intermediate_act_fn"
    bundle = copied(one.bundle, tmp_path / "wrong", change)
    report: ParityReport = ptdeploy.verify(
        bundle, checkpoint=one.trained.adapter, base=str(one.trained.base), locate=True
    )
    assert not report.passed
    assert report.located is not None
    assert report.located.module == module


def test_inner_values_are_those_of_the_graph(bert, compiled):
    bundle = read_bundle(bert)
    feed = feed_of(ptdeploy.load(bert))
    inner = tuple(
        name
        for node in onnx.load(bert / "model.onnx", load_external_data=False).graph.node
        if node.op_type in ("MatMul", "SkipLayerNormalization", "MultiHeadAttention")
        for name in node.output[:1]
    )
    ours = get_target("openvino").run_graph(bundle, (*inner, "no value of it"), feed)
    theirs = run_with_inner(bert / "model.onnx", inner, feed)
    assert len(inner) > 10
    assert {"logits", *inner} <= ours.keys()
    assert "no value of it" not in ours
    for name in inner:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_fp32_is_asked_for_by_name(bert):
    assert properties(ptdeploy.load(bert))("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


@pytest.mark.skipif(cpu_has_bf16(), reason="this CPU computes in bfloat16")
def test_bf16_is_refused_where_the_cpu_has_none(compiled, tmp_path, capsys):
    one = compiled("bert", "SEQ_CLS")
    line = ["compile", str(one.trained.adapter), "--target", "openvino", "--precision", "bf16"]
    assert main([*line, "-o", str(tmp_path / "none")]) == 3
    assert "CPU does not compute in bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    bundle = copied(one.bundle, tmp_path / "bf16", precision="bf16")
    with pytest.raises(ptdeploy.TargetUnavailable, match="does not compute in bfloat16"):
        ptdeploy.load(bundle)


@needs_bf16
def test_bf16_holds_its_own_thresholds(compiled):
    one = compiled("bert", "SEQ_CLS", {"target": "openvino", "precision": "bf16"})
    engine = ptdeploy.load(one.bundle)
    assert properties(engine)("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert read_bundle(one.bundle).manifest.prompt.parity.max_abs > 1e-5


def test_bf16_is_what_openvino_then_computes_in(bert):
    """Also where the CPU must convert for it: what its products give is another number."""
    path = bert / "model.onnx"
    feed = feed_of(ptdeploy.load(bert))
    half = compile_graph(read_graph(path), Computing("bf16"), Opening("cpu"))
    if half.get_property("INFERENCE_PRECISION_HINT").get_type_name() != "bf16":
        pytest.skip("this CPU cannot even convert to bfloat16")
    whole = compile_graph(read_graph(path), Computing("fp32"), Opening("cpu"))
    exact, rounded = (OpenVinoSession(one).run(feed) for one in (whole, half))
    apart = np.abs(exact["logits"] - rounded["logits"]).max()
    allowed = PRECISIONS["bf16"].thresholds
    assert 1e-5 < apart < allowed.max_abs + allowed.relative * np.abs(exact["logits"]).max()


def test_what_is_no_fp32_or_was_never_tried_is_said(tmp_path):
    weights = {"w": weight("w", random(8, 8))}
    given = given_rows(8)
    model = graph(ir.node("MatMul", [given, weights["w"]]), inputs=[given], weights=weights)

    def notes(device: str, precision: str) -> str:
        limits = RequestLimits(max_context=8, vocab_size=8, max_sequence=8)
        request = BuildRequest(
            model, NOTHING, limits, device, precision, tmp_path, OpenVinoOptions()
        )
        return " ".join(get_target("openvino").build(request).notes)

    assert notes("cpu", "fp32") == ""
    assert "weights in the bundle are float32" in notes("cpu", "bf16")
    assert "bfloat16 products" in notes("cpu", "bf16")
    assert "float16 products" in notes("gpu", "fp16")
    assert "never tried on OpenVINO's gpu" in notes("gpu", "fp32")


# What it cannot.


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(bert, device):
    if unavailable(device) is None:
        pytest.skip(f"this machine has a device {device}")
    with pytest.raises(ptdeploy.TargetUnavailable, match=f"no {device.upper()} here.*: CPU"):
        ptdeploy.load(bert, device=device)


def test_a_device_of_another_target_is_refused(bert):
    with pytest.raises(ptdeploy.TargetUnavailable, match="not on 'cuda'") as refused:
        ptdeploy.load(bert, device="cuda")
    assert refused.value.problem == "The target openvino runs on cpu, gpu, npu, not on 'cuda'."
    fix = "Leave the device out, or compile for a target that runs on cuda: ort, trt."
    assert refused.value.fix == fix


def test_threads_are_a_cpus(bert):
    with pytest.raises(ptdeploy.InputError, match="threads is about a CPU"):
        compile_graph(read_graph(bert / "model.onnx"), Computing("fp32"), Opening("gpu", threads=2))


def test_a_precision_that_it_does_not_have_is_refused(compiled, tmp_path):
    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "fp8", precision="fp8")
    with pytest.raises(ptdeploy.BundleError, match="openvino has no precision 'fp8'"):
        ptdeploy.load(bundle)


def test_an_operator_that_it_does_not_have_is_named(compiled, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Tanh")
        node.op_type, node.domain = "Hardmost", "com.microsoft"

    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "unknown", change)
    with pytest.raises(NoKernel, match=r"it has no operators com\.microsoft\.Hardmost"):
        open_engine(read_bundle(bundle))


def test_a_file_that_is_no_graph_is_refused_before_openvino_sees_it(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "text")
    (tmp_path / "text" / "model.onnx").write_text("no graph at all")
    bundle = copied(tmp_path / "text", tmp_path / "hashed")
    with pytest.raises(ptdeploy.BundleError, match="is no ONNX file"):
        ptdeploy.load(bundle)


def test_weights_that_the_manifest_does_not_list_are_not_read(compiled, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        tensor.external_data[0].value = "elsewhere.data"

    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "beside", change)
    shutil.copy(bundle / "model.onnx.data", bundle / "elsewhere.data")
    with pytest.raises(ptdeploy.BundleError, match=r"'elsewhere\.data', which the manifest"):
        ptdeploy.load(bundle)


@pytest.mark.parametrize("other", ["aaa", "zzz"])
def test_a_tensor_of_several_names_goes_by_the_manifests(compiled, bert, tmp_path, other):
    """As OpenVINO has it where nothing is left between two of the graph's values."""

    def change(model: onnx.ModelProto) -> None:
        (output,) = model.graph.output
        node = next(one for one in model.graph.node if output.name in one.output)
        node.output[:] = [other if name == output.name else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Identity", [other], [output.name]))
        for node in model.graph.node:
            node.input[:] = [f"{other}_ids" if n == "input_ids" else n for n in node.input]
        given = onnx.helper.make_node("Identity", ["input_ids"], [f"{other}_ids"])
        model.graph.node.insert(0, given)

    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "several", change)
    graph = read_graph(bundle / "model.onnx")
    compiled_graph = compile_graph(graph, Computing("fp32"), Opening("cpu"))
    assert compiled_graph.outputs[0].get_names() == {other, "logits"}
    assert compiled_graph.inputs[0].get_names() == {f"{other}_ids", "input_ids"}
    ours, theirs = (ptdeploy.load(one).logits([[5, 6, 7]]) for one in (bundle, bert))
    assert np.array_equal(ours[0], theirs[0])


def test_a_graph_of_fixed_rows_is_not_one_of_any(compiled, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    bundle = copied(compiled("bert", "SEQ_CLS").bundle, tmp_path / "fixed", change)
    with pytest.raises(ptdeploy.BundleError, match=r"inputs\[0\] is 'input_ids': 'int64' '\(2, "):
        ptdeploy.load(bundle)


def test_axes_need_names_only_of_an_engine_that_keeps_them(bert):
    manifest = read_bundle(bert).manifest
    nameless = [
        Found(one.name, one.dtype, tuple("" if isinstance(n, str) else n for n in one.shape))
        for one in manifest.graph.inputs
    ]
    check_signature("engine", manifest, "inputs", nameless, names_axes=False)
    with pytest.raises(ptdeploy.BundleError, match=r"inputs\[0\]"):
        check_signature("engine", manifest, "inputs", nameless)


def test_a_run_that_fails_says_where_in_the_model(bert):
    engine = ptdeploy.load(bert)
    feed = feed_of(engine)
    feed["prompt_index"] = np.zeros(7, np.int64)
    with pytest.raises(ptdeploy.EngineFault) as raised:
        engine._session.run(feed)
    assert raised.value.problem.startswith("OpenVINO failed (")
    assert "src/" not in raised.value.problem
    assert "\n" not in raised.value.problem
    assert [one.shape for one in engine.logits(ROWS)], "the next request is answered"


# Threads, processes and memory.


def test_threads_are_as_many_as_asked(bert, monkeypatch):
    assert properties(ptdeploy.load(bert, threads=1))("INFERENCE_NUM_THREADS") == 1
    monkeypatch.setenv("PTDEPLOY_THREADS", "1")
    engine = ptdeploy.load(bert)
    assert properties(engine)("INFERENCE_NUM_THREADS") == 1
    assert properties(engine)("ENABLE_CPU_PINNING") is False
    monkeypatch.setenv("PTDEPLOY_PIN", "1")
    assert properties(ptdeploy.load(bert))("ENABLE_CPU_PINNING") is True


def test_several_threads_share_an_engine(bert):
    engine = ptdeploy.load(bert)
    requests = [ROWS, [ROWS[1]], [ROWS[3]] * 5, [[7] * 17]]
    want = [[one.tobytes() for one in engine.logits(rows)] for rows in requests]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            given = [one.tobytes() for one in engine.logits(requests[number])]
            if given != want[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(requests))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert len(engine._session._free) == len(engine._session._requests) <= len(requests)


def test_answers_are_the_callers_own(bert):
    engine = ptdeploy.load(bert)
    first = engine._session.run(feed_of(engine))["logits"]
    kept = first.copy()
    engine.logits([[60, 61]])
    assert np.array_equal(first, kept)


def test_placed_arrays_are_read_where_they_lie(bert):
    session = ptdeploy.load(bert)._session
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    placed = session.place(array)
    assert placed.read() is array
    placed.rows(slice(1, 2)).write(np.zeros((1, 4), np.float32))
    assert array[1].tolist() == [0, 0, 0, 0]
    assert shared(array).data.ctypes.data == array.ctypes.data


def test_bound_arrays_are_read_anew_at_each_step(bert):
    engine = ptdeploy.load(bert)
    feed = feed_of(engine)
    logits = np.zeros((len(ROWS), 3), np.float32)
    step = engine._session.bind(feed, {"logits": logits})
    step()
    assert np.array_equal(logits, np.stack(engine.logits(ROWS)))
    feed["input_ids"][...] = feed["input_ids"][::-1].copy()
    feed["attention_mask"][...] = feed["attention_mask"][::-1].copy()
    step()
    np.testing.assert_allclose(logits, np.stack(engine.logits(ROWS))[::-1], rtol=1e-5, atol=1e-6)


FORKS = """
import gc, os, signal, sys
import numpy as np
import ptdeploy
engine = ptdeploy.load(sys.argv[1], threads=2)
want = engine.logits([[5, 6, 7]])
native = engine._session.native()[0]
if not os.fork():
    signal.alarm(100)
    {child}
    sys.exit(0)
assert np.array_equal(engine.logits([[5, 6, 7]]), want)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    "child",
    [
        "sys.exit(0)",
        "del engine, native; gc.collect(); sys.exit(0)",
        "assert np.array_equal(engine.logits([[5, 6, 7]]), want)\n"
        "    assert engine._session.native()[0] is not native",
    ],
    ids=["ends", "drops it", "goes on"],
)
def test_a_forked_process_opens_it_again_and_ends(bert, child):
    line = [sys.executable, "-c", FORKS.format(child=child), str(bert)]
    assert subprocess.run(line, check=False, timeout=240).returncode == 0


GONE = """
import gc, os, signal, sys
import ptdeploy
one = ptdeploy.load(sys.argv[1], threads=2)
another = ptdeploy.load(sys.argv[1], threads=2)
want = one.logits([[5, 6, 7]])[0].tolist()
del one
gc.collect()
another.logits([[5, 6, 7]])
del another
gc.collect()
{then}
"""
SIGNALLED = """
came = []
signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
os.kill(os.getpid(), signal.SIGTERM)
assert came == [signal.SIGTERM]
"""
FORKED = """
if not os.fork():
    signal.alarm(100)
    assert ptdeploy.load(sys.argv[1], threads=2).logits([[5, 6, 7]])[0].tolist() == want
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("then", [SIGNALLED, FORKED], ids=["signal", "fork"])
def test_engines_that_are_gone_leave_nothing_that_ends_the_process(bert, then):
    """A signal would, on a CPU with AMX; a process forked then would wait for their threads."""
    line = [sys.executable, "-c", GONE.format(then=then), str(bert)]
    assert subprocess.run(line, check=False, timeout=240).returncode == 0


MAPS = """
import sys
import ptdeploy
engine = ptdeploy.load(sys.argv[1], map_weights=sys.argv[2] == "mapped")
print(engine.logits([[5, 6, 7]])[0].tolist())
print("model.onnx.data" in open("/proc/self/maps").read())
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_mapped_weights_stay_in_their_file(bert):
    found = {}
    for how in ("mapped", "read"):
        line = [sys.executable, "-c", MAPS, str(bert), how]
        found[how] = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    logits, is_mapped = found["mapped"].split("\n")[:2]
    assert is_mapped == "True"
    assert found["read"].split("\n")[:2] == [logits, "False"]


def test_importing_it_reports_nothing(tmp_path):
    code = """
import sys
from ptdeploy.backends.telemetry import import_openvino
openvino = import_openvino()
assert openvino.Core().available_devices
assert "openvino_telemetry" not in sys.modules
from openvino.tools.ovc import telemetry_utils
assert "stub" in telemetry_utils.tm.__name__
"""
    clean = {n: v for n, v in os.environ.items() if n not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**clean, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.rglob("*")) == []


# What it says of itself.


def test_its_layers_are_those_it_compiled(bert):
    layers = get_backend("openvino").layers(read_bundle(bert), "cpu")
    weights = (bert / "model.onnx.data").stat().st_size
    assert weights * 0.9 < layers.memory["weights"] < weights * 2.5
    products = [one for one in layers.layers if one.operator == "FullyConnected"]
    assert {one.outputs for one in products} == {("float32",)}
    assert any(one.module == "bert.encoder.layer.1.attention.self.query" for one in products)
    assert any(one.fused for one in layers.layers)
    assert not [one.name for one in layers.layers if one.operator in ("Const", "Input", "Output")]
    # What OpenVINO made by itself belongs to its neighbours' module.
    assert any(one.operator == "MVN" for one in layers.layers)
    assert all(one.module for one in layers.layers if one.operator in ("MVN", "FullyConnected"))


def test_a_profile_has_its_layers_and_their_times(bert, capsys):
    assert main(["profile", str(bert), "--rounds", "4", "--tokens", "16", "--json"]) == 0
    (section,) = json.loads(capsys.readouterr().out)["sections"]
    assert section["milliseconds"] > 0
    operators = {group["name"] for group in section["by_operator"]}
    assert "FullyConnected" in operators
    assert not operators & {"Const", "Input", "Output"}
    assert section["layers_milliseconds"] > 0


def test_each_runs_own_times_are_worked_out_of_running_means():
    means = [{"a": 10.0, "b": 1.0}, {"a": 20.0, "b": 0.0}, {"a": 30.0, "b": 0.0}]
    assert own_times(means) == [{"a": 10, "b": 1}, {"a": 30, "b": 0}, {"a": 50, "b": 0}]
    assert own_times([]) == []


def test_it_is_compared_with_onnx_runtimes_engine(bert, compiled, capsys):
    assert main(["diff", str(compiled("bert", "SEQ_CLS").bundle), str(bert)]) == 0
    assert "openvino" in capsys.readouterr().out


def test_the_version_that_is_tested_is_the_one_that_is_installed():
    root = Path(__file__).parents[2]
    wanted = f'"openvino=={import_openvino().__version__.partition("-")[0]}"'
    assert wanted in (root / "pyproject.toml").read_text()
    assert wanted.strip('"') in (root / "constraints.txt").read_text().split()


def test_a_bundle_that_is_still_made_is_opened_too(bert):
    """Its files are not held yet, and are found by their own paths."""
    read = read_bundle(bert)
    engine = open_engine(Bundle(read.path, read.manifest))
    assert np.array_equal(engine.logits(ROWS)[0], open_engine(read).logits(ROWS)[0])


def test_doctor_says_what_it_is_fastest_at(capsys):
    assert main(["doctor", "--json"]) in (0, 3)
    facts = json.loads(capsys.readouterr().out)
    assert facts["fastest_at"]["openvino"] == get_backend("openvino").fastest_at
    main(["doctor"])
    assert "openvino is fastest at" in capsys.readouterr().out
