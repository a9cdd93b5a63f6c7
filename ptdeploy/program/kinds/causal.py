"""Decoders that write: the prefix KV is not in the graph, it fills the first slots of a buffer."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from ptdeploy.bundle import Route
from ptdeploy.bundle.signature import BATCH, KEPT, OFFSETS, SEQUENCE, SLOTS, Signature
from ptdeploy.bundle.task import Operators, Task, TensorRole, TensorSpec
from ptdeploy.errors import BaseModelError, InputError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.program.kinds.kind import IDS, POSITIONS, BuildOptions, ProgramKind, table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptdeploy.program.decoder import PlainDecoder
    from ptdeploy.program.program import Program
    from ptdeploy.program.prompt import Prompt
    from ptdeploy.source.base import BaseModel
    from ptdeploy.source.checkpoint import Checkpoint
    from ptdeploy.source.meaning import Meaning

_LENGTHS = TensorSpec(
    "past_lengths",
    "lengths",
    "int64",
    (BATCH,),
    "filled slots of each row, virtual tokens included",
)
_OFFSETS = TensorSpec(
    "token_offsets",
    "offsets",
    "int64",
    OFFSETS,
    "each token's place in its row, from 0 on, at another 0 another row begins; how many of the "
    "first and of the last slots of the past it does not see",
)
_FUSED: dict[Operators, str] = {
    "onnxruntime": "every layer's attention is one GroupQueryAttention",
    "standard": "every layer writes into the KV buffer in place and reads all of it",
}
# The first that has RotaryEmbedding, and the first that has TensorScatter; older operators mean the
# same in them.
_OPSETS: dict[Operators, int] = {"onnxruntime": 23, "standard": 24}
# Trying more would need as much memory as a long text does.
_TRIED_SLOTS = 2048


class Causal(ProgramKind):
    """CAUSAL_LM: a step over a KV buffer, `fused` where architecture and target allow it."""

    task = Task.CAUSAL_LM
    auto_class_name = "AutoModelForCausalLM"
    needs_prefix_kv = True
    keeps_kv_buffer = True
    generates = True
    padded_on = "left"
    has_trained_head = False

    def recognises(self, weights: Collection[str], heads: Collection[str]) -> bool:
        return not heads and "lm_head.weight" in weights

    def meaning(self, checkpoint: Checkpoint, base: BaseModel, head: str | None) -> Meaning:
        from ptdeploy.source.meaning import Meaning, generation_defaults

        if head is not None:
            raise InputError(
                f"--head {head}: a CAUSAL_LM model has no head that gives classes.",
                "Leave --head out.",
            )
        options, notes = generation_defaults(base)
        return Meaning("softmax", (), options, notes)

    def build(
        self,
        model: PreTrainedModel,
        base: BaseModel,
        prompt: Prompt,
        options: BuildOptions,
    ) -> tuple[Program, Route]:
        from ptdeploy.program.decoder import FusedDecoder, PlainDecoder
        from ptdeploy.program.lowering import attentions_asked, why_not_fused
        from ptdeploy.program.lowering import fused as traced
        from ptdeploy.program.program import Lowered, Program, examples

        assert prompt.prefix_kv is not None
        layers, _, heads, _, head_dim = prompt.prefix_kv.shape
        names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        buffer, new = (BATCH, heads, SLOTS, head_dim), (BATCH, heads, SEQUENCE, head_dim)
        past = _kv("past_key_values", "past", names, buffer, "KV buffer")
        virtual = () if options.freeze_kv else (table(base.embedding_dim),)
        inputs: tuple[TensorSpec, ...] = (IDS, _LENGTHS, POSITIONS, *virtual, *past)
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        logits = TensorSpec(
            "logits",
            "logits",
            "float32",
            (BATCH, KEPT, vocabulary),
            "next-token scores before softmax",
        )
        behind, operators = base.vocab_size if virtual else None, options.operators
        fused = FusedDecoder(model, behind).eval()
        why = "the target has no attention over a buffer"
        if operators is not None:
            why = why_not_fused(model, fused, examples(inputs), operators, options.refuses)
        if why and not options.plain:
            raise BaseModelError(
                f"{model.config.model_type}: the target keeps a KV buffer only for attention that "
                f"is one operator in each layer, and this is not ({why}).",
                "Compile it with --target ort.",
            )
        if why or operators is None:
            present = _kv("present", "present", names, new, "the new tokens' KV")
            plain, route = PlainDecoder(model, behind).eval(), Route("plain", why)
            _check_free_slots(PlainDecoder(model, None).eval(), prompt, base.context(route))
            return Program(plain, Signature(inputs, (logits, *present))), route
        # A prompt that is run makes rows too long to gain by coming as one.
        if options.freeze_kv and all(map(options.joins, attentions_asked())):
            fused = FusedDecoder(model, behind, joins=True).eval()
            inputs = (*inputs, _OFFSETS)
        signature = Signature(
            inputs, (logits, *_kv("present", "present", names, buffer, "KV buffer"))
        )
        lowered = Lowered(operators, partial(traced, model, operators), _OPSETS[operators])
        return Program(fused, signature, lowered), Route("fused", _FUSED[operators])


def _kv(
    kind: str, role: TensorRole, names: list[str], shape: tuple[int | str, ...], meaning: str
) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{kind}.{name}", role, "float32", shape, meaning) for name in names)


def _check_free_slots(program: PlainDecoder, prompt: Prompt, context: int) -> None:
    """Raises BaseModelError if free slots between a row's past and its new tokens change it."""
    import torch

    from ptdeploy.source.base import quiet_libraries

    assert prompt.prefix_kv is not None
    kind = program.model.config.model_type
    past = torch.from_numpy(prompt.prefix_kv).flatten(0, 1)[:, None]
    count = past.shape[3]
    free = min(2 * context - count - 1, _TRIED_SLOTS) - count
    inputs = torch.ones((1, 1), dtype=torch.int64), torch.tensor([count]), torch.zeros(1).long()
    reason = ""
    try:
        with torch.no_grad(), quiet_libraries():
            near = program(*inputs, *past)[0]
            far = program(*inputs, *torch.nn.functional.pad(past, (0, 0, 0, max(free, 0))))[0]
        if not torch.allclose(near, far, rtol=1e-3, atol=1e-3):
            reason = f"{free} of them change logits by {(near - far).abs().max():.2g}"
    except Exception as error:  # the model's own code, on a longer past than it was made for
        if ran_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    if reason:
        raise BaseModelError(
            f"{kind}: cannot write into a KV buffer with free slots, which its attention counts as "
            f"tokens ({reason}).",
            "Only the architectures in the README's support table are tested.",
        )
