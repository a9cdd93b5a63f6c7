"""Ten thousand requests from several threads over one engine: each answer as if alone.

    python tests/attacks/soak.py                      # 10,000 requests, four threads
    python tests/attacks/soak.py --requests 400

Requests are cut, cancelled, abandoned in the middle of a stream and refused; sessions are forked
and rolled back. Every answer is held against the same request alone. Prints what was asked, what
was wrong, and the memory that the process holds before and after. Exit code 1 if an answer was
wrong or the memory grew by over 2 %.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

_TEXTS = ("the cat sat on the mat", "a dog ran over a hill", "two", "good bad great poor film " * 3)
_LONG = "the dog ran over a hill to see the sea " * 40
# The allocator and the engine's arena take what they need in the first requests.
_WARM = 0.3
_MOST_GROWTH = 1.02


class Soak:
    """Two engines, the requests that are made of them, and what each gives alone."""

    def __init__(self, bundles: dict[str, Path]) -> None:
        import ptdeploy

        self.classifier: Any = ptdeploy.load(bundles["SEQ_CLS"], threads=1)
        self.decoder: Any = ptdeploy.load(bundles["CAUSAL_LM"], threads=1)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._kinds: dict[str, Callable[[int], Any]] = {
            "classify": self._classify,
            "cut": self._cut,
            "too long": self._too_long,
            "logits": self._logits,
            "greedy": self._greedy,
            "sampled": self._sampled,
            "stream": self._stream,
            "abandoned stream": self._abandoned,
            "cancelled": self._cancelled,
            "session": self._session,
        }
        self._alone = {(kind, n): run(n) for kind, run in self._kinds.items() for n in range(4)}

    def request(self, rng: random.Random) -> None:
        kind, number = rng.choice(list(self._alone))
        try:
            found = self._kinds[kind](number)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        self.counts[kind] += 1
        if found != self._alone[kind, number]:
            self.wrong.append(
                f"{kind} {number}: {found!r} instead of {self._alone[kind, number]!r}"
            )

    def _classify(self, number: int) -> Any:
        # Beside other rows a row's last bits may differ, so alone.
        (one,) = self.classifier.classify([_TEXTS[number]])
        return one.index, round(one.probability, 5)

    def _cut(self, number: int) -> Any:
        (one,) = self.classifier.classify([_TEXTS[number] + " " + _LONG], truncate=True)
        return one.index, round(one.probability, 5)

    def _too_long(self, number: int) -> Any:
        from ptdeploy.errors import InputError

        try:
            return self.classifier.classify([_TEXTS[number] + " " + _LONG])
        except InputError as error:
            return error.problem

    def _logits(self, number: int) -> Any:
        rows = [[5, 6, 7 + number], [8 + number]]
        return [row.argmax(-1).tolist() for row in self.decoder.logits(rows)]

    def _greedy(self, number: int) -> Any:
        rows = [[5, 6, 7 + number], [9, 10, 11, 12 + number]]
        return [one.token_ids for one in self.decoder.generate(rows, max_new_tokens=6)]

    def _sampled(self, number: int) -> Any:
        options = {"max_new_tokens": 6, "temperature": 1.5, "top_k": 20, "seed": number}
        return [one.token_ids for one in self.decoder.generate([[5, 6, 7]], **options)]

    def _stream(self, number: int) -> Any:
        return "".join(self.decoder.stream(_TEXTS[number], max_new_tokens=8))

    def _abandoned(self, number: int) -> Any:
        pieces = self.decoder.stream(_TEXTS[number], max_new_tokens=8)
        first = next(pieces, "")
        pieces.close()
        return first

    def _cancelled(self, number: int) -> Any:
        cancel = threading.Event()
        cancel.set()
        (one,) = self.decoder.generate([[5, 6, 7 + number]], max_new_tokens=8, cancel=cancel)
        return one.stopped, one.token_ids

    def _session(self, number: int) -> Any:
        session = self.decoder.session(max_tokens=40)
        session.append([5, 6, 7 + number])
        first = session.generate(4).token_ids
        fork = session.fork()
        session.rollback(3)
        session.append([9, 10])
        fork.append([11])
        return first, session.generate(3).token_ids, fork.generate(3).token_ids


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process holds")


def soak(bundles: dict[str, Path], requests: int, threads: int, seed: int) -> tuple[Soak, float]:
    """Run them all. Gives the counts and by how much the memory grew after the warm-up."""
    one = Soak(bundles)

    def run(count: int, start: int) -> None:
        def work(number: int) -> None:
            rng = random.Random(start + number)
            for _ in range(count // threads):
                one.request(rng)

        running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    interval = sys.getswitchinterval()
    # Threads meet sooner, as they do on a busy machine.
    sys.setswitchinterval(1e-5)
    try:
        run(int(requests * _WARM), seed)
        before = resident()
        run(requests - int(requests * _WARM), seed + threads)
        return one, resident() / before
    finally:
        sys.setswitchinterval(interval)


def main() -> int:
    from attacks.tamper import make_bundles

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        one, growth = soak(make_bundles(folder), asked.requests, asked.threads, asked.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for kind, count in sorted(one.counts.items()):
        print(f"{kind:<20}{count:>8}")
    print(f"{'all':<20}{one.counts.total():>8}   wrong {len(one.wrong)}   memory x {growth:.4f}")
    for words in one.wrong[:20]:
        print(f"  {words[:300]}")
    return 1 if one.wrong or growth > _MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
