"""Generation over a KV buffer whose first slots are the prompt's frozen prefix KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.arguments import CANCEL, SEED, checked, enough_memory_and_threads, flag, maybe, whole
from ptdeploy.backends.session import Session
from ptdeploy.bundle import Bundle, GenerationOptions, Manifest
from ptdeploy.errors import InputError
from ptdeploy.runtime import chat, sampling
from ptdeploy.runtime.answer import stop_strings
from ptdeploy.runtime.batching import Ids, embedded
from ptdeploy.runtime.buffers import Buffers
from ptdeploy.runtime.conversation import Conversation
from ptdeploy.runtime.engine import Engine, Metric, one_row
from ptdeploy.runtime.generation import Generated, GeneratingRow, decode
from ptdeploy.runtime.kv_layout import KVLayout, decoder_problems
from ptdeploy.runtime.memory import require_memory
from ptdeploy.runtime.probes import Fed, ProbeRequest, probe_rows, rows_in_words
from ptdeploy.runtime.prompt_choice import DEFAULT, PromptChoice, first_of, prompt_choice
from ptdeploy.runtime.prompt_inputs import RowPrompt
from ptdeploy.runtime.request_options import budgets_of, with_options
from ptdeploy.runtime.row_encoder import Inputs
from ptdeploy.runtime.tokenizer import Tokenizer


class CausalLM(Engine):
    """An engine for CAUSAL_LM. A row starts from its prompt's prefix KV: that is never run."""

    writes = True
    takes_pairs = False
    takes_base = True
    asked_by = ("generate", "stream", "session", "chat_text", "chat_ids")

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        tokenizer: Tokenizer | None,
        max_prompts: int | None = None,
    ) -> None:
        super().__init__(bundle, session, tokenizer, max_prompts)
        self.buffers = Buffers(session, self.manifest, self._of_prompts)
        self._store.forget.append(self.buffers.forget)

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

    @checked(seed=SEED, logprobs=flag, cancel=CANCEL, prompt=prompt_choice)
    def generate(
        self,
        inputs: Inputs,
        max_new_tokens: int | None = None,
        *,
        prompt: PromptChoice = DEFAULT,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        cancel: Event | None = None,
        **options: Any,
    ) -> list[Generated]:
        """Continue each text or row of token ids, all together, each row as if it were alone.

        Where rows are prefilled together, a row's logits may differ in their last bits.

        `options` are the fields of GenerationOptions: `do_sample`, `temperature`, `top_k`, `top_p`,
        `min_p`, `repetition_penalty`, `min_new_tokens`, `eos_token_ids` (an empty sequence means
        never). What is not given is the model's own default; giving temperature, top_k, top_p or
        min_p asks for sampling, temperature 0 for none. A row ends at an EOS token, at a `stop`
        string, after `max_new_tokens`, or for all rows when `cancel` is set. Row i is sampled with
        `seed` + i, so that seed + i gives it alone too.
        Raises InputError if an option is out of range, a row would leave the model's context, or
        there is no such prompt.
        """
        with self._held(prompt) as chosen:
            encodings = self.encoded(inputs, chosen)
            prompts = chosen.of(len(encodings))
            ids = [np.asarray(encoding.ids, np.int64) for encoding in encodings]
            others = ("prompt", "stop", "seed", "logprobs", "cancel")
            settled = self.options(max_new_tokens, options, others)
            asked = max_new_tokens is not None
            budgets = budgets_of(ids, prompts, settled, asked, self.manifest.limits)
            rows = self.started(ids, settled, seed, stop, logprobs, budgets)
            running = [index for index, budget in enumerate(budgets) if budget]
            if running:
                tokens = [ids[one].size + budgets[one] for one in running]
                started = self.buffers.take([prompts[one] for one in running], tokens)
                logits = started.prefill_all([ids[one] for one in running])
                going = [rows[one] for one in running]
                for _ in decode(started.kv, logits, going, self.buffers.words, cancel):
                    pass
                self.buffers.keep(started)
        return [row.result() for row in rows]

    @checked(seed=SEED, cancel=CANCEL, prompt=prompt_choice)
    def stream(
        self,
        inputs: str | Sequence[int],
        max_new_tokens: int | None = None,
        *,
        prompt: PromptChoice = DEFAULT,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continue one text in pieces, each as soon as no later token can change it.

        Together they are the `text` of `generate`, whose options it takes, and which it raises as.
        Closing the iterator ends the request.
        """
        pieces = self._pieces(inputs, max_new_tokens, prompt, stop, seed, cancel, options)
        # Up to where the request was checked and holds its prompt. A generator that was begun lets
        # go of that when it is dropped, one that never ran would not.
        next(pieces)
        return pieces

    def _pieces(
        self,
        inputs: str | Sequence[int],
        max_new_tokens: int | None,
        prompt: PromptChoice,
        stop: str | Sequence[str],
        seed: int | None,
        cancel: Event | None,
        options: Mapping[str, Any],
    ) -> Iterator[str]:
        """An empty piece once the request was checked, then those of `stream`."""
        with enough_memory_and_threads(), self._held(prompt) as chosen:
            (encoding,) = self.encoded(one_row(inputs), chosen)
            ids = np.asarray(encoding.ids, np.int64)
            others = ("prompt", "stop", "seed", "cancel")
            settled = self.options(max_new_tokens, options, others)
            asked = max_new_tokens is not None
            budgets = budgets_of([ids], chosen.of(1), settled, asked, self.manifest.limits)
            self._text_tokenizer()
            (row,) = self.started([ids], settled, seed, stop, False, budgets, streamed=True)
            yield ""
            rows = self.buffers.take(chosen.of(1), [ids.size + budgets[0]])
            first = rows.prefill_all([ids])
            for _ in decode(rows.kv, first, [row], self.buffers.words, cancel):
                if piece := row.piece():
                    yield piece
            self.buffers.keep(rows)
            rest = row.rest()
        if rest:
            yield rest

    @checked(max_tokens=maybe(whole()), prompt=prompt_choice)
    def session(
        self, max_tokens: int | None = None, prompt: PromptChoice = DEFAULT
    ) -> Conversation:
        """A sequence that keeps its KV between turns, of at most `max_tokens` tokens of text."""
        with self._held(prompt) as chosen:
            (one,) = chosen.of(1)
            room = self._session_room(max_tokens, 0 if one is None else one.length)
            return Conversation(self, one, room)

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
        it reads; `continue_final_message` as for transformers' `apply_chat_template`.
        `chat_template` is the name of one of the model's templates; a template itself is not
        taken. Raises InputError if the model has no template, or it refuses.
        """
        with self.bundle.reading("chat_template") as path:
            if path is None:
                raise InputError(
                    f"{self.bundle.path}: its model has no chat template.",
                    "Write the conversation into one text as the model was trained on, or compile "
                    "with a tokenizer that has a template: --tokenizer DIR",
                )
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

    def options(
        self, max_new_tokens: int | None, given: Mapping[str, Any], others: Sequence[str] = ()
    ) -> GenerationOptions:
        """The model's defaults with what a request changes, which may have `others` beside them.

        Raises InputError on a bad value.
        """
        generation = self.manifest.generation
        assert generation is not None, "check_manifest says so"
        asked = {**given, "max_new_tokens": max_new_tokens}
        return with_options(generation, asked, self.manifest.limits.vocab_size, others)

    def greedy(
        self, rows: Sequence[Sequence[int]], tokens: int, prompt: PromptChoice = DEFAULT
    ) -> list[list[int]]:
        return [row.token_ids for row in self._likeliest(rows, tokens, prompt, False)]

    def continued(
        self, rows: Sequence[Sequence[int]], tokens: int, prompt: PromptChoice = DEFAULT
    ) -> list[Generated]:
        return self._likeliest(rows, tokens, prompt, True)

    def _likeliest(
        self, rows: Sequence[Sequence[int]], tokens: int, prompt: PromptChoice, logprobs: bool
    ) -> list[Generated]:
        return self.generate(
            rows,
            tokens,
            prompt=prompt,
            do_sample=False,
            min_new_tokens=0,
            repetition_penalty=1.0,
            eos_token_ids=(),
            logprobs=logprobs,
        )

    def step_requests(
        self, batch: int, tokens: int | None, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        with self._held(prompt) as chosen:
            limits = self.limits_beside(max(chosen.lengths(batch)))
            # A decode step needs a slot behind the tokens.
            beside = " and the token of a decode step."
            ids = probe_rows(limits, batch, tokens, limits.max_sequence - 1, beside)
            tokens, prompts = ids.shape[1], chosen.of(batch)
            one = self.buffers.take(prompts[:1], [tokens])
            kv, fed = one.kv, one.fed(0, ids[0])
            name = f"prefill of 1 row of {tokens} tokens"
            yield ProbeRequest(name, 1, tokens, lambda: kv.prefill(0, fed), kv.reset)
            rows = self.buffers.take(prompts, [tokens + 1] * batch)
            many = rows.kv
            for index, row in enumerate(ids):
                many.prefill(index, rows.fed(index, row))
            before = many.lengths.copy()

            def back() -> None:
                # The engine is bound to this very array.
                many.lengths[:] = before

            name = f"decode step of {rows_in_words(batch)} behind {tokens} tokens"
            yield ProbeRequest(name, batch, tokens, lambda: many.decode([0] * batch), back)

    def whole_requests(
        self, rows: list[list[int]], new_tokens: int, prompt: PromptChoice = DEFAULT
    ) -> Iterator[ProbeRequest]:
        tokens, one, first = len(rows[0]), rows[:1], first_of(prompt)

        def begin() -> object:
            return self.generate(one, 1, do_sample=False, prompt=first)

        def run() -> object:
            return self.generate(one, new_tokens, do_sample=False, eos_token_ids=(), prompt=first)

        yield ProbeRequest(f"first token after {tokens}", 1, tokens, begin)
        yield ProbeRequest(f"{new_tokens} tokens after {tokens}", 1, tokens, run)

    def feed(
        self,
        rows: Sequence[Ids],
        segments: Sequence[Ids],
        row: int,
        prompt: PromptChoice = DEFAULT,
    ) -> Fed:
        with self._held(prompt) as chosen:
            count = len(rows)
            prefix = chosen.lengths(count)[row]
            started = self.buffers.take(chosen.of(count), [one.size for one in rows])
            kv = started.kv
            if count == 1:
                ids = started.fed(0, rows[0])
                feed = kv.feed(ids[None], every_position=True)
                return Fed(feed, 0, 1, ids.size, ids.size, prefix, False)
            before = [started.fed(index, one)[:-1] for index, one in enumerate(rows)]
            kv.prefill_all(before, self._room_for_logits(before))
            last = np.asarray([[one[-1]] for one in rows], np.int64)
            return Fed(kv.feed(last, every_position=True), row, count, 1, 1, prefix, False)

    def _row_logits(
        self,
        rows: Sequence[Ids],
        prompts: Sequence[RowPrompt],
        segments: Sequence[Ids] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Each row's last token runs as a step of the whole batch, those before it as a prefill."""
        started = self.buffers.take(prompts, [row.size for row in rows])
        fed = [started.fed(index, row) for index, row in enumerate(rows)]
        logits, kv = self._room_for_logits(fed), started.kv
        kv.prefill_all([ids[:-1] for ids in fed], [one[:-1] for one in logits])
        last = kv.decode([int(row[-1]) for row in rows])
        for one, after in zip(logits, last, strict=True):
            one[-1] = after
        return [one[-row.size :] for row, one in zip(rows, logits, strict=True)]

    def _room_for_logits(self, rows: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """For each row an array (tokens, vocabulary). Raises OutOfMemory if they do not fit."""
        tokens, width = sum(ids.size for ids in rows), self.layout.vocabulary
        # A run's own are beside them, in the engine and as they come from it.
        run = min(self.layout.kept, tokens)
        require_memory((tokens + 2 * run) * width * 4, f"Logits of {tokens} tokens")
        return [np.empty((ids.size, width), np.float32) for ids in rows]

    def started(
        self,
        ids: Sequence[Ids],
        options: GenerationOptions,
        seed: int | None,
        stop: str | Sequence[str],
        logprobs: bool,
        budgets: Sequence[int],
        streamed: bool = False,
    ) -> list[GeneratingRow]:
        """Rows to be continued with `options`, by at most their budgets of tokens.

        Row i is sampled with `seed` + i.
        """
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
                budget,
                streamed,
            )
            for index, (row, budget) in enumerate(zip(ids, budgets, strict=True))
        ]

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.bundle.path}: has no tokenizer, so it gives token ids only.",
                "Use generate() without stop strings.",
            )
        return self.tokenizer

    def _session_room(self, max_tokens: int | None, virtual_tokens: int) -> int:
        limit = self.limits_beside(virtual_tokens).max_sequence
        if max_tokens is not None and not 1 <= max_tokens <= limit:
            raise InputError(f"max_tokens is {max_tokens}; it must be from 1 to {limit}.")
        return max_tokens or limit
