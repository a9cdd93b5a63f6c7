"""What belongs to a prompt is put on the engine's device once, not with each request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.damage import PROMPT

from ptdeploy.backends import get_backend
from ptdeploy.backends.ort.session import OrtMemory
from ptdeploy.bundle import MODEL, Manifest, read_bundle
from ptdeploy.runtime import ENGINES
from ptdeploy.runtime.prompt_inputs import PromptInputs
from ptdeploy.runtime.prompts import read_prompt

CLASSIFIERS = [
    ("bert", "SEQ_CLS"),
    ("roberta", "SEQ_CLS"),
    ("bert", "TOKEN_CLS"),
    ("qwen2", "SEQ_CLS"),
]
# The roles of what no request gives.
OF_PROMPTS = ("table", "prefix", "head")


class Counting:
    """A session that notes what is placed, and what it is run with."""

    cache = None
    in_host_memory = True

    def __init__(self, session: Any) -> None:
        self._session = session
        self.placed: list[OrtMemory] = []
        self.given: list[dict[str, Any]] = []

    def place(self, array: np.ndarray) -> OrtMemory:
        self.placed.append(self._session.place(array))
        return self.placed[-1]

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.given.append(dict(inputs))
        return self._session.run(inputs)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        self.given.append(dict(inputs))
        return self._session.bind(inputs, outputs)


def counted(path: Path) -> tuple[Any, Counting]:
    bundle = read_bundle(path)
    session = Counting(get_backend("ort").load(bundle, "cpu", 1, False))
    return ENGINES[bundle.manifest.task](bundle, session, None), session


def of_prompts(manifest: Manifest) -> list[str]:
    return [spec.name for spec in manifest.graph.inputs if spec.role in OF_PROMPTS]


@pytest.mark.parametrize(("architecture", "task"), CLASSIFIERS)
def test_a_classifiers_prompt_is_placed_once_and_read_where_it_lies(compiled, architecture, task):
    engine, session = counted(compiled(architecture, task).bundle)
    names = of_prompts(engine.manifest)
    assert len(session.placed) == len(names) > 0
    first = {memory.pointer for memory in session.placed}
    for rows in ([[5, 6]], [[5, 6, 7], [40]], [[9]] * 5):
        engine.logits(rows)
    assert len(session.placed) == len(names), "nothing is placed with a request"
    assert len(session.given) == 3
    for given in session.given:
        assert {given[name].pointer for name in names} == first


def test_the_table_of_a_prompt_that_is_run_is_placed_once(bundles):
    engine, session = counted(bundles("fused, not frozen"))
    (name,) = of_prompts(engine.manifest)
    shape = engine.prompt.virtual_tokens.shape
    for rows in ([[5, 6]], [[5, 6, 7], [40]], [[9]] * 5):
        engine.generate(rows, 3, eos_token_ids=())
    assert sum(memory.shape == shape for memory in session.placed) == 1
    assert len({given[name].pointer for given in session.given}) == 1


@pytest.mark.parametrize(("architecture", "task"), CLASSIFIERS)
def test_what_is_placed_is_the_prompts_file(compiled, architecture, task):
    bundle = compiled(architecture, task).bundle
    engine, session = counted(bundle)
    file = load_file(bundle / PROMPT)
    engine.logits([[5, 6], [7]])
    (given,) = session.given
    for spec in engine.manifest.graph.inputs:
        if spec.role == "table":
            assert np.array_equal(given[spec.name].read(), file["virtual_tokens"])
        elif spec.role == "head":
            assert np.array_equal(given[spec.name].read(), file[spec.name][None])
        elif spec.role == "prefix":
            layers, parts, *rest = file["prefix_kv"].shape
            wanted = file["prefix_kv"].reshape(layers * parts, *rest)
            assert np.array_equal(given[spec.name].read(), wanted)
        elif spec.role == "prompt":
            assert given[spec.name].tolist() == [0, 0]
        elif spec.role == "lengths":
            assert given[spec.name].tolist() == [5, 5]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_prompt_is_placed_in_the_type_of_the_activations(compiled, dtype):
    bundle = read_bundle(compiled("bert", "SEQ_CLS").bundle)
    manifest, prompt = bundle.manifest, read_prompt(bundle)
    inputs = tuple(
        msgspec.structs.replace(spec, dtype=dtype) if spec.dtype == "float32" else spec
        for spec in manifest.graph.inputs
    )
    graph = msgspec.structs.replace(manifest.graph, inputs=inputs)
    manifest = msgspec.structs.replace(manifest, graphs={MODEL: graph})
    session = Counting(get_backend("ort").load(bundle, "cpu", 1, False))
    placed = PromptInputs(session, manifest).stack([prompt]).placed
    found = placed["virtual_tokens"].read()
    assert found.dtype.itemsize == 2
    if dtype == "float16":
        back = found.astype(np.float32)
    else:
        back = (found.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(back, prompt.virtual_tokens, rtol=2**-8)
