"""KV buffers of one engine: made, kept for the next request, and fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import Session
from ptdeploy.bundle import Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Ids
from ptdeploy.runtime.dense_kv import DenseKV
from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.paged_kv import PagedKV
from ptdeploy.runtime.prompt_inputs import PromptInputs, PromptStack, RowPrompt
from ptdeploy.runtime.prompts import Prompt

# Buffers of nearly the same size are kept for one another.
_SLOTS = 64
# A buffer of more than so many times the slots that a request needs is not kept for it.
_MOST_SPARE = 2


@dataclass(frozen=True)
class StartedRows:
    """A KV buffer in which each row begins with its own prompt, and nothing else.

    A prompt without a prefix KV is not in it: it is fed before the row's text.
    """

    kv: KVBuffer
    prompts: Sequence[RowPrompt]
    stack: PromptStack

    def before(self, row: int) -> Ids:
        """What is fed before a row's text: ids behind the vocabulary, or none."""
        return self.stack.before(self.prompts[row])

    def fed(self, row: int, ids: Ids) -> Ids:
        """What is prefilled for a row of these ids."""
        before = self.before(row)
        return np.concatenate([before, ids]) if before.size else ids

    def prefill_all(self, rows: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """Append to every row its text; gives the logits (vocabulary,) of each row's last token."""
        logits = self.kv.prefill_all([self.fed(row, ids) for row, ids in enumerate(rows)])
        return [one[-1] for one in logits]


class Buffers:
    """Where an engine's KV buffers come from: all of one layout.

    `words` counts the tokens that there are to choose from.
    """

    def __init__(self, session: Session, manifest: Manifest, inputs: PromptInputs) -> None:
        self.layout = KVLayout.of(manifest)
        self._session, self._inputs = session, inputs
        self._limits = manifest.limits
        self.words = self._limits.vocab_size
        self._spare: list[StartedRows] = []

    def take(self, prompts: Sequence[RowPrompt], tokens: Sequence[int]) -> StartedRows:
        """Rows of these prompts and at most so many tokens of text, in the last request's buffer
        if they fit.

        Raises InputError if there are more rows than the bundle was compiled for.
        """
        most, rows = self._limits.max_batch, len(prompts)
        if most is not None and rows > most:
            raise InputError(
                f"{rows} rows at once, but the bundle was compiled for {most}.",
                "Send them in several requests, or compile with a larger --max-batch.",
            )
        stack = self._inputs.stack(prompts)
        needed = _slots(prompts, tokens)
        slots = min(-(-needed // _SLOTS) * _SLOTS, self._limits.max_context)
        try:
            # Taken out while it is used: two threads never share a buffer.
            spare = self._spare.pop().kv
        except IndexError:
            spare = None
        prefixes = _prefixes(prompts)
        if spare is not None and spare.rows == rows:
            # A much larger one would hold its memory, and where slots are read under a mask cost
            # time.
            fits = needed <= spare.slots <= _MOST_SPARE * slots
            if fits and spare.begin(prefixes, stack.placed):
                return StartedRows(spare, prompts, stack)
        spare = None  # before the new one: they need not fit in memory together
        return StartedRows(self._new(prefixes, slots, stack), prompts, stack)

    def keep(self, rows: StartedRows) -> None:
        """Leave a buffer to the next request."""
        self._spare = [rows] if rows.kv.is_sound else []

    def forget(self, prompt: Prompt) -> None:
        """Let go of all that holds a prompt."""
        if any(prompt in rows.prompts for rows in list(self._spare)):
            self._spare = []

    def own(self, prompt: RowPrompt, tokens: int, stack: PromptStack | None = None) -> StartedRows:
        """One row of at most `tokens` tokens of text, in a new buffer which nobody else gets.

        A `stack` of a prompt that may have been unloaded is taken as it is: no other run gets it.
        """
        prompts, stack = [prompt], stack or self._inputs.stack([prompt])
        kv = self._new(_prefixes(prompts), _slots(prompts, [tokens]), stack)
        return StartedRows(kv, prompts, stack)

    def _new(
        self, prefixes: Sequence[NDArray[np.float32] | None], slots: int, stack: PromptStack
    ) -> KVBuffer:
        session = self._session
        if cache := session.cache:
            return PagedKV(session, self.layout, prefixes, slots, stack.placed, cache)
        return DenseKV(session, self.layout, prefixes, slots, stack.placed)


def _prefixes(prompts: Sequence[RowPrompt]) -> list[NDArray[np.float32] | None]:
    return [None if one is None else one.prefix_kv for one in prompts]


def _slots(prompts: Sequence[RowPrompt], tokens: Sequence[int]) -> int:
    """How many slots the longest row fills, with its own prompt."""
    lengths = (0 if one is None else one.length for one in prompts)
    return max(length + int(text) for length, text in zip(lengths, tokens, strict=True))
