"""What the gate must not pass: data that nothing judged, or that the engine gives no numbers of."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.faults import with_table

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.cli.main import main
from ptdeploy.parity.reference.store import load_reference

IDS = [5, 6, 7]


def lines(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def thresholds(folder: Path, **bounds: float) -> list[str]:
    (folder / "thresholds.json").write_text(json.dumps(bounds))
    return ["--thresholds", str(folder / "thresholds.json")]


def test_logits_that_are_not_finite_on_your_data_never_pass(compiled, tmp_path):
    honest = compiled("bert", "SEQ_CLS").bundle
    seen = np.concatenate([row.ids for row in load_reference(read_bundle(honest)).rows])
    unseen = next(token for token in range(101) if token not in seen)

    def lost(table: np.ndarray) -> np.ndarray:
        table[unseen] = np.nan
        return table

    bundle = with_table(honest, "word_embeddings.weight", lost, tmp_path / "bundle")
    assert ptdeploy.verify(bundle).passed
    report = ptdeploy.verify(bundle, data=lines(tmp_path, {"ids": [5, unseen], "label": 0}))
    assert not report.passed
    assert report.data is not None
    assert report.data.engine is None
    assert any("not finite" in one for one in report.failures())


@pytest.fixture(scope="module")
def tagger(compiled) -> Path:
    return compiled("gpt2", "TOKEN_CLS").bundle


def test_a_drop_of_accuracy_needs_peft_beside_it(tagger, tmp_path, capsys):
    data = lines(tmp_path, {"ids": IDS, "label": [0, 1, 2]})
    given = ["verify", str(tagger), "-q", "--data", str(data)]
    assert main([*given, *thresholds(tmp_path, max_accuracy_drop=0.01)]) == 2
    assert "Pass the checkpoint with --checkpoint" in capsys.readouterr().err
    assert main([*given, *thresholds(tmp_path, max_perplexity_ratio=1.0)]) == 2
    assert "max_perplexity_ratio is of a causal model" in capsys.readouterr().err


def test_a_perplexity_of_rows_that_have_none_is_not_passed_over(compiled, tmp_path, capsys):
    one = compiled("qwen2", "CAUSAL_LM")
    told = ["--checkpoint", str(one.trained.adapter), "--base", str(one.trained.base), "-q"]
    bound = thresholds(tmp_path, max_perplexity_ratio=0.0)
    alone = ["--data", str(lines(tmp_path, {"ids": [5]}, {"ids": [7]}))]
    assert main(["verify", str(one.bundle), *told, *bound, *alone]) == 2
    assert "data of two tokens or more" in capsys.readouterr().err
    longer = ["--data", str(lines(tmp_path, {"ids": [5, 7]}))]
    assert main(["verify", str(one.bundle), *told, *bound, *longer]) == 1


def test_a_text_that_is_too_long_beside_ids_that_fit_is_a_mismatch(compiled, tmp_path):
    bundle = compiled("bert", "SEQ_CLS", tokenizer="characters").bundle
    data = lines(tmp_path, {"text": "hello world " * 900, "ids": [5, 6]})
    (failure,) = ptdeploy.verify(bundle, data=data).failures()
    assert failure.endswith("the first of the given data's is row 1")


def test_locate_says_which_bound_does_not_hold_where_every_run_passes(compiled, tmp_path):
    one = compiled("qwen2", "CAUSAL_LM")
    report = ptdeploy.verify(
        one.bundle,
        checkpoint=one.trained.adapter,
        base=one.trained.base,
        data=lines(tmp_path, {"ids": [5, 7, 9]}),
        thresholds=thresholds(tmp_path, max_perplexity_ratio=0.5)[1],
        locate=True,
    )
    assert not report.passed
    assert report.located is not None
    assert "every run passes; what does not hold is" in report.located.cause
    assert "max_perplexity_ratio" in report.located.cause


def test_a_drop_of_accuracy_is_held_to_logits_that_rows_bring(tagger, tmp_path):
    logits = ptdeploy.load(tagger).logits([IDS])[0]
    right = logits.argmax(-1).tolist()
    row = {"ids": IDS, "label": right, "logits": logits.tolist()}
    given = ["verify", str(tagger), "-q", "--data", str(lines(tmp_path, row))]
    assert main([*given, *thresholds(tmp_path, max_accuracy_drop=0.0)]) == 0


def test_a_row_whose_labels_are_all_null_is_not_labelled(tagger, tmp_path, capsys):
    none, some = ({"ids": IDS, "label": label} for label in ([None] * 3, [None, 1, None]))
    given = ["verify", str(tagger), "-q", "--data"]
    bound = thresholds(tmp_path, min_accuracy=0.0)
    assert main([*given, str(lines(tmp_path, none)), *bound]) == 2
    assert "no labelled data was given" in capsys.readouterr().err
    assert main([*given, str(lines(tmp_path, none))]) == 2
    assert "row 1 has no label" in capsys.readouterr().err
    assert main([*given, str(lines(tmp_path, some)), *bound]) == 0
    assert "accuracy on 1 rows" in capsys.readouterr().out


def test_a_row_of_a_model_without_labels_is_not_said_to_lack_one(compiled, tmp_path, capsys):
    bundle = compiled("qwen2", "CAUSAL_LM").bundle
    capsys.readouterr()
    assert main(["verify", str(bundle), "-q", "--data", str(lines(tmp_path, {"ids": IDS}))]) == 2
    assert capsys.readouterr().err.startswith(
        "ptdeploy: --data: row 1 has no logits, and there is no reference for it.\n"
    )


def test_rows_that_bring_logits_are_compared_beside_rows_that_bring_labels(
    tagger, tmp_path, capsys
):
    logits = ptdeploy.load(tagger).logits([IDS])[0]
    label = {"ids": [8, 9], "label": [0, 1]}
    report = ptdeploy.verify(
        tagger, data=lines(tmp_path, label, {"ids": IDS, "logits": logits.tolist()})
    )
    assert report.passed
    assert [one.lengths for one in report.cases if one.name == "data alone"] == [(3,)]
    assert report.data is not None
    assert report.data.rows == 1
    wrong = {"ids": IDS, "logits": (logits + 1).tolist()}
    assert main(["verify", str(tagger), "-q", "--data", str(lines(tmp_path, label, wrong))]) == 1
    assert "data alone, lengths [3]" in capsys.readouterr().out


def test_an_engine_that_fails_on_your_data_or_evaluation_text_is_reported(
    compiled, tmp_path, capsys
):
    loose = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
    how = {"target": "ort", "precision": "int8", "quantization": loose}
    honest = compiled("gpt2", "TOKEN_CLS", how).bundle
    bundle = with_table(honest, "wpe.weight", lambda table: table[:20], tmp_path / "bundle")
    data = lines(tmp_path, {"ids": [5] * 30, "label": [0] * 30})
    given = ["verify", str(bundle), "--data", str(data), "-q"]
    assert main([*given, "--report", str(tmp_path / "report")]) == 1
    assert "\nTHE ENGINE FAILS" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["quality"]["stopped"]
    assert report["data"]["stopped"]
    assert report["data"]["engine"] is None


def test_data_of_ones_own_does_not_take_the_evaluation_texts_place(compiled, tmp_path):
    loose = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
    how = {"target": "ort", "precision": "int8", "quantization": loose}
    one = compiled("bert", "SEQ_CLS", how)
    stored = load_reference(read_bundle(one.bundle))
    assert len(stored.evaluation) > 100
    report = ptdeploy.verify(
        one.bundle,
        checkpoint=one.trained.adapter,
        base=str(one.trained.base),
        data=lines(tmp_path, {"ids": IDS}, {"ids": [8, 9]}),
    )
    assert report.quality is not None
    assert report.quality.texts == len(stored.evaluation) + 2
    assert report.quality.evaluated_on == f"{stored.evaluated_on} and the given data"


def test_a_row_that_is_encoded_otherwise_is_named_and_reproduced(compiled, tmp_path, capsys):
    bundle = compiled("bert", "SEQ_CLS", tokenizer="characters").bundle
    right = {"text": "hello", "ids": ptdeploy.load(bundle).encode("hello")[0].ids}
    wrong = {"text": "a longer one", "ids": [5, 6, 7]}
    data = lines(tmp_path, right, wrong, {**wrong, "text": "and one more"})
    report = ptdeploy.verify(bundle, data=data, report=tmp_path / "report")
    (failure,) = report.failures()
    assert failure.endswith("texts give other token ids, the first of the given data's is row 2")
    assert report.texts_total - report.texts_agreed == 2
    assert report.failing is not None
    assert json.loads(Path(report.failing.file).read_text()) == wrong
    assert main([*shlex.split(report.failing.command)[1:], "-q"]) == 1
    capsys.readouterr()
    assert ptdeploy.verify(bundle, data=lines(tmp_path, right)).passed
