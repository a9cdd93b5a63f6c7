"""The text that new tokens add to the text before them, whole or piece by piece."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptdeploy.runtime.tokenizer import Tokenizer

# Tokens that are decoded again with the next ones: a decoder treats a text's first token
# otherwise, and a character of bytes has up to four.
_CONTEXT, _MOST = 8, 24
# A sign counts as a digit, as in Rust's from_str_radix.
_BYTE = re.compile("<0x([0-9A-Fa-f]{2}|\\+[0-9A-Fa-f])>")
_EACH_TOKEN_ALONE = {"Replace", "Strip", "Metaspace", "WordPiece", "CTC", "ByteFallback"}


@dataclass(frozen=True)
class Decoding:
    """What later tokens may still change about the text of those before them.

    The last tokens: all that spell bytes, where `byte_runs` holds, since one byte that fits no
    character makes every one of its run unreadable; or one with `suffix` inside. The last
    character, where `characters` holds and it is the mark of bytes that are none. Or all of it,
    unless `settles`.
    """

    settles: bool = True
    byte_runs: bool = False
    characters: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    suffix: str = ""

    def may_change(self, token: str) -> bool:
        """Whether the text of this token and of such ones before it waits for the next token."""
        if self.suffix:
            return self.suffix in token[:-1]
        return self.byte_runs and bool(self.byte(token))

    def byte(self, token: str) -> bytes:
        """The byte that a token spells, as `<0xAB>`; none for one that spells no byte."""
        spelt = _BYTE.fullmatch(self._shown(token))
        return bytes([int(spelt[1], 16)]) if spelt else b""

    def _shown(self, token: str) -> str:
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token


def read_decoding(decoder: dict[str, Any] | None) -> Decoding:
    """Read the decoder of a tokenizer.json. Source: tokenizers' src/decoders."""
    if decoder is None:
        return Decoding()  # tokens with blanks between
    stages = list(_stages(decoder))
    kinds = [stage["type"] for stage in stages]
    if kinds == ["BPEDecoder"]:
        return Decoding(suffix=stages[0]["suffix"], settles=bool(stages[0]["suffix"]))
    joined = next((i for i, kind in enumerate(kinds) if kind in ("Fuse", "ByteLevel")), len(kinds))
    fallback = kinds.index("ByteFallback") if "ByteFallback" in kinds else 0
    literal = [stage.get("pattern", {}).get("String") for stage in stages[:fallback]]
    settles = (
        {*kinds[:joined]} <= _EACH_TOKEN_ALONE
        and {*kinds[joined + 1 :]} <= {"Fuse", "Strip"}
        and kinds.count("ByteFallback") < 2
        and "CTC" not in kinds[1:]
    )
    return Decoding(
        settles=settles and all(literal),
        byte_runs="ByteFallback" in kinds,
        characters="ByteLevel" in kinds,
        replaced=tuple(
            (old, stage["content"])
            for old, stage in zip(literal, stages[:fallback], strict=True)
            if old
        ),
    )


def _stages(decoder: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
    for inner in decoder.get("decoders", ()):
        yield from _stages(inner)


class Continuation:
    """The text that tokens after `before` add to its text.

    It is what the decoding of both holds behind their longest common beginning, so that the text
    before and this one are the text of all tokens. `special` keeps special tokens as text.
    Decoding costs the same for each token, however long the text is.
    """

    def __init__(
        self, tokenizer: Tokenizer, before: Sequence[int] = (), special: bool = False
    ) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._decoding = tokenizer.decoding
        self._window, self._loose = self._last(before)
        self._first = list(self._window)
        self._run = _Run()
        for token in self._window[len(self._window) - self._loose :]:
            self._run.add(self._byte(token))
        self._new = 0
        settled = self._settled(self._window[: len(self._window) - self._loose])
        # How much of the window's text is given, and what of it the text before had already.
        self._given = self._begun = len(settled)
        self._owed = self._had = self._decode(self._window)[self._given :]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, given all at once; what was pushed plays no part."""
        whole = self._decode([*self._first, *filter(self._is_text, tokens)])[self._begun :]
        return whole[_common(whole, self._had) :]

    def push(self, token: int) -> str:
        """Add a token; gives the text that no later token can change, and was not given before."""
        if not self._is_text(token):
            return ""
        self._window.append(token)
        if self._may_change(token):
            self._loose, self._new = self._loose + 1, self._new + 1
            self._run.add(self._byte(token))
        else:
            self._loose = self._new = 0
            self._run = _Run()
        if self._loose or not self._decoding.settles:
            return ""
        settled = self._settled(self._window)
        piece = settled[self._given :]
        self._given = max(self._given, len(settled))
        if piece:
            piece, self._owed = piece[_common(piece, self._owed) :], ""
        self._shorten()
        return piece

    def rest(self) -> str:
        """The text after the pieces that `push` gave, if no more tokens come."""
        rest = self._decode(self._window)[self._given :]
        return rest[_common(rest, self._owed) :]

    def rest_end(self, last: int) -> tuple[str, bool]:
        """The end of `rest`, of at least `last` characters where it has them; whether it stands
        right behind the pieces.

        A long run of bytes is not decoded again with each of them.
        """
        enough = 4 * last + 4
        if not self._decoding.byte_runs or self._new <= enough:
            return self.rest(), True
        if not self._run.is_text:
            return "�" * (enough - 4), True  # its beginning is no other
        end = self._window[-enough:]
        begin = next(i for i, t in enumerate(end) if self._byte(t)[0] & 0xC0 != 0x80)
        return self._decode(end[begin:]), False

    def _last(self, before: Sequence[int]) -> tuple[list[int], int]:
        """The last tokens before, enough to decode the next ones; how many may still change."""
        window: list[int] = []
        loose, open_, size = 0, True, _CONTEXT
        for token in reversed(before):
            if not self._is_text(token):
                continue
            window.append(token)
            open_ = open_ and self._may_change(token)
            loose += open_
            if self._decoding.settles and len(window) - loose >= size:
                if self._settled(window[loose:][::-1]):
                    break
                size *= 2
        window.reverse()
        return window, loose if self._decoding.settles else len(window)

    def _shorten(self) -> None:
        if len(self._window) > _MOST:
            window = self._window[-_CONTEXT:]
            # A text that is empty so far may still be stripped at its front.
            if settled := self._settled(window):
                self._window, self._given = window, len(settled)

    def _settled(self, window: Sequence[int]) -> str:
        text = self._decode(window)
        return text.removesuffix("�") if self._decoding.characters else text

    def _decode(self, window: Sequence[int]) -> str:
        return self._tokenizer.decode(window, self._special)

    def _is_text(self, token: int) -> bool:
        name = self._tokenizer.token(token)
        return name is not None and (self._special or name not in self._tokenizer.special)

    def _byte(self, token: int) -> bytes:
        return self._decoding.byte(self._tokenizer.token(token) or "")

    def _may_change(self, token: int) -> bool:
        name = self._tokenizer.token(token)
        return name is not None and self._decoding.may_change(name)


class _Run:
    """Bytes that tokens spell one after the other: all of them are characters, or none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._spoilt = False

    @property
    def is_text(self) -> bool:
        return not (self._spoilt or self._decoder.getstate()[0])

    def add(self, byte: bytes) -> None:
        try:
            self._decoder.decode(byte)
        except UnicodeDecodeError:
            self._spoilt = True


def _common(text: str, other: str) -> int:
    """How long the common beginning of two texts is."""
    both = zip(text, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(text), len(other)))
