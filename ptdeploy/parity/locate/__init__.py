"""Where an engine's numbers go wrong: the first module that does not match PyTorch's, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.modules import common_module
from ptdeploy.bundle import Bundle
from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.errors import EngineFault, PtdeployError
from ptdeploy.memory import ran_out_of_memory
from ptdeploy.parity.bounds import Bounds, bounds_of_report
from ptdeploy.parity.compare import rows_fail
from ptdeploy.parity.locate.causes import Cause, Suspect, likely_cause
from ptdeploy.parity.locate.feed import failing_rows, feed_rows
from ptdeploy.parity.locate.graph import ModuleGraph, computes, read_graph
from ptdeploy.parity.locate.match import Match, Search
from ptdeploy.parity.locate.trace import Event, trace_row
from ptdeploy.parity.measure import finite
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.report import Located, ModuleError, ParityReport
from ptdeploy.passes.name import module_of
from ptdeploy.runtime import Engine
from ptdeploy.runtime.probes import Fed
from ptdeploy.runtime.prompts import Prompt

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource

_MOST_OPERATORS = 12


def locate_mismatch(
    bundle: Bundle,
    engine: Engine,
    peft: PeftSource,
    reference: Reference,
    report: ParityReport,
) -> Located:
    """Compare every module's tensors for one row that fails, or for a usual one if none does.

    All values are taken in one run of the graph. Where they match although the engine's logits do
    not, the engine's own fusions are the fault: then only the layers' outputs are taken, so that
    what lies between two of them is fused again.
    Raises InputError if the bundle's graph does not name its modules.
    """
    graph = read_graph(bundle)
    bounds = bounds_of_report(report, reference, engine.manifest.prompt.head)
    chosen, row = failing_rows(engine, reference, report, bounds)
    lengths = tuple(int(one.ids.size) for one in chosen)
    chosen = [replace(one, ids=engine.as_read(one.ids, engine.prompt)) for one in chosen]
    events = trace_row(peft.model, chosen[row].ids, chosen[row].type_ids)
    try:
        tolerance = PRECISIONS[engine.manifest.precision].inner_tolerance
        outputs = None if bounds.scales is None else bounds.sizes
        search = Search(graph, events, feed_rows(engine, chosen, row), tolerance, peft, outputs)
        matches = list(search.matches())
    except PtdeployError as error:
        if not isinstance(error, EngineFault):
            raise
        return _failed(error.problem, lengths)
    except Exception as error:  # engines' own errors share no base class
        if ran_out_of_memory(error):
            raise
        return _failed(str(error), lengths)
    fails = any(not case.passed and not case.without_prompt for case in report.cases)
    found = _first(search, matches, chosen[row], bounds if fails else None)
    modules = tuple(
        ModuleError(m.event.module, m.event.what, m.value, finite(m.relative), m.mismatch)
        for m in found.matches
    )
    if found.first is None:
        return Located("", "", "", (), _nothing(report), lengths, len(modules), modules)
    suspect, known = _suspect(search, found, lengths, bundle, engine.prompt)
    operators = tuple(node.op_type for node in suspect.behind)
    if found.remark:
        cause = Cause(found.remark)
    else:
        missing = _never_arrived(graph, events, found.first, known)
        cause = missing or likely_cause(suspect)
    return Located(
        cause.module or suspect.module,
        operators[-1] if operators else graph.producers[found.first.value].op_type,
        str(found.first.ours.dtype),
        operators[-_MOST_OPERATORS:],
        cause.words,
        lengths,
        len(modules),
        modules,
    )


@dataclass(frozen=True)
class _Found:
    """The first mismatch, if any, among the matches it was found in, and what to add in words."""

    first: Match | None
    matches: Sequence[Match]
    remark: str = ""


def _first(
    search: Search, matches: Sequence[Match], row: ReferenceRow, bounds: Bounds | None
) -> _Found:
    """The first tensor that does not match, or what is nearest to one where the logits do not.

    `bounds` are those that a case has missed; None where all pass.
    """
    first = next((m for m in matches if m.mismatch), None)
    if first is not None or bounds is None or not matches:
        return _Found(first, matches)
    want, got = _logits(matches[0].values[_logits_of(search)], search.fed, row)
    if rows_fail([want], [got], bounds):
        widest = max(matches, key=lambda m: m.jump)
        return _Found(
            widest, matches, "no tensor is a mismatch by itself; the difference grows most here"
        )
    coarse = list(search.matches(coarse=True))
    first = next((m for m in coarse if m.mismatch), None)
    remark = "the engine's own fusion: with every value taken out of the graph it agrees"
    return _Found(first, coarse if first else matches, remark)


def _suspect(
    search: Search, found: _Found, lengths: tuple[int, ...], bundle: Bundle, prompt: Prompt
) -> tuple[Suspect, set[str]]:
    """What is known of the first mismatch, and the values that match."""
    graph, fed, first = search.graph, search.fed, found.first
    assert first is not None, "the caller has one"
    known = {m.value for m in found.matches if not m.mismatch and m is not first}
    suspect = Suspect(
        module=_module(graph, first),
        event=first.event,
        value=first.value,
        ours=first.ours,
        theirs=first.theirs,
        graph=graph,
        behind=[node for node in graph.behind(first.value, known) if computes(node)],
        prefix=fed.prefix,
        row=fed.row,
        lengths=lengths,
        values=first.values,
        feed=fed.feed,
        peft=search.peft,
        bundle=bundle,
        prompt=prompt,
    )
    return suspect, known


def _logits_of(search: Search) -> str:
    outputs = search.graph.bundle.manifest.graph.outputs
    return next(spec.name for spec in outputs if spec.role == "logits")


def _logits(
    logits: NDArray[Any], fed: Fed, row: ReferenceRow
) -> tuple[ReferenceRow, NDArray[np.float32]]:
    """The row and its logits in a run with all values taken out, at the positions of both."""
    ours = logits[fed.row]
    if row.logits.ndim == 1:
        return row, ours
    first = (fed.prefix if fed.runs_prefix else 0) - fed.skipped
    ours = ours[first : first + fed.taken]
    return replace(row, logits=row.logits[-len(ours) :]), ours


def _never_arrived(
    graph: ModuleGraph, events: Sequence[Event], first: Match, known: set[str]
) -> Cause | None:
    """The input is some other, correct tensor: a module's output was skipped or rewired."""
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


def _module(graph: ModuleGraph, match: Match) -> str:
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
    wrong = [one for one in report.runs if not one.passed]
    if report.own_allowed is not None and wrong and all(one.held_to_own for one in wrong):
        return (
            "every module agrees on this row; the engine does not match itself: beside other rows "
            "or step by step it gives something else than for the row alone"
        )
    if wrong and all(one.without_prompt for one in wrong):
        return (
            "every module agrees on this row with its prompt; the engine gives something else than "
            "the base model where a row has none"
        )
    if not wrong:
        missed = next(iter(report.failures()), "a bound")
        return f"every module agrees, and every run passes; what does not hold is: {missed}"
    return "every module agrees on this row; the mismatch is around the graph"
