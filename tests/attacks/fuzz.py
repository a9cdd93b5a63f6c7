"""Readers of untrusted files on bytes that are nearly right; a table of what came of them.

    python tests/attacks/fuzz.py                     # 1,000,000 executions over all readers
    python tests/attacks/fuzz.py --runs 5000 manifest torch
    python tests/attacks/fuzz.py --engine atheris    # guided by coverage (pip install atheris)

Findings are kept in tests/attacks/corpus/READER/, where test_fuzz.py runs them ever after. Exit
code 1 if there was one. Each reader has a process of its own, so that a crash is a finding too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

# How many of all executions a reader gets: most go to what is quick and has many checks.
SHARES = {
    "manifest": 25,
    "reference-decoder": 12,
    "reference-classifier": 12,
    "safetensors": 8,
    "torch": 2,
    "shards": 6,
    "adapter-config": 8,
    "nemo": 1,
    "nemo-config": 1,
    "json": 4,
    "tokenizer": 8,
    "chat-template": 1,
    "engine-info": 6,
    "thresholds": 4,
    "labels": 2,
    "texts": 2,
}


class Harness:
    """One reader, and what its executions came to."""

    def __init__(self, name: str, folder: Path) -> None:
        from attacks.readers import READERS

        self.reader, self.folder = READERS[name], folder
        self.counts: Counter[str] = Counter()
        self.findings: dict[str, bytes] = {}

    def run(self, data: bytes) -> str:
        """Read, or be refused: anything else is kept, once for each place it comes from."""
        from ptdeploy.errors import PtdeployError

        # A broken reader must not be able to overwrite this before it has run.
        (self.folder / "last").write_bytes(data)
        inside = self.folder / "in"
        inside.mkdir(exist_ok=True)
        try:
            self.reader.read(inside, data)
            outcome = "read"
        except PtdeployError:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "finding"
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "ptdeploy" in f.filename] or frames
            where = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}"
            self.findings.setdefault(where, data)
        self.counts[outcome] += 1
        return outcome


def one_reader(name: str, runs: int, seed: int, engine: str) -> dict[str, object]:
    """Run one reader here. Gives counts and findings."""
    from attacks.mutate import mutate
    from attacks.readers import CORPUS

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        harness = Harness(name, folder)
        seeds = harness.reader.seeds(folder)
        kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
        for data in (*seeds, *kept):
            harness.run(data)
        start = time.perf_counter()
        rng = random.Random(seed)
        if engine == "atheris":
            _guided(harness, [*seeds, *kept], runs, seed)
        else:
            pool = [*seeds, *kept]
            for _ in range(runs):
                data = mutate(rng.choice(pool), rng)
                # What was read goes on being changed, so that changes add up.
                if harness.run(data) == "read" and len(pool) < 200 and rng.random() < 0.05:
                    pool.append(data)
        seconds = time.perf_counter() - start
        for where, data in harness.findings.items():
            (CORPUS / name).mkdir(parents=True, exist_ok=True)
            (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            print(f"{name}: {where}", file=sys.stderr)
        return {"reader": name, "seconds": seconds, **harness.counts}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _guided(harness: Harness, seeds: list[bytes], runs: int, seed: int) -> None:
    import atheris
    from attacks.mutate import mutate

    def custom(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(data, rng)[:max_size]

    corpus = harness.folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    options = ["-max_len=100000", f"-runs={runs}", f"-seed={seed + 1}", "-verbosity=0"]
    atheris.instrument_all()
    # libFuzzer ends the process when it is done, so it gets one of its own.
    child = os.fork()
    if not child:
        done = Harness(harness.reader.name, harness.folder)

        def one(data: bytes) -> None:
            done.run(data)
            if sum(done.counts.values()) >= runs:
                report = {"counts": done.counts, "findings": {}}
                for where, found in done.findings.items():
                    report["findings"][where] = found.hex()  # type: ignore[index]
                (harness.folder / "report").write_text(json.dumps(report))

        atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=custom)
        atheris.Fuzz()
        os._exit(0)
    os.waitpid(child, 0)
    report = json.loads((harness.folder / "report").read_text())
    harness.counts.update(report["counts"])
    harness.findings.update({k: bytes.fromhex(v) for k, v in report["findings"].items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", choices=[*SHARES, []], metavar="READER")
    parser.add_argument("--runs", type=int, default=1_000_000, help="over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(one_reader(asked.child, asked.runs, asked.seed, asked.engine)))
        return 0
    names = asked.readers or list(SHARES)
    whole = sum(SHARES[name] for name in names)
    print(f"{'reader':<22}{'executions':>11}{'read':>9}{'refused':>9}{'findings':>9}{'per s':>8}")
    total: Counter[str] = Counter()
    for name in names:
        runs = max(1, asked.runs * SHARES[name] // whole)
        command = [sys.executable, __file__, "--child", name, "--runs", str(runs)]
        command += ["--seed", str(asked.seed), "--engine", asked.engine]
        quiet = {**os.environ, "RUST_BACKTRACE": "0", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, capture_output=True, text=True, env=quiet)
        sys.stderr.writelines(
            f"  {one}\n" for one in done.stderr.splitlines() if one.startswith(name)
        )
        try:
            row = Counter(json.loads(done.stdout.splitlines()[-1]))
        except (IndexError, ValueError):
            row = Counter({"reader": name, "finding": 1, "seconds": 1})
            print(f"{name}: its process ended with {done.returncode}", file=sys.stderr)
        counts = {key: row[key] for key in ("read", "refused", "finding")}
        total.update(counts)
        executed = sum(counts.values())
        numbers = f"{executed:>11,}{row['read']:>9,}{row['refused']:>9,}{row['finding']:>9}"
        print(f"{name:<22}{numbers}{executed / row['seconds']:>8,.0f}", flush=True)
    executed = sum(total.values())
    numbers = f"{executed:>11,}{total['read']:>9,}{total['refused']:>9,}{total['finding']:>9}"
    print(f"{'all':<22}{numbers}")
    return 1 if total["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
