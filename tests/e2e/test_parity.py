"""Encoders and the commonest decoders, in each task, against PEFT, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import tiny
from support.alone import DECODERS, NEAR, SUPPORTED, peft_alone, random_rows

import ptdeploy
from ptdeploy.parity.cases import pad


@pytest.mark.parametrize(("architecture", "task"), SUPPORTED)
def test_every_batch_equals_peft_row_by_row(compiled, architecture, task):
    one = compiled(architecture, task)
    engine = ptdeploy.load(one.bundle)
    rows = random_rows()
    want = [peft_alone(one.trained.model, row, task) for row in rows]
    assert max(np.ptp(array) for array in want) > 0.1, "near-constant logits would hide faults"
    for size in (1, 3, 8):
        for padding in ("right", "left"):
            got = engine.logits(*pad(rows[:size], padding))
            for ours, theirs in zip(got, want[:size], strict=True):
                assert ours.shape == theirs.shape
                assert np.abs(ours - theirs).max() < NEAR


@pytest.mark.parametrize(("architecture", "task"), SUPPORTED)
def test_the_text_changes_the_answer(compiled, architecture, task):
    engine = ptdeploy.load(compiled(architecture, task).bundle)
    first, second = engine.logits([[5, 6, 7], [50, 60, 70]])
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_the_prompt_changes_the_answer(compiled, architecture, task):
    one = compiled(architecture, task)
    row = random_rows()[4]
    (ours,) = ptdeploy.load(one.bundle).logits([row])
    ids = torch.from_numpy(row)[None]
    with torch.no_grad():
        bare = one.trained.model.get_base_model()(input_ids=ids).logits[0].numpy()
    assert np.abs(ours - bare).max() > 1e-2


@pytest.mark.parametrize("architecture", DECODERS)
def test_greedy_tokens_of_an_unequal_batch_equal_peft_generate_alone(compiled, architecture):
    one = compiled(architecture, "CAUSAL_LM")
    rows = [row.tolist() for row in random_rows()[:5]]
    got = ptdeploy.load(one.bundle).generate(rows, max_new_tokens=20, eos_token_ids=())
    config = one.trained.model.get_base_model().generation_config
    config.eos_token_id = None
    for row, ours in zip(rows, got, strict=True):
        ids = torch.tensor([row])
        theirs = one.trained.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
        assert ours.token_ids == theirs[0, -20:].tolist()


@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("qwen2", "SEQ_CLS")]
)
def test_text_up_to_the_last_position_is_right_and_one_more_is_refused(
    compiled, architecture, task
):
    one = compiled(architecture, task)
    engine = ptdeploy.load(one.bundle)
    limit = engine.limits.max_sequence
    assert limit == 64 - 5
    row = np.arange(limit) % tiny.VOCABULARY
    (ours,) = engine.logits([row])
    assert np.abs(ours - peft_alone(one.trained.model, row, task)).max() < NEAR
    with pytest.raises(ptdeploy.InputError, match="at most 59 fit"):
        engine.logits([np.zeros(limit + 1, np.int64)])


def test_a_sliding_window_does_not_bound_the_context_of_a_fused_graph(compiled):
    limits = ptdeploy.load(compiled("mistral", "CAUSAL_LM").bundle).limits
    assert (limits.max_context, limits.max_sequence) == (64, 59)


def test_roberta_positions_start_after_its_padding_index(compiled):
    limits = ptdeploy.load(compiled("roberta", "SEQ_CLS").bundle).manifest.limits
    assert limits.max_context == 62


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
@pytest.mark.parametrize("virtual_tokens", [1, 40])
def test_a_full_state_dict_compiles_to_what_its_live_model_gives(tmp_path, encoder, virtual_tokens):
    trained = tiny.make(
        tmp_path, "gpt2", "CAUSAL_LM", encoder=encoder, virtual_tokens=virtual_tokens
    )
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    bundle = ptdeploy.compile(
        tmp_path / "model.pt", target="ort", base=str(trained.base), output=tmp_path / "bundle"
    )
    row = random_rows()[4]
    (ours,) = ptdeploy.load(bundle.path).logits([row])
    assert np.abs(ours - peft_alone(trained.model, row, "CAUSAL_LM")).max() < NEAR


def test_a_full_state_dict_needs_only_the_configuration_of_its_base(tmp_path):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    (trained.base / "model.safetensors").unlink()
    from ptdeploy.bundle.task import Task

    bundle = ptdeploy.compile(
        tmp_path / "model.pt",
        target="ort",
        base=str(trained.base),
        output=tmp_path / "bundle",
        task=Task.SEQ_CLS,
    )
    row = random_rows()[4]
    (ours,) = ptdeploy.load(bundle.path).logits([row])
    assert np.abs(ours - peft_alone(trained.model, row, "SEQ_CLS")).max() < NEAR


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_a_reference_that_is_off_by_a_thousandth_is_a_mismatch(compiled, task):
    """The parity check can fail."""
    from dataclasses import replace

    from ptdeploy.bundle import read_bundle
    from ptdeploy.parity.compare import compare
    from ptdeploy.parity.reference.store import load_reference

    architecture = "bert" if task == "SEQ_CLS" else "qwen2"
    bundle = compiled(architecture, task).bundle
    reference = load_reference(read_bundle(bundle))
    engine = ptdeploy.load(bundle)
    assert compare(engine, reference).passed
    moved = replace(reference.rows[2], logits=reference.rows[2].logits + np.float32(1e-3))
    report = compare(
        engine, replace(reference, rows=(*reference.rows[:2], moved, *reference.rows[3:]))
    )
    assert not report.passed
    assert any("max abs 0.001" in line for line in report.failures())
