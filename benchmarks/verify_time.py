"""How long verify takes on models/topics, each run in a process of its own, as a CI job would.

    python benchmarks/verify_time.py [--rounds 5]

Golden: without torch (the process refuses to import it). Checkpoint: PEFT run again on all rows.
Locate: the same, with every module's tensors compared. Prints JSON with date and CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPICS = ROOT / "models" / "topics"
sys.path[:0] = [str(ROOT), str(TOPICS)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RUN = """
import sys
if sys.argv[1] == "golden":
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "transformers", "peft", "onnx"):
                raise ImportError(name)
    sys.meta_path.insert(0, Refuse())
from ptdeploy.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    from data import find_base_model

    import ptdeploy

    base = str(find_base_model())
    with tempfile.TemporaryDirectory() as temporary:
        bundle = str(Path(temporary) / "topics.bundle")
        ptdeploy.compile(
            TOPICS / "adapter",
            target="ort",
            base=base,
            labels=str(TOPICS / "labels.txt"),
            output=bundle,
        )
        verify = ["verify", bundle, "-q", "--json"]
        checkpoint = ["--checkpoint", str(TOPICS / "adapter"), "--base", base]
        runs = {
            "golden": ["golden", *verify],
            "checkpoint": ["checkpoint", *verify, *checkpoint],
            "locate": ["locate", *verify, *checkpoint, "--locate"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        cases = {}
        for _ in range(rounds):
            for name, arguments in runs.items():
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", RUN, *arguments],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
                seconds[name].append(time.perf_counter() - start)
                cases[name] = len(json.loads(done.stdout)["cases"])
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found = {
        "date": str(date.today()),
        "cpu": f"{cpu[1] if cpu else 'CPU'}, {os.cpu_count()} cores",
        "model": "models/topics (all-MiniLM-L6-v2, 20 virtual tokens, fp32)",
        "rounds": rounds,
        "cases": cases,
        "median_s": {name: round(statistics.median(all), 2) for name, all in seconds.items()},
        "slowest_s": {name: round(max(all), 2) for name, all in seconds.items()},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
