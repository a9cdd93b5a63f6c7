"""Generation over a KV buffer whose first slots are the prompt's frozen prefix KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import CANCEL, SEED, Check, checked, flag, listed, maybe, number, whole
from ptdeploy.bundle import Bundle
from ptdeploy.bundle.task import GenerationOptions
from ptdeploy.errors import InputError
from ptdeploy.runtime import chat, sampling
from ptdeploy.runtime.answer import stop_strings
from ptdeploy.runtime.batching import Row as Ids
from ptdeploy.runtime.batching import embedded
from ptdeploy.runtime.conversation import Conversation
from ptdeploy.runtime.engine import Engine, Inputs, one_row
from ptdeploy.runtime.generation import Generated, Row, decode
from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.layout import KVLayout
from ptdeploy.runtime.memory import require_memory
from ptdeploy.runtime.tokenizer import Tokenizer
from ptdeploy.targets import Session

# What a request may change, and what kind of value each is.
_OPTIONS: dict[str, Check] = {
    "max_new_tokens": whole(),
    "min_new_tokens": whole(),
    "do_sample": flag,
    "temperature": number,
    "top_k": whole(),
    "top_p": number,
    "min_p": number,
    "repetition_penalty": number,
    "eos_token_ids": lambda name, value: tuple(whole()(name, one) for one in listed(name, value)),
}
_SAMPLES = ("temperature", "top_k", "top_p", "min_p")
# Buffers of nearly the same size are kept for one another.
_SLOTS = 64


class CausalLM(Engine):
    """An engine for CAUSAL_LM. Every request starts from the same prefix KV: it is never run."""

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        super().__init__(bundle, session, tokenizer)
        self.layout = KVLayout.of(self.manifest)
        prompt, vocabulary = self.manifest.prompt, self.manifest.limits.vocab_size
        # A prompt that is not frozen is fed like text, under ids behind the vocabulary.
        count = prompt.num_virtual_tokens if self._prefix_kv is None else 0
        self._virtual = np.arange(vocabulary, vocabulary + count)
        self._spare: list[KVBuffer] = []

    @checked(seed=SEED, logprobs=flag, cancel=CANCEL)
    def generate(
        self,
        inputs: Inputs,
        max_new_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        cancel: Event | None = None,
        **options: Any,
    ) -> list[Generated]:
        """Continue each text or row of token ids, all together, each row as if it were alone.

        `options` are the fields of GenerationOptions: `do_sample`, `temperature`, `top_k`, `top_p`,
        `min_p`, `repetition_penalty`, `min_new_tokens`, `eos_token_ids` (an empty sequence means
        never). What is not given is the model's own default; giving temperature, top_k, top_p or
        min_p asks for sampling, temperature 0 for none. A row ends at an EOS token, at a `stop`
        string, after `max_new_tokens`, or for all rows when `cancel` is set. Row i is sampled with
        `seed` + i, so that seed + i gives it alone too.
        Raises InputError if an option is out of range or a row would leave the model's context.
        """
        ids = [np.asarray(encoding.ids, np.int64) for encoding in self.encode(inputs)]
        chosen = self.options(max_new_tokens, options)
        budget = self._budget(max(row.size for row in ids), max_new_tokens, chosen)
        rows = self._rows(ids, chosen, seed, stop, logprobs)
        if budget:
            with_kv = self.buffer(len(ids), max(row.size for row in ids) + budget)
            logits = [with_kv.prefill(i, self.fed(row))[0] for i, row in enumerate(ids)]
            for _ in decode(with_kv, logits, rows, budget, cancel):
                pass
            self._keep(with_kv)
        return [row.result() for row in rows]

    @checked(seed=SEED, cancel=CANCEL)
    def stream(
        self,
        inputs: str | Sequence[int],
        max_new_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue one text in pieces, each as soon as no later token can change it.

        Together they are the `text` of `generate`, whose options it takes. Closing the iterator
        ends the request.
        """
        (encoding,) = self.encode(one_row(inputs))
        ids = np.asarray(encoding.ids, np.int64)
        chosen = self.options(max_new_tokens, options)
        budget = self._budget(ids.size, max_new_tokens, chosen)
        self._text_tokenizer()
        (row,) = self._rows([ids], chosen, seed, stop, False, streamed=True)
        kv = self.buffer(1, ids.size + budget)
        for _ in decode(kv, [kv.prefill(0, self.fed(ids))[0]], [row], budget, cancel):
            if piece := row.piece():
                yield piece
        self._keep(kv)
        if rest := row.rest():
            yield rest

    @checked(max_tokens=maybe(whole()))
    def session(self, max_tokens: int | None = None) -> Conversation:
        """A sequence that keeps its KV between turns, of at most `max_tokens` tokens of text."""
        return Conversation(self, self._session_room(max_tokens))

    @checked(add_generation_prompt=flag)
    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation by the model's own chat template.

        `variables` are the template's: `tools`, `documents`, `enable_thinking`, and whatever else
        it reads; `continue_final_message` and `chat_template` as for transformers'
        `apply_chat_template`. Raises InputError if the model has no template, or it refuses.
        """
        with self.bundle.reading("chat_template") as path:
            if path is None:
                raise InputError(f"{self.bundle.path}: its model has no chat template.")
            template = chat.load(path)
        return chat.render(template, messages, add_generation_prompt, **variables)

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation and the start of its answer, to give to `generate`.

        Arguments as for `chat_text`. The template writes all special tokens itself, so the
        tokenizer adds none.
        """
        text = self.chat_text(messages, add_generation_prompt, **variables)
        encoding = self._text_tokenizer().encode(text, add_special_tokens=False)
        return embedded(encoding, self.manifest.limits).ids

    def options(self, max_new_tokens: int | None, given: Mapping[str, Any]) -> GenerationOptions:
        """The model's defaults with what a request changes. Raises InputError on a bad value."""
        generation = self.manifest.generation
        assert generation is not None, "check_manifest says so"
        changes = {}
        for name, value in {**given, "max_new_tokens": max_new_tokens}.items():
            if name not in _OPTIONS:
                raise InputError(f"No option {name!r}; there is {', '.join(_OPTIONS)}.")
            if value is not None:
                changes[name] = _OPTIONS[name](name, value)
        if changes.get("temperature") == 0:
            changes = {**changes, "temperature": 1.0, "do_sample": False}
        elif any(name in changes for name in _SAMPLES):
            changes.setdefault("do_sample", True)
        options = msgspec.structs.replace(generation, **changes)
        sampling.check(options, self.manifest.limits.vocab_size)
        return options

    def buffer(self, rows: int, tokens: int) -> KVBuffer:
        """A KV buffer for rows of at most `tokens` tokens of text, the last request's if it fits.

        Raises InputError if there are more rows than the bundle was compiled for.
        """
        limits = self.manifest.limits
        if limits.max_batch is not None and rows > limits.max_batch:
            raise InputError(
                f"{rows} rows at once, but the bundle was compiled for {limits.max_batch}.",
                "Send them in several requests, or compile with a larger --max-batch.",
            )
        needed = tokens + self.manifest.prompt.num_virtual_tokens
        try:
            # Taken out while it is used: two threads never share a buffer.
            spare = self._spare.pop()
        except IndexError:
            spare = None
        if spare is not None and spare.rows == rows and needed <= spare.slots:
            spare.reset()
            return spare
        slots = min(-(-needed // _SLOTS) * _SLOTS, limits.max_context)
        return KVBuffer(self._session, self.layout, self._prefix_kv, rows, slots)

    def _keep(self, kv: KVBuffer) -> None:
        """Leave a buffer to the next request."""
        self._spare = [kv] if kv.is_sound else []

    def fed(self, ids: Ids) -> Ids:
        """What is prefilled for a row: its ids, after virtual tokens that are not frozen."""
        return np.concatenate([self._virtual, ids]) if self._virtual.size else ids

    def _row_logits(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None = None
    ) -> list[NDArray[np.float32]]:
        """Each row's last token runs as a step of the whole batch, those before it row by row."""
        tokens = sum(row.size for row in rows) + len(rows) * self._virtual.size
        require_memory(tokens * self.layout.vocabulary * 4, f"Logits of {tokens} tokens")
        kv = self.buffer(len(rows), max(row.size for row in rows))
        first = [
            kv.prefill(i, self.fed(row)[:-1], every_position=True) for i, row in enumerate(rows)
        ]
        last = kv.decode([int(row[-1]) for row in rows])
        skip = self._virtual.size
        return [
            np.concatenate([before[skip:], after[None]])
            for before, after in zip(first, last, strict=True)
        ]

    def _rows(
        self,
        ids: Sequence[Ids],
        options: GenerationOptions,
        seed: int | None,
        stop: str | Sequence[str],
        logprobs: bool,
        streamed: bool = False,
    ) -> list[Row]:
        strings = stop_strings(stop)
        if strings:
            self._text_tokenizer()
        return [
            Row(
                row.tolist(),
                options,
                None if seed is None else (seed + index) % sampling.SEEDS,
                strings,
                logprobs,
                self.tokenizer,
                streamed,
            )
            for index, row in enumerate(ids)
        ]

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.bundle.path}: has no tokenizer, so it gives token ids only.",
                "Use generate() without stop strings.",
            )
        return self.tokenizer

    def _budget(self, longest: int, asked: int | None, options: GenerationOptions) -> int:
        room = self.manifest.limits.max_sequence - longest
        if asked is None:
            return min(options.max_new_tokens, room)
        if asked > room:
            raise InputError(
                f"{asked} new tokens do not fit: the longest text leaves {room} of the "
                f"model's {self.manifest.limits.max_context} positions.",
                f"Ask for at most {room}, or shorten the text.",
            )
        return asked

    def _session_room(self, max_tokens: int | None) -> int:
        limit = self.manifest.limits.max_sequence
        if max_tokens is not None and not 1 <= max_tokens <= limit:
            raise InputError(f"max_tokens is {max_tokens}; it must be from 1 to {limit}.")
        return max_tokens or limit
