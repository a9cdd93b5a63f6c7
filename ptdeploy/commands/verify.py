"""verify(): a bundle's files, its engine against a reference, and where it goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptdeploy.arguments import checked, having, instance
from ptdeploy.bundle import Bundle, Manifest, check_hashes, read_bundle, whole
from ptdeploy.bundle.whose import in_words
from ptdeploy.commands.draft import in_stages
from ptdeploy.commands.request import VerifyRequest
from ptdeploy.commands.verify_bounds import check_bounds
from ptdeploy.commands.verify_reference import (
    computed_reference,
    read_same,
    tokenizer_to_compare,
    with_own_logits,
)
from ptdeploy.errors import InputError
from ptdeploy.files import check_readable
from ptdeploy.parity.base_alone import compare_with_base
from ptdeploy.parity.data import DataRow, read_data
from ptdeploy.parity.graph_check import as_graph_check, open_graph_check
from ptdeploy.parity.mixed import MixedRows, with_mixed
from ptdeploy.parity.reference import Reference
from ptdeploy.parity.reference.store import load_reference, referred
from ptdeploy.parity.report import Failing, ParityReport
from ptdeploy.parity.reports import check_report
from ptdeploy.parity.thresholds import Overrides, read_thresholds
from ptdeploy.progress import Progress, reference_stage
from ptdeploy.runtime import Engine, open_engine
from ptdeploy.targets import get_target

if TYPE_CHECKING:
    from ptdeploy.parity.reference.peft import PeftSource
    from ptdeploy.source.tokenizer_choice import ChosenTokenizer

_STORED_TEXTS = (
    "the bundle's tokenizer was compared with what compile stored: it was given with --tokenizer, "
    "or is in neither the checkpoint nor its base any more. Pass --tokenizer to compare it anew."
)
_CHECKPOINT = "Pass the checkpoint with --checkpoint."
# So many prompts stay in memory: batches that mix them have no more.
_MOST_PROMPTS = 16


@checked(request=instance(VerifyRequest), progress=having("stage", "note", "within"))
def verify_bundle(request: VerifyRequest, progress: Progress) -> ParityReport:
    """See ptdeploy.verify."""
    _refuse(request)
    path = request.bundle
    with ExitStack() as opened:
        with progress.stage("check the bundle's files"):

            def enter() -> tuple[Bundle, tuple[str | None, ...], Engine]:
                bundle = read_bundle(path, hashes=False)
                names = _names(bundle, request)
                every = set(names) >= set(bundle.manifest.prompts)
                check_hashes(bundle, None if every else names)
                opening = _opening(bundle.by_default(names[0]), request)
                return bundle, names, opened.enter_context(opening)

            own, names, engine = whole(path, enter)
        overrides = Overrides()
        if request.thresholds is not None:
            overrides = read_thresholds(request.thresholds, engine.bundle.manifest.precision)
        given = read_data(request.data, engine) if request.data is not None else ()
        check_bounds(request, overrides, engine, names, given)
        peft: PeftSource | None = None
        chosen: ChosenTokenizer | None = None
        if request.checkpoint is not None:
            with progress.stage("read the checkpoint"):
                from ptdeploy.parity.reference.peft import open_peft

                peft = open_peft(*read_same(request, own, names[0]))
                chosen = tokenizer_to_compare(peft, engine, request.tokenizer)
        run = _Run(request, own, names, engine, peft, chosen, given, overrides)
        return _compare(run, progress)


def _names(bundle: Bundle, request: VerifyRequest) -> tuple[str | None, ...]:
    """The prompts to be compared, the one that options are about first; None is the base alone.

    Raises InputError if the one that was asked for is not there, or a checkpoint is of none.
    """
    prompts, default = bundle.manifest.prompts, bundle.manifest.default_prompt
    if request.prompt is not None:
        if request.prompt not in prompts:
            raise InputError(
                f"{bundle.path}: has no prompt {request.prompt!r}; there is {in_words(prompts)}."
            )
        return (request.prompt,)
    if request.checkpoint is not None and default is None:
        raise InputError(
            f"{bundle.path}: has no default prompt that a checkpoint could be of.",
            f"Say which prompt it is with --prompt: there is {in_words(prompts)}.",
        )
    if request.checkpoint is not None or request.data is not None:
        return (default,)
    return tuple(dict.fromkeys((default, *sorted(prompts), *referred(bundle))))


def _refuse(request: VerifyRequest) -> None:
    """Refuse what can be refused before the bundle is read."""
    if request.locate and request.checkpoint is None:
        raise InputError("--locate compares with PyTorch, layer by layer.", _CHECKPOINT)
    if request.tokenizer is not None and request.checkpoint is None:
        raise InputError("--tokenizer is compared as transformers has it.", _CHECKPOINT)
    for option, value in (("--base", request.base), ("--adapter", request.adapter)):
        if value is not None and request.checkpoint is None:
            raise InputError(
                f"{option} is about a checkpoint, and none was given.",
                _CHECKPOINT,
            )
    for option, file in (("--data", request.data), ("--thresholds", request.thresholds)):
        if file is not None and str(file) != "-":
            check_readable(Path(file), option)
    if request.report is not None:
        check_report(Path(request.report))


@dataclass(frozen=True)
class _Run:
    """What was asked, an open engine, and what it is held against.

    `own` is the bundle as it was read: a graph check's engine has one of another target and
    precision. `names` are the prompts to be compared; that of the engine's requests is the first.
    """

    request: VerifyRequest
    own: Bundle
    names: tuple[str | None, ...]
    engine: Engine
    peft: PeftSource | None
    chosen: ChosenTokenizer | None
    given: Sequence[DataRow]
    overrides: Overrides

    @property
    def manifest(self) -> Manifest:
        """That of the bundle as it was read."""
        return self.own.manifest


def _compare(run: _Run, progress: Progress) -> ParityReport:
    found, reference = _compare_first(run, progress)
    # Of each reference only what is mixed is kept: a thousand of them would fill the memory.
    mixed = [MixedRows.of(run.engine, reference, found)]
    others = []
    for name in run.names[1:]:
        with progress.stage(f"check parity{in_stages(name, run.manifest)}"):
            engine = run.engine.by_default(name)
            of_other = _reference_of(engine, run)
            others.append(compare_with_base(engine, of_other, (), run.overrides, progress=progress))
        mixed.append(MixedRows.of(engine, of_other, others[-1]))
    if others:
        found = msgspec.structs.replace(found, prompts=tuple(others))
        with progress.stage("check parity of batches that mix prompts"):
            found = with_mixed(found, run.engine, mixed)
    _complete(run, found, progress)
    if run.request.report is not None:
        found = _write_report(run, found, reference, Path(run.request.report), progress)
    return found


def _compare_first(run: _Run, progress: Progress) -> tuple[ParityReport, Reference]:
    """The prompt that the request is about, and what it was held against."""
    engine, bundle = run.engine, run.engine.bundle
    notes: list[str] = []
    if run.peft is None:
        reference = _stored_reference(run)
    else:
        notes += _notes(run.peft, bundle)
        if engine.tokenizer and run.chosen is None:
            notes.append(_STORED_TEXTS)
        with progress.stage(reference_stage(run.peft.checkpoint.of_peft)):
            reference = computed_reference(run.peft, run.chosen, engine, run.given, progress)
    left_out = set(run.manifest.prompts) - set(run.names)
    if left_out:
        notes.append(f"other prompts were not compared: {in_words(left_out)}.")
    with progress.stage(f"check parity{in_stages(run.names[0], run.manifest)}"):
        found = compare_with_base(engine, reference, notes, run.overrides, run.given, progress)
    if run.request.locate:
        assert run.peft is not None, "checked before"
        with progress.stage("locate the first mismatch"):
            from ptdeploy.parity.locate import locate_mismatch

            located = locate_mismatch(bundle, engine, run.peft, reference, found)
            found = msgspec.structs.replace(found, located=located)
    return found, reference


def _complete(run: _Run, found: ParityReport, progress: Progress) -> None:
    """Keep the report of an engine whose parity was pending.

    It must mean what the bundle says itself, of all prompts that are pending: with bounds or data
    of one's own, or of one of them alone, it is not kept, nor replaces one that is.
    """
    from ptdeploy.parity.completed import keep_completed, pending

    request, left = run.request, set(pending(run.own))
    if request.graph or not left.intersection(run.names):
        return
    options = {"--thresholds": request.thresholds, "--data": request.data}
    if not left <= set(run.names):
        options.update({"--prompt": request.prompt, "--checkpoint": request.checkpoint})
    given = [option for option, value in options.items() if value is not None]
    without = f"the bundle's parity stays pending: it is completed without {', '.join(given)}."
    progress.note(without if given else keep_completed(run.engine.bundle, found))


def _write_report(
    run: _Run, found: ParityReport, reference: Reference, folder: Path, progress: Progress
) -> ParityReport:
    from ptdeploy.parity.reports import write_reports
    from ptdeploy.parity.shrink import remove_failing

    if found.passed:
        # What an earlier run left here no longer fails.
        remove_failing(folder)
    else:
        with progress.stage("shrink the failing input"):
            found = msgspec.structs.replace(found, failing=_shrink(run, found, reference, folder))
    write_reports(found, run.engine.bundle.manifest, folder)
    return found


def _shrink(run: _Run, found: ParityReport, reference: Reference, folder: Path) -> Failing | None:
    """The smallest failing input of the first prompt that fails and that data can be about."""
    from ptdeploy.parity.shrink import remove_failing, write_failing

    default = run.manifest.default_prompt
    # --data is about a named prompt or the default one: beside that, never about the base alone.
    failing = [
        one
        for one in found.each()
        if not one.passed and one.prompt in (default, *run.manifest.prompts)
    ]
    if not failing:
        remove_failing(folder)
        return None
    report = failing[0]
    asked = ["--graph"] if run.request.graph else []
    if report.prompt is not None and report.prompt != default:
        asked += ["--prompt", report.prompt]
    if report.prompt == run.names[0]:
        return write_failing(
            folder, run.engine, reference, report, run.overrides, run.peft, asked, run.given
        )
    engine = run.engine.by_default(report.prompt)
    reference = _reference_of(engine, run)
    return write_failing(folder, engine, reference, report, run.overrides, None, asked)


@contextmanager
def _opening(bundle: Bundle, request: VerifyRequest) -> Iterator[Engine]:
    """The engine, or the graph that it was built from."""
    with _open_graph(bundle) if request.graph else _open(bundle) as engine:
        yield engine


@contextmanager
def _open(bundle: Bundle) -> Iterator[Engine]:
    yield open_engine(bundle, max_prompts=_MOST_PROMPTS)


@contextmanager
def _open_graph(bundle: Bundle) -> Iterator[Engine]:
    """The graph that the bundle's engine was built from, run by the target that stands in."""
    stand_in = get_target(bundle.manifest.target).graph_check
    if not stand_in:
        raise InputError(
            f"{bundle.path}: an engine of the target {bundle.manifest.target} is its graph.",
            "Leave --graph out.",
        )
    if bundle.file("model") is None:
        raise InputError(
            f"{bundle.path}: holds no ONNX, so its graph cannot be run.",
            "Compile it with --keep-onnx.",
        )
    with open_graph_check(bundle, stand_in) as engine:
        yield engine


def _stored_reference(run: _Run) -> Reference:
    reference = _reference_of(run.engine, run)
    return with_own_logits(reference, run.given, run.engine.manifest)


def _reference_of(engine: Engine, run: _Run) -> Reference:
    """What is stored of the engine's default prompt."""
    reference = load_reference(engine.bundle)
    if run.request.graph:
        name = engine.manifest.default_prompt
        own = msgspec.structs.replace(run.manifest, default_prompt=name)
        reference = as_graph_check(reference, own)
    return reference


def _notes(peft: PeftSource, bundle: Bundle) -> list[str]:
    from ptdeploy.program.manifest import config_sha256

    notes = []
    if dict(peft.checkpoint.files) != bundle.manifest.prompt.source.files:
        notes.append("the checkpoint's files are not those the bundle was compiled from.")
    if config_sha256(peft.base) != bundle.manifest.base.config_sha256:
        notes.append("the base model's configuration is not the one the bundle was compiled with.")
    return notes
