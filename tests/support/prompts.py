"""Several prompts for one graph, and what it is given for rows that each have one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support import tiny

from ptdeploy.bundle.signature import CLASSES
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.program.prompt import Prompt, freeze
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint

# Token ids of a text, and which prompt it has; None for the base model alone, with the first head.
Row = tuple[Sequence[int], int | None]


@dataclass(frozen=True)
class Tuned:
    """A prompt as PEFT runs it, and as ptdeploy freezes it."""

    model: Any
    prompt: Prompt

    @classmethod
    def of(cls, trained: tiny.Trained) -> Tuned:
        checkpoint = read_checkpoint(trained.adapter)
        base = resolve_base(checkpoint, str(trained.base))
        kind = base.kind
        model = load_model(checkpoint, base)
        prompt = freeze(checkpoint, model, kind.needs_prefix_kv, kind.has_trained_head)
        return cls(trained.model, prompt)

    @property
    def length(self) -> int:
        return self.prompt.num_virtual_tokens

    def alone(self, ids: Sequence[int], with_prompt: bool) -> NDArray[np.float32]:
        """PEFT's logits of one text, without those of the virtual tokens: (classes,) or
        (tokens, classes); without its prompt those of the base model with its head."""
        tokens = torch.tensor([ids])
        model = self.model if with_prompt else self.model.get_base_model()
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        found: NDArray[np.float32] = logits[-len(ids) :].numpy() if logits.dim() == 2 else logits
        return np.asarray(found)


class Mixed:
    """The inputs of one right-padded batch for a graph, made without ptdeploy's runtime.

    `fill` is what stands behind heads of fewer labels and prefixes of fewer virtual tokens.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        prompts: Sequence[Prompt],
        vocabulary: int,
        fill: float = 0,
    ) -> None:
        self._inputs, self._prompts, self._fill = inputs, prompts, fill
        lengths = [prompt.num_virtual_tokens for prompt in prompts]
        firsts = vocabulary + np.cumsum([0, *lengths])
        runs = not any(spec.role == "prefix" for spec in inputs)
        # What stands before a row's text.
        self._before = [
            np.arange(first, first + length) if runs else np.zeros(0, np.int64)
            for first, length in zip(firsts, lengths, strict=False)
        ]

    def feed(self, rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
        """The inputs by name."""
        own = [self.before(which) for _, which in rows]
        ids = [np.concatenate([v, text]) for v, (text, _) in zip(own, rows, strict=True)]
        width = max(map(len, ids))
        padded = np.stack([np.pad(row, (0, width - len(row))) for row in ids]).astype(np.int64)
        mask = np.stack([np.arange(width) < len(row) for row in ids]).astype(np.int64)
        prompts = self._prompts
        lengths = [0 if w is None else prompts[w].num_virtual_tokens for _, w in rows]
        made = {
            "ids": padded,
            "mask": mask,
            "segments": np.zeros_like(padded),
            "positions": np.arange(width),
            "table": np.concatenate([prompt.virtual_tokens for prompt in prompts]),
            "prompt": np.array([which or 0 for _, which in rows], np.int64),
            "lengths": np.array(lengths, np.int64),
        }
        return {
            spec.name: made[spec.role] if spec.role in made else self._stacked(spec)
            for spec in self._inputs
        }

    def before(self, which: int | None) -> NDArray[np.int64]:
        """The ids before the text of a row that has this prompt."""
        return self._before[which] if which is not None else np.zeros(0, np.int64)

    def _stacked(self, spec: TensorSpec) -> NDArray[np.float32]:
        if spec.role == "prefix":
            parts = [prompt.prefix_kv for prompt in self._prompts]
            longest = max(part.shape[3] for part in parts)
            flat = (part.reshape(-1, *part.shape[2:]) for part in parts)
            return np.concatenate([self._grown(part, 2, longest) for part in flat])
        parts = [prompt.head[spec.name] for prompt in self._prompts]
        if CLASSES not in spec.shape:
            return np.stack(parts)
        axis = spec.shape.index(CLASSES) - 1
        most = max(part.shape[axis] for part in parts)
        return np.stack([self._grown(part, axis, most) for part in parts])

    def _grown(self, array: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
        sizes = [(0, 0)] * array.ndim
        sizes[axis] = (0, size - array.shape[axis])
        return np.pad(array, sizes, constant_values=self._fill)
