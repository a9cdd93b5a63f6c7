"""Every file of a bundle, changed a thousand times: what becomes of it, in Python and in C++.

    python tests/attacks/tamper.py                    # 1,000 changes, Python
    python tests/attacks/tamper.py --probe PROBE      # the same bundles in C++ too, and compared
    python tests/attacks/tamper.py --changes 60 --seed 3

A change is made as a damaged disk would (the manifest's hashes stay) or as an attacker would (they
are made to fit). Each bundle is opened and asked in a worker process, which may die. Outcomes:

    refused    a BundleError, InputError or TargetUnavailable, at load or at the first request; an
               EngineFault of its own words only where the hashes were made to fit: a graph is a
               program, and may fail
    harmless   the same answers as before
    other      another answer: only where the hashes were made to fit, or in the manifest itself,
               which is what a signature is for
    wrong      anything else: an answer from a damaged file, a raw exception, a dead worker, or
               Python and C++ not alike

Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

ROWS = [[5, 6, 7], [40], [9, 10, 11, 12]]
TEXT = "the cat sat"
# No request of these tiny models needs more.
_SECONDS, _MEMORY = 60, 12 << 30


def answers(path: str) -> dict[str, Any]:
    """Open a bundle and ask it for all that its task has; floats as their bits."""
    import numpy as np

    import ptdeploy
    from ptdeploy.runtime import CausalLM, Classifier

    engine = ptdeploy.load(path, threads=1)
    logits = [
        row.astype(np.float32).view(np.uint32).ravel().tolist() for row in engine.logits(ROWS)
    ]
    found: dict[str, Any] = {"logits": logits}
    if isinstance(engine, CausalLM):
        found["ids"] = [one.token_ids for one in engine.generate(ROWS, max_new_tokens=4)]
    elif isinstance(engine, Classifier):
        found["labels"] = [one.label for one in engine.classify(ROWS)]
    if engine.tokenizer is not None:
        found["text"] = engine.encode(TEXT)[0].ids
        if engine.bundle.file("chat_template") is not None:
            found["chat"] = engine.chat_ids([{"role": "user", "content": TEXT}])
    return found


def work() -> None:
    """Answer paths on standard input, a JSON line each, until it ends."""
    from ptdeploy.errors import EngineFault, PtdeployError

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Engines print what they like on standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = {"answers": answers(line.rstrip("\n"))}
        except EngineFault as error:
            said = {"fault": error.problem}
        except PtdeployError as error:
            said = {"refused": f"{type(error).__name__}: {error.problem}"}
        except Exception as error:
            said = {"raw": f"{type(error).__name__}: {error}"}
        except BaseException as error:  # a panic of the tokenizers library
            said = {"raw": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=out, flush=True)


class Worker:
    """A process that answers a line with a line, started again when it dies."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> dict[str, Any] | None:
        """Its answer; None if it died or took too long."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # Words of files that are no UTF-8.
                errors="replace",
                env={**os.environ, "RUST_BACKTRACE": "0"},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], _SECONDS)
            answer = self._process.stdout.readline() if ready else ""
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


class Python(Worker):
    def __init__(self) -> None:
        super().__init__(sys.executable, __file__, "--work")

    def open(self, bundle: Path, task: str) -> dict[str, Any] | None:
        return self.ask(str(bundle))


class Cpp(Worker):
    """The C++ tests' probe: one request after the other, up to the first refusal."""

    def open(self, bundle: Path, task: str) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        rows = ";".join(",".join(map(str, row)) for row in ROWS)
        asked: dict[str, tuple[str, ...]] = {
            "SEQ_CLS": ("classify", "e", rows),
            "CAUSAL_LM": ("generate", "e", rows, "max_new_tokens=4"),
        }
        asks = asked[task.split()[0]]
        for words in (("open", "e", str(bundle), "1"), ("logits", "e", rows), asks):
            said = self.ask("\t".join(words))
            if said is None:
                return None
            if isinstance(said, dict) and "error" in said:
                kind, problem = said["error"], said["problem"]
                if kind == "EngineFault":
                    return {"fault": problem}
                return {"refused": f"{kind}: {problem}"}
            found[words[0]] = said
        self.ask("close\te")
        return {"answers": found}


def make_bundles(folder: Path) -> dict[str, Path]:
    """A classifier and a decoder, each with a tokenizer, the decoder with a chat template too."""
    from support import families, tiny

    import ptdeploy

    made = {}
    for architecture, task, family in (
        ("bert", "SEQ_CLS", "wordpiece"),
        ("qwen2", "CAUSAL_LM", "byte_level"),
    ):
        tokenizer = families.make(family)
        if task == "CAUSAL_LM":
            tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        trained = tiny.make(folder / task, architecture, task, vocab_size=len(tokenizer))
        tokenizer.save_pretrained(trained.base)
        out = folder / f"{task}.bundle"
        ptdeploy.compile(trained.adapter, target="ort", base=str(trained.base), output=out)
        made[task] = out
    return made


def on_openvino(bundles: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The same as OpenVINO's, whose keys and values are in half the bits."""
    from support.openvino import copied, keep_kv_in

    made = {}
    for task, bundle in bundles.items():
        made[f"{task} on openvino"] = copied(bundle, folder / f"{task}.openvino.bundle")
        keep_kv_in(folder / f"{task}.openvino.bundle", "f16")
    return made


def change_one(source: Path, copy: Path, rng: random.Random) -> tuple[str, bool]:
    """Make `copy` a bundle with one file changed. Gives the file, and whether its hash fits."""
    from attacks.mutate import mutate

    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    names = sorted(str(one.relative_to(copy)) for one in copy.rglob("*") if one.is_file())
    name = rng.choice(names)
    file = copy / name
    before = file.read_bytes()
    after = before
    while after == before:
        after = mutate(before, rng)
    file.write_bytes(after)
    fits = rng.random() < 0.6
    if name == "manifest.json" or not fits:
        return name, False
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry.update(size=len(after), sha256=hashlib.sha256(after).hexdigest())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return name, True


def outcome(said: dict[str, Any] | None, want: Any, file: str, fits: bool) -> tuple[str, str]:
    """What an answer means, and its words."""
    if said is None:
        return "wrong", "the process died"
    if "refused" in said:
        return "refused", said["refused"]
    if "fault" in said:
        return "refused" if fits else "wrong", f"EngineFault: {said['fault']}"
    if "raw" in said:
        return "wrong", said["raw"]
    if said["answers"] == want:
        # parity.json and reports are for people: nothing reads them to run.
        return ("harmless", "") if fits or file == "manifest.json" else ("wrong", "damage unseen")
    if fits or file == "manifest.json":
        return "other", ""
    return "wrong", "another answer from a damaged file"


def tamper(
    bundles: dict[str, Path],
    folder: Path,
    changes: int,
    seed: int,
    probe: str | None,
    note: Callable[[str], object] = print,
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Counts by (file, outcome), and what was wrong in words."""
    python, cpp = Python(), Cpp(probe) if probe else None
    want = {name: (python.open(path, name) or {}).get("answers") for name, path in bundles.items()}
    cpp_want = {
        name: (cpp.open(path, name) or {}).get("answers") if cpp else None
        for name, path in bundles.items()
    }
    assert all(want.values()), f"the bundles themselves do not answer: {want}"
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    rng = random.Random(seed)
    for number in range(changes):
        name = rng.choice(sorted(bundles))
        copy = folder / "changed"
        file, fits = change_one(bundles[name], copy, rng)
        found, said = outcome(python.open(copy, name), want[name], file, fits)
        if cpp is not None:
            other, words = outcome(cpp.open(copy, name), cpp_want[name], file, fits)
            if other != found and not _only_python(file, found, said):
                found, said = "wrong", f"Python: {found} {said!r}; C++: {other} {words!r}"
        counts[file, found] += 1
        if found == "wrong":
            kept = folder / f"wrong-{number}"
            shutil.copytree(copy, kept)
            wrong.append(f"{kept}: {name} {file}{' (hash fits)' if fits else ''}: {said[:300]}")
            note(wrong[-1])
    python.close()
    if cpp is not None:
        cpp.close()
    return counts, wrong


def _only_python(file: str, found: str, said: str) -> bool:
    """Files that the C++ library does not run: it has no tokenizer and no chat templates."""
    return found != "wrong" and file in ("tokenizer.json", "chat_template.json")


def table(counts: Counter[tuple[str, str]]) -> str:
    """Counts by file, as text."""
    kinds = ("refused", "harmless", "other", "wrong")
    files = sorted({file for file, _ in counts})
    lines = [f"{'file':<24}{'tried':>8}" + "".join(f"{kind:>10}" for kind in kinds)]
    for file in [*files, "all"]:
        row = [
            sum(n for (f, k), n in counts.items() if k == kind and file in (f, "all"))
            for kind in kinds
        ]
        lines.append(f"{file:<24}{sum(row):>8}" + "".join(f"{n:>10}" for n in row))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe", help="the C++ tests' probe program")
    parser.add_argument("--keep", type=Path, help="a folder for bundles that were wrong")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work()
        return 0
    folder = asked.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bundles = make_bundles(folder)
        bundles |= on_openvino(bundles, folder)
        counts, wrong = tamper(bundles, folder, asked.changes, asked.seed, asked.probe)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(counts))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
