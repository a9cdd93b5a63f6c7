"""Greedy generation over a KV cache that starts from the prompt's frozen prefix KV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle, Generation
from ptdeploy.errors import BundleError, InputError
from ptdeploy.runtime.batching import Batch, Row, pack
from ptdeploy.runtime.engine import Engine, Inputs
from ptdeploy.runtime.tokenizer import Tokenizer
from ptdeploy.targets import Session


@dataclass(frozen=True)
class Generated:
    """What a row was continued with: without the text it was given, and without the EOS token."""

    text: str
    token_ids: list[int]
    stopped: Literal["eos", "length"]


class CausalLM(Engine):
    """An engine for CAUSAL_LM. Every request starts from the same prefix KV: it is never run."""

    def __init__(self, bundle: Bundle, session: Session, tokenizer: Tokenizer | None) -> None:
        super().__init__(bundle, session, tokenizer)
        if self.manifest.generation is None:
            raise BundleError(f"{bundle.path}: the manifest has no generation defaults.")
        self._prefix_kv = _prefix_kv(bundle)
        self._past_names = [
            spec.name for spec in self.manifest.inputs if spec.name.startswith("past_key_values.")
        ]

    def generate(
        self,
        inputs: Inputs,
        max_new_tokens: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Continue each text or row of token ids greedily, together; each row as if it were alone.

        A row ends at one of `eos_token_ids` (the model's own unless told; an empty sequence means
        never) or after `max_new_tokens`. Raises InputError if it would leave the model's context.
        """
        rows = [np.asarray(e.ids, np.int64) for e in self.encode(inputs)]
        eos = set(self._generation.eos_token_ids if eos_token_ids is None else eos_token_ids)
        continuations: list[list[int]] = [[] for _ in rows]
        ended = [False] * len(rows)
        for tokens in self._steps(rows, self._budget(rows, max_new_tokens)):
            for index, token in enumerate(tokens):
                if ended[index]:
                    continue
                if token in eos:
                    ended[index] = True
                else:
                    continuations[index].append(token)
            if all(ended):
                break
        return [
            Generated(
                self.tokenizer.decode(ids) if self.tokenizer else "",
                ids,
                "eos" if end else "length",
            )
            for ids, end in zip(continuations, ended, strict=True)
        ]

    def stream(self, text: str, max_new_tokens: int | None = None) -> Iterator[str]:
        """Continue one text greedily, in pieces, as soon as each is there."""
        rows = [np.asarray(e.ids, np.int64) for e in self.encode(text)]
        assert self.tokenizer is not None, "encode() refuses text without one"
        eos = set(self._generation.eos_token_ids)
        budget = self._budget(rows, max_new_tokens)

        def tokens() -> Iterator[int]:
            for (token,) in self._steps(rows, budget):
                if token in eos:
                    return
                yield token

        yield from self.tokenizer.decode_stream(tokens())

    def _row_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        logits, _ = self._prefill(pack(rows))
        return [logits[i, : row.size] for i, row in enumerate(rows)]

    @property
    def _generation(self) -> Generation:
        generation = self.manifest.generation
        assert generation is not None, "__init__ checks it"
        return generation

    def _budget(self, rows: Sequence[Row], max_new_tokens: int | None) -> int:
        room = self.manifest.limits.max_sequence - max(row.size for row in rows)
        if max_new_tokens is None:
            return min(self._generation.max_new_tokens, room)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        if max_new_tokens > room:
            raise InputError(
                f"{max_new_tokens} new tokens do not fit: the longest text leaves {room} of the "
                f"model's {self.manifest.limits.max_context} positions.",
                f"Ask for at most {room}, or shorten the text.",
            )
        return max_new_tokens

    def _prefill(self, batch: Batch) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        rows, n = len(batch.input_ids), self._prefix_kv.shape[3]
        prefix = self._prefix_kv.reshape(-1, 1, *self._prefix_kv.shape[2:])
        feed: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": np.concatenate(
                [np.ones((rows, n), np.int64), batch.attention_mask], axis=1
            ),
        }
        for name, tensor in zip(self._past_names, prefix, strict=True):
            feed[name] = np.repeat(tensor, rows, axis=0)
        outputs = self._session.run(feed)
        return outputs.pop("logits"), self._next(feed, outputs)

    def _steps(self, rows: Sequence[Row], budget: int) -> Iterator[list[int]]:
        """The greedy token of every row, step by step, ended rows included."""
        if budget < 1:
            return
        batch = pack(rows)
        logits, feed = self._prefill(batch)
        tokens = logits[np.arange(len(rows)), batch.lengths - 1].argmax(axis=-1)
        yield tokens.tolist()
        for _ in range(budget - 1):
            feed["input_ids"] = tokens[:, None].astype(np.int64)
            outputs = self._session.run(feed)
            tokens = outputs.pop("logits")[:, -1].argmax(axis=-1)
            feed = self._next(feed, outputs)
            yield tokens.tolist()

    def _next(
        self, feed: dict[str, NDArray[Any]], present: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """The next step's inputs but for its ids: present becomes past, the mask grows by one."""
        mask = feed["attention_mask"]
        grown = np.concatenate([mask, np.ones((len(mask), 1), np.int64)], axis=1)
        past = zip(self._past_names, present.values(), strict=True)
        return {"attention_mask": grown, **dict(past)}


def _prefix_kv(bundle: Bundle) -> NDArray[np.float32]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = bundle.file("prompt")
    assert path is not None, "read_bundle checks it"
    try:
        prefix_kv: NDArray[np.float32] = load_file(path)["prefix_kv"]
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{path}: holds no prefix KV ({error}).") from None
    if prefix_kv.shape != bundle.manifest.prompt.prefix_kv:
        raise BundleError(f"{path}: prefix KV has shape {prefix_kv.shape}, not the manifest's.")
    return prefix_kv
