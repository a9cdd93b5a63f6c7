"""A causal bundle's KV buffer: what its manifest must say of it, and what it then is.

The C++ library has the same rules, in the same order and the same words (kv_layout.cc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptdeploy.bundle import Manifest
from ptdeploy.bundle.signature import BATCH, KEPT, SEQUENCE, SLOTS
from ptdeploy.runtime import sampling
from ptdeploy.runtime.layout import KEPT as MOST_KEPT
from ptdeploy.runtime.layout import MOST, PREFILL, Specs, unlike

_CACHES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class KVLayout:
    """A causal model's KV buffer: one array (rows, heads, slots, width) for each name of `past`.

    `past` and `present` go layer by layer, keys before values. `fixed_slots` is how many slots
    every buffer has, None for as many as are asked for. `prefill` is the most tokens of one run,
    `kept` of one that gives logits of each. `in_place` says that the engine updates the buffer.
    """

    past: tuple[str, ...]
    present: tuple[str, ...]
    dtype: str
    heads: int
    width: int
    vocabulary: int
    fixed_slots: int | None
    prefill: int
    kept: int
    in_place: bool

    @classmethod
    def of(cls, manifest: Manifest) -> KVLayout:
        """The layout of a manifest that `check_manifest` passed."""
        past = [spec for spec in manifest.inputs if spec.name.startswith("past_key_values.")]
        present = [spec.name for spec in manifest.outputs if spec.name.startswith("present.")]
        _, heads, slots, width = past[0].shape
        most = manifest.limits.max_prefill
        prefill = min(PREFILL, most or PREFILL)
        return cls(
            past=tuple(spec.name for spec in past),
            present=tuple(present),
            dtype=past[0].dtype,
            heads=int(heads),
            width=int(width),
            vocabulary=int(manifest.outputs[0].shape[-1]),
            fixed_slots=slots if isinstance(slots, int) else None,
            prefill=prefill,
            kept=prefill if most is None else min(prefill, MOST_KEPT),
            in_place=manifest.graph.route == "fused",
        )

    def bytes(self, rows: int, slots: int) -> int:
        """What a buffer takes, in bytes, with room for one step's logits."""
        size = 4 if self.dtype == "float32" else 2
        keys_and_values = rows * self.heads * (self.fixed_slots or slots) * self.width * size
        return len(self.past) * keys_and_values + rows * self.vocabulary * 4


def decoder_problems(manifest: Manifest) -> Iterator[str]:
    """What in a manifest describes no KV buffer that an engine could keep, nor how it writes."""
    limits, count = manifest.limits, manifest.prompt.num_virtual_tokens
    if manifest.generation is None:
        yield "it has no generation defaults"
        return
    for name, wanted in sampling.out_of_range(manifest.generation, limits.vocab_size):
        yield f"generation.{name} must be {wanted}"
    if manifest.labels:
        yield "labels are a classifier's"
    layers = max(1, (len(manifest.inputs) - 2) // 2)
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    # What may differ from model to model is taken from the first, and the others held against it.
    first = manifest.inputs[3] if len(manifest.inputs) > 3 else None
    dtype = first.dtype if first is not None and first.dtype in _CACHES else _CACHES[0]
    shape = first.shape if first is not None and len(first.shape) == 4 else (BATCH, 1, SLOTS, 1)
    heads, width = (size if _is_size(size) else 1 for size in (shape[1], shape[3]))
    slots = limits.max_context if isinstance(shape[2], int) else SLOTS
    buffer = (BATCH, heads, slots, width)
    inputs: Specs = [
        ("input_ids", "int64", (BATCH, SEQUENCE)),
        ("past_lengths", "int64", (BATCH,)),
        ("logits_positions", "int64", (KEPT,)),
        *((f"past_key_values.{name}", dtype, buffer) for name in names),
    ]
    yield from unlike("inputs", manifest.inputs, inputs)
    logits = manifest.outputs[0].shape if manifest.outputs else ()
    vocabulary = logits[-1] if logits and _is_size(logits[-1]) else limits.vocab_size
    new = buffer if manifest.graph.route == "fused" else (BATCH, heads, SEQUENCE, width)
    outputs: Specs = [
        ("logits", "float32", (BATCH, KEPT, vocabulary)),
        *((f"present.{name}", dtype, new) for name in names),
    ]
    yield from unlike("outputs", manifest.outputs, outputs)
    if int(vocabulary) < limits.vocab_size:
        yield "limits.vocab_size is more than the logits have"
    prefix = manifest.prompt.prefix_kv
    if prefix is None and vocabulary != limits.vocab_size:
        yield "limits.vocab_size is not that of the logits, behind which the virtual tokens stand"
    if prefix is not None and prefix != (layers, 2, heads, count, width):
        yield "prompt.prefix_kv is not the shape of the KV buffer's first slots"


def _is_size(axis: int | str) -> bool:
    return isinstance(axis, int) and 1 <= axis <= MOST
