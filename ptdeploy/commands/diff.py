"""What changed between two bundles: for looking at an upgrade before it is shipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ptdeploy import arguments
from ptdeploy.arguments import checked, flag, maybe, path
from ptdeploy.backends import engine_facts, engine_words
from ptdeploy.bundle import Bundle, Manifest, read_bundle, whole
from ptdeploy.bundle.signature import words_of
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.commands.speeds import Speed, Timing, speeds
from ptdeploy.errors import InputError, TargetUnavailable
from ptdeploy.parity.completed import completed, pending
from ptdeploy.parity.measure import finite
from ptdeploy.parity.quality import row_logits
from ptdeploy.parity.reference.store import load_reference
from ptdeploy.printable import number_of, printable_fields
from ptdeploy.runtime import Engine, open_engine

# What a manifest, and a prompt in it, has that is shown in other parts or in other words. Every
# other field is a setting, also one that is new.
_IN_OTHER_PARTS = ("versions", "graphs", "prompts", "base", "files")
_PARITY = ("parity", "graph_parity")
# The parity of an engine that was built where it cannot run.
_PENDING = "pending"


class Change(msgspec.Struct, frozen=True):
    """One fact that is not the same in both; null where one has none, or in JSON a number that is
    not finite."""

    name: str
    before: Any
    after: Any


class Difference(msgspec.Struct, frozen=True):
    """Two bundles beside each other. Everything that is equal in both is left out.

    `settings` has all that the manifests say but for what is in the other parts. Of the default
    prompts, whatever they are called, it has every field, as `prompt`, and of every other prompt
    that both have; files are compared by role, size and SHA-256.
    `parity` has what was found of the engine and, where there is one, of its graph check, never one
    beside the other; an engine that has not run yet is "pending".
    `logits_max_abs` is the largest difference of the two engines' logits on the first one's stored
    rows; null where they do not give the same kind of logits, were not run (`ran`), or where a
    difference is not finite: then `logits_finite` is false.
    """

    versions: tuple[Change, ...]
    settings: tuple[Change, ...]
    parity: tuple[Change, ...]
    files: tuple[Change, ...]
    operators: tuple[Change, ...] | None
    ran: bool
    logits_max_abs: float | None
    logits_finite: bool
    speed: tuple[Speed, ...]
    notes: tuple[str, ...]


@checked(
    before=path,
    after=path,
    speed=flag,
    rounds=arguments.whole(1, 100_000),
    max_slowdown=maybe(arguments.number),
)
def compare_bundles(
    before: str | Path,
    after: str | Path,
    speed: bool = False,
    rounds: int = 15,
    max_slowdown: float | None = None,
) -> Difference:
    """Read two bundles, run both on the same rows, and say what differs.

    `speed` measures both engines in turns, `rounds` times each after one that does not count.
    `max_slowdown` measures too, and says where the second takes over so many times as long; where
    it seems to, there are more rounds, up to 8 times as many.
    Where an engine cannot run here the rest is compared, and a note says so.
    Raises BundleError if one is damaged, TargetUnavailable if an engine that cannot run here is to
    be timed.
    """
    if max_slowdown is not None and not max_slowdown > 0:
        raise InputError(f"--max-slowdown {max_slowdown}: must be more than 0.")
    timing = Timing(rounds, max_slowdown) if speed or max_slowdown is not None else None
    return whole(before, lambda: whole(after, lambda: _compare(before, after, timing)))


def _compare(before: str | Path, after: str | Path, timing: Timing | None) -> Difference:
    bundles = read_bundle(before), read_bundle(after)
    a, b = (bundle.manifest for bundle in bundles)
    notes = []
    operators = tuple(_operators(bundle) for bundle in bundles)
    if None in operators:
        notes.append(
            "operators were not counted: that needs onnx (ptdeploy[compile]), and bundles with "
            "their ONNX."
        )
    engines = _open(bundles, timing is not None, notes)
    apart = _apart(bundles[0], *engines) if engines else None
    return Difference(
        versions=_changes(a.versions, b.versions),
        settings=_flat(_settings(bundles[0], b), _settings(bundles[1], a)),
        parity=_flat(_parity(bundles[0], b), _parity(bundles[1], a)),
        files=_changes(_files(bundles[0]), _files(bundles[1])),
        operators=None
        if operators[0] is None or operators[1] is None
        else _changes(operators[0], operators[1]),
        ran=engines is not None,
        logits_max_abs=None if apart is None else finite(apart),
        logits_finite=apart is None or math.isfinite(apart),
        speed=speeds(*engines, timing) if timing and engines else (),
        notes=tuple(notes),
    )


def describe(found: Difference) -> str:
    """The difference in lines of text."""
    found, lines = printable_fields(found), []
    for title, changes in (
        ("versions", found.versions),
        ("settings", found.settings),
        ("parity", found.parity),
        ("files", _in_file_words(found.files)),
        ("operators", found.operators),
    ):
        if changes is None:
            continue
        lines.append(f"{title}{'' if changes else ': the same'}")
        lines += [f"  {one.name}: {_change_words(one)}" for one in changes]
    lines.append(f"logits: {_logits_words(found)}")
    lines += [
        f"speed, {one.request}: {1000 * one.before:.2f} -> {1000 * one.after:.2f} ms "
        f"({one.ratio:.2f} times as long)"
        for one in found.speed
    ]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines)


def _in_file_words(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    return tuple(Change(one.name, _file(one.before), _file(one.after)) for one in changes)


def _file(entry: dict[str, Any] | None) -> str | None:
    """A file's role, size and the start of its SHA-256."""
    if entry is None:
        return None
    of = f" of {entry['of']}" if entry["of"] else ""
    return f"{entry['role']}{of}, {number_of(entry['size'], 'byte')}, {entry['sha256'][:12]}"


def _logits_words(found: Difference) -> str:
    where = "on the first bundle's stored rows"
    if not found.ran:
        return "not compared"
    if not found.logits_finite:
        return f"not finite {where}: how far apart they are cannot be said"
    if found.logits_max_abs is None:
        return "of another kind"
    return f"at most {found.logits_max_abs:.2g} apart {where}"


def _operators(bundle: Bundle) -> dict[str, int] | None:
    try:
        import onnx
    except ImportError:
        return None
    path = bundle.opened("model")
    if path is None:
        return None
    model = onnx.load(path, load_external_data=False)
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def _open(
    bundles: tuple[Bundle, Bundle], speed: bool, notes: list[str]
) -> tuple[Engine, Engine] | None:
    try:
        return open_engine(bundles[0]), open_engine(bundles[1])
    except TargetUnavailable as error:
        if speed:
            raise
        notes.append(f"the engines were not run: {error.problem}")
        return None


def _compared(bundle: Bundle) -> dict[str, Any]:
    """What an engine was built for and how; what it is called follows from that."""
    return dict(engine_words(bundle.manifest.target, engine_facts(bundle)).compared)


def _files(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file, by its path."""
    return {one.path: _without(one, "path") for one in bundle.manifest.files}


def _settings(bundle: Bundle, other: Manifest) -> dict[str, Any]:
    """What a bundle is, as plain data by name. Default prompts are held beside each other, whatever
    they are called; all others by their names, in full where the `other` bundle has one too."""
    manifest = bundle.manifest
    default, graph = manifest.default_prompt, manifest.graph
    return {
        **_without(manifest, *_IN_OTHER_PARTS),
        "base": _without(manifest.base, *_PARITY),
        "graph": {
            **_without(graph, "inputs", "outputs"),
            "inputs": _tensors(graph.inputs),
            "outputs": _tensors(graph.outputs),
        },
        "prompt": _without(manifest.prompt, *_PARITY),
        "prompts": {
            name: _without(one, *_PARITY)
            if name in other.prompts
            else f"{number_of(one.num_virtual_tokens, 'virtual token')}, {one.sha256[:16]}"
            for name, one in manifest.prompts.items()
            if name != default or name != other.default_prompt
        },
        "engine": _compared(bundle),
    }


def _without(struct: msgspec.Struct, *names: str) -> dict[str, Any]:
    """A struct's fields as plain data, but for some."""
    plain: dict[str, Any] = msgspec.to_builtins(struct)
    return {name: value for name, value in plain.items() if name not in names}


def _tensors(specs: Sequence[TensorSpec]) -> dict[str, str]:
    """A graph's tensors by role, in words: those of one role have few types and shapes."""
    words: dict[str, list[str]] = {}
    for spec in specs:
        words.setdefault(spec.role, []).append(f"{spec.dtype} {words_of(spec.shape)}")
    return {role: ", ".join(dict.fromkeys(found)) for role, found in words.items()}


def _parity(bundle: Bundle, other: Manifest) -> dict[str, Any]:
    """What was found of each prompt on the engine, and on the graph it was built from; of the
    default one first, as in `_settings`."""
    manifest, later, left = bundle.manifest, completed(bundle), pending(bundle)
    default = manifest.default_prompt

    def found(name: str | None) -> dict[str, Any]:
        of = manifest.base if name is None else manifest.prompts[name]
        engine = msgspec.to_builtins(of.parity or later.get(name))
        return {
            "engine": _PENDING if engine is None and name in left else engine,
            "graph check": msgspec.to_builtins(of.graph_parity),
        }

    others = [name for name in manifest.prompts if name != default or name != other.default_prompt]
    base = {} if default is None else {"base": found(None)}
    return {**found(default), **base, "prompts": {name: found(name) for name in others}}


def _flat(before: dict[str, Any], after: dict[str, Any]) -> tuple[Change, ...]:
    """What differs, by its path of names."""
    found: list[Change] = []
    for one in _changes(before, after):
        if isinstance(one.before, dict) and isinstance(one.after, dict):
            inner = _flat(one.before, one.after)
            found += [msgspec.structs.replace(i, name=f"{one.name}.{i.name}") for i in inner]
        else:
            found.append(one)
    return tuple(found)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[Change, ...]:
    names = [*before, *(name for name in after if name not in before)]
    return tuple(
        Change(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    )


def _apart(first: Bundle, before: Engine, after: Engine) -> float | None:
    """The largest difference, NaN where one is; None where there is nothing to compare."""
    reference = load_reference(first) if first.file("reference") else None
    if reference is None or _logits_of_a_token(before) != _logits_of_a_token(after):
        return None
    limits = after.manifest.request_limits
    segments = limits.type_vocab_size
    rows = [
        row
        for row in reference.rows
        if row.ids.size <= limits.max_sequence
        and row.ids.max() < limits.vocab_size
        and (row.type_ids is None or row.type_ids.max() < segments)
    ]
    with np.errstate(invalid="ignore"):
        differences = [
            np.abs(row_logits(before, row) - row_logits(after, row)).max() for row in rows
        ]
    # Python's max() would pass over a NaN that does not come first.
    return float(np.max(differences)) if differences else None


def _logits_of_a_token(engine: Engine) -> tuple[int, ...]:
    return engine.logit_shape(engine.manifest, 1)


def _change_words(change: Change) -> str:
    """Both values, numbers with as few digits as tell them apart."""
    for digits in (4, 8, 17):
        words = [_words(value, digits) for value in (change.before, change.after)]
        if words[0] != words[1]:
            break
    start = next((i for i, (a, b) in enumerate(zip(*words, strict=False)) if a != b), 0)
    return " -> ".join(_shortened(text, start) for text in words)


def _shortened(text: str, start: int) -> str:
    """At most 60 characters of a text, with that at `start`, where it differs from the other."""
    if len(text) <= 60:
        return text
    first = 0 if start < 50 else start - 20
    more = "..." if first + 57 < len(text) else ""
    return f"{'...' if first else ''}{text[first : first + 57]}{more}"


def _words(value: Any, digits: int) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one, digits)}" for name, one in value.items()) or "none"
    if isinstance(value, (tuple, list)):
        is_shape = value and all(type(one) is int for one in value)
        found = ", ".join(_words(one, digits) for one in value) or "none"
        return f"({found})" if is_shape else found
    if isinstance(value, float):
        return f"{value:.{digits}g}" if math.isfinite(value) else "not finite"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
