"""What an engine was built for: kept beside it, and held against the machine at hand."""

from __future__ import annotations

import msgspec
import pytest
from support.trt import INFO

from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.deserialize import how_to_fit, why_not_here
from ptdeploy.backends.trt.engine_file import read_info, write_info
from ptdeploy.backends.trt.words import describe_engine
from ptdeploy.errors import BundleError

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
        (
            msgspec.structs.replace(INFO, left_out=("7.5", "8.9")),
            "1.7.1.116",
            r"for every GPU it supports but compute capability 7.5, 8.9; here is 8.9 \(RTX 4090\)",
        ),
        (msgspec.structs.replace(INFO, left_out=("7.5", "8.6")), "1.7.1.116", None),
    ],
)
def test_an_engine_for_another_version_or_gpu_is_refused_with_both(info, version, words):
    found = why_not_here(info, version, ADA)
    if words is None:
        assert found is None
    else:
        assert pytest.raises(ValueError, match=words).matches(ValueError(found))


def test_an_engine_that_leaves_a_gpu_out_is_not_told_to_be_built_again_as_it_was():
    """Made anew with the options that it had, it would leave that GPU out again."""
    info = msgspec.structs.replace(INFO, left_out=("7.5", "8.9"))
    assert how_to_fit(info, ADA, None) == (
        "Compile the checkpoint for it: --compute-capability 8.9, with a --precision that it has."
    )


@pytest.mark.parametrize(
    ("capabilities", "left_out", "words"),
    [
        ((), (), "for every GPU it supports"),
        ((), ("7.5", "8.0"), "for every GPU it supports but compute capability 7.5, 8.0"),
        (("8.6", "8.9"), (), "for compute capability 8.6, 8.9"),
    ],
)
def test_what_an_engine_is_for_is_said(capabilities, left_out, words):
    info = msgspec.structs.replace(
        INFO, compute_capabilities=capabilities, left_out=left_out, profiles=()
    )
    assert describe_engine(msgspec.to_builtins(info)).built[1] == ("", words)


def test_an_engines_description_is_read_back(tmp_path):
    write_info(INFO, tmp_path)
    assert read_info(tmp_path / "engine.json") == INFO


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"{}", "missing required field `flavor`"),
        (b'{"flavor": "\xff"}', "'utf-8' codec can't decode"),
        (b"[" * 9999, "Expected `object`, got `array`"),
        (b'{"flavor": "cuda"}', "Invalid enum value 'cuda'"),
        # All that is wrong with it is its size.
        (msgspec.json.encode(INFO) + b" " * (4 << 20), "larger than 4194304 bytes"),
    ],
    ids=["empty", "no fields", "not UTF-8", "deep", "another flavor", "huge"],
)
def test_a_damaged_description_is_refused(tmp_path, content, reason):
    (tmp_path / "engine.json").write_bytes(content)
    with pytest.raises(BundleError, match=reason):
        read_info(tmp_path / "engine.json")


def test_a_description_with_an_unknown_field_is_refused(tmp_path):
    fields = msgspec.to_builtins(INFO) | {"script": "rm"}
    (tmp_path / "engine.json").write_bytes(msgspec.json.encode(fields))
    with pytest.raises(BundleError, match="unknown field"):
        read_info(tmp_path / "engine.json")
