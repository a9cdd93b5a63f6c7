"""docs/support.md: what was measured of every kind of prompt, task and architecture.

`python -m support.support_table`, from tests/, compiles every cell and writes it;
tests/e2e/test_kinds.py compiles the same cells.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support import kinds
from support.shared import Shared

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
Cell = tuple[str, str, str]
_NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "gpt2": "GPT-2",
    "qwen2": "Qwen2",
    "gemma3": "Gemma 3",
}
_TITLE = """# Kinds of prompts

Written by `python -m support.support_table` in `tests/`; `tests/e2e/test_kinds.py` compiles every
cell again, on a tiny random model of the architecture. A figure is the largest difference between
the engine's logits and PEFT's, each row alone, over all rows alone and in batches that a
compilation to `ort` compares, in fp32. It must be under 1e-5; on CAUSAL_LM all greedy tokens must
be PEFT's too. An empty cell is no promise: what is not in the table is attempted, and written only
if parity holds.

"""
_NONE = """
Refused by name: prefix tuning and cartridges on encoders that take no keys and values (DistilBERT),
CPT on other tasks than CAUSAL_LM, which PEFT does not train, and every kind on what the README
lists as not supported.
"""


def measured(shared: Shared, cell: Cell) -> dict[str, Any]:
    """The parity report of a cell's compilation."""
    kind, task, architecture = cell
    bundle = shared.compiled(architecture, task, kinds.options(kind), kind=kind).bundle
    report: dict[str, Any] = json.loads((bundle / "prompts/default/parity.json").read_text())
    return report


def largest(report: Mapping[str, Any]) -> float:
    return max(case["max_abs"] for case in report["cases"])


def page(figures: Mapping[Cell, float]) -> str:
    """The whole document."""
    lines = [f"| kind | task | {' | '.join(_NAMES.values())} |", "|---" * (2 + len(_NAMES)) + "|"]
    for kind, task in dict.fromkeys((kind, task) for kind, task, _ in figures):
        found = (figures.get((kind, task, architecture)) for architecture in _NAMES)
        cells = ("" if one is None else f"{one:.0e}" for one in found)
        lines.append(f"| {kind} | {task} | {' | '.join(cells)} |")
    return _TITLE + "\n".join(lines) + "\n" + _NONE


def published() -> Iterator[tuple[Cell, float]]:
    """The cells that the document has, and their figures."""
    for line in PAGE.read_text().splitlines():
        kind, task, *cells = [*(cell.strip() for cell in line.strip("|").split("|")), ""]
        if kind in kinds.KINDS:
            for architecture, cell in zip(_NAMES, cells, strict=False):
                if cell:
                    yield (kind, task, architecture), float(cell)


def main() -> None:
    from support.exports import exported_once

    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "shared")
        with exported_once(shared):
            figures = {cell: largest(measured(shared, cell)) for cell in kinds.CELLS}
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
