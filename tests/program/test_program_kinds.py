"""What each program kind answers, of models that take no memory."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import tiny

from ptdeploy.bundle.task import Task
from ptdeploy.program.kinds import KINDS, kind_of, recognised
from ptdeploy.program.kinds.causal import Causal
from ptdeploy.program.kinds.decoder_classifier import DecoderClassifier
from ptdeploy.program.kinds.encoder import SequenceEncoder, TokenEncoder
from ptdeploy.source.base import build_skeleton

OF_THE_TASK = ("auto_class_name", "keeps_kv_buffer", "generates", "has_trained_head")


def skeleton(architecture: str, task: Task) -> transformers.PreTrainedModel:
    return build_skeleton(task, tiny.base_config(architecture), architecture)


@pytest.mark.parametrize(
    ("architecture", "task", "kind"),
    [
        ("bert", Task.SEQ_CLS, SequenceEncoder),
        ("distilbert", Task.SEQ_CLS, SequenceEncoder),
        ("qwen2", Task.SEQ_CLS, DecoderClassifier),
        ("gpt2", Task.SEQ_CLS, DecoderClassifier),
        ("bert", Task.TOKEN_CLS, TokenEncoder),
        ("qwen2", Task.CAUSAL_LM, Causal),
    ],
)
def test_a_models_kind_follows_from_its_task_and_its_head(architecture, task, kind):
    assert type(kind_of(task, skeleton(architecture, task))) is kind


@pytest.mark.parametrize("task", Task)
def test_kinds_of_one_task_answer_alike_what_depends_on_it_alone(task):
    answers = {
        tuple(getattr(kind, name) for name in OF_THE_TASK) for kind in KINDS if kind.task is task
    }
    assert len(answers) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_kind_names_a_class_that_transformers_has(kind):
    assert hasattr(kind.auto_class(), "from_config")


def test_what_starts_from_a_prefix_kv_is_a_decoder():
    assert {type(kind) for kind in KINDS if kind.needs_prefix_kv} == {DecoderClassifier, Causal}


def test_segments_are_an_encoders():
    assert {type(kind) for kind in KINDS if kind.takes_segments} == {SequenceEncoder, TokenEncoder}


@pytest.mark.parametrize(
    ("weights", "heads", "task"),
    [
        ({"lm_head.weight", "model.embed_tokens.weight"}, (), Task.CAUSAL_LM),
        ({"lm_head.weight", "score.weight"}, {"score.weight"}, None),
        ({"classifier.weight"}, {"classifier.weight"}, None),
        ((), (), None),
    ],
)
def test_only_a_language_models_head_says_the_task_by_itself(weights, heads, task):
    assert recognised(weights, heads) is task


@pytest.mark.parametrize("task", [Task.TOKEN_CLS, Task.CAUSAL_LM])
def test_logits_of_virtual_tokens_are_left_out(task):
    logits = torch.arange(14.0).reshape(7, 2)
    assert torch.equal(kind_of(task).text_logits(logits, 4), logits[3:])


def test_the_one_answer_of_a_text_is_not_cut_however_long_the_text_is():
    logits = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(kind_of(Task.SEQ_CLS).text_logits(logits, 2), logits)
