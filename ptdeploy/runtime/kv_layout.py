"""A causal bundle's KV buffer: what its manifest must say of it, and what it then is.

The C++ library has the same rules, in the same order and the same words (kv_layout.cc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import BATCH, KEPT, OFFSETS, SEQUENCE, SLOTS, VIRTUAL
from ptdeploy.runtime import sampling
from ptdeploy.runtime.layout import ACTIVATIONS, MOST, PREFILL, Specs, unlike
from ptdeploy.runtime.layout import KEPT as MOST_KEPT


@dataclass(frozen=True)
class KVLayout:
    """A causal model's KV buffer: one array (rows, heads, slots, width) for each name of `past`.

    `past` and `present` go layer by layer, keys before values. `ids`, `lengths`, `positions` and
    `logits` name the other tensors of a step, and `offsets` the one by which rows may come as one
    sequence, None where they may not; `mixes` says that they may have different prompts.
    `fixed_slots` is how many slots every buffer has, None for as many as are asked for. `prefill`
    is the most tokens of one run, `kept` of one that gives logits of each, and `context` the most
    that a row holds. `in_place` says that the engine updates the buffer.
    """

    ids: str
    lengths: str
    positions: str
    offsets: str | None
    mixes: bool
    logits: str
    past: tuple[str, ...]
    present: tuple[str, ...]
    dtype: str
    heads: int
    width: int
    vocabulary: int
    fixed_slots: int | None
    prefill: int
    kept: int
    context: int
    in_place: bool

    @classmethod
    def of(cls, manifest: Manifest) -> KVLayout:
        """The layout of a manifest that `check_manifest` passed."""
        past = [spec for spec in manifest.graph.inputs if spec.role == "past"]
        present = [spec.name for spec in manifest.graph.outputs if spec.role == "present"]
        _, heads, slots, width = past[0].shape
        most = manifest.limits.max_prefill
        prefill = min(PREFILL, most or PREFILL)
        roles = {one.role: one.name for one in manifest.graph.inputs}
        return cls(
            ids=roles["ids"],
            lengths=roles["lengths"],
            positions=roles["positions"],
            offsets=roles.get("offsets"),
            mixes=_offsets(manifest) == OFFSETS,
            logits=manifest.graph.outputs[0].name,
            past=tuple(spec.name for spec in past),
            present=tuple(present),
            dtype=past[0].dtype,
            heads=int(heads),
            width=int(width),
            vocabulary=int(manifest.graph.outputs[0].shape[-1]),
            fixed_slots=slots if isinstance(slots, int) else None,
            prefill=prefill,
            kept=prefill if most is None else min(prefill, MOST_KEPT),
            context=manifest.limits.max_context,
            in_place=manifest.graph.route == "fused",
        )

    def bytes(self, rows: int, slots: int) -> int:
        """What a buffer takes, in bytes, with room for one step's logits."""
        size = 4 if self.dtype == "float32" else 2
        # Numpy's numbers would wrap around in their own width.
        rows, slots = int(rows), int(self.fixed_slots or slots)
        keys_and_values = rows * self.heads * slots * self.width * size
        return len(self.past) * keys_and_values + rows * self.vocabulary * 4


def decoder_problems(manifest: Manifest) -> Iterator[str]:
    """What in a manifest describes no KV buffer that an engine could keep, nor how it writes."""
    graph, limits, prompt = manifest.graph, manifest.limits, manifest.prompt
    prefix, count = prompt.prefix_kv, prompt.num_virtual_tokens
    # Virtual tokens that are run are looked up in a table.
    looked_up = manifest.default_prompt is not None and prefix is None
    if manifest.generation is None:
        yield "it has no generation defaults"
        return
    for name, wanted in sampling.out_of_range(manifest.generation, limits.vocab_size):
        yield f"generation.{name} must be {wanted}"
    if prompt.labels:
        yield "labels are a classifier's"
    offsets = _offsets(manifest)
    joins = offsets is not None
    before = 4 if looked_up else 3
    layers = max(1, (len(graph.inputs) - joins - before + 1) // 2)
    # What may differ from model to model is taken from the first, and the others held against it.
    first = graph.inputs[before] if len(graph.inputs) > before else None
    dtype = first.dtype if first is not None and first.dtype in ACTIVATIONS else ACTIVATIONS[0]
    shape = first.shape if first is not None and len(first.shape) == 4 else (BATCH, 1, SLOTS, 1)
    heads, width = (size if _is_size(size) else 1 for size in (shape[1], shape[3]))
    slots = limits.max_context if isinstance(shape[2], int) else SLOTS
    buffer = (BATCH, heads, slots, width)
    inputs: Specs = [
        ("ids", "int64", (BATCH, SEQUENCE)),
        ("lengths", "int64", (BATCH,)),
        ("positions", "int64", (KEPT,)),
    ]
    if looked_up:
        inputs.append(("table", dtype, (VIRTUAL, prompt.token_dim or 0)))
    inputs += [("past", dtype, buffer)] * (2 * layers)
    if joins:
        # Without what of the past is hidden, rows have one prompt.
        apart = offsets if offsets == (SEQUENCE,) else OFFSETS
        inputs.append(("offsets", "int64", apart))
    yield from unlike("inputs", graph.inputs, inputs)
    logits = graph.outputs[0].shape if graph.outputs else ()
    vocabulary = logits[-1] if logits and _is_size(logits[-1]) else limits.vocab_size
    new = buffer if graph.route == "fused" else (BATCH, heads, SEQUENCE, width)
    outputs: Specs = [("logits", "float32", (BATCH, KEPT, vocabulary))]
    outputs += [("present", dtype, new)] * (2 * layers)
    yield from unlike("outputs", graph.outputs, outputs)
    if joins and graph.route != "fused":
        yield f"the {graph.route} route keeps no rows apart that come as one: it has no offsets"
    if int(vocabulary) < limits.vocab_size:
        yield "limits.vocab_size is more than the logits have"
    if prefix is not None and prefix != (layers, 2, heads, count, width):
        where = f"prompts[{manifest.default_prompt!r}]"
        yield f"{where}.prefix_kv is not the shape of the KV buffer's first slots"


def _offsets(manifest: Manifest) -> tuple[int | str, ...] | None:
    """The shape of what keeps rows apart, None where nothing does."""
    return next((one.shape for one in manifest.graph.inputs if one.role == "offsets"), None)


def _is_size(axis: int | str) -> bool:
    return isinstance(axis, int) and 1 <= axis <= MOST
