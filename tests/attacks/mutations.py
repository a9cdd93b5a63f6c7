"""Inject every fault of support/faults.py into an honest bundle: is it caught, its module named?

    python -m attacks.mutations [--only WORD]     # from tests/

Prints a table and exits 1 unless every fault is caught by the bundle's own golden data (no torch,
no checkpoint), and `verify --locate` names the right module for each that has one. Below the table
stands what parity cannot see: a flip of a weight's lowest bits is smaller than honest rounding.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from support import tiny
from support.characters import add_tokenizer
from support.faults import FAULTS, MODELS, PRECISIONS, Editor, Fault, flip_bit

import ptdeploy


@dataclass(frozen=True)
class Honest:
    """A model, its bundle, and another training of the same model."""

    trained: tiny.Trained
    bundle: Path
    other: tiny.Trained


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    fault: Fault
    caught: bool
    module: str
    cause: str

    @property
    def right(self) -> bool:
        return self.caught and self.module == self.fault.module


def honest(folder: Path, name: str) -> Honest:
    """Compile one of MODELS."""
    architecture, task, changes = MODELS[name]
    made = [
        tiny.make(folder / f"{name}-{seed}", architecture, task, seed=seed, jitter=True, **changes)
        for seed in (0, 1)
    ]
    if name == "bert":
        add_tokenizer(made[0].base, wrap=True)
    precision = PRECISIONS.get(name, "fp32")
    # Random weights keep no agreement.
    loose = ptdeploy.QuantizationOptions(min_agreement=0, max_perplexity_ratio=1e9)
    bundle = ptdeploy.compile(
        made[0].adapter,
        target="ort",
        base=str(made[0].base),
        output=folder / f"{name}.bundle",
        precision=precision,
        quantization=loose if name in PRECISIONS else None,
    )
    return Honest(made[0], bundle.path, made[1])


def inject(fault: Fault, one: Honest, folder: Path) -> Outcome:
    """Put a fault into a copy of the bundle, verify it twice, and locate the fault."""
    editor = Editor.copy(one.bundle, folder)
    fault.inject(editor, one.other)
    editor.write()
    caught = not ptdeploy.verify(folder).passed
    report = ptdeploy.verify(
        folder, checkpoint=one.trained.adapter, base=str(one.trained.base), locate=True
    )
    assert report.located is not None
    return Outcome(fault, caught and not report.passed, report.located.module, report.located.cause)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name or model has this word")
    only = parser.parse_args().only
    chosen = [fault for fault in FAULTS if only in fault.name or only in fault.model]
    if not chosen:
        parser.error(f"no fault has {only!r} in its name or its model's")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {name: honest(folder, name) for name in {fault.model for fault in chosen}}
        outcomes = [
            inject(fault, models[fault.model], folder / f"fault-{number}")
            for number, fault in enumerate(chosen)
        ]
        print(f"{'fault':<42}{'model':<14}{'caught':<8}{'located':<54}likely cause")
        for one in outcomes:
            wrong = "" if one.right else f"  WRONG, should be {one.fault.module or 'none'}"
            print(
                f"{one.fault.name:<42}{one.fault.model:<14}{'yes' if one.caught else 'NO':<8}"
                f"{one.module or '-':<54}{one.cause}{wrong}"
            )
        caught = sum(one.caught for one in outcomes)
        located = sum(one.right for one in outcomes if one.fault.module)
        with_module = sum(bool(one.fault.module) for one in outcomes)
        print(f"caught {caught} of {len(outcomes)}")
        print(f"located {located} of {with_module} that have a module")
        if "qwen2" in models:
            print(smallest_visible_bit(models["qwen2"], folder))
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{date.today()}, {cpu[1] if cpu else 'CPU'}, {os.cpu_count()} cores, {took}")
    return 0 if all(one.right for one in outcomes) else 1


def smallest_visible_bit(one: Honest, folder: Path) -> str:
    """Which bits of one weight parity sees: of a projection's largest number, one after another."""
    node = "model.layers.1.mlp.down_proj/MatMul"
    seen = []
    for bit in range(23, -1, -1):
        editor = Editor.copy(one.bundle, folder / f"bit-{bit}")
        editor.set_constant(node, 1, flip_bit(bit)(editor.constant(node, 1)))
        editor.write()
        if not ptdeploy.verify(editor.folder).passed:
            seen.append(bit)
    hidden = [bit for bit in range(23) if bit not in seen]
    return (
        f"one bit of one weight of {node.partition('/')[0]}: bits {min(seen)} to 23 are caught; "
        f"{len(hidden)} lower mantissa bits are not, as they change less than honest rounding"
    )


if __name__ == "__main__":
    sys.exit(main())
