"""Compiling for TensorRT without a GPU: real plans, and parity of the graph the parser got."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from support import tiny
from support.alone import peft_alone, random_rows

import ptdeploy
from ptdeploy import QuantizationOptions, TrtOptions
from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.engine_file import read_info, write_info
from ptdeploy.bundle import Bundle, Manifest, read_bundle
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError
from ptdeploy.parity.graph_check import open_graph_check
from ptdeploy.targets.trt import engine as building
from ptdeploy.targets.trt import plan

COARSE, FINE = QuantizationOptions(block_size=128), QuantizationOptions(block_size=32)
LEVEL = QuantizationOptions(accuracy_level=4)
NO_GPU = pytest.mark.skipif(cuda.unavailable() is None, reason="there is a GPU here")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(architecture, task)`: the same tiny model however often it is asked for."""
    made: dict[tuple[str, str], tiny.Trained] = {}

    def get(architecture: str, task: str) -> tiny.Trained:
        key = architecture, task
        if key not in made:
            made[key] = tiny.make(tmp_path_factory.mktemp("-".join(key)), architecture, task)
        return made[key]

    return get


@pytest.fixture(scope="module")
def kept(tmp_path_factory, trained) -> Path:
    """A decoder's bundle with its ONNX."""
    one = trained("qwen2", "CAUSAL_LM")
    output = tmp_path_factory.mktemp("kept") / "bundle"
    return compiled(one, output, engine=TrtOptions(keep_onnx=True)).path


def compiled(one: tiny.Trained, output: Path, **options) -> Bundle:
    return ptdeploy.compile(one.adapter, target="trt", base=str(one.base), output=output, **options)


def test_an_engine_takes_a_prompt_of_any_number_of_labels(tmp_path):
    one = tiny.make(tmp_path, "bert", "SEQ_CLS", num_labels=1100)
    bundle = compiled(one, tmp_path / "bundle")
    assert len(bundle.manifest.prompt.labels) == 1100
    (profile,) = read_info(bundle.file("engine_info")).profiles
    least, usual, most = profile.shapes["head.classifier.weight"]
    assert (least, usual, most) == ((1, 1, 32), (1, 1100, 32), (32, 1100, 32))


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_an_engine_that_would_not_take_what_it_is_checked_with_is_refused(
    trained, tmp_path, monkeypatch, architecture, task
):
    """Its graph, which has no profiles, answers all the same."""

    def narrow(signature, limits, *given):
        limits = msgspec.structs.replace(limits, max_batch=1)
        return plan.profiles(signature, limits, *given)

    monkeypatch.setattr(building, "profiles", narrow)
    with pytest.raises(BaseModelError, match=r"profiles do not take .*'input_ids': \(3, "):
        compiled(trained(architecture, task), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("precision", "architecture", "task"),
    [
        ("fp16", "bert", "SEQ_CLS"),
        ("fp16", "qwen2", "CAUSAL_LM"),
        ("bf16", "qwen2", "CAUSAL_LM"),
        ("bf16", "bloom", "CAUSAL_LM"),
    ],
)
def test_16_bits_keep_softmax_and_logits_in_fp32(trained, tmp_path, precision, architecture, task):
    one = trained(architecture, task)
    bundle = compiled(one, tmp_path / "b", precision=precision, engine=TrtOptions(keep_onnx=True))
    assert 1e-5 < bundle.manifest.prompt.graph_parity.max_abs < 0.2
    narrow = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    counted = read_info(bundle.file("engine_info")).precisions
    assert counted["float32"]["Softmax"] == 2
    assert "Softmax" not in counted[narrow]
    assert counted[narrow]["MatMul"] + counted[narrow].get("Gemm", 0) >= 8
    assert bundle.manifest.graph.outputs[0].dtype == "float32"
    caches = {spec.dtype for spec in bundle.manifest.graph.inputs if spec.role == "past"}
    assert caches == ({narrow} if task == "CAUSAL_LM" else set())


def test_tf32_is_a_flag_over_the_same_graph(trained, kept, tmp_path):
    tf32 = compiled(trained("qwen2", "CAUSAL_LM"), tmp_path / "b", precision="tf32")
    plain = read_bundle(kept)
    infos = [read_info(bundle.file("engine_info")) for bundle in (plain, tf32)]
    assert [info.tf32 for info in infos] == [False, True]
    assert infos[0].onnx_sha256 == infos[1].onnx_sha256
    assert plain.file("engine").read_bytes() != tf32.file("engine").read_bytes()


@pytest.mark.parametrize(
    ("precision", "stored", "options"),
    [
        ("int8", onnx.TensorProto.INT8, {}),
        ("int4", onnx.TensorProto.INT4, {"block_size": 16}),
        ("fp8", onnx.TensorProto.FLOAT8E4M3FN, {}),
    ],
)
def test_quantized_weights_are_read_through_dequantize_linear(
    trained, tmp_path, precision, stored, options
):
    quantization = QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9, **options)
    asked = {"precision": precision, "quantization": quantization}
    one = trained("qwen2", "CAUSAL_LM")
    engine = TrtOptions(keep_onnx=True)
    bundle = compiled(one, tmp_path / "b", engine=engine, **asked)
    assert bundle.manifest.prompt.graph_parity.perplexity_ratio < 1.1
    graph = onnx.load(bundle.file("model"), load_external_data=False).graph
    weights = {one.name: one for one in graph.initializer}
    reads = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    # Seven matrices a layer; the output layer is tied to the embeddings and read through a
    # transpose of its own.
    assert len(reads) == 15
    assert {weights[node.input[0]].data_type for node in reads} == {stored}
    assert {node.domain for node in graph.node} == {""}


def test_every_weight_is_quantized_in_blocks_of_any_size(trained, tmp_path):
    """A column of 32 or 64 weights ends in zeros up to 128."""
    bundle = compiled(
        trained("qwen2", "CAUSAL_LM"),
        tmp_path / "b",
        engine=TrtOptions(keep_onnx=True),
        precision="int4",
        quantization=replace(COARSE, min_agreement=0, max_perplexity_ratio=9),
    )
    graph = onnx.load(bundle.file("model"), load_external_data=False).graph
    weights = {one.name: one for one in graph.initializer}
    reads = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(reads) == 15
    assert {weights[node.input[0]].dims[0] for node in reads} == {128}


def test_the_graph_of_a_batch_equals_peft_row_by_row(kept, trained):
    """The graph that was parsed, run by ONNX Runtime, against PEFT itself."""
    model = trained("qwen2", "CAUSAL_LM").model
    rows = random_rows()
    with open_graph_check(read_bundle(kept), "ort") as engine:
        for got, row in zip(engine.logits(rows), rows, strict=True):
            assert np.abs(got - peft_alone(model, row, "CAUSAL_LM")).max() < 1e-5
        together = engine.generate([row.tolist() for row in rows], 12, eos_token_ids=())
        alone = [engine.generate([row.tolist()], 12, eos_token_ids=())[0] for row in rows]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_a_buffer_with_an_overflow_is_not_used_again(kept):
    """Attention reads all slots under a mask, and nothing times infinity is no number."""
    with open_graph_check(read_bundle(kept), "ort") as engine:
        want = engine.logits([[1, 2, 3]])[0]
        engine.generate([[5, 6]], 3, eos_token_ids=())
        rows = engine.buffers.take([engine.prompt], [5])
        spare = rows.kv
        spare._placed["past_key_values.0.value"].value[:, :, 20] = np.inf
        assert np.isnan(spare.decode([7])).any()
        engine.buffers.keep(rows)
        assert np.array_equal(engine.logits([[1, 2, 3]])[0], want)


def test_a_prompt_that_is_not_frozen_is_compiled_too(trained, tmp_path):
    bundle = compiled(trained("gpt2", "CAUSAL_LM"), tmp_path / "b", freeze_kv=False)
    assert bundle.manifest.prompt.prefix_kv is None
    assert bundle.manifest.prompt.graph_parity.passed


def test_profiles_follow_what_was_asked_for(trained, tmp_path):
    options = TrtOptions(profile="batch=1:2:4,seq=1:8:16")
    one = trained("qwen2", "CAUSAL_LM")
    bundle = compiled(one, tmp_path / "b", engine=options, max_context=40)
    decode, prefill = read_info(bundle.file("engine_info")).profiles
    assert decode.shapes["input_ids"] == ((1, 1), (2, 1), (4, 1))
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 8), (1, 16))
    assert bundle.manifest.graph.inputs[-1].shape == ("batch", 2, 40, 8)
    limits = bundle.manifest.limits
    assert (limits.max_batch, limits.max_prefill, limits.max_context) == (4, 16, 40)


def test_a_classifier_runs_more_rows_than_its_engine_takes_at_once(trained, tmp_path):
    one = trained("bert", "SEQ_CLS")
    engine = TrtOptions(profile="batch=1:1:2", keep_onnx=True)
    bundle = compiled(one, tmp_path / "b", engine=engine)
    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    with open_graph_check(bundle, "ort") as opened:
        sizes = []
        run = opened._session.run
        opened._session.run = lambda feed: sizes.append(len(feed["input_ids"])) or run(feed)
        assert len(opened.classify(rows)) == 5
        assert len(opened.logits(rows)) == 5
    assert sizes == [2, 2, 1] * 2


def test_a_second_compile_is_a_cache_hit_and_says_so(trained, tmp_path, capsys):
    one = trained("distilbert", "SEQ_CLS")
    command = ["compile", str(one.adapter), "--base", str(one.base), "--target", "trt"]
    for name, hit, options in (("a", False, []), ("b", True, []), ("c", False, ["--workspace=99"])):
        assert main([*command, "-o", str(tmp_path / name), *options]) == 0
        assert ("engine cache hit" in capsys.readouterr().err) is hit
    for name in ("engine.plan", "engine.json", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_compile_says_what_is_pending_and_what_it_took(trained, tmp_path, capsys):
    one = trained("bert", "SEQ_CLS")
    bundle = tmp_path / "bundle"
    command = ["compile", str(one.adapter), "--base", str(one.base), "--target", "trt"]
    assert main([*command, "-o", str(bundle), "--trt-flavor", "rtx", "--precision", "fp16"]) == 0
    out, err = capsys.readouterr()
    assert "built with TensorRT-RTX" in err
    assert "of the engine's graph: max abs" in out
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "in float16" in shown
    assert "in float32" in shown
    assert "input_ids [1, 1]" in shown
    assert main(["inspect", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["engine"]["flavor"] == "rtx"
    assert facts["prompts"]["default"]["graph_parity"]["passed"] is True


@NO_GPU
@pytest.mark.parametrize("command", [["verify"], ["run", "--ids", "1,2"]])
def test_what_cannot_run_here_exits_3(kept, command, capsys):
    name, *options = command
    code = main([name, str(kept), *options])
    said = capsys.readouterr().err
    assert code == 3, said
    assert "needs an NVIDIA GPU to run" in said


@NO_GPU
def test_the_engines_parity_is_pending_where_it_cannot_run(kept, capsys):
    assert read_bundle(kept).manifest.prompt.parity is None
    assert main(["inspect", str(kept)]) == 0
    assert "pending" in capsys.readouterr().out


def test_the_graph_is_verified_without_a_gpu(kept, capsys):
    assert main(["verify", str(kept), "--graph"]) == 0
    assert "parity holds" in capsys.readouterr().out
    assert not (kept / "parity.json").exists()


def hash_again(folder: Path) -> None:
    """Make the manifest of a bundle whose files were changed that of the new ones."""
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    entries = tuple(
        msgspec.structs.replace(
            entry,
            size=(folder / entry.path).stat().st_size,
            sha256=hashlib.sha256((folder / entry.path).read_bytes()).hexdigest(),
        )
        for entry in manifest.files
    )
    changed = msgspec.structs.replace(manifest, files=entries)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(changed))


def test_a_changed_graph_is_a_mismatch_and_its_module_is_named(kept, trained, tmp_path, capsys):
    broken = Path(shutil.copytree(kept, tmp_path / "bundle"))
    model = onnx.load(broken / "model.onnx")
    (node,) = [n for n in model.graph.node if n.name == "model.layers.1.mlp.up_proj/MatMul"]
    (weight,) = [one for one in model.graph.initializer if one.name == node.input[1]]
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name)
    )
    onnx.save(model, broken / "model.onnx")
    hash_again(broken)
    one = trained("qwen2", "CAUSAL_LM")
    command = ["verify", str(broken), "--graph", "--checkpoint", str(one.adapter)]
    report = tmp_path / "report"
    options = ["--base", str(one.base), "--locate", "--report", str(report), "--json"]
    assert main([*command, *options]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["located"]["module"] == "model.layers.1.mlp.up_proj"
    assert found["failing"]["command"].endswith("--graph")


def test_a_graph_that_is_not_there_is_not_verified(compiled_ort, trained, tmp_path):
    with pytest.raises(ptdeploy.InputError, match="is its graph"):
        ptdeploy.verify(compiled_ort, graph=True)
    bundle = compiled(trained("bert", "SEQ_CLS"), tmp_path / "b")
    with pytest.raises(ptdeploy.InputError, match="--keep-onnx"):
        ptdeploy.verify(bundle.path, graph=True)
    with pytest.raises(ptdeploy.InputError, match="holds no ONNX"):
        ptdeploy.rebuild(bundle.path)


@NO_GPU
def test_diff_says_what_changed_where_the_engines_cannot_run(kept, trained, tmp_path, capsys):
    one = trained("qwen2", "CAUSAL_LM")
    options = TrtOptions(profile="batch=1:1:2", workspace=99)
    other = compiled(one, tmp_path / "b", engine=options).path
    assert main(["diff", str(kept), str(other)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"engine\.workspace: .* -> 99", out)
    assert "engine.profile decode: (1, 1), (1, 1), (8, 1) -> (1, 1), (1, 1), (2, 1)" in out
    assert "limits.max_batch" in out
    assert "logits: not compared" in out
    assert "the engines were not run" in out
    assert main(["diff", str(kept), str(other), "--speed"]) == 3


def test_a_project_for_a_tensorrt_bundle_is_told_how_to_build(kept, tmp_path, capsys):
    assert main(["cpp-new", str(tmp_path / "app"), str(kept)]) == 0
    assert "-DPTDEPLOY_TENSORRT=ON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "why"),
    [("strip_weights", "cannot give it any"), ("version_compatible", "runs on the host")],
)
def test_no_project_is_written_for_an_engine_that_cpp_does_not_load(
    kept, tmp_path, option, why, capsys
):
    place = Path(shutil.copytree(kept, tmp_path / "bundle"))
    info = read_info(place / "engine.json")
    write_info(msgspec.structs.replace(info, **{option: True}), place)
    hash_again(place)
    assert main(["cpp-new", str(tmp_path / "app"), str(place)]) == 3
    said = capsys.readouterr().err
    assert why in said
    assert f"Compile without --{option.replace('_', '-')}" in said
    assert not (tmp_path / "app").exists()


def test_rebuild_needs_neither_torch_nor_the_checkpoint(kept, tmp_path):
    program = (
        "import sys\n"
        "sys.modules.update(torch=None, transformers=None, peft=None, onnx=None, onnx_ir=None)\n"
        "from ptdeploy.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-c", program, "rebuild", str(kept), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, again = read_bundle(kept), read_bundle(output)
    assert again.file("engine").read_bytes() == first.file("engine").read_bytes()
    assert again.manifest.prompt.graph_parity == first.manifest.prompt.graph_parity
    assert read_info(again.file("engine_info")) == read_info(first.file("engine_info"))


@NO_GPU
def test_every_prompt_of_a_bundle_is_proven_by_its_graph_and_rebuilt_with_it(
    kept, trained, tmp_path
):
    place, one = tmp_path / "bundle", trained("qwen2", "CAUSAL_LM")
    shutil.copytree(kept, place)
    other = tiny.another(tmp_path / "other", one, "CAUSAL_LM", virtual_tokens=3, labels=3, seed=7)
    added = ptdeploy.prompt_add(place, other.adapter, name="other", base=str(one.base))
    assert added.manifest.prompts["other"].parity is None
    assert added.manifest.prompts["other"].graph_parity.passed
    report = ptdeploy.verify(place, graph=True)
    assert [(one.prompt, one.passed) for one in report.each()] == [
        ("default", True),
        ("other", True),
    ]
    rebuilt = ptdeploy.rebuild(place).manifest
    assert rebuilt.prompts == added.manifest.prompts


@NO_GPU
@pytest.mark.parametrize("asked", ["auto", "rtx"])
def test_an_engine_of_full_tensorrt_is_rebuilt_by_rtx_for_all_that_it_supports(
    kept, tmp_path, asked, capsys
):
    """Which GPU it was built on, and for which it was compatible, nobody asked of TensorRT-RTX."""
    place = Path(shutil.copytree(kept, tmp_path / "bundle"))
    rtx = read_info(place / "engine.json")
    full = {
        "flavor": "tensorrt",
        "version": "11.4.0.1",
        "gpu": "NVIDIA H100",
        "compute_capabilities": ("9.0",),
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
    }
    write_info(msgspec.structs.replace(rtx, **full), place)
    hash_again(place)
    assert main(["rebuild", str(place), "--trt-flavor", asked]) == 0
    assert "compatibility options of full TensorRT were left out" in capsys.readouterr().err
    assert read_info(place / "engine.json") == rtx


def test_an_engine_for_certain_gpus_is_rebuilt_for_them(kept, tmp_path):
    place = Path(shutil.copytree(kept, tmp_path / "bundle"))
    info = read_info(place / "engine.json")
    # Of GPUs that were asked for none is left out.
    asked = msgspec.structs.replace(info, compute_capabilities=("8.6", "8.9"), left_out=())
    write_info(asked, place)
    hash_again(place)
    assert ptdeploy.rebuild(place, engine=TrtOptions(flavor="rtx")).path == place
    assert read_info(place / "engine.json") == asked


def test_a_context_that_splits_rows_is_refused_and_nothing_is_written(trained, tmp_path):
    one = trained("qwen2", "CAUSAL_LM")
    with pytest.raises(ptdeploy.InputError, match="rows that begin at multiples of 256") as refusal:
        compiled(one, tmp_path / "b", max_context=41)
    assert "Compile with max_context 44 or 40" in refusal.value.fix
    assert list(tmp_path.iterdir()) == []


def contents(bundle: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_a_rebuild_that_fails_leaves_the_bundle_as_it_was(kept, capsys):
    before = contents(kept)
    if cuda.unavailable() is None:
        pytest.skip("there is a GPU here")
    assert main(["rebuild", str(kept), "--trt-flavor", "tensorrt"]) == 3
    assert contents(kept) == before
    assert [path.name for path in kept.parent.iterdir()] == ["bundle"]


def test_a_bundle_of_another_target_is_not_rebuilt(compiled_ort):
    with pytest.raises(ptdeploy.InputError, match="nothing to rebuild"):
        ptdeploy.rebuild(compiled_ort)


@pytest.fixture
def compiled_ort(request):
    return request.getfixturevalue("compiled")("bert", "SEQ_CLS").bundle


def test_options_of_tensorrt_are_refused_for_another_target(trained, tmp_path):
    one = trained("bert", "SEQ_CLS")
    with pytest.raises(ptdeploy.InputError, match=r"^engine.keep_onnx=True is about TensorRT"):
        ptdeploy.compile(
            one.adapter,
            target="ort",
            base=str(one.base),
            output=tmp_path / "b",
            engine=TrtOptions(keep_onnx=True),
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp64"}, "no precision 'fp64'"),
        ({"device": "cpu"}, "runs on cuda, not on 'cpu'"),
        ({"precision": "int8", "quantization": FINE}, "a scale for each column"),
        ({"precision": "int4", "quantization": LEVEL}, "one way alone"),
        ({"engine": TrtOptions(profile="seq=1:2:9999")}, "goes to 9999"),
        ({"engine": TrtOptions(version_compatible=True, flavor="rtx")}, "lean runtime"),
    ],
)
def test_what_the_target_cannot_do_is_refused(trained, tmp_path, options, words):
    with pytest.raises(ptdeploy.PtdeployError, match=words):
        compiled(trained("bert", "SEQ_CLS"), tmp_path / "b", **options)
    assert list(tmp_path.iterdir()) == []
