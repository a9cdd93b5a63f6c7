"""How long each layer of a bundle's engine takes, for the requests that its task is made of."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ptdeploy import arguments
from ptdeploy.arguments import MOST, MOST_THREADS, checked, having, maybe, path, text
from ptdeploy.backends import get_backend
from ptdeploy.backends.layers import Layer, LayerTime, Profiled
from ptdeploy.backends.modules import layer_of, part_of
from ptdeploy.backends.session import DeviceArray, PagedCache, Session
from ptdeploy.bundle import Bundle, check_hashes, read_bundle, whole
from ptdeploy.errors import InputError
from ptdeploy.printable import printable_fields
from ptdeploy.progress import Progress
from ptdeploy.runtime import ENGINES
from ptdeploy.runtime.layout import check_manifest
from ptdeploy.runtime.probes import ProbeRequest
from ptdeploy.runtime.prompt_choice import OnePrompt, one_prompt
from ptdeploy.tables import columns

ROUNDS = 20
_WARM_UP = 3
# Layers that vary by themselves still add up to this much of a round.
_STEADY = 0.7
Key = TypeVar("Key", Layer, str)


@dataclass(frozen=True)
class LayerShare:
    """A layer's median time in a request, and its share of what all layers take."""

    layer: Layer
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Group:
    """The same for several layers together."""

    name: str
    layers: int
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Section:
    """A request by its layers, the slowest first.

    `milliseconds` is the median of the whole request by the clock, `layers_milliseconds` that of
    what its layers add up to, and `covered` that of the one in the other; the rest is the engine's
    own work between layers, copies, and Python. `engine_runs` is how often the request ran the
    engine. `by_layer` groups by the model's layers (`model.layers.0`), `by_part` by what is the
    same in each of them (`model.layers.*.mlp`).
    """

    request: str
    batch: int
    tokens: int
    engine_runs: int
    milliseconds: float
    layers_milliseconds: float
    covered: float
    layers: tuple[LayerShare, ...]
    by_layer: tuple[Group, ...]
    by_part: tuple[Group, ...]
    by_operator: tuple[Group, ...]


@dataclass(frozen=True)
class Profile:
    """A bundle's engine on one device: a section for each kind of request."""

    bundle: str
    target: str
    device: str
    precision: str
    task: str
    threads: int | None
    rounds: int
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


@checked(
    bundle=path,
    batch=arguments.whole(most=65_536),
    tokens=maybe(arguments.whole(most=MOST)),
    rounds=arguments.whole(most=100_000),
    device=maybe(text),
    threads=maybe(arguments.whole(0, MOST_THREADS)),
    prompt=one_prompt,
    progress=having("stage", "note"),
)
def profile_bundle(
    bundle: str | Path,
    *,
    batch: int,
    tokens: int | None,
    rounds: int,
    device: str | None,
    threads: int | None,
    prompt: OnePrompt,
    progress: Progress,
) -> Profile:
    """See ptdeploy.profile."""
    for option, value in (("--batch", batch), ("--tokens", tokens), ("--rounds", rounds)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be at least 1.")
    with ExitStack() as stack:

        def enter() -> tuple[Bundle, Profiled]:
            with progress.stage("check the bundle's files"):
                own = read_bundle(bundle, hashes=False)
                manifest = own.manifest
                asked = (prompt,) if isinstance(prompt, str) else ()
                check_hashes(own, (manifest.default_prompt, *asked))
            check_manifest(own, ENGINES[manifest.task].manifest_problems(manifest))
            backend = get_backend(manifest.target)
            profiled = backend.profiled(own, device or manifest.device, threads)
            return own, stack.enter_context(profiled)

        own, opened = whole(bundle, enter)
        manifest = own.manifest
        session = _Counted(opened.session)
        engine = ENGINES[manifest.task](own, session, None)
        measured = []
        for request in engine.step_requests(batch, tokens, prompt):
            with progress.stage(f"profile {request.name}"):
                measured.append(_measure(request, session, rounds))
        with progress.stage("read the profile"):
            runs = opened.runs()
    if len(runs) != session.runs:
        raise InputError(
            f"The engine ran {session.runs} times, but its profiler kept {len(runs)} runs.",
            f"Ask for fewer than --rounds {rounds}.",
        )
    sections = tuple(_section(one, runs) for one in measured)
    return Profile(
        str(own.path),
        manifest.target,
        device or manifest.device,
        manifest.precision,
        manifest.task.value,
        threads,
        rounds,
        sections,
        (*opened.notes, *(note for one in sections for note in _unsteady(one))),
    )


@dataclass
class _Counted:
    """A session that counts its runs: a request may take several, and warming up does too."""

    session: Session
    runs: int = 0

    @property
    def cache(self) -> PagedCache | None:
        return self.session.cache

    @property
    def in_host_memory(self) -> bool:
        return self.session.in_host_memory

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        self.runs += 1
        return self.session.run(inputs)

    def place(self, array: NDArray[Any]) -> DeviceArray:
        return self.session.place(array)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        step = self.session.bind(inputs, outputs)

        def counted() -> None:
            self.runs += 1
            step()

        return counted


@dataclass
class _Measured:
    """A request's rounds: seconds by the clock, and which of the engine's runs each one was."""

    request: ProbeRequest
    seconds: list[float] = field(default_factory=list)
    spans: list[slice] = field(default_factory=list)


def _measure(request: ProbeRequest, session: _Counted, rounds: int) -> _Measured:
    found = _Measured(request)
    for number in range(-_WARM_UP, rounds):
        request.reset()
        first, start = session.runs, time.perf_counter()
        request.run()
        if number >= 0:
            found.seconds.append(time.perf_counter() - start)
            found.spans.append(slice(first, session.runs))
    return found


def _section(measured: _Measured, runs: Sequence[Sequence[LayerTime]]) -> Section:
    rounds = [[one for run in runs[span] for one in run] for span in measured.spans]
    together = [sum(one.seconds for one in times) for times in rounds]
    ratios = [part / whole for part, whole in zip(together, measured.seconds, strict=True)]
    request, span = measured.request, measured.spans[0]
    layers = _grouped(rounds, lambda layer: layer)
    return Section(
        request.name,
        request.batch,
        request.tokens,
        span.stop - span.start,
        1e3 * statistics.median(measured.seconds),
        1e3 * statistics.median(together),
        statistics.median(ratios),
        tuple(LayerShare(layer, took, share) for layer, _, took, share in layers),
        _groups(rounds, lambda layer: layer_of(layer.module)),
        _groups(rounds, lambda layer: part_of(layer.module)),
        _groups(rounds, lambda layer: layer.operator),
    )


def _unsteady(section: Section) -> list[str]:
    """A note where the layers' medians add up to far less than the median round."""
    usual = sum(one.milliseconds for one in section.layers)
    if usual >= _STEADY * section.layers_milliseconds:
        return []
    return [
        f"{section.request}: the layers' medians add up to {usual:.3f} ms only, so that in most "
        "rounds some layers were held up: something else uses this machine."
    ]


def _groups(
    rounds: Sequence[Sequence[LayerTime]], key: Callable[[Layer], str]
) -> tuple[Group, ...]:
    return tuple(Group(*one) for one in _grouped(rounds, key))


def _grouped(
    rounds: Sequence[Sequence[LayerTime]], key: Callable[[Layer], Key]
) -> list[tuple[Key, int, float, float]]:
    """By key how many layers, their median milliseconds together, and their share; slowest first.

    The shares are of the medians' sum, so that they add up to 1.
    """
    layers = dict.fromkeys(one.layer for times in rounds for one in times)
    counts = Counter(key(layer) for layer in layers)
    sums: list[Counter[Key]] = []
    for times in rounds:
        found: Counter[Key] = Counter()
        for one in times:
            found[key(one.layer)] += one.seconds  # type: ignore[assignment]
        sums.append(found)
    medians = {name: 1e3 * statistics.median(found[name] for found in sums) for name in counts}
    # Of a model so small that no layer takes a tick of the profiler's clock.
    whole = sum(medians.values()) or 1.0
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    return [(name, counts[name], took, took / whole) for name, took in ordered]


def describe(found: Profile, top: int) -> str:
    """The profile in tables, of `top` lines each."""
    found = printable_fields(found)
    threads = f", {found.threads} threads" if found.threads else ""
    lines = [
        f"{found.bundle}: {found.target} {found.precision} on {found.device}{threads}, "
        f"medians of {found.rounds} rounds"
    ]
    for one in found.sections:
        runs = f", {one.engine_runs} engine runs" if one.engine_runs > 1 else ""
        lines += [
            "",
            f"{one.request}: {one.milliseconds:.3f} ms{runs}; its layers take "
            f"{one.layers_milliseconds:.3f} ms of it ({one.covered:.0%} in the median round)",
            *_layer_table(one, top),
        ]
        for title, groups in (
            ("layer of the model", one.by_layer),
            ("part of a layer", one.by_part),
            ("operator", one.by_operator),
        ):
            lines += ["", *_group_table(title, groups, top)]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines)


def _layer_table(section: Section, top: int) -> list[str]:
    rows = [("ms", "share", "type", "operator", "module", "layer")]
    for one in section.layers[:top]:
        layer = one.layer
        rows.append(
            (
                f"{one.milliseconds:.3f}",
                f"{one.share:.1%}",
                layer.outputs[0] if layer.outputs else "",
                layer.operator + (" (fused)" if layer.fused else ""),
                layer.module,
                layer.name.removeprefix(f"{layer.module}/"),
            )
        )
    rest = section.layers[top:]
    return [*columns(rows, right=(0, 1)), *_rest(len(rest), sum(one.milliseconds for one in rest))]


def _group_table(title: str, groups: Sequence[Group], top: int) -> list[str]:
    rows = [("ms", "share", "layers", f"by {title}")]
    for one in groups[:top]:
        shares = (f"{one.milliseconds:.3f}", f"{one.share:.1%}", str(one.layers))
        rows.append((*shares, one.name or "not said"))
    rest = groups[top:]
    return [*columns(rows, right=(0, 1)), *_rest(len(rest), sum(one.milliseconds for one in rest))]


def _rest(count: int, milliseconds: float) -> list[str]:
    return [f"  and {count} more, {milliseconds:.3f} ms together"] if count else []
