"""compile --calibration: scales of activations that were found on texts, in a bundle that holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import tiny
from support.calibration import calibrated, sentences
from support.characters import add_tokenizer
from transformers import PreTrainedTokenizerFast

import ptdeploy
from ptdeploy.bundle import RequestLimits, read_bundle
from ptdeploy.bundle.task import Task
from ptdeploy.cli.main import main
from ptdeploy.errors import InputError
from ptdeploy.parity.reference.texts import calibration_rows
from ptdeploy.runtime.classifier import Classifier

ROWS = [[5, 6, 7, 8, 9], [40, 41], [60], list(range(3, 30))]
MULTITASK = "multitask prompt tuning"


def fixed(bundle: Path) -> int:
    """How many products read activations at a fixed scale."""
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    made = {node.output[0]: node for node in graph.node}
    constants = {one.name for one in graph.initializer}
    count = 0
    for node in graph.node:
        if node.op_type not in ("MatMulIntegerToFloat", "MatMul", "Gemm"):
            continue
        read = made.get(node.input[0])
        if read is not None and read.op_type == "DequantizeLinear":
            read = made.get(read.input[0])
        if read is not None and read.op_type == "QuantizeLinear":
            count += read.input[1] in constants
    return count


@pytest.fixture(params=["ort", "openvino"])
def target(request) -> str:
    return request.param if request.param == "ort" else installed("openvino")


def installed(name: str) -> str:
    pytest.importorskip(name)
    return name


# On openvino those whose products differ: a layer that runs twice, attention of its own.
OTHERS = [(one, "openvino") for one in ("bert", "albert", "deberta-v2")]


@pytest.mark.parametrize(
    ("architecture", "on"), [*((one, "ort") for one in tiny.ENCODERS), *OTHERS]
)
def test_every_encoder_can_be_calibrated(compiled, shared, architecture, on):
    target = on if on == "ort" else installed(on)
    how = {"tokenizer": "characters", "jitter": True}
    own = compiled(architecture, "SEQ_CLS", calibrated(shared, target), **how).bundle
    full = compiled(architecture, "SEQ_CLS", **how).bundle
    quantization = read_bundle(own).manifest.quantization
    assert 0 < quantization.calibrated <= 1
    assert fixed(own) > 0
    assert quantization.share == 1
    engines = ptdeploy.load(own), ptdeploy.load(full)
    for one, other in zip(*(engine.logits(ROWS) for engine in engines), strict=True):
        assert 0 < np.abs(one - other).max() < 0.1 * (1 + np.abs(other).max())
    assert main(["verify", str(own), "--quiet"]) == 0


def test_a_token_classifier_can_be_calibrated(compiled, shared, target, capsys):
    how = {"tokenizer": "characters", "jitter": True}
    own = compiled("bert", "TOKEN_CLS", calibrated(shared, target), **how).bundle
    share = read_bundle(own).manifest.quantization.calibrated
    assert fixed(own) > 0
    assert main(["verify", str(own), "--quiet"]) == 0
    assert main(["inspect", str(own)]) == 0
    assert f"activations at fixed scales for {share:.2%} of them" in capsys.readouterr().out


def test_texts_have_each_of_several_prompts_in_turn(shared, tmp_path, monkeypatch):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS", kind=MULTITASK)
    add_tokenizer(trained.base, wrap=True)
    asked: list[str] = []
    feed = Classifier.feed

    def kept(engine, *given):
        asked.append(engine.default_prompt)
        return feed(engine, *given)

    monkeypatch.setattr(Classifier, "feed", kept)
    bundle = ptdeploy.compile(
        trained.adapter,
        base=str(trained.base),
        output=tmp_path / "bundle",
        task_id="all",
        **calibrated(shared, "ort"),
    )
    names = list(bundle.manifest.prompts)
    assert len(names) > 1
    assert set(asked) == set(names)
    # Both kinds of texts, those that ranges come from and those that scales are tried on.
    assert set(asked[::2]) == set(asked[1::2]) == set(names)
    (note,) = (note for note in bundle.notes if "fixed scales" in note)
    share = bundle.manifest.quantization.calibrated
    assert note.startswith(f"activations have fixed scales for {share:.0%} of the weights")


@pytest.mark.parametrize("task", [Task.SEQ_CLS, Task.TOKEN_CLS])
def test_a_thousand_texts_are_looked_at_whatever_the_task(task, tmp_path):
    add_tokenizer(tmp_path, wrap=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    limits = RequestLimits(max_sequence=59, max_context=64, vocab_size=tiny.VOCABULARY)
    texts = tuple(sentences(1100).splitlines())
    rows = calibration_rows(tokenizer, limits, texts, task)
    lengths = [row.ids.size for row in rows[:1000]]
    assert lengths == [len(text) for text in texts[:1000]]
    assert [row.ids.size for row in rows[1000:]].count(59) >= 1
    assert len(rows) <= 1000 + 32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "int4"}, "calibration is about the activations of encoders in int8"),
        ({"precision": "fp32"}, "calibration is about quantized weights, and fp32 quantizes"),
        ({"block_size": 32}, "accuracy_level are about weights alone"),
        ({"accuracy_level": 4}, "accuracy_level are about weights alone"),
        ({"architecture": "gpt2"}, "calibration is about the activations of encoders in int8"),
        ({"texts": sentences(15)}, "calibration .*: 15 texts say too little of others"),
        ({"texts": "\n \n"}, "holds no text"),
        ({"texts": None}, "calibration .* cannot be read"),
        ({"texts": "a\n" * 30 + "ab\n" * 15, "wrap": False}, "calibration: 16 .* it has 15"),
        ({"tokenizer": False}, "calibration needs a tokenizer, and none was found"),
    ],
    ids=lambda one: "" if isinstance(one, str) else repr(one)[:30],
)
def test_what_cannot_be_calibrated_is_refused(tmp_path, given, said):
    trained = tiny.make(tmp_path, given.get("architecture", "bert"), "SEQ_CLS")
    if given.get("tokenizer", True):
        add_tokenizer(trained.base, wrap=given.get("wrap", True))
    text = tmp_path / "texts.txt"
    if (written := given.get("texts", sentences(20))) is not None:
        text.write_text(written)
    names = ("block_size", "accuracy_level")
    asked = {name: given[name] for name in names if name in given}
    with pytest.raises(InputError, match=said):
        ptdeploy.compile(
            trained.adapter,
            target="ort",
            precision=given.get("precision", "int8"),
            base=str(trained.base),
            output=tmp_path / "bundle",
            quantization=ptdeploy.QuantizationOptions(calibration=text, **asked),
        )
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        ["adapter", "base", *(["texts.txt"] if written is not None else [])]
    )
