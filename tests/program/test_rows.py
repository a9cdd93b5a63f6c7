"""One graph for many prompts: a row is as if alone, whatever prompts the other rows have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from support import tiny
from support.prompts import Mixed, Row, Tuned
from torch import nn

from ptdeploy.bundle import read_bundle
from ptdeploy.program.head import RowLinear, RowNorm, _Given

ALL = [
    ("bert", "SEQ_CLS"),
    ("roberta", "SEQ_CLS"),
    ("electra", "SEQ_CLS"),
    ("distilbert", "SEQ_CLS"),
    ("bert", "TOKEN_CLS"),
    ("qwen2", "SEQ_CLS"),
    ("gpt2", "SEQ_CLS"),
]
# Virtual tokens and labels of the prompts beside the bundle's own, which has 5 and 3.
OTHERS = ((9, 2), (3, 6))
ROWS: list[Row] = [
    ([5, 6, 7], 1),
    ([40], 0),
    (list(range(10, 30)), 2),
    ([9, 10, 11, 12], None),
    (list(range(50, 62)), 1),
    ([9, 10, 11, 12], 0),
    ([5, 6, 7], 2),
]


@dataclass(frozen=True)
class Many:
    """One graph in ONNX Runtime, and the prompts that there are for it."""

    session: Any
    inputs: Sequence[Any]
    tuned: list[Tuned]

    def run(
        self, rows: Sequence[Row], prompts: int = 3, fill: float = 0, **instead: Any
    ) -> list[Any]:
        """Each row's own logits, with so many prompts stacked; `instead` are inputs by role."""
        stacked = [one.prompt for one in self.tuned[:prompts]]
        mixed = Mixed(self.inputs, stacked, tiny.VOCABULARY, fill)
        feed = mixed.feed(rows)
        feed.update({s.name: instead[s.role] for s in self.inputs if s.role in instead})
        (logits,) = self.session.run(["logits"], feed)
        found = []
        for (ids, which), row in zip(rows, logits, strict=True):
            if row.ndim == 2:
                first = mixed.before(which).size
                row = row[first : first + len(ids)]
            found.append(row[..., : self._labels(which)])
        return found

    def alone(self, row: Row) -> NDArray[np.float32]:
        ids, which = row
        return self.tuned[which or 0].alone(ids, which is not None)

    def _labels(self, which: int | None) -> int:
        return int(self.tuned[which or 0].model.config.num_labels)


@pytest.fixture(scope="module", params=ALL, ids=" ".join)
def many(request, compiled, tmp_path_factory) -> Many:
    architecture, task = request.param
    made = compiled(architecture, task)
    folder = tmp_path_factory.mktemp("prompts")
    tuned = [Tuned.of(made.trained)]
    for seed, (tokens, labels) in enumerate(OTHERS, 1):
        another = tiny.another(folder / str(seed), made.trained, task, tokens, labels, seed)
        tuned.append(Tuned.of(another))
    return Many(_session(made.bundle), read_bundle(made.bundle).manifest.graph.inputs, tuned)


def _session(bundle: Path) -> Any:
    return onnxruntime.InferenceSession(
        str(bundle / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def _difference(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_a_row_is_as_if_alone_whatever_prompts_the_others_have(many, prompts):
    rows = [row for row in ROWS if (row[1] or 0) < prompts]
    for row, found in zip(rows, many.run(rows, prompts), strict=True):
        assert _difference(found, many.alone(row)) < 1e-5, row


def test_a_row_without_a_prompt_is_the_base_models(many):
    rows: list[Row] = [(ids, None) for ids, _ in ROWS]
    for row, found in zip(rows, many.run(rows), strict=True):
        assert _difference(found, many.alone(row)) < 1e-5, row


def test_one_text_with_each_prompt_gets_each_ones_answer(many):
    rows: list[Row] = [([5, 6, 7, 8], which) for which in (2, 0, 1, None)]
    answers = many.run(rows)
    for row, found in zip(rows, answers, strict=True):
        assert _difference(found, many.alone(row)) < 1e-5, row
    # The first prompt and none have the same head, so that the prompt is all the difference.
    assert _difference(answers[1], answers[3]) > 1e-3


def test_another_prompts_head_gives_another_answer(many):
    """That the right one is taken shows only because the wrong one would."""
    rows: list[Row] = [([5, 6, 7], 1), ([9, 10, 11, 12], 1)]
    for row, found in zip(rows, many.run(rows, prompt=np.full(2, 2, np.int64)), strict=True):
        assert _difference(found, many.alone(row)) > 1e-3


def test_another_prompts_virtual_tokens_give_another_answer(many):
    """With the head that is right."""
    text = [9, 10, 11, 12]
    swapped: list[Row] = [(text, 2), (text, 0)]
    feed = {"prompt": np.array([1, 1], np.int64)}
    if any(spec.role == "prefix" for spec in many.inputs):
        # One index chooses prefix and head: fewer virtual tokens of the right prompt, then.
        swapped = [(text, 1), (text, 1)]
        feed = {"lengths": np.array([8, 0], np.int64)}
    wanted = many.alone((text, 1))
    for found in many.run(swapped, **feed):
        assert _difference(found[..., :2], wanted) > 1e-3


def test_what_fills_the_shorter_heads_and_prefixes_changes_nothing(many):
    before, after = many.run(ROWS), many.run(ROWS, fill=7)
    assert all(_difference(one, two) < 1e-5 for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 8)], ids=["text", "tokens"])
@pytest.mark.parametrize("is_output", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_each_row_goes_through_its_own_linear(shape, is_output, bias):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 6, bias=bias) for _ in range(3)]
    hidden, rows = torch.randn(shape), torch.tensor([2, 0, 1, 2])
    taken = RowLinear("head", _given(layers, rows), bias, is_output)
    _holds_for_each_row(taken, layers, hidden, rows)


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 8)], ids=["text", "tokens"])
@pytest.mark.parametrize("bias", [True, False])
def test_each_row_goes_through_its_own_norm(shape, bias):
    torch.manual_seed(0)
    layers = [nn.LayerNorm(8, eps=1e-3, bias=bias) for _ in range(3)]
    for parameter in (one for layer in layers for one in layer.parameters()):
        nn.init.normal_(parameter)
    hidden, rows = torch.randn(shape), torch.tensor([2, 0, 1, 2])
    _holds_for_each_row(RowNorm("head", _given(layers, rows), layers[0]), layers, hidden, rows)


def _given(layers: Sequence[nn.Module], rows: torch.Tensor) -> _Given:
    names = [name for name, _ in layers[0].named_parameters()]
    stacked = {
        f"head.{name}": torch.stack([dict(one.named_parameters())[name] for one in layers])
        for name in names
    }
    return _Given(rows, stacked)


def _holds_for_each_row(
    taken: nn.Module, layers: Sequence[nn.Module], hidden: torch.Tensor, rows: torch.Tensor
) -> None:
    with torch.no_grad():
        found = taken(hidden)
        for row, which in enumerate(rows.tolist()):
            wanted = layers[which](hidden[row : row + 1])[0]
            assert torch.allclose(found[row], wanted, atol=1e-6)
            assert not torch.allclose(found[row], layers[which - 1](hidden[row]), atol=1e-3)
