"""Programs that are decomposed where they are give what torch's own decomposition gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from ptdeploy.program.decompose import decomposed_in_place


class _Module(nn.Module):
    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.fixture
def left_to_torch(monkeypatch) -> list[ExportedProgram]:
    """The programs that torch decomposed by itself."""
    programs = []
    theirs = ExportedProgram.run_decompositions

    def recorded(program, *args, **options):
        programs.append(program)
        return theirs(program, *args, **options)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", recorded)
    return programs


def _outputs(forward: Callable[[torch.Tensor], torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """What a function gives as a graph, of whose input only the last two axes are fixed, and in
    torch, for a batch of another size than it was exported with."""
    module = _Module(forward).eval()
    with torch.no_grad(), decomposed_in_place():
        exported = torch.onnx.export(
            module,
            (torch.randn(2, 3, 4, 6),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},),
            verbose=False,
            optimize=False,
        )
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return got, module(x.clone()).numpy()


def _normalized(x: torch.Tensor) -> torch.Tensor:
    x /= x.sum(dim=-1, keepdim=True)
    return x


def _seen_through_a_view(x: torch.Tensor) -> torch.Tensor:
    product = x * 3
    view = product.transpose(2, 3)
    product += 1
    return view * 2


def _read_again(x: torch.Tensor) -> torch.Tensor:
    product = x.matmul(torch.ones(6, 8))
    product.transpose(2, 3).mul_(3.0)
    return product + 1


KNOWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a cast": lambda x: (x * 9).to(torch.int32).to(torch.float32) + 1,
    "a cast to the same": lambda x: x.to(torch.float32).to("cpu") + 1,
    "a cast that is an output": lambda x: (x + 1).to(torch.float32),
    "dropout of a model at rest": lambda x: nn.functional.dropout(x, 0.5, training=False) * 2,
    "detached": lambda x: (x + 1).detach() * 2,
    "contiguous": lambda x: x.transpose(1, 2).contiguous().view(x.shape[0], 4, -1) + 1,
    "contiguous already": lambda x: (x + 1).contiguous() * 2,
    "reshaped": lambda x: x.reshape(x.shape[0], -1, 24) + 1,
    "reshaped after a transpose": lambda x: x.transpose(2, 3).reshape(*x.shape[:2], -1) + 1,
    "reshaped to the output": lambda x: x.transpose(1, 3).reshape(x.shape[0], 24, -1),
    "flattened": lambda x: x.transpose(1, 2).flatten(-2) + 1,
    "flattened from the first axis on": lambda x: (x + 1).flatten(0, 1),
    "flattened to one axis": lambda x: x.flatten() + 1,
    "flattened in the middle": lambda x: x.flatten(start_dim=1, end_dim=2) + 1,
    "chunks": lambda x: torch.cat(x.chunk(4, dim=-1)[::-1], dim=-1),
    "chunks of the first axis but two": lambda x: x.chunk(3, 2)[0] + 1,
    "pieces": lambda x: torch.cat(x.split([1, 5], dim=-1)[::-1], dim=-1),
    "a matrix transposed": lambda x: x @ torch.arange(24.0).reshape(4, 6).T,
    "overwritten": lambda x: (x + 1).mul_(x) + 1,
    "overwritten to the output": lambda x: (x + 1).div_(3.0),
    "overwritten after it was read": lambda x: _normalized(x.topk(3)[0]) * 2,
    "overwritten behind views of its own": lambda x: (
        x.matmul(torch.ones(6, 8)).reshape(*x.shape[:2], 4, 2, 4).permute(0, 3, 1, 2, 4).div_(3.0)
    ),
    "subtracted from a number": lambda x: 3 - x,
    "lengths subtracted from the length of an axis": lambda x: (
        x.shape[1] - (x > 0).sum(-1)
    ).float(),
    "an axis split in two": lambda x: x.transpose(1, 2).unflatten(-1, (2, -1)) + 1,
    "the last axis split": lambda x: x.unflatten(-1, (3, 2)).sum(-1) * 2,
    "an axis of any length split": lambda x: torch.cat((x, x), 1).unflatten(1, (2, -1)) + 1,
    "another name": lambda x: torch.ops.aten.alias(x + 1) * 2,
    "another name for the output": lambda x: torch.ops.aten.alias(x + 1),
    "a piece whose end is worked out": lambda x: x[..., : (x > 9).sum().add(2).item()] + 1,
    "squared": lambda x: torch.square(x) + 1,
    "both": lambda x: ((x > 0) & (x < 1)).float(),
    "views": lambda x: x[:, 1:, 2].unsqueeze(1).expand(-1, 2, -1, -1).permute(0, 2, 1, 3) + 1,
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_not_traced_again_and_gives_the_same(name, left_to_torch):
    got, wanted = _outputs(KNOWN[name])
    np.testing.assert_array_equal(got, wanted)
    assert not left_to_torch


UNKNOWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "overwritten and seen through a view": _seen_through_a_view,
    "overwritten behind a view of what is read again": _read_again,
    "subtracted more than once": lambda x: torch.rsub(x, 3, alpha=2),
    "an input that is overwritten": lambda x: x.div_(3.0),
    "overwritten by what keeps its type": lambda x: (x + 1).add_(x.double()),
    "chunks of an axis of any length": lambda x: x.chunk(1, dim=1)[0] + 1,
    "a branch": lambda x: torch.cond(
        x.sum() > 0, lambda y: y + 1, lambda y: y - torch.square(y), (x,)
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_left_to_torch(name, left_to_torch):
    got, wanted = _outputs(UNKNOWN[name])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert left_to_torch


def test_dropout_in_training_still_drops():
    got, _ = _outputs(lambda x: nn.functional.dropout(x + 100, 0.5, training=True))
    assert (got == 0).any()


def test_torch_decomposes_as_before_after_a_block_that_failed():
    before = ExportedProgram.run_decompositions

    def fail() -> None:
        with decomposed_in_place():
            assert ExportedProgram.run_decompositions is not before
            raise ValueError

    with pytest.raises(ValueError, match=""):
        fail()
    assert ExportedProgram.run_decompositions is before
