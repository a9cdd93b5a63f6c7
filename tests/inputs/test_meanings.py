"""What numbers mean beyond the weights: generation defaults, heads, class names, masks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import families, native, tiny
from support.damage import edit, the_prompt
from support.shared import Compiled
from transformers import GenerationConfig

import ptdeploy
from ptdeploy.bundle import GenerationOptions
from ptdeploy.cli.main import main
from ptdeploy.parity.quality import explained
from ptdeploy.runtime.classifier import Classifier
from ptdeploy.runtime.request_options import with_options
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.source.meaning import Meaning, read_meaning

Read = Callable[..., Meaning]


@pytest.fixture
def read(compiled, tmp_path) -> Read:
    """`read(task, generation={...}, config={...}, head=...)` with those files beside the base."""

    def get(
        task: str,
        generation: Any = None,
        config: dict[str, Any] | None = None,
        own: dict[str, Any] | None = None,
        head: str | None = None,
        labels: str | None = None,
    ) -> Meaning:
        trained = compiled("bert" if task == "SEQ_CLS" else "gpt2", task).trained
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        base.mkdir()
        shutil.copytree(trained.adapter, adapter)
        kept = json.loads((trained.base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**kept, **(config or {})}))
        if generation is not None:
            text = generation if isinstance(generation, str) else json.dumps(generation)
            (base / "generation_config.json").write_text(text)
        if own is not None:
            (adapter / "config.json").write_text(json.dumps(own))
        checkpoint = read_checkpoint(adapter, labels=labels)
        return read_meaning(checkpoint, resolve_base(checkpoint, str(base)), head)

    return get


OFF = {"eos_token_id": 2, "do_sample": False}


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0, "top_p": 1.0},
        {"temperature": 1.0, "top_k": None, "top_p": None, "typical_p": 1.0},
        {"top_k": 0, "min_p": None, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False},
        {"no_repeat_ngram_size": 0, "bad_words_ids": None, "suppress_tokens": []},
        {"forced_eos_token_id": None, "num_return_sequences": 1, "encoder_no_repeat_ngram_size": 0},
        {"use_cache": True, "pad_token_id": 0, "bos_token_id": 1, "output_scores": False},
        {"transformers_version": "4.1.0", "cache_implementation": "static", "unheard_of": 3},
        {"length_penalty": 2.0, "typical_p": 0.5},
        {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0, "penalty_alpha": 0},
    ],
)
def test_what_is_off_or_changes_no_token_is_taken_without_a_note(read, given):
    meaning = read("CAUSAL_LM", {**OFF, **given})
    assert meaning.notes == ()
    assert meaning.generation is not None
    assert meaning.generation.eos_token_ids == (2,)
    assert not meaning.generation.do_sample
    assert meaning.generation.temperature == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("num_beams", 4),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [7]),
        ("begin_suppress_tokens", [7]),
        ("forced_bos_token_id", 4),
        ("forced_eos_token_id", 2),
        ("forced_bos_token_id", 0),
        ("forced_eos_token_id", 0),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("guidance_scale", 1.5),
        ("guidance_scale", 0.0),
        ("sequence_bias", [[[5], 2.0]]),
        ("encoder_repetition_penalty", 1.2),
        ("encoder_repetition_penalty", 0),
        ("encoder_no_repeat_ngram_size", 2),
        ("num_beams", 0),
        ("penalty_alpha", 0.6),
        ("token_healing", True),
        ("stop_strings", ["end"]),
        ("max_length", 20),
        ("min_length", 3),
        ("max_time", 2.5),
        ("max_time", 0),
    ],
)
def test_a_field_that_changes_tokens_and_is_not_kept_is_named_with_its_value(read, name, value):
    notes = read("CAUSAL_LM", {**OFF, name: value}).notes
    assert len(notes) == 1, notes
    assert f"asks for {name}={json.dumps(value)}" in notes[0]


def test_every_field_that_transformers_knows_is_kept_harmless_or_named():
    """A field of a later transformers that nobody thought of is named."""
    from ptdeploy.source.meaning import _HARMLESS, _ONLY_WITH, _not_kept

    for name in vars(GenerationConfig()):
        if name.startswith("_") or name in _HARMLESS:
            continue
        if name == "eos_token_id":
            continue
        kept = name in GenerationOptions.__struct_fields__
        beside = {_ONLY_WITH[name]: 4} if name in _ONLY_WITH else {}
        named = any(f" {name}=" in note for note in _not_kept({name: 7, **beside}))
        assert named is not kept, name


def test_sampling_fields_are_named_where_the_model_samples(read):
    given = {"do_sample": True, "typical_p": 0.9, "eta_cutoff": 0.1, "top_p": 0.8}
    meaning = read("CAUSAL_LM", {"eos_token_id": 2, **given})
    assert meaning.generation is not None
    assert (meaning.generation.top_p, meaning.generation.top_k) == (0.8, 50)
    assert len(meaning.notes) == 2


@pytest.mark.parametrize(
    ("given", "top_k"),
    [({}, 50), ({"top_k": None}, 50), ({"top_k": 0}, 0), ({"top_k": 7}, 7), ({"top_k": -1}, 50)],
    ids=str,
)
def test_a_request_that_samples_draws_from_as_many_as_transformers(read, given, top_k):
    meaning = read("CAUSAL_LM", {**OFF, **given})
    assert meaning.generation is not None
    assert meaning.generation.top_k == top_k
    assert with_options(meaning.generation, {"temperature": 1.5}, 101).top_k == top_k
    assert with_options(meaning.generation, {"top_k": 0}, 101).top_k == 0


def test_sampling_at_temperature_0_is_greedy_and_says_so(read):
    meaning = read("CAUSAL_LM", {"eos_token_id": 2, "do_sample": True, "temperature": 0.0})
    assert meaning.generation is not None
    assert not meaning.generation.do_sample
    assert "temperature 0" in meaning.notes[0]


@pytest.mark.parametrize(
    ("generation", "eos", "note"),
    [
        ({"eos_token_id": [2, 5, 5]}, (2, 5), None),
        (None, (2,), None),
        ({"eos_token_id": -1}, (), "-1 is no token of the model"),
        ({"eos_token_id": [2, 151645]}, (2,), "151645 is no token of the model"),
    ],
)
def test_eos_ids_are_tokens_of_the_model(read, generation, eos, note):
    meaning = read("CAUSAL_LM", generation)
    assert meaning.generation is not None
    assert meaning.generation.eos_token_ids == eos
    assert meaning.notes == () if note is None else note in meaning.notes[0]


def test_an_eos_token_that_generate_does_not_know_is_taken_with_a_note(read):
    meaning = read("CAUSAL_LM", {"bos_token_id": 1})
    assert meaning.generation is not None
    assert meaning.generation.eos_token_ids == (2,)
    assert meaning.notes == (
        "generation_config.json names no EOS token: a row ends at config.json's, 2, where "
        "transformers' own generate goes on.",
    )


def test_a_model_without_an_eos_token_says_that_no_row_ends(read):
    meaning = read("CAUSAL_LM", {}, config={"eos_token_id": None})
    assert meaning.generation is not None
    assert meaning.generation.eos_token_ids == ()
    assert "neither generation_config.json nor config.json names an EOS token" in meaning.notes[0]


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "temperature": "hot"}, "temperature"),
        ({"max_new_tokens": "many"}, "max_new_tokens|cannot be read"),
    ],
)
def test_defaults_that_cannot_be_meant_are_refused_by_their_file(read, generation, reason):
    with pytest.raises(ptdeploy.BaseModelError, match=r"generation_config\.json|eos_token_id") as e:
        read("CAUSAL_LM", generation)
    assert re.search(reason, e.value.problem)
    assert e.value.fix


NAMES = {"0": "contradiction", "1": "neutral", "2": "entailment"}
PLAIN = ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_bases_former_classes_name_no_new_head(read):
    meaning = read("SEQ_CLS", config={"id2label": NAMES})
    assert meaning.labels == PLAIN
    (note,) = meaning.notes
    assert "contradiction, neutral, entailment" in note
    assert "--labels" in note


@pytest.mark.parametrize("names", [{}, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}])
def test_a_base_without_names_makes_no_note(read, names):
    meaning = read("SEQ_CLS", config={"id2label": names} if names else {})
    assert (meaning.labels, meaning.notes) == (PLAIN, ())


def test_names_in_the_checkpoints_own_config_are_taken(read):
    meaning = read(
        "SEQ_CLS", config={"id2label": NAMES}, own={"id2label": {0: "a", 1: "b", 2: "c"}}
    )
    assert meaning.labels == ("a", "b", "c")
    assert "checkpoint's config.json" in meaning.notes[0]


@pytest.mark.parametrize(
    "own",
    [
        {"id2label": {0: "a", 1: "a", 2: "c"}},
        {"id2label": {0: "a", 1: "", 2: "c"}},
        {"id2label": {0: "a", 2: "c"}},
        {"id2label": {1: "a", 2: "b", 3: "c"}},
        {"id2label": {0: "a\x1b[2J", 1: "b", 2: "c"}},
    ],
)
def test_own_names_that_tell_no_classes_apart_are_not_taken(read, own):
    meaning = read("SEQ_CLS", own=own)
    assert meaning.labels == PLAIN
    assert "twice, not at all, or by controls" in meaning.notes[0]


@pytest.mark.parametrize("own", [{"id2label": {0: "a"}}, {"id2label": [1]}, [], {}])
def test_a_config_that_is_of_another_head_is_left_alone(read, own):
    assert read("SEQ_CLS", own=own).labels == PLAIN


def test_the_users_names_go_before_all(read):
    meaning = read("SEQ_CLS", config={"id2label": NAMES}, labels="no,maybe,yes")
    assert (meaning.labels, meaning.notes) == (("no", "maybe", "yes"), ())


@pytest.mark.parametrize("labels", ["a,,b", "a,b,a", ","])
def test_class_names_that_are_empty_or_twice_are_refused(read, labels):
    with pytest.raises(ptdeploy.InputError, match=r"is empty|stands twice|one distinct name"):
        read("SEQ_CLS", labels=labels)


@pytest.mark.parametrize(
    ("problem", "head"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "regression"),
    ],
)
def test_the_head_is_what_problem_type_says(read, problem, head):
    assert read("SEQ_CLS", config={"problem_type": problem}).head == head


def test_the_user_says_another_head(read):
    assert read("SEQ_CLS", config={"problem_type": "regression"}, head="sigmoid").head == "sigmoid"


def test_a_head_for_another_task_is_refused(read):
    with pytest.raises(ptdeploy.InputError, match="no head that gives classes"):
        read("CAUSAL_LM", head="softmax")


@pytest.fixture(scope="module")
def regression(compiled) -> Compiled:
    """One output, trained as a number; int8, so that its gate is shown too."""
    size = max(len(families.make("wordpiece")), tiny.VOCABULARY)
    options = {"precision": "int8", "quantization": native.LOOSE_CLASSIFIER}
    shape = {"vocab_size": size, "num_labels": 1, "jitter": True}
    return compiled("bert", "SEQ_CLS", options, tokenizer="wordpiece", **shape)


def test_one_output_is_a_number(regression, capsys):
    engine = ptdeploy.load(regression.bundle)
    assert isinstance(engine, Classifier)
    assert engine.prompt.info.head == "regression"
    ids = [5, 6, 7]
    (found,) = engine.regress([ids])
    (logits,) = engine.logits([ids])
    assert found.values == (found.value,) == (float(logits[0]),)
    tensors = torch.tensor([ids])
    with torch.no_grad():
        wanted = regression.trained.model(
            input_ids=tensors, attention_mask=torch.ones_like(tensors)
        ).logits[0, 0]
    assert found.value == pytest.approx(float(wanted), abs=0.1)
    with pytest.raises(ptdeploy.InputError, match="head is a regression"):
        engine.classify([ids])
    assert main(["run", str(regression.bundle), "--ids", "5,6,7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result == {"value": found.value, "values": {"LABEL_0": found.value}}
    assert main(["run", str(regression.bundle), "--ids", "5,6,7"]) == 0
    assert capsys.readouterr().out.strip() == f"{found.value:.6g}"


def test_inspect_says_what_the_head_is_and_no_top1_of_a_number(regression, capsys):
    assert main(["inspect", str(regression.bundle)]) == 0
    out = capsys.readouterr().out
    assert "regression: its numbers are the answer" in out
    assert "explained variance" in out
    assert "top-1" not in out


def test_quantization_of_a_number_is_held_by_the_variance_it_explains(regression, tmp_path):
    report = ptdeploy.verify(regression.bundle)
    assert report.quality is not None
    assert report.quality.measured == "explained variance of the values"
    assert 0.5 < report.quality.top1_agreement < 1
    strict = tmp_path / "thresholds.json"
    strict.write_text('{"min_agreement": 1.0}')
    refused = ptdeploy.verify(regression.bundle, thresholds=strict)
    assert not refused.passed
    assert "explained variance of the values" in refused.failures()[-1]


def test_explained_variance_is_0_for_noise_and_1_for_the_same():
    want = np.arange(8, dtype=np.float32)[:, None]
    assert explained(want, want, "regression") == [1]
    assert explained(want, want[::-1], "regression") == [0]
    assert explained(want, want * np.nan, "regression") == [0]
    assert explained(want * 0, want * 0, "regression") == [1]
    assert explained(want * 0, want, "regression") == [0]
    assert 0.99 < explained(want, want + np.float32(0.01), "sigmoid").item() < 1


def test_each_output_explains_its_own_variance():
    """One that says nothing is not hidden by others that are larger, or more."""
    random = np.random.default_rng(0)
    want = random.normal(0, [1e4, 0.1], (320, 2)).astype(np.float32)
    got = want * np.array([1, 0], np.float32)
    assert explained(want, got, "regression").tolist() == [1, pytest.approx(0, abs=0.01)]
    rare = random.normal(0, 3, (320, 6)).astype(np.float32)
    rare[:, 4] -= 6
    never = rare.copy()
    never[:, 4] = -12
    shares = explained(rare, never, "sigmoid")
    assert shares.argmin() == 4
    assert shares[4] < 0.5


def test_values_that_do_not_vary_are_explained_by_what_is_near_them():
    """Of one text, or of equal ones, an honest engine gives the values and no variance."""
    want = np.full((4, 1), 3.0, np.float32)
    assert explained(want, want * np.float32(1.001), "regression").item() > 0.99
    assert explained(want, want * np.float32(1.01), "regression").item() == pytest.approx(0.75)
    assert explained(want, want * np.float32(1.1), "regression").item() == 0
    assert explained(want, want + np.float32(0.1), "sigmoid").item() > 0.98
    assert explained(want, -want, "sigmoid").item() == 0


def test_a_regression_on_your_data_has_a_squared_error(regression, tmp_path):
    value = ptdeploy.load(regression.bundle).regress([[5, 6, 7]])[0].value
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"ids": [5, 6, 7], "label": value + 2}) + "\n")
    report = ptdeploy.verify(regression.bundle, data=data)
    assert report.data is not None
    assert (report.data.name, report.data.rows) == ("mean squared error", 1)
    assert report.data.engine == pytest.approx(4.0)
    assert report.passed
    bounds = tmp_path / "thresholds.json"
    bounds.write_text('{"max_squared_error": 3.9}')
    assert not ptdeploy.verify(regression.bundle, data=data, thresholds=bounds).passed
    data.write_text('{"ids": [5], "label": "LABEL_0"}\n')
    with pytest.raises(ptdeploy.InputError, match="line 1: its label 'LABEL_0' is not a number"):
        ptdeploy.verify(regression.bundle, data=data)


@pytest.fixture
def sigmoid(compiled, tmp_path) -> Path:
    """A classifier whose classes are each true or not."""
    bundle = tmp_path / "sigmoid"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    edit(bundle, lambda m: the_prompt(m).update(head="sigmoid"))
    return bundle


def test_each_class_of_a_sigmoid_has_its_own_probability(sigmoid, capsys):
    engine = ptdeploy.load(sigmoid)
    rows = [[n, n + 1, n + 2] for n in range(0, 60, 5)]
    sizes = set()
    for logits, one in zip(engine.logits(rows), engine.classify(rows), strict=True):
        assert one.probabilities == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-6)
        names = zip(engine.prompt.info.labels, logits, strict=True)
        assert one.labels == tuple(name for name, logit in names if logit >= 0)
        sizes.add(len(one.labels))
    assert len(sizes) > 1, "none, one or several classes are true"
    assert main(["run", str(sigmoid), "--ids", "5,6,7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["labels"] == list(engine.classify([[5, 6, 7]])[0].labels)
    with pytest.raises(ptdeploy.InputError, match="no regression"):
        engine.regress(rows)


def test_the_set_of_classes_is_scored_on_your_data(sigmoid, tmp_path):
    engine = ptdeploy.load(sigmoid)
    rows = [[5, 6, 7], [40], [9, 10]]
    right = [list(one.labels) for one in engine.classify(rows)]
    right[2] = [name for name in engine.prompt.info.labels if name not in right[2]]
    data = tmp_path / "data.jsonl"
    lines = [{"ids": ids, "label": label} for ids, label in zip(rows, right, strict=True)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = ptdeploy.verify(sigmoid, data=data)
    assert report.data is not None
    assert report.data.engine == pytest.approx(2 / 3)


def test_a_head_on_another_task_is_no_bundle(compiled, tmp_path):
    bundle = tmp_path / "tagger"
    shutil.copytree(compiled("bert", "TOKEN_CLS").bundle, bundle)
    edit(bundle, lambda m: the_prompt(m).update(head="sigmoid"))
    with pytest.raises(ptdeploy.BundleError, match="head is for SEQ_CLS"):
        ptdeploy.load(bundle)


IDS = [[7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([[1, 0, 1, 1, 1]], "Row 0 of attention_mask has a gap: .* at position 1"),
        ([[0, 1, 0, 0, 1]], "Row 0 of attention_mask has a gap: .* at position 2"),
        ([[2, 1, 1, 1, 1]], "holds 2, but 1 is for text"),
        ([[0.0, 0.0, 0.0, -10000.0, -10000.0]], "holds -10000.0, but 1 is for text"),
        ([[0.5] * 5], "holds 0.5"),
        ([[float("nan")] * 5], "holds nan"),
        ([["1"] * 5], "holds 1, but 1 is for text|attention_mask holds"),
        (np.ones((1, 1, 5, 5)), "attention_mask has 4 dimensions"),
        (np.ones((1, 5, 5)), "attention_mask has 3 dimensions"),
        ([[0] * 5], "Row 0 is empty"),
        ([[1] * 4], "rows of 5 numbers and attention_mask of 4"),
        ([[1] * 5] * 2, "rows of 5 numbers and attention_mask of 5, 5"),
        (3, "attention_mask is no batch"),
    ],
)
def test_a_mask_that_is_not_plain_padding_is_refused_by_name(compiled, mask, reason):
    for architecture, task in (("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM")):
        engine = ptdeploy.load(compiled(architecture, task).bundle)
        with pytest.raises(ptdeploy.InputError, match=reason):
            engine.logits(IDS, mask)


@pytest.mark.parametrize("kind", [int, float, bool, np.int8])
def test_a_mask_of_any_type_of_ones_and_zeros_is_padding(compiled, kind):
    engine = ptdeploy.load(compiled("bert", "SEQ_CLS").bundle)
    mask = np.array([[0, 1, 1, 1, 0]]).astype(kind)
    (padded,) = engine.logits(IDS, mask)
    assert padded == pytest.approx(engine.logits([IDS[0][1:4]])[0], abs=1e-6)


def test_rows_of_unequal_length_may_have_masks_of_their_own(compiled):
    engine = ptdeploy.load(compiled("bert", "SEQ_CLS").bundle)
    found = engine.logits([[5, 6, 0], [7]], [[1, 1, 0], [1]])
    for got, want in zip(found, engine.logits([[5, 6], [7]]), strict=True):
        assert got == pytest.approx(want, abs=1e-6)
