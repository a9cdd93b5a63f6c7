"""KV buffers are kept from request to request, and never stand in memory beside the next one."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import ptdeploy
from ptdeploy.backends import get_backend
from ptdeploy.backends.ort.session import OrtMemory
from ptdeploy.bundle import read_bundle
from ptdeploy.runtime import ENGINES, dense_kv


class Watched:
    """A session that notes, whenever it places an array, how many of older requests are alive."""

    cache = None
    in_host_memory = True

    def __init__(self, session: Any) -> None:
        self._session = session
        self.request = 0
        self._placed: list[tuple[int, weakref.ref[np.ndarray]]] = []
        self.older_alive: list[int] = []

    def place(self, array: np.ndarray) -> OrtMemory:
        memory = self._session.place(array)
        self.older_alive.append(
            sum(request < self.request and one() is not None for request, one in self._placed)
        )
        if self.request:
            self._placed.append((self.request, weakref.ref(memory.value)))
        return memory

    def run(self, inputs: Mapping[str, Any]) -> Any:
        return self._session.run(inputs)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        return self._session.bind(inputs, outputs)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_the_last_requests_buffer_is_gone_before_a_larger_one_is_made(compiled, architecture):
    bundle = read_bundle(compiled(architecture, "CAUSAL_LM").bundle)
    session = Watched(get_backend("ort").load(bundle, "cpu", 1, False))
    engine = ENGINES[bundle.manifest.task](bundle, session, None)
    session.older_alive.clear()
    for session.request, rows in enumerate([1, 2, 3], start=1):
        engine.generate([[5, 6, 7]] * rows, 2, eos_token_ids=())
    assert len(session.older_alive) >= 3 * len(engine.buffers.layout.past)
    assert not any(session.older_alive)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint64])
def test_a_count_of_numpys_is_the_same_request(compiled, monkeypatch, kind):
    asked: list[int] = []
    monkeypatch.setattr(dense_kv, "require_memory", lambda needed, _: asked.append(needed))
    rows, fixed = [[5, 6]] * 16, {"eos_token_ids": ()}

    def answers(count: Any) -> list[Any]:
        engine = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)
        session = engine.session()
        session.append([5, 6])
        written = [row.token_ids for row in engine.generate(rows, count, **fixed)]
        return [
            *written,
            session.generate(count, **fixed).token_ids,
            "".join(engine.stream([5, 6], count, **fixed)) if engine.tokenizer else "",
        ]

    expected, needed = answers(20), list(asked)
    asked.clear()
    assert answers(kind(20)) == expected
    assert asked == needed
    assert {type(one) for one in asked} == {int}


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_a_large_buffers_size_does_not_wrap_around(compiled, kind):
    layout = ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle).layout
    large = dataclasses.replace(layout, heads=8, width=128, past=("past",) * 48)
    wanted = 48 * 100 * 8 * 100 * 128 * 4 + 100 * layout.vocabulary * 4
    assert large.bytes(kind(100), kind(100)) == wanted


def test_a_buffer_of_a_long_request_is_not_kept_for_short_ones(compiled):
    one = compiled("qwen2", "CAUSAL_LM", max_position_embeddings=1100)
    engine = ptdeploy.load(one.bundle)

    def slots(tokens: int) -> int:
        engine.generate([[5] * tokens], 1, eos_token_ids=())
        (kept,) = engine.buffers._spare
        return kept.kv.slots

    # Five tokens are the prompt's, one is new.
    assert slots(3) == 64
    assert slots(900) == 960
    assert slots(800) == 960
    assert slots(400) == 448, "less than half of it is needed"
    assert slots(300) == 448
    assert slots(3) == 64
