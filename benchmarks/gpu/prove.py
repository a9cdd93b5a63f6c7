"""Steps that prove what a GPU must show, over as many calls as they take.

    python benchmarks/gpu/prove.py run [STEP...]        # those left; one named that failed: again
    python benchmarks/gpu/prove.py rehearse [STEP...]   # anywhere: up to the first CUDA call

Every step is a process of its own, so that one that crashes or hangs ends no other. What came of
it is kept in the folder PROVEN, and all of it is written to OUT/proof.json after each step. A step
that does not fit into what is left of a call is left to the next one: PROVE_SECONDS, counted from
PROVE_BEGAN, which is when prove.sh began. Ends with 0 if all passed, 1 if one failed, 4 if none
failed and some are left.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = HERE / "steps.py"
sys.path[:0] = [str(HERE)]

# What ends a step for good. One that is "skipped" or "left" is looked at again in the next call.
DONE = ("passed", "failed")
FAILED, LEFT = 1, 4
# A step given less than this share of a call may be too long for what was left, not for a call.
WHOLE = 0.9
Found = dict[str, Any]


class NoGpu(Exception):
    """A step came to its first CUDA call, and there is no GPU here."""


class Incomplete(Exception):
    """A step failed, and `found` something all the same."""

    def __init__(self, words: str, found: Found) -> None:
        super().__init__(words)
        self.found = found


@dataclass
class Context:
    """What a step works with. `reached` says how far it came, whatever ends it."""

    folder: Path
    rehearsal: bool = False
    reached: list[str] = field(default_factory=list)

    def reach(self, what: str) -> None:
        print(what, flush=True)
        self.reached.append(what)


@dataclass(frozen=True)
class Step:
    """One thing to prove. `work` gives what it found, or raises.

    `seconds` is what it is expected to take; `needs` are steps without which it would be in vain,
    `after` steps that it waits for where they are asked for too, whatever comes of them.
    Neighbours that are all `together` run beside each other: they build, and time nothing.
    """

    name: str
    seconds: int
    work: Callable[[Context], Found]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    together: bool = False


class Proof:
    """What came of each step: a file each in `folder`, and all of them in one JSON, `out`."""

    def __init__(self, folder: Path, out: Path, steps: Sequence[Step], rehearsal: bool) -> None:
        self.folder, self.out, self.steps, self.rehearsal = folder, out, steps, rehearsal
        self.lock = threading.Lock()
        (folder / "state").mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)

    def of(self, name: str) -> Found:
        """What is known of a step; of one that no call came to, that it is left."""
        file = self.folder / "state" / f"{name}.json"
        found: Found = json.loads(file.read_text()) if file.is_file() else {"state": "left"}
        return found

    def keep(self, name: str, found: Found) -> None:
        with self.lock:
            _write(self.folder / "state" / f"{name}.json", found)
            states = {step.name: self.of(step.name) for step in self.steps}
            counts: dict[str, int] = {}
            for one in states.values():
                counts[one["state"]] = counts.get(one["state"], 0) + 1
            _write(self.out, {"rehearsal": self.rehearsal, "counts": counts, "steps": states})
        # A traceback's last line says what happened; any other error begins with it.
        lines = found.get("error", "").strip().splitlines()
        why = f": {lines[-1 if found['state'] == 'failed' else 0]}" if lines else ""
        print(f"{name}: {found['state']} after {found.get('seconds', 0)} s{why}", flush=True)
        if found.get("reached"):
            print(f"    {'; '.join(found['reached'])}", flush=True)


@dataclass
class Call:
    """One call: how long it may take, the file of its steps, which of them were asked for.

    `environment` is what the steps' processes are told.
    """

    proof: Proof
    seconds: float
    steps: Path
    asked: frozenset[str]
    environment: dict[str, str]
    at_once: int = 1
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.start + self.seconds - time.monotonic()

    def attempt(self, step: Step) -> None:
        """Run a step that is not done, where it fits and what it needs is there."""
        proof = self.proof
        if proof.of(step.name)["state"] in DONE:
            return
        broken = [one for one in step.needs if proof.of(one)["state"] in ("failed", "skipped")]
        if broken:
            proof.keep(
                step.name,
                {"state": "skipped", "error": f"needs {', '.join(broken)}, which did not pass"},
            )
            return
        before = (*step.needs, *(one for one in step.after if one in self.asked))
        if waiting := [name for name in before if proof.of(name)["state"] == "left"]:
            proof.keep(step.name, {"state": "left", "error": f"waits for {', '.join(waiting)}"})
            return
        given = self.left
        # One longer than a call gets a whole one all the same.
        if given < min(step.seconds, WHOLE * self.seconds):
            words = f"takes about {step.seconds} s of which {max(given, 0):.0f} were left"
            proof.keep(step.name, {"state": "left", "error": words})
            return
        proof.keep(step.name, self._run(step, given))

    def _run(self, step: Step, given: float) -> Found:
        result, log = (self.proof.folder / f"{step.name}.{end}" for end in ("result", "log"))
        result.unlink(missing_ok=True)
        environment = {**os.environ, **self.environment}
        if step.together:
            environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // self.at_once, 1))
        program = [sys.executable, __file__, "step", step.name]
        begun = time.monotonic()
        with log.open("w") as out:
            child = subprocess.Popen(
                [*program, "--steps", str(self.steps), "--result", str(result)],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
            try:
                code: int | None = child.wait(None if math.isinf(given) else max(given, 0))
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        spent = round(time.monotonic() - begun, 1)
        if code is None:
            whole = given >= WHOLE * self.seconds
            words = f"did not end within {spent} s\n"
            state = "failed" if whole else "left"
            return {"state": state, "seconds": spent, "error": _tail(log) + words}
        if not result.is_file():
            words = f"its process ended with {code}\n"
            return {"state": "failed", "seconds": spent, "error": _tail(log) + words}
        found: Found = json.loads(result.read_text())
        # What its libraries printed may say more than the error does.
        extra = {} if found["state"] == "passed" else {"log": _tail(log)}
        return {**found, "seconds": spent, **extra}


def run(steps: Sequence[Step], call: Call) -> None:
    """Each step in its turn; neighbours that may run together do."""
    for together, group in itertools.groupby(steps, key=lambda step: step.together):
        with ThreadPoolExecutor(call.at_once if together else 1) as pool:
            list(pool.map(call.attempt, group))


def work(step: Step, context: Context) -> Found:
    """What came of a step in this process."""
    try:
        found = step.work(context)
        return {"state": "passed", "reached": context.reached, "found": found}
    except Exception as error:
        missing = isinstance(error, NoGpu) or says_no_gpu(error)
        if missing and context.rehearsal:
            words = f"{type(error).__name__}: {error}"
            return {"state": "no GPU", "reached": context.reached, "error": words}
        some = {"found": error.found} if isinstance(error, Incomplete) else {}
        failed = {"state": "failed", "reached": context.reached, **some}
        return {**failed, "error": traceback.format_exc()}


def says_no_gpu(error: Exception) -> bool:
    from ptdeploy.errors import TargetUnavailable

    words = ("has no CUDAExecutionProvider", "needs an NVIDIA GPU", "did not start on this machine")
    return isinstance(error, TargetUnavailable) and any(one in str(error) for one in words)


def read_steps(file: Path) -> list[Step]:
    """The list STEPS of a Python file."""
    # What it imports from here is this module, also where that runs as a program.
    sys.modules.setdefault("prove", sys.modules[__name__])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    steps: list[Step] = module.STEPS
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "rehearse", "list", "step"))
    parser.add_argument("names", nargs="*", metavar="STEP")
    parser.add_argument("--steps", type=Path, default=STEPS, help="a file with a list STEPS")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    every = read_steps(arguments.steps)
    known = {step.name: step for step in every}
    if unknown := [name for name in arguments.names if name not in known]:
        print(f"no step {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if arguments.command == "list":
        print("\n".join(known))
        return 0
    kept = Path(os.environ.get("PROVEN", "/tmp/proven"))
    rehearsal = arguments.command == "rehearse" or "PROVE_REHEARSAL" in os.environ
    folder = kept / "rehearsal" if rehearsal else kept
    if arguments.command == "step":
        context = Context(folder, rehearsal)
        _write(arguments.result, work(known[arguments.names[0]], context))
        return 0
    if rehearsal:
        shutil.rmtree(folder, ignore_errors=True)
    out = Path(os.environ.get("OUT", ROOT / "build" / "proof"))
    proof = Proof(folder, out / "proof.json", every, rehearsal)
    for name in arguments.names:
        if proof.of(name)["state"] == "failed":
            (folder / "state" / f"{name}.json").unlink()
    names = with_needs(arguments.names, known) if arguments.names else known
    asked = [step for step in every if step.name in names]
    return prove(asked, proof, rehearsal, arguments.steps)


def with_needs(names: Sequence[str], known: Mapping[str, Step]) -> set[str]:
    """Steps, those that they need, and so on."""
    found = set(names)
    for name in names:
        found |= with_needs(known[name].needs, known)
    return found


def prove(asked: Sequence[Step], proof: Proof, rehearsal: bool, steps: Path) -> int:
    """Run what was asked for, and say in a number what came of it."""
    cores = os.cpu_count() or 1
    at_once = int(os.environ.get("PROVE_AT_ONCE", max(cores // 4, 1)))
    # Compiled engines and kernels are kept beside the rest; nobody else's are taken for proof.
    environment = {"PTDEPLOY_CACHE": str(proof.folder / "cache")}
    if rehearsal:
        environment["PROVE_REHEARSAL"] = "1"
    seconds = float(os.environ.get("PROVE_SECONDS", "inf" if rehearsal else "540"))
    names = frozenset(step.name for step in asked)
    # What prove.sh did before is a part of the call too.
    spent = time.time() - float(os.environ.get("PROVE_BEGAN", time.time()))
    start = time.monotonic() - max(spent, 0)
    run(asked, Call(proof, seconds, steps, names, environment, at_once, start))
    states = [proof.of(step.name)["state"] for step in asked]
    print(", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states)), proof.out)
    if "failed" in states or "skipped" in states:
        return FAILED
    return LEFT if "left" in states else 0


def _write(file: Path, found: Found) -> None:
    """Whole or not at all, however the call ends."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(json.dumps(found, indent=1, default=str) + "\n")
    beside.replace(file)


def _tail(log: Path, characters: int = 4000) -> str:
    return log.read_text(errors="replace")[-characters:]


if __name__ == "__main__":
    sys.exit(main())
