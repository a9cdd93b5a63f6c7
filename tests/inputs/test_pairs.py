"""Pairs of sentences and segments: what PEFT makes of them, by text and by token ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from support import families, tiny
from support.faults import Editor
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import ptdeploy
from ptdeploy.bundle import RequestLimits, read_bundle
from ptdeploy.cli.main import main
from ptdeploy.parity.compare import compare
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.parity.reference.texts import (
    reference_texts,
    save_text_files,
    text_program_files,
)

PAIRS = [
    ("the cat sat on the mat", "the dog ran"),
    ("she said that", "he was not at home"),
    ("one", "two three four five six seven eight nine ten; good bad great poor"),
]


@dataclass(frozen=True)
class Made:
    """A classifier whose base has a tokenizer."""

    trained: tiny.Trained
    bundle: Path
    tokenizer: Any


def make(compiled: Any, architecture: str, family: str, **changes: Any) -> Made:
    size = max(len(families.make(family)), tiny.VOCABULARY)
    one = compiled(
        architecture, "SEQ_CLS", tokenizer=family, vocab_size=size, jitter=True, **changes
    )
    return Made(one.trained, one.bundle, AutoTokenizer.from_pretrained(one.trained.base))


@pytest.fixture(scope="module")
def segmented(compiled) -> Made:
    """A BERT that tells three segments apart, with room for 59 tokens of text."""
    return make(compiled, "bert", "wordpiece", type_vocab_size=3)


@pytest.fixture(scope="module")
def decoder(compiled) -> Made:
    """A Llama that classifies: its tokenizer joins two texts, and it has no segments."""
    return make(compiled, "llama", "metaspace")


def peft_logits(made: Made, segments: bool = True, **encoding: Any) -> np.ndarray:
    """PEFT's logits for what transformers' tokenizer gave, of one row alone."""
    ids = torch.tensor([encoding["input_ids"]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if segments:
        given["token_type_ids"] = torch.tensor([encoding["token_type_ids"]])
    with torch.no_grad():
        return made.trained.model(**given).logits[0].numpy()


def encoded(made: Made, text: str, pair: str, **options: Any) -> dict[str, Any]:
    return made.tokenizer(text, pair, **options)


def test_a_pair_of_texts_gives_pefts_logits_with_its_segments(segmented):
    engine = ptdeploy.load(segmented.bundle)
    results = engine.classify(PAIRS)
    for (text, pair), encoding, result in zip(PAIRS, engine.encode(PAIRS), results, strict=True):
        theirs = encoded(segmented, text, pair)
        assert encoding.ids == theirs["input_ids"]
        assert encoding.type_ids == theirs["token_type_ids"]
        assert set(encoding.type_ids) == {0, 1}
        wanted = peft_logits(segmented, **theirs)
        (logits,) = engine.logits([encoding.ids], token_type_ids=[encoding.type_ids])
        assert logits == pytest.approx(wanted, abs=1e-5)
        assert np.log(result.probabilities) == pytest.approx(
            torch.tensor(wanted).log_softmax(-1).numpy(), abs=1e-5
        )
        (without,) = engine.logits([encoding.ids])
        assert np.abs(without - logits).max() > 1e-2, "the segments mean something"


def test_a_decoder_takes_a_pair_as_its_tokenizer_joins_it(decoder):
    engine = ptdeploy.load(decoder.bundle)
    for text, pair in PAIRS:
        theirs = encoded(decoder, text, pair)
        (encoding,) = engine.encode([(text, pair)])
        assert encoding.ids == theirs["input_ids"]
        (logits,) = engine.logits([encoding.ids])
        assert logits == pytest.approx(peft_logits(decoder, False, **theirs), abs=1e-4)
    with pytest.raises(ptdeploy.InputError, match="has no segments"):
        engine.classify([[5, 6, 7]], token_type_ids=[[0, 0, 1]])


@pytest.fixture(scope="module")
def unsegmented(segmented, tmp_path_factory) -> Made:
    """The same BERT under a tokenizer that gives a model no segments, as transformers' own default
    is."""
    folder = tmp_path_factory.mktemp("unsegmented")
    base = Path(shutil.copytree(segmented.trained.base, folder / "base"))
    settings = base / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **names}))
    bundle = ptdeploy.compile(
        segmented.trained.adapter, base=str(base), target="ort", output=folder / "bundle"
    )
    assert any("gives no token_type_ids" in note for note in bundle.notes)
    trained = replace(segmented.trained, base=base)
    return Made(trained, folder / "bundle", AutoTokenizer.from_pretrained(base))


def test_a_tokenizer_that_gives_no_segments_gives_the_model_none(unsegmented):
    engine = ptdeploy.load(unsegmented.bundle)
    for pair, encoding, result in zip(
        PAIRS, engine.encode(PAIRS), engine.classify(PAIRS), strict=True
    ):
        theirs = encoded(unsegmented, *pair)
        assert "token_type_ids" not in theirs
        assert encoding.ids == theirs["input_ids"]
        assert encoding.type_ids == [0] * len(encoding.ids)
        wanted = torch.tensor(peft_logits(unsegmented, False, **theirs)).softmax(-1)
        assert result.probabilities == pytest.approx(wanted.numpy(), abs=1e-5)
    reference = load_reference(engine.bundle)
    assert not any(any(types) for types in reference.pair_type_ids)
    assert all(row.type_ids is None for row in reference.rows if row.source == "text")


def test_a_bundle_that_does_not_say_has_the_segments_of_its_tokenizer_json(unsegmented, tmp_path):
    bundle = Path(shutil.copytree(unsegmented.bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["tokenizer"].pop("gives_token_type_ids") is False
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (encoding,) = ptdeploy.load(bundle).encode(PAIRS[:1])
    assert set(encoding.type_ids) == {0, 1}


def test_one_text_has_the_segments_that_its_tokenizer_gives(tmp_path):
    tokenizer = families.make("wordpiece")
    inner = tokenizer.backend_tokenizer
    marks = [(one, inner.token_to_id(one)) for one in ("[CLS]", "[SEP]")]
    inner.post_processor = TemplateProcessing("[CLS]:2 $A:0 [SEP]:0", None, marks)
    limits = RequestLimits(64, len(tokenizer), type_vocab_size=3, max_sequence=60)
    texts = reference_texts(tokenizer, limits)[::2]
    assert all(row.type_ids is not None and row.type_ids[:2].tolist() == [2, 0] for row in texts)
    alone = reference_texts(tokenizer, RequestLimits(64, len(tokenizer), max_sequence=60))
    assert all(row.type_ids is None for row in alone), "the model has no segments"
    save_text_files(tokenizer, tmp_path)
    with pytest.raises(ptdeploy.InputError, match="gives ids alone"):
        text_program_files(tmp_path, None, 3)


def test_texts_and_pairs_stand_in_one_request(segmented):
    engine = ptdeploy.load(segmented.bundle)
    mixed = engine.classify(["one two", PAIRS[0], list(PAIRS[1])])
    assert mixed[0].probabilities == pytest.approx(engine.classify("one two")[0].probabilities)
    assert mixed[1].probabilities == pytest.approx(engine.classify([PAIRS[0]])[0].probabilities)
    assert mixed[2].probabilities == pytest.approx(engine.classify([PAIRS[1]])[0].probabilities)
    two_texts = engine.classify(("one", "two"))
    assert len(two_texts) == 2, "a tuple that is the whole request holds two texts"


def test_a_long_pair_is_cut_as_transformers_cuts_it(segmented):
    engine = ptdeploy.load(segmented.bundle)
    limit = engine.limits.max_sequence
    for long in ((60, 5), (5, 60), (50, 50), (80, 29)):
        text, pair = ("the " * n for n in long)
        with pytest.raises(ptdeploy.InputError, match=f"at most {limit} fit"):
            engine.classify([(text, pair)])
        theirs = encoded(segmented, text, pair, truncation=True, max_length=limit)
        (ours,) = engine.encode([(text, pair)], truncate=True)
        assert (ours.ids, ours.type_ids) == (theirs["input_ids"], theirs["token_type_ids"])


def test_segments_of_rows_padded_anywhere_are_those_of_each_row_alone(segmented):
    engine = ptdeploy.load(segmented.bundle)
    encodings = engine.encode(PAIRS)
    alone = [engine.logits([e.ids], token_type_ids=[e.type_ids])[0] for e in encodings]
    for side in ("left", "right"):
        segmented.tokenizer.padding_side = side
        batch = segmented.tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True)
        given = {name: np.asarray(batch[name]) for name in batch}
        for got, want in zip(engine.logits(**given), alone, strict=True):
            assert got == pytest.approx(want, abs=1e-6)


def test_tags_say_which_text_of_a_pair_they_are_of(compiled):
    made = compiled("bert", "TOKEN_CLS")
    engine = ptdeploy.load(made.bundle)
    ids, types = [5, 6, 7, 8], [0, 0, 1, 1]
    tensors = torch.tensor([ids])
    with torch.no_grad():
        wanted = made.trained.model(
            input_ids=tensors,
            attention_mask=torch.ones_like(tensors),
            token_type_ids=torch.tensor([types]),
        ).logits[0, -4:]
    (logits,) = engine.logits([ids], token_type_ids=[types])
    assert logits == pytest.approx(wanted.numpy(), abs=1e-5)
    (tags,) = engine.tag([ids], token_type_ids=[types])
    assert [tag.index for tag in tags] == wanted.argmax(-1).tolist()


def test_places_of_a_pairs_tokens_are_in_their_own_text(segmented):
    (encoding,) = ptdeploy.load(segmented.bundle).encode([("one two", "three")])
    words = [
        ("one two", "three")[sequence][start:end]
        for (start, end), sequence in zip(encoding.offsets, encoding.sequences, strict=True)
        if sequence is not None
    ]
    assert words == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ([[0, 0, 3]], "outside 0 to 2"),
        ([[0, 0, -1]], "outside 0 to 2"),
        ([[0, 0]], "3 tokens, but 2 token_type_ids"),
        ([[0, 0, 0], [0]], "2 rows, but input_ids 1"),
        ([[0, 0, 0.5]], "must be whole numbers"),
        (7, "is no batch of rows"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segmented, types, reason):
    engine = ptdeploy.load(segmented.bundle)
    for ask in (engine.logits, engine.classify, engine.encode):
        with pytest.raises(ptdeploy.InputError, match=reason):
            ask([[5, 6, 7]], token_type_ids=types)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("a", "b"), [5, 6]], "either texts or rows of token ids"),
        ([("a", "b", "c")], "A pair is two texts, but one item has 3"),
        ([("a", None)], "whole numbers"),
        ({"input_ids": [[5]], "token_type_ids": [[0]]}, "mapping of input_ids, token_type_ids"),
        (b"the cat", "text is bytes"),
        ([b"the cat"], "text is bytes"),
        (None, "no batch of rows"),
    ],
)
def test_what_is_neither_text_nor_pair_nor_row_is_refused(segmented, given, reason):
    with pytest.raises(ptdeploy.InputError, match=reason):
        ptdeploy.load(segmented.bundle).classify(given)


def test_a_text_has_its_segments_from_the_tokenizer_alone(segmented):
    with pytest.raises(ptdeploy.InputError, match="gets them from its tokenizer"):
        ptdeploy.load(segmented.bundle).classify(["a"], token_type_ids=[[0]])


def test_a_causal_model_refuses_a_pair(compiled):
    engine = ptdeploy.load(compiled("gpt2", "CAUSAL_LM").bundle)
    with pytest.raises(ptdeploy.InputError, match="has no segments"):
        engine.logits([[5, 6]], token_type_ids=[[0, 0]])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[Any]:
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return [json.loads(line) for line in captured.out.splitlines()]


def test_run_takes_pairs_and_segments(segmented, tmp_path, capsys):
    bundle = segmented.bundle
    engine = ptdeploy.load(bundle)
    wanted = [one.probability for one in engine.classify(PAIRS[:2])]
    file = tmp_path / "pairs"
    file.write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS[:2]))
    (a, b), (c, d) = PAIRS[:2]
    rows = engine.encode(PAIRS[:2])
    ids = [word for row in rows for word in ("--ids", ",".join(map(str, row.ids)))]
    types = [
        word for row in rows for word in ("--token-type-ids", ",".join(map(str, row.type_ids)))
    ]
    for asked in (
        [a, c, "--pair", b, "--pair", d],
        ["--file", file, "--pairs"],
        [*ids, *types],
    ):
        answers = run(capsys, "run", bundle, *asked)
        assert [one["result"]["probability"] for one in answers] == pytest.approx(wanted)
    (answer,) = run(capsys, "run", bundle, a, "--pair", b)
    assert answer["input"] == [a, b]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (["a", "b", "--pair", "c"], "1 times for 2 texts"),
        (["--pair", "c"], "1 times for 0 texts"),
        (["a", "--pairs"], "says what a line of --file is"),
        (["--ids", "5,6", "--token-type-ids", "0,0", "--token-type-ids", "0"], "given 2 times"),
        (["--ids", "5,6", "--token-type-ids", "0,x"], "not whole numbers"),
        (["a", "--token-type-ids", "0"], "and --ids 0 times"),
    ],
)
def test_run_refuses_pairs_that_do_not_fit(segmented, capsys, asked, reason):
    assert main(["run", str(segmented.bundle), *asked]) == 2
    assert reason in capsys.readouterr().err


def test_a_line_of_pairs_has_one_tab(segmented, tmp_path, capsys):
    (tmp_path / "pairs").write_text("a\tb\nno tab\n")
    asked = ["--file", str(tmp_path / "pairs"), "--pairs"]
    assert main(["run", str(segmented.bundle), *asked]) == 2
    captured = capsys.readouterr()
    assert "line 2: The line has 0 tabs, but needs one" in captured.err
    assert captured.out.startswith("LABEL_"), "the other line has its answer"


def test_your_own_pairs_are_compared_with_peft(segmented, tmp_path):
    data = tmp_path / "data.jsonl"
    row = ptdeploy.load(segmented.bundle).encode([PAIRS[1]])[0]
    lines = [
        {"text": PAIRS[0][0], "text_pair": PAIRS[0][1], "label": 1},
        {"ids": row.ids, "token_type_ids": row.type_ids, "label": "LABEL_0"},
        {"text": PAIRS[1][0], "text_pair": PAIRS[1][1], "ids": row.ids},
        {"text": "one two"},
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = ptdeploy.verify(
        segmented.bundle,
        data=data,
        checkpoint=segmented.trained.adapter,
        base=str(segmented.trained.base),
    )
    assert report.passed
    assert sum(case.name == "data alone" for case in report.cases) == 4
    assert max(case.max_abs for case in report.cases) < 1e-5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"text_pair": "b"}, "neither text nor ids"),
        ({"ids": [5], "text_pair": "b"}, "a text_pair, but no text"),
        ({"text": "a", "token_type_ids": [0]}, "token_type_ids, but no ids"),
        ({"ids": [5, 6], "token_type_ids": [0]}, "2 tokens, but 1 token_type_ids"),
        ({"ids": [5], "token_type_ids": [9]}, "outside 0 to 2"),
    ],
)
def test_pairs_of_data_that_do_not_fit_are_refused_by_their_line(segmented, tmp_path, line, reason):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "a", "label": 0}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ptdeploy.InputError, match=f"line 2: .*{reason}"):
        ptdeploy.verify(segmented.bundle, data=data)


def test_the_stored_reference_has_every_segment_in_random_rows_and_in_pairs_of_text(segmented):
    reference = load_reference(read_bundle(segmented.bundle))
    drawn = [r for r in reference.rows if r.source == "random" and r.type_ids is not None]
    assert {int(one) for row in drawn for one in row.type_ids} == {0, 1, 2}
    texts = [row for row in reference.rows if row.source == "text"]
    assert sum(row.type_ids is None for row in texts) == 4
    assert all(set(row.type_ids) == {0, 1} for row in texts if row.type_ids is not None)


def test_an_engine_that_ignores_segments_is_a_mismatch(segmented, tmp_path):
    bundle = Path(shutil.copytree(segmented.bundle, tmp_path / "bundle"))
    editor = Editor(bundle)
    (table,) = [
        node.input[0]
        for node in editor.model.graph.node
        if node.op_type == "Gather" and "token_type_embeddings" in node.name
    ]
    for tensor in editor.model.graph.initializer:
        if tensor.name == table:
            rows = np.array(numpy_helper.to_array(tensor))
            rows[1:] = rows[0]
            tensor.CopyFrom(numpy_helper.from_array(rows, table))
    editor.write()
    report = ptdeploy.verify(bundle, report=tmp_path / "report")
    assert not report.passed
    failing = json.loads((tmp_path / "report" / "failing.jsonl").read_text().splitlines()[0])
    assert any(failing["token_type_ids"])
    again = ptdeploy.verify(bundle, data=tmp_path / "report" / "failing.jsonl")
    assert any(case.source == "data" and not case.passed for case in again.cases)


def test_another_way_to_join_two_texts_is_a_mismatch(segmented):
    engine = ptdeploy.load(segmented.bundle)
    reference = load_reference(engine.bundle)
    assert len(reference.pairs) == 2
    ids = ((1, 2), *reference.pair_ids[1:])
    types = (reference.pair_type_ids[0], (9,))
    for other in (replace(reference, pair_ids=ids), replace(reference, pair_type_ids=types)):
        report = compare(engine, other)
        assert not report.passed
        assert f"1 of {report.texts_total} texts" in report.failures()[-1]


def test_a_bundle_says_how_many_segments_it_takes(segmented, decoder):
    assert ptdeploy.load(segmented.bundle).manifest.limits.type_vocab_size == 3
    assert ptdeploy.load(decoder.bundle).manifest.limits.type_vocab_size == 0
