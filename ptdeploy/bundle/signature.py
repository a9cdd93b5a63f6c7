"""What goes in and out of a program, with its symbolic axes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ptdeploy.bundle.task import Activations, TensorSpec

BATCH, SEQUENCE, SLOTS, KEPT = "batch", "sequence", "slots", "kept"


@dataclass(frozen=True)
class Signature:
    """What goes in and out of a program, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def computed_in(self, activations: Activations) -> Signature:
        """The signature of the graph after its activations became `activations`: logits stay."""

        def typed(spec: TensorSpec) -> TensorSpec:
            if spec.dtype != "float32" or spec.name == "logits":
                return spec
            return msgspec.structs.replace(spec, dtype=activations)

        return Signature(tuple(map(typed, self.inputs)), tuple(map(typed, self.outputs)))

    def with_slots(self, slots: int) -> Signature:
        """The signature of an engine whose KV buffer has that many slots and no other number."""

        def fixed(spec: TensorSpec) -> TensorSpec:
            shape = tuple(slots if axis == SLOTS else axis for axis in spec.shape)
            return msgspec.structs.replace(spec, shape=shape)

        return Signature(tuple(map(fixed, self.inputs)), tuple(map(fixed, self.outputs)))
