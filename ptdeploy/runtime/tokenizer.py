"""Text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptdeploy.bundle import Bundle
from ptdeploy.errors import BundleError


@dataclass(frozen=True)
class Encoding:
    """A text's token ids, segments, tokens, their places in the text, and which are special."""

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special: list[bool]


class Tokenizer:
    """The base model's tokenizer, as its tokenizer.json says, without its padding or truncation."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises plain Exception
            raise BundleError(f"{path}: not a tokenizer ({error}).") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return Encoding(
            encoding.ids,
            encoding.type_ids,
            encoding.tokens,
            encoding.offsets,
            [bool(flag) for flag in encoding.special_tokens_mask],
        )

    def encode_truncated(self, text: str, max_length: int) -> Encoding:
        """Like `encode`, cut to `max_length` tokens with the special tokens kept."""
        self._tokenizer.enable_truncation(max_length)
        try:
            return self.encode(text)
        finally:
            self._tokenizer.no_truncation()

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def decode_stream(self, ids: Iterator[int]) -> Iterator[str]:
        """Pieces of text as soon as whole characters are there."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        for token in ids:
            piece = stream.step(self._tokenizer, token)
            if piece:
                yield piece


def load_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The bundle's tokenizer, or None if it was compiled without one."""
    path = bundle.file("tokenizer")
    return Tokenizer(path) if path else None
