"""Text out of token ids: pieces are the whole, and text before with text after is all the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import families
from tokenizers import Tokenizer as Made
from tokenizers import decoders, models

import ptdeploy
from ptdeploy.runtime.answer import Answer
from ptdeploy.runtime.text import Continuation
from ptdeploy.runtime.tokenizer import Tokenizer

# Ids of bytes and of the first words stand together, so that runs and characters come about.
IDS = st.lists(st.integers(0, 70) | st.integers(0, 470), max_size=60)


@pytest.mark.parametrize("kind", families.KINDS)
@given(before=IDS, after=IDS)
@settings(max_examples=50, deadline=None)
def test_text_before_and_text_after_are_the_text_of_all(tokenizers, kind, before, after):
    theirs, ours = tokenizers(kind)
    begun = theirs.decode(before, skip_special_tokens=True)
    whole = theirs.decode(before + after, skip_special_tokens=True)
    text = Continuation(ours, before).text(after)
    assert whole.endswith(text)
    kept = whole[: len(whole) - len(text)]
    assert begun.startswith(kept)
    if whole.startswith(begun):
        assert kept == begun
    else:
        # Where the text before ends within a character, or in bytes that later ones spoil.
        assert not text.startswith(begun[len(kept) :][:1])


@pytest.mark.parametrize("kind", families.KINDS)
@given(before=IDS, after=IDS)
@settings(max_examples=50, deadline=None)
def test_pieces_are_the_whole_text(tokenizers, kind, before, after):
    _, ours = tokenizers(kind)
    stream = Continuation(ours, before)
    given = ""
    for count, token in enumerate(after, 1):
        given += stream.push(token)
        assert given + stream.rest() == stream.text(after[:count])
    assert given + stream.rest() == stream.text(after)


# Bytes one after the other, as of text in letters that the vocabulary lacks.
SPELT = st.text(st.sampled_from("aé東🙂\n"), max_size=30).map(str.encode)
RUNS = st.lists(SPELT | st.binary(max_size=3), max_size=4).map(b"".join)


@pytest.mark.parametrize("kind", ["metaspace", "gemma", "bytes, blanks", "byte_level", "wordpiece"])
@given(before=RUNS, after=RUNS, more=IDS, stop=st.text("a東é�\n", min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_an_answer_ends_with_the_token_that_completes_a_stop(
    tokenizers, kind, before, after, more, stop
):
    begun = [3 + byte for byte in before]
    check_stop(tokenizers(kind)[1], begun, [*(3 + byte for byte in after), *more[:20]], stop)


# Runs so long that only their ends are decoded again, behind a letter that begins a stop.
LONG = st.tuples(st.sampled_from(["a", ""]), st.text("🙂🙃 ", min_size=4, max_size=20)).map("".join)


@pytest.mark.parametrize("kind", ["metaspace", "gemma"])
@given(
    texts=st.lists(LONG, min_size=1, max_size=3),
    spoilt=st.binary(max_size=1),
    stop=st.text("a🙂🙃 �", min_size=1, max_size=3),
)
@example(texts=["a🙂🙃🙂🙂"], spoilt=b"", stop="a🙃")
@settings(max_examples=80, deadline=None)
def test_a_stop_is_not_found_over_what_is_left_out_of_a_long_run(
    tokenizers, kind, texts, spoilt, stop
):
    theirs, ours = tokenizers(kind)
    letter = theirs.convert_tokens_to_ids("a")
    tokens = [
        letter if one == ord("a") else 3 + one for text in texts for one in text.encode() + spoilt
    ]
    check_stop(ours, [letter], tokens, stop)


# Words that look like bytes: a library of digits takes a sign for one of them.
ODD = [
    *(f"<0x{byte:02X}>" for byte in "🙂é".encode()),
    "<0xZZ>",
    "<0x+A>",
    "<0x1>",
    "<0xé>",
    "ab9F0",
]


@given(words=st.lists(st.sampled_from(ODD), max_size=40), stop=st.sampled_from(["🙂🙂", "\n", "Z"]))
@example(words=["<0xZZ>"] * 20, stop="🙂🙂")
@settings(max_examples=200, deadline=None)
def test_words_that_look_like_bytes_are_text(odd, words, stop):
    tokens = [ODD.index(word) for word in words]
    stream = Continuation(odd)
    assert "".join(map(stream.push, tokens)) + stream.rest() == odd.decode(tokens)
    check_stop(odd, [], tokens, stop)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Tokenizer:
    made = Made(models.WordLevel({word: n for n, word in enumerate(ODD)}, ODD[0]))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made.save(file := str(tmp_path_factory.mktemp("odd") / "tokenizer.json"))
    return Tokenizer(Path(file))


def check_stop(ours: Tokenizer, begun: list[int], tokens: list[int], stop: str) -> None:
    """An answer ends as soon as its text, all of it decoded, holds the stop."""
    whole = Continuation(ours, begun)
    want = [stop in whole.text(tokens[:count]) for count in range(1, len(tokens) + 1)]
    answer = Answer(ours, begun, (stop,))
    shown = ""
    for count, (token, ends) in enumerate(zip(tokens, want, strict=True), 1):
        assert answer.push(token) == ends
        if ends:
            text = answer.text(tokens[:count])
            assert text == whole.text(tokens[:count]).partition(stop)[0]
            assert shown + answer.rest(tokens[:count]) == text
            return
        shown += answer.piece()
    assert shown + answer.rest(tokens) == whole.text(tokens)


TEXT = "the cat sat"


@pytest.mark.parametrize("kind", [*families.FAMILIES, "tidied text", "suffix inside"])
def test_a_streamed_answer_is_the_generated_one(engines, kind):
    engine = engines(kind)
    theirs = engine.tokenizer
    for seed in range(3):
        asked = {"max_new_tokens": 30, "temperature": 3.0, "seed": seed, "eos_token_ids": ()}
        (one,) = engine.generate(TEXT, **asked)
        assert "".join(engine.stream(TEXT, **asked)) == one.text
        ids = engine.encode(TEXT)[0].ids
        whole, begun = theirs.decode(ids + one.token_ids), theirs.decode(ids)
        if whole.startswith(begun):
            assert begun + one.text == whole
        for stop in {one.text[5:7], one.text[-1:], one.text[3:9], "no such text"} - {""}:
            (cut,) = engine.generate(TEXT, stop=stop, **asked)
            assert "".join(engine.stream(TEXT, stop=stop, **asked)) == cut.text
            if kind == "suffix inside":
                # Later tokens change the text of earlier ones, so the whole answer's text is not
                # what stood there when the stop was complete.
                own = theirs.decode(ids + cut.token_ids).removeprefix(begun)
                assert (cut.stopped == "stop") == (stop in own)
                assert cut.text == own.partition(stop)[0]
                continue
            assert (cut.stopped == "stop") == (stop in one.text)
            if stop in one.text:
                assert cut.text == one.text[: one.text.index(stop)]


def test_an_answers_first_blank_is_kept(tokenizers):
    """Decoded alone, an answer's first word would lose the blank before it."""
    theirs, ours = tokenizers("metaspace")
    before, after = theirs("the cat")["input_ids"], ours.encode_more(" sat").ids
    assert ours.decode(after) == "sat"
    assert Continuation(ours, before).text(after) == " sat"
    assert "the cat" + Continuation(ours, before).text(after) == theirs.decode(
        before + after, skip_special_tokens=True
    )


@pytest.mark.parametrize("kind", ["metaspace", "byte_level", "wordpiece", "word_level"])
def test_a_stop_that_is_a_special_token_ends_the_answer(engines, kind):
    engine = engines(kind)
    tokenizer, before = engine.tokenizer, engine.encode(TEXT)[0].ids
    special = sorted(tokenizer.special)
    asked = {"max_new_tokens": 120, "temperature": 9.0, "eos_token_ids": ()}
    met = 0
    for seed in range(8):
        (free,) = engine.generate(TEXT, seed=seed, **asked)
        found = [tokenizer.token(token) in special for token in free.token_ids]
        (one,) = engine.generate(TEXT, seed=seed, stop=special, **asked)
        if True not in found:
            assert one == free
            continue
        met += 1
        place = found.index(True)
        assert one.stopped == "stop"
        assert one.token_ids == free.token_ids[: place + 1], "the token is among the ids"
        assert one.text == Continuation(tokenizer, before).text(free.token_ids[:place])
        assert "".join(engine.stream(TEXT, seed=seed, stop=special, **asked)) == one.text
        # The same with the text on its one side, its other side, and both.
        for first, last in ((1, 1), (0, 2), (1, 2)):
            tokens = free.token_ids[max(place - first, 0) : place + last]
            stop = tokenizer.decode(tokens, special=True)
            (two,) = engine.generate(TEXT, seed=seed, stop=stop, **asked)
            assert "".join(engine.stream(TEXT, seed=seed, stop=stop, **asked)) == two.text
            until = free.token_ids[: place + last]
            if stop in Continuation(tokenizer, before, special=True).text(until):
                assert two.stopped == "stop"
                assert len(two.token_ids) <= len(until)
    assert met, "another seed is needed: no answer holds a special token"


ROUND_TRIP = ["byte_level", "metaspace", "gemma"]


@pytest.mark.parametrize("kind", ROUND_TRIP)
@given(parts=st.lists(st.sampled_from(["the", " cat", "\n", "a ", "é", " 東", "  "]), max_size=9))
@settings(max_examples=40, deadline=None)
def test_what_a_session_was_given_is_what_its_tokens_say(engines, kind, parts):
    engine = engines(kind)
    session = engine.session()
    parts = ["a", *parts]
    for part in parts:
        session.append(part)
    assert engine.tokenizer.decode(session.token_ids) == "".join(parts)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_special_tokens_stand_around_a_sessions_text_once(engines, kind):
    engine = engines(kind)
    one_text = engine.encode("the cat sat on the mat")[0]
    session = engine.session()
    session.append("the cat sat")
    assert session.token_ids == engine.encode("the cat sat")[0].ids
    session.append(" on")
    session.append(" the mat")
    assert session.token_ids == one_text.ids
    (want,) = engine.generate([one_text.ids], 8, eos_token_ids=())
    fork = session.fork()
    got = session.generate(8, eos_token_ids=())
    assert (got.token_ids, got.text) == (want.token_ids, want.text)
    session.append(" a hill")
    more = engine.tokenizer.encode_more(" a hill").ids
    ending = engine.tokenizer.ending()
    assert session.token_ids == one_text.ids + got.token_ids + more + ending
    fork.rollback(len(fork.token_ids))
    fork.append("the cat sat")
    assert fork.token_ids == engine.encode("the cat sat")[0].ids


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_behind_the_special_tokens_in_front_a_text_is_the_first_one(engines, kind):
    engine = engines(kind)
    session, front = engine.session(), engine.tokenizer.front()
    session.append("the cat sat")
    session.rollback(len(session.token_ids) - len(front))
    assert session.token_ids == front
    session.append("a dog ran")
    assert session.token_ids == engine.encode("a dog ran")[0].ids
    # So are they where they were given by their ids.
    if front:
        other = engine.session()
        other.append(front)
        with pytest.raises(ptdeploy.InputError, match="text is empty"):
            other.append("")
        other.append("a dog ran")
        assert other.token_ids == session.token_ids


@pytest.mark.parametrize(
    "failure", [MemoryError, KeyboardInterrupt, ptdeploy.EngineFault("planted")]
)
@pytest.mark.parametrize("kind", ["metaspace", "unigram"])
def test_a_session_that_fails_halfway_is_as_it_was(engines, monkeypatch, kind, failure):
    engine = engines(kind)
    session, other = engine.session(), engine.session()
    for one in (session, other):
        one.append("the cat sat on")
    before, prefill = list(session.token_ids), session._kv.prefill

    def fails(*given: Any) -> Any:
        prefill(*given)
        raise failure

    wanted = ptdeploy.OutOfMemory if failure is MemoryError else KeyboardInterrupt
    if isinstance(failure, ptdeploy.EngineFault):
        wanted = ptdeploy.EngineFault
    for call in (
        lambda: session.append(" the mat and the dog"),
        lambda: session.append([5, 6, 7]),
        lambda: session.generate(4, eos_token_ids=()),
    ):
        monkeypatch.setattr(session._kv, "prefill", fails)
        with pytest.raises(wanted):
            call()
        monkeypatch.undo()
        assert session.token_ids == before
    got = []
    for one in (session, other):
        one.append(" the mat and the dog")
        got.append(one.generate(6, eos_token_ids=()))
    assert got[0].token_ids == got[1].token_ids
    assert session.token_ids == other.token_ids


BROKEN = "half \ud83d of a pair"


def test_text_that_is_no_unicode_is_refused_by_name(engines, capsys):
    engine = engines("metaspace")
    session = engine.session()
    for ask in (
        lambda: engine.encode(BROKEN),
        lambda: engine.generate([TEXT, BROKEN]),
        lambda: engine.stream(BROKEN),
        lambda: engine.generate(TEXT, stop=BROKEN),
        lambda: engine.stream(TEXT, stop=["a", BROKEN]),
        lambda: session.append(BROKEN),
        lambda: session.append(TEXT) or session.append(BROKEN),
        lambda: engine.tokenizer.encode_truncated(BROKEN, 5),
    ):
        with pytest.raises(ptdeploy.InputError, match="surrogate pair"):
            ask()


def test_appended_text_without_an_embedding_is_refused(engines, tmp_path):
    theirs = families.make("byte_level")
    theirs.add_tokens([f"<{number}>" for number in range(100)])
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    engine = engines("byte_level")
    engine.tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    session = engine.session()
    session.append("the <1> cat")
    with pytest.raises(ptdeploy.InputError, match="no embedding for"):
        session.append(" <99>")
    assert session.token_ids == engine.encode("the <1> cat")[0].ids, "it is as it was"


def test_bytes_are_no_text_and_no_token_ids(engines):
    engine = engines("metaspace")
    for ask in (
        lambda: engine.encode(b"abc"),
        lambda: engine.generate([b"abc"]),
        lambda: engine.stream(b"abc"),
        lambda: engine.session().append(b"abc"),
    ):
        with pytest.raises(ptdeploy.InputError, match="is bytes"):
            ask()


def test_a_decoder_that_fails_is_a_refusal(tmp_path):
    theirs = families.make("metaspace")
    # The library reads before the beginning of an empty text.
    theirs.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Fuse(), decoders.Strip(" ", 0, 1)]
    )
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ptdeploy.BundleError, match="its decoder fails"):
        ours.decode([])


def test_ids_that_name_no_token_have_no_text(tokenizers):
    theirs, ours = tokenizers("metaspace")
    assert ours.decode([-1, 2**40, 469, *theirs("the cat")["input_ids"]]) == "the cat"
