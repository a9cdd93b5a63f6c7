"""PyTorch's tensors beside the graph's values: which belong together, and which do not match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle.precision import INNER_TYPES
from ptdeploy.parity.locate.graph import ModuleGraph, run_exposed
from ptdeploy.parity.locate.trace import Event
from ptdeploy.runtime.probes import Fed

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource

# A tensor does not match if its largest difference, over its largest value, is above what its type
# may cost and well above that of all tensors before it: honest differences grow slowly, a fault
# shows at once. Where PyTorch's module can be run on the engine's own input, what came before does
# not count.
_JUMP = 5.0


@dataclass(frozen=True)
class Match:
    """A PyTorch tensor and the graph's value nearest to it, cut to the same positions.

    `relative` is their largest difference over the tensor's largest value (of logits that are
    numbers of their own, over each one's), `jump` how many times as far apart they are as any
    tensors before them.
    """

    event: Event
    value: str
    ours: NDArray[Any] = field(repr=False)
    theirs: NDArray[np.float32] = field(repr=False)
    relative: float
    jump: float
    mismatch: bool
    values: Mapping[str, NDArray[Any]] = field(repr=False)


@dataclass(frozen=True)
class _Nearest:
    value: str
    ours: NDArray[Any]
    theirs: NDArray[np.float32]
    relative: float


@dataclass(frozen=True)
class Search:
    """PyTorch's events, the graph, and what it is fed, to find which tensors match.

    `tolerance` is what a float32 value of the engine may be off by, over its tensor's largest.
    `outputs` is what the logits of a head that chooses no one class are measured by instead, each
    by its own: the largest one's size would hide a fault of a small one.
    """

    graph: ModuleGraph = field(repr=False)
    events: Sequence[Event] = field(repr=False)
    fed: Fed
    tolerance: float
    peft: PeftSource
    outputs: NDArray[np.float64] | None = None

    def matches(self, coarse: bool = False) -> Iterator[Match]:
        """Each event that has a value of the same shape, in PyTorch's order; the graph is run once.

        `coarse` takes only the layers' outputs out of the graph, so that the engine fuses what lies
        between two of them.
        """
        events = [e for e in self.events if not coarse or _is_layers_output(e)]
        names = self._names(events)
        exposed = {name for found in names.values() for name in found}
        if not coarse:
            exposed |= self.graph.outputs_of("Softmax")
        values = run_exposed(self.graph, sorted(exposed), self.fed.feed)
        logits = self._logits()
        noise, mismatched, given = 0.0, False, dict[str, list[NDArray[Any]]]()
        made, before = set[str](), dict[str, frozenset[str]]()
        for event in events:
            candidates = names[event.module, event.what]
            if event.what == "input":
                before.setdefault(event.module, frozenset(made))
            else:
                # PEFT embeds the text by a part of the model, before it calls the model.
                earlier = before.get(event.module, ())
                candidates = [name for name in candidates if name not in earlier]
            is_logits = logits is not None and np.array_equal(event.tensor, logits.tensor)
            scales = self.outputs if is_logits else None
            nearest = self._nearest(event, candidates, values, scales)
            if nearest is None:
                continue
            if event.what == "input":
                given.setdefault(event.module, []).append(nearest.ours)
            else:
                made.add(nearest.value)
            own = None
            if event.what == "output" and not coarse and not mismatched:
                taken = given.get(event.module, [])
                own = self._own_error(event.module, taken, nearest.ours, scales)
            allowed = max(INNER_TYPES.get(str(nearest.ours.dtype), self.tolerance), self.tolerance)
            relative = nearest.relative
            # NaN compares false with everything, so the bound is written as what must hold.
            holds = relative <= max(allowed, _JUMP * noise) if own is None else own <= allowed
            jump = relative / max(noise, 1e-9)
            # From the first mismatch on, differences are its consequence.
            mismatched = mismatched or not holds
            if not mismatched:
                noise = max(noise, relative)
            yield Match(
                event,
                nearest.value,
                nearest.ours,
                nearest.theirs,
                relative,
                jump,
                not holds,
                values,
            )

    def _names(self, events: Sequence[Event]) -> dict[tuple[str, str], list[str]]:
        """The graph's values that may be a module's input or output."""
        names: dict[tuple[str, str], list[str]] = {}
        for event in events:
            find = self.graph.given if event.what == "output" else self.graph.taken
            key = (event.module, event.what)
            if key not in names:
                names[key] = find(event.module)
        return names

    def _logits(self) -> Event | None:
        """PyTorch's logits, where each output is measured by its own size."""
        if self.outputs is None:
            return None
        wide = (one for one in reversed(self.events) if one.what == "output")
        return next((one for one in wide if one.tensor.shape[-1] == self.outputs.size), None)

    def _nearest(
        self,
        event: Event,
        names: Sequence[str],
        values: Mapping[str, NDArray[Any]],
        scales: NDArray[np.float64] | None,
    ) -> _Nearest | None:
        best: _Nearest | None = None
        for name in names:
            pair = aligned(values[name], event.tensor, self.fed) if name in values else None
            if pair is None:
                continue
            relative = _relative(*pair, scales)
            if best is None or relative < best.relative:
                best = _Nearest(name, *pair, relative)
        return best

    def _own_error(
        self,
        path: str,
        given: Sequence[NDArray[Any]],
        ours: NDArray[Any],
        scales: NDArray[np.float64] | None,
    ) -> float | None:
        """Relative error of a leaf module alone: PyTorch's module on the engine's own input.

        None where it has parts, or needs more than its one float input.
        """
        import torch

        module = self.peft.model.get_base_model().get_submodule(path)
        if len(given) != 1 or next(module.children(), None) is not None:
            return None
        try:
            with torch.no_grad():
                theirs = module(torch.from_numpy(given[0].astype(np.float32))).numpy()
        except Exception:  # it needs more than its one float input
            return None
        return _relative(ours, theirs, scales) if theirs.shape == ours.shape else None


def aligned(
    ours: NDArray[Any], theirs: NDArray[np.float32], fed: Fed
) -> tuple[NDArray[Any], NDArray[np.float32]] | None:
    """The row's own positions in both, or None if the shapes do not fit."""
    if not np.issubdtype(ours.dtype, np.floating):
        return None
    if not fed.runs_prefix and _is_last_token(ours, theirs, fed):
        return ours[fed.row], theirs[0, -1]
    has_tokens = ours.ndim == theirs.ndim
    if ours.ndim == theirs.ndim - 1 and ours.size % fed.rows == 0:
        # Some modules see all rows' tokens as one list.
        ours = ours.reshape(fed.rows, -1, *ours.shape[1:])
    elif ours.ndim == theirs.ndim + 1:
        # Heads that the next module takes side by side.
        ours = ours.reshape(*ours.shape[:-2], -1)
    if ours.ndim != theirs.ndim:
        return None
    if ours.shape[0] == fed.rows:
        ours = ours[fed.row : fed.row + 1]
    for axis in range(1, ours.ndim):
        if ours.shape[axis] == theirs.shape[axis]:
            continue
        kept = _kept(ours.shape[axis], theirs.shape[axis], fed, has_tokens)
        if kept is None:
            return None
        ours, theirs = np.take(ours, kept[0], axis), np.take(theirs, kept[1], axis)
    return (ours, theirs) if ours.shape == theirs.shape else None


def _is_last_token(ours: NDArray[Any], theirs: NDArray[np.float32], fed: Fed) -> bool:
    """Whether a value is of a head that the program runs at the last token only."""
    one_less = ours.ndim == theirs.ndim - 1 and ours.size % fed.rows == 0
    return one_less and ours.shape == (fed.rows, theirs.shape[-1])


def _kept(mine: int, its: int, fed: Fed, has_tokens: bool) -> tuple[range, range] | None:
    """Which of an axis' positions are the same in both; None where it is no axis of tokens.

    `has_tokens` says that the value has that axis by itself.
    """
    first = fed.prefix if fed.runs_prefix else 0
    if fed.skipped and mine == first + fed.width - fed.skipped and its == first + fed.taken:
        # What is computed for the tokens alone whose logits are read.
        return range(its - fed.skipped), range(fed.skipped, its)
    if has_tokens and mine == 1 and fed.width + first > 1 and its in (fed.taken, first + fed.taken):
        # A layer that computes the first token alone, which is all that the head reads.
        return range(1), range(1)
    if not fed.runs_prefix:
        if mine != fed.width:
            return None
        kept = min(fed.taken, its)
        # A prompt that is not frozen is fed before the text, where PyTorch embeds text alone.
        return range(fed.taken - kept, fed.taken), range(its - kept, its)
    if mine != fed.prefix + fed.width:
        return None
    if its == fed.prefix + fed.taken:
        return range(its), range(its)
    # Here too it embeds text alone.
    return (range(fed.prefix, fed.prefix + its), range(its)) if its == fed.taken else None


def _relative(
    ours: NDArray[Any], theirs: NDArray[np.float32], scales: NDArray[np.float64] | None
) -> float:
    """The largest difference over the largest value, or of each column over its own `scales`."""
    scale = (float(np.abs(theirs).max(initial=0)) or 1.0) if scales is None else scales
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(ours.astype(np.float64) - theirs)
    return float((np.where(np.isfinite(difference), difference, np.inf) / scale).max(initial=0))


def _is_layers_output(event: Event) -> bool:
    return event.what == "output" and event.module.rpartition(".")[2].isdigit()
