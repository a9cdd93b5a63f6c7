"""The tables of lies and of bad values, gone through with counts: tried, refused, harmless, wrong.

    python -m attacks.tables              # from tests/: Python alone
    python -m attacks.tables PROBE        # the C++ library held against it too: tests/cpp/probe.cc

`lies.py` has bundles whose hashes are right and whose manifest or files say what is not so;
`values.py` bad values for every parameter of every public function. Exit code 1 if any is wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from attacks.lies import LIES, alike
from attacks.openvino_lies import OPENVINO_LIES
from attacks.values import VALUES, doors, outcome, with_words
from support import native, tiny

import ptdeploy
from ptdeploy.errors import PtdeployError


class _Bundles:
    """Tiny honest bundles, each compiled when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[object, Path] = {}

    def __call__(self, kind: tuple[str, str] | str) -> Path:
        if kind not in self._made:
            architecture, task, options = (
                native.KINDS[kind] if isinstance(kind, str) else (*kind, {})
            )
            folder = self._folder / str(len(self._made))
            trained = tiny.make(folder, architecture, task)
            self._made[kind] = ptdeploy.compile(
                trained.adapter,
                target="ort",
                base=str(trained.base),
                output=folder / "bundle",
                **options,
            ).path
        return self._made[kind]

    def copy(self, kind: tuple[str, str] | str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder)) / "bundle"
        return Path(shutil.copytree(self(kind), folder))


def lies(bundles: _Bundles, probe: native.Probe | None) -> Counter[str]:
    """Each lie told to Python, and to the C++ library if there is a probe."""
    counts: Counter[str] = Counter()
    for lie in [*LIES, *OPENVINO_LIES]:
        bundle = bundles.copy(lie.bundle)
        lie.tell(bundle)
        try:
            engine = ptdeploy.load(bundle)
        except PtdeployError:
            ours = "refused"
        except Exception as error:
            ours = f"wrong: {lie}: {error!r}"
        else:
            same = alike(engine, ptdeploy.load(bundles(lie.bundle)))
            ours = "harmless" if same else f"wrong: {lie}: another answer"
        counts[ours] += 1
        if probe is not None:
            theirs = "refused" if probe.ask("open", "e", bundle) else "harmless"
            counts["C++ as Python" if theirs == ours else f"wrong: {lie}: C++ {theirs}"] += 1
    return counts


def values(bundles: _Bundles) -> Counter[str]:
    """Each bad value given to each parameter."""
    kinds = ("bert", "SEQ_CLS"), ("bert", "TOKEN_CLS"), ("gpt2", "CAUSAL_LM")
    counts: Counter[str] = Counter()
    for door in doors(*(with_words(bundles.copy(kind)) for kind in kinds)):
        for name, value in VALUES.items():
            found = outcome(door, value())
            known = found in ("answered", "refused")
            counts[found if known else f"wrong: {door} of {name}: {found}"] += 1
    return counts


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        bundles = _Bundles(Path(folder))
        probe = native.Probe(str(Path(sys.argv[1]).resolve())) if len(sys.argv) > 1 else None
        os.chdir(folder)
        tables = {"lies": lies(bundles, probe), "bad values": values(bundles)}
    for title, counts in tables.items():
        wrong = [name for name in counts if name.startswith("wrong")]
        shown = {name: count for name, count in counts.items() if name not in wrong}
        tried = sum(counts.values()) - counts["C++ as Python"]
        print(f"{title}: tried {tried}, {shown}, wrong {len(wrong)}")
        for name in wrong:
            print("  ", name)
    return int(any(name.startswith("wrong") for counts in tables.values() for name in counts))


if __name__ == "__main__":
    sys.exit(main())
