"""Target trt: its options, and the profiles and limits that follow from them and the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptdeploy.bundle import Limits, RequestLimits
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.errors import InputError
from ptdeploy.targets.trt.options import (
    Range,
    TrtOptions,
    checked_options,
    read_compute_capabilities,
    read_profile,
)
from ptdeploy.targets.trt.plan import DEFAULT_ROOM, bounded, profiles, refuse_split_rows


@given(
    st.dictionaries(
        st.sampled_from(["batch", "seq"]),
        st.tuples(st.integers(1, 999), st.integers(0, 999), st.integers(0, 999)),
        min_size=1,
    )
)
def test_a_profile_is_read_as_it_was_written(axes):
    ranges = {name: Range(1, low, low + more) for name, (low, _, more) in axes.items()}
    text = ",".join(f"{name}={r.min}:{r.opt}:{r.max}" for name, r in ranges.items())
    assert read_profile(text) == ranges


@given(st.text(alphabet="batchseq=:,0123456789 -x", max_size=40))
def test_any_other_profile_is_refused_in_words(text):
    try:
        ranges = read_profile(text)
    except InputError:
        return
    assert ranges
    assert all(1 == r.min <= r.opt <= r.max for r in ranges.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not one of"),
        ("batch=1:2", "is not one of"),
        ("batch=1:2:3,batch=1:2:3", "is not one of"),
        ("rows=1:2:3", "is not one of"),
        ("batch=3:2:1", "must grow"),
        ("batch=0:1:2", "must grow"),
        ("seq=2:4:8", "one row of one token"),
        ("batch=1:2:٣", "is not one of"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(text, words):
    with pytest.raises(InputError, match=words):
        read_profile(text)


@pytest.mark.parametrize(
    "options",
    [
        TrtOptions(flavor="openvino"),
        TrtOptions(hardware_compatibility="all"),
        TrtOptions(workspace=0),
        TrtOptions(optimization_level=6),
        TrtOptions(compute_capability="sm90"),
        TrtOptions(compute_capability="8.6,8.6"),
        TrtOptions(compute_capability="current,8.6"),
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(InputError, match="must be"):
        checked_options(options)


def test_compute_capabilities_are_read():
    assert read_compute_capabilities(None) == ()
    assert read_compute_capabilities("8.6, 12.0") == ("8.6", "12.0")
    assert read_compute_capabilities("current") == ("current",)


def test_given_options_have_the_names_of_the_command_line():
    assert TrtOptions().given() == []
    options = TrtOptions(flavor="rtx", keep_onnx=True, cache=False)
    assert options.given() == ["--trt-flavor", "--keep-onnx", "--no-engine-cache"]


def request_limits(
    context: int, text: int, vocabulary: int, max_batch: int | None = None
) -> RequestLimits:
    """Of a model of so many positions, of which a prompt leaves so many to the text."""
    return Limits(context, vocabulary, max_batch).beside(context - text)


def test_a_classifier_gets_one_profile_up_to_its_models_limits():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    assert limits == request_limits(512, 492, 30522, 32)
    ids = TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), "")
    (one,) = profiles(Signature((ids,), ()), limits, TrtOptions())
    assert one.shapes == {"input_ids": ((1, 1), (8, 128), (32, 492))}
    options = TrtOptions(profile="batch=1:2:4,seq=1:16:64")
    limits = bounded(request_limits(512, 492, 30522), options, False, None)
    assert (limits.max_batch, limits.max_sequence, limits.max_context) == (4, 64, 84)
    (one,) = profiles(Signature((ids,), ()), limits, options)
    assert one.shapes == {"input_ids": ((1, 1), (2, 16), (4, 64))}


@pytest.mark.parametrize(
    ("profile", "longest"), [(None, 4096), ("seq=1:128:32748", 32748), ("batch=1:2:4", 4096)]
)
def test_a_classifier_takes_longer_texts_only_where_it_is_told_to(profile, longest):
    """Each context's scratch memory is that of the largest request: 9 GB of 32 rows of 32768."""
    model = request_limits(32768, 32748, 151936)
    limits = bounded(model, TrtOptions(profile=profile), False, None)
    assert (limits.max_sequence, limits.max_context) == (longest, longest + 20)


def test_what_belongs_to_prompts_has_room_in_a_profile_for_more_than_one():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    inputs = (
        TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
        TensorSpec("logits_positions", "positions", "int64", ("kept",), ""),
        TensorSpec("virtual_tokens", "table", "float32", ("virtual", 32), ""),
        TensorSpec("prompt_index", "prompt", "int64", ("batch",), ""),
        TensorSpec("head.score.weight", "head", "float32", ("prompts", "classes", 32), ""),
    )
    (one,) = profiles(Signature(inputs, ()), limits, TrtOptions(), {"classes": 5})
    # A row has its virtual tokens before its text.
    assert one.shapes["input_ids"] == ((1, 1), (8, 148), (32, 512))
    # Logits are read of its text, and beside a shorter prompt's row of some virtual tokens too.
    assert one.shapes["logits_positions"] == ((1,), (128,), (512,))
    # A run has no more prompts than rows.
    # Prompts that come later may be as long as the context.
    assert one.shapes["virtual_tokens"] == ((1, 32), (20, 32), (32 * 512, 32))
    assert one.shapes["prompt_index"] == ((1,), (8,), (32,))
    assert one.shapes["head.score.weight"] == ((1, 1, 32), (1, 5, 32), (32, 1024, 32))
    many = {"classes": 1100, "virtual": 20_000}
    (one,) = profiles(Signature(inputs, ()), limits, TrtOptions(), many)
    assert one.shapes["head.score.weight"] == ((1, 1, 32), (1, 1100, 32), (32, 1100, 32))
    assert one.shapes["virtual_tokens"][2] == (20_000, 32)


def test_a_prefix_kv_has_room_in_a_profile_for_prompts_of_any_length():
    limits = bounded(request_limits(512, 492, 30522), TrtOptions(), False, None)
    inputs = (
        TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
        TensorSpec("prefix_kv", "prefix", "float32", ("prefixes", 2, "prefix", 8), ""),
    )
    (one,) = profiles(Signature(inputs, ()), limits, TrtOptions(), {"prefixes": 24, "prefix": 20})
    # Its virtual tokens are no tokens of a row.
    assert one.shapes["input_ids"] == ((1, 1), (8, 128), (32, 492))
    # TensorRT refuses shapes of 2^31 elements: no more than rows can have of this model's layers.
    assert one.shapes["prefix_kv"] == ((1, 2, 1, 8), (24, 2, 20, 8), (32 * 24, 2, 512, 8))


def test_a_decoder_gets_a_decode_and_a_prefill_profile():
    model = request_limits(32768, 32748, 151936)
    limits = bounded(model, TrtOptions(), True, None)
    assert (limits.max_context, limits.max_sequence) == (4352, 4332)
    assert (limits.max_batch, limits.max_prefill) == (8, 512)
    signature = Signature(
        (
            TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), ""),
            TensorSpec("logits_positions", "positions", "int64", ("kept",), ""),
            TensorSpec("past_key_values.0.key", "past", "float32", ("batch", 2, 4352, 8), ""),
        ),
        (),
    )
    decode, prefill = profiles(signature, limits, TrtOptions())
    assert decode.name == "decode"
    assert decode.shapes["input_ids"] == ((1, 1), (1, 1), (8, 1))
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 128), (1, 512))
    assert prefill.shapes["logits_positions"] == ((1,), (1,), (64,))
    assert prefill.shapes["past_key_values.0.key"] == ((1, 2, 4352, 8),) * 3
    assert decode.takes({"input_ids": (3, 1), "logits_positions": (1,)} | kv(3))
    assert not decode.takes({"input_ids": (9, 1), "logits_positions": (1,)} | kv(9))
    assert not prefill.takes({"input_ids": (2, 5), "logits_positions": (1,)} | kv(2))


def kv(rows: int) -> dict[str, tuple[int, ...]]:
    return {"past_key_values.0.key": (rows, 2, 4352, 8)}


@pytest.mark.parametrize("virtual", [0, 1, 4095, 4096, 5000, 9000])
@pytest.mark.parametrize("model", [10000, 131072])
def test_a_decoder_has_the_same_room_for_text_beside_a_prompt_of_any_length(virtual, model):
    limits = bounded(request_limits(model, model - virtual, 100), TrtOptions(), True, None)
    room = min(DEFAULT_ROOM, model - virtual)
    assert room <= limits.max_sequence < room + 256
    assert limits.max_context == limits.max_sequence + virtual
    assert limits.max_context == model or limits.max_context % 256 == 0


def test_a_context_that_was_asked_for_is_kept():
    limits = bounded(request_limits(10000, 9980, 100), TrtOptions(), True, 10000)
    assert limits.max_context == 10000


@pytest.mark.parametrize(
    ("profile", "causal", "max_batch", "words"),
    [
        ("seq=1:10:100", False, None, "goes to 100, but the model has 44"),
        ("seq=1:10:100", True, None, "goes to 100, but the model has 64"),
        ("batch=1:2:4", True, 8, "--max-batch 8"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(profile, causal, max_batch, words):
    with pytest.raises(InputError, match=words):
        bounded(request_limits(64, 44, 100, max_batch), TrtOptions(profile=profile), causal, None)


@pytest.mark.parametrize(
    ("context", "heads", "width", "dtype", "rows", "advice"),
    [
        (41, 2, 8, "float32", 8, "44 or 40, a multiple of 4"),
        (3, 2, 8, "float32", 2, "4, a multiple of 4"),
        (41, 3, 5, "float16", 8, "128, a multiple of 128"),
        (41, 2, 8, "float32", 1, None),
        (40, 2, 8, "float32", 8, None),
        (41, 2, 64, "float16", 8, None),
        (41, 1, 64, "bfloat16", 8, "42 or 40, a multiple of 2"),
    ],
)
@pytest.mark.parametrize("fixed", [True, False])
def test_a_buffer_whose_rows_begin_where_tensorrt_takes_no_memory_is_refused(
    context, heads, width, dtype, rows, advice, fixed
):
    slots = context if fixed else "slots"
    past = TensorSpec("past_key_values.0.key", "past", dtype, ("batch", heads, slots, width), "")
    signature, limits = Signature((past,), ()), request_limits(context, context - 1, 100, rows)
    if advice is None:
        refuse_split_rows(signature, limits)
        return
    with pytest.raises(InputError, match=f"--max-context {context}") as refusal:
        refuse_split_rows(signature, limits)
    assert f"--max-context {advice}" in refusal.value.fix


def test_a_graph_without_a_buffer_has_no_rows_to_split():
    ids = TensorSpec("input_ids", "ids", "int64", ("batch", "sequence"), "")
    refuse_split_rows(Signature((ids,), ()), request_limits(41, 40, 100, 8))


def test_options_of_numpys_kinds_go_on_as_pythons():
    given = TrtOptions(workspace=np.int8(3), optimization_level=np.int64(4), cache=np.bool_(False))
    options = checked_options(given)
    assert options == TrtOptions(workspace=3, optimization_level=4, cache=False)
    assert [type(one) for one in (options.workspace, options.cache)] == [int, bool]
