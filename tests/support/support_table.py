"""docs/support.md: what was measured of every kind of prompt, task and architecture.

`python -m support.support_table`, from tests/, compiles every cell and writes it;
tests/e2e/test_kinds.py compiles the same cells.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support import kinds, tiny
from support.shared import Shared

import ptdeploy

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
Cell = tuple[str, str, str]
_TASKS = ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM")
_NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "electra": "ELECTRA",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "qwen2": "Qwen2",
    "gemma3": "Gemma 3",
    "llama": "Llama",
    "phi3": "Phi-3",
    "opt": "OPT",
    "bloom": "BLOOM",
    "gpt_neox": "GPT-NeoX",
    "glm": "GLM",
}
_TITLE = """# Kinds of prompts

Written by `python -m support.support_table` in `tests/`; `tests/e2e/test_kinds.py` compiles every
cell again, on a tiny random model of the architecture; prompts of several kinds run on one engine,
as prompts do. A figure is the largest difference between the engine's logits and PEFT's, each row
alone, over all rows alone and in batches that a compilation to `ort` compares, in fp32. It must be
under 1e-5; on CAUSAL_LM all greedy tokens must be PEFT's too. An empty cell is no promise: what is
not in the table is attempted, and written only if parity holds.

"""
_NONE = """
Refused by name: prefix tuning and cartridges on encoders that take no keys and values (DistilBERT),
CPT on other tasks than CAUSAL_LM, which PEFT does not train, and every kind on what the README
lists as not supported.
"""


def measured(shared: Shared, cell: Cell) -> dict[str, Any]:
    """The parity report of a cell: of a bundle, or of a pack over one of the same engine."""
    kind, task, architecture = cell
    own = kinds.engine_of(*cell)
    one = shared.compiled(architecture, task, kind=own)
    found = one.bundle / "prompts/default/parity.json"
    if kind != own:

        def fill(folder: Path) -> None:
            trained = tiny.make(folder, architecture, task, kind=kind)
            told = {"over": one.bundle, "base": str(one.trained.base), **kinds.options(kind)}
            ptdeploy.compile_prompt(trained.adapter, output=folder / "pack", **told)

        (found,) = (shared.folder(("cell", *cell), fill) / "pack").rglob("parity.json")
    report: dict[str, Any] = json.loads(found.read_text())
    return report


def largest(report: Mapping[str, Any]) -> float:
    return max(case["max_abs"] for case in report["cases"])


def page(figures: Mapping[Cell, float]) -> str:
    """The whole document: for each task a table of kinds and architectures."""
    tables = []
    for task in _TASKS:
        columns = [one for one in _NAMES if any(cell[1:] == (task, one) for cell in figures)]
        rows = [["kind", *(_NAMES[one] for one in columns)], ["---"] * (len(columns) + 1)]
        for kind in dict.fromkeys(cell[0] for cell in figures if cell[1] == task):
            found = (figures.get((kind, task, one)) for one in columns)
            rows.append([kind, *("" if one is None else f"{one:.0e}" for one in found)])
        lines = (f"| {' | '.join(row)} |" for row in rows)
        tables.append(f"## {task}\n\n" + "\n".join(lines) + "\n")
    return _TITLE + "\n".join(tables) + _NONE


def published() -> Iterator[tuple[Cell, float]]:
    """The cells that the document has, and their figures."""
    codes = {name: one for one, name in _NAMES.items()}
    task, columns = "", [""]
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            task = line[3:]
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if kind == "kind":
            columns = [codes[name] for name in cells]
        if kind in kinds.KINDS:
            for one, cell in zip(columns, cells, strict=True):
                if cell:
                    yield (kind, task, one), float(cell)


def main() -> None:
    from support.exports import exported_once

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "columns", nargs="*", choices=[*_NAMES, []], help="measure these, keep the others"
    )
    asked = parser.parse_args().columns or _NAMES
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "shared")
        with exported_once(shared):
            cells = [cell for cell in kinds.CELLS if cell[2] in asked]
            figures = {cell: largest(measured(shared, cell)) for cell in cells}
    found = {**dict(published() if len(asked) < len(_NAMES) else ()), **figures}
    PAGE.write_text(page({one: found[one] for one in kinds.CELLS if one in found}))


if __name__ == "__main__":
    main()
