"""Logits of every token of a request take the memory that is asked for before it runs."""

from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest

import ptdeploy

VOCABULARY = 4000
LARGE = {"vocab_size": VOCABULARY, "max_position_embeddings": 400}


@pytest.fixture(params=["ort", "openvino"])
def engine(request, compiled) -> ptdeploy.CausalLM:
    if (
        importlib.util.find_spec("openvino" if request.param == "openvino" else "onnxruntime")
        is None
    ):
        pytest.skip(f"{request.param} is not installed")
    bundle = compiled("qwen2", "CAUSAL_LM", {"target": request.param}, **LARGE).bundle
    return ptdeploy.load(bundle)


def test_they_are_in_memory_once_and_a_run_s_beside_them(engine):
    rows = [np.arange(3, 303)] * 4
    engine.logits(rows)  # the KV buffer, which the next request is given
    tracemalloc.start()
    try:
        logits = engine.logits(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = sum(one.nbytes for one in logits)
    assert whole == 4 * 300 * VOCABULARY * 4
    # The longest run is of one row, and its logits are copied once at most.
    assert whole < peak < whole * 1.4
