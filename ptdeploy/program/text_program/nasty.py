# ruff: noqa: RUF001 - letters that look like others are meant
"""Texts that tokenizers differ on: what a program must give the same ids for, to be written."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable

_WORDS = (
    "the compiler refused Größe STRASSE straße naïve Ünï don't can't N'T I'M 'LL we've 3.14 "
    "1,000,000 2nd e\u0301 cafe\u0301 Ελλάς ΟΔΥΣΣΕΥΣ µm Ωmega ǅ ﬁne ½ № ㎏ ÅÄÖ İstanbul ıI ſoft "
    "東京 北京大学 カタカナ ひらがな 한국어 \u1112\u1161\u11ab ภาษาไทย हिन्दी العربية عِبْرִית ไม่ ﷺ "
    "🙂 👨\u200d👩\u200d👧 🇩🇪 ☃\ufe0f 𝕬𝖇 𒀀 \U00020bb7 \U0002b820 ＡＢＣ ｶﾅ \u200b \u200d \ufeff "
    "\u00ad \u202e \u2028 \u00a0 \u3000 \t \n \r\n \x0b \x1b[31m \x7f \ufffd ... -- — “quoted” "
    "C++ a_b x=y; {}[]<> ~!@#$%^&*() /usr/bin http://x.y/z?q=1 me@x.org \\n ''' `` ¿qué? «non»"
)
_CHARACTERS = ((0x20, 0x7E), (0xA1, 0x2FF), (0x300, 0x58F), (0x900, 0x1FFF), (0x2000, 0x2BFF))
_MORE = ((0x3000, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x1F9FF), (0x20000, 0x2FA1F))
_EACH = 150


def _is_mark(character: str) -> bool:
    return character != "" and unicodedata.combining(character) != 0


def nasty_texts(special: Iterable[str]) -> list[str]:
    """Some hundreds of them, the same each time; `special` are the tokenizer's special tokens."""
    chosen = random.Random(0)
    words = [*_WORDS.split(" "), *special]

    def joined(between: str) -> str:
        return between.join(chosen.choices(words, k=chosen.randint(1, 12)))

    def any_characters(ranges: tuple[tuple[int, int], ...]) -> str:
        """No two marks on one letter: OpenVINO leaves them in their order, NFC does not."""
        found = [chr(chosen.randint(*chosen.choice(ranges))) for _ in range(20)]
        pairs = zip(found, ["", *found], strict=False)
        return "".join(one for one, before in pairs if not (_is_mark(one) and _is_mark(before)))

    texts = ["", " ", "  ", "\n", "a", " a ", "a" * 300, "word " * 60, "Ab" * 60, *words]
    texts += [joined(between) for between in (" ", "", "  ") for _ in range(_EACH)]
    texts += [any_characters(_CHARACTERS) for _ in range(_EACH)]
    return texts + [any_characters(_CHARACTERS + _MORE) for _ in range(_EACH)]
