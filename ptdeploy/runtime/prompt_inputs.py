"""What prompts give a run beside the text: the inputs of a graph that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.session import DeviceArray, Session
from ptdeploy.bfloat16 import to_stored
from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import CLASSES
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.runtime.prompts import Prompt

# So many prompts one run takes; and those of the stacks that are kept for the next runs, together.
MOST_IN_A_RUN = 256

_NONE = np.zeros(0, np.int64)

# One row's prompt; None for the base model alone.
RowPrompt = Prompt | None


@dataclass(frozen=True)
class PromptStack:
    """Some prompts on the engine's device, one behind the other.

    `placed` are the inputs that no row changes, by name. `index` and `lengths` name those that say
    which prompt a row has, and how long it is; None where the graph has none. `ids` stand for the
    virtual tokens of those that are looked up.
    """

    prompts: tuple[Prompt, ...]
    placed: dict[str, DeviceArray] = field(repr=False)
    index: str | None
    lengths: str | None
    ids: dict[Prompt, NDArray[np.int64]] = field(repr=False)

    def of_rows(self, rows: Sequence[RowPrompt]) -> dict[str, Any]:
        """The inputs of a run whose rows have these prompts, by name."""
        given: dict[str, Any] = dict(self.placed)
        if self.index is not None:
            places = {prompt: place for place, prompt in enumerate(self.prompts)}
            given[self.index] = np.array([places[one] if one else 0 for one in rows], np.int64)
        if self.lengths is not None:
            filled = [one.length if one and one not in self.ids else 0 for one in rows]
            given[self.lengths] = np.array(filled, np.int64)
        return given

    def before(self, prompt: RowPrompt) -> NDArray[np.int64]:
        """What is fed before the text of a row: ids behind the vocabulary; none of a prefix KV."""
        return _NONE if prompt is None else self.ids.get(prompt, _NONE)


class PromptInputs:
    """Stacks of the prompts that runs have in common, placed once and kept for the next runs.

    A head computes its product for every stacked prompt, so none is stacked that no row has.
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session, self._vocabulary = session, manifest.limits.vocab_size
        self._specs = manifest.graph.inputs
        roles = {spec.role: spec.name for spec in self._specs}
        self._index, self._has_table = roles.get("prompt"), "table" in roles
        # A decoder that writes has the length of what a row's KV buffer holds there.
        self._lengths = roles.get("lengths") if "prefix" in roles else None
        # The last used last. No lock, which a fork could find taken: each step is a dict's own.
        self._stacks: dict[tuple[Prompt, ...], PromptStack] = {}

    def stack(self, rows: Sequence[RowPrompt]) -> PromptStack:
        """The stack of the prompts that these rows have."""
        prompts = tuple(dict.fromkeys(one for one in rows if one is not None))
        if len(prompts) > 1:
            # Whatever the order of the rows, it is the same stack. A graph that takes prompts with
            # and without a prefix KV finds those that have one first.
            prompts = tuple(sorted(prompts, key=_place))
        found = self._stacks.pop(prompts, None)
        if found is not None:
            self._stacks[prompts] = found
            return found
        found = self._stacks[prompts] = self._placed(prompts)
        self._make_room()
        return found

    def forget(self, prompt: Prompt) -> None:
        """Let go of all that holds a prompt."""
        for prompts in [one for one in list(self._stacks) if prompt in one]:
            self._stacks.pop(prompts, None)

    def _make_room(self) -> None:
        kept = list(self._stacks)
        sizes = accumulate(max(len(prompts), 1) for prompts in reversed(kept))
        for prompts, size in zip(reversed(kept), sizes, strict=True):
            if size > MOST_IN_A_RUN and prompts != kept[-1]:
                self._stacks.pop(prompts, None)

    def _placed(self, prompts: tuple[Prompt, ...]) -> PromptStack:
        placed = {}
        for spec in self._specs:
            array = _stacked(spec, prompts)
            if array is not None:
                stored = np.ascontiguousarray(to_stored(array, spec.dtype))
                placed[spec.name] = self._session.place(stored)
        looked_up = [one for one in prompts if self._has_table and one.virtual_tokens is not None]
        firsts = accumulate((one.length for one in looked_up), initial=self._vocabulary)
        ids = {
            one: np.arange(first, first + one.length)
            for one, first in zip(looked_up, firsts, strict=False)
        }
        return PromptStack(prompts, placed, self._index, self._lengths, ids)


def _stacked(spec: TensorSpec, prompts: Sequence[Prompt]) -> NDArray[np.float32] | None:
    """One of the inputs as these prompts together give it; None if it is no prompt's."""
    if spec.role == "table":
        tables = [one.virtual_tokens for one in prompts if one.virtual_tokens is not None]
        # An engine may refuse a table without a line, though nobody looks into it.
        return _joined(tables or [np.zeros((1, int(spec.shape[1])), np.float32)])
    if spec.role == "head":
        parts = [one.head[spec.name] for one in prompts]
        if CLASSES in spec.shape:
            parts = _grown(parts, spec.shape.index(CLASSES) - 1)
        return _joined([part[None] for part in parts])
    if spec.role == "prefix":
        kvs = [one.prefix_kv for one in prompts if one.prefix_kv is not None]
        if len(spec.shape) == 4:
            return _joined(_grown([kv.reshape(-1, *kv.shape[2:]) for kv in kvs], 2))
        _, parts_of_one, heads, _, width = spec.shape
        if not kvs:
            # No row sees it, and an engine may refuse what is empty.
            return np.zeros((1, int(parts_of_one), int(heads), 1, int(width)), np.float32)
        return _joined(_grown([kv.reshape(1, -1, *kv.shape[2:]) for kv in kvs], 3))
    return None


def _place(prompt: Prompt) -> tuple[bool, str, int]:
    return prompt.prefix_kv is None, prompt.name, id(prompt)


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Parts one behind the other; one part is itself, not a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _grown(parts: Sequence[NDArray[np.float32]], axis: int) -> list[NDArray[np.float32]]:
    """Parts as long as the longest of them along an axis, zeros behind the shorter ones."""
    most = max(part.shape[axis] for part in parts)
    grown = []
    for part in parts:
        sizes = [(0, 0)] * part.ndim
        sizes[axis] = (0, most - part.shape[axis])
        grown.append(np.pad(part, sizes) if sizes[axis][1] else part)
    return grown
