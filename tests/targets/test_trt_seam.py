"""The seam around TensorRT, against the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import ptdeploy
from ptdeploy import targets
from ptdeploy.backends.trt import cache, cuda
from ptdeploy.backends.trt.deserialize import why_not_here
from ptdeploy.backends.trt.engine_file import EngineInfo, Profile, read_info, write_info
from ptdeploy.backends.trt.vendor import choose_builder, open_vendor
from ptdeploy.bundle import Limits, RequestLimits
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import BaseModelError, BundleError, InputError, TargetUnavailable
from ptdeploy.runtime.bfloat16 import from_stored, stored, to_stored
from ptdeploy.targets import trt
from ptdeploy.targets.trt import TrtTarget
from ptdeploy.targets.trt.builder import Request, build_plan, check_flavor
from ptdeploy.targets.trt.exposed import build_exposed, exposed_request
from ptdeploy.targets.trt.options import (
    Range,
    TrtOptions,
    check_options,
    read_compute_capabilities,
    read_profile,
)
from ptdeploy.targets.trt.plan import DEFAULT_CONTEXT, bounded, profiles

NO_GPU = pytest.mark.skipif(cuda.unavailable() is None, reason="there is a GPU here")
X = TensorSpec("x", "ids", "float32", ("batch", 4), "")
Y = TensorSpec("y", "logits", "float32", ("batch", 4), "")
PROFILE = Profile("requests", {"x": ((1, 4), (2, 4), (8, 4))})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def vendor():
    return open_vendor("rtx")


def save(folder: Path, *nodes: onnx.NodeProto, constants=(), out: TensorSpec = Y) -> Path:
    """A graph from x to y as an ONNX file."""

    def declared(spec: TensorSpec) -> onnx.ValueInfoProto:
        dtype = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[spec.dtype]
        return helper.make_tensor_value_info(spec.name, dtype, list(spec.shape))

    graph = helper.make_graph(
        list(nodes), "g", [declared(X)], [declared(out)], initializer=list(constants)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def request(onnx_file: Path, signature=None, options=None, tf32=False) -> Request:
    signature = signature or Signature((X,), (Y,))
    return Request(onnx_file, signature, (PROFILE,), tf32, options or TrtOptions())


def relu(folder: Path) -> Path:
    return save(folder, helper.make_node("Relu", ["x"], ["y"], name="layer.0/Relu"))


# Options


@given(
    st.dictionaries(
        st.sampled_from(["batch", "seq"]),
        st.tuples(st.integers(1, 999), st.integers(0, 999), st.integers(0, 999)),
        min_size=1,
    )
)
def test_a_profile_is_read_as_it_was_written(axes):
    ranges = {name: Range(1, low, low + more) for name, (low, _, more) in axes.items()}
    text = ",".join(f"{name}={r.min}:{r.opt}:{r.max}" for name, r in ranges.items())
    assert read_profile(text) == ranges


@given(st.text(alphabet="batchseq=:,0123456789 -x", max_size=40))
def test_any_other_profile_is_refused_in_words(text):
    try:
        ranges = read_profile(text)
    except InputError:
        return
    assert ranges
    assert all(1 == r.min <= r.opt <= r.max for r in ranges.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not one of"),
        ("batch=1:2", "is not one of"),
        ("batch=1:2:3,batch=1:2:3", "is not one of"),
        ("rows=1:2:3", "is not one of"),
        ("batch=3:2:1", "must grow"),
        ("batch=0:1:2", "must grow"),
        ("seq=2:4:8", "one row of one token"),
        ("batch=1:2:٣", "is not one of"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(text, words):
    with pytest.raises(InputError, match=words):
        read_profile(text)


@pytest.mark.parametrize(
    "options",
    [
        TrtOptions(flavor="openvino"),
        TrtOptions(hardware_compatibility="all"),
        TrtOptions(workspace=0),
        TrtOptions(optimization_level=6),
        TrtOptions(compute_capability="sm90"),
        TrtOptions(compute_capability="8.6,8.6"),
        TrtOptions(compute_capability="current,8.6"),
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(InputError, match="must be"):
        check_options(options)


def test_compute_capabilities_are_read():
    assert read_compute_capabilities(None) == ()
    assert read_compute_capabilities("8.6, 12.0") == ("8.6", "12.0")
    assert read_compute_capabilities("current") == ("current",)


def test_given_options_have_the_names_of_the_command_line():
    assert TrtOptions().given() == []
    options = TrtOptions(flavor="rtx", keep_onnx=True, cache=False)
    assert options.given() == ["--trt-flavor", "--keep-onnx", "--no-engine-cache"]


# Limits and profiles


def request_limits(
    context: int, text: int, vocabulary: int, max_batch: int | None = None
) -> RequestLimits:
    """Of a model of so many positions, of which a prompt leaves so many to the text."""
    return Limits(context, vocabulary, max_batch).beside(context - text)


def test_a_classifier_gets_one_profile_up_to_its_models_limits():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    assert limits == request_limits(512, 492, 30522, 32)
    ids = TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), "")
    (one,) = profiles(Signature((ids,), ()), limits, TrtOptions())
    assert one.shapes == {"input_ids": ((1, 1), (8, 128), (32, 492))}
    options = TrtOptions(profile="batch=1:2:4,seq=1:16:64")
    limits = bounded(request_limits(512, 492, 30522), options, False, None)
    assert (limits.max_batch, limits.max_sequence, limits.max_context) == (4, 64, 84)
    (one,) = profiles(Signature((ids,), ()), limits, options)
    assert one.shapes == {"input_ids": ((1, 1), (2, 16), (4, 64))}


def test_what_belongs_to_prompts_has_room_in_a_profile_for_more_than_one():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    inputs = (
        TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
        TensorSpec("virtual_tokens", "table", "float32", ("virtual", 32), ""),
        TensorSpec("prompt_index", "prompt", "int64", ("batch",), ""),
        TensorSpec("head.score.weight", "head", "float32", ("prompts", "classes", 32), ""),
    )
    (one,) = profiles(Signature(inputs, ()), limits, TrtOptions())
    # A row has its virtual tokens before its text.
    assert one.shapes["input_ids"] == ((1, 1), (8, 148), (32, 512))
    assert one.shapes["virtual_tokens"] == ((1, 32), (20, 32), (256 * 128, 32))
    assert one.shapes["prompt_index"] == ((1,), (8,), (32,))
    assert one.shapes["head.score.weight"] == ((1, 1, 32), (1, 8, 32), (256, 1024, 32))


def test_a_prefix_kv_has_room_in_a_profile_for_prompts_of_any_length():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    inputs = (
        TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
        TensorSpec("prefix_kv", "prefix", "float32", ("prefixes", 2, "prefix", 8), ""),
    )
    (one,) = profiles(Signature(inputs, ()), limits, TrtOptions())
    # Its virtual tokens are no tokens of a row.
    assert one.shapes["input_ids"] == ((1, 1), (8, 128), (32, 492))
    low, _, most = one.shapes["prefix_kv"]
    assert low == (1, 2, 1, 8)
    assert most[2] == 512


def test_a_decoder_gets_a_decode_and_a_prefill_profile():
    model = request_limits(32768, 32748, 151936)
    limits = bounded(model, TrtOptions(), True, None)
    assert limits.max_context == DEFAULT_CONTEXT
    assert limits.max_sequence == DEFAULT_CONTEXT - 20
    assert (limits.max_batch, limits.max_prefill) == (8, 512)
    signature = Signature(
        (
            TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
            TensorSpec("logits_positions", "positions", "int64", ("kept",), ""),
            TensorSpec("past_key_values.0.key", "past", "float32", ("batch", 2, 4096, 8), ""),
        ),
        (),
    )
    decode, prefill = profiles(signature, limits, TrtOptions())
    assert decode.name == "decode"
    assert decode.shapes["input_ids"] == ((1, 1), (1, 1), (8, 1))
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 128), (1, 512))
    assert prefill.shapes["logits_positions"] == ((1,), (1,), (64,))
    assert prefill.shapes["past_key_values.0.key"] == ((1, 2, 4096, 8),) * 3
    assert decode.takes({"input_ids": (3, 1), "logits_positions": (1,)} | kv(3))
    assert not decode.takes({"input_ids": (9, 1), "logits_positions": (1,)} | kv(9))
    assert not prefill.takes({"input_ids": (2, 5), "logits_positions": (1,)} | kv(2))


def kv(rows: int) -> dict[str, tuple[int, ...]]:
    return {"past_key_values.0.key": (rows, 2, 4096, 8)}


def test_a_context_that_was_asked_for_is_kept():
    limits = bounded(request_limits(10000, 9980, 100), TrtOptions(), True, 10000)
    assert limits.max_context == 10000


@pytest.mark.parametrize(
    ("profile", "causal", "max_batch", "words"),
    [
        ("seq=1:10:100", False, None, "goes to 100, but the model has 44"),
        ("seq=1:10:100", True, None, "goes to 100, but the model has 64"),
        ("batch=1:2:4", True, 8, "--max-batch 8"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(profile, causal, max_batch, words):
    with pytest.raises(InputError, match=words):
        bounded(request_limits(64, 44, 100, max_batch), TrtOptions(profile=profile), causal, None)


# The builder


def test_an_engine_is_built_and_is_the_same_bytes_again(vendor, tmp_path):
    one, two = (bytes(build_plan(vendor, request(relu(tmp_path)), None)) for _ in range(2))
    assert len(one) > 1000
    assert one == two


def test_an_interrupt_while_an_engine_is_built_is_not_lost(tmp_path):
    """TensorRT drops what is raised in its calls to a logger.

    In a process of its own: the signal is the whole process's, and other tests left theirs in it.
    """
    if "PTDEPLOY_ALONE" not in os.environ:
        test = f"{__file__}::test_an_interrupt_while_an_engine_is_built_is_not_lost"
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", test]
        environment = {**os.environ, "PTDEPLOY_ALONE": "1"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert done.stdout.startswith("."), done.stdout
        return
    file, before = relu(tmp_path), signal.getsignal(signal.SIGINT)
    pressing = open_vendor("rtx")

    class Pressing(pressing.module.ILogger):
        pressed = False

        def __init__(self):
            pressing.module.ILogger.__init__(self)

        def log(self, severity, message):
            # Not while it parses, when Python's own handler is still there.
            if signal.getsignal(signal.SIGINT) is not before and not self.pressed:
                self.pressed = True
                signal.raise_signal(signal.SIGINT)

    logger = Pressing()
    with pytest.raises(KeyboardInterrupt):
        build_plan(replace(pressing, logger=logger), request(file), None)
    assert logger.pressed
    assert signal.getsignal(signal.SIGINT) is before


def test_an_operator_the_parser_refuses_is_named_with_its_module(vendor, tmp_path):
    node = helper.make_node("Det", ["x"], ["y"], name="encoder.layer.3.mlp/Det")
    with pytest.raises(BaseModelError) as error:
        build_plan(vendor, request(save(tmp_path, node)), None)
    assert "encoder.layer.3.mlp/Det (Det) of module encoder.layer.3.mlp" in error.value.problem
    assert "--target ort" in error.value.fix


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (Signature((X,), (msgspec.structs.replace(Y, name="z"),)), "not declared"),
        (Signature((X,), (msgspec.structs.replace(Y, dtype="float16"),)), "not float16"),
        (Signature((msgspec.structs.replace(X, shape=("batch", 5)),), (Y,)), r"not \['batch', 5\]"),
        (Signature((msgspec.structs.replace(X, shape=(4,)),), (Y,)), "parsed x as"),
    ],
)
def test_a_network_that_is_not_the_signature_is_refused(vendor, tmp_path, signature, words):
    with pytest.raises(BaseModelError, match=words):
        build_plan(vendor, request(relu(tmp_path), signature), None)


def test_a_buffer_that_is_not_updated_in_place_is_refused(vendor, tmp_path):
    present = TensorSpec("present.0.key", "present", "float32", ("batch", 4, 7, 4), "")
    shape = helper.make_tensor("shape", TensorProto.INT64, (4,), [1, 4, 7, 4])
    nodes = (
        helper.make_node("Unsqueeze", ["x", "axes"], ["wide"], name="a/Unsqueeze"),
        helper.make_node("Expand", ["wide", "shape"], ["present.0.key"], name="a/Expand"),
    )
    axes = helper.make_tensor("axes", TensorProto.INT64, (2,), [1, 2])
    file = save(tmp_path, *nodes, constants=(shape, axes), out=present)
    with pytest.raises(BaseModelError, match=r"does not update present\.0\.key in place"):
        build_plan(vendor, request(file, Signature((X,), (present,))), None)


def test_a_compute_capability_that_the_builder_does_not_have_is_refused(vendor, tmp_path):
    options = TrtOptions(compute_capability="9.0")
    with pytest.raises(InputError, match=r"9\.0: TensorRT-RTX .* builds for 7\.5, .*12\.0"):
        build_plan(vendor, request(relu(tmp_path), options=options), None)
    options = TrtOptions(compute_capability="8.6,12.0")
    assert build_plan(vendor, request(relu(tmp_path), options=options), None) is not None


@NO_GPU
@pytest.mark.parametrize(
    "options", [TrtOptions(strip_weights=True), TrtOptions(compute_capability="current")]
)
def test_what_needs_a_gpu_to_build_says_so(vendor, tmp_path, options):
    weights = helper.make_tensor("w", TensorProto.FLOAT, (4, 4), np.eye(4).ravel())
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m/MatMul")
    with pytest.raises(TargetUnavailable, match="needs a GPU to build"):
        build_plan(vendor, request(save(tmp_path, node, constants=(weights,)), None, options), None)


@NO_GPU
def test_the_gpu_at_hand_cannot_be_built_for_where_there_is_none():
    """Said before any work, not by the builder."""
    problem, fix = TrtTarget().unbuildable("cuda", "fp32", TrtOptions(compute_capability="current"))
    assert "needs a GPU" in problem
    assert "8.9" in fix
    assert (
        TrtTarget().unbuildable("cuda", "fp32", TrtOptions(flavor="rtx", compute_capability="8.9"))
        is None
    )


def test_too_little_workspace_is_said(vendor, tmp_path):
    weights = helper.make_tensor("w", TensorProto.FLOAT, (4, 4096), np.ones(4 * 4096, np.float32))
    back = helper.make_tensor("v", TensorProto.FLOAT, (4096, 4), np.ones(4 * 4096, np.float32))
    nodes = (
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m/MatMul"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="n/MatMul"),
    )
    file = save(tmp_path, *nodes, constants=(weights, back))
    with pytest.raises(BaseModelError) as error:
        build_plan(vendor, request(file, options=TrtOptions(workspace=1)), None)
    assert "more than --workspace 1" in error.value.fix


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TrtOptions(version_compatible=True), "lean runtime"),
        (TrtOptions(hardware_compatibility="ampere_plus"), "full TensorRT's"),
    ],
)
def test_what_rtx_does_not_have_is_refused(vendor, options, words):
    with pytest.raises(InputError, match=words):
        check_flavor(vendor, options)


def test_auto_takes_rtx_where_full_tensorrt_cannot_build_and_says_why():
    vendor, why = choose_builder("auto")
    if vendor.flavor == "rtx":
        assert why.startswith("TensorRT ")
        assert why.endswith("TensorRT-RTX builds here")


@pytest.mark.parametrize(
    ("flavor", "command"),
    [
        ("rtx", "pip install 'ptdeploy[rtx]'"),
        ("tensorrt", "pip install 'ptdeploy[trt]'"),
        ("auto", "pip install 'ptdeploy[rtx]'"),
    ],
)
def test_where_none_is_installed_the_pip_command_is_given(tmp_path, flavor, command):
    program = (
        "import sys; sys.modules.update(tensorrt=None, tensorrt_rtx=None)\n"
        "from ptdeploy.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "compile", str(tmp_path / "none"), "--target", "trt"),
            *("--trt-flavor", flavor, "-o", str(tmp_path / "bundle")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert command in done.stderr
    assert not (tmp_path / "bundle").exists()


# What an engine was built for

INFO = EngineInfo(
    flavor="rtx",
    version="1.7.1.116",
    gpu="",
    compute_capabilities=(),
    profiles=(PROFILE,),
    tf32=False,
    strip_weights=False,
    version_compatible=False,
    hardware_compatibility="none",
    workspace=None,
    optimization_level=None,
    precisions={"float32": {"Relu": 1}},
    onnx_sha256="",
)
ADA = cuda.Device("RTX 4090", "8.9", 24 << 30)
FULL = msgspec.structs.replace(
    INFO, flavor="tensorrt", version="10.16.1", gpu="A10", compute_capabilities=("8.6",)
)


def full(**changes):
    return msgspec.structs.replace(FULL, **changes)


@pytest.mark.parametrize(
    ("info", "version", "words"),
    [
        (INFO, "1.7.1.116", None),
        (INFO, "1.8.0", "built by TensorRT-RTX 1.7.1.116; TensorRT-RTX 1.8.0 is installed here"),
        (FULL, "10.16.1", r"for compute capability 8.6 \(A10\); here is 8.9 \(RTX 4090\)"),
        (full(compute_capabilities=("8.9",)), "10.16.1", None),
        (full(hardware_compatibility="ampere_plus"), "10.16.1", None),
        (full(hardware_compatibility="same_compute_capability"), "10.16.1", "here is 8.9"),
        (full(version_compatible=True, compute_capabilities=("8.9",)), "10.17.0", None),
        (full(version_compatible=True), "10.15.0", "10.15.0 is installed here"),
        (full(version_compatible=True), "11.0.0", "11.0.0 is installed here"),
        (
            msgspec.structs.replace(INFO, compute_capabilities=("8.6", "12.0")),
            "1.7.1.116",
            "for compute capability 8.6, 12.0; here is 8.9",
        ),
    ],
)
def test_an_engine_for_another_version_or_gpu_is_refused_with_both(info, version, words):
    found = why_not_here(info, version, ADA)
    if words is None:
        assert found is None
    else:
        assert pytest.raises(ValueError, match=words).matches(ValueError(found))


def test_an_engines_description_is_read_back(tmp_path):
    write_info(INFO, tmp_path)
    assert read_info(tmp_path / "engine.json") == INFO


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b"[" * 9999, b'{"flavor": "cuda"}', b" " * (5 << 20)],
    ids=["empty", "no fields", "not UTF-8", "deep", "another flavor", "huge"],
)
def test_a_damaged_description_is_refused(tmp_path, content):
    (tmp_path / "engine.json").write_bytes(content)
    with pytest.raises(BundleError, match="engine"):
        read_info(tmp_path / "engine.json")


def test_a_description_with_an_unknown_field_is_refused(tmp_path):
    fields = msgspec.to_builtins(INFO) | {"script": "rm"}
    (tmp_path / "engine.json").write_bytes(msgspec.json.encode(fields))
    with pytest.raises(BundleError, match="unknown field"):
        read_info(tmp_path / "engine.json")


# The cache


def test_what_was_kept_is_found_under_its_name_alone():
    cache.keep("a" * 64, "plan", b"one")
    assert cache.find("a" * 64, "plan") == b"one"
    assert cache.find("b" * 64, "plan") is None
    assert cache.find("a" * 64, "timing") is None
    cache.keep("a" * 64, "plan", b"two")
    assert cache.find("a" * 64, "plan") == b"two"
    assert len(list(cache.folder().iterdir())) == 1


def test_a_changed_engine_is_not_taken_from_the_cache():
    cache.keep("a" * 64, "plan", b"one")
    (file,) = cache.folder().iterdir()
    file.write_bytes(b"another")
    assert cache.find("a" * 64, "plan") is None
    assert not file.exists()


def test_a_cache_that_cannot_be_touched_is_still_read(monkeypatch):
    cache.keep("a" * 64, "plan", b"one")
    monkeypatch.setattr(cache.os, "utime", refused)
    assert cache.find("a" * 64, "plan") == b"one"


def refused(*_):
    raise PermissionError(1, "Operation not permitted")


def test_the_oldest_go_where_the_cache_is_full(monkeypatch):
    monkeypatch.setattr(cache, "_MOST_BYTES", 25)
    for name in "abc":
        cache.keep(name * 64, "plan", name.encode() * 10)
    assert cache.find("a" * 64, "plan") is None
    assert cache.find("b" * 64, "plan") is not None
    assert cache.find("c" * 64, "plan") is not None


def test_a_key_depends_on_every_fact():
    facts = {"version": "1", "profiles": [1, 2]}
    assert cache.key(facts) == cache.key(dict(reversed(facts.items())))
    assert cache.key(facts) != cache.key({**facts, "version": "2"})


# CUDA


@NO_GPU
@pytest.mark.parametrize(
    "use",
    [
        lambda: cuda.device(),
        lambda: cuda.Stream(),
        lambda: cuda.Block(16),
        lambda: cuda.pinned((2, 3), np.dtype(np.float32)),
        lambda: memory().read(),
        lambda: memory().write(np.zeros((2, 3, 5, 4), np.float32)),
        lambda: memory().write_slots(np.array([0, 1]), memory((2, 3, 1, 4))),
        lambda: stream().wait(),
        lambda: stream().capture(lambda: None),
    ],
)
def test_every_call_reaches_the_driver_that_is_not_there(use):
    """Not an execution: it shows that cuda-bindings takes the arguments as they are passed."""
    with pytest.raises(cuda.CudaError, match="driver"):
        use()


def stream() -> cuda.Stream:
    made = cuda.Stream.__new__(cuda.Stream)
    made.handle = 1
    return made


def memory(shape=(2, 3, 5, 4)) -> cuda.Memory:
    block = cuda.Block.__new__(cuda.Block)
    block.pointer, block.size = 4096, 480
    return cuda.Memory(block, 4096, shape, np.dtype(np.float32), stream())


def test_rows_of_memory_begin_where_the_row_does():
    part = memory().rows(slice(1, 2))
    assert (part.pointer, part.shape, part.nbytes) == (4096 + 240, (1, 3, 5, 4), 240)


def test_no_module_hides_a_function_of_its_package():
    """Importing `package.name` sets the package's attribute `name` to the module."""
    for package in (ptdeploy, targets, trt):
        source = Path(package.__file__)
        modules = {path.stem for path in source.parent.glob("*.py")}
        body = ast.parse(source.read_text()).body
        assert not modules & {node.name for node in body if isinstance(node, ast.FunctionDef)}


# Inner values


def test_a_graph_with_inner_values_as_outputs_is_built_too(vendor, tmp_path):
    nodes = (
        helper.make_node("Neg", ["x"], ["h"], name="layer.0/Neg"),
        helper.make_node("Relu", ["h"], ["y"], name="layer.1/Relu"),
    )
    file = save(tmp_path, *nodes)
    signature, feed = Signature((X,), (Y,)), {"x": np.zeros((2, 4), np.float32)}

    def built(*inner: str) -> bytes:
        return bytes(build_exposed(vendor, exposed_request(INFO, file, signature, inner, feed)))

    assert built("h") != built()
    with pytest.raises(BaseModelError, match=r"inner values as outputs .* no value nonsense"):
        built("nonsense")


@given(st.lists(st.floats(width=32), min_size=1))
def test_bfloat16_is_kept_as_ml_dtypes_rounds_it(values):
    array = np.array(values, np.float32)
    bits = to_stored(array, "bfloat16")
    want = array.astype(ml_dtypes.bfloat16)
    assert bits.dtype == stored("bfloat16") == np.uint16
    finite = ~np.isnan(array)
    assert np.array_equal(bits[finite], want.view(np.uint16)[finite])
    assert np.array_equal(from_stored(bits)[finite], want.astype(np.float32)[finite])
    assert np.isnan(bits[~finite].view(ml_dtypes.bfloat16).astype(np.float32)).all()
