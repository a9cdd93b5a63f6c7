"""What causal decoders differ in, and where a compiled one could silently differ from PEFT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import tiny
from support.alone import NEAR, peft_alone

import ptdeploy


@dataclass(frozen=True)
class Case:
    """A tiny decoder, the route its graph takes, and the positions it has."""

    architecture: str
    route: str = "fused"
    context: int = 64
    virtual_tokens: int = 5
    saved_as: torch.dtype = torch.float32
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """A compiled case."""

    case: Case
    trained: tiny.Trained
    engine: Any

    def alone(self, row: np.ndarray) -> np.ndarray:
        return peft_alone(self.trained.model, row, "CAUSAL_LM")


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


_LONGROPE = _rope(
    "longrope",
    original_max_position_embeddings=32,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[1.0, 2.0, 3.0, 4.0],
)
# Wide enough for ONNX Runtime's attention to turn them itself.
_WIDE = {"head_dim": 16}
CASES = {
    # Rotary scaling; yarn and llama3 are run well past the length they were scaled from.
    "yarn": Case(
        "llama",
        changes={
            "tie_word_embeddings": True,
            **_WIDE,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=16),
        },
    ),
    "llama3": Case(
        "llama",
        changes={
            **_WIDE,
            **_rope(
                "llama3",
                factor=4.0,
                original_max_position_embeddings=16,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
        },
    ),
    "linear": Case(
        "llama",
        context=512,
        virtual_tokens=300,
        changes={"max_position_embeddings": 512, **_rope("linear", factor=4.0)},
    ),
    "dynamic": Case("llama", changes={"num_key_value_heads": 1, **_rope("dynamic", factor=4.0)}),
    "longrope": Case(
        "phi3", context=32, changes={"original_max_position_embeddings": 32, **_LONGROPE}
    ),
    # Windows that the prefix leaves while the prompt is frozen, in the text, or while decoding.
    "window": Case(
        "mistral",
        context=1100,
        virtual_tokens=300,
        changes={"max_position_embeddings": 1100, "sliding_window": 24, **_WIDE},
    ),
    "gemma2": Case("gemma2"),
    "gemma3": Case("gemma3", changes=_WIDE),
    "cohere2": Case("cohere2"),
    "gpt_oss": Case("gpt_oss"),
    "phimoe": Case("phimoe", "plain", context=20, changes={"sliding_window": 40}),
    # Rotary over part of a head or between neighbours, norms of queries and keys, one key head.
    "phi": Case("phi"),
    "gpt_neox": Case("gpt_neox"),
    "nemotron": Case("nemotron"),
    "stablelm": Case("stablelm", virtual_tokens=1),
    "gptj": Case("gptj", "plain"),
    "qwen3": Case("qwen3", saved_as=torch.bfloat16),
    "olmo2": Case("olmo2", saved_as=torch.float16),
    "gpt_bigcode": Case("gpt_bigcode"),
    "falcon": Case("falcon", "plain"),
    # Heads of a width that ONNX Runtime's fused attention does not take, as OpenLLaMA 3B's.
    "head_dim": Case("llama", "plain", changes={"head_dim": 100}),
    "mixtral": Case("mixtral"),
    "smollm3": Case("smollm3", changes={"no_rope_layers": [1, 0], **_WIDE}),
    # Positions that are learned, learned from an offset on, and none but a slope.
    "gpt2": Case("gpt2"),
    "opt": Case("opt"),
    "bloom": Case("bloom", "plain"),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="session")
def decoders(compiled) -> Callable[[str], Decoder]:
    """`decoders(name)`: that case, compiled once."""
    made: dict[str, Decoder] = {}

    def get(name: str) -> Decoder:
        if name not in made:
            case = CASES[name]
            how = dict(case.changes)
            # What is as tiny.make makes it is the model that other files' tests have compiled.
            if case.virtual_tokens != 5:
                how["virtual_tokens"] = case.virtual_tokens
            if case.saved_as != torch.float32:
                how["saved_as"] = case.saved_as
            one = compiled(case.architecture, "CAUSAL_LM", **how)
            made[name] = Decoder(case, one.trained, ptdeploy.load(one.bundle))
        return made[name]

    return get


def _compile(folder: Path, trained: tiny.Trained, **options: Any) -> Path:
    return ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=folder / f"bundle{len(options)}",
        **options,
    ).path


def _row(length: int, seed: int = 11) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(0, tiny.VOCABULARY, length)


@every_case
def test_the_graph_takes_the_route_it_is_known_to_take(decoders, name):
    decoder = decoders(name)
    assert decoder.engine.manifest.graph.route == decoder.case.route


@pytest.mark.parametrize(
    ("name", "turning"),
    # Two kinds of layers, layers that turn nothing, heads too narrow, heads turned in part.
    [("yarn", 0), ("window", 0), ("gemma3", 0), ("smollm3", 0), ("gemma2", 4), ("phi", 4)],
)
def test_attention_turns_wide_heads_itself(decoders, name, turning):
    graph = onnx.load(decoders(name).engine.bundle.path / "model.onnx", load_external_data=False)
    operators = Counter(node.op_type for node in graph.graph.node)
    assert operators["RotaryEmbedding"] == turning
    assert bool(operators["Cos"]) == bool(turning)


@pytest.mark.parametrize("name", ["yarn", "window"])
def test_quantized_queries_keys_and_values_are_one_product(decoders, tmp_path, name):
    decoder = decoders(name)
    loose = ptdeploy.QuantizationOptions(min_agreement=0, max_perplexity_ratio=9)
    bundle = _compile(tmp_path, decoder.trained, precision="int8", quantization=loose)
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    operators = Counter(node.op_type for node in graph.graph.node)
    # With the output's, the three of the feed-forward network, the head's.
    assert operators["MatMulNBits"] == 2 * 5 + 1
    rows = [_row(length) for length in (1, 40, 7)]
    quantized = ptdeploy.load(bundle).logits(rows)
    for ours, whole in zip(quantized, decoder.engine.logits(rows), strict=True):
        assert np.abs(ours - whole).max() < 0.05 * np.ptp(whole)


@every_case
def test_a_batch_that_reaches_the_last_position_equals_peft_row_by_row(decoders, name):
    decoder = decoders(name)
    limits = decoder.engine.limits
    assert limits.max_context == decoder.case.context
    assert limits.max_sequence == decoder.case.context - decoder.case.virtual_tokens
    rows = [_row(length) for length in (1, limits.max_sequence, 2, limits.max_sequence // 2)]
    for row, ours in zip(rows, decoder.engine.logits(rows), strict=True):
        theirs = decoder.alone(row)
        assert np.ptp(theirs) > 0.1, "near-constant logits would hide faults"
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < NEAR + NEAR * np.abs(theirs).max()


@every_case
def test_a_token_past_the_last_position_is_refused(decoders, name):
    engine = decoders(name).engine
    limit = engine.limits.max_sequence
    with pytest.raises(ptdeploy.InputError, match=f"at most {limit} fit"):
        engine.logits([np.zeros(limit + 1, np.int64)])
    with pytest.raises(ptdeploy.InputError, match=r"1 new tokens do not fit.* leaves 0 of"):
        engine.generate([np.zeros(limit, np.int64)], max_new_tokens=1)


@every_case
def test_an_unequal_batch_decodes_to_the_last_position_as_each_row_alone(decoders, name):
    decoder = decoders(name)
    limit = decoder.engine.limits.max_sequence
    longest = min(limit // 2, limit - 40) if limit > 80 else limit // 3
    rows = [_row(length).tolist() for length in (1, longest, 3)]
    # As many as fit behind the longest: windows are left behind while decoding.
    got = decoder.engine.generate(rows, min(limit - longest, 60), eos_token_ids=())
    for row, generated in zip(rows, got, strict=True):
        assert_greedy(decoder, row, generated.token_ids)


def assert_greedy(decoder: Decoder, row: list[int], tokens: list[int]) -> None:
    """Each of `tokens` is the likeliest one in PEFT's forward of the row alone, or ties with it."""
    logits = decoder.alone(np.array(row + tokens))[len(row) - 1 : -1]
    chosen = logits[np.arange(len(tokens)), tokens]
    assert (logits.max(axis=1) - chosen).max() < 10 * NEAR


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "longrope", "dynamic", "gptj"])
def test_decoding_equals_pefts_own_generate(decoders, name):
    decoder = decoders(name)
    model = decoder.trained.model
    model.get_base_model().generation_config.eos_token_id = None
    row = _row(6)[None]
    room = decoder.engine.limits.max_sequence - 6
    (ours,) = decoder.engine.generate(row.tolist(), room, eos_token_ids=())
    ids = torch.from_numpy(row)
    theirs = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=0,
    )
    assert ours.token_ids == theirs[0, -room:].tolist()


@pytest.mark.parametrize("name", ["gemma3", "bloom"])
def test_rows_of_one_token_decode_as_each_alone(decoders, name):
    engine = decoders(name).engine
    rows = [[5], [60], [7]]
    together = engine.generate(rows, 30, eos_token_ids=())
    for row, generated in zip(rows, together, strict=True):
        assert_greedy(decoders(name), row, generated.token_ids)


@pytest.mark.parametrize("name", ["gemma2", "bloom"])
def test_a_row_that_ends_changes_nothing_in_those_that_go_on(decoders, name):
    engine = decoders(name).engine
    rows = [_row(length).tolist() for length in (4, 9, 1)]
    free = [one.token_ids for one in engine.generate(rows, 40, eos_token_ids=())]
    ends = [token for token in free[0] if token not in free[1] + free[2]]
    assert ends, "another seed is needed: no token is the first row's alone"
    got = engine.generate(rows, 40, eos_token_ids=[ends[0]])
    assert [one.stopped for one in got] == ["eos", "length", "length"]
    assert got[0].token_ids == free[0][: free[0].index(ends[0])]
    assert [one.token_ids for one in got[1:]] == free[1:]


@pytest.mark.parametrize("name", ["gemma2", "bloom"])
def test_an_empty_row_is_refused(decoders, name):
    engine = decoders(name).engine
    for rows in ([[]], [[5, 6], []]):
        with pytest.raises(ptdeploy.InputError, match="is empty"):
            engine.logits(rows)
        with pytest.raises(ptdeploy.InputError, match="is empty"):
            engine.generate(rows, 3)


SESSIONS = pytest.mark.parametrize("name", ["gemma2", "window", "bloom", "gptj"])


@SESSIONS
def test_a_session_rolled_back_goes_on_as_a_fresh_one(decoders, name):
    engine = decoders(name).engine
    text, other = _row(30).tolist(), _row(10).tolist()
    (want,) = engine.generate([text[:14] + other], 20, eos_token_ids=())
    session = engine.session()
    session.append(text)
    session.generate(15, eos_token_ids=())
    session.rollback(16 + 15)
    session.append(other)
    assert session.generate(20, eos_token_ids=()).token_ids == want.token_ids


@SESSIONS
def test_a_fork_and_its_origin_go_on_as_fresh_ones(decoders, name):
    engine = decoders(name).engine
    text, first, second = (_row(length).tolist() for length in (25, 9, 3))
    origin = engine.session()
    origin.append(text)
    fork = origin.fork()
    origin.append(first)
    fork.append(second)
    for session, row in ((fork, text + second), (origin, text + first)):
        (want,) = engine.generate([row], 20, eos_token_ids=())
        assert session.generate(20, eos_token_ids=()).token_ids == want.token_ids


@pytest.mark.parametrize("name", ["gemma2", "longrope", "bloom"])
def test_a_prompt_left_in_the_graph_gives_the_same_logits(decoders, tmp_path, name):
    decoder = decoders(name)
    kept = ptdeploy.load(_compile(tmp_path, decoder.trained, freeze_kv=False))
    assert kept.manifest.prompt.prefix_kv is None
    assert kept.manifest.limits == decoder.engine.manifest.limits
    rows = [_row(1), _row(kept.limits.max_sequence)]
    for ours, frozen in zip(kept.logits(rows), decoder.engine.logits(rows), strict=True):
        assert np.abs(ours - frozen).max() < NEAR


def test_longrope_cannot_be_asked_for_the_lengths_that_it_turns_otherwise(decoders, tmp_path):
    trained = decoders("longrope").trained
    with pytest.raises(ptdeploy.InputError, match="at most the model's 32 positions"):
        _compile(tmp_path, trained, max_context=33)


def test_a_window_does_not_bound_a_classifier(tmp_path):
    trained = tiny.make(tmp_path, "mistral", "SEQ_CLS", sliding_window=12, num_hidden_layers=1)
    engine = ptdeploy.load(_compile(tmp_path, trained))
    assert engine.manifest.limits.max_context == 64
    rows = [_row(59), _row(1), _row(20)]
    for row, ours in zip(rows, engine.logits(rows), strict=True):
        assert np.abs(ours - peft_alone(trained.model, row, "SEQ_CLS")).max() < NEAR


@pytest.mark.parametrize(
    ("architecture", "reason", "changes"),
    [
        ("mamba", "gives no KV cache", {}),
        ("lfm2", "keep more, or something else, than keys and values", {}),
        ("recurrent_gemma", r"keys and values \(layer 0 keeps none\)", {}),
        ("deepseek_v3", "keys and values of different shapes", {}),
        ("gpt_neo", "a KV buffer with free slots", {}),
        ("mpt", "a KV buffer with free slots", {}),
        ("llama4", "a KV buffer with free slots", {}),
        ("falcon", "operators that the target cannot run", {"alibi": True, "num_hidden_layers": 1}),
    ],
)
def test_an_architecture_that_no_graph_fits_is_refused_by_name(
    tmp_path, architecture, reason, changes
):
    trained = tiny.make(tmp_path, architecture, "CAUSAL_LM", **changes)
    with pytest.raises(ptdeploy.BaseModelError, match=f"^{architecture}.*{reason}") as refused:
        _compile(tmp_path, trained)
    assert not list(tmp_path.glob("bundle*"))
    # Nothing is said of a folder that is no more.
    assert "/new/" not in str(refused.value)
