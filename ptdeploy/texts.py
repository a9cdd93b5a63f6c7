"""The tokenizer's place in a bundle, and the texts that prove it encodes as transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptdeploy.base import BaseModel, quiet_libraries
from ptdeploy.bundle import FileEntry, Limits, staged
from ptdeploy.checkpoint import Checkpoint
from ptdeploy.errors import InputError
from ptdeploy.parity.prose import PROSE
from ptdeploy.parity.quality import JudgedText
from ptdeploy.parity.reference import Reference
from ptdeploy.runtime import chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_NAME = "tokenizer.json"
_JUDGED_TEXTS, _JUDGED_TOKENS = 64, 128

_TEXTS = (
    "The engine starts on the first try.",
    "  two  spaces, a tab\tand a\nnew line ",
    "Prices: 3.50 EUR (was 4,00)! e-mail: a.b@example.org",
    "naïve café, Straße, Ελλάδα, 東京, 🙂",
    "don't STOP",
)


def find_tokenizer(checkpoint: Checkpoint, base: BaseModel) -> PreTrainedTokenizerFast | None:
    """The tokenizer saved with the checkpoint, else the base model's, else None.

    Only tokenizers that the `tokenizers` library can run are found: a bundle has no transformers.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    places: list[tuple[str, str | None]] = [(base.name, base.revision)]
    if (folder / TOKENIZER_NAME).is_file():
        places.insert(0, (str(folder), None))
    for name, revision in places:
        if Path(name).is_dir() and not any(Path(name).glob("*token*")):
            continue
        try:
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(
                    name, revision=revision, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, ImportError):
            continue
        if getattr(tokenizer, "is_fast", False):
            return tokenizer
    return None


def save_text_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[FileEntry, ...]:
    """Write `tokenizer.json` and, where the model has one, its chat template into `folder`."""
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))
    entries = [staged(TOKENIZER_NAME, "tokenizer")]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        name = chat.save(chat.ChatTemplate(template, special), folder)
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
    if not rows:
        raise InputError("--quality-text: no line is at least two tokens long.")
    return JudgedText(rows, "the given text" if texts else "ptdeploy's own text")


def golden_texts(tokenizer: PreTrainedTokenizerFast | None, limits: Limits) -> list[list[int]]:
    """Token ids of our own texts, as rows to compare on; none without a tokenizer."""
    encoded = [] if tokenizer is None else [list(tokenizer(text)["input_ids"]) for text in PROSE]
    return [ids for ids in encoded if ids and max(ids) < limits.vocab_size]


def with_texts(reference: Reference, tokenizer: PreTrainedTokenizerFast | None) -> Reference:
    """The reference with what transformers makes of a few texts; unchanged without a tokenizer."""
    if tokenizer is None:
        return reference
    ids = tuple(tuple(tokenizer(text)["input_ids"]) for text in _TEXTS)
    return replace(reference, texts=_TEXTS, text_ids=ids)
