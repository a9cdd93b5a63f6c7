"""KV buffers of one engine: made, kept for the next request, and fed."""

from __future__ import annotations

import numpy as np

from ptdeploy.backends.session import Session
from ptdeploy.bundle import Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime.batching import Ids
from ptdeploy.runtime.dense_kv import DenseKV
from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.kv_layout import KVLayout
from ptdeploy.runtime.paged_kv import PagedKV
from ptdeploy.runtime.prompts import Prompt, PromptInputs

# Buffers of nearly the same size are kept for one another.
_SLOTS = 64


class Buffers:
    """Where an engine's KV buffers come from: all of one layout, with one prompt in front.

    A prompt without a prefix KV is fed like text, as `virtual_ids`: ids behind the vocabulary,
    int64 (virtual tokens,); else empty. `words` counts the tokens that there are to choose from.
    """

    def __init__(self, session: Session, manifest: Manifest, prompt: Prompt) -> None:
        self.layout = KVLayout.of(manifest)
        self._session, self._prompt = session, prompt
        self._beside = PromptInputs(session, manifest, prompt).placed
        self._limits = manifest.limits
        self.words = self._limits.vocab_size
        self.virtual_ids = prompt.virtual_ids(self.words)
        self._spare: list[KVBuffer] = []

    def take(self, rows: int, tokens: int) -> KVBuffer:
        """A KV buffer for rows of at most `tokens` tokens of text, the last request's if it fits.

        Raises InputError if there are more rows than the bundle was compiled for.
        """
        most = self._limits.max_batch
        if most is not None and rows > most:
            raise InputError(
                f"{rows} rows at once, but the bundle was compiled for {most}.",
                "Send them in several requests, or compile with a larger --max-batch.",
            )
        needed = tokens + self._prompt.info.num_virtual_tokens
        try:
            # Taken out while it is used: two threads never share a buffer.
            spare = self._spare.pop()
        except IndexError:
            spare = None
        if spare is not None and spare.rows == rows and needed <= spare.slots:
            spare.reset()
            return spare
        slots = min(-(-needed // _SLOTS) * _SLOTS, self._limits.max_context)
        return self._new(rows, slots)

    def keep(self, kv: KVBuffer) -> None:
        """Leave a buffer to the next request."""
        self._spare = [kv] if kv.is_sound else []

    def own(self, tokens: int) -> KVBuffer:
        """A new buffer for one row of at most `tokens` tokens of text, which nobody else gets."""
        slots = tokens + self._prompt.info.num_virtual_tokens
        return self._new(1, slots)

    def fed(self, ids: Ids) -> Ids:
        """What is prefilled for a row: its ids, after virtual tokens that are not frozen."""
        return np.concatenate([self.virtual_ids, ids]) if self.virtual_ids.size else ids

    def _new(self, rows: int, slots: int) -> KVBuffer:
        prefix_kv = self._prompt.prefix_kv
        session = self._session
        if block := session.block_size:
            return PagedKV(session, self.layout, prefix_kv, rows, slots, self._beside, block)
        return DenseKV(session, self.layout, prefix_kv, rows, slots, self._beside)
