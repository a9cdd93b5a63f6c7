"""What the comparisons of benchmarks/ share."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

TURNS = Path(__file__).parents[1] / "benchmarks" / "turns.py"


def test_results_of_one_model_leave_those_of_the_others(tmp_path):
    spec = importlib.util.spec_from_file_location("turns", TURNS)
    assert spec is not None
    assert spec.loader is not None
    turns = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(turns)
    results = tmp_path / "results.json"
    turns.keep(results, [{"model": "a", "ms": 1.0}, {"model": "b", "ms": 2.0}])
    turns.keep(results, [{"model": "a", "ms": 3.0}])
    found = {cell["model"]: cell["ms"] for cell in json.loads(results.read_text())["cells"]}
    assert found == {"a": 3.0, "b": 2.0}
