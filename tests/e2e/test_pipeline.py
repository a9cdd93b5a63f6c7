"""compile, verify, inspect, run and load as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.without_torch import run_without_torch

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main

FILES_OF_A_PROMPT = ("prompt.safetensors", "reference.safetensors", "parity.json")


def test_the_blocked_interpreter_really_refuses_torch():
    with pytest.raises(AssertionError, match="torch must not be imported"):
        run_without_torch("import torch")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("gpt2", "CAUSAL_LM"), ("qwen2", "SEQ_CLS")],
)
def test_a_copied_bundle_answers_the_same_without_torch(compiled, tmp_path, architecture, task):
    bundle = compiled(architecture, task).bundle
    shutil.copytree(bundle, tmp_path / "elsewhere")
    rows = [[5, 6, 7], [8], [9, 10]]
    here = [array.tolist() for array in ptdeploy.load(bundle).logits(rows)]
    there = run_without_torch(
        """
        import json, sys
        import ptdeploy

        engine = ptdeploy.load(sys.argv[1])
        print(json.dumps([a.tolist() for a in engine.logits(json.loads(sys.argv[2]))]))
        """,
        str(tmp_path / "elsewhere"),
        json.dumps(rows),
    )
    assert json.loads(there) == here


def test_verify_inspect_and_run_need_no_torch(compiled):
    bundle = str(compiled("gpt2", "CAUSAL_LM").bundle)
    out = run_without_torch(
        """
        import sys
        from ptdeploy.cli.main import main

        assert main(["verify", sys.argv[1], "-q"]) == 0
        assert main(["inspect", sys.argv[1]]) == 0
        assert main(["run", sys.argv[1], "--ids", "5,6", "--max-new-tokens", "3"]) == 0
        assert main(["doctor"]) == 0
        """,
        bundle,
    )
    assert "parity holds" in out
    assert "prefix KV (2, 2, 4, 5, 8)" in out


def test_help_imports_nothing_heavy():
    code = """
        import contextlib, sys
        from ptdeploy.cli.main import main

        with contextlib.suppress(SystemExit):
            main(["--help"])
        heavy = {"numpy", "torch", "onnxruntime", "tokenizers", "transformers"} & set(sys.modules)
        assert not heavy, heavy
    """
    assert "compile" in run_without_torch(code)


def test_two_compilations_are_byte_identical(tmp_path, compiled, exported_anew):
    one = compiled("qwen2", "CAUSAL_LM")
    again = ptdeploy.compile(
        one.trained.adapter,
        target="ort",
        base=str(one.trained.base),
        output=tmp_path / "again",
    )
    names = files_of(one.bundle)
    assert names == files_of(again.path)
    for name in names:
        assert (one.bundle / name).read_bytes() == (again.path / name).read_bytes(), name


def files_of(bundle: Path) -> list[Path]:
    return sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())


def test_a_bundle_holds_no_path_of_its_maker(compiled):
    one = compiled("bert", "TOKEN_CLS")
    for name in files_of(one.bundle):
        content = (one.bundle / name).read_bytes()
        for trace in (str(one.trained.base.parent), str(Path(tiny.__file__).parents[2])):
            assert trace.encode() not in content, name


def test_the_published_schema_is_the_readers_own(compiled):
    from ptdeploy.bundle import manifest_schema

    published = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
    assert published.read_bytes() == manifest_schema(), "run: make schema"
    jsonschema = pytest.importorskip("jsonschema")
    manifest = json.loads((compiled("bert", "SEQ_CLS").bundle / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads(published.read_text()))


def test_verify_with_the_checkpoint_computes_the_reference_again(compiled, capsys):
    one = compiled("bert", "SEQ_CLS")
    arguments = ["--checkpoint", str(one.trained.adapter), "--base", str(one.trained.base)]
    assert main(["verify", str(one.bundle), *arguments, "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["notes"] == []


def test_verify_exits_1_against_another_training(compiled, tmp_path, capsys):
    bundle = compiled("bert", "SEQ_CLS").bundle
    other = tiny.make(tmp_path, "bert", "SEQ_CLS", seed=1)
    arguments = ["--checkpoint", str(other.adapter), "--base", str(other.base)]
    assert main(["verify", str(bundle), *arguments, "-q"]) == 1
    out = capsys.readouterr().out
    assert "PARITY MISMATCH" in out
    assert "not those the bundle was compiled from" in out


@pytest.mark.parametrize(
    ("task", "kind", "side"),
    [
        ("CAUSAL_LM", "", "left"),
        # Behind virtual tokens transformers reads the class at the batch's last position.
        ("SEQ_CLS", "", "right"),
        ("SEQ_CLS", "prefix tuning", None),
    ],
)
def test_verify_tells_how_far_off_pefts_own_padded_batch_is(compiled, task, kind, side):
    report = ptdeploy.verify(compiled("gpt2", task, kind=kind).bundle)
    assert report.passed
    notes = [note for note in report.notes if "-padded batch does not match" in note]
    assert len(notes) == (side is not None)
    assert all(f"own {side}-padded" in note for note in notes)


def test_compile_on_the_command_line_says_what_it_did(tmp_path, capsys):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    output = tmp_path / "my output"
    arguments = ["compile", str(trained.adapter), "--target", "ort", "--base", str(trained.base)]
    assert main([*arguments, "-o", str(output), "--labels", "no,maybe,yes"]) == 0
    captured = capsys.readouterr()
    for word in (
        "read ",
        "frozen ",
        "parity ",
        "5 virtual tokens",
        f"ptdeploy run '{output}' --ids",
    ):
        assert word in captured.out
    assert "export to ONNX" in captured.err
    assert ", named " not in captured.out
    assert main(["run", str(output), "--ids", "5,6,7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert set(result["probabilities"]) == {"no", "maybe", "yes"}
    assert sum(result["probabilities"].values()) == pytest.approx(1)


def test_force_replaces_a_bundle_and_leaves_nothing_beside_it(tmp_path, capsys):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    output = tmp_path / "out" / "bundle"
    arguments = ["compile", str(trained.adapter), "--target", "ort", "--base", str(trained.base)]
    for extra in ([], ["--force", "--labels", "a,b,c"]):
        assert main([*arguments, "-o", str(output), "-q", "--json", *extra]) == 0
    facts = [json.loads(part) for part in _objects(capsys.readouterr().out)]
    labels = [one["prompts"]["default"]["labels"] for one in facts]
    assert labels == [["LABEL_0", "LABEL_1", "LABEL_2"], ["a", "b", "c"]]
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_a_prompt_has_the_name_that_compile_was_told(tmp_path, capsys):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    bundle = str(tmp_path / "bundle")
    arguments = ["compile", str(trained.adapter), "--target", "ort", "--base", str(trained.base)]
    assert main([*arguments, "-o", bundle, "--name", "mood.v2"]) == 0
    assert "(an evaluated prompt), named mood.v2\n" in capsys.readouterr().out
    manifest = read_bundle(bundle).manifest
    assert (manifest.default_prompt, list(manifest.prompts)) == ("mood.v2", ["mood.v2"])
    of_prompt = {entry.path for entry in manifest.files if entry.of == "mood.v2"}
    assert of_prompt == {f"prompts/mood.v2/{name}" for name in FILES_OF_A_PROMPT}
    assert main(["inspect", bundle]) == 0
    assert "prompt          'mood.v2' (the default): 5 virtual tokens" in capsys.readouterr().out
    for command in (["verify", bundle], ["run", bundle, "--ids", "5,6"], ["diff", bundle, bundle]):
        assert main(command) == 0


def test_generation_stops_at_eos_in_the_rows_that_reach_it(compiled):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    rows = [[5, 6, 7], [40, 41]]
    free = engine.generate(rows, max_new_tokens=12, eos_token_ids=())
    stop = free[0].token_ids[3]
    got = engine.generate(rows, max_new_tokens=12, eos_token_ids=[stop])
    assert got[0].token_ids == free[0].token_ids[: free[0].token_ids.index(stop)]
    assert got[0].stopped == "eos"
    if stop not in free[1].token_ids:
        assert got[1] == free[1]


def test_generation_past_the_context_is_refused(compiled):
    engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
    with pytest.raises(ptdeploy.InputError, match="leaves 56 of the model's 64 positions"):
        engine.generate([[5, 6, 7]], max_new_tokens=57)
    assert len(engine.generate([[5, 6, 7]], 56, eos_token_ids=())[0].token_ids) == 56


def test_a_token_classifier_labels_each_token(compiled):
    engine = ptdeploy.load(compiled("bert", "TOKEN_CLS").bundle)
    (tokens, others) = engine.tag([[5, 6, 7], [8]])
    assert [token.token_id for token in tokens] == [5, 6, 7]
    assert len(others) == 1
    (logits,) = engine.logits([[5, 6, 7]])
    assert [token.index for token in tokens] == np.argmax(logits, axis=-1).tolist()


def _objects(text: str) -> list[str]:
    """The JSON objects of a text in which each starts and ends on a line of its own."""
    return [part + "\n}" for part in text.split("\n}\n") if part.strip()]
