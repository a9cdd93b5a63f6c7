"""What is known where the first tensor does not match, for the detectors to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle
from ptdeploy.bundle.task import TensorRole
from ptdeploy.parity.locate.graph import ModuleGraph
from ptdeploy.parity.locate.trace import Event
from ptdeploy.runtime import ENGINES
from ptdeploy.runtime.prompts import Prompt
from ptdeploy.source.checkpoint.peft_objects import DEFAULT_ADAPTER

if TYPE_CHECKING:
    import onnx
    import torch

    from ptdeploy.parity.reference.peft import PeftSource

# Operators that do the work of a whole part of a module.
FUSED = {
    "GroupQueryAttention",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "MultiHeadAttention",
    "Attention",
}


@dataclass(frozen=True)
class Suspect:
    """The first tensor that does not match: PyTorch's event, the graph's value, and around them.

    `behind` are the nodes that compute the value from what still matches. Row `row` of the batch
    that was fed (`lengths` are its rows' tokens) is compared, after `prefix` virtual tokens.
    `prompt` is the bundle's own, as its file holds it.
    `values` are what was taken out of the graph, by name, and `feed` what it was given.
    """

    module: str
    event: Event
    value: str
    ours: NDArray[Any] = field(repr=False)
    theirs: NDArray[np.float32] = field(repr=False)
    graph: ModuleGraph = field(repr=False)
    behind: Sequence[onnx.NodeProto] = field(repr=False)
    prefix: int
    row: int
    lengths: tuple[int, ...]
    values: Mapping[str, NDArray[Any]] = field(repr=False)
    feed: Mapping[str, NDArray[Any]] = field(repr=False)
    peft: PeftSource = field(repr=False)
    bundle: Bundle = field(repr=False)
    prompt: Prompt = field(repr=False)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The module's own nodes that the value depends on."""
        live = {id(node) for node in self.graph.behind(self.value, set())}
        return [n for n in self.graph.nodes(self.module, inside=False) if id(n) in live]

    @property
    def constants(self) -> list[tuple[str, NDArray[Any]]]:
        """Names and contents of what the module's own nodes read that no request changes.

        Those are the graph's constants, and the parameters of the prompt's own trained head.
        """
        read = {name for node in self.nodes for name in node.input}
        head = [(name, array) for name, array in self.prompt.head.items() if name in read]
        return [*self.graph.constants(self.nodes), *head]

    def given(self, role: TensorRole) -> NDArray[Any]:
        """What the graph was given as the input of that role."""
        inputs = self.bundle.manifest.graph.inputs
        return self.feed[next(spec.name for spec in inputs if spec.role == role)]

    @property
    def torch_module(self) -> torch.nn.Module | None:
        """PyTorch's module; None where the graph's own code made the value."""
        try:
            base = self.peft.model.get_base_model()
            module: torch.nn.Module = base.get_submodule(self.module)
        except AttributeError:
            return None
        # PEFT keeps a trained head beside the one it replaces.
        trained = getattr(module, "modules_to_save", None)
        if trained is not None:
            module = trained[DEFAULT_ADAPTER]
        return module if self.module else None

    @property
    def attends(self) -> bool:
        """Whether the value comes out of an attention."""
        return any(node.op_type in ("Softmax", *FUSED) for node in self.behind)

    @property
    def is_causal(self) -> bool:
        """Whether the model continues its text."""
        return ENGINES[self.bundle.manifest.task].writes


@dataclass(frozen=True)
class Cause:
    """What is wrong in words, and the module to blame if it is another than the suspect's."""

    words: str
    module: str = ""


def permuted(ours: NDArray[Any], theirs: NDArray[np.float32], near: float = 1e-4) -> bool:
    """Whether the rows are the same ones in another order."""
    if ours.shape != theirs.shape or np.allclose(ours, theirs, atol=near):
        return False
    left, right = (a[np.lexsort(np.round(a, 3).T[::-1])] for a in (ours, theirs))
    return bool(np.allclose(left, right, atol=near))
