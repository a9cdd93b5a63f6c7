"""Bad values through the C ABI: each call gives a status, and this process lives on.

What no library can see, a pointer that leads nowhere, is not among them.
"""

from __future__ import annotations

import ctypes
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.c_abi import NONE, OK, ON_TEXT, Library
from support.damage import edit
from support.spelling import SPECIAL, spelling, with_tokenizer

import ptdeploy

SIZES = (0, 1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)
NUMBERS = (0.0, -0.0, 5e-324, 1e-320, 1e-40, 1.0, 1e39, 1e308, -1.0, math.nan, math.inf, -math.inf)
INTEGERS = (0, 1, -1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))


@pytest.fixture(scope="module")
def library(built, compiled) -> Library:
    return Library(built, compiled("gpt2", "CAUSAL_LM").bundle)


@pytest.fixture(scope="module")
def speaking(library, built, compiled, tmp_path_factory) -> Library:
    """One whose tokens spell " the東 cat" and so on where it continues 5, 6."""
    bundle = compiled("gpt2", "CAUSAL_LM").bundle
    written = ptdeploy.load(bundle).generate([[5, 6]], 8, eos_token_ids=())[0].token_ids
    folder = tmp_path_factory.mktemp("speaking") / "bundle"
    return Library(
        built, with_tokenizer(bundle, folder, spelling("bytes as letters", written, 101))
    )


def strings(*texts: bytes | None) -> Any:
    return (ctypes.c_char_p * max(len(texts), 1))(*texts)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_a_number_is_answered_or_refused_by_its_name(library, name):
    none = (ctypes.c_int64 * 1)()
    for value in NUMBERS:
        for sampled in (0, 1):
            asked = {name: value, "do_sample": sampled, "has_seed": 1, "eos_token_ids": none}
            said, count = library.generate(library.options(**asked))
            assert (count == 4) if not said else f"{name} is" in said, value
        if not math.isfinite(value) and not value < 0:
            assert said, value


@pytest.mark.parametrize("name", ["max_new_tokens", "min_new_tokens", "top_k", "seed", "do_sample"])
def test_an_integer_is_answered_or_refused(library, name):
    for value in INTEGERS:
        small = {"seed": 2**64 - 1, "do_sample": 2**31 - 1}.get(name, value)
        said, _ = library.generate(library.options(**{name: min(value, small), "has_seed": 1}))
        assert not said or name in said or "new tokens do not fit" in said


def test_eos_ids_outside_the_vocabulary_are_refused(library):
    for token in (-1, 101, 2**31, 2**63 - 1, -(2**63)):
        ids = (ctypes.c_int64 * 1)(token)
        options = library.options(eos_token_ids=ids, num_eos_token_ids=1)
        assert (
            f"eos_token_ids is {token}; it must be token ids from 0 to 100"
            in (library.generate(options)[0])
        )
    for count in (102, 2**31 - 1, 2**31, 2**63):  # so many are never read
        many = library.options(eos_token_ids=(ctypes.c_int64 * 1)(), num_eos_token_ids=count)
        assert f"num_eos_token_ids is {count}; there are 101" in library.generate(many)[0]
    twice = (ctypes.c_int64 * 101)()
    assert library.generate(library.options(eos_token_ids=twice, num_eos_token_ids=101))[0] == ""


def test_sizes_are_held_against_what_fits_before_anything_is_read(library):
    options = library.options()
    for size in SIZES[2:]:
        assert "tokens, but at most 59 fit" in library.generate(options, lengths=(size,))[0]
    for size in SIZES[3:]:
        assert "rows is" in library.generate(options, rows=size)[0]
        assert "capacity is" in library.generate(options, capacity=size)[0]
    assert "The batch has no rows" in library.generate(options, rows=0)[0]
    assert "Row 0 is empty" in library.generate(options, lengths=(0,))[0]
    # The first row that cannot be one ends the reading of lengths, however many are said to be.
    assert "Row 1 is empty" in library.generate(options, lengths=(2, 0), rows=2**31 - 1)[0]
    assert library.generate(options, capacity=0) == ("", 0)
    assert "size is not sizeof" in library.generate(library.options(size=3))[0]


def test_ids_outside_the_vocabulary_are_refused(library):
    for token in (-1, 101, 2**63 - 1, -(2**63)):
        assert "outside 0 to 100" in library.generate(library.options(), ids=(token, 5))[0]


NULLS: dict[str, Callable[[Library], int]] = {
    "open's path": lambda it: it.c.ptdeploy_open(NONE, NONE, 0, 0, ctypes.byref(ctypes.c_void_p())),
    "open's engine": lambda it: it.c.ptdeploy_open(b"x", NONE, 0, 0, NONE),
    "generate's engine": lambda it: it.c.ptdeploy_generate(*[NONE] * 10),
    "logits' engine": lambda it: it.c.ptdeploy_logits(*[NONE] * 6),
    "probabilities' engine": lambda it: it.c.ptdeploy_probabilities(*[NONE] * 6),
    "logits' lengths": lambda it: it.c.ptdeploy_logits(
        it.engine, NONE, NONE, NONE, ctypes.c_size_t(1), NONE
    ),
    "session's engine": lambda it: it.c.ptdeploy_session_open(
        NONE, ctypes.c_size_t(0), ctypes.byref(ctypes.c_void_p())
    ),
    "session's place": lambda it: it.c.ptdeploy_session_open(it.engine, ctypes.c_size_t(0), NONE),
    "append's session": lambda it: it.c.ptdeploy_session_append(NONE, NONE, ctypes.c_size_t(1)),
    "rollback's session": lambda it: it.c.ptdeploy_session_rollback(NONE, ctypes.c_size_t(1)),
    "fork's session": lambda it: it.c.ptdeploy_session_fork(NONE, ctypes.byref(ctypes.c_void_p())),
    "turn's session": lambda it: it.c.ptdeploy_session_generate(*[NONE] * 7),
    "verify's engine": lambda it: it.c.ptdeploy_verify(NONE, ctypes.byref(ctypes.c_void_p())),
    "verify's place": lambda it: it.c.ptdeploy_verify(it.engine, NONE),
    "encode's engine": lambda it: it.c.ptdeploy_encode(*[NONE] * 6),
    "encode's text": lambda it: it.c.ptdeploy_encode(
        it.engine, NONE, ctypes.c_size_t(1), NONE, ctypes.c_size_t(0), NONE
    ),
    "decode's engine": lambda it: it.c.ptdeploy_decode(*[NONE] * 6),
    "decode's ids": lambda it: it.c.ptdeploy_decode(
        it.engine, NONE, ctypes.c_size_t(1), NONE, ctypes.c_size_t(0), NONE
    ),
    "case's report": lambda it: it.c.ptdeploy_report_case(NONE, ctypes.c_size_t(0), NONE),
}


@pytest.mark.parametrize("call", NULLS.values(), ids=NULLS)
def test_null_is_refused_by_its_name(library, call):
    assert "is null" in library.said(call(library))


def test_null_has_no_facts(library):
    for name in ("max_sequence", "vocab_size", "columns", "session_length", "report_passed"):
        assert getattr(library.c, f"ptdeploy_{name}")(NONE) == 0
    library.c.ptdeploy_close(NONE)
    library.c.ptdeploy_session_close(NONE)
    library.c.ptdeploy_report_close(NONE)


def test_a_session_takes_no_size_that_does_not_fit(library):
    session = ctypes.c_void_p()
    for size in SIZES[2:]:
        status = library.c.ptdeploy_session_open(
            library.engine, ctypes.c_size_t(size), ctypes.byref(session)
        )
        assert "max_tokens is" in library.said(status)
    assert (
        library.c.ptdeploy_session_open(library.engine, ctypes.c_size_t(20), ctypes.byref(session))
        == OK
    )
    ids = (ctypes.c_int64 * 2)(5, 6)
    assert library.c.ptdeploy_session_append(session, ids, ctypes.c_size_t(2)) == OK
    for size in SIZES[2:]:
        for call in ("append", "rollback"):
            given = (session, ids) if call == "append" else (session,)
            status = getattr(library.c, f"ptdeploy_session_{call}")(*given, ctypes.c_size_t(size))
            assert library.said(status)
    # One more than there is room for is not read either, nor in a fork or after a rollback.
    fork = ctypes.c_void_p()
    assert library.c.ptdeploy_session_fork(session, ctypes.byref(fork)) == OK
    assert library.c.ptdeploy_session_rollback(fork, ctypes.c_size_t(1)) == OK
    for one, size, held in ((session, 19, 2), (fork, 20, 1)):
        status = library.c.ptdeploy_session_append(one, ids, ctypes.c_size_t(size))
        said = f"{size} more tokens do not fit: the session has {held} of 20."
        assert library.said(status) == said
    library.c.ptdeploy_session_close(fork)
    assert library.c.ptdeploy_session_length(session) == 2
    library.c.ptdeploy_session_close(session)


def test_more_rows_than_an_engine_takes_at_once_are_not_read(built, compiled, tmp_path):
    bundle = Path(shutil.copytree(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(max_batch=2))
    library = Library(built, bundle)
    ids, lengths = (ctypes.c_int64 * 2)(5, 6), (ctypes.c_size_t * 2)(1, 1)
    logits = (ctypes.c_float * 202)()
    for rows in (3, 2**31 - 1):
        status = library.c.ptdeploy_logits(
            library.engine, ids, NONE, lengths, ctypes.c_size_t(rows), logits
        )
        said = f"{rows} rows at once, but the bundle was compiled for 2."
        assert library.said(status) == said
        assert library.generate(library.options(), ids, lengths, rows)[0] == said


def test_words_for_people_are_printable(library, tmp_path):
    status = library.c.ptdeploy_open(
        str(tmp_path / "\x1b[2J\n").encode(), NONE, 0, 0, ctypes.byref(ctypes.c_void_p())
    )
    assert status == 1
    assert b"\\x1b[2J\\n: no such bundle folder" in library.c.ptdeploy_last_error()


@pytest.mark.parametrize("threads", [-1, 1025, 2**31 - 1, -(2**31)])
def test_threads_that_no_machine_has_are_refused(library, compiled, threads):
    path = str(compiled("gpt2", "CAUSAL_LM").bundle).encode()
    status = library.c.ptdeploy_open(path, NONE, threads, 0, ctypes.byref(ctypes.c_void_p()))
    assert "threads is" in library.said(status)


def test_a_row_ends_at_a_stop_string_and_its_text_comes_in_pieces(speaking):
    pieces: list[bytes] = []

    @ON_TEXT
    def take(user, row, text, size):
        assert text[size] == b"\0"
        pieces.append(text[:size])
        return 1

    engine = ptdeploy.load(speaking.bundle)
    none, on_text = (ctypes.c_int64 * 1)(), ctypes.cast(take, ctypes.c_void_p)
    for stop in ("東", "he", "nothing like it", SPECIAL):
        pieces.clear()
        (ours,) = engine.generate([[5, 6]], 8, stop=[stop, "x"], eos_token_ids=())
        given = {"stop": strings(stop.encode(), b"x"), "num_stop": 2, "on_text": on_text}
        options = speaking.options(max_new_tokens=8, eos_token_ids=none, **given)
        assert speaking.generate(options, capacity=8) == ("", len(ours.token_ids))
        assert b"".join(pieces).decode() == ours.text
    assert ours.stopped in ("stop", "length")


def test_stop_strings_are_counted_before_they_are_read(speaking, library):
    for count in (65, 2**31, 2**64 - 1):
        said, _ = speaking.generate(speaking.options(stop=strings(b"a"), num_stop=count))
        assert f"stop has {count} strings" in said
    for stop in (NONE, strings(b"a", NONE)):
        said, _ = speaking.generate(speaking.options(stop=stop, num_stop=2))
        assert said == "stop is null."
    for stop, words in ((b"", "empty"), (b"\xff", "not UTF-8"), (b"a" * 1025, "up to 1025 char")):
        assert words in speaking.generate(speaking.options(stop=strings(stop), num_stop=1))[0]
    said, _ = library.generate(library.options(stop=strings(b"a"), num_stop=1))
    assert "has no tokenizer" in said


def test_text_of_ids_is_written_where_it_fits(speaking):
    engine = ptdeploy.load(speaking.bundle)
    ids = engine.generate([[5, 6]], 4, eos_token_ids=())[0].token_ids
    text = engine.tokenizer.decode(ids).encode()
    assert speaking.decode(ids, len(text) + 1) == ("", len(text), text + b"\0")
    said, size, written = speaking.decode(ids, len(text))
    assert (said, size, written) == (
        f"The answer has {len(text) + 1} bytes, but capacity is {len(text)}.",
        len(text),
        b"",
    )
    assert speaking.decode([], 1) == ("", 0, b"\0")
    assert speaking.decode([-1, 2**62], 1) == ("", 0, b"\0")


def test_text_without_a_program_for_it_says_how_to_get_one(speaking):
    said, _, ids = speaking.encode(b"text", 64)
    assert "holds no program of its tokenizer" in said
    assert ids == []
