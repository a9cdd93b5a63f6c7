"""Fixtures of tests on real inputs: tokenizers of every kind, and a decoder under each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import families
from transformers import PreTrainedTokenizerFast

import ptdeploy
from ptdeploy.runtime.causal import CausalLM
from ptdeploy.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory) -> Callable[[str], tuple[PreTrainedTokenizerFast, Tokenizer]]:
    """`tokenizers(kind)`: transformers' and ours, made once."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for number, kind in enumerate(families.KINDS):
        theirs = families.make(kind)
        file = folder / f"{number}.json"
        theirs.backend_tokenizer.save(str(file))
        made[kind] = theirs, Tokenizer(file)
    return made.__getitem__


@pytest.fixture(scope="session")
def engines(compiled, tokenizers) -> Callable[[str], CausalLM]:
    """`engines(kind)`: one tiny decoder, with ids that no tokenizer names, under any tokenizer."""
    shape = {"vocab_size": 470, "initializer_range": 0.3, "max_position_embeddings": 160}
    engine = ptdeploy.load(compiled("llama", "CAUSAL_LM", **shape).bundle)
    return lambda kind: CausalLM(engine.bundle, engine._session, tokenizers(kind)[1])
