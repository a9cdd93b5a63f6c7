"""What a compilation asks of a program kind: one way to put a frozen prompt into a base model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ptdeploy.bundle import Route
from ptdeploy.bundle.signature import BATCH, CLASSES, KEPT, PREFIX, PREFIXES, SEQUENCE, VIRTUAL
from ptdeploy.bundle.task import Operators, Task, TensorSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning
    from ptdeploy.targets import Attention

IDS = TensorSpec("input_ids", "ids", "int64", (BATCH, SEQUENCE), "token ids of the text")
MASK = TensorSpec(
    "attention_mask", "mask", "int64", (BATCH, SEQUENCE), "1 for text, 0 for padding on the right"
)
POSITIONS = TensorSpec(
    "logits_positions", "positions", "int64", (KEPT,), "positions of input_ids to get logits for"
)


def table(width: int) -> TensorSpec:
    """The input that virtual tokens are looked up in, by ids behind the model's own."""
    meaning = "virtual tokens of every prompt, looked up by ids from the vocabulary's size on"
    return TensorSpec("virtual_tokens", "table", "float32", (VIRTUAL, width), meaning)


def prefix_inputs(prefix_kv: NDArray[Any]) -> tuple[TensorSpec, TensorSpec]:
    """The inputs of a graph whose rows have a prefix KV, and how much of it is a row's own."""
    _, _, heads, _, width = prefix_kv.shape
    meaning = "prefix KV of every prompt, layer by layer, keys before values"
    shape = (PREFIXES, heads, PREFIX, width)
    return (
        TensorSpec("prefix_kv", "prefix", "float32", shape, meaning),
        TensorSpec("prefix_lengths", "lengths", "int64", (BATCH,), "virtual tokens of each row"),
    )


def any_prefix(layers: int, heads: int, width: int) -> tuple[TensorSpec, TensorSpec]:
    """`prefix_inputs` of a graph whose rows may have none: how many layers a prefix KV has is said
    by its shape, as by no prompt that is there."""
    meaning = "prefix KV of every prompt that has one, keys before values of each layer"
    shape = (PREFIXES, 2 * layers, heads, PREFIX, width)
    return (
        TensorSpec("prefix_kv", "prefix", "float32", shape, meaning),
        TensorSpec("prefix_lengths", "lengths", "int64", (BATCH,), "slots of each row's prefix KV"),
    )


def class_logits(axes: tuple[int | str, ...], labels: int, head: Collection[object]) -> TensorSpec:
    """Class scores: of the prompt's own labels where its head is an input."""
    shape = (*axes, CLASSES if head else labels)
    return TensorSpec("logits", "logits", "float32", shape, "class scores before softmax")


def _never(_: Attention) -> str:
    return ""


def _no(_: Attention) -> bool:
    return False


@dataclass(frozen=True)
class BuildOptions:
    """What a program is built for; one without a KV buffer needs the last alone.

    Without `freeze_kv` the virtual tokens are run, looked up in a table. `operators` are what
    attention is traced as, None where the target has none over a buffer. `refuses` says why the
    target's operator cannot compute a layer, "" where it can.
    `plain` says whether the target runs attention that is traced as none of its operators. `joins`
    says whether it can keep apart rows that come as one sequence.
    With `all_kinds` an encoder takes prompts of virtual tokens and of prefix KV alike.
    """

    freeze_kv: bool = True
    operators: Operators | None = "onnxruntime"
    refuses: Callable[[Attention], str] = _never
    joins: Callable[[Attention], bool] = _no
    plain: bool = True
    all_kinds: bool = False


class ProgramKind(ABC):
    """A task's program on one kind of base model.

    Several kinds may be of one task; what depends on the task alone, they answer alike.
    """

    task: ClassVar[Task]
    # transformers' class that makes a model for the task.
    auto_class_name: ClassVar[str]
    # Whether the prompt's keys and values are computed before it is built.
    needs_prefix_kv: ClassVar[bool] = False
    # Whether its engine keeps keys and values from run to run, so that there is a buffer to size.
    keeps_kv_buffer: ClassVar[bool] = False
    # Whether an engine continues texts, so that the reference has greedy continuations.
    generates: ClassVar[bool] = False
    # On which side rows are padded in training, where PEFT may then give a row something else than
    # alone.
    padded_on: ClassVar[Literal["left", "right"] | None] = None
    # Whether it takes token_type_ids where the model tells segments apart.
    takes_segments: ClassVar[bool] = False
    # Whether a head is trained with the prompt, which the checkpoint must then bring.
    has_trained_head: ClassVar[bool] = True
    # Whether int8 quantizes activations too, where the target computes such products faster.
    quantizes_activations: ClassVar[bool] = False
    # Whether word embeddings are quantized too, where the target can: an encoder's gain no speed by
    # it and cost agreement.
    quantizes_embeddings: ClassVar[bool] = True

    def auto_class(self) -> Any:
        """transformers' class that makes a model for the task."""
        import transformers

        return getattr(transformers, self.auto_class_name)

    def matches(self, model: PreTrainedModel) -> bool:
        """Whether it is the program for that model, which `auto_class` made."""
        return True

    def recognises(self, weights: Collection[str], heads: Collection[str]) -> bool:
        """Whether a checkpoint that names no task must be of this one, by its tensors' names.

        `heads` are those among `weights` that PEFT marks as trained.
        """
        return False

    @abstractmethod
    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        """What the logits mean; `head` is what the user says of it.

        Raises InputError if `head` does not fit the task, BaseModelError if the base's own
        configuration of it cannot be read or is out of range.
        """

    @abstractmethod
    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        """The program, and which route its graph takes and why.

        Raises BaseModelError if the model cannot be run in that way.
        """

    def text_logits(self, logits: torch.Tensor, tokens: int) -> torch.Tensor:
        """PEFT's logits of one row of so many tokens, without those of the virtual tokens.

        Where the architecture gives logits for each token, PEFT's cover the virtual tokens too.
        """
        return logits[-tokens:]
