"""An engine that fails is not one whose numbers differ: what fits is found out, what fails said."""

from __future__ import annotations

import pytest
import tiny

import ptdeploy
from ptdeploy.base import load_model, resolve_base
from ptdeploy.checkpoint import read_checkpoint
from ptdeploy.program import build_program
from ptdeploy.prompt import freeze
from ptdeploy.targets import Attention, get_target


def _refused(attention: Attention, target: str = "ort") -> str:
    return get_target(target).refuses("cpu" if target == "ort" else "cuda", "float32", attention)


@pytest.mark.parametrize("size", [4, 5, 7, 12, 20, 100])
def test_heads_that_the_fused_operator_does_not_take_are_found_by_running_it(size):
    why = _refused(Attention(heads=4, kv_heads=2, head_dim=size))
    assert why.startswith(f"GroupQueryAttention does not take 4 heads of {size} over 2 of keys (")
    assert "multiple of 8" in why
    assert "\n" not in why


@pytest.mark.parametrize(
    "attention",
    [
        Attention(4, 2, 8),
        Attention(9, 3, 16),
        Attention(5, 5, 64),
        Attention(7, 1, 80),
        Attention(2, 2, 512),
        Attention(4, 2, 8, window=4, softcap=2.0),
        Attention(4, 2, 8, sinks=True),
    ],
    ids=str,
)
def test_heads_that_it_takes_are_not_refused(attention):
    assert _refused(attention) == ""


def test_queries_that_share_no_whole_number_of_keys_are_refused():
    assert "num_heads must be a multiple of kv_num_heads" in _refused(Attention(4, 3, 8))


def test_attention_of_standard_operators_takes_heads_of_any_width():
    assert _refused(Attention(4, 2, 100), "trt") == ""


@pytest.mark.parametrize(
    ("architecture", "changes", "route"),
    [
        ("llama", {"head_dim": 100}, "plain"),
        ("llama", {"head_dim": 24}, "fused"),
        ("qwen2", {"head_dim": 12, "num_key_value_heads": 1}, "plain"),
        ("gpt2", {"n_embd": 35, "hidden_size": 35, "n_head": 5}, "plain"),
        ("gpt2", {"n_embd": 24, "hidden_size": 24, "n_head": 3}, "fused"),
    ],
    ids=["llama 100", "llama 24", "qwen2 12", "gpt2 7", "gpt2 8"],
)
def test_the_graph_is_the_one_that_the_engine_can_run(tmp_path, architecture, changes, route):
    trained = tiny.make(tmp_path, architecture, "CAUSAL_LM", **changes)
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    model = load_model(checkpoint, base)
    prompt = freeze(checkpoint, model, with_prefix_kv=True)
    _, graph = build_program(checkpoint.task, model, base, prompt, refuses=_refused)
    assert graph.route == route
    assert ("GroupQueryAttention does not take" in graph.reason) == (route == "plain")


def test_narrow_heads_compile_with_weights_in_few_bits(tmp_path):
    trained = tiny.make(
        tmp_path, "gpt2", "CAUSAL_LM", n_embd=35, hidden_size=35, n_head=5, n_layer=1
    )
    bundle = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path / "bundle",
        precision="int4",
        rounding=ptdeploy.Rounding(min_agreement=0.5, max_perplexity_ratio=3),
    )
    assert bundle.manifest.graph.route == "plain"
    assert "5 heads of 7 (head_size must be a multiple of 8" in bundle.manifest.graph.reason
    assert len(ptdeploy.load(bundle.path).generate([[1, 2, 3], [4]], 4)[1].token_ids) == 4
