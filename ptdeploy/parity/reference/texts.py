"""The tokenizer's place in a bundle, and the texts that prove it encodes as transformers does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptdeploy.bundle import FileEntry, RequestLimits, TokenizerInfo, staged
from ptdeploy.bundle.quantization import LEAST_CALIBRATED
from ptdeploy.bundle.task import Task
from ptdeploy.errors import InputError
from ptdeploy.parity.cases import AskedRow, cut, longest_row, some_segments
from ptdeploy.parity.quality import EvaluationText
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.reference.prose import PROSE, evaluation_texts
from ptdeploy.runtime import ENGINES, chat
from ptdeploy.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ptdeploy.source.tokenizer_choice import ChosenTokenizer

TOKENIZER_NAME = "tokenizer.json"
_NEVER_CUT = 2**31
_EVALUATION_TEXTS, _EVALUATION_PAIRS, _EVALUATION_TOKENS = 64, 16, 128
# A classifier gives one answer a text; each costs one short run.
_EVALUATION_CLASSIFIED, _EVALUATION_RANDOM = 1000, 320
# Looking at activations is one short run too, whatever the task.
_CALIBRATED = 1000
_QUALITY, _CALIBRATION = "--quality-text", "--calibration"
# Of texts that give one answer each one in ten is long, so that a fault of long rows alone changes
# enough answers; no more than so many, as they cost most.
_LONG_SHARE, _MOST_LONG = 10, 32

_PAIRS = (
    ("Does the engine start?", "It starts on the first try, don't worry."),
    ("naïve café", "  東京,  then a\nnew line "),
)


def save_text_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[FileEntry, ...]:
    """Write `tokenizer.json` and, where the model has one, its chat template into `folder`."""
    inner = tokenizer.backend_tokenizer
    if tokenizer.truncation_side == "left":
        # tokenizer.json has a place for the side, though transformers keeps it elsewhere.
        inner.enable_truncation(_NEVER_CUT, direction="left")
    inner.save(str(folder / TOKENIZER_NAME))
    entries = [staged(TOKENIZER_NAME, "tokenizer")]
    template, named = tokenizer.chat_template, {}
    if isinstance(template, dict):
        named = {name: one for name, one in template.items() if name != "default"}
        template = template.get("default")
    if template or named:
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        name = chat.save(chat.ChatTemplate(template, special, named), folder)
        entries.append(staged(name, "chat_template"))
    return tuple(entries)


def text_program_files(
    folder: Path, info: TokenizerInfo | None, type_vocab_size: int
) -> tuple[FileEntry, ...]:
    """Write the program of the tokenizer in `folder` beside it, for C++.

    Raises InputError if there is no tokenizer, OpenVINO would not give its ids, or a text alone has
    segments that the model tells apart: the program gives ids.
    """
    from ptdeploy.program.text_program.convert import write_text_program

    if not (folder / TOKENIZER_NAME).exists():
        raise InputError(
            "--cpp-tokenizer: no tokenizer was found.", "Say where it is with --tokenizer."
        )
    if type_vocab_size and any(Tokenizer(folder / TOKENIZER_NAME, info).encode("a").type_ids):
        raise InputError(
            "--cpp-tokenizer: this tokenizer gives the tokens of one text other segments than 0, "
            "and its program for C++ gives ids alone.",
            "Leave out --cpp-tokenizer, and give C++ the ids and the segments.",
        )
    return write_text_program(folder / TOKENIZER_NAME, info, folder)


def evaluation_text(
    tokenizer: PreTrainedTokenizerFast | None,
    limits: RequestLimits,
    texts: tuple[str, ...] | None,
    task: Task,
) -> EvaluationText:
    """The evaluation text of quantized engines: the given texts, else ours, each cut to 128 tokens.

    Where a text gives one answer (SEQ_CLS) there are more of them, and shorter ones. Texts are also
    joined to one as long as the longest row that is compared, or for SEQ_CLS to several. Without a
    tokenizer it is random tokens, and says so. Raises InputError if texts were given but cannot be
    encoded, or none is two tokens long.
    """
    longest = min(_EVALUATION_TOKENS, limits.max_sequence)
    if tokenizer is None:
        if texts is not None:
            raise _no_tokenizer(_QUALITY)
        random = np.random.default_rng(11_26)
        lengths = [longest] * 8
        if ENGINES[task].one_answer:
            lengths = random.integers(1, min(longest, 32) + 1, _EVALUATION_RANDOM).tolist()
        ids = [random.integers(0, limits.vocab_size, length, np.int64) for length in lengths]
        drawn = [AskedRow(row) for row in ids]
        if limits.type_vocab_size:
            drawn += [
                replace(row, type_ids=some_segments(row.ids.size, limits))
                for row in drawn[:_EVALUATION_PAIRS]
            ]
        drawn += _long_rows(drawn, limits, task)
        return EvaluationText(tuple(drawn), "random tokens (no tokenizer was found)")
    ours: tuple[str, ...] = PROSE
    most = _EVALUATION_TEXTS
    if ENGINES[task].one_answer:
        ours, most = evaluation_texts(), _EVALUATION_CLASSIFIED
    said = _QUALITY if texts else "ptdeploy's own evaluation text"
    alone = _rows(tokenizer, limits, texts or ours, most, said)
    if not alone:
        raise InputError(
            f"{said}: no text of it is at least two tokens long.",
            "Give longer texts."
            if texts
            else "See that the tokenizer is the model's own (--tokenizer DIR), or give texts with "
            "--quality-text.",
        )
    source = "the given text" if texts else "ptdeploy's own text"
    return EvaluationText(_with_others(tokenizer, limits, alone, texts or PROSE, task), source)


def calibration_rows(
    tokenizer: PreTrainedTokenizerFast | None,
    limits: RequestLimits,
    texts: tuple[str, ...],
    task: Task,
) -> tuple[AskedRow, ...]:
    """The texts of `--calibration` as rows, cut and joined as those of `evaluation_text`.

    Raises InputError if they cannot be encoded, or too few are two tokens long.
    """
    if tokenizer is None:
        raise _no_tokenizer(_CALIBRATION)
    alone = _rows(tokenizer, limits, texts, _CALIBRATED, _CALIBRATION)
    if len(alone) < LEAST_CALIBRATED:
        raise InputError(
            f"{_CALIBRATION}: {LEAST_CALIBRATED} texts of at least two tokens are needed, and it "
            f"has {len(alone)}.",
            "Give longer texts, or more.",
        )
    return _with_others(tokenizer, limits, alone, texts, task)


def _no_tokenizer(option: str) -> InputError:
    return InputError(
        f"{option} needs a tokenizer, and none was found.",
        "Pass the base model's with --tokenizer DIR.",
    )


def _rows(
    tokenizer: PreTrainedTokenizerFast,
    limits: RequestLimits,
    texts: Sequence[str],
    most: int,
    said: str,
) -> list[AskedRow]:
    """The first texts of two tokens and more, cut. Raises InputError for tokens unknown to it."""
    # No more than are run: a file may have millions.
    encoded = (_row(tokenizer, limits, text) for text in texts)
    found = islice((row for row in encoded if row.ids.size > 1), most)
    rows = [cut(row, min(_EVALUATION_TOKENS, limits.max_sequence)) for row in found]
    for row in rows:
        largest = int(row.ids.max())
        if largest >= limits.vocab_size:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise InputError(f"{said}: holds {token!r} ({largest}), which has no embedding.")
    return rows


def _with_others(
    tokenizer: PreTrainedTokenizerFast,
    limits: RequestLimits,
    alone: list[AskedRow],
    texts: Sequence[str],
    task: Task,
) -> tuple[AskedRow, ...]:
    """Rows, these joined to long ones, and texts in two halves for a model that has segments."""
    rows = [*alone, *_long_rows(alone, limits, task)]
    if limits.type_vocab_size:
        longest = min(_EVALUATION_TOKENS, limits.max_sequence)
        pairs = [_row(tokenizer, limits, *halves(text)) for text in texts[:_EVALUATION_PAIRS]]
        rows += [cut(row, longest) for row in pairs if _fits(row, limits)]
    return tuple(rows)


def _long_rows(rows: list[AskedRow], limits: RequestLimits, task: Task) -> list[AskedRow]:
    """Texts joined up to the longest row that is compared; none where a text is as long itself.

    Where a text gives one answer they are a tenth of all, and down to a quarter as long.
    """
    so_far, longest = max(row.ids.size for row in rows), longest_row(limits.max_sequence)
    if longest <= so_far:
        return []
    count = min(_MOST_LONG, -(-len(rows) // _LONG_SHARE)) if ENGINES[task].one_answer else 1
    shortest = max(so_far + 1, longest // 4)
    lengths = np.geomspace(longest, shortest, count).round().astype(int).tolist()
    joined = np.concatenate([row.ids for row in rows])
    starts = np.cumsum([0, *(row.ids.size for row in rows[:-1])])
    return [
        AskedRow(np.take(joined, np.arange(start, start + length), mode="wrap"), rows[0].source)
        for length, start in zip(lengths, starts.tolist(), strict=False)
    ]


def reference_texts(
    tokenizer: PreTrainedTokenizerFast | None, limits: RequestLimits
) -> list[AskedRow]:
    """Our own texts, as rows to compare on; none without a tokenizer.

    Where the model has segments every second one is a pair, the two halves of a text.
    """
    if tokenizer is None:
        return []
    rows = [
        _row(tokenizer, limits, *halves(text))
        if limits.type_vocab_size and i % 2
        else _row(tokenizer, limits, text)
        for i, text in enumerate(PROSE)
    ]
    return [row for row in rows if row.ids.size and _fits(row, limits)]


def _fits(row: AskedRow, limits: RequestLimits) -> bool:
    """Whether the model has all of its ids, and its segments."""
    known = row.type_ids is None or row.type_ids.max() < limits.type_vocab_size
    return bool(row.ids.max() < limits.vocab_size and known)


def halves(text: str) -> tuple[str, str]:
    """A text as two, parted between words; the first has at most 8, so that both are compared."""
    words = text.split()
    first = min(len(words) // 2, 8)
    return " ".join(words[:first]), " ".join(words[first:])


def _row(
    tokenizer: PreTrainedTokenizerFast, limits: RequestLimits, text: str, pair: str | None = None
) -> AskedRow:
    encoded = tokenizer(text, pair)
    segments = np.asarray(_segments(encoded), np.int64)
    types = segments if limits.type_vocab_size and segments.any() else None
    return AskedRow(np.asarray(encoded["input_ids"], np.int64), "text", types)


def _segments(encoded: Mapping[str, Any]) -> Sequence[int]:
    """The segments that a model is given with what a tokenizer gave it; without any they are 0."""
    zeros = [0] * len(encoded["input_ids"])
    segments: Sequence[int] = encoded.get("token_type_ids", zeros)
    return segments


def with_texts(reference: Reference, chosen: ChosenTokenizer, task: Task) -> Reference:
    """The reference with what transformers makes of a few texts; unchanged without a tokenizer.

    Classifiers take pairs of texts too.
    """
    tokenizer = chosen.tokenizer
    pairs = _PAIRS if tokenizer is not None and ENGINES[task].takes_pairs else ()
    encoded = [tokenizer(*pair) for pair in pairs if tokenizer]
    return replace(
        reference,
        texts=chosen.texts,
        text_ids=chosen.text_ids,
        pairs=pairs,
        pair_ids=tuple(tuple(one["input_ids"]) for one in encoded),
        pair_type_ids=tuple(tuple(_segments(one)) for one in encoded),
    )
