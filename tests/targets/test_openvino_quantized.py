"""OpenVINO with weights, products and a KV cache in fewer bits."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from support import tiny
from support.openvino import needs_bf16

import ptdeploy
from ptdeploy.backends.openvino import OpenVinoBackend
from ptdeploy.backends.openvino.engine_file import KV_PRECISIONS
from ptdeploy.backends.openvino.kv_cache import BlockCache
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.cli.main import main
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.targets import get_target

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

LOOSE = {"min_agreement": 0.0, "max_perplexity_ratio": 1e9}
ROWS = [[5, 6, 7, 8, 9], [40, 41], [60], list(range(3, 30))]
EXACT, IN_INT8 = 1, 4


@pytest.fixture(params=["int8", "int4"])
def precision(request) -> str:
    return request.param


def bundle_of(compiled, precision: str, level: int = EXACT, architecture: str = "qwen2") -> Path:
    blocks = {"block_size": 16} if precision == "int4" else {}
    asked = QuantizationOptions(accuracy_level=level, **blocks, **LOOSE)
    how = {"target": "openvino", "precision": precision, "quantization": asked}
    return compiled(architecture, "CAUSAL_LM", how).bundle


def for_onnx_runtime(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "target": "ort"}))
    return folder


@pytest.mark.parametrize("architecture", ["qwen2", "mixtral"])
def test_it_computes_what_onnx_runtime_does_of_the_same_codes(
    compiled, tmp_path, precision, architecture
):
    bundle = bundle_of(compiled, precision, architecture=architecture)
    ours = ptdeploy.load(bundle)
    theirs = ptdeploy.load(for_onnx_runtime(bundle, tmp_path / "theirs"))
    for one, other in zip(ours.logits(ROWS), theirs.logits(ROWS), strict=True):
        assert np.abs(one - other).max() < 1e-5 * (1 + np.abs(other).max())


def test_codes_are_what_is_stored_of_products_and_embeddings(compiled, precision):
    bundle = bundle_of(compiled, precision)
    manifest = read_bundle(bundle).manifest
    assert manifest.quantization.bits == int(precision[-1])
    assert manifest.prompt.parity.perplexity_ratio is not None
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [made_by.get(n.input[1]) for n in model.graph.node if "MatMul" in n.op_type]
    assert set(products) == {"DequantizeLinear"}
    tables = [one for one in model.graph.initializer if list(one.dims) == [101, 32]]
    assert [one.data_type for one in tables] == [onnx.TensorProto.INT8]


LOOSE_CLASSES = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
LOOSE_TEXT = QuantizationOptions(**LOOSE)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(
    ("architecture", "task", "kind", "how", "wanted"),
    [
        ("bert", "SEQ_CLS", "P-Tuning, MLP", {}, onnx.TensorProto.FLOAT),
        ("bert", "SEQ_CLS", "prefix tuning", {}, onnx.TensorProto.FLOAT),
        ("bert", "TOKEN_CLS", "prefix tuning", {}, onnx.TensorProto.FLOAT),
        ("qwen2", "SEQ_CLS", "P-Tuning, MLP", {}, onnx.TensorProto.INT8),
        ("qwen2", "CAUSAL_LM", "P-Tuning, MLP", {"freeze_kv": False}, onnx.TensorProto.INT8),
    ],
)
def test_embeddings_are_codes_in_decoders_alone(
    compiled, precision, architecture, task, kind, how, wanted
):
    """Whatever stands between the ids and the table."""
    asked = LOOSE_TEXT if task == "CAUSAL_LM" else LOOSE_CLASSES
    asked = {"target": "openvino", "precision": precision, "quantization": asked, **how}
    changes = {} if architecture == "bert" else {"tie_word_embeddings": True}
    made = {"kind": kind, **changes} if kind != "P-Tuning, MLP" else changes
    bundle = compiled(architecture, task, asked, **made).bundle
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    types = {one.name: one.data_type for one in model.graph.initializer}
    rows = {one.name: one.dims[0] for one in model.graph.initializer if one.dims}
    tables = [n.input[0] for n in model.graph.node if n.op_type == "Gather"]
    words = {types[name] for name in tables if rows.get(name) == 101 and "scale" not in name}
    assert words == {wanted}
    segments = {types[name] for name in tables if rows.get(name) == 2 and "type" in name}
    assert segments == ({onnx.TensorProto.FLOAT} if architecture == "bert" else set())


def test_products_are_computed_in_int8_where_the_level_says_so(compiled):
    # Columns of 32 and 64 have no whole number of larger groups.
    for level, group in ((EXACT, 0), (IN_INT8, 32)):
        engine = ptdeploy.load(bundle_of(compiled, "int8", level))
        compiled_model = engine._session.native()[0]
        assert compiled_model.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group


@pytest.mark.parametrize(("width", "group"), [(32, 32), (40, 0)])
def test_products_that_cannot_be_in_int8_are_said_to_be_in_float32(tmp_path, width, group):
    """Columns of 40 have no whole number of any group."""
    one = tiny.make(tmp_path, "gpt2", "CAUSAL_LM", hidden_size=width)
    bundle = ptdeploy.compile(
        one.adapter,
        target="openvino",
        base=str(one.base),
        output=tmp_path / "bundle",
        precision="int8",
        quantization=QuantizationOptions(**LOOSE),
    )
    assert json.loads((bundle.path / "engine.json").read_text())["group"] == group
    said = any("products with the quantized weights in float32" in note for note in bundle.notes)
    assert said is (group == 0)


def test_what_misses_the_gate_is_refused(compiled, tmp_path, capsys):
    one = compiled("qwen2", "CAUSAL_LM")
    line = ["compile", str(one.trained.adapter), "--base", str(one.trained.base)]
    line += ["--target", "openvino", "--precision", "int8", "--max-perplexity-ratio", "0.01"]
    assert main([*line, "-o", str(tmp_path / "none")]) == 1
    assert "perplexity" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_table_of_codes_that_is_too_small_is_refused(compiled, tmp_path):
    """OpenVINO checks no index: a token id would read other memory."""
    bundle = tmp_path / "small"
    shutil.copytree(bundle_of(compiled, "int8"), bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["limits"]["vocab_size"] = 102
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ptdeploy.BundleError, match=r"101 words|vocab_size"):
        ptdeploy.load(bundle)


def test_a_classifier_is_quantized_alike(compiled):
    asked = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
    how = {"target": "openvino", "precision": "int8", "quantization": asked}
    bundle = compiled("bert", "SEQ_CLS", how).bundle
    ours = ptdeploy.load(bundle)
    exact = ptdeploy.load(compiled("bert", "SEQ_CLS").bundle)
    for one, other in zip(ours.logits(ROWS), exact.logits(ROWS), strict=True):
        assert 0 < np.abs(one - other).max() < 0.1 * (1 + np.abs(other).max())
    assert read_bundle(bundle).manifest.prompt.parity.passed


# The KV cache in fewer bits.


@pytest.mark.parametrize("kind", KV_PRECISIONS)
def test_blocks_hold_what_is_written(kind):
    cache, random = BlockCache(kind), np.random.default_rng(0)
    near = {"f32": 0, "f16": 2e-3, "bf16": 1e-2, "u8": 2e-2}[kind]
    for is_key in (True, False):
        memory = cache.empty(is_key, 4, 2, 8)
        tokens = random.normal(size=(2, 20, 8)).astype(np.float32)
        cache.write(memory, is_key, np.array([1, 3]), tokens)
        for block in (1, 3):
            found = cache.read(memory[block], is_key)
            assert found.shape == (2, 32, 8)
            assert np.abs(found[:, :20] - tokens).max() <= near
        assert not cache.read(memory[[0, 2]], is_key).any()
    both = cache.empty(True, 4, 2, 8).nbytes + cache.empty(False, 4, 2, 8).nbytes
    assert cache.bytes(4, 2, 8) == both


@pytest.mark.parametrize(
    ("precision", "kept", "words"),
    [
        ("bf16", "f32", "takes keys and values in bf16 or u8"),
        ("bf16", "f16", "takes keys and values in bf16 or u8"),
        ("fp32", "bf16", "with --precision bf16 only, not fp32"),
        ("int8", "bf16", "with --precision bf16 only, not int8"),
    ],
)
def test_a_cache_that_its_attention_does_not_take_is_refused(precision, kept, words):
    target = get_target("openvino")
    with pytest.raises(ptdeploy.InputError, match=words):
        target.unbuildable("cpu", precision, ptdeploy.OpenVinoOptions(kept), None)


@needs_bf16
@pytest.mark.parametrize(("asked", "kept"), [(None, "bf16"), ("u8", "u8")])
def test_a_model_that_writes_in_bf16_keeps_its_cache_in_that(compiled, asked, kept, capsys):
    how = {"target": "openvino", "precision": "bf16", "engine": ptdeploy.OpenVinoOptions(asked)}
    one = compiled("qwen2", "CAUSAL_LM", how)
    engine = ptdeploy.load(one.bundle)
    assert engine._session.cache == BlockCache(kept)
    where = ["--checkpoint", str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main(["verify", str(one.bundle), "--locate", *where]) == 0
    assert "every module agrees" in capsys.readouterr().out
    exact = ptdeploy.load(compiled("qwen2", "CAUSAL_LM", {"target": "openvino"}).bundle)
    for ours, theirs in zip(engine.logits(ROWS), exact.logits(ROWS), strict=True):
        assert 1e-5 < np.abs(ours - theirs).max() < PRECISIONS["bf16"].thresholds.max_abs


def test_what_does_not_vary_is_kept_in_u8():
    cache = BlockCache("u8")
    for is_key in (True, False):
        memory = cache.empty(is_key, 1, 1, 8)
        cache.write(memory, is_key, 0, np.full((1, 32, 8), 2.5, np.float32))
        assert (cache.read(memory[0], is_key) == 2.5).all()


def kept_in(compiled, kind: str, **made: object) -> ptdeploy.CausalLM:
    how = {"target": "openvino", "engine": ptdeploy.OpenVinoOptions(kind)}
    return ptdeploy.load(compiled("qwen2", "CAUSAL_LM", how, **made).bundle)


@pytest.mark.parametrize(("kind", "bounds"), [("f16", "fp16"), ("u8", "bf16")])
def test_a_kv_cache_in_fewer_bits_is_held_by_thresholds_as_wide(compiled, kind, bounds):
    engine = kept_in(compiled, kind)
    assert engine._session.cache == BlockCache(kind)
    stored = load_reference(engine.bundle)
    assert stored.thresholds == PRECISIONS[bounds].thresholds
    assert main(["verify", str(engine.bundle.path)]) == 0
    exact = ptdeploy.load(compiled("qwen2", "CAUSAL_LM", {"target": "openvino"}).bundle)
    off = max(
        np.abs(one - other).max()
        for one, other in zip(engine.logits(ROWS), exact.logits(ROWS), strict=True)
    )
    assert 1e-5 < off < PRECISIONS[bounds].thresholds.max_abs * 2


def test_openvino_stores_codes_where_ptdeploy_reads_them(compiled):
    """Keys and values that the engine wrote itself, in u8 beside f32, with a block half full."""
    found = {}
    for kind in ("f32", "u8"):
        engine = kept_in(compiled, kind)
        kv = engine.buffers.take([engine.prompt], [59]).kv
        kv.prefill(0, np.arange(3, 40))
        found[kind] = kv.feed(np.array([[5]]), False)
        length = int(kv.lengths[0])
    assert 32 < length < 64
    for name in engine.layout.past:
        want, got = (found[kind][name][:, :, :length] for kind in ("f32", "u8"))
        step = (want.max() - want.min()) / 255
        assert 0 < np.abs(want - got).max() < 3 * step, name


def test_a_request_leaves_nothing_in_the_next_ones_prefix(compiled):
    """In u8 a block's scales change with what is written behind the prefix."""
    engine = kept_in(compiled, "u8")
    kv = engine.buffers.take([engine.prompt], [59]).kv
    first = kv.prefill(0, np.array([5, 6, 7])).copy()
    kv.prefill(0, np.arange(10, 40))
    kv.reset()
    assert np.array_equal(kv.prefill(0, np.array([5, 6, 7])), first)


def test_what_the_cache_is_kept_in_is_shown_and_compared(compiled, capsys):
    f16, u8 = (kept_in(compiled, kind).bundle.path for kind in ("f16", "u8"))
    assert main(["inspect", str(f16)]) == 0
    assert re.search(r"KV cache +f16", capsys.readouterr().out)
    main(["diff", str(f16), str(u8)])
    assert "kv_precision" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_only_what_keeps_keys_and_values_is_said_to_keep_them_in_something(compiled, task, capsys):
    asked = QuantizationOptions(accuracy_level=IN_INT8, min_agreement=0.0)
    how = {"target": "openvino", "precision": "int8", "quantization": asked}
    bundle = str(compiled("bert" if task == "SEQ_CLS" else "qwen2", task, how).bundle)
    other = str(compiled("bert" if task == "SEQ_CLS" else "qwen2", task).bundle)
    capsys.readouterr()
    said = []
    for line in (["inspect", bundle], ["inspect", bundle, "--json"], ["diff", other, bundle]):
        main(line)
        said.append(capsys.readouterr().out)
    kept = task == "CAUSAL_LM"
    assert ("KV cache" in said[0]) is kept
    assert json.loads(said[1])["engine"] == {"group": 32} | (
        {"kv_precision": "f32"} if kept else {}
    )
    assert ("engine.kv_precision" in said[2]) is kept
    assert "engine.group" in said[2]


@pytest.mark.parametrize(
    ("precision", "kept", "held_as"),
    [
        ("fp32", "f32", "fp32"),
        ("fp32", "f16", "fp16"),
        ("fp32", "u8", "bf16"),
        ("bf16", "f32", "bf16"),
        ("bf16", "f16", "bf16"),
        ("bf16", "u8", "bf16"),
        ("fp32", None, "fp32"),
        ("int8", "u8", "int8"),
    ],
)
def test_a_cache_in_fewer_bits_never_makes_the_thresholds_tighter(
    compiled, precision, kept, held_as
):
    bundle = kept_in(compiled, kept).bundle
    manifest = msgspec.structs.replace(bundle.manifest, precision=precision)
    assert OpenVinoBackend().held_as(replace(bundle, manifest=manifest)) == held_as


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--target", "ort", "--kv-precision", "u8"], "--kv-precision is about OpenVINO's KV"),
        (["--target", "openvino", "--kv-precision", "u8"], "this model keeps none"),
    ],
)
def test_where_there_is_no_such_cache_it_is_refused(compiled, tmp_path, capsys, line, words):
    one = compiled("bert", "SEQ_CLS")
    where = [str(one.trained.adapter), "--base", str(one.trained.base), "-o", str(tmp_path / "b")]
    assert main(["compile", *where, *line]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("content", [b"{}x", b'{"kv_precision": "u4"}', b'{"group": -1}', b"\xff"])
def test_an_engine_json_of_something_else_is_refused(compiled, tmp_path, content):
    bundle = tmp_path / "odd"
    shutil.copytree(kept_in(compiled, "f16").bundle.path, bundle)
    (bundle / "engine.json").write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "engine.json":
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ptdeploy.BundleError, match=r"engine\.json: does not describe an engine"):
        ptdeploy.load(bundle)
