"""A batch may mix prompts: each row is what it is alone with its own, in PEFT on PyTorch."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from support.alone import SUPPORTED
from support.siblings import ROWS, Siblings

import ptdeploy
from ptdeploy.parity.reference.store import load_reference

NAMES = ["long", "default", "short", None, "long", "default", "short"]
SLIDING = {"sliding_window": 8}
# ALiBi is bloom's: its distances must be those of a row alone. Where a window is shorter than a
# prompt, it ends within another of the prompt's tokens in each row.
DECODERS = [
    *((one, {}) for one, task in SUPPORTED if task == "CAUSAL_LM"),
    ("mistral", SLIDING),
    ("gemma3", {}),
]


def difference(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


def named(one: Siblings) -> list[str | None]:
    """A prompt for each of the rows; a head belongs to a prompt, so classifiers have no None."""
    return [name if name or one.task == "CAUSAL_LM" else "short" for name in NAMES]


def continued_as_alone(one: Siblings, rows: Any, names: Any, found: list[list[int]]) -> None:
    """Each row's tokens are the likeliest behind it, in PEFT and alone."""
    for ids, name, tokens in zip(rows, names, found, strict=True):
        wanted = one.alone([*ids, *tokens], name)[len(ids) - 1 : -1]
        assert tokens == wanted.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("architecture", "task"), [one for one in SUPPORTED if one[1] != "CAUSAL_LM"]
)
def test_a_row_of_a_mixed_batch_is_what_it_is_alone(siblings, architecture, task):
    one = siblings(architecture, task)
    names = named(one)
    found = one.engine().logits(ROWS, prompt=names)
    for ids, name, logits in zip(ROWS, names, found, strict=True):
        assert logits.shape[-1] == one.labels(name)
        assert difference(logits, one.alone(ids, name)) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "task", "how"),
    [
        ("mistral", "SEQ_CLS", SLIDING),
        ("gpt_neo", "SEQ_CLS", {}),
        ("mistral", "TOKEN_CLS", {**SLIDING, "kind": "prefix tuning", "names": ("prefix",)}),
    ],
)
def test_a_shorter_prompt_is_as_near_to_its_text_as_alone(siblings, architecture, task, how):
    """Where a model counts slots, as it does for a sliding window."""
    one = siblings(architecture, task, **how)
    names = [name for _, name in zip(ROWS, one.names * len(ROWS), strict=False)]
    found = one.engine().logits(ROWS, prompt=names)
    for ids, name, logits in zip(ROWS, names, found, strict=True):
        assert difference(logits, one.alone(ids, name)) < 1e-5


@pytest.mark.parametrize(("architecture", "how"), DECODERS)
def test_a_row_that_a_decoder_continues_is_what_it_is_alone(siblings, architecture, how):
    one = siblings(architecture, "CAUSAL_LM", **how)
    engine = one.engine()
    found = engine.logits(ROWS, prompt=NAMES)
    for ids, name, logits in zip(ROWS, NAMES, found, strict=True):
        assert difference(logits, one.alone(ids, name)) < 1e-4
    continued_as_alone(one, ROWS, NAMES, engine.greedy(ROWS, 12, prompt=NAMES))


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_prompts_that_are_run_are_mixed_too(siblings, architecture):
    one = siblings(architecture, "CAUSAL_LM", options={"freeze_kv": False})
    engine = one.engine()
    for names in (NAMES, [None] * len(ROWS), NAMES[::-1]):
        for ids, name, logits in zip(ROWS, names, engine.logits(ROWS, prompt=names), strict=True):
            assert difference(logits, one.alone(ids, name)) < 1e-4
    alone = [engine.greedy([ids], 9, prompt=name)[0] for ids, name in zip(ROWS, NAMES, strict=True)]
    assert engine.greedy(ROWS, 9, prompt=NAMES) == alone


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_a_prefix_that_was_trained_itself_is_one_of_them(siblings, task):
    one = siblings("qwen2", task, names=("long", "prefix"))
    names = ["prefix", "default", "long", "prefix", "default", "prefix", "long"]
    found = one.engine().logits(ROWS, prompt=names)
    for ids, name, logits in zip(ROWS, names, found, strict=True):
        assert difference(logits, one.alone(ids, name)) < 1e-4


def test_a_text_that_ends_in_padding_is_read_where_peft_reads_it(siblings):
    """At its last other token behind a trained prefix KV, at its last one behind virtual tokens."""
    one = siblings("qwen2", "SEQ_CLS", names=("long",), kind="prefix tuning")
    engine = one.engine()
    assert engine.prompts["default"].padding_id == 0
    assert engine.prompts["long"].padding_id is None
    rows = [[5, 6, 0, 0], [0], [0, 0, 0], [0, 7, 0], [9, 10, 11, 12, 13]]
    for names in (["default"] * 5, ["long"] * 5, ["default", "long"] * 2 + ["default"]):
        for ids, name, logits in zip(rows, names, engine.logits(rows, prompt=names), strict=True):
            assert difference(logits, one.alone(ids, name)) < 1e-5
    answers = engine.classify(rows)
    assert answers[0].probabilities == pytest.approx(engine.classify([[5, 6]])[0].probabilities)
    proven = {tuple(row.ids[-2:]) for row in load_reference(engine.bundle).rows}
    assert (0, 0) in proven


def test_each_text_gets_the_labels_of_its_own_prompt(siblings):
    one = siblings("bert", "SEQ_CLS")
    engine = one.engine()
    names = ["long", "short", "default", "short"]
    for name, answer in zip(names, engine.classify(ROWS[:4], prompt=names), strict=True):
        assert len(answer.probabilities) == one.labels(name)
        assert answer.label in engine.prompts[name].labels
        assert sum(answer.probabilities) == pytest.approx(1)
    records = engine.records(ROWS[:4], False, None, prompt=names)
    for name, record in zip(names, records, strict=True):
        assert tuple(record["probabilities"]) == engine.prompts[name].labels


def test_each_token_gets_the_labels_of_its_rows_own_prompt(siblings):
    one = siblings("bert", "TOKEN_CLS")
    engine = one.engine()
    names = ["long", "short", "default"]
    for ids, name, tokens in zip(ROWS, names, engine.tag(ROWS[:3], prompt=names), strict=False):
        wanted = one.alone(ids, name).argmax(-1).tolist()
        assert [token.index for token in tokens] == wanted
        assert {token.label for token in tokens} <= set(engine.prompts[name].labels)


def test_one_name_is_all_rows(siblings):
    engine = siblings("bert", "SEQ_CLS").engine()
    every = engine.logits(ROWS, prompt=["long"] * len(ROWS))
    assert all(map(np.array_equal, every, engine.logits(ROWS, prompt="long")))
    first = engine.logits(ROWS)
    assert all(map(np.array_equal, first, engine.logits(ROWS, prompt="default")))


def test_more_prompts_than_a_run_takes_are_run_one_part_after_the_other(siblings, monkeypatch):
    monkeypatch.setattr("ptdeploy.runtime.labelling.MOST_IN_A_RUN", 2)
    one = siblings("bert", "SEQ_CLS")
    names = named(one)
    for ids, name, logits in zip(ROWS, names, one.engine().logits(ROWS, prompt=names), strict=True):
        assert difference(logits, one.alone(ids, name)) < 1e-5


def test_a_row_has_room_beside_its_own_prompt(siblings):
    one = siblings("gpt2", "SEQ_CLS")
    engine = one.engine()
    context = engine.manifest.limits.max_context
    rows = [[5] * (context - 9), [6] * (context - 3)]
    found = engine.logits(rows, prompt=["long", "short"])
    assert difference(found[1], one.alone(rows[1], "short")) < 1e-5
    with pytest.raises(ptdeploy.InputError, match=rf"Row 1 .* at most {context - 9} fit beside"):
        engine.logits(rows, prompt=["short", "long"])
    cut = engine.encode(rows, truncate=True, prompt=["long", "long"])
    assert [len(row.ids) for row in cut] == [context - 9] * 2


def test_a_decoders_rows_are_continued_as_far_as_each_has_room(siblings):
    engine = siblings("qwen2", "CAUSAL_LM").engine()
    room = engine.manifest.limits.max_context - 9 - 3
    (row, other) = engine.greedy([[5, 6, 7]] * 2, room, prompt=["long", None])
    assert len(row) == len(other) == room
    assert len(engine.greedy([[5, 6, 7]], room + 9, prompt=None)[0]) == room + 9
    with pytest.raises(ptdeploy.InputError, match=f"row 1 leaves {room} of"):
        engine.greedy([[5, 6, 7]] * 2, room + 1, prompt=[None, "long"])
    with pytest.raises(ptdeploy.InputError, match="the text leaves 0 of"):
        engine.greedy([[5] * (room + 12)], 1, prompt=None)


@pytest.mark.parametrize(
    "options", [{}, {"freeze_kv": False}, {"target": "openvino"}], ids=["dense", "run", "paged"]
)
def test_a_full_neighbour_takes_no_room_from_a_row(siblings, options):
    """Where no number of tokens is asked for, each row goes on as far as it would alone."""
    engine = siblings("qwen2", "CAUSAL_LM", options=options).engine()
    context = engine.manifest.limits.max_context
    names = ["long", None, "short", "long", None]
    room = {"long": context - 9, "short": context - 3, None: context}
    rows = [[5] * (room[n] - left) for n, left in zip(names, (0, 0, 1, 7, 12), strict=True)]
    asking = {"eos_token_ids": (), "do_sample": False}
    together = engine.generate([*rows, [7]], prompt=[*names, "short"], **asking)
    assert [len(one.token_ids) for one in together[:5]] == [0, 0, 1, 7, 12]
    assert len(together[5].token_ids) == min(
        room["short"] - 1, engine.manifest.generation.max_new_tokens
    )
    for row, name, one in zip([*rows, [7]], [*names, "short"], together, strict=True):
        (alone,) = engine.generate([row], prompt=name, **asking)
        assert one == alone
        assert one.stopped == "length"
    # What comes after such a request finds nothing of it.
    (again,) = engine.generate([[7]], prompt="short", **asking)
    assert again == together[5]


@pytest.mark.parametrize("architecture", ["qwen2", "bloom"])
def test_a_spare_buffer_holds_nothing_of_the_prompts_before(siblings, architecture):
    """Whatever the last request was: longer prefixes, none, the same in another order."""
    one = siblings(architecture, "CAUSAL_LM")
    engine, used = one.engine(), set()
    for names in (
        ["long", "long", "long"],
        ["short", None, "default"],
        ["default", "short", None],
        [None, None, None],
        ["long", "short", "long"],
        ["long", "short", "long"],
    ):
        continued_as_alone(one, ROWS[:3], names, engine.greedy(ROWS[:3], 6, prompt=names))
        (spare,) = engine.buffers._spare
        used.add(id(spare.kv))
    assert len(used) == 1


def test_where_a_longer_prefix_was_nothing_is_left(siblings):
    """A mask hides no infinity."""
    one = siblings("bloom", "CAUSAL_LM")
    engine = one.engine()
    assert engine.manifest.graph.route == "plain"
    engine.greedy([[5, 6]], 3, prompt="long")
    (before,) = engine.buffers._spare
    for placed in before.kv._placed.values():
        placed.read()[:, :, 3:9] = np.inf
    continued_as_alone(one, [[5, 6]], ["short"], engine.greedy([[5, 6]], 3, prompt="short"))
    (after,) = engine.buffers._spare
    assert after.kv is before.kv


def test_streams_and_sessions_have_a_prompt(siblings, tmp_path):
    one = siblings("qwen2", "CAUSAL_LM", tokenizer="characters")
    engine = one.engine()
    for name in ("long", "short", None, "default"):
        (whole,) = engine.generate(["ab"], 6, prompt=name, eos_token_ids=())
        assert "".join(engine.stream("ab", 6, prompt=name, eos_token_ids=())) == whole.text
        talk = engine.session(prompt=name)
        talk.append("ab")
        assert talk.fork().generate(6, eos_token_ids=()).token_ids == whole.token_ids
        assert talk.generate(6, eos_token_ids=()).token_ids == whole.token_ids
    assert len({engine.generate(["ab"], 6, prompt=n)[0].text for n in ("long", "short", None)}) > 1


def test_a_fork_of_an_unloaded_prompts_session_leaves_nothing_behind(siblings):
    engine = siblings("gpt2", "CAUSAL_LM").engine()
    session = engine.session(prompt="long")
    session.append([5, 6, 7])
    engine.unload_prompt("long")
    fork = session.fork()
    assert fork.generate(3, eos_token_ids=()).token_ids
    prompt = weakref.ref(session._prompt)
    del session, fork
    gc.collect()
    assert prompt() is None
