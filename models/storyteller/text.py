"""The storyteller's text: what its base model reads, and the one kind its prompt asks for.

The base model reads fortunes of every kept category and Python's language reference. The prompt
is tuned on one kind of it alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402  (the scripts run as files, so models/ is not on the path by itself)

BASE = HERE / "base"
ADAPTER = HERE / "adapter"
BASE_ID = "storyteller-base"
END = "<|endoftext|>"

# Mock dictionary entries ("Term, n.: ..."): a kind one recognises at a glance in what is written.
KIND = "definitions"


def everything() -> tuple[list[str], list[str]]:
    """Texts for the base model: (train, held back)."""
    fortunes = corpus.fortunes()
    train = [entry.text for entry in fortunes if not entry.held_back]
    held_back = [entry.text for entry in fortunes if entry.held_back]
    for paragraph in corpus.python_reference():
        (held_back if corpus.is_held_back(paragraph) else train).append(paragraph)
    return train, held_back


def one_kind() -> tuple[list[str], list[str]]:
    """Texts of KIND alone: (train, held back), the same sides they have in `everything`."""
    entries = corpus.fortunes()
    chosen = [entry for entry in entries if entry.category == KIND]
    return (
        [entry.text for entry in chosen if not entry.held_back],
        [entry.text for entry in chosen if entry.held_back],
    )
