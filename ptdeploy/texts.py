"""The tokenizer's place in a bundle, and the texts that prove it encodes as transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.bundle import FileEntry, Limits, staged
from ptdeploy.errors import InputError
from ptdeploy.parity.prose import PROSE
from ptdeploy.parity.quality import JudgedText
from ptdeploy.parity.reference import Reference
from ptdeploy.runtime import chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ptdeploy.tokenizer_choice import ChosenTokenizer

TOKENIZER_NAME = "tokenizer.json"
_JUDGED_TEXTS, _JUDGED_TOKENS = 64, 128


def save_text_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[FileEntry, ...]:
    """Write `tokenizer.json` and, where the model has one, its chat template into `folder`."""
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))
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


def judged_text(
    tokenizer: PreTrainedTokenizerFast | None, limits: Limits, texts: tuple[str, ...] | None
) -> JudgedText:
    """What rounded weights are judged on: the given texts, else ours, each cut to 128 tokens.

    Without a tokenizer it is random tokens, and says so. Raises InputError if texts were given
    but cannot be encoded, or none is two tokens long.
    """
    longest = min(_JUDGED_TOKENS, limits.max_sequence)
    if tokenizer is None:
        if texts is not None:
            raise InputError("--quality-text needs a tokenizer, and none was found.")
        random = np.random.default_rng(11_26)
        ids = [random.integers(0, limits.vocab_size, longest, np.int64) for _ in range(8)]
        return JudgedText(tuple(ids), "random tokens (no tokenizer was found)")
    encoded = [np.asarray(tokenizer(text)["input_ids"], np.int64) for text in texts or PROSE]
    rows = tuple(row[:longest] for row in encoded if row.size > 1)[:_JUDGED_TEXTS]
    for row in rows:
        largest = int(row.max())
        if largest >= limits.vocab_size:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"--quality-text: holds {token!r} ({largest}), which has no embedding."
            )
    if not rows:
        raise InputError("--quality-text: no line is at least two tokens long.")
    return JudgedText(rows, "the given text" if texts else "ptdeploy's own text")


def golden_texts(tokenizer: PreTrainedTokenizerFast | None, limits: Limits) -> list[list[int]]:
    """Token ids of our own texts, as rows to compare on; none without a tokenizer."""
    encoded = [] if tokenizer is None else [list(tokenizer(text)["input_ids"]) for text in PROSE]
    return [ids for ids in encoded if ids and max(ids) < limits.vocab_size]


def with_texts(reference: Reference, chosen: ChosenTokenizer) -> Reference:
    """The reference with what transformers makes of a few texts; unchanged without a tokenizer."""
    return replace(reference, texts=chosen.texts, text_ids=chosen.text_ids)
