"""Which tokenizer a bundle gets, that it is whole, and that another one is noticed."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import families, tiny
from support.damage import replace
from transformers import AutoTokenizer

import ptdeploy
from ptdeploy.bundle import TokenizerInfo
from ptdeploy.cli.main import main
from ptdeploy.errors import BaseModelError, CheckpointError, InputError
from ptdeploy.parity.reference.texts import save_text_files
from ptdeploy.runtime.text import Continuation
from ptdeploy.runtime.tokenizer import Tokenizer
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.source.probe_texts import probe_texts
from ptdeploy.source.tokenizer_choice import ChosenTokenizer, _probed, choose_tokenizer
from ptdeploy.source.tokenizer_place import TOKENIZER_FILES

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "cat", "sat", "on", "mat", "##s", "a", "b", "c", "film", "good", "bad"]
TEXT = "The cats SAT on a good mat"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 9085657\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tiny.Trained:
    """A classifier of 101 embeddings, without any tokenizer."""
    return tiny.make(tmp_path_factory.mktemp("trained"), "bert", "SEQ_CLS")


@pytest.fixture
def place(trained, tmp_path) -> tiny.Trained:
    """Copies of its folders, to put tokenizers into."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(trained.base, base)
    shutil.copytree(trained.adapter, adapter)
    return tiny.Trained(trained.model, base, adapter)


def choose(place: tiny.Trained, asked: str | None = None) -> ChosenTokenizer:
    checkpoint = read_checkpoint(place.adapter)
    return choose_tokenizer(checkpoint, resolve_base(checkpoint, str(place.base)), asked)


def ids(chosen: ChosenTokenizer, text: str = TEXT) -> list[int]:
    assert chosen.tokenizer is not None
    return list(chosen.tokenizer(text)["input_ids"])


def lines(folder: Path, words: list[str]) -> None:
    """vocab.txt alone, as an old BERT's folder has it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")


def lines_and_settings(folder: Path, words: list[str]) -> None:
    lines(folder, words)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def whole(folder: Path, words: list[str]) -> None:
    """tokenizer.json, as transformers saves it now."""
    lines(folder, words)
    made = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    (folder / "vocab.txt").unlink()
    made.save_pretrained(folder)


def whole_alone(folder: Path, words: list[str]) -> None:
    whole(folder, words)
    (folder / "tokenizer_config.json").unlink()


FORMS = (lines, lines_and_settings, whole, whole_alone)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_tokenizer_is_read_as_transformers_reads_it(place, form):
    form(place.base, WORDS)
    chosen = choose(place)
    assert chosen.info is not None
    assert (chosen.info.origin, chosen.info.size) == ("base", len(WORDS))
    assert ids(chosen) == AutoTokenizer.from_pretrained(place.base)(TEXT)["input_ids"]
    assert len(set(ids(chosen))) > 6, "not all unknown"


@pytest.mark.parametrize("form", FORMS)
def test_the_checkpoints_own_comes_before_the_bases(place, form):
    whole(place.base, WORDS)
    form(place.adapter, [*SPECIAL, *WORDS[5:][::-1]])
    chosen = choose(place)
    assert chosen.info is not None
    assert (chosen.info.origin, chosen.place) == ("checkpoint", str(place.adapter))
    of_base = ids(choose(tiny.Trained(place.model, place.base, place.adapter), str(place.base)))
    assert ids(chosen) != of_base


def test_byte_pairs_in_two_files_are_read(tmp_path):
    trained = tiny.make(tmp_path, "gpt2", "CAUSAL_LM", vocab_size=400)
    made = families.make("byte_level")
    made.backend_tokenizer.model.save(str(trained.adapter))
    assert (trained.adapter / "merges.txt").is_file()
    text = "it's what we don't know"
    assert ids(choose(trained), text) == made(text)["input_ids"]


@pytest.mark.parametrize("where", ["run/checkpoint-20", "run"])
def test_a_trainers_tokenizer_is_found_beside_its_weights_or_above(place, tmp_path, where):
    whole(place.base, WORDS)
    shutil.copytree(place.adapter, tmp_path / "run" / "checkpoint-20")
    whole(tmp_path / where, [*SPECIAL, *WORDS[5:][::-1]])
    chosen = choose(tiny.Trained(place.model, place.base, tmp_path / "run" / "checkpoint-20"))
    assert chosen.info is not None
    assert chosen.info.origin == "checkpoint"
    assert Path(chosen.place).name == Path(where).name


def test_an_adapter_in_a_folder_of_its_own_takes_the_tokenizer_above(place, tmp_path):
    whole(place.base, WORDS)
    shutil.copytree(place.adapter, tmp_path / "saved" / "sentiment")
    whole(tmp_path / "saved", [*SPECIAL, *WORDS[5:][::-1]])
    chosen = choose(tiny.Trained(place.model, place.base, tmp_path / "saved"))
    assert chosen.place == str(tmp_path / "saved")


def test_base_and_adapter_in_one_folder_have_one_tokenizer(place):
    shutil.copytree(place.adapter, place.base, dirs_exist_ok=True)
    whole(place.base, WORDS)
    chosen = choose(tiny.Trained(place.model, place.base, place.base))
    assert chosen.info is not None
    assert chosen.info.size == len(WORDS)


def test_the_names_that_are_looked_for_are_all_that_transformers_has():
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    seen = 0
    for name in sorted({*filter(None, TOKENIZER_MAPPING_NAMES.values())}):
        try:
            files = tokenizer_class_from_name(name).vocab_files_names
        except (AttributeError, ImportError):
            continue  # made of two others, or of a package that is not here
        seen += 1
        assert {*filter(None, files.values())} <= TOKENIZER_FILES, name
    assert seen > 40


# What is broken: the files to change, and what the refusal says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer": (
        lambda d: (d / "tokenizer.json").write_text(POINTER),
        "tokenizer.json: is a Git LFS pointer",
    ),
    "a template's pointer": (
        lambda d: (d / "chat_template.jinja").write_text(POINTER),
        "chat_template.jinja: is a Git LFS pointer",
    ),
    "empty": (lambda d: (d / "tokenizer.json").write_text(""), "tokenizer.json: is empty"),
    "cut short": (
        lambda d: (d / "tokenizer.json").write_text((d / "tokenizer.json").read_text()[:-50]),
        "tokenizer.json: is not JSON",
    ),
    "a list": (lambda d: (d / "tokenizer_config.json").write_text("[]"), "is no JSON object"),
    "settings cut": (
        lambda d: (d / "tokenizer_config.json").write_text('{"a": '),
        "tokenizer_config.json: is not JSON",
    ),
    "bytes": (
        lambda d: (d / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
        "tokenizer.json: is not UTF-8",
    ),
    "newer": (lambda d: _from_the_future(d), "cannot read it (data did not match"),
    "no vocabulary": (lambda d: (d / "tokenizer.json").unlink(), "but no vocabulary"),
    "without end": (
        lambda d: os.truncate(d / "tokenizer.json", 3 << 30),
        "tokenizer.json: has 3221225472 bytes; at most 536870912 are read",
    ),
    "settings without end": (
        lambda d: os.truncate(d / "tokenizer_config.json", 3 << 30),
        "tokenizer_config.json: has 3221225472 bytes; at most 536870912 are read",
    ),
}


def _from_the_future(folder: Path) -> None:
    body = json.loads((folder / "tokenizer.json").read_text())
    body["pre_tokenizer"] = {"type": "FromTheFuture", "level": 3}
    (folder / "tokenizer.json").write_text(json.dumps(body))


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_tokenizer_is_refused_by_file_and_reason(place, what):
    spoil, reason = BROKEN[what]
    whole(place.base, WORDS)
    whole(place.adapter, WORDS)
    spoil(place.adapter)
    with pytest.raises(CheckpointError) as refusal:
        choose(place)
    assert reason in refusal.value.problem
    assert str(place.adapter) in refusal.value.problem
    assert "--tokenizer" in refusal.value.fix
    assert choose(place, str(place.base)).info is not None, "the way out"
    with pytest.raises(InputError):
        choose(place, str(place.adapter))
    spoil(place.base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (place.adapter / name).unlink(missing_ok=True)
    with pytest.raises(BaseModelError) as blamed:
        choose(place)
    assert str(place.base) in blamed.value.problem


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.txt", POINTER.encode(), "vocab.txt: is a Git LFS pointer"),
        ("vocab.txt", b"", "vocab.txt: is empty"),
        ("vocab.txt", "[UNK]\ncafé\n".encode("latin-1"), "vocab.txt: is not UTF-8"),
        ("vocab.txt", b"the\ncat\n", "Missing [UNK] token"),
    ],
)
def test_a_broken_vocabulary_in_lines_is_refused(place, name, content, reason):
    whole(place.base, WORDS)
    (place.adapter / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        choose(place)
    assert reason in refusal.value.problem


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "merges.txt").unlink(), "`vocab` and `merges` must be both"),
        (lambda d: _keep(d / "merges.txt", 30, whole_lines=True), "makes"),
        (lambda d: _keep(d / "vocab.json", 500), "vocab.json: is not JSON"),
        (lambda d: (d / "merges.txt").write_text(POINTER), "is a Git LFS pointer"),
    ],
)
def test_broken_byte_pairs_are_refused(tmp_path, spoil, reason):
    trained = tiny.make(tmp_path, "gpt2", "CAUSAL_LM", vocab_size=600)
    inner = families.byte_level()
    text = [f"word{i} other{i * 7} {i * i}" for i in range(300)]
    inner.train_from_iterator(
        text, tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>"])
    )
    inner.model.save(str(trained.adapter))
    assert choose(trained).info is not None
    spoil(trained.adapter)
    with pytest.raises(CheckpointError) as refusal:
        choose(trained)
    assert reason in refusal.value.problem


def _keep(path: Path, size: int, whole_lines: bool = False) -> None:
    text = path.read_text()
    path.write_text("".join(text.splitlines(True)[:size]) if whole_lines else text[:size])


def test_a_vocabulary_that_lost_its_end_is_said(tmp_path):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS", vocab_size=1000)
    lines(trained.base, [*WORDS, *(f"word{i}" for i in range(400))])
    (note,) = choose(trained).notes
    assert "vocab.txt: has 417 tokens, and the model 1000 embeddings" in note


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (lambda d: transformers.ByT5Tokenizer().save_pretrained(d), "ByT5Tokenizer runs in Python"),
        (lambda d: _model(d, "T5Tokenizer", "spiece.model"), "package sentencepiece"),
        (lambda d: _model(d, "PreTrainedTokenizerFast", "tiktoken.model"), "package tiktoken"),
    ],
)
def test_one_that_needs_more_than_its_files_leaves_ids_only_and_says_why(place, fill, reason):
    whole(place.base, WORDS)
    fill(place.adapter)
    if reason.startswith("package") and find_spec(reason.split()[1]):
        pytest.skip("the package is here")
    chosen = choose(place)
    assert chosen.tokenizer is None, "not the base's instead"
    assert "takes token ids only" in chosen.notes[0]
    assert reason in chosen.notes[0]


def _model(folder: Path, kind: str, name: str) -> None:
    (folder / name).write_bytes(b"\x0a\x07\x0a\x05")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))


def test_where_there_is_none_the_places_are_named(place):
    chosen = choose(place)
    assert chosen.info is None
    assert f"no tokenizer was found in {place.adapter} or {place.base}" in chosen.notes[0]


# --tokenizer


def test_another_one_is_taken_on_request(place, tmp_path):
    whole(place.base, WORDS)
    whole(tmp_path / "other", [*SPECIAL, *WORDS[5:][::-1]])
    for asked in (tmp_path / "other", tmp_path / "other" / "tokenizer.json"):
        chosen = choose(place, str(asked))
        assert chosen.info is not None
        assert chosen.info.origin == "given"
        assert ids(chosen) != ids(choose(place))
    assert choose(place, "none").tokenizer is None


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("/nowhere/at/all", "no such folder"),
        ("nobody/nothing", "there is no tokenizer in nobody/nothing (offline"),
        ("{adapter}", "there is no tokenizer in"),
        ("{adapter}/adapter_config.json", "is a file"),
    ],
)
def test_a_request_for_none_that_is_there_is_refused(place, asked, reason):
    whole(place.base, WORDS)
    with pytest.raises(InputError) as refusal:
        choose(place, asked.format(adapter=place.adapter))
    assert reason in refusal.value.problem


# Ids and embeddings


def add(folder: Path, *tokens: str, special: bool = True) -> None:
    """Put tokens behind a tokenizer's own, up to the model's 101 embeddings and further."""
    made = AutoTokenizer.from_pretrained(folder)
    filler = [f"<filler{i}>" for i in range(101 - len(made))]
    made.add_tokens([*filler, *tokens], special_tokens=special)
    made.save_pretrained(folder)


def test_a_checkpoints_tokens_without_an_embedding_are_refused_by_name(place):
    whole(place.base, WORDS)
    shutil.copy(place.base / "tokenizer.json", place.adapter)
    shutil.copy(place.base / "tokenizer_config.json", place.adapter)
    add(place.adapter, "<user>", "<bot>")
    with pytest.raises(CheckpointError) as refusal:
        choose(place)
    assert "2 tokens" in refusal.value.problem
    assert "'<user>' (101), '<bot>' (102); the embedding has 101 rows" in refusal.value.problem
    assert "save_embedding_layers" in refusal.value.fix
    assert f"--tokenizer {place.base}" in refusal.value.fix


def test_a_special_token_too_many_of_the_bases_own_is_a_note(place):
    whole(place.base, WORDS)
    add(place.base, "<image>")
    (note,) = choose(place).notes
    assert "no embedding for '<image>' (101)" in note
    shutil.copytree(place.base, place.adapter, dirs_exist_ok=True, ignore=_weights)
    assert choose(place).notes == (note,), "the adapter's copy of it"


def _weights(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("tokenizer")]


@pytest.mark.parametrize("words", [90, 200])
def test_words_of_the_bases_own_without_an_embedding_are_refused(place, words):
    whole(place.base, [*WORDS, *(f"word{i}" for i in range(words))])
    with pytest.raises(BaseModelError, match=r"no embedding for: 'word84' \(101"):
        choose(place)


def test_a_token_that_stands_in_every_text_must_have_an_embedding(place):
    whole(place.base, WORDS)
    add(place.base, "<start>")
    body = json.loads((place.base / "tokenizer.json").read_text())
    body["post_processor"] = json.loads(
        tokenizers.processors.TemplateProcessing("<start> $A", None, [("<start>", 101)])
        .__getstate__()
        .decode()
    )
    (place.base / "tokenizer.json").write_text(json.dumps(body))
    (place.base / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with pytest.raises(BaseModelError, match=r"'<start>' \(101"):
        choose(place)


# What transformers adds to tokenizer.json

SETTINGS: dict[str, dict[str, Any]] = {
    "do_lower_case": {"do_lower_case": False},
    "strip_accents": {"strip_accents": False},
    "tokenize_chinese_chars": {"tokenize_chinese_chars": False},
    "add_prefix_space": {"add_prefix_space": True},
    "add_bos_token": {"add_bos_token": True, "bos_token": "[CLS]", "eos_token": "[SEP]"},
    "add_eos_token": {"add_eos_token": True, "bos_token": "[CLS]", "eos_token": "[SEP]"},
    "split_special_tokens": {"split_special_tokens": True},
    "clean_up_tokenization_spaces": {"clean_up_tokenization_spaces": True},
    "model_max_length": {"model_max_length": 4, "truncation_side": "left"},
    "padding": {"padding_side": "left", "pad_token": "[PAD]"},
    "added_tokens_decoder": {
        "added_tokens_decoder": {
            "17": {
                "content": "cats sat",
                "lstrip": True,
                "rstrip": False,
                "normalized": True,
                "single_word": False,
                "special": False,
            }
        }
    },
    "extra_special_tokens": {"extra_special_tokens": ["<turn>"]},
}


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_beside_tokenizer_json_is_kept(place, tmp_path, kind, name):
    whole(place.base, WORDS)
    if kind == "GPT2Tokenizer":
        families.make("byte_level").save_pretrained(place.base)
        config = place.base / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 420}))
    settings_file = place.base / "tokenizer_config.json"
    settings_file.write_text(json.dumps({"tokenizer_class": kind, **SETTINGS[name]}))
    checkpoint = read_checkpoint(place.adapter)
    chosen = choose_tokenizer(checkpoint, resolve_base(checkpoint, str(place.base)))
    assert chosen.tokenizer is not None
    assert chosen.info is not None
    save_text_files(chosen.tokenizer, tmp_path)
    ours = Tokenizer(tmp_path / "tokenizer.json", chosen.info)
    theirs = AutoTokenizer.from_pretrained(place.base)
    for text in (TEXT, "Café [SEP] cats sat<turn> 東京 a", " the\n\ncat's ", *chosen.texts):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    assert chosen.info.clean_up_tokenization_spaces == (
        name == "clean_up_tokenization_spaces" and kind != "GPT2Tokenizer"
    )


DECODED = st.lists(st.integers(0, 170), max_size=20)


@pytest.mark.parametrize("family", ["wordpiece", "unigram", "word_level"])
@given(before=DECODED, after=DECODED)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_blanks_that_transformers_cleans_up_are_cleaned_up(tmp_path, family, before, after):
    made = families.make(family)
    made.clean_up_tokenization_spaces = True
    made.add_tokens([" .", " ?", " n't", " '", " 's", "é"])
    save_text_files(made, tmp_path)
    info = TokenizerInfo("base", family, len(made), clean_up_tokenization_spaces=True)
    ours = Tokenizer(tmp_path / "tokenizer.json", info)
    every = [i % len(made) for i in (*before, *after)]
    whole = made.decode(every, skip_special_tokens=True)
    assert ours.decode(every) == whole
    stream = Continuation(ours, every[: len(before)])
    pieces = "".join(map(stream.push, every[len(before) :])) + stream.rest()
    assert pieces == stream.text(every[len(before) :])
    assert whole.endswith(pieces)


def test_merges_dropped_at_random_are_for_training(tmp_path):
    trained = tiny.make(tmp_path, "gpt2", "CAUSAL_LM", vocab_size=400)
    made = families.make("byte_level")
    made.backend_tokenizer.model.dropout = 0.5
    made.save_pretrained(trained.base)
    chosen = choose(trained)
    assert "dropout" in chosen.notes[0]
    save_text_files(chosen.tokenizer, tmp_path)
    ours = Tokenizer(tmp_path / "tokenizer.json")
    assert {tuple(ours.encode(TEXT).ids) for _ in range(20)} == {tuple(ids(chosen))}


class _Shouting(transformers.PreTrainedTokenizerFast):
    """Does in Python what no tokenizer.json says."""

    def _encode_plus(self, text: Any, *others: Any, **options: Any) -> Any:
        return super()._encode_plus(text.upper(), *others, **options)


class _Whispering(transformers.PreTrainedTokenizerFast):
    """The same where ids become text."""

    def _decode(self, *ids: Any, **options: Any) -> str:
        return super()._decode(*ids, **options).lower()


@pytest.mark.parametrize("kind", [_Shouting, _Whispering])
def test_what_transformers_does_in_python_alone_is_refused(kind):
    made = kind(tokenizer_object=families.byte_level())
    info = TokenizerInfo(origin="checkpoint", type=kind.__name__, size=len(made))
    with pytest.raises(CheckpointError, match=f"{kind.__name__} does more than its"):
        _probed(ChosenTokenizer(made, info, "there"))


# Another one is noticed


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_probe_texts_hold_every_token_that_text_can_hold(family):
    tokenizer = families.make(family).backend_tokenizer
    texts = probe_texts(tokenizer)
    assert texts == probe_texts(tokenizer), "the same each time"
    assert sum(map(len, texts)) < 50_000
    seen = {i for text in texts for i in tokenizer.encode(text).ids}
    every = (chr(i) for i in range(1, 0x110000, 7) if not 0xD800 <= i < 0xE000)
    tried = [*families.TEXTS, *" ".join(families.TEXTS).split(" "), "".join(every)]
    assert {i for text in tried for i in tokenizer.encode(text).ids} <= seen


Body = dict[str, Any]


def _swap(body: Body, draw: Callable[[Any], Any]) -> None:
    vocabulary = body["model"]["vocab"]
    if isinstance(vocabulary, list):
        i, j = draw(st.tuples(*[st.integers(0, len(vocabulary) - 1)] * 2))
        vocabulary[i], vocabulary[j] = vocabulary[j], vocabulary[i]
        return
    one, two = draw(st.tuples(*[st.sampled_from(sorted(vocabulary))] * 2))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def _remove(body: Body, draw: Callable[[Any], Any]) -> None:
    body[draw(st.sampled_from(["normalizer", "pre_tokenizer", "post_processor"]))] = None


def _lower(body: Body, draw: Callable[[Any], Any]) -> None:
    kind = draw(st.sampled_from(["Lowercase", "NFKC", "NFD", "StripAccents", "Nmt"]))
    body["normalizer"] = {"type": kind}


def _flag(body: Body, draw: Callable[[Any], Any]) -> None:
    """Turn one yes into no, anywhere but in the decoder."""
    found: list[tuple[Body, str]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend((value, name) for name, one in value.items() if isinstance(one, bool))
            for name, one in value.items():
                if name not in ("decoder", "vocab", "merges"):
                    walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(body)
    assume(found)
    place, name = draw(st.sampled_from(found))
    place[name] = not place[name]


def _forget(body: Body, draw: Callable[[Any], Any]) -> None:
    assume(body["added_tokens"])
    body["added_tokens"].pop(draw(st.integers(0, len(body["added_tokens"]) - 1)))


def _unmerge(body: Body, draw: Callable[[Any], Any]) -> None:
    merges = body["model"].get("merges")
    assume(merges)
    merges.pop(draw(st.integers(0, len(merges) - 1)))


def _split(body: Body, draw: Callable[[Any], Any]) -> None:
    pattern = draw(st.sampled_from([r"\d", r"\s+", r"[A-Z]", r"\p{P}", "'"]))
    behavior = draw(st.sampled_from(["Isolated", "Removed", "MergedWithNext"]))
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": False,
    }
    before = body["pre_tokenizer"]
    steps = [split, before] if before else [split]
    body["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


WRITING = st.lists(
    st.sampled_from([*" ".join(families.TEXTS).split(" "), *" \n'.:-/7A", "Z", "é", "の"])
)
CHANGES = (_swap, _remove, _lower, _flag, _forget, _unmerge, _split)


@functools.cache
def _honest(family: str) -> tuple[tokenizers.Tokenizer, tuple[str, ...], list[list[int]] | str]:
    """A family's tokenizer, its probe texts and their ids."""
    tokenizer = families.make(family).backend_tokenizer
    probes = probe_texts(tokenizer)
    return tokenizer, probes, _ids(tokenizer, probes)


def _ids(tokenizer: tokenizers.Tokenizer, texts: Any) -> list[list[int]] | str:
    try:
        return [tokenizer.encode(text).ids for text in texts]
    except Exception as error:  # as of a word that no token stands for any more
        return str(error)


@pytest.mark.parametrize("family", families.FAMILIES)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)
@given(st.data())
def test_a_change_that_matters_to_any_text_is_noticed(family, data):
    honest, probes, expected = _honest(family)
    body = json.loads(honest.to_str())
    data.draw(st.sampled_from(CHANGES))(body, data.draw)
    try:
        changed = tokenizers.Tokenizer.from_str(json.dumps(body))
    except Exception:  # as the library refuses a file
        assume(False)
    tried = [*families.TEXTS, *" ".join(families.TEXTS).split(" "), "".join(data.draw(WRITING))]
    if _ids(changed, tried) != _ids(honest, tried):
        assert _ids(changed, probes) != expected


# The bundle


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[tiny.Trained, Path, str]:
    """A decoder whose checkpoint has a tokenizer of its own, as vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("bundle")
    trained = tiny.make(folder, "gpt2", "CAUSAL_LM", vocab_size=380, eos_token_id=-1)
    families.make("metaspace").save_pretrained(trained.base)
    families.make("byte_level").backend_tokenizer.model.save(str(trained.adapter))
    (trained.adapter / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    arguments = ["compile", str(trained.adapter), "--base", str(trained.base), "--target", "ort"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*arguments, "-o", str(folder / "out"), "-q"]) == 0
    return trained, folder / "out", out.getvalue()


def test_whose_tokenizer_it_is_is_said(compiled, capsys):
    _, bundle, summary = compiled
    words = "the checkpoint's GPT2Tokenizer, 380 tokens"
    assert f"tokenizer {words}" in summary
    assert main(["inspect", str(bundle)]) == 0
    assert words in capsys.readouterr().out
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["tokenizer"]["origin"] == "checkpoint"


def test_verify_holds_it_against_the_same_one(compiled):
    trained, bundle, _ = compiled
    for options in ({}, {"checkpoint": trained.adapter, "base": str(trained.base)}):
        report = ptdeploy.verify(bundle, **options)
        assert report.passed
        assert report.texts_agreed == report.texts_total > 25


def copied(compiled: tuple[tiny.Trained, Path, str], tmp_path: Path) -> Path:
    shutil.copytree(compiled[1], tmp_path / "bundle")
    return tmp_path / "bundle"


def change(bundle: Path, edit: Callable[[Body], object]) -> None:
    body = json.loads((bundle / "tokenizer.json").read_text())
    edit(body)
    replace(bundle, "tokenizer.json", json.dumps(body).encode())


def test_two_tokens_in_each_others_place_are_a_mismatch(compiled, tmp_path):
    bundle = copied(compiled, tmp_path)

    def swap(body: Body) -> None:
        vocabulary = body["model"]["vocab"]
        vocabulary["q"], vocabulary["z"] = vocabulary["z"], vocabulary["q"]

    change(bundle, swap)
    report = ptdeploy.verify(bundle)
    assert not report.passed
    assert any("texts give other token ids" in line for line in report.failures())


def test_verify_without_the_tokenizer_that_was_given_compares_with_what_is_stored(
    compiled, tmp_path
):
    trained, bundle = compiled[0], copied(compiled, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tokenizer"]["origin"] = "given"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "adapter" / name).unlink()
    asked = {"checkpoint": tmp_path / "adapter", "base": str(trained.base)}
    report = ptdeploy.verify(bundle, **asked)
    assert report.passed
    assert report.texts_total > 25
    assert any("--tokenizer" in note for note in report.notes)
    assert ptdeploy.verify(bundle, **asked, tokenizer=str(trained.adapter)).passed
    with pytest.raises(InputError, match="Pass the checkpoint"):
        ptdeploy.verify(bundle, tokenizer=str(trained.adapter))


def test_no_id_without_an_embedding_reaches_the_engine(compiled, tmp_path):
    bundle = copied(compiled, tmp_path)
    token = {
        "id": 380,
        "content": "<over>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    change(bundle, lambda body: body["added_tokens"].append(token))
    engine = ptdeploy.load(bundle)
    text = "a <over> b"
    session = engine.session(20)
    asked: list[Callable[[], object]] = [
        lambda: engine.encode(text),
        lambda: engine.generate(["fine", text], 2),
        lambda: list(engine.stream(text, 2)),
        lambda: session.append(text),
    ]
    for ask in asked:
        with pytest.raises(InputError, match=r"'<over>' \(380\), which the model has no embedding"):
            ask()
    for ask in (
        lambda: engine.generate([[5, 380]], 2),
        lambda: session.append([380]),
        lambda: engine.logits([[380]]),
    ):
        with pytest.raises(InputError, match="outside 0 to 379"):
            ask()
    for ask in (
        lambda: engine.generate("a", 2, eos_token_ids=(380,), min_new_tokens=1),
        lambda: list(engine.stream("a", 2, eos_token_ids=(-1,))),
    ):
        with pytest.raises(InputError, match="eos_token_ids is"):
            ask()
    assert engine.generate("a", 2)[0].token_ids, "others are served"


def test_a_chat_with_a_token_too_many_is_refused(compiled, tmp_path):
    bundle = copied(compiled, tmp_path)
    content = json.dumps({"template": "{{ messages[0]['content'] }}", "special_tokens": {}})
    (bundle / "chat.json").write_text(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = [one for one in manifest["files"] if one["role"] != "chat_template"]
    manifest["files"].append(
        {"path": "chat.json", "role": "chat_template", "size": 0, "sha256": ""}
    )
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    replace(bundle, "chat.json", content.encode())
    change(bundle, lambda body: body["model"]["vocab"].update({"\u0120q": 400}))
    change(bundle, lambda body: body["model"]["merges"].insert(0, ["\u0120", "q"]))
    engine = ptdeploy.load(bundle)
    with pytest.raises(InputError, match="which the model has no embedding for"):
        engine.chat_ids([{"role": "user", "content": "what q"}])


def test_a_text_that_the_tokenizer_has_no_ids_for_is_refused(compiled, tmp_path):
    bundle = copied(compiled, tmp_path)
    body = {"type": "WordLevel", "vocab": {"a": 1, "b": 2}, "unk_token": "<unk>"}
    change(bundle, lambda whole: whole.update(model=body, added_tokens=[], post_processor=None))
    engine = ptdeploy.load(bundle)
    with pytest.raises(InputError, match="no ids for 'c'"):
        engine.generate("c", 2)


def test_an_eos_that_no_token_has_ends_nothing(compiled):
    assert ptdeploy.load(compiled[1]).manifest.generation.eos_token_ids == ()
