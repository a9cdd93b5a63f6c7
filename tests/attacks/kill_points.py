"""End a process at each step of publishing and rebuilding, and see what is there afterwards.

`python -m attacks.kill_points BUNDLE [PACK]` from tests/ takes any bundle with a graph, and a pack
of its engine, and prints a table: at every point the older bundle or the new one, whole, and
nothing left once the next one was written. SIGKILL comes between system calls; a signal that is
handled comes between lines, as an exception.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from support.damage import PARITY, the_prompt

import ptdeploy.files as files
from ptdeploy.backends.trt import TrtBackend
from ptdeploy.bundle import MODEL, check_destination, publish, read_bundle, stage_bundle
from ptdeploy.bundle import working_folder as working
from ptdeploy.commands import prompts
from ptdeploy.commands.rebuild import rebuild_bundle
from ptdeploy.commands.request import PromptAddRequest, RebuildRequest
from ptdeploy.errors import PtdeployError
from ptdeploy.progress import Progress
from ptdeploy.signals import EndedBySignal
from ptdeploy.targets.trt import TrtTarget

# Python's audit events before calls that look at files or change them.
EVENTS = {
    "open",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.copyfile",
    "shutil.rmtree",
    "fcntl.flock",
    "ctypes.dlsym",
}
KILLED, ENDED = 9, 143
# Where a signal may come between two lines: all that puts a bundle into its place.
PLACING = {publish.__code__.co_filename, working.__file__, files.__file__}


def as_version(source: Path, folder: Path, version: str) -> Path:
    """A copy that says it is another one, with a TensorRT engine that nothing here could open."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["attack"] = version
    manifest.update(target="trt", device="cuda")
    the_prompt(manifest)["parity"] = None
    manifest["files"] = [one for one in manifest["files"] if one["role"] != "parity"]
    (folder / PARITY).unlink(missing_ok=True)
    for name, role in (("engine.plan", "engine"), ("engine.json", "engine_info")):
        content = f"{version} {name}".encode()
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"].append(
            {"path": name, "role": role, "size": len(content), "sha256": digest, "of": MODEL}
        )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def publish_copy(new: Path, place: Path) -> None:
    """What compile ends with."""
    bundle = read_bundle(new)
    destination = check_destination(place, True)
    with stage_bundle(destination) as staging:
        for entry in bundle.manifest.files:
            bundle.copy(entry, staging / entry.path)
        publish(staging, bundle.manifest, destination)


def rebuild_in_place(new: Path, place: Path) -> None:
    """All of rebuild but TensorRT's builder, which is not at hand everywhere."""

    def build(self: Any, bundle: Any, asked: Any) -> tuple[str, ...]:
        for name in ("engine.plan", "engine.json"):
            shutil.copyfile(new / name, bundle.path / name)
        return ()

    with (
        mock.patch.object(TrtTarget, "rebuild", build),
        # Its engine.json is none that could say what its profiles take.
        mock.patch.object(TrtBackend, "takes", return_value=True),
    ):
        rebuild_bundle(RebuildRequest(bundle=place), Progress(quiet=True))


def add_in_place(pack: Path, place: Path) -> None:
    """All of adding a prompt but the comparison, which reads alone."""
    with mock.patch.object(prompts, "prove", lambda draft, _: draft):
        prompts.add_prompt(
            PromptAddRequest(bundle=place, prompt=pack, name="added", replace=True),
            Progress(quiet=True),
        )


def dies_at(point: int, work: Callable[[], None]) -> bool:
    """Do it in a process of its own, killed at that point; False where it came to its end."""
    child = os.fork()
    if child == 0:
        count = 0

        def step(event: str, _: object = None) -> None:
            nonlocal count
            if event not in EVENTS:
                return
            count += 1
            if count == point:
                os.kill(os.getpid(), KILLED)

        flush = os.fsync

        def step_and_flush(descriptor: int) -> None:
            step("open")
            flush(descriptor)
            step("open")

        os.fsync = step_and_flush
        sys.addaudithook(step)
        try:
            work()
        except BaseException as error:
            print(f"point {point}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == KILLED:
        return True
    assert status == 0, f"point {point} ended with {status}"
    return False


def ended_at(point: int, work: Callable[[], None]) -> bool:
    """`dies_at` by a signal that raises EndedBySignal before that line of what places bundles."""
    child = os.fork()
    if child == 0:
        count = 0

        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in PLACING:
                return None
            count += event == "line"
            if count == point:
                sys.settrace(None)
                raise EndedBySignal(signal.SIGTERM)
            return step

        sys.settrace(step)
        try:
            work()
        except EndedBySignal:
            os._exit(ENDED)
        except BaseException as error:
            print(f"point {point}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, ENDED), f"point {point} ended with {code}"
    return code == ENDED


def state(place: Path) -> str:
    """Which bundle is there, read as any reader does."""
    if not os.path.lexists(place):
        return "none"
    try:
        manifest = read_bundle(place).manifest
    except PtdeployError as error:
        return f"BROKEN: {error.problem}"
    if any(entry.path == "engine.plan" for entry in manifest.files):
        return (place / "engine.plan").read_text().split()[0]
    return "new" if "added" in manifest.prompts else "old"


SCENARIOS = ("new", "replace", "rebuild", "replace without exchange", "rebuild without exchange")
ADDING = ("add", "add without exchange")


def attack(
    source: Path,
    scenario: str,
    points: Iterator[int],
    pack: Path | None = None,
    ends: Callable[[int, Callable[[], None]], bool] = dies_at,
) -> Counter[str]:
    """End a scenario at these points until it comes to its end; counts what was there then.

    `pack` is of the source's engine, for those that add one.
    """
    found: Counter[str] = Counter()
    exchanged = files._renameat2
    if "without exchange" in scenario:
        files._renameat2 = lambda *_: False
    try:
        with tempfile.TemporaryDirectory(prefix="kill-") as folder:
            old = as_version(source, Path(folder) / "old", "old")
            new = as_version(source, Path(folder) / "new", "new")
            parent = Path(folder) / "place"
            place = parent / "live"
            work = rebuild_in_place if scenario.startswith("rebuild") else publish_copy
            if pack is not None:
                old, new, work = source, pack, add_in_place
            for point in points:
                shutil.rmtree(parent, ignore_errors=True)
                parent.mkdir()
                if scenario != "new":
                    shutil.copytree(old, place)
                died = ends(point, lambda: work(new, place))
                found[_judge(scenario, place, partial(work, new, place))] += 1
                if not died:
                    found["came to its end"] += 1
                    break
    finally:
        files._renameat2 = exchanged
    return found


def _judge(scenario: str, place: Path, work: Callable[[], None]) -> str:
    seen = state(place)
    if seen == "none" and scenario != "new":
        # Only where the system cannot exchange: what was moved aside comes back first of all.
        check_destination(place, True)
        seen = state(place)
        seen = f"{seen}, brought back" if seen in ("old", "new") else f"LOST: {seen}"
        if "without exchange" not in scenario:
            return f"LOST: {seen}"
    work()
    left = sorted(one.name for one in place.parent.iterdir() if one != place)
    if left or state(place) != "new":
        return f"LEFT: {left}, {state(place)}"
    return seen


def _is_wrong(words: str, ends: Callable[[int, Callable[[], None]], bool]) -> bool:
    return words[0].isupper() or (ends is ended_at and "brought back" in words)


def main() -> int:
    source, *packs = map(Path, sys.argv[1:])
    wrong = points = 0
    tried = [(scenario, None) for scenario in SCENARIOS]
    tried += [(scenario, pack) for pack in packs for scenario in ADDING]
    for ends, (scenario, pack) in itertools.product((dies_at, ended_at), tried):
        found = attack(source, scenario, itertools.count(1), pack, ends)
        found.pop("came to its end")
        points += sum(found.values()) - 1
        wrong += sum(count for words, count in found.items() if _is_wrong(words, ends))
        what = f"{scenario}, {'killed' if ends is dies_at else 'a signal'}"
        print(f"{what:36}", ", ".join(f"{words}: {n}" for words, n in sorted(found.items())))
    print(f"{points} points, wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
