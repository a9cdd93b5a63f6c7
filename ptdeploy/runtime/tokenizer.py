"""Text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptdeploy.bundle import Bundle
from ptdeploy.errors import BundleError, InputError
from ptdeploy.text_files import library_path

# What the library takes for a token id.
_IDS = range(2**32)


@dataclass(frozen=True)
class Encoding:
    """A text's token ids, segments, tokens, their places in the text, and which are special.

    `sequences` says which of two texts a token is of, 0 or 1; None for the special tokens that
    the tokenizer put around them.
    """

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special: list[bool]
    sequences: list[int | None] = field(default_factory=list)


class Tokenizer:
    """The base model's tokenizer, as its tokenizer.json says, without its padding or truncation.

    No call changes it, so that any number of threads may use it at once. `split_special_tokens` is
    transformers': a special token's name in a text is text.
    """

    def __init__(self, path: Path, split_special_tokens: bool = False) -> None:
        import tokenizers

        name = library_path(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(name)
        except Exception as error:  # the Rust side raises plain Exception
            raise BundleError(f"{path}: not a tokenizer ({error}).") from None
        cut = self._tokenizer.truncation or {}
        self._cuts_left = cut.get("direction", "right").lower() == "left"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = split_special_tokens

    def encode(
        self, text: str, add_special_tokens: bool = True, pair: str | None = None
    ) -> Encoding:
        """Token ids of a text, or of two. Raises InputError if one is no Unicode or has no ids."""
        texts = unicode_text(text), None if pair is None else unicode_text(pair, "The second text")
        try:
            encoding = self._tokenizer.encode(*texts, add_special_tokens=add_special_tokens)
        except Exception as error:  # plain, as of an unknown word where no token stands for those
            raise InputError(f"The tokenizer has no ids for {text[:40]!r} ({error}).") from None
        return Encoding(
            encoding.ids,
            encoding.type_ids,
            encoding.tokens,
            encoding.offsets,
            [bool(flag) for flag in encoding.special_tokens_mask],
            encoding.sequence_ids,
        )

    def encode_truncated(self, text: str, max_length: int, pair: str | None = None) -> Encoding:
        """Like `encode`, cut to `max_length` tokens with the special tokens kept.

        Of two texts the longer one is cut first. Raises InputError if the special tokens alone are
        longer. Source: `truncate_encodings` of the tokenizers library, "longest_first"; its own
        switch is a state of the tokenizer, and so of every request that runs meanwhile.
        """
        encoding = self.encode(text, pair=pair)
        if len(encoding.ids) <= max_length:
            return encoding
        room = max_length - encoding.special.count(True)
        if room < 0:
            raise InputError(f"{max_length} tokens are too few for the special tokens around text.")
        first, second = (
            [i for i, of in enumerate(encoding.sequences) if of == n and not encoding.special[i]]
            for n in (0, 1)
        )
        keep = {i for i, flag in enumerate(encoding.special) if flag}
        sizes = _sizes(len(first), len(second), room)
        for places, size in zip((first, second), sizes, strict=True):
            keep.update(places[len(places) - size :] if self._cuts_left else places[:size])
        kept = sorted(keep)
        return Encoding(*(_taken(values, kept) for values in vars(encoding).values()))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens. Ids that name no token have no text."""
        known = [token for token in ids if token in _IDS]
        return str(self._tokenizer.decode(known, skip_special_tokens=True))

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
    info = bundle.manifest.tokenizer
    if path is None:
        return None
    return Tokenizer(path, split_special_tokens=info is not None and info.split_special_tokens)


def unicode_text(text: str, what: str = "The text") -> str:
    """The text itself. Raises InputError, naming `what`, if it is no string or no Unicode."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}, not a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is no Unicode: it holds half of a surrogate pair, {text[error.start]!r}, "
            f"as character {error.start}.",
            "It was read as something other than the UTF-8 that it is; read it again, or replace "
            "what is broken: text.encode('utf-8', 'replace').decode().",
        ) from None
    return text


def _sizes(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts is kept where only `room` tokens are."""
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = room - short
    return (short, long) if first <= second else (long, short)


def _taken(values: list[Any], places: list[int]) -> list[Any]:
    return [values[i] for i in places]
