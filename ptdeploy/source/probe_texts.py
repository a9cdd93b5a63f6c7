"""Texts by which another tokenizer is noticed: kinds of writing, and the vocabulary itself."""

# ruff: noqa: RUF001  (letters that look like others are what these texts are about)

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

# Of a larger vocabulary as many tokens are asked for, evenly spread.
_MOST_TOKENS, _MOST_ADDED, _A_TEXT = 4096, 256, 64

FIXED = (
    "The engine starts on the first try.",
    "  two  spaces, a tab\tand a\nnew line ",
    "Prices: 3.50 EUR (was 4,00)! e-mail: a.b@example.org",
    "naïve café, Straße, Ελλάδα, 東京, 🙂",
    "東京",
    "don't STOP",
    "a",
    " a",
    "\n",
    "I'll say we're here; they'd've gone, IT'S late.",
    "UPPER lower Title camelCase snake_case kebab-case",
    "0 1 12 123 1234 12345 1,234,567.89 -3e10 ½ ² ٣ 0x1F",
    "«quotes» “curly” ‘single’ -- — – … ¿why? ¡so! #tag @name 50% a/b\\c {x} [y] <z> ~ ^ | ` $",
    "def f(x):\n    return x ** 2\n\n\tif not a[0] != b: pass  # why\r\n",
    "https://example.org/a/b?c=d&e=f#g",
    "Привет мир! שלום עולם مرحبا بالعالم สวัสดี नमस्ते 안녕하세요 こんにちは 你好，世界。",
    "e\u0301 \u00e9 ﬁ Ⅳ ＡＢＣ ﷺ İı ẞß ǅ",
    "👩‍👩‍👧 🇪🇺 👍🏽 ☃️ 𝒜𝔅",
    "zero\u200bwidth non\u00a0breaking soft\u00adhyphen \ufeffmark \u3000wide \u2028line \x07bell",
    "Donaudampfschifffahrtsgesellschaftskapitän antidisestablishmentarianism xqzjkvw",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ........ \n\n\n\n        end",
    "[CLS] a [SEP] b [MASK] [UNK] [PAD] <s> </s> <unk> <pad> <|endoftext|> <bos> <eos> ##a ▁a Ġa",
)


_MARKS = [chr(i) for i in range(0x21, 0x7F) if not chr(i).isalnum()]
_PAIRS = tuple(" ".join(one + two for two in _MARKS) for one in _MARKS)

# Each byte that UTF-8 has, for vocabularies whose smallest tokens are bytes.
_BYTES = (
    " ".join(map(chr, range(0x20, 0x7F))),
    "".join(map(chr, (*range(1, 0x20), *range(0xA0, 0x100)))),
    " ".join(map(chr, range(0x80, 0x800, 0x40))),
    " ".join(map(chr, (*range(0x800, 0xD800, 0x1000), *range(0xE000, 0x10000, 0x1000)))),
    " ".join(map(chr, range(0x10000, 0x110000, 0x40000 - 0x1000))),
)


def probe_texts(tokenizer: tokenizers.Tokenizer) -> tuple[str, ...]:
    """The fixed texts, and texts made of the tokenizer's added tokens and of its vocabulary.

    The same tokenizer gives the same texts. Each token that is found in text at all stands in one,
    up to 4,096 of them.
    """
    added = sorted(tokenizer.get_added_tokens_decoder().items())[:_MOST_ADDED]
    names = [token.content for _, token in added]
    inside = [f"a {name} b{name}c\n{name}" for name in names]
    return (*FIXED, *_PAIRS, *_BYTES, *inside, *_vocabulary(tokenizer))


def _vocabulary(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """Texts of many tokens, and one for each token that is another beside its neighbours."""
    pieces = _pieces(tokenizer)
    words, seen = list(pieces.values()), set[int]()
    for first in range(0, len(words), _A_TEXT):
        text = " ".join(words[first : first + _A_TEXT])
        seen |= set(tokenizer.encode(text).ids)
        yield text
    yield from (f"a {text}" for i, text in pieces.items() if i not in seen)


def _pieces(tokenizer: tokenizers.Tokenizer) -> dict[int, str]:
    """A short text for each token that was asked for, so that the token is among its ids."""
    ids = np.array(sorted(tokenizer.get_vocab(with_added_tokens=False).values()))
    if ids.size > _MOST_TOKENS:
        ids = ids[np.linspace(0, ids.size - 1, _MOST_TOKENS).astype(np.int64)]
    found: dict[int, str] = {}
    for words in _candidates(tokenizer):
        asked = [(i, words(i)) for i in ids.tolist() if i not in found]
        usable = [
            (i, text) for i, text in asked if text and "\N{REPLACEMENT CHARACTER}" not in text
        ]
        # What stands before a piece may change how it is cut, so it is tried as it will stand.
        encoded = tokenizer.encode_batch(
            [f"a {text}" for _, text in usable], add_special_tokens=False
        )
        found |= {i: t for (i, t), one in zip(usable, encoded, strict=True) if i in one.ids}
    return {i: found[i] for i in sorted(found)}


def _candidates(tokenizer: tokenizers.Tokenizer) -> Iterator[Callable[[int], str]]:
    """Ways to write a token, likeliest first."""

    def decoded(*ids: int) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    yield lambda i: decoded(i).strip()
    yield decoded
    yield lambda i: tokenizer.id_to_token(i) or ""
    # A piece from within a word needs the beginning of one, or an end; one from within a letter
    # needs the rest of its bytes.
    for letter in "axe1.":
        for before in tokenizer.encode(letter, add_special_tokens=False).ids[-1:]:
            yield partial(decoded, before)
    for letter in "a\u0100":
        for after in tokenizer.encode(letter, add_special_tokens=False).ids[-1:]:
            yield lambda i, after=after: decoded(i, after)  # type: ignore[misc]
            yield lambda i, after=after: decoded(i, after, after)  # type: ignore[misc]
