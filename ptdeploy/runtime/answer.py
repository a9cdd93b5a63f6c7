"""The text of one row while it is written: where it ends, and what of it can be shown already."""

from __future__ import annotations

from collections.abc import Sequence

from ptdeploy.arguments import listed
from ptdeploy.errors import InputError
from ptdeploy.runtime.text import Continuation
from ptdeploy.runtime.tokenizer import Tokenizer, unicode_text

# Each token of an answer is held against each of them.
_STOPS, _LENGTH = 64, 1024


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple. Raises InputError on an empty one, which every text holds."""
    strings = (stop,) if isinstance(stop, str) else tuple(listed("stop", stop))
    if any(not isinstance(one, str) or not one for one in strings):
        raise InputError("A stop string is empty or not text.")
    longest = max(map(len, strings), default=0)
    if len(strings) > _STOPS or longest > _LENGTH:
        raise InputError(
            f"stop has {len(strings)} strings of up to {longest} characters; it may have {_STOPS} "
            f"of up to {_LENGTH}."
        )
    return tuple(unicode_text(one, "A stop string") for one in strings)


class Answer:
    """What one row is continued with, up to the first of some stop strings.

    A stop string may hold special tokens, which have no text: it is looked for in the text with
    them, and the answer ends where it begins.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], stop: Sequence[str]) -> None:
        self._stop = stop
        # What is seen of a stop string that holds special tokens.
        self._seen = {
            one: _without(one, tokenizer.special)
            for one in stop
            if any(name in one for name in tokenizer.special)
        }
        self._visible = _Watch(Continuation(tokenizer, before), stop)
        self._special: _Watch | None = None
        if self._seen:
            self._special = _Watch(Continuation(tokenizer, before, special=True), [*self._seen])
        self._found: str | None = None
        self._held, self._shown = "", 0

    def push(self, token: int) -> bool:
        """Add a token; says whether the answer ends with it."""
        piece, found = self._visible.push(token)
        self._held += piece
        if self._special is not None:
            found = found or self._special.push(token)[1]
        self._found = found
        return found is not None

    def piece(self) -> str:
        """What was not shown yet and cannot be the beginning of a stop string."""
        held = self._held
        keep = max(
            (
                _overlap(held, self._seen[one] if one in self._seen else one[:-1])
                for one in self._stop
            ),
            default=0,
        )
        piece, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self._shown += len(piece)
        return piece

    def rest(self, tokens: Sequence[int]) -> str:
        """What `piece` has not given of the whole answer."""
        return self.text(tokens)[self._shown :]

    def text(self, tokens: Sequence[int]) -> str:
        """The whole answer, of all its tokens."""
        text = self._visible.continuation.text(tokens)
        if self._found is None:
            return text
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            return text[: min(places)]
        seen = self._seen.get(self._found)
        if seen is None:
            return text  # what stood there is another text with the tokens after it
        for end in (seen, seen.rstrip()):
            if text.endswith(end):
                return text.removesuffix(end)
        return text


class _Watch:
    """Looks for strings in a text that is still being written."""

    def __init__(self, continuation: Continuation, strings: Sequence[str]) -> None:
        self.continuation, self._strings = continuation, strings
        self._overlap = max(map(len, strings), default=1) - 1
        self._last = ""

    def push(self, token: int) -> tuple[str, str | None]:
        """The text that is settled now, and which string stands in what is written so far."""
        piece = self.continuation.push(token)
        if not self._strings:
            return piece, None
        text = self._last + piece
        self._last = text[len(text) - self._overlap :] if self._overlap < len(text) else text
        end, joined = self.continuation.rest_end(self._overlap + 1)
        # What stands before the end was looked at as it came.
        text = text + end if joined else end
        return piece, next((one for one in self._strings if one in text), None)


def _without(text: str, names: frozenset[str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "")
    return text


def _overlap(text: str, string: str) -> int:
    """How much of the text's end is the string's beginning."""
    longest = min(len(text), len(string))
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
