"""Text to token ids and back, with the `tokenizers` library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ptdeploy.bundle import Bundle, TokenizerInfo
from ptdeploy.errors import BundleError, InputError, PtdeployError
from ptdeploy.runtime.text import read_decoding
from ptdeploy.text_files import library_path

# What the library takes for a token id.
_IDS = range(2**32)


# More characters than this for each token that fits, and than this in all, no text has that fits
# but one that the tokenizer's normalizer all but empties.
_CHARACTERS, _LEAST = 64, 1 << 20


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

    No call changes it, so that any number of threads may use it at once. `info` has the settings
    that no tokenizer.json has.
    """

    def __init__(
        self, path: Path, info: TokenizerInfo | None = None, max_tokens: int | None = None
    ) -> None:
        import tokenizers

        # Text of more characters is refused before it is tokenized.
        self._most = None if max_tokens is None else max(_LEAST, max_tokens * _CHARACTERS)

        name = library_path(path)
        with library(BundleError, f"{path}: not a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_file(name)
        cut = self._tokenizer.truncation or {}
        self._cuts_left = cut.get("direction", "right").lower() == "left"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = info is not None and info.split_special_tokens
        self._cleans_up = info is not None and info.clean_up_tokenization_spaces
        self._gives_segments = info is None or info.gives_token_type_ids
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special = frozenset(token.content for token in added if token.special)
        decoder = self._tokenizer.decoder
        self.decoding = read_decoding(None if decoder is None else _state(decoder))
        if self._cleans_up:
            # A blank may go with what comes after it.
            self.decoding = replace(self.decoding, settles=False)

    def encode(
        self, text: str, add_special_tokens: bool = True, pair: str | None = None
    ) -> Encoding:
        """Token ids of a text, or of two. Raises InputError if one is no Unicode or has no ids."""
        self._check_length(text)
        self._check_length(pair)
        return self._encoded(self._tokenizer, text, pair, add_special_tokens)

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

    def encode_more(self, text: str) -> Encoding:
        """Like `encode` for text that goes on from other text: nothing is put around it.

        Neither special tokens nor the blank that some tokenizers put in front of a text.
        """
        self._check_length(text)
        return self._encoded(self._going_on, text, None, False)

    def _encoded(
        self, tokenizer: Any, text: str, pair: str | None, add_special_tokens: bool
    ) -> Encoding:
        texts = unicode_text(text), None if pair is None else unicode_text(pair, "The second text")
        # As of an unknown word where no token stands for those.
        with library(InputError, f"The tokenizer has no ids for {text[:40]!r}"):
            encoding = tokenizer.encode(*texts, add_special_tokens=add_special_tokens)
        return Encoding(
            encoding.ids,
            encoding.type_ids if self._gives_segments else [0] * len(encoding.ids),
            encoding.tokens,
            encoding.offsets,
            [bool(flag) for flag in encoding.special_tokens_mask],
            encoding.sequence_ids,
        )

    def _check_length(self, text: Any) -> None:
        if self._most is not None and isinstance(text, str) and len(text) > self._most:
            raise InputError(
                f"The text has {len(text)} characters, but at most {self._most} are read: far more "
                "than the tokens that fit.",
                "Cut it before you send it.",
            )

    def front(self) -> list[int]:
        """The special tokens that `encode` puts in front of a text."""
        return self._around[0]

    def ending(self) -> list[int]:
        """The special tokens that `encode` puts behind a text."""
        return self._around[1]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        try:
            encoding = self.encode("a")
        except InputError:
            return [], []
        places = [i for i, flag in enumerate(encoding.special) if not flag]
        if not places:
            return [], []
        return encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :]

    @cached_property
    def _going_on(self) -> Any:
        """The tokenizer without what it puts in front of a text."""
        parts = {
            name: _state(part)
            for name in ("normalizer", "pre_tokenizer")
            if (part := getattr(self._tokenizer, name)) is not None
        }
        changed = {name: _without_prefix(part) for name, part in parts.items()}
        if changed == parts:
            return self._tokenizer
        inner = type(self._tokenizer).from_str(
            json.dumps({**json.loads(self._tokenizer.to_str()), **changed})
        )
        inner.encode_special_tokens = self._tokenizer.encode_special_tokens
        return inner

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of token ids, with or without special tokens. What names no token has no text.

        The text of a part is not always a part of the text: see `ptdeploy.runtime.text`.
        """
        known = [token for token in ids if token in _IDS]
        with library(BundleError, "tokenizer.json: its decoder fails on token ids"):
            text = str(self._tokenizer.decode(known, skip_special_tokens=not special))
        return clean_up(text) if self._cleans_up else text

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, or None where the id names none."""
        if token_id not in _IDS:
            return None
        name: str | None = self._tokenizer.id_to_token(token_id)
        return name


@contextmanager
def library(kind: type[PtdeployError], problem: str) -> Iterator[None]:
    """What the tokenizers library raises, as ours: its Rust side panics past Exception."""
    try:
        yield
    except PtdeployError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{problem} ({error}).") from error


def load_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The bundle's tokenizer, or None if it was compiled without one."""
    with bundle.reading("tokenizer") as path:
        if path is None:
            return None
        return Tokenizer(path, bundle.manifest.tokenizer, bundle.manifest.limits.max_context)


def clean_up(text: str) -> str:
    """Decoded text without the blanks before punctuation.

    Source: transformers' `clean_up_tokenization`.
    """
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as its tokenizer.json has it."""
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


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
        ) from error
    return text


def _without_prefix(part: dict[str, Any]) -> dict[str, Any]:
    """A normalizer or pre-tokenizer that neither puts anything in front of a text nor strips it."""
    changes: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
        "Strip": {"strip_left": False},
        "Prepend": {"prepend": ""},
    }
    part = {**part, **changes.get(part["type"], {})}
    for inner in ("normalizers", "pretokenizers"):
        if inner in part:
            part[inner] = [_without_prefix(one) for one in part[inner]]
    return part


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
