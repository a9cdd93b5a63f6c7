"""docs/support.md: what was measured of every kind of prompt, task and architecture.

`python -m support.support_table`, from tests/, compiles every cell and writes it;
tests/e2e/test_kinds.py compiles the same cells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support import kinds, tiny
from support.openvino import copied
from support.shared import Compiled, Shared

import ptdeploy
from ptdeploy.parity.reports import report_json

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
Cell = tuple[str, str, str]
_TASKS = ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM")
_NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "electra": "ELECTRA",
    "distilbert": "DistilBERT",
    "albert": "ALBERT",
    "deberta": "DeBERTa",
    "deberta-v2": "DeBERTa v2",
    "gpt2": "GPT-2",
    "qwen2": "Qwen2",
    "llama": "Llama",
    "mistral": "Mistral",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "phi3": "Phi-3",
    "opt": "OPT",
    "bloom": "BLOOM",
    "gpt_neox": "GPT-NeoX",
    "glm": "GLM",
}
_NAMES |= {kinds.on_openvino(one): f"{name}, openvino" for one, name in _NAMES.items()}
_REFUSED = "refused"
_TITLE = """# Kinds of prompts

Written by `python -m support.support_table` in `tests/`; `tests/e2e/test_kinds.py` compiles every
cell again, on a tiny random model of the architecture; prompts of several kinds run on one engine,
as prompts do. A figure is the largest difference between the engine's logits and PEFT's, each row
alone, over all rows alone and in batches that a compilation compares, in fp32: to `ort`, or where a
column says so to `openvino`. It must be under 1e-5; on CAUSAL_LM all greedy tokens must be PEFT's
too. Both round: PEFT in fp32 is as far from PEFT in fp64 as the engine is. `refused` is tested too.
What is not in the table is no promise: it is attempted, and written only if parity holds.

"""
_NONE = """
DistilBERT, ALBERT and DeBERTa take no keys and values before their text, which prefix tuning and
cartridges are. DeBERTa v3 is the model that v2 is. CPT on other tasks than CAUSAL_LM, which PEFT
does not train, and every kind on what the README lists as not supported are refused by name too;
[openvino.md](openvino.md) names what `openvino` refuses.
"""


def measured(shared: Shared, cell: Cell) -> dict[str, Any]:
    """The parity report of a cell: of a bundle, or of a pack over one of the same engine."""
    kind, task, column = cell
    architecture, _, openvino = column.partition(" on ")
    if openvino:
        bundle = placed(shared, (kind, task, architecture))
        with tempfile.TemporaryDirectory() as folder:
            verified = ptdeploy.verify(copied(bundle, Path(folder) / "bundle"))
        report: dict[str, Any] = json.loads(report_json(verified))
        return report
    found = _pack(shared, cell) or _engine(shared, cell).bundle
    (file,) = found.rglob("parity.json")
    return dict(json.loads(file.read_text()))


def placed(shared: Shared, cell: Cell) -> Path:
    """A bundle of a cell's engine whose default prompt is the cell's."""
    bundle, pack = _engine(shared, cell).bundle, _pack(shared, cell)
    return bundle if pack is None else with_default(shared, ("placed", *cell), bundle, pack)


def with_default(shared: Shared, key: object, bundle: Path, pack: Path) -> Path:
    """A copy of a bundle with the prompt of a pack in the place of its default one."""

    def fill(folder: Path) -> None:
        shutil.copytree(bundle, folder / "bundle")
        ptdeploy.prompt_add(folder / "bundle", pack, name="default", replace=True)

    return shared.folder(key, fill) / "bundle"


def _engine(shared: Shared, cell: Cell) -> Compiled:
    """What was compiled to the engine that runs a cell's prompt."""
    return shared.compiled(cell[2], cell[1], kind=kinds.engine_of(*cell))


def _pack(shared: Shared, cell: Cell) -> Path | None:
    """A cell's prompt over the engine that runs it; None where the engine's bundle has it."""
    kind, task, architecture = cell
    if kind == kinds.engine_of(*cell):
        return None
    one = _engine(shared, cell)

    def fill(folder: Path) -> None:
        trained = tiny.make(folder, architecture, task, kind=kind)
        told = {"over": one.bundle, "base": str(one.trained.base), **kinds.options(kind)}
        ptdeploy.compile_prompt(trained.adapter, output=folder / "pack", **told)

    return shared.folder(("cell", *cell), fill) / "pack"


def largest(report: Mapping[str, Any]) -> float:
    return max(case["max_abs"] for case in report["cases"])


def page(figures: Mapping[Cell, float]) -> str:
    """The whole document: for each task a table of kinds and architectures."""
    tables = []
    for task in _TASKS:
        columns = [one for one in _NAMES if any(cell[1:] == (task, one) for cell in figures)]
        rows = [["kind", *(_NAMES[one] for one in columns)], ["---"] * (len(columns) + 1)]
        for kind in dict.fromkeys(cell[0] for cell in figures if cell[1] == task):
            rows.append([kind, *(_words(figures, (kind, task, one)) for one in columns)])
        lines = (f"| {' | '.join(row)} |" for row in rows)
        tables.append(f"## {task}\n\n" + "\n".join(lines) + "\n")
    return _TITLE + "\n".join(tables) + _NONE


def _words(figures: Mapping[Cell, float], cell: Cell) -> str:
    if cell in kinds.REFUSED:
        return _REFUSED
    return f"{figures[cell]:.0e}" if cell in figures else ""


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
                if cell not in ("", _REFUSED):
                    yield (kind, task, one), float(cell)


def main() -> None:
    from support import native
    from support.exports import exported_once, kept_exports

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "columns", nargs="*", choices=[*_NAMES, []], help="measure these, keep the others"
    )
    asked = parser.parse_args().columns or _NAMES
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "shared")
        with exported_once(kept_exports(native.CACHE / "exports")):
            cells = [cell for cell in kinds.MEASURED if cell[2] in asked]
            figures = {cell: largest(measured(shared, cell)) for cell in cells}
    found = {**dict(published() if len(asked) < len(_NAMES) else ()), **figures}
    PAGE.write_text(page({one: found[one] for one in kinds.MEASURED if one in found}))


if __name__ == "__main__":
    main()
