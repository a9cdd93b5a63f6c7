"""Generation over a KV buffer whose first slots are the prompt's frozen prefix KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import CANCEL, SEED, Check, checked, flag, listed, maybe, number, whole
from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, GenerationOptions, Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime import chat, sampling
from ptdeploy.runtime.answer import stop_strings
from ptdeploy.runtime.batching import Ids, embedded
from ptdeploy.runtime.buffers import Buffers
from ptdeploy.runtime.conversation import Conversation
from ptdeploy.runtime.engine import Engine, Inputs, Metric, one_row
from ptdeploy.runtime.generation import Generated, GeneratingRow, decode
from ptdeploy.runtime.kv import KVBuffer
from ptdeploy.runtime.kv_layout import KVLayout, decoder_problems
from ptdeploy.runtime.memory import require_memory
from ptdeploy.runtime.probes import Fed, ProbeRequest, probe_rows, rows_in_words
from ptdeploy.runtime.tokenizer import Tokenizer

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


class CausalLM(Engine):
    """An engine for CAUSAL_LM. Every request starts from the same prefix KV: it is never run."""

    writes = True
    takes_pairs = False

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        super().__init__(bundle, session, tokenizer)
        self.buffers = Buffers(session, self.manifest, self.prompt)

    @classmethod
    def _own_problems(cls, manifest: Manifest) -> Iterator[str]:
        return decoder_problems(manifest)

    @property
    def layout(self) -> KVLayout:
        return self.buffers.layout

    @property
    def metric(self) -> Metric:
        return "perplexity"

    def label_problem(self, given: Any, tokens: int) -> str:
        return "has a label, but a causal model has no classes."

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
        rows = self.started(ids, chosen, seed, stop, logprobs)
        if budget:
            with_kv = self.buffer(len(ids), max(row.size for row in ids) + budget)
            logits = with_kv.prefill_all([self.fed(row) for row in ids])
            for _ in decode(with_kv, logits, rows, budget, self.buffers.words, cancel):
                pass
            self.buffers.keep(with_kv)
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
        (row,) = self.started([ids], chosen, seed, stop, False, streamed=True)
        kv = self.buffer(1, ids.size + budget)
        first = [kv.prefill(0, self.fed(ids))[0]]
        for _ in decode(kv, first, [row], budget, self.buffers.words, cancel):
            if piece := row.piece():
                yield piece
        self.buffers.keep(kv)
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
        return embedded(encoding, self.limits).ids

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
        sampling.check(options, self.limits.vocab_size)
        return options

    def buffer(self, rows: int, tokens: int) -> KVBuffer:
        """See Buffers.take."""
        return self.buffers.take(rows, tokens)

    def fed(self, ids: Ids) -> Ids:
        """See Buffers.fed."""
        return self.buffers.fed(ids)

    def greedy(self, rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        generated = self.generate(
            rows,
            tokens,
            do_sample=False,
            min_new_tokens=0,
            repetition_penalty=1.0,
            eos_token_ids=(),
        )
        return [row.token_ids for row in generated]

    def step_requests(self, batch: int, tokens: int | None) -> Iterator[ProbeRequest]:
        limits = self.limits
        # A decode step needs a slot behind the tokens.
        beside = " and the token of a decode step."
        rows = probe_rows(limits, batch, tokens, limits.max_sequence - 1, beside)
        tokens = rows.shape[1]
        one, ids = self.buffer(1, tokens), self.fed(rows[0])
        name = f"prefill of 1 row of {tokens} tokens"
        yield ProbeRequest(name, 1, tokens, lambda: one.prefill(0, ids), one.reset)
        many = self.buffer(batch, tokens + 1)
        for index, row in enumerate(rows):
            many.prefill(index, self.fed(row))
        before = many.lengths.copy()

        def back() -> None:
            # The engine is bound to this very array.
            many.lengths[:] = before

        name = f"decode step of {rows_in_words(batch)} behind {tokens} tokens"
        yield ProbeRequest(name, batch, tokens, lambda: many.decode([0] * batch), back)

    def whole_requests(self, rows: list[list[int]], new_tokens: int) -> Iterator[ProbeRequest]:
        tokens, one = len(rows[0]), rows[:1]
        name = f"first token after {tokens}"
        yield ProbeRequest(name, 1, tokens, lambda: self.generate(one, 1, do_sample=False))

        def run() -> object:
            return self.generate(one, new_tokens, do_sample=False, eos_token_ids=())

        name = f"{new_tokens} tokens after {tokens}"
        yield ProbeRequest(name, 1, tokens, run)

    def feed(self, rows: Sequence[Ids], segments: Sequence[Ids], row: int) -> Fed:
        count, prefix = len(rows), self.prompt.info.num_virtual_tokens
        kv = self.buffer(count, max(one.size for one in rows))
        if count == 1:
            ids = self.fed(rows[0])
            feed = kv.feed(ids[None], every_position=True)
            return Fed(feed, 0, 1, ids.size, ids.size, prefix, False)
        for index, one in enumerate(rows):
            kv.prefill(index, self.fed(one)[:-1], every_position=True)
        last = np.asarray([[one[-1]] for one in rows], np.int64)
        return Fed(kv.feed(last, every_position=True), row, count, 1, 1, prefix, False)

    def _row_logits(
        self, rows: Sequence[Ids], segments: Sequence[Ids] | None = None
    ) -> list[NDArray[np.float32]]:
        """Each row's last token runs as a step of the whole batch, those before it row by row."""
        tokens = sum(row.size for row in rows) + len(rows) * self.buffers.virtual_ids.size
        require_memory(tokens * self.layout.vocabulary * 4, f"Logits of {tokens} tokens")
        kv = self.buffer(len(rows), max(row.size for row in rows))
        first = [
            kv.prefill(i, self.fed(row)[:-1], every_position=True) for i, row in enumerate(rows)
        ]
        last = kv.decode([int(row[-1]) for row in rows])
        skip = self.buffers.virtual_ids.size
        return [
            np.concatenate([before[skip:], after[None]])
            for before, after in zip(first, last, strict=True)
        ]

    def started(
        self,
        ids: Sequence[Ids],
        options: GenerationOptions,
        seed: int | None,
        stop: str | Sequence[str],
        logprobs: bool,
        streamed: bool = False,
    ) -> list[GeneratingRow]:
        """Rows to be continued with `options`; row i is sampled with `seed` + i."""
        strings = stop_strings(stop)
        if strings:
            self._text_tokenizer()
        return [
            GeneratingRow(
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
        room = self.limits.max_sequence - longest
        if asked is None:
            return min(options.max_new_tokens, room)
        if asked > room:
            raise InputError(
                f"{asked} new tokens do not fit: the longest text leaves {room} of the "
                f"model's {self.limits.max_context} positions.",
                f"Ask for at most {room}, or shorten the text.",
            )
        return asked

    def _session_room(self, max_tokens: int | None) -> int:
        limit = self.limits.max_sequence
        if max_tokens is not None and not 1 <= max_tokens <= limit:
            raise InputError(f"max_tokens is {max_tokens}; it must be from 1 to {limit}.")
        return max_tokens or limit
