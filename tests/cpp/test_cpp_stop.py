"""The text of what C++ writes is Python's: whole, in pieces, and up to stop strings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support import families, native
from support.native import ROWS, opened, options_text, text_of
from support.openvino import copied
from support.spelling import SPECIAL, STYLES, spelling, with_tokenizer
from tokenizers import Tokenizer as Made
from tokenizers import decoders, models

import ptdeploy

FREE = {"max_new_tokens": 30, "eos_token_ids": (), "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def written(bundles) -> list[list[int]]:
    """What the model writes behind each of ROWS."""
    engine = ptdeploy.load(bundles("fused"))
    return [one.token_ids for one in engine.generate(ROWS, **FREE)]


def spelt(bundles: Any, written: list[list[int]], folder: Path, style: str, row: int = 0) -> Path:
    """The model, whose row `row` is continued with the pieces of a style."""
    return with_tokenizer(bundles("fused"), folder, spelling(style, written[row], 101))


def asked(stop: list[str], **more: Any) -> str:
    words = options_text({**FREE, **more})
    return f"{words} text=1 stop={','.join(one.encode().hex() or '-' for one in stop)}"


def same_answers(probe: native.Probe, engine: Any, stop: list[str]) -> list[str]:
    """Both write the same; how each row ended."""
    ours = engine.generate(ROWS, stop=stop, **FREE)
    theirs = probe.ask("generate", "e", text_of(ROWS), asked(stop))
    for one, other in zip(theirs, ours, strict=True):
        found = (one["text"], one["token_ids"], one["stopped"])
        assert found == (other.text, other.token_ids, other.stopped), stop
    return [one.stopped for one in ours]


def stops_in(text: str, seed: int) -> list[list[str]]:
    """Stop strings that stand in a text, begin in it, or do not; one alone and several."""
    chosen = random.Random(seed)
    found = []
    for _ in range(12):
        start = chosen.randrange(len(text))
        found.append(text[start : start + chosen.randint(1, 9)])
    near = [one + "x" for one in found[:3]]
    specials = [SPECIAL, f"{found[0]}{SPECIAL}", f"{SPECIAL} ", f"{SPECIAL}{found[1]}"]
    return [*([one] for one in found), near, [*near, found[4]], *([one] for one in specials)]


@pytest.mark.parametrize("style", STYLES)
def test_rows_end_before_a_stop_string_as_in_python(bundles, written, probe, tmp_path, style):
    engine = opened(probe, spelt(bundles, written, tmp_path / "bundle", style))
    (whole,) = engine.generate([ROWS[0]], **FREE)
    assert whole.text
    ends = [end for stop in stops_in(whole.text, 1) for end in same_answers(probe, engine, stop)]
    assert {"stop", "length"} <= set(ends)


@pytest.mark.parametrize("style", STYLES)
def test_pieces_are_those_that_python_streams(bundles, written, probe, tmp_path, style):
    engine = opened(probe, spelt(bundles, written, tmp_path / "bundle", style))
    (whole,) = engine.generate([ROWS[0]], **FREE)
    for stop in ([], *stops_in(whole.text, 2)):
        ours = list(engine.stream(ROWS[0], stop=stop, **FREE))
        probe.ask("generate", "e", text_of(ROWS[:1]), asked(stop) + " pieces=0")
        assert probe.ask("pieces") == ([ours] if ours else []), stop


def test_rows_side_by_side_have_their_own_pieces(bundles, written, probe, tmp_path):
    engine = opened(probe, spelt(bundles, written, tmp_path / "bundle", "bytes as letters"))
    found = probe.ask("generate", "e", text_of(ROWS), asked(["at"]) + " pieces=0")
    assert ["".join(one) for one in probe.ask("pieces")] == [one["text"] for one in found]
    assert [one["text"] for one in found] == [
        one.text for one in engine.generate(ROWS, stop="at", **FREE)
    ]


def test_a_piece_that_is_not_wanted_ends_its_row(bundles, written, probe, tmp_path):
    opened(probe, spelt(bundles, written, tmp_path / "bundle", "bytes as letters"))
    (found,) = probe.ask("generate", "e", text_of(ROWS[:1]), asked([]) + " pieces=2")
    assert found["stopped"] == "caller"
    assert "".join(*probe.ask("pieces")) == " the東"
    # One that ends otherwise is still shown what was held back.
    (found,) = probe.ask(
        "generate", "e", text_of(ROWS[:1]), asked(["東 dog"], cancel_after=4) + " pieces=0"
    )
    assert (found["stopped"], found["text"]) == ("cancelled", " the東")
    assert probe.ask("pieces") == [[" the", "東"]]


def test_a_stop_is_not_found_over_what_is_left_out_of_a_long_run(bundles, written, probe, tmp_path):
    """Of a long run of bytes only the end is decoded again: "a" and that end are no neighbours."""
    marked = [f"{'▁' * n}<0x{one:02X}>" for n, one in enumerate("🙂🙃🙂🙂".encode())]
    words = {token: f"w{token}" for token in range(101)}
    # From there on no token comes twice.
    words.update(zip(written[0][9:], ["a", *marked], strict=False))
    spelt = Made(models.WordLevel({word: token for token, word in words.items()}, unk_token="w0"))
    spelt.decoder = decoders.Sequence(
        [decoders.Replace("▁", ""), decoders.ByteFallback(), decoders.Fuse()]
    )
    engine = opened(probe, with_tokenizer(bundles("fused"), tmp_path / "bundle", spelt))
    (whole, *_) = engine.generate(ROWS, **FREE)
    assert "a🙂🙃🙂🙂" in whole.text
    for stop in (["a🙃"], ["🙃🙂"], ["🙂🙂"], ["a🙃", "🙃"]):
        ends = same_answers(probe, engine, stop)
        assert ends[0] == ("length" if stop == ["a🙃"] else "stop")


def test_a_session_stops_where_pythons_does(bundles, written, probe, tmp_path):
    engine = opened(probe, spelt(bundles, written, tmp_path / "bundle", "words and bytes"))
    ours = engine.session()
    probe.ask("session-open", "s", "e 0")
    for ids, stop in ((ROWS[0], ["東"]), ([7, 8], ["at"]), ([9], [SPECIAL])):
        ours.append(ids)
        probe.ask("session-append", "s", text_of([ids]))
        mine = ours.generate(stop=stop, **FREE)
        found = probe.ask("session-generate", "s", asked(stop))
        assert (found["text"], found["token_ids"]) == (mine.text, mine.token_ids)
        assert found["stopped"] == mine.stopped
    assert probe.ask("session-ids", "s") == ours.token_ids


def test_the_paged_cache_stops_as_the_dense_one(bundles, written, probe, tmp_path):
    native.need_openvino()
    ort = spelt(bundles, written, tmp_path / "ort", "bytes as letters")
    engine = opened(probe, copied(ort, tmp_path / "openvino"))
    for stop in (["東"], ["the東 c"], ["\n", "."], [SPECIAL]):
        assert same_answers(probe, engine, stop)[0] == "stop"


# Ids to text.


@pytest.mark.parametrize("kind", families.KINDS)
def test_ids_have_the_text_that_python_gives_them(bundles, probe, tmp_path, kind):
    made = families.make(kind)
    made.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    for cleans_up in (False, True):
        folder = tmp_path / str(cleans_up)
        flags = {"clean_up_tokenization_spaces": cleans_up}
        bundle = with_tokenizer(bundles("fused"), folder, file, **flags)
        if kind == "replaced text":
            # Regular expressions are not among what any of these looks for.
            assert "Regex" not in file.read_text().split('"decoder"')[1].split('"model"')[0]
        truth = opened(probe, bundle).tokenizer
        chosen = random.Random(3)
        for _ in range(150):
            ids = [chosen.randrange(len(made) + 2) for _ in range(chosen.randrange(9))]
            found = probe.ask("decode", "e", ",".join(map(str, ids)))
            assert found == truth.decode(ids), ids


def test_text_needs_the_bundles_tokenizer(bundles, probe):
    engine = opened(probe, bundles("fused"))
    with pytest.raises(ptdeploy.InputError) as refused:
        engine.generate(ROWS, stop="a", **FREE)
    for options in (asked(["a"]), asked([]), options_text(FREE) + " pieces=0"):
        answer = probe.ask("generate", "e", text_of(ROWS), options)
        assert (answer["error"], answer["problem"]) == ("InputError", refused.value.problem)
    assert probe.ask("decode", "e", "5")["problem"] == refused.value.problem


@pytest.mark.parametrize(
    "stop", [["a", ""], [""], ["x"] * 65, ["y" * 1025], ["é" * 1025, "b"]], ids=len
)
def test_stop_strings_that_are_none_are_refused_alike(bundles, written, probe, tmp_path, stop):
    engine = opened(probe, spelt(bundles, written, tmp_path / "bundle", "words alone"))
    with pytest.raises(ptdeploy.InputError) as refused:
        engine.generate(ROWS, stop=stop, **FREE)
    answer = probe.ask("generate", "e", text_of(ROWS), asked(stop))
    assert (answer["error"], answer["problem"]) == ("InputError", refused.value.problem)


def test_a_stop_string_that_is_no_utf8_is_refused(bundles, written, probe, tmp_path):
    opened(probe, spelt(bundles, written, tmp_path / "bundle", "words alone"))
    answer = probe.ask("generate", "e", text_of(ROWS), options_text(FREE) + " stop=ff")
    assert (answer["error"], answer["problem"]) == ("InputError", "A stop string is not UTF-8.")


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"type": "Nobody"}, "no decoder is of the type"),
        ({"type": "WordPiece"}, "`prefix`"),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}, "regular expressions"),
        ({"type": "Sequence", "decoders": 5}, "Expected `array`"),
        ([], "Expected `object`"),
    ],
    ids=str,
)
def test_a_decoder_that_is_not_known_is_refused(bundles, probe, tmp_path, decoder, words):
    import json

    made = json.loads(spelling("words alone", [], 9).to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**made, "decoder": decoder}))
    bundle = with_tokenizer(bundles("fused"), tmp_path / "bundle", tmp_path / "tokenizer.json")
    assert probe.ask("open", "e", bundle) == {}
    answer = probe.ask("decode", "e", "5")
    assert answer["error"] == "BundleError"
    assert "tokenizer.json: not a tokenizer (" in answer["problem"]
    assert words in answer["problem"]
