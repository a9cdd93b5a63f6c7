"""The first module whose tensor departs from PyTorch's, its operator, and the likely cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.modules import common_module
from ptdeploy.bundle import Bundle
from ptdeploy.errors import EngineFault, PtdeployError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.parity.locate.causes import Cause, Suspect, likely_cause
from ptdeploy.parity.locate.graph import ModuleGraph, computes, read_graph, run_exposed
from ptdeploy.parity.locate.trace import Event, trace_row
from ptdeploy.parity.measure import finite
from ptdeploy.parity.reference import Reference, Row
from ptdeploy.parity.report import Located, ModuleError, ParityReport
from ptdeploy.passes.name import module_of
from ptdeploy.runtime import CausalLM, Engine
from ptdeploy.runtime.batching import pack

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource

# A tensor departs if its largest difference, over its largest value, is above its type's rounding
# and well above that of all tensors before it: rounding grows slowly, a fault shows at once.
# Where PyTorch's module can be run on the engine's own input, what came before does not count.
_ROUNDING = {"float16": 5e-3, "bfloat16": 4e-2}
_FP32, _ROUNDED_WEIGHTS = 2e-5, 0.3
# Precisions whose values come out of the engine as float32.
_INNER = {"tf32": 5e-3, "bf16": 4e-2}
_JUMP = 5.0
_USUAL_ROW = 4


@dataclass(frozen=True)
class Fed:
    """What the engine was given: rows as one batch, and where one row's tokens lie in it.

    The row is `row` of the batch; `width` tokens are fed for each row, the `taken` first of them
    are the row's last `taken` tokens, after `prefix` virtual ones. The graph computes those too
    (`runs_prefix`), or they were frozen, and PyTorch's positions of them are left out.
    """

    feed: Mapping[str, NDArray[Any]]
    row: int
    rows: int
    width: int
    taken: int
    prefix: int
    runs_prefix: bool


def locate_mismatch(
    bundle: Bundle,
    engine: Engine,
    peft: PeftSource,
    reference: Reference,
    report: ParityReport,
) -> Located:
    """Compare every module's tensors for one row that departs, or for a usual one if none does.

    All values are taken in one run of the graph. Where they agree although the engine departs, the
    engine's own fusions are the fault: then only the layers' outputs are taken, so that what lies
    between two of them is fused again.
    """
    graph = read_graph(bundle)
    chosen, row = _failing_rows(reference, report)
    rows = [one.ids for one in chosen]
    lengths = tuple(int(one.size) for one in rows)
    events = trace_row(peft.model, rows[row], chosen[row].type_ids)
    tolerance = _tolerance(engine)
    try:
        fed = _feed(engine, chosen, row)
        matches = list(_matches(graph, events, fed, tolerance, peft, False))
    except PtdeployError as error:
        if not isinstance(error, EngineFault):
            raise
        return _failed(error.problem, lengths)
    except Exception as error:  # engines' own errors share no base class
        if ran_out_of_memory(error):
            raise
        return _failed(str(error), lengths)
    first, remark = next((m for m in matches if m.departs), None), ""
    departs = any(not case.passed for case in report.cases)
    if first is None and departs and matches:
        if _logits_apart(matches[0].values, fed, chosen[row]) > (report.largest_allowed or np.inf):
            first = max(matches, key=lambda m: m.jump)
            remark = "no tensor departs by itself; the difference grows most here"
        else:
            coarse = list(_matches(graph, events, fed, tolerance, peft, True))
            first = next((m for m in coarse if m.departs), None)
            matches = coarse if first else matches
            remark = "the engine's own fusion: with every value taken out of the graph it agrees"
    modules = tuple(
        ModuleError(m.event.module, m.event.what, m.value, finite(m.relative), m.departs)
        for m in matches
    )
    if first is None:
        return Located("", "", "", (), _nothing(report), lengths, len(matches), modules)
    known = {m.value for m in matches if not m.departs and m is not first}
    behind = [node for node in graph.behind(first.value, known) if computes(node)]
    operators = tuple(node.op_type for node in behind)
    suspect = Suspect(
        module=_module(graph, first),
        event=first.event,
        value=first.value,
        ours=first.ours,
        theirs=first.theirs,
        graph=graph,
        behind=behind,
        prefix=fed.prefix,
        row=fed.row,
        lengths=lengths,
        values=first.values,
        feed=fed.feed,
    )
    if remark:
        cause = Cause(remark)
    else:
        missing = _never_arrived(graph, events, first, known)
        cause = missing or likely_cause(suspect, peft, bundle)
    return Located(
        cause.module or suspect.module,
        operators[-1] if operators else graph.producers[first.value].op_type,
        str(first.ours.dtype),
        operators[-12:],
        cause.words,
        lengths,
        len(matches),
        modules,
    )


@dataclass(frozen=True)
class _Match:
    """A PyTorch tensor and the graph's value nearest to it, cut to the same positions.

    `jump` is how many times as far apart they are as any tensors before them.
    """

    event: Event
    value: str
    ours: NDArray[Any]
    theirs: NDArray[np.float32]
    relative: float
    jump: float
    departs: bool
    values: Mapping[str, NDArray[Any]]


def _matches(
    graph: ModuleGraph,
    events: Sequence[Event],
    fed: Fed,
    tolerance: float,
    peft: PeftSource,
    coarse: bool,
) -> Iterator[_Match]:
    """Each event with a value of the same shape, in PyTorch's order."""
    chosen = [e for e in events if not coarse or (e.what == "output" and _is_layer(e.module))]
    names: dict[tuple[str, str], list[str]] = {}
    for event in chosen:
        find = graph.given if event.what == "output" else graph.taken
        key = (event.module, event.what)
        if key not in names:
            names[key] = find(event.module)
    exposed = {name for found in names.values() for name in found}
    if not coarse:
        exposed |= {
            name for n in graph.model.graph.node if n.op_type == "Softmax" for name in n.output
        }
    values = run_exposed(graph, sorted(exposed), fed.feed)
    noise, departed, given = 0.0, False, dict[str, list[NDArray[Any]]]()
    for event in chosen:
        best: tuple[float, str, NDArray[Any], NDArray[np.float32]] | None = None
        for name in names[event.module, event.what]:
            pair = _aligned(values[name], event.tensor, fed) if name in values else None
            if pair is None:
                continue
            relative = _relative(*pair)
            if best is None or relative < best[0]:
                best = (relative, name, *pair)
        if best is None:
            continue
        relative, name, ours, theirs = best
        rounding = max(_ROUNDING.get(str(ours.dtype), tolerance), tolerance)
        if event.what == "input":
            given.setdefault(event.module, []).append(ours)
        own = None
        if event.what == "output" and not coarse and not departed:
            own = _own_error(peft, event.module, given.get(event.module, []), ours)
        departs = not (relative <= max(rounding, _JUMP * noise) if own is None else own <= rounding)
        jump = relative / max(noise, 1e-9)
        # From the first departure on, differences are its consequence, and no rounding.
        departed = departed or departs
        if not departed:
            noise = max(noise, relative)
        yield _Match(event, name, ours, theirs, relative, jump, departs, values)


def _own_error(
    peft: PeftSource, path: str, given: Sequence[NDArray[Any]], ours: NDArray[Any]
) -> float | None:
    """What a module without parts adds by itself: PyTorch's, run on what the engine's was given."""
    import torch

    module = peft.model.get_base_model().get_submodule(path)
    if len(given) != 1 or next(module.children(), None) is not None:
        return None
    try:
        with torch.no_grad():
            theirs = module(torch.from_numpy(given[0].astype(np.float32))).numpy()
    except Exception:  # it needs more than its one float input
        return None
    return _relative(ours, theirs) if theirs.shape == ours.shape else None


def _logits_apart(values: Mapping[str, NDArray[Any]], fed: Fed, row: Row) -> float:
    """How far the row's logits are from the reference's in a run with all values taken out."""
    ours = values["logits"][fed.row]
    if row.logits.ndim == 1:
        ours, wanted = ours[None], row.logits[None]
    else:
        ours = ours[: fed.taken]
        kept = min(len(ours), len(row.logits))
        ours, wanted = ours[len(ours) - kept :], row.logits[len(row.logits) - kept :]
    with np.errstate(invalid="ignore"):
        apart = float(np.abs(ours.astype(np.float64) - wanted).max())
    return apart if np.isfinite(apart) else np.inf


def _aligned(
    ours: NDArray[Any], theirs: NDArray[np.float32], fed: Fed
) -> tuple[NDArray[Any], NDArray[np.float32]] | None:
    """The row's own positions in both, or None if the shapes do not fit."""
    if not np.issubdtype(ours.dtype, np.floating):
        return None
    if ours.ndim == theirs.ndim - 1 and ours.size % fed.rows == 0:
        if not fed.runs_prefix and ours.shape == (fed.rows, theirs.shape[-1]):
            # A head that the program runs at the last token only.
            return ours[fed.row], theirs[0, -1]
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
        mine, its = ours.shape[axis], theirs.shape[axis]
        if mine == its:
            continue
        if mine == fed.width and (its == fed.taken or not fed.runs_prefix):
            kept = min(fed.taken, its)
            # A prompt that is not frozen is fed before the text, where PyTorch embeds text alone.
            mine_kept, its_kept = range(fed.taken - kept, fed.taken), range(its - kept, its)
        elif fed.runs_prefix and mine == fed.prefix + fed.width and its == fed.prefix + fed.taken:
            mine_kept = its_kept = range(its)
        else:
            return None
        ours, theirs = np.take(ours, mine_kept, axis), np.take(theirs, its_kept, axis)
    return (ours, theirs) if ours.shape == theirs.shape else None


def _relative(ours: NDArray[Any], theirs: NDArray[np.float32]) -> float:
    scale = float(np.abs(theirs).max(initial=0)) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(ours.astype(np.float64) - theirs)
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0)) / scale


def _failing_rows(reference: Reference, report: ParityReport) -> tuple[list[Row], int]:
    """The failing case with the fewest rows and tokens, and which of its rows departs most."""
    failing = [case for case in report.cases if not case.passed]
    if not failing:
        index = min(_USUAL_ROW, len(reference.rows) - 1)
        return [reference.rows[index]], 0
    case = min(failing, key=lambda one: (len(one.rows), sum(one.lengths)))
    rows = [reference.rows[i] for i in case.rows]
    # In a padded batch the shortest row has the most padding to go wrong with.
    return rows, min(range(len(rows)), key=lambda i: rows[i].ids.size)


def _feed(engine: Engine, chosen: Sequence[Row], row: int) -> Fed:
    rows = [one.ids for one in chosen]
    count, prefix = len(rows), engine.manifest.prompt.num_virtual_tokens
    if not isinstance(engine, CausalLM):
        batch = pack(rows)
        feed: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if engine.takes_segments:
            types = [np.zeros_like(r.ids) if r.type_ids is None else r.type_ids for r in chosen]
            feed["token_type_ids"] = pack(types).input_ids
        inside = engine.manifest.prompt.prefix_kv is None
        return Fed(feed, row, count, batch.input_ids.shape[1], rows[row].size, prefix, inside)
    kv = engine.buffer(count, max(one.size for one in rows))
    if count == 1:
        ids = engine.fed(rows[0])
        return Fed(kv.feed(ids[None], every_position=True), 0, 1, ids.size, ids.size, prefix, False)
    for index, one in enumerate(rows):
        kv.prefill(index, engine.fed(one)[:-1], every_position=True)
    last = np.asarray([[one[-1]] for one in rows], np.int64)
    return Fed(kv.feed(last, every_position=True), row, count, 1, 1, prefix, False)


def _never_arrived(
    graph: ModuleGraph, events: Sequence[Event], first: _Match, known: set[str]
) -> Cause | None:
    """Where a value that agrees elsewhere is taken instead of what another module gave."""
    if first.event.what != "input" or first.value not in known:
        return None
    taker = first.event.module
    for event in reversed(events[: events.index(first.event)]):
        if event.what == "output" and np.array_equal(event.tensor, first.event.tensor):
            words = f"its output never reaches {taker}: a layer is skipped, or wired elsewhere"
            return Cause(words, event.module)
    giver = graph.module(first.value)
    words = f"{taker} takes what {giver} gives as it is: an operation between them is missing"
    return Cause(words, common_module([giver, taker]))


def _failed(error: str, lengths: tuple[int, ...]) -> Located:
    """The node that the engine itself says it failed at."""
    found = re.search(r"Name:'([^']*)'", error)
    name = found[1] if found else ""
    words = f"the engine failed: {error.splitlines()[0]}"
    return Located(module_of(name), name.rpartition("/")[2], "", (), words, lengths, 0, ())


def _tolerance(engine: Engine) -> float:
    if engine.manifest.quantization:
        return _ROUNDED_WEIGHTS
    return _INNER.get(engine.manifest.precision, _FP32)


def _is_layer(module: str) -> bool:
    return module.rpartition(".")[2].isdigit()


def _module(graph: ModuleGraph, match: _Match) -> str:
    """Whose code made the value: what goes into a module was made by the one around it."""
    made_by = graph.module(match.value)
    if match.event.what == "input":
        return made_by or match.event.module
    inside = made_by == match.event.module or made_by.startswith(f"{match.event.module}.")
    return made_by if inside else match.event.module


def _nothing(report: ParityReport) -> str:
    if report.texts_agreed < report.texts_total:
        return "every module agrees; the tokenizer gives other ids for the same text"
    if report.passed:
        return "every module agrees"
    return "every module agrees on this row; what departs is around the graph"
