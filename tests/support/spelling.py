"""Tokenizers made for what a model writes, so that it writes a text that we chose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.damage import edit, replace
from tokenizers import Tokenizer, decoders, models

SPECIAL = "<|end|>"
_REST: tuple[Any, ...] = (decoders.ByteFallback(), decoders.Fuse())
# The decoder, and pieces that a model writes one after the other: characters over several tokens,
# punctuation that takes the blank before it away, bytes that are no character, and a special token.
STYLES: dict[str, tuple[Any, list[str]]] = {
    "bytes as letters": (
        decoders.ByteLevel(),
        ["Ġthe", "æ", "Ŀ", "±", "Ġcat", SPECIAL, "ðŁ", "ĺĢ", "Ġs", "at", ".", "ðŁ", "Ċ", "a", "Ġ"],
    ),
    "words and bytes": (
        decoders.Sequence([decoders.Replace("▁", " "), *_REST, decoders.Strip(" ", 1, 0)]),
        ["▁the", "<0xE6>", "<0x9D>", "<0xB1>", "▁cat", SPECIAL, "<0xC3>", "▁s", "at", "<0xC3>"],
    ),
    "words that go on": (
        decoders.WordPiece(),
        ["##s", "the", "##re", ".", "東", "##京", SPECIAL, "do", "not", "'", "s", "!", "a", "##b"],
    ),
    "words with a mark": (
        decoders.Metaspace(),
        ["▁the", "re", "▁東", "京", SPECIAL, "▁cat▁", "s", ".", "▁", "é"],
    ),
    "words with an end": (
        decoders.BPEDecoder("</w>"),
        ["the</w>", "ca", "t</w>", SPECIAL, "東", "京</w>x", ".</w>", "a", "b</w>"],
    ),
    "words alone": (None, ["the", "cat", SPECIAL, "東京", ".", "a"]),
}


def spelling(style: str, written: Iterable[int], size: int) -> Tokenizer:
    """A tokenizer of `size` words; the tokens of `written` are the style's pieces in turn."""
    decoder, pieces = STYLES[style]
    words = {token: f"w{token}" for token in range(size)}
    words.update(zip(dict.fromkeys(written), pieces, strict=False))
    for token, word in words.items():
        if [*words.values()].count(word) > 1:  # a piece that stands there twice
            words[token] = f"{word}{token}"
    if SPECIAL not in words.values():
        words[size] = SPECIAL
    made = Tokenizer(models.WordLevel({word: n for n, word in words.items()}, unk_token="w0"))
    if decoder is not None:
        made.decoder = decoder
    made.add_special_tokens([SPECIAL])
    return made


def with_tokenizer(source: Path, folder: Path, tokenizer: Any, **info: bool) -> Path:
    """A copy of a bundle with this tokenizer; `info` is what its manifest says of it besides."""
    shutil.copytree(source, folder)
    if isinstance(tokenizer, Path):
        shutil.copy(tokenizer, folder / "tokenizer.json")
    else:
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str())))
    listed(folder, [("tokenizer.json", "tokenizer")], **info)
    return folder


def listed(bundle: Path, files: list[tuple[str, str]], **info: bool) -> None:
    """List files that lie in a bundle's folder, a tokenizer among them."""

    def change(manifest: dict[str, Any]) -> None:
        for path, role in files:
            manifest["files"].append({"path": path, "role": role, "size": 0, "sha256": ""})
        manifest["tokenizer"] = {"origin": "given", "type": "T", "size": 9, **info}

    edit(bundle, change)
    for path, _ in files:
        replace(bundle, path, (bundle / path).read_bytes())
