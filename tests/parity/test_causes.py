"""Each known cause of a mismatch is named on a suspect made by hand, and only where it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support import tiny
from support.manifests import causal_manifest, made_manifest
from torch.nn import functional

from ptdeploy.bundle import Bundle, Manifest
from ptdeploy.bundle.task import Task
from ptdeploy.parity.locate.causes import DETECTORS, Suspect, likely_cause
from ptdeploy.parity.locate.causes.activations import activation
from ptdeploy.parity.locate.causes.attention import attributes, heads, mask, padded, scale
from ptdeploy.parity.locate.causes.numbers import multiple, not_finite
from ptdeploy.parity.locate.causes.positions import learned, rotary, table
from ptdeploy.parity.locate.causes.prompt import pefts_prefix, prefix_kv, virtual_tokens
from ptdeploy.parity.locate.causes.weights import epsilon, weights
from ptdeploy.parity.locate.graph import ModuleGraph
from ptdeploy.parity.locate.trace import Event
from ptdeploy.parity.reference.peft import PeftSource, open_peft
from ptdeploy.passes.name import PROGRAM
from ptdeploy.runtime.prompts import Prompt
from ptdeploy.source.base import resolve_base
from ptdeploy.source.checkpoint import read_checkpoint

DENSE = "bert.encoder.layer.0.output.dense"
ATTENTION = "bert.encoder.layer.0.attention.self"
CAUSAL = causal_manifest()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, PeftSource]:
    """A tiny model of each kind, as PEFT loads it."""
    made = {}
    for name, task in (("bert", Task.SEQ_CLS), ("gpt2", Task.CAUSAL_LM), ("qwen2", Task.CAUSAL_LM)):
        folder = tmp_path_factory.mktemp(name)
        trained = tiny.make(folder, name, task.value, jitter=True)
        checkpoint = read_checkpoint(trained.adapter, task=task)
        made[name] = open_peft(checkpoint, resolve_base(checkpoint, str(trained.base)))
    return made


@pytest.fixture
def bert(models) -> PeftSource:
    return models["bert"]


@pytest.fixture
def gpt2(models) -> PeftSource:
    return models["gpt2"]


@pytest.fixture
def qwen2(models) -> PeftSource:
    return models["qwen2"]


def node(module: str, operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    """A module's node, which gives a value of its own name."""
    name = f"{module or PROGRAM}/{operator}"
    return helper.make_node(operator, list(inputs), [name], name=name, **attributes)


def suspect(
    peft: PeftSource,
    module: str,
    nodes: Sequence[onnx.NodeProto],
    ours: np.ndarray,
    theirs: np.ndarray | None = None,
    *,
    what: str = "output",
    constants: Mapping[str, np.ndarray] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    feed: Mapping[str, np.ndarray] | None = None,
    lengths: tuple[int, ...] = (3,),
    manifest: Manifest | None = None,
    stored: Prompt | None = None,
) -> Suspect:
    """A suspect whose value is what the last of the nodes gives; `stored` is its prompt."""
    held = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    model = helper.make_model(helper.make_graph(list(nodes), "graph", [], [], held))
    bundle = Bundle(Path(), manifest or made_manifest())
    value = nodes[-1].output[0]
    wanted = ours if theirs is None else theirs
    return Suspect(
        module=module,
        event=Event(module, what, wanted.astype(np.float32)),
        value=value,
        ours=ours,
        theirs=wanted.astype(np.float32),
        graph=ModuleGraph.of(bundle, Path("model.onnx"), model),
        behind=nodes,
        prefix=5,
        row=0,
        lengths=lengths,
        values={value: ours, **(values or {})},
        feed=feed or {},
        peft=peft,
        bundle=bundle,
        prompt=stored or prompt(),
    )


def prompt(
    tokens: np.ndarray | None = None, kv: np.ndarray | None = None, **head: np.ndarray
) -> Prompt:
    """A bundle's prompt: its virtual tokens, prefix KV, and its head by the parameters' names."""
    rows = np.zeros((5, 32), np.float32) if tokens is None else tokens
    named = {f"head.{name.replace('__', '.')}": array for name, array in head.items()}
    return Prompt("default", made_manifest().prompt, rows, kv, named)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def words(cause: Any) -> str:
    assert cause is not None
    return str(cause.words)


# Prompt


def looked_up(bert: PeftSource, ours: np.ndarray, theirs: np.ndarray, stored: np.ndarray) -> Any:
    nodes = [node("", "Where", "x")]
    return virtual_tokens(suspect(bert, "", nodes, ours, theirs, stored=prompt(stored)))


def test_virtual_tokens_of_another_prompt_are_counted_and_the_prompt_encoder_is_named(bert):
    theirs = random(1, 8, 32)
    ours = theirs.copy()
    ours[0, [1, 3]] += 1
    cause = looked_up(bert, ours, theirs, stored=ours[0, :5])
    assert words(cause) == "2 of 5 virtual tokens in the bundle are not the checkpoint's"
    assert cause.module == "prompt_encoder"


def test_virtual_tokens_in_another_order_are_said_to_be_that(bert):
    theirs = random(1, 8, 32)
    ours = theirs.copy()
    ours[0, :5] = theirs[0, [1, 0, 2, 4, 3]]
    cause = looked_up(bert, ours, theirs, stored=ours[0, :5])
    assert words(cause).endswith("; they are the right rows in another order")


def test_right_virtual_tokens_that_are_looked_up_wrong_are_said_to_be_that(bert):
    theirs = random(1, 8, 32)
    ours = theirs.copy()
    ours[0, :5] = theirs[0, [0, 0, 1, 2, 3]]
    assert words(looked_up(bert, ours, theirs, stored=theirs[0, :5])) == (
        "the graph looks up 4 of 5 virtual tokens wrong; the bundle holds the checkpoint's"
    )


def test_a_decoders_virtual_tokens_are_looked_at_where_they_are_not_frozen(qwen2):
    theirs = random(1, 8, 32)
    ours = theirs.copy()
    ours[0, 2] += 1
    nodes = [node("", "Where", "x")]

    def found(kv: np.ndarray | None) -> Any:
        stored = prompt(ours[0, :5], kv)
        return virtual_tokens(suspect(qwen2, "", nodes, ours, theirs, stored=stored))

    assert words(found(None)).startswith("1 of 5 virtual tokens in the bundle")
    assert found(np.zeros((2, 2, 2, 5, 8), np.float32)) is None


def test_text_that_differs_too_does_not_blame_the_prompt(bert):
    theirs = random(1, 8, 32)
    made = suspect(bert, "", [node("", "Concat", "x")], theirs + 1, theirs)
    assert virtual_tokens(made) is None


def test_a_bundles_prefix_kv_of_another_prompt_is_stale(qwen2):
    right = np.stack(pefts_prefix(qwen2))

    def found(kv: np.ndarray) -> Any:
        module = "model.layers.1.self_attn"
        nodes = [node(module, "GroupQueryAttention", "q", "k", "v")]
        made = suspect(
            qwen2, module, nodes, random(1, 3, 32), manifest=CAUSAL, stored=prompt(kv=kv)
        )
        return prefix_kv(made)

    assert found(right) is None
    wrong = right.copy()
    wrong[1, 1] += 0.5
    assert words(found(wrong)) == "stale prefix KV: layer 1's values are not the checkpoint's"
    wrong = right.copy()
    wrong[0] += 0.5
    assert found(wrong) is None  # another layer's


def test_a_right_prefix_kv_that_a_layer_does_not_take_is_said_to_be_that(qwen2):
    right = np.stack(pefts_prefix(qwen2))
    module = "model.layers.0.self_attn"
    gathered = [node("", "GatherND", "prefix_kv"), node("", "Gather", "prefix_kv")]
    names = [one.output[0] for one in gathered]
    nodes = [*gathered, node(module, "Softmax", *names)]

    def found(keys: np.ndarray, values: np.ndarray) -> Any:
        taken = dict(zip(names, (keys[None], values[None]), strict=True))
        made = random(1, 3, 32)
        return prefix_kv(suspect(qwen2, module, nodes, made, values=taken, stored=prompt(kv=right)))

    assert found(*right[0]) is None
    assert found(*right[0][::-1]) is None  # which of them is which is the attention's business
    assert words(found(right[0, 0], right[1, 1])) == (
        "layer 0 takes other values than those of its prefix KV"
    )


# Weights


def dense(bert: PeftSource, weight: np.ndarray, bias: np.ndarray | None) -> Suspect:
    """A linear layer as it is exported: a product with the transposed weight, and a sum."""
    product = node(DENSE, "MatMul", "x", "weight")
    nodes, constants = [product], {"weight": weight}
    if bias is not None:
        nodes.append(node(DENSE, "Add", product.output[0], "bias"))
        constants["bias"] = bias
    return suspect(bert, DENSE, nodes, random(1, 8, 32), constants=constants)


@pytest.fixture
def right(bert) -> tuple[np.ndarray, np.ndarray]:
    layer = bert.model.get_base_model().get_submodule(DENSE)
    return layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()


def test_the_checkpoints_weights_are_no_cause(bert, right):
    assert weights(dense(bert, *right)) is None


def test_one_number_of_a_weight_is_counted(bert, right):
    weight, bias = right
    weight[3, 4] *= 2
    assert words(weights(dense(bert, weight, bias))) == (
        "1 of 2048 numbers of its weight are not the checkpoint's"
    )


def test_rows_of_a_weight_in_another_order_are_said_to_be_that(bert, right):
    weight, bias = right
    found = weights(dense(bert, np.roll(weight, 1, axis=0), bias))
    assert words(found).endswith("they are the right rows in another order")
    found = weights(dense(bert, weight, np.roll(bias, 1)))
    assert words(found).endswith("they are the right numbers in another order")


def test_a_zero_weight_and_a_missing_bias_are_named(bert, right):
    weight, bias = right
    assert words(weights(dense(bert, weight, np.zeros_like(bias)))) == (
        "its bias is zero in the bundle"
    )
    assert words(weights(dense(bert, weight, None))) == "its bias is missing from the graph"


def test_a_square_weight_the_other_way_round_is_transposed(bert):
    module = f"{ATTENTION}.query"
    layer = bert.model.get_base_model().get_submodule(module)
    product = node(module, "MatMul", "x", "weight")
    constants = {"weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    nodes = [product, node(module, "Add", product.output[0], "bias")]
    made = suspect(bert, module, nodes, random(1, 8, 32), constants=constants)
    assert words(weights(made)) == "its weight is transposed"


def headed(bert: PeftSource, weight: np.ndarray, bias: np.ndarray) -> Suspect:
    """A trained head as it is exported: its parameters are inputs, gathered by the row's prompt."""
    chosen = node("classifier", "GatherND", "head.classifier.weight", "prompt_index")
    turned = node("classifier", "Transpose", chosen.output[0])
    product = node("classifier", "MatMul", "x", turned.output[0])
    shift = node("classifier", "Gather", "head.classifier.bias", "prompt_index")
    nodes = [chosen, turned, product, shift]
    nodes.append(node("classifier", "Add", product.output[0], shift.output[0]))
    stored = prompt(classifier__weight=weight, classifier__bias=bias)
    return suspect(bert, "classifier", nodes, random(1, 3), stored=stored)


def test_a_trained_head_is_held_against_the_prompts_file(bert):
    wrapper = bert.model.get_base_model().get_submodule("classifier")
    layer = wrapper.modules_to_save["default"]
    weight, bias = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    assert weights(headed(bert, weight, bias)) is None
    wrong = weight.copy()
    wrong[1, [3, 4]] *= 2
    assert words(weights(headed(bert, wrong, bias))) == (
        "2 of 96 numbers of its weight are not the checkpoint's"
    )
    assert words(weights(headed(bert, weight[::-1], bias))).endswith(
        "they are the right rows in another order"
    )
    assert words(weights(headed(bert, weight, 0 * bias))) == "its bias is zero in the bundle"


def test_a_square_head_is_not_taken_for_transposed(bert):
    layer = torch.nn.Linear(3, 3)
    base = bert.model.get_base_model()
    base.dense = layer
    try:
        weight = layer.weight.detach().numpy()
        chosen = node("dense", "GatherND", "head.dense.weight", "prompt_index")
        product = node("dense", "MatMul", "x", chosen.output[0])
        nodes = [chosen, product, node("dense", "Add", product.output[0], "head.dense.bias")]

        def found(given: np.ndarray) -> Any:
            stored = prompt(dense__weight=given, dense__bias=layer.bias.detach().numpy())
            return weights(suspect(bert, "dense", nodes, random(1, 3), stored=stored))

        assert found(weight) is None
        assert words(found(weight.T)) == "its weight is transposed"
    finally:
        del base.dense


def test_quantized_weights_are_not_compared(bert):
    nodes = [node(DENSE, "MatMulNBits", "x", "weight")]
    constants = {"weight": np.zeros((32, 64), np.uint8)}
    assert weights(suspect(bert, DENSE, nodes, random(1, 8, 32), constants=constants)) is None


def test_an_epsilon_that_is_not_the_models_is_named(bert):
    module = "bert.encoder.layer.0.output.LayerNorm"
    want = bert.model.get_base_model().get_submodule(module).eps

    def found(value: float) -> Any:
        nodes = [node(module, "LayerNormalization", "x", epsilon=value)]
        return epsilon(suspect(bert, module, nodes, random(1, 8, 32)))

    assert found(want) is None
    assert words(found(0.5)) == f"its epsilon is 0.5, but the model's is {want:g}"


# Positions


def turned(qwen2: PeftSource, positions: np.ndarray, frequencies: np.ndarray) -> Suspect:
    inverse = qwen2.model.get_base_model().model.rotary_emb.inv_freq.numpy()
    angles = np.outer(positions, inverse)
    ours = np.cos(np.concatenate([angles, angles], axis=-1))[None].astype(np.float32)
    nodes = [node("model.rotary_emb", "Cos", "frequencies")]
    constants = {"frequencies": frequencies}
    return suspect(qwen2, "model.rotary_emb", nodes, ours, constants=constants, manifest=CAUSAL)


def test_rotary_angles_tell_by_how_much_positions_are_off(qwen2):
    inverse = qwen2.model.get_base_model().model.rotary_emb.inv_freq.numpy()
    for shift in (1, -1, -5):
        found = rotary(turned(qwen2, 5 + shift + np.arange(3), inverse))
        assert words(found) == f"position numbering: positions are off by {shift:+d}"
    found = rotary(turned(qwen2, np.array([9, 2, 30]), inverse))
    assert "not those of the row's own positions" in words(found)


def test_rotary_frequencies_of_another_model_are_named(qwen2):
    inverse = qwen2.model.get_base_model().model.rotary_emb.inv_freq.numpy()
    found = rotary(turned(qwen2, 5 + np.arange(3), inverse * 2))
    assert "rope theta or scaling" in words(found)


def test_a_table_of_attention_tells_what_is_wrong_with_its_angles(qwen2):
    module = "model.layers.0.self_attn"
    inverse = qwen2.model.get_base_model().model.rotary_emb.inv_freq.numpy()
    inputs = ["q", "k", "v", "past_k", "past_v", "last", "filled", "cosines", "sines"]
    nodes = [node(module, "GroupQueryAttention", *inputs, do_rotary=1)]

    def found(positions: np.ndarray, frequencies: np.ndarray, scaling: float = 1, sign: int = 1):
        angles = np.outer(positions, frequencies)
        waves = {"cosines": np.cos(angles), "sines": sign * np.sin(angles)}
        held = {name: scaling * wave.astype(np.float32) for name, wave in waves.items()}
        made = suspect(qwen2, module, nodes, random(1, 3, 32), constants=held, manifest=CAUSAL)
        return table(made)

    places = np.arange(40)
    assert found(places, inverse) is None
    assert found(places, inverse, 1.3) is None
    assert words(found(places - 1, inverse)) == "position numbering: positions are off by -1"
    for other in (found(places, inverse * 2), found(places, inverse, sign=-1)):
        assert "rope theta, scaling or positions" in words(other)
    turned_before = [node(module, "GroupQueryAttention", *inputs[:7])]
    assert table(suspect(qwen2, module, turned_before, random(1, 3, 32), manifest=CAUSAL)) is None


def test_a_learned_position_embedding_tells_by_how_much_positions_are_off(gpt2):
    module = "transformer.wpe"
    table = gpt2.model.get_base_model().get_submodule(module).weight.detach().numpy()
    nodes = [node(module, "Gather", "table", "positions")]

    def found(*positions: int) -> Any:
        return learned(suspect(gpt2, module, nodes, table[list(positions)][None], table[None, 5:8]))

    assert found(5, 6, 7) is None
    assert words(found(6, 7, 8)) == "position numbering: positions are off by +1"
    assert words(found(5, 7, 8)) == ("position numbering: positions are not those of the row alone")


# Activations


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: functional.gelu(x, approximate="tanh"), "GELU's tanh approximation"),
        (functional.relu, "ReLU"),
        (lambda x: x, "nothing"),
    ],
)
def test_another_activation_is_named(bert, function, name):
    module = "bert.encoder.layer.0.intermediate.intermediate_act_fn"
    given = 3 * random(1, 8, 64)
    before = node("bert.encoder.layer.0.intermediate.dense", "Add", "x")
    nodes = [before, node(module, "Gelu", before.output[0])]
    ours = function(torch.from_numpy(given)).numpy()
    made = suspect(bert, module, nodes, ours, values={before.output[0]: given})
    assert words(activation(made)) == f"it computes {name}, but the model has GELUActivation"


def test_an_unknown_activation_is_no_guess(bert):
    module = "bert.encoder.layer.0.intermediate.intermediate_act_fn"
    given = random(1, 8, 64)
    before = node("bert.encoder.layer.0.intermediate.dense", "Add", "x")
    nodes = [before, node(module, "Gelu", before.output[0])]
    made = suspect(bert, module, nodes, given**3, values={before.output[0]: given})
    assert activation(made) is None


# Attention


def test_heads_in_another_order_are_named(bert):
    theirs = random(1, 8, 32)
    ours = theirs.reshape(1, 8, 4, 8)[:, :, [1, 0, 2, 3]].reshape(1, 8, 32)
    nodes = [node(ATTENTION, "Reshape", "x")]
    assert words(heads(suspect(bert, ATTENTION, nodes, ours, theirs))) == (
        "its heads are in another order"
    )
    assert heads(suspect(bert, ATTENTION, nodes, ours + 1, theirs)) is None


def fused(qwen2: PeftSource, rotated: int = 2, **changes: Any) -> Any:
    module = "model.layers.0.self_attn"
    turns = [node(module, "RotaryEmbedding", f"x{i}") for i in range(rotated)]
    for i, one in enumerate(turns):
        one.output[0] = f"{module}/turned{i}"
    given = [one.output[0] for one in turns]
    nodes = [*turns, node(module, "GroupQueryAttention", *given, **changes)]
    return attributes(suspect(qwen2, module, nodes, random(1, 3, 32), manifest=CAUSAL))


def test_a_fused_attention_has_the_models_window_scale_and_rotation(qwen2):
    scaling = 8**-0.5
    assert fused(qwen2, scale=scaling) is None
    assert words(fused(qwen2, local_window_size=7)) == (
        "its sliding window is 7, but the model's is None"
    )
    assert "only one of queries and keys is rotated" in words(fused(qwen2, rotated=1))
    assert words(fused(qwen2, scale=1.0)) == (
        f"scores are scaled by 1, but the model's scale is {scaling:g}"
    )


def test_an_encoders_fused_attention_has_the_models_scale_and_hides_the_padding(bert):
    def found(keys: str, **changes: Any) -> Any:
        cast = node("", "Cast", "attention_mask")
        turned = node("", "Sub", "one", cast.output[0])
        given = ["q", "k", "v", "", {"cast": cast.output[0], "turned": turned.output[0]}.get(keys)]
        inputs = [one for one in given if one is not None]
        nodes = [cast, turned, node(ATTENTION, "MultiHeadAttention", *inputs, **changes)]
        return padded(suspect(bert, ATTENTION, nodes, random(1, 8, 32)))

    scaling = 8**-0.5
    assert found("cast", scale=scaling) is None
    assert words(found("cast", scale=1.0)) == (
        f"scores are scaled by 1, but the model's scale is {scaling:g}"
    )
    assert words(found("", scale=scaling)) == "mask value: padding is not masked"
    assert "not the request's padding" in words(found("turned", scale=scaling))


def attended(peft: PeftSource, weights: np.ndarray, **changes: Any) -> Any:
    softmax = node(ATTENTION, "Softmax", "scores")
    nodes = [softmax, node(ATTENTION, "MatMul", softmax.output[0], "values")]
    values = {softmax.output[0]: weights}
    return mask(suspect(peft, ATTENTION, nodes, random(1, 8, 32), values=values, **changes))


def test_attention_on_padding_is_a_wrong_mask(bert):
    weights = np.zeros((1, 4, 10, 10), np.float32)
    weights[..., :8] = random(1, 4, 10, 8)
    assert attended(bert, weights) is None
    weights[0, 1, 2, 9] = 0.36
    assert words(attended(bert, weights)) == (
        "mask value: a token puts 36% of a head's attention where it must not look"
    )


def test_attention_on_the_future_is_a_wrong_mask(qwen2):
    weights = np.tril(np.abs(random(1, 4, 3, 11)), k=8)
    weights[..., 5:8] = 0  # slots that are free
    feed = {"past_lengths": np.array([5]), "input_ids": np.zeros((1, 3), np.int64)}
    assert attended(qwen2, weights, feed=feed, manifest=CAUSAL) is None
    weights[0, 0, 0, 10] = 0.5
    assert "50%" in words(attended(qwen2, weights, feed=feed, manifest=CAUSAL))


def test_a_frozen_prefix_is_seen_and_the_future_is_not(qwen2):
    stored = prompt(kv=np.zeros((2, 2, 2, 5, 8), np.float32))
    weights = np.tril(np.abs(random(1, 4, 3, 8)), k=5)
    assert attended(qwen2, weights, stored=stored) is None
    weights[0, 0, 1, 7] = 0.25
    assert "25%" in words(attended(qwen2, weights, stored=stored))


def test_attention_on_all_alike_hides_the_scores(bert):
    weights = np.full((1, 4, 8, 8), 1 / 8, np.float32)
    assert "it hides the scores themselves" in words(attended(bert, weights))


def test_scores_without_the_models_scale_are_named(bert):
    nodes = [node(ATTENTION, "Mul", "q", "scale"), node(ATTENTION, "Softmax", "scores")]
    nodes[1].input[0] = nodes[0].output[0]

    def found(value: float) -> Any:
        constants = {"scale": np.array(value, np.float32)}
        return scale(suspect(bert, ATTENTION, nodes, random(1, 8, 32), constants=constants))

    assert found(8**-0.5) is None
    assert words(found(1.0)) == f"attention scores are not scaled by the model's {8**-0.5:g}"


# Numbers


def test_infinity_in_half_precision_is_an_overflow(bert):
    infinite = np.full((1, 8, 32), np.inf, np.float32)
    nodes = [node(DENSE, "MatMul", "x")]
    assert words(not_finite(suspect(bert, DENSE, nodes, infinite))).startswith("NaN or infinity")
    half = suspect(bert, DENSE, nodes, infinite.astype(np.float16))
    assert "fp16 overflow" in words(not_finite(half))
    cast = [*nodes, node(DENSE, "Cast", nodes[0].output[0], to=onnx.TensorProto.FLOAT16)]
    assert "fp16 overflow" in words(not_finite(suspect(bert, DENSE, cast, infinite)))
    assert not_finite(suspect(bert, DENSE, nodes, random(1, 8, 32))) is None


def test_a_multiple_of_the_models_numbers_is_named_with_its_factor(bert):
    theirs, nodes = random(1, 8, 32), [node(DENSE, "MatMul", "x")]
    made = suspect(bert, DENSE, nodes, 0.999 * theirs, theirs)
    assert words(multiple(made)) == "it gives 0.999 times what the model gives"
    assert multiple(suspect(bert, DENSE, nodes, theirs[:, ::-1], theirs)) is None


# All together


def test_what_is_read_off_a_constant_is_believed_before_what_numbers_suggest(bert, right):
    weight, bias = right
    made = dense(bert, 2 * weight, bias)
    assert "numbers of its weight" in likely_cause(made).words


def test_a_fused_operator_is_blamed_where_nothing_is_found(bert):
    theirs = random(1, 8, 32)
    nodes = [node("bert.encoder", "SimplifiedLayerNormalization", "x")]
    found = likely_cause(suspect(bert, "bert.encoder", nodes, theirs**2, theirs))
    assert found.words == (
        "the fused operator SimplifiedLayerNormalization computes something else than the module"
    )
    plain = [node("bert.encoder", "Add", "x")]
    assert likely_cause(suspect(bert, "bert.encoder", plain, theirs**2, theirs)).words == ""


def test_every_detector_is_asked():
    tested = {activation, attributes, epsilon, heads, learned, mask, multiple, not_finite}
    tested |= {padded, prefix_kv, rotary, scale, table, virtual_tokens, weights}
    assert set(DETECTORS) == tested
