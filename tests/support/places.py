"""Bundles whose graph keeps rows apart by their tokens' places alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support.damage import edit, replace, the_graph

NAME = "token_offsets"


def by_places(bundle: Path, folder: Path) -> Path:
    """A model that writes, as it was compiled before rows with different prompts came as one.

    Its offsets are each token's place, (sequence,): no row's past is hidden from another.
    """
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (given,) = [one for one in model.graph.input if one.name == NAME]
    given.CopyFrom(helper.make_tensor_value_info(NAME, onnx.TensorProto.INT64, ["sequence"]))
    for node in model.graph.node:
        node.input[:] = ["whole_offsets" if one == NAME else one for one in node.input]
    axes = numpy_helper.from_array(np.zeros(1, np.int64), "whole_offsets.axes")
    weights = numpy_helper.from_array(np.array([[1], [0], [0]]), "whole_offsets.parts")
    model.graph.initializer.extend([axes, weights])
    model.graph.node.insert(0, helper.make_node("Unsqueeze", [NAME, axes.name], ["row_offsets"]))
    product = helper.make_node("Mul", [weights.name, "row_offsets"], ["whole_offsets"])
    model.graph.node.insert(1, product)
    replace(folder, "model.onnx", model.SerializeToString())
    edit(folder, lambda manifest: the_graph(manifest)["inputs"][-1].update(shape=["sequence"]))
    return folder
