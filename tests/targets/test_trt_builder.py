"""Target trt: the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper
from support.trt import INFO, NO_GPU, PROFILE, X, Y, relu, request, save

from ptdeploy.backends.trt.engine_file import read_info
from ptdeploy.backends.trt.vendor import choose_builder, open_vendor
from ptdeploy.bundle import Quantization
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import BaseModelError, InputError, TargetUnavailable
from ptdeploy.targets.trt import TrtTarget
from ptdeploy.targets.trt.builder import build_plan, check_blocks, check_flavor
from ptdeploy.targets.trt.exposed import build_exposed, exposed_request
from ptdeploy.targets.trt.make import Job, make_engine
from ptdeploy.targets.trt.options import TrtOptions


@pytest.fixture(scope="module")
def vendor():
    return open_vendor("rtx")


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


def typed(folder: Path, dtype: int) -> Path:
    """A product with weights of a type that not every GPU has."""
    weights = helper.make_tensor("w", dtype, (4, 4), np.eye(4).ravel())
    scale = helper.make_tensor("s", TensorProto.FLOAT, (4,), np.ones(4))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], name="m/DQ", axis=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="m/MatMul"),
    ]
    constants = (weights, scale)
    if dtype == TensorProto.BFLOAT16:
        constants = (weights,)
        nodes = [
            helper.make_node("Cast", ["x"], ["narrow"], name="m/Cast", to=dtype),
            helper.make_node("MatMul", ["narrow", "w"], ["product"], name="m/MatMul"),
            helper.make_node("Cast", ["product"], ["y"], name="m/Back", to=TensorProto.FLOAT),
        ]
    return save(folder, *nodes, constants=constants)


def test_what_the_builder_leaves_out_by_itself_is_known(vendor, tmp_path):
    build_plan(vendor, request(typed(tmp_path, TensorProto.FLOAT8E4M3FN)), None)
    assert vendor.left_out == ["8.0", "8.6"]
    build_plan(vendor, request(relu(tmp_path)), None)
    assert vendor.left_out == []


def test_what_an_engine_is_not_for_is_in_its_description_also_from_the_cache(
    vendor, tmp_path, monkeypatch
):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path / "cache"))
    file, options = typed(tmp_path, TensorProto.FLOAT8E4M3FN), TrtOptions(flavor="rtx")
    job = Job(file, (file,), Signature((X,), (Y,)), (PROFILE,), False, {}, options)
    for hit in (False, True):
        notes = make_engine(job, tmp_path)
        assert any("engine cache hit" in note for note in notes) is hit
        assert notes[-1] == (
            "the engine is for every GPU it supports but compute capability 7.5, 8.0, 8.6."
        )
        info = read_info(tmp_path / "engine.json")
        assert (info.compute_capabilities, info.left_out) == ((), ("7.5", "8.0", "8.6"))
    named = replace(job, options=replace(options, compute_capability="8.9"))
    make_engine(named, tmp_path)
    info = read_info(tmp_path / "engine.json")
    assert (info.compute_capabilities, info.left_out) == (("8.9",), ())


@pytest.mark.parametrize(
    ("dtype", "capabilities", "lacking"),
    [
        (TensorProto.FLOAT8E4M3FN, "8.6", "8.6: no kernels for fp8_e4m3. "),
        (TensorProto.FLOAT8E4M3FN, "8.0,8.6,8.9", "8.0, 8.6: no kernels for fp8_e4m3. "),
        (TensorProto.BFLOAT16, "7.5,8.6", "7.5: no kernels for b16. "),
    ],
)
def test_gpus_without_kernels_for_a_type_are_named_as_the_builder_does(
    vendor, tmp_path, dtype, capabilities, lacking
):
    options = TrtOptions(compute_capability=capabilities)
    with pytest.raises(BaseModelError, match=r"Cannot compile for target\(s\) sm") as error:
        build_plan(vendor, request(typed(tmp_path, dtype), options=options), None)
    assert error.value.fix == (
        f"{lacking}Leave that out of --compute-capability, or compile with another --precision."
    )


@pytest.mark.parametrize(
    ("precision", "capabilities", "lacking"),
    [
        ("fp8", "8.0,8.6,8.9", "8.0,8.6: .*--precision fp8 from 8.9 on"),
        ("bf16", "7.5", "7.5: .*--precision bf16 from 8.0 on"),
        ("int4", "7.5,12.0", "7.5: .*--precision int4 from 8.0 on"),
        ("fp8", "8.9,12.1", ""),
        ("int8", "7.5", ""),
        ("fp16", "7.5", ""),
    ],
)
def test_gpus_without_kernels_for_a_precision_are_refused_before_any_work(
    precision, capabilities, lacking
):
    options = TrtOptions(flavor="rtx", compute_capability=capabilities)
    if not lacking:
        assert TrtTarget().unbuildable("cuda", precision, options, None) is None
        return
    with pytest.raises(InputError, match=lacking):
        TrtTarget().unbuildable("cuda", precision, options, None)


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
    problem, fix = TrtTarget().unbuildable(
        "cuda", "fp32", TrtOptions(compute_capability="current"), None
    )
    assert "needs a GPU" in problem
    assert "8.9" in fix
    assert (
        TrtTarget().unbuildable(
            "cuda", "fp32", TrtOptions(flavor="rtx", compute_capability="8.9"), None
        )
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


@pytest.mark.parametrize("size", [0, 16, 32, 64, 128, 256])
def test_blocks_that_full_tensorrt_does_not_document_are_refused_for_it_alone(vendor, size):
    quantization = Quantization(
        bits=4, block_size=size, accuracy_level=0, min_agreement=0, max_perplexity_ratio=9
    )
    check_blocks(vendor, quantization)
    full = replace(vendor, flavor="tensorrt", version="11.4.0")
    check_blocks(full, None)
    if size in (0, 64, 128):
        check_blocks(full, quantization)
    else:
        with pytest.raises(InputError, match=f"--block-size {size}: .* blocks of 64 or 128"):
            check_blocks(full, quantization)


def test_a_decoders_engine_is_built_to_be_recorded(vendor, tmp_path):
    """With a KV buffer among its inputs the builder is told more than without."""
    node = helper.make_node("Relu", ["x"], ["y"], name="layer.0/Relu")
    asked = request(save(tmp_path, node))
    decoders = Signature((msgspec.structs.replace(X, role="past"),), (Y,))
    plain, recorded = (
        bytes(build_plan(vendor, replace(asked, signature=signature), None))
        for signature in (asked.signature, decoders)
    )
    assert recorded != plain


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
