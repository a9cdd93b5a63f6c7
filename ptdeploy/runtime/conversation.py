"""Sessions: one sequence whose KV stays between turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, Protocol

import numpy as np

from ptdeploy.arguments import CANCEL, SEED, checked, flag, whole
from ptdeploy.bundle import Bundle, GenerationOptions, Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Ids, embedded
from ptdeploy.runtime.buffers import Buffers
from ptdeploy.runtime.engine import one_row
from ptdeploy.runtime.generation import Generated, GeneratingRow, decode
from ptdeploy.runtime.prompt_choice import Chosen
from ptdeploy.runtime.prompt_inputs import PromptStack, RowPrompt
from ptdeploy.runtime.row_encoder import Inputs
from ptdeploy.runtime.tokenizer import Encoding, Tokenizer


class Writer(Protocol):
    """What a conversation needs of the engine that writes in it: a CausalLM is one."""

    @property
    def bundle(self) -> Bundle: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def buffers(self) -> Buffers: ...

    def encoded(self, inputs: Inputs, chosen: Chosen) -> list[Encoding]:
        """An encoding for each row, which fits beside its prompt."""

    def options(
        self, max_new_tokens: int | None, given: Mapping[str, Any], others: Sequence[str]
    ) -> GenerationOptions:
        """The model's defaults with what a request changes."""

    def started(
        self,
        ids: Sequence[Ids],
        options: GenerationOptions,
        seed: int | None,
        stop: str | Sequence[str],
        logprobs: bool,
        budgets: Sequence[int],
    ) -> list[GeneratingRow]:
        """Rows to be continued, by at most their budgets of tokens."""


class Conversation:
    """One sequence whose KV stays: text is appended, continued, rolled back and forked.

    `token_ids` is its text so far, virtual tokens left out. It belongs to one thread at a time. It
    keeps its prompt, and goes on though that was unloaded.
    """

    def __init__(
        self, engine: Writer, prompt: RowPrompt, room: int, origin: Conversation | None = None
    ) -> None:
        self._engine, self._prompt, self._room = engine, prompt, room
        self._start: int
        self._stack: PromptStack
        rows = engine.buffers.own(prompt, room, origin._stack if origin else None)
        self._kv, self._stack = rows.kv, rows.stack
        self.token_ids: list[int] = []
        # How many of the last tokens are special ones behind the text before them.
        self._ending = 0
        if origin is not None:
            self._kv.copy_row(0, origin._kv, 0, int(origin._kv.starts[0]))
            self._start = origin._start
            self.token_ids, self._ending = list(origin.token_ids), origin._ending
            return
        if rows.before(0).size:
            self._kv.prefill(0, rows.before(0))
        self._start = int(self._kv.lengths[0])

    def __repr__(self) -> str:
        prompt = "no prompt" if self._prompt is None else f"prompt {self._prompt.name!r}"
        path = str(self._engine.bundle.path)
        return f"<Conversation of {path!r}: {prompt}, {len(self.token_ids)} of {self._room} tokens>"

    @checked()
    def append(self, inputs: str | Sequence[int]) -> None:
        """Add text, or token ids, to the sequence. Raises InputError if it does not fit.

        Special tokens stand around the session's text as around one text: those in front come
        once, and those behind stand behind the last text appended, until tokens follow them.
        """
        kept = len(self.token_ids) - (self._ending if isinstance(inputs, str) else 0)
        ids, ending = self._encoded(inputs, self.token_ids[:kept])
        if kept + len(ids) > self._room:
            raise InputError(
                f"{len(ids)} more tokens do not fit: the session has {kept} of {self._room}.",
                "Roll it back, or open one with a larger max_tokens.",
            )
        with self._whole_step(kept):
            self.token_ids[kept:] = ids
            self._ending = ending
            # All but the last are run now; that one runs when the sequence is continued.
            self._feed(self.token_ids[:-1])

    @checked(seed=SEED, logprobs=flag, cancel=CANCEL)
    def generate(
        self,
        max_new_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        cancel: Event | None = None,
        **options: Any,
    ) -> Generated:
        """Continue the sequence and keep what was generated in it. Options as for the engine's."""
        if not self.token_ids:
            raise InputError("The session is empty.", "Append some text first.")
        others = ("stop", "seed", "logprobs", "cancel")
        chosen = self._engine.options(max_new_tokens, options, others)
        room = self._room - len(self.token_ids)
        wanted = chosen.max_new_tokens
        if max_new_tokens is not None and wanted > room:
            raise InputError(f"{wanted} new tokens do not fit: the session has room for {room}.")
        ids = np.asarray(self.token_ids, np.int64)
        budget = min(wanted, room)
        (row,) = self._engine.started([ids], chosen, seed, stop, logprobs, [budget])
        # The last token runs (again, after a rollback): its logits choose the next.
        with self._whole_step(len(self.token_ids) - 1):
            logits = self._kv.prefill(0, ids[int(self._kv.lengths[0]) - self._start :])
            for _ in decode(self._kv, logits, [row], self._engine.buffers.words, cancel):
                pass
            self.token_ids += row.token_ids
            self._ending = 0 if row.token_ids else self._ending
        self._cut(len(self.token_ids))
        return row.result()

    @checked(tokens=whole())
    def rollback(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        if not 0 <= tokens <= len(self.token_ids):
            raise InputError(f"The session has {len(self.token_ids)} tokens, not {tokens}.")
        if tokens:
            del self.token_ids[-tokens:]
        self._ending = max(self._ending - tokens, 0)
        self._cut(len(self.token_ids))

    @checked()
    def fork(self) -> Conversation:
        """Another sequence that goes on from here; the text so far is not run again."""
        return Conversation(self._engine, self._prompt, self._room, self)

    def __copy__(self) -> Conversation:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        return self.fork()

    def __reduce__(self) -> tuple[Any, ...]:
        raise InputError(
            "A session cannot be handed to another process: its KV is in this one's memory.",
            "Hand over the engine and the session's token_ids, and append those to a new session.",
        )

    def _encoded(self, inputs: str | Sequence[int], before: list[int]) -> tuple[list[int], int]:
        """Token ids to append, and how many of the last are special ones behind a text.

        `before` are those that they stand behind. Where these are no more than what stands in front
        of a first text, the text is the first one.
        """
        tokenizer = self._engine.tokenizer
        if not isinstance(inputs, str) or tokenizer is None:
            (encoding,) = self._alone(one_row(inputs))
            return encoding.ids, 0
        ending = tokenizer.ending()
        front = tokenizer.front()
        if before == front[: len(before)]:
            (encoding,) = self._alone(inputs)
            if before and len(encoding.ids) == len(front) + len(ending):
                raise InputError("The text is empty.", "Give it some text.")
            return encoding.ids[len(before) :], len(ending)
        ids = embedded(tokenizer.encode_more(inputs), self._engine.manifest.limits).ids
        if not ids:
            raise InputError("The text is empty.", "Give it some text.")
        (encoding,) = self._alone([[*ids, *ending]])
        return encoding.ids, len(ending)

    def _alone(self, inputs: Inputs) -> list[Encoding]:
        return self._engine.encoded(inputs, Chosen((self._prompt,)))

    def _feed(self, ids: Sequence[int]) -> None:
        rest = ids[int(self._kv.lengths[0]) - self._start :]
        if rest:
            self._kv.prefill(0, np.asarray(rest, np.int64))

    @contextmanager
    def _whole_step(self, kept: int) -> Iterator[None]:
        """Go on behind the first `kept` tokens; an exception, Ctrl-C too, leaves the session as it
        was."""
        before, ending = list(self.token_ids), self._ending
        self._cut(kept)
        try:
            yield
        except BaseException:
            self.token_ids[:], self._ending = before, ending
            self._cut(kept)
            raise

    def _cut(self, tokens: int) -> None:
        self._kv.lengths[0] = min(int(self._kv.lengths[0]), self._start + tokens)
