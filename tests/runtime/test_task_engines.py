"""What a task's engine answers to whoever asks: verify, profile, diff, the command line."""

from __future__ import annotations

import numpy as np
import pytest

import ptdeploy
from ptdeploy import InputError
from ptdeploy.bundle.task import Task
from ptdeploy.program.kinds import KINDS
from ptdeploy.runtime import ENGINES

ALL = [("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("qwen2", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")]
every = pytest.mark.parametrize(("architecture", "task"), ALL)
ROWS = [[5, 6, 7, 8, 9], [40, 41]]


@pytest.fixture
def engine(compiled, architecture, task):
    return ptdeploy.load(compiled(architecture, task).bundle)


def test_every_task_has_an_engine_and_a_program_kind():
    assert set(ENGINES) == {kind.task for kind in KINDS} == set(Task)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_what_generates_is_run_by_an_engine_that_writes(kind):
    assert ENGINES[kind.task].writes == kind.generates


@every
def test_the_shape_that_is_promised_is_that_of_the_logits(engine):
    for row, logits in zip(ROWS, engine.logits(ROWS), strict=True):
        assert logits.shape == engine.logit_shape(engine.manifest, len(row))


@every
def test_a_manifest_that_was_compiled_has_no_problem(engine):
    assert list(engine.manifest_problems(engine.manifest)) == []


@every
def test_the_manifest_of_another_task_has_problems(engine, task):
    for other, kind in ENGINES.items():
        if other is not Task(task):
            assert next(kind.manifest_problems(engine.manifest))


@every
def test_steps_can_be_run_again_and_give_the_same(engine):
    for request in engine.step_requests(2, 4):
        first = [np.array(one) for one in request.run()]
        request.reset()
        again = [np.array(one) for one in request.run()]
        assert all(map(np.array_equal, first, again)), request.name


@every
def test_more_tokens_than_fit_are_refused_with_how_many_do(engine):
    with pytest.raises(InputError, match=r"--tokens 5000: at most \d+ fit beside the virtual tok"):
        next(engine.step_requests(1, 5000))


@every
def test_whole_requests_run(engine):
    requests = list(engine.whole_requests([[1, 2, 3]] * 4, 5))
    assert [request.tokens for request in requests] == [3, 3]
    for request in requests:
        assert request.run()


@pytest.mark.parametrize(("architecture", "task"), ALL[:3])
@pytest.mark.parametrize("row", [0, 1])
def test_what_a_classifier_is_fed_gives_its_own_logits(engine, row):
    rows = [np.asarray(row, np.int64) for row in ROWS]
    fed = engine.feed(rows, [np.zeros_like(one) for one in rows], row)
    assert (fed.row, fed.rows, fed.width, fed.taken) == (row, 2, 5, len(ROWS[row]))
    logits = engine._session.run(fed.feed)["logits"][row]
    wanted = engine.logits(ROWS)[row]
    if logits.ndim == 2:
        # Those of virtual tokens stand before the text's, but for the ones that were not asked for.
        first = (fed.prefix if fed.runs_prefix else 0) - fed.skipped
        logits = logits[first : first + fed.taken]
    assert np.array_equal(logits, wanted)


@pytest.mark.parametrize(("architecture", "task"), ALL[3:])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_what_a_decoder_is_fed_gives_its_own_logits(engine, rows):
    ids = [np.asarray(row, np.int64) for row in rows]
    fed = engine.feed(ids, [np.zeros_like(one) for one in ids], 0)
    logits = engine._session.run(fed.feed)["logits"][fed.row]
    wanted = engine.logits(rows)[0][-fed.taken :]
    assert np.abs(logits - wanted).max() < 1e-5


@pytest.mark.parametrize(("architecture", "task"), ALL[3:])
def test_greedy_tokens_do_not_end_at_eos(engine):
    tokens = engine.greedy(ROWS, 6)
    assert [len(row) for row in tokens] == [6, 6]
    eos = (tokens[0][0],)
    assert engine.generate(ROWS[:1], 6, eos_token_ids=eos, do_sample=False)[0].token_ids == []
    assert engine.greedy(ROWS, 6) == tokens


@pytest.mark.parametrize(("architecture", "task"), ALL[:1])
def test_a_classifier_continues_no_text(engine):
    with pytest.raises(InputError, match="its task continues no texts"):
        engine.greedy(ROWS, 6)


@pytest.mark.parametrize(
    ("architecture", "task", "label", "problem"),
    [
        ("bert", "SEQ_CLS", "LABEL_0", ""),
        ("bert", "SEQ_CLS", ["LABEL_0"], "its label is a list, but a text has one class."),
        ("bert", "TOKEN_CLS", ["LABEL_0", None, 1], ""),
        ("bert", "TOKEN_CLS", ["LABEL_0"], "needs one label for each of its 3 tokens"),
        ("bert", "TOKEN_CLS", "LABEL_0", "needs one label for each of its 3 tokens"),
        ("qwen2", "CAUSAL_LM", "yes", "has a label, but a causal model has no classes."),
    ],
)
def test_a_label_fits_its_task_or_the_reason_is_said(engine, label, problem):
    said = engine.label_problem(label, 3)
    assert said.startswith(problem) if problem else said == ""


@pytest.mark.parametrize(("architecture", "task"), ALL[:3])
def test_a_record_is_shown_with_its_probabilities(engine):
    (record,) = engine.records([[5, 6, 7]], False, None)
    lines = engine.lines(record)
    if engine.one_answer:
        assert len(lines) == 1
        assert f"{record['label']} {record['probability']:.3f}" in lines[0]
    else:
        assert [line.split()[:2] for line in lines] == [
            [one["token"], one["label"]] for one in record
        ]
