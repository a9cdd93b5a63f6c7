"""What goes in and out of a program, with its symbolic axes, and whether an engine has the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from ptdeploy.bundle.schema import Manifest
from ptdeploy.bundle.task import Activations, TensorSpec
from ptdeploy.errors import BundleError

AGAIN = "Compile the checkpoint again."
BATCH, SEQUENCE, SLOTS, KEPT = "batch", "sequence", "slots", "kept"
# Of what belongs to prompts: the virtual tokens of all, the prompts, the largest number of labels,
# the prefix KV of all (prompts x layers x 2), and the slots that the longest prefix fills.
VIRTUAL, PROMPTS, CLASSES = "virtual", "prompts", "classes"
PREFIXES, PREFIX = "prefixes", "prefix"
# What keeps rows apart that come as one sequence: of each token its place in its row, and how many
# of the first and of the last slots of the past are not its row's.
OFFSETS: tuple[int | str, ...] = (3, SEQUENCE)


@dataclass(frozen=True)
class Signature:
    """What goes in and out of a program, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def computed_in(self, activations: Activations) -> Signature:
        """The signature of the graph after its activations became `activations`: logits stay."""

        def typed(spec: TensorSpec) -> TensorSpec:
            if spec.dtype != "float32" or spec.role == "logits":
                return spec
            return msgspec.structs.replace(spec, dtype=activations)

        return Signature(tuple(map(typed, self.inputs)), tuple(map(typed, self.outputs)))

    def with_slots(self, slots: int) -> Signature:
        """The signature of an engine whose KV buffer has that many slots and no other number."""

        def fixed(spec: TensorSpec) -> TensorSpec:
            shape = tuple(slots if axis == SLOTS else axis for axis in spec.shape)
            return msgspec.structs.replace(spec, shape=shape)

        return Signature(tuple(map(fixed, self.inputs)), tuple(map(fixed, self.outputs)))


@dataclass(frozen=True)
class Found:
    """A tensor of an engine as the engine itself has it; an axis without a name is ''."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def check_signature(
    where: str, manifest: Manifest, side: str, found: Sequence[Found], names_axes: bool = True
) -> None:
    """Raises BundleError unless an engine's own inputs or outputs are the manifest's.

    `where` names the engine; `side` is "inputs" or "outputs". An axis without a name, of an output
    or of any tensor where the engine does not keep names (`names_axes`), may be any that the
    manifest names.
    """
    wanted: Sequence[TensorSpec] = getattr(manifest.graph, side)
    loosely = side == "outputs" or not names_axes
    for index, (ours, theirs) in enumerate(zip_longest(found, wanted)):
        if ours is None or theirs is None or not _agree(ours, theirs, loosely):
            raise BundleError(
                f"{where}: its {side}[{index}] is {_described(ours)}, but the manifest says "
                f"{_described(theirs)}.",
                AGAIN,
            )


def _agree(ours: Found, theirs: TensorSpec, loosely: bool) -> bool:
    def same(axis: int | str, other: int | str) -> bool:
        return axis == other or (loosely and axis == "" and isinstance(other, str))

    return (
        (ours.name, ours.dtype, len(ours.shape)) == (theirs.name, theirs.dtype, len(theirs.shape))
    ) and all(map(same, ours.shape, theirs.shape))


def _described(spec: Found | TensorSpec | None) -> str:
    return "missing" if spec is None else f"{spec.name!r}: {spec.dtype!r} {words_of(spec.shape)!r}"


def words_of(shape: Sequence[int | str]) -> str:
    # An engine may keep no names of its axes.
    return f"({', '.join(str(axis) or '?' for axis in shape)})"
