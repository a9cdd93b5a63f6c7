"""Graphs that are right for a row alone and wrong beside others: hashes are made to fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support import damage


def one_off_in_batches(bundle: Path, rows: int | None = None) -> Path:
    """A batch is run with each decoder's row one slot shorter, or each encoder's id one smaller.

    That is any batch, or one of so many `rows` alone. ONNX Runtime prefills a decoder's rows alone,
    so that only its decode steps are batches.
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    (graph,) = manifest["graphs"].values()
    inputs = {one["role"]: one["name"] for one in graph["inputs"]}
    ids = inputs["ids"]
    name = inputs.get("lengths", ids)
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (given,) = (one for one in model.graph.input if one.name == name)
    for node in model.graph.node:
        node.input[:] = ["planted" if one == name else one for one in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.int64(rows or 1), "planted.many"))
    batch = ["planted.rows", "planted.many"]
    added = [
        helper.make_node("Shape", [ids], ["planted.rows"], start=0, end=1),
        helper.make_node("Equal" if rows else "Greater", batch, ["planted.several"]),
        helper.make_node(
            "Cast", ["planted.several"], ["planted.by"], to=given.type.tensor_type.elem_type
        ),
        helper.make_node("Sub", [name, "planted.by"], ["planted"]),
    ]
    for place, node in enumerate(added):
        model.graph.node.insert(place, node)
    damage.replace(bundle, "model.onnx", model.SerializeToString())
    return bundle


def values_of_steps_off(bundle: Path, by: float) -> Path:
    """What decode steps of several rows write as values is off by a share of them.

    What they answer is not, nor is a row alone.
    """
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (graph,) = manifest["graphs"].values()
    (ids,) = (one["name"] for one in graph["inputs"] if one["role"] == "ids")
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in (
            ("planted.one", np.array([1], np.int64)),
            ("planted.off", np.float32(1 + by)),
            ("planted.right", np.float32(1)),
        )
    )
    added = [
        helper.make_node("Shape", [ids], ["planted.tokens"], start=1, end=2),
        helper.make_node("Shape", [ids], ["planted.rows"], start=0, end=1),
        helper.make_node("Equal", ["planted.tokens", "planted.one"], ["planted.last"]),
        helper.make_node("Greater", ["planted.rows", "planted.one"], ["planted.several"]),
        helper.make_node("And", ["planted.last", "planted.several"], ["planted.step"]),
        helper.make_node(
            "Where", ["planted.step", "planted.off", "planted.right"], ["planted.scale"]
        ),
    ]
    for output in model.graph.output:
        name = output.name
        if not (name.startswith("present") and name.endswith("value")):
            continue
        for node in model.graph.node:
            node.output[:] = [f"{one}.right" if one == name else one for one in node.output]
            node.input[:] = [f"{one}.right" if one == name else one for one in node.input]
        added.append(helper.make_node("Mul", [f"{name}.right", "planted.scale"], [name]))
    assert len(added) > 6, "the graph has no values of its own"
    model.graph.node.extend(added)
    damage.replace(bundle, "model.onnx", model.SerializeToString())
    return bundle
