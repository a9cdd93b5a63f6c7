"""One object, several requests: none changes what another one gets."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import families

import ptdeploy
from ptdeploy.errors import InputError
from ptdeploy.parity.reference.texts import save_text_files
from ptdeploy.runtime.chat import ChatTemplate, render
from ptdeploy.runtime.classifier import Classifier
from ptdeploy.runtime.tokenizer import Tokenizer

PARTS = [*"abcdehnost .,'é東🙂\n", " the cat", "</s>", "[SEP]"]
TEXT = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they do on a busy machine."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], object], rounds: int = 40) -> list[list[object]]:
    """What each call gave in a thread of its own, every time."""
    given: list[list[object]] = [[] for _ in calls]
    start = threading.Barrier(len(calls))

    def repeat(call: Callable[[], object], answers: list[object]) -> None:
        start.wait()
        for _ in range(rounds):
            try:
                answers.append(call())
            except Exception as error:
                answers.append(error)

    threads = [threading.Thread(target=repeat, args=one) for one in zip(calls, given, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return given


@pytest.mark.parametrize("family", families.FAMILIES)
@given(text=TEXT, pair=st.none() | TEXT, limit=st.integers(3, 60))
@settings(max_examples=60, deadline=None)
def test_cut_text_is_what_the_library_itself_cuts(tokenizers, family, text, pair, limit):
    theirs, ours = tokenizers(family)
    theirs.backend_tokenizer.enable_truncation(limit)
    want = theirs.backend_tokenizer.encode(text, pair)
    cut = ours.encode_truncated(text, limit, pair)
    assert cut.ids == want.ids
    assert cut.type_ids == want.type_ids
    assert cut.offsets == want.offsets
    assert cut.tokens == want.tokens


def test_text_is_cut_on_the_side_that_transformers_cuts(tmp_path):
    theirs = families.make("wordpiece")
    theirs.truncation_side = "left"
    save_text_files(theirs, tmp_path)
    ours = Tokenizer(tmp_path / "tokenizer.json")
    text = "the cat sat on the mat and the dog ran"
    want = theirs(text, truncation=True, max_length=6)["input_ids"]
    assert ours.encode_truncated(text, 6).ids == want
    assert ours.encode(text).ids == theirs(text, truncation=False)["input_ids"]


def test_fewer_tokens_than_the_special_ones_are_refused(tokenizers):
    _, ours = tokenizers("wordpiece")
    assert len(ours.encode_truncated("the cat", 2).ids) == 2
    with pytest.raises(InputError, match="too few for the special tokens"):
        ours.encode_truncated("the cat", 1)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_one_threads_cut_is_no_other_threads(tokenizers, switching, family):
    _, ours = tokenizers(family)
    text = "the dog ran over a hill " * 9
    calls = [
        lambda: ours.encode(text).ids,
        lambda: ours.encode_truncated(text, 9).ids,
        lambda: ours.encode_truncated(text, 30, "a pair").ids,
        lambda: ours.decode(ours.encode(text).ids),
    ]
    alone = [call() for call in calls]
    for want, got in zip(alone * 2, together(*calls, *calls), strict=True):
        assert got == [want] * len(got)


def test_each_threads_answer_is_its_answer_alone(engines, switching):
    engine = engines("metaspace")
    messages = [{"role": "user", "content": "the cat"}]
    template = ChatTemplate("{{ messages[0].content }}{{ more }}", {})
    asked = {"eos_token_ids": (), "temperature": 2.0}
    calls = [
        lambda: engine.generate(["the cat", "a dog ran"], 8, seed=1, **asked),
        lambda: engine.generate("the cat", 9, seed=2, stop="a", repetition_penalty=1.3, **asked),
        lambda: "".join(engine.stream("she said", 12, seed=3, **asked)),
        lambda: next(engine.stream("she said", 12, seed=3, **asked), ""),
        lambda: talk(engine),
        lambda: [row.tobytes() for row in engine.logits([[300, 301], [302]])],
        lambda: render(template, messages, more=" sat"),
    ]
    alone = [call() for call in calls]
    for want, got in zip(alone, together(*calls, rounds=12), strict=True):
        assert got == [want] * len(got)


def talk(engine) -> list[int]:
    session = engine.session(max_tokens=60)
    session.append("the cat")
    session.append(" sat")
    session.generate(5, eos_token_ids=())
    return session.token_ids


def test_texts_that_are_cut_and_texts_that_are_not_share_an_engine(compiled, tmp_path, switching):
    theirs = families.make("word_level")
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = ptdeploy.load(compiled("bert", "SEQ_CLS").bundle, threads=1)
    engine = Classifier(loaded.bundle, loaded._session, Tokenizer(tmp_path / "tokenizer.json"))
    short, long = "the cat sat", "the dog ran over a hill " * 20

    def refused() -> str:
        with pytest.raises(InputError, match="at most"):
            engine.classify(long)
        return "refused"

    calls = [
        lambda: engine.classify(short),
        lambda: engine.classify(short, truncate=True),
        lambda: engine.classify(long, truncate=True),
        refused,
    ]
    alone = [call() for call in calls]
    for want, got in zip(alone * 2, together(*calls, *calls), strict=True):
        assert got == [want] * len(got)
