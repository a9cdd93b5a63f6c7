"""Properties that hold for any input: parsers, batching, the prompt encoder, graph passes."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxscript import FLOAT, script
from onnxscript import opset18 as op
from peft import PromptEncoder, PromptEncoderConfig

from ptdeploy.bundle import Limits
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import CheckpointError
from ptdeploy.parity.cases import pad
from ptdeploy.parity.reference import Greedy, Reference, Row
from ptdeploy.parity.reference.store import _read, save_reference
from ptdeploy.passes import PassContext, run_passes
from ptdeploy.program.prompt import evaluate_prompt_encoder
from ptdeploy.runtime.batching import pack, rows_of
from ptdeploy.runtime.engine import softmax
from ptdeploy.source.checkpoint.peft_config import read_peft_config
from ptdeploy.source.checkpoint.tensors import read_tensors
from ptdeploy.source.checkpoint.types import PromptEncoderState

MODEST = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIMITS = Limits(max_sequence=40, max_context=50, vocab_size=100)
ROWS = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=40).map(lambda r: np.array(r, np.int64)),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS, padding=st.sampled_from(["left", "right"]))
@MODEST
def test_rows_come_back_from_either_padding(rows, padding):
    back = rows_of(*pad(rows, padding), LIMITS)
    assert all(np.array_equal(a, b) for a, b in zip(rows, back, strict=True))
    batch = pack(back)
    assert batch.lengths.tolist() == [row.size for row in rows]
    for row, ids, mask in zip(rows, batch.input_ids, batch.attention_mask, strict=True):
        assert np.array_equal(ids[: row.size], row)
        assert mask.tolist() == [1] * row.size + [0] * (mask.size - row.size)


CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "peft_type": st.sampled_from(["P_TUNING", "LORA", None, 3]),
        "task_type": st.sampled_from(["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", None, 7, []]),
        "num_virtual_tokens": st.integers(-2, 9) | st.text(max_size=2) | st.none() | st.booleans(),
        "token_dim": st.integers(-2, 9) | st.floats() | st.none(),
        "encoder_reparameterization_type": st.sampled_from(["MLP", "LSTM", "GRU", None, 1]),
        "base_model_name_or_path": st.text(max_size=4) | st.none() | st.integers(),
        "num_transformer_submodules": st.integers(0, 3) | st.none() | st.text(max_size=1),
    },
)


@given(config=CONFIG)
@MODEST
def test_any_adapter_config_is_read_or_refused(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    try:
        read = read_peft_config(tmp_path / "adapter_config.json")
    except CheckpointError:
        return
    assert config["peft_type"] == "P_TUNING"
    assert read.num_virtual_tokens >= 1


@given(content=st.binary(max_size=200), suffix=st.sampled_from([".safetensors", ".bin", ".pt"]))
@MODEST
def test_any_bytes_are_refused_as_tensors(tmp_path, content, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(content)
    try:
        read_tensors(file)
    except CheckpointError:
        return
    assert suffix == ".safetensors"


@given(
    kind=st.sampled_from(["MLP", "LSTM"]),
    tokens=st.integers(1, 30),
    width=st.integers(1, 40),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@MODEST
def test_the_prompt_encoder_gives_what_peft_gives(kind, tokens, width, hidden, layers, seed):
    torch.manual_seed(seed)
    config = PromptEncoderConfig(
        num_virtual_tokens=tokens,
        token_dim=width,
        encoder_hidden_size=hidden,
        encoder_reparameterization_type=kind,
        encoder_num_layers=2 if kind == "MLP" else layers,
        num_transformer_submodules=1,
    )
    encoder = PromptEncoder(config).eval()
    with torch.no_grad():
        want = encoder(torch.arange(tokens)).numpy()
    state = PromptEncoderState(kind, {n: t.numpy() for n, t in encoder.state_dict().items()})
    assert np.abs(evaluate_prompt_encoder(state) - want).max() < 1e-6
    assert state.hidden_size == hidden
    assert state.num_layers == (2 if kind == "MLP" else layers)


@given(rows=ROWS, classes=st.integers(1, 9), departure=st.none() | st.floats(0, 9))
@MODEST
def test_a_reference_round_trips(tmp_path, rows, classes, departure):
    random = np.random.default_rng(0)
    reference = Reference(
        tuple(Row(ids, random.normal(size=(ids.size, classes)).astype("f4")) for ids in rows),
        tuple(Greedy(ids, ids, ids.astype("f4")) for ids in rows[:2]),
        ("a", "ü"),
        ((1, 2), ()),
        "somebody",
        departure,
    )
    save_reference(reference, tmp_path)
    back = _read(tmp_path / "reference.safetensors")
    assert (back.texts, back.text_ids) == (reference.texts, reference.text_ids)
    assert back.padded_departure == departure
    for one, two in zip(reference.rows, back.rows, strict=True):
        assert np.array_equal(one.logits, two.logits)
        assert np.array_equal(one.ids, two.ids)


def test_a_large_vocabulary_keeps_its_last_positions_only(tmp_path):
    logits = np.arange(4 * 200_000, dtype=np.float32).reshape(4, 200_000)
    save_reference(Reference((Row(np.arange(4), logits),), ()), tmp_path)
    (row,) = _read(tmp_path / "reference.safetensors").rows
    assert np.array_equal(row.logits, logits[-1:])


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=9))
@MODEST
def test_probabilities_sum_to_one(logits):
    probabilities = softmax(np.array([logits], np.float32))
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities >= 0).all()


@script(default_opset=op)
def messy(x: FLOAT["batch", 4]) -> FLOAT["batch", 4]:  # noqa: F821, UP037 (axis names)
    two = op.Add(op.Constant(value_float=1.0), op.Constant(value_float=1.0))
    first = op.Mul(x, two)
    again = op.Mul(x, two)
    unused = op.Neg(first)  # noqa: F841
    return op.Add(op.Tanh(first), op.Identity(again))


SPECS = (
    TensorSpec("x", "float32", ("batch", 4), "input"),
    TensorSpec("return_val", "float32", ("batch", 4), "output"),
)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@given(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4), min_size=1))
@settings(max_examples=15, deadline=None)
def test_passes_change_the_graph_and_no_value(rows):
    x = np.array(rows, np.float32)
    proto = messy.to_model_proto()
    before = ir.from_proto(proto)
    specs = (SPECS[0], TensorSpec(before.graph.outputs[0].name, *_rest(SPECS[1])))
    context = PassContext(Signature(specs[:1], specs[1:]))
    after = run_passes(ir.from_proto(proto), context)
    assert np.array_equal(run(before, x), run(after, x))
    assert len(list(after.graph)) < len(list(before.graph))


def test_a_graph_that_is_not_its_signature_is_refused():
    context = PassContext(Signature(SPECS[:1], (TensorSpec("logits", *_rest(SPECS[1])),)))
    with pytest.raises(ValueError, match="logits"):
        run_passes(ir.from_proto(messy.to_model_proto()), context)


def _rest(spec: TensorSpec) -> tuple[str, tuple[int | str, ...], str]:
    return spec.dtype, spec.shape, spec.meaning
