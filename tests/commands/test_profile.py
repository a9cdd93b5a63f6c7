"""profile and inspect --layers say what an engine runs; verify completes a pending parity."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import damage, tiny

import ptdeploy
from ptdeploy.backends import get_backend
from ptdeploy.backends.ort.session import OrtSession
from ptdeploy.backends.trt.inspector import read_layer
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main
from ptdeploy.parity.completed import MAX_BYTES, keep_completed, read_completed
from ptdeploy.runtime import memory
from ptdeploy.targets.trt.options import TrtOptions

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
needs_no_gpu = pytest.mark.skipif(
    get_backend("trt").unavailable("cuda") is None, reason="the engine can run here"
)


@pytest.fixture(scope="module")
def trt_bundle(tmp_path_factory) -> Iterator[Path]:
    """A classifier's engine of TensorRT-RTX, built without a GPU: its parity is pending."""
    folder = tmp_path_factory.mktemp("trt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTDEPLOY_CACHE", str(folder / "cache"))
        trained = tiny.make(folder, "bert", "SEQ_CLS")
        yield ptdeploy.compile(
            trained.adapter,
            target="trt",
            base=str(trained.base),
            output=folder / "bundle",
            engine=TrtOptions(keep_onnx=True),
        ).path


@pytest.fixture
def pending(compiled, tmp_path) -> Path:
    """A bundle that can run here, with the manifest of one whose parity is pending."""
    bundle = tmp_path / "a pending bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    make_pending(bundle, "default")
    return bundle


def make_pending(bundle: Path, *names: str) -> None:
    """Let the manifest say of these prompts that the engine could not run with them."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in names:
        (parity,) = (
            one for one in manifest["files"] if (one["role"], one["of"]) == ("parity", name)
        )
        manifest["files"].remove(parity)
        (bundle / parity["path"]).unlink()
        manifest["prompts"][name]["parity"] = None
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def two(compiled, packed, tmp_path) -> Path:
    """A bundle of two prompts that can run here."""
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "two"))
    ptdeploy.prompt_add(bundle, packed("bert", "SEQ_CLS").path)
    return bundle


def as_json(capsys, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def profile(capsys, bundle: Path, *arguments: str) -> dict[str, Any]:
    return as_json(capsys, "profile", str(bundle), "--rounds", "5", *arguments)


def test_python_profiles_a_bundle_as_it_calls_everything_else(compiled, capsys):
    bundle = compiled("bert", "SEQ_CLS").bundle
    capsys.readouterr()
    found = ptdeploy.profile(bundle, batch=2, rounds=1)
    assert isinstance(found, ptdeploy.Profile)
    assert (found.bundle, found.rounds, found.sections[0].batch) == (str(bundle), 1, 2)
    assert capsys.readouterr().err == ""


def test_of_prompts_only_what_is_profiled_is_read(two, capsys):
    damage.flip(two / "prompts" / "other" / "prompt.safetensors", 0.9)
    assert main(["profile", str(two), "--rounds", "1"]) == 0
    capsys.readouterr()
    assert main(["profile", str(two), "--rounds", "1", "--prompt", "other"]) == 2
    assert "other/prompt.safetensors" in capsys.readouterr().err


def test_a_classifiers_layers_are_timed_and_add_up(compiled, capsys):
    found = profile(capsys, compiled("bert", "SEQ_CLS").bundle, "--batch", "3", "--tokens", "9")
    (section,) = found["sections"]
    assert (section["batch"], section["tokens"], section["engine_runs"]) == (3, 9, 1)
    assert 0 < section["layers_milliseconds"] < section["milliseconds"]
    assert 0 < section["covered"] < 1
    for table in ("layers", "by_layer", "by_part", "by_operator"):
        assert sum(one["share"] for one in section[table]) == pytest.approx(1)
        times = [one["milliseconds"] for one in section[table]]
        assert times == sorted(times, reverse=True)
    for table in ("by_layer", "by_part", "by_operator"):
        assert sum(one["layers"] for one in section[table]) == len(section["layers"])
    modules = {one["layer"]["module"] for one in section["layers"]}
    assert {"bert.encoder.layer.1.intermediate.dense", "classifier", "program"} <= modules
    assert {"bert.encoder.layer.0", "bert.pooler"} <= {one["name"] for one in section["by_layer"]}
    assert "bert.encoder.layer.*.attention" in {one["name"] for one in section["by_part"]}


def test_the_layers_timed_are_those_that_the_engine_runs(compiled, capsys):
    bundle = compiled("bert", "SEQ_CLS").bundle
    (section,) = profile(capsys, bundle)["sections"]
    listed = as_json(capsys, "inspect", str(bundle), "--layers")["engine_layers"]["layers"]
    assert {one["layer"]["name"] for one in section["layers"]} == {one["name"] for one in listed}


def test_a_fused_node_without_a_module_gets_its_neighbours(compiled, capsys):
    (section,) = profile(capsys, compiled("bert", "SEQ_CLS").bundle)["sections"]
    fused = [one["layer"] for one in section["layers"] if one["layer"]["operator"] == "BiasGelu"]
    assert {layer["module"] for layer in fused} == {"bert.encoder.layer.0", "bert.encoder.layer.1"}
    assert all(layer["fused"] and "/" not in layer["name"] for layer in fused)


def test_a_decoder_is_profiled_as_prefill_and_decode_step(compiled, capsys):
    bundle = compiled("qwen2", "CAUSAL_LM").bundle
    found = profile(capsys, bundle, "--batch", "2", "--tokens", "7", "--threads", "1")
    prefill, decode = found["sections"]
    assert prefill["request"] == "prefill of 1 row of 7 tokens"
    assert decode["request"] == "decode step of 2 rows behind 7 tokens"
    assert (prefill["engine_runs"], decode["engine_runs"]) == (1, 1)
    for section in (prefill, decode):
        operators = {one["name"]: one["layers"] for one in section["by_operator"]}
        assert operators["GroupQueryAttention"] == 2


def test_rounded_products_belong_to_the_modules_they_were_made_of(bundles, capsys):
    sections = profile(capsys, bundles("int8"))["sections"]
    layers = [one["layer"] for one in sections[1]["layers"]]
    products = {one["module"] for one in layers if one["operator"] == "MatMulNBits"}
    assert {"model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"} <= products
    assert "lm_head" in products


def test_a_prefill_in_pieces_counts_all_its_runs(bundles, capsys):
    found = profile(capsys, bundles("fused"), "--tokens", "600", "--rounds", "2")
    assert [one["engine_runs"] for one in found["sections"]] == [2, 1]


def test_a_buffer_that_does_not_fit_in_memory_is_refused(compiled, capsys, monkeypatch):
    bundle = str(compiled("qwen2", "CAUSAL_LM").bundle)
    monkeypatch.setattr(memory, "available_memory", lambda: 20 << 20)
    assert main(["profile", bundle, "--batch", "65536", "--json"]) == 3
    assert "20.0 MiB of memory are left" in json.loads(capsys.readouterr().out)["error"]


def test_the_rows_and_tokens_asked_for_are_what_runs(compiled, capsys, monkeypatch):
    bundle, real, shapes = compiled("bert", "SEQ_CLS").bundle, OrtSession.run, set()

    def run(session, inputs):
        shapes.add(inputs["input_ids"].shape)
        return real(session, inputs)

    monkeypatch.setattr(OrtSession, "run", run)
    profile(capsys, bundle, "--batch", "32", "--tokens", "54", "--rounds", "2")
    virtual = ptdeploy.load(bundle).manifest.prompt.num_virtual_tokens
    assert shapes == {(32, 54 + virtual)}


def test_the_tables_are_as_long_as_asked(compiled, capsys):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    assert main(["profile", bundle, "--rounds", "2", "--top", "3"]) == 0
    out, err = capsys.readouterr()
    layers = out.split("\n\n")[1].splitlines()
    assert layers[0].startswith("request of 1 row of 32 tokens: ")
    assert layers[1].split() == ["ms", "share", "type", "operator", "module", "layer"]
    assert len(layers) == 6
    assert " more, " in layers[-1]
    assert "by operator" in out
    assert "profile request of 1 row of 32 tokens ..." in err


@pytest.mark.parametrize(
    ("task", "arguments", "reason"),
    [
        ("SEQ_CLS", ["--tokens", "60"], "--tokens 60: at most 59 fit"),
        ("CAUSAL_LM", ["--tokens", "59"], "--tokens 59: at most 58 fit"),
        ("SEQ_CLS", ["--tokens", "0"], "--tokens 0: must be at least 1"),
        ("SEQ_CLS", ["--batch", "0"], "--batch 0: must be at least 1"),
        ("SEQ_CLS", ["--rounds", "0"], "--rounds 0: must be at least 1"),
        ("SEQ_CLS", ["--top", "0"], "--top 0: must be at least 1"),
    ],
)
def test_a_request_that_cannot_be_is_refused(compiled, capsys, task, arguments, reason):
    bundle = compiled("bert" if task == "SEQ_CLS" else "qwen2", task).bundle
    assert main(["profile", str(bundle), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_inspect_lists_the_graph_that_onnx_runtime_made(compiled, capsys):
    bundle = compiled("bert", "SEQ_CLS").bundle
    assert "engine_layers" not in as_json(capsys, "inspect", str(bundle))
    found = as_json(capsys, "inspect", str(bundle), "--layers")["engine_layers"]
    by_name = {layer["name"]: layer for layer in found["layers"]}
    dense = by_name["bert.encoder.layer.0.output.dense/MatMul"]
    assert dense["inputs"] == ["float32", "float32"]
    assert dense["outputs"] == ["float32"]
    assert not dense["fused"]
    fused = {layer["operator"] for layer in found["layers"] if layer["fused"]}
    assert fused == {"BiasGelu", "FusedMatMul", "FusedGemm"}
    weights = next(p.stat().st_size for p in bundle.iterdir() if p.name == "model.onnx.data")
    assert weights <= found["memory"]["weights"] < 1.5 * weights
    assert main(["inspect", str(bundle), "--layers"]) == 0
    out = capsys.readouterr().out
    assert "MatMul  float32 -> float32  bert.encoder.layer.0.output.dense/MatMul" in out
    assert "BiasGelu  float32 -> float32  BiasGelu  fused, of bert.encoder.layer.0" in out


def test_a_checkpoint_has_no_layers(compiled, capsys):
    adapter = compiled("bert", "SEQ_CLS").trained.adapter
    assert main(["inspect", str(adapter), "--layers"]) == 2
    assert "is no bundle" in capsys.readouterr().err


def test_without_onnx_a_profile_works_and_layers_say_what_to_install(compiled):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)

    def without_onnx(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = (
            "import sys; sys.modules['onnx'] = None; sys.modules['torch'] = None\n"
            "from ptdeploy.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = without_onnx("profile", bundle, "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "with onnx installed" in found["notes"][0]
    modules = {one["layer"]["module"] for one in found["sections"][0]["layers"]}
    assert {"", "bert.encoder.layer.0.intermediate.dense"} <= modules
    done = without_onnx("inspect", bundle, "--layers")
    assert done.returncode == 3
    assert "pip install onnx" in done.stderr


@needs_rtx
@needs_no_gpu
@pytest.mark.parametrize(
    "command", [["profile"], ["inspect", "--layers"], ["verify"]], ids=lambda words: words[0]
)
def test_an_engine_that_cannot_run_here_says_why(trt_bundle, capsys, command):
    before = sorted(path.name for path in trt_bundle.iterdir())
    assert main([command[0], str(trt_bundle), *command[1:]]) == 3
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert sorted(path.name for path in trt_bundle.iterdir()) == before


@needs_rtx
def test_a_pending_parity_is_shown_as_pending(trt_bundle, capsys):
    if get_backend("trt").unavailable("cuda") is None:
        pytest.skip("the engine can run here")
    assert as_json(capsys, "inspect", str(trt_bundle))["completed_parity"] is None
    assert main(["inspect", str(trt_bundle)]) == 0
    assert "parity          pending: verify completes it on a GPU" in capsys.readouterr().out


def test_verify_completes_a_pending_parity(pending, capsys):
    assert main(["verify", str(pending)]) == 0
    path = pending / "parity.json"
    assert f"this completes the bundle's parity, and was kept as {path}" in capsys.readouterr().err
    written = json.loads(path.read_text())
    assert written["passed"]
    found = as_json(capsys, "inspect", str(pending))["completed_parity"]
    assert (found["base"], list(found["prompts"])) == (None, ["default"])
    completed = found["prompts"]["default"]
    assert completed["cases"] == len(written["cases"])
    assert main(["inspect", str(pending)]) == 0
    out = capsys.readouterr().out
    assert f"parity          passed: max abs {completed['max_abs']:.2g} over" in out
    assert "completed by verify" in out


def test_a_pending_parity_that_is_a_mismatch_is_kept_as_that(pending, capsys):
    none = {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "kl": 0.0}
    damage.rewrite_reference(pending, lambda _, metadata: metadata["thresholds"].update(none))
    assert main(["verify", str(pending)]) == 1
    assert not json.loads((pending / "parity.json").read_text())["passed"]
    capsys.readouterr()
    assert main(["inspect", str(pending)]) == 0
    assert "parity          FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("default", "other"), ("other",)], ids=["both", "not default"])
def test_verify_completes_every_prompt_that_is_pending(two, capsys, names):
    make_pending(two, *names)
    assert main(["inspect", str(two)]) == 0
    assert capsys.readouterr().out.count("pending: verify completes it") == len(names)
    assert main(["verify", str(two)]) == 0
    assert "this completes the bundle's parity" in capsys.readouterr().err
    found = as_json(capsys, "inspect", str(two))["completed_parity"]["prompts"]
    assert {name: one["passed"] for name, one in found.items()} == dict.fromkeys(names, True)
    assert main(["inspect", str(two)]) == 0
    assert capsys.readouterr().out.count("completed by verify") == len(names)


def test_the_report_of_as_many_prompts_as_a_manifest_has_room_for_is_kept(pending):
    report = ptdeploy.verify(pending)
    every = msgspec.structs.replace(report, prompts=(report,) * 2_500)
    bundle = read_bundle(pending)
    assert "was kept as" in keep_completed(bundle, every)
    assert read_completed(bundle) == every
    before = (pending / "parity.json").stat()
    more = msgspec.structs.replace(report, notes=("n" * MAX_BYTES,))
    assert "it is larger than" in keep_completed(bundle, more)
    assert (pending / "parity.json").stat() == before


def test_a_run_of_less_than_what_is_pending_completes_nothing(two, tmp_path, capsys):
    make_pending(two, "default", "other")
    data = tmp_path / "data.jsonl"
    data.write_text('{"ids": [5, 9, 30], "label": 0}\n')
    for round_of in ("nothing there", "a full report there"):
        there = (two / "parity.json").read_bytes() if (two / "parity.json").exists() else None
        assert (there is None) == (round_of == "nothing there")
        for options in (["--prompt", "other"], ["--data", str(data)]):
            capsys.readouterr()
            assert main(["verify", str(two), *options]) == 0
            said = capsys.readouterr().err
            assert f"stays pending: it is completed without {options[0]}." in said
            assert (two / "parity.json").exists() == (there is not None)
            assert there is None or (two / "parity.json").read_bytes() == there
        assert main(["verify", str(two)]) == 0


def test_of_a_prompt_that_is_changed_nothing_stays_completed(two, packed, capsys):
    make_pending(two, "default", "other")
    ptdeploy.verify(two)
    capsys.readouterr()
    ptdeploy.prompt_default(two, "other")
    assert set(as_json(capsys, "inspect", str(two))["completed_parity"]["prompts"]) == {
        "default",
        "other",
    }
    ptdeploy.prompt_add(two, packed("bert", "SEQ_CLS").path, name="third")
    ptdeploy.prompt_remove(two, "default")
    written = json.loads((two / "parity.json").read_text())
    assert (written["prompt"], written["prompts"], written["passed"]) == ("other", [], True)
    ptdeploy.prompt_add(two, packed("bert", "SEQ_CLS").path, replace=True)
    assert not (two / "parity.json").exists()


def test_what_is_pending_of_a_pack_is_shown_where_it_is_added(packed, tmp_path, capsys):
    pack = Path(shutil.copytree(packed("bert", "SEQ_CLS").path, tmp_path / "other.prompt"))
    manifest = json.loads((pack / "manifest.json").read_text())
    manifest["prompt"]["parity"] = None
    (pack / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(pack)]) == 0
    said = capsys.readouterr().out
    assert "pending: prompt add shows it over an engine that can run" in said
    assert "verify" not in said


@needs_rtx
@needs_no_gpu
def test_compile_over_an_engine_that_cannot_run_promises_no_verify(trt_bundle, tmp_path):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    made = ptdeploy.compile_prompt(
        trained.adapter, over=trt_bundle, base=str(trained.base), output=tmp_path / "x.prompt"
    )
    assert any("ptdeploy prompt add BUNDLE PACK shows it" in one for one in made.notes)
    assert not any("ptdeploy verify" in one for one in made.notes)


def test_numbers_that_are_not_finite_are_null_in_json(pending, compiled, capsys):
    """Some readers refuse the whole document for one Infinity or NaN."""
    assert main(["verify", str(pending)]) == 0
    report = json.loads((pending / "parity.json").read_text())
    report["cases"][0].update(max_abs=None, passed=False)
    (pending / "parity.json").write_text(json.dumps({**report, "passed": False}))
    found = strict_json(capsys, "inspect", str(pending))["completed_parity"]
    completed = found["prompts"]["default"]
    assert (completed["passed"], completed["max_abs"]) == (False, None)
    assert main(["inspect", str(pending)]) == 0
    assert "FAILED: max abs not finite over" in capsys.readouterr().out
    whole = str(compiled("bert", "SEQ_CLS").bundle)
    changes = strict_json(capsys, "diff", whole, str(pending))["parity"]
    (change,) = (one for one in changes if one["name"] == "engine.max_abs")
    assert change["after"] is None
    assert main(["diff", whole, str(pending)]) == 0
    assert "-> not finite" in capsys.readouterr().out


def strict_json(capsys, *arguments: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    return found


def test_bounds_of_ones_own_complete_no_parity(pending, tmp_path, capsys):
    bounds = tmp_path / "bounds.json"
    bounds.write_text('{"max_abs": 9}')
    assert main(["verify", str(pending), "--thresholds", str(bounds)]) == 0
    assert "stays pending" in capsys.readouterr().err
    assert not (pending / "parity.json").exists()


@needs_rtx
@needs_no_gpu
def test_a_rebuilt_engine_does_not_inherit_the_parity_of_the_one_before(
    trt_bundle, tmp_path, capsys
):
    bundle = tmp_path / "shown"
    shutil.copytree(trt_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (graph,) = (entry for entry in manifest["files"] if entry["role"] == "graph_parity")
    path = "prompts/default/parity.json"
    shutil.copyfile(bundle / graph["path"], bundle / path)
    manifest["files"].append({**graph, "role": "parity", "path": path})
    prompt = manifest["prompts"]["default"]
    prompt["parity"] = prompt["graph_parity"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shown = as_json(capsys, "inspect", str(bundle))
    assert shown["prompts"]["default"]["parity"]["passed"]
    assert main(["rebuild", str(bundle)]) == 0
    capsys.readouterr()
    rebuilt = as_json(capsys, "inspect", str(bundle))
    assert (rebuilt["prompts"]["default"]["parity"], rebuilt["completed_parity"]) == (None, None)
    assert not (bundle / path).exists()


def test_a_parity_that_was_not_pending_is_left_alone(compiled, tmp_path):
    bundle = tmp_path / "whole"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    before = sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*"))
    assert main(["verify", str(bundle)]) == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in bundle.rglob("*")) == before


def test_a_folder_that_cannot_be_written_to_fails_no_verify(pending, capsys):
    # Not even root can rename a file onto a folder.
    (pending / "parity.json").mkdir()
    assert main(["verify", str(pending)]) == 0
    assert "the report was not kept: " in capsys.readouterr().err
    assert sorted(path.name for path in pending.iterdir() if path.name.startswith(".")) == []


def test_a_listed_file_of_that_name_is_not_replaced(pending, capsys):
    manifest = json.loads((pending / "manifest.json").read_text())
    (prompt,) = (entry for entry in manifest["files"] if entry["role"] == "prompt")
    (pending / prompt["path"]).rename(pending / "parity.json")
    prompt["path"] = "parity.json"
    (pending / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(pending)]) == 0
    assert "the bundle has another file parity.json" in capsys.readouterr().err
    assert main(["verify", str(pending)]) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not json", "not a parity report"),
        (b"\xff", "not a parity report"),
        (b"[" * 100_000, "not a parity report"),
        (b'{"passed": true}', "not a parity report"),
        (b" " * (MAX_BYTES + 1), "larger than"),
    ],
    ids=["text", "no utf-8", "deep", "incomplete", "large"],
)
def test_a_completed_parity_that_is_none_is_refused(pending, capsys, content, reason):
    (pending / "parity.json").write_bytes(content)
    assert main(["inspect", str(pending)]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert f"ptdeploy verify '{pending}'" in err


def test_a_completed_parity_of_another_engine_is_refused(pending, capsys):
    assert main(["verify", str(pending)]) == 0
    path = pending / "parity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target": "trt"}))
    assert main(["inspect", str(pending)]) == 2
    assert "is a report on trt cpu fp32, but the bundle is for ort cpu fp32" in (
        capsys.readouterr().err
    )


@needs_rtx
def test_the_profiler_is_one_that_tensorrt_takes():
    from ptdeploy.backends.trt.profile import _profiler
    from ptdeploy.backends.trt.vendor import open_vendor

    module = open_vendor("rtx").module
    told: list[tuple[str, float]] = []
    profiler = _profiler(module, lambda name, ms: told.append((name, ms)))
    assert isinstance(profiler, module.IProfiler)
    profiler.report_layer_time("lm_head/MatMul", 0.25)
    assert told == [("lm_head/MatMul", 0.25)]
    for attribute in ("profiler", "enqueue_emits_profile"):
        assert hasattr(module.IExecutionContext, attribute)


def test_the_inspectors_json_is_read():
    # As in NVIDIA/TensorRT issue 4020 and the developer guide, with our names for nodes.
    layer = read_layer(
        json.dumps(
            {
                "Name": "__myl_FcAddRes_myl0_7",
                "LayerType": "gemm",
                "Inputs": [
                    {"Name": "x", "Dimensions": [1, 32], "Format/Datatype": "Half"},
                    {"Name": "w", "Format/Datatype": "Row major linear FP32"},
                ],
                "Outputs": [{"Name": "y", "Format/Datatype": "BFloat16"}],
                "TacticName": "sm80_xmma_gemm_f16f16",
                "StreamId": 0,
                "Metadata": "[ONNX Layer: model.layers.0.mlp.up_proj/MatMul]\u001f"
                "[ONNX Layer: model.layers.0.mlp.down_proj/MatMul]\u001f[ONNX Layer: program/Add]",
            }
        )
    )
    assert layer.module == "model.layers.0.mlp"
    assert (layer.inputs, layer.outputs) == (("float16", "float32"), ("bfloat16",))
    assert (layer.operator, layer.kernel, layer.fused) == ("gemm", "sm80_xmma_gemm_f16f16", True)


@pytest.mark.parametrize(
    ("information", "name", "module"),
    [
        ('"lm_head/MatMul"', "lm_head/MatMul", "lm_head"),
        ('"a.b/MatMul + a.c/Add"', "a.b/MatMul + a.c/Add", "a"),
        ("Reformatting CopyNode", "Reformatting CopyNode", ""),
        ('{"Name": "one", "Metadata": "{"x": "[ONNX Layer: a.b/Add]"}"}', "one", "a.b"),
        ('{"Name": "one", "Metadata": "[ONNX Layer: a.b/Add]\x1e"}', "one", "a.b"),
        ("{}", "", ""),
        ("3", "3", ""),
    ],
)
def test_what_the_inspector_leaves_out_stays_empty(information, name, module):
    layer = read_layer(information)
    assert (layer.name, layer.module, layer.kernel) == (name, module, "")
