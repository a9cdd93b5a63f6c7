"""Writes what benchmarks/peers.py measured into docs/speed.md, between its two marks.

python benchmarks/peers/table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "peers-cpu.json"
PAGE = REPOSITORY / "docs" / "speed.md"
BEGIN, END = "<!-- written by benchmarks/peers/table.py -->\n", "<!-- until here -->\n"


def tables(cells: list[dict[str, Any]]) -> Iterator[str]:
    """For each model, precision and number of threads a table: a row for each request."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        place = (cell["model"], cell["precision"], cell["threads"])
        groups.setdefault(place, []).append(cell)
    for (model, precision, threads), found in groups.items():
        engines = list(dict.fromkeys(cell["engine"] for cell in found if "engine" in cell))
        count = "1 thread" if threads == 1 else f"{threads} threads"
        run = f"{found[0]['rounds']} rounds, load before {found[0]['load']}, {found[0]['cpu']}"
        head = [f"{model}, {precision}, {count} ({run})", *engines, "ptdeploy over the best peer"]
        yield _line(head)
        yield _line(["---"] * len(head))
        for request in dict.fromkeys(cell["request"] for cell in found):
            row = [cell for cell in found if cell["request"] == request]
            times = {cell["engine"]: cell for cell in row if "engine" in cell}
            best = max((cell for cell in row if "peer" in cell), key=lambda cell: cell["ratio"])
            low, high = best["ratio_quartiles"]
            over = f"{best['ratio']:.2f} ({low:.2f} to {high:.2f}), {best['peer']}"
            yield _line([request, *(_time(times[name]) for name in engines), over])
        yield "\n"


def reasons(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Why there is no number where the tables have none."""
    found = {(cell["engine"], cell["refused"]): cell for cell in cells if "refused" in cell}
    for (engine, reason), cell in found.items():
        yield f"- {engine}, {cell['request'] if cell['asked'] else cell['precision']}: {reason}.\n"


def _time(cell: dict[str, Any]) -> str:
    return "-" if "refused" in cell else f"{cell['wall_ms']['median']:.1f}"


def _line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |\n"


def main() -> None:
    results = json.loads(RESULTS.read_text())
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    said = "Medians, in milliseconds; ratios are those of the same round.\n\n"
    written = "".join([said, *tables(results["cells"]), *reasons(results["cells"])])
    PAGE.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}")


if __name__ == "__main__":
    main()
