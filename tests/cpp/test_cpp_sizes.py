"""The C++ library feeds engines that take one size alone, and refuses a type it does not take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import edit, fix_slots, replace
from support.native import ROWS, bits, opened, text_of

import ptdeploy


def narrowed(source: Path, folder: Path, axes: dict[str, tuple[int, int]]) -> Path:
    """A copy of a bundle whose graph runs with one size of an axis, of inputs by their names.

    Nothing says so: ONNX Runtime fails when it runs with another size.
    """
    import onnx
    from onnx import helper

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    constants: dict[str, Any] = {"none": [0]}
    nodes = []
    for name, (axis, size) in axes.items():
        constants |= {f"{name}.axis": axis, f"{name}.size": size}
        for node in model.graph.node:
            node.input[:] = [f"{name}.narrow" if one == name else one for one in node.input]
        # 0 where the axis has that size, else behind the end of a table of one 0.
        nodes += [
            helper.make_node("Shape", [name], [f"{name}.shape"]),
            helper.make_node("Gather", [f"{name}.shape", f"{name}.axis"], [f"{name}.found"]),
            helper.make_node("Sub", [f"{name}.found", f"{name}.size"], [f"{name}.off"]),
            helper.make_node("Mul", [f"{name}.off", f"{name}.off"], [f"{name}.place"]),
            helper.make_node("Gather", ["none", f"{name}.place"], [f"{name}.zero"]),
            helper.make_node("Add", [name, f"{name}.zero"], [f"{name}.narrow"]),
        ]
    for name, value in constants.items():
        array = np.array(value, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    replace(folder, "model.onnx", model.SerializeToString())
    return folder


def with_slots(source: Path, folder: Path, slots: int) -> Path:
    """A copy of a bundle whose KV buffer has that many slots and no other number."""
    import onnx

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "slots":
                dim.dim_value = slots
    replace(folder, "model.onnx", model.SerializeToString())
    edit(folder, lambda m: fix_slots(m, slots))
    return folder


def in_half(source: Path, folder: Path, dtype: str) -> Path:
    """A copy of a bundle whose graph takes and gives keys and values in 16 bits."""
    import onnx
    from onnx import helper

    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    kinds = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
    tensors = (*model.graph.input, *model.graph.output)
    for value in [one for one in tensors if one.name.startswith(("past_key", "present"))]:
        name, given = value.name, value in model.graph.input
        for node in model.graph.node:
            names = node.input if given else node.output
            names[:] = [f"{name}.wide" if one == name else one for one in names]
        value.type.tensor_type.elem_type = kinds[dtype]
        ends = [name, f"{name}.wide"] if given else [f"{name}.wide", name]
        to = onnx.TensorProto.FLOAT if given else kinds[dtype]
        cast = helper.make_node("Cast", ends[:1], ends[1:], to=to)
        model.graph.node.insert(0 if given else len(model.graph.node), cast)
    replace(folder, "model.onnx", model.SerializeToString())

    def say(manifest: dict[str, Any]) -> None:
        graph = manifest["graphs"]["model"]
        for spec in (*graph["inputs"], *graph["outputs"]):
            if spec["role"] in ("past", "present"):
                spec["dtype"] = dtype

    edit(folder, say)
    return folder


def test_a_buffer_of_fixed_slots_has_that_many(bundles, probe, tmp_path):
    context = ptdeploy.load(bundles("fused")).manifest.limits.max_context
    bundle = with_slots(bundles("fused"), tmp_path / "bundle", context)
    engine = opened(probe, bundle)
    ours = [one.token_ids for one in engine.generate(ROWS, 9, eos_token_ids=())]
    theirs = probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=9 eos_token_ids=")
    assert [one["token_ids"] for one in theirs] == ours
    assert probe.ask("logits", "e", text_of(ROWS)) == [bits(one) for one in engine.logits(ROWS)]
    probe.ask("session-open", "s", "e 20")
    probe.ask("session-append", "s", "5,6,7")
    assert "error" not in probe.ask("session-generate", "s", "max_new_tokens=9")


def test_a_prefill_runs_as_many_tokens_as_the_engine_takes(bundles, probe, tmp_path):
    bundle = narrowed(bundles("fused"), tmp_path / "bundle", {"input_ids": (1, 1)})
    edit(bundle, lambda m: m["limits"].update(max_prefill=1))
    engine = opened(probe, bundle)
    assert probe.ask("logits", "e", text_of(ROWS)) == [bits(one) for one in engine.logits(ROWS)]


def test_logits_of_every_token_come_in_small_pieces_where_sizes_are_fixed(
    bundles, probe, tmp_path, monkeypatch
):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(max_prefill=512))
    engine = opened(probe, bundle)
    kept = []
    bind = engine._session.bind

    def recorded(inputs, outputs):
        kept.append(inputs["logits_positions"].size)
        return bind(inputs, outputs)

    monkeypatch.setattr(engine._session, "bind", recorded)
    rows = [list(range(100)) * 2]
    assert probe.ask("logits", "e", text_of(rows)) == [bits(one) for one in engine.logits(rows)]
    assert sorted(kept) == [1, 7, 64, 64, 64]


@pytest.mark.parametrize(
    ("kind", "method"), [("encoder classifier", "classify"), ("token classifier", "tag")]
)
def test_a_classifier_runs_as_many_rows_as_the_engine_takes(bundles, probe, tmp_path, kind, method):
    whole = opened(probe, bundles(kind))
    bundle = narrowed(
        bundles(kind),
        tmp_path / "bundle",
        {"input_ids": (0, 2), "attention_mask": (0, 2), "token_type_ids": (0, 2)},
    )
    edit(bundle, lambda m: m["limits"].update(max_batch=2))
    assert probe.ask("open", "e", bundle) == {}
    theirs = probe.ask("logits", "e", text_of(ROWS))
    pairs = [*whole.logits(ROWS[:2]), *whole.logits(ROWS[2:])]
    assert theirs == [bits(one) for one in pairs]
    assert len(probe.ask(method, "e", text_of(ROWS))) == len(ROWS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keys_in_half_precision_are_refused_by_name(bundles, probe, tmp_path, dtype):
    bundle = in_half(bundles("fused"), tmp_path / "bundle", dtype)
    assert ptdeploy.load(bundle).layout.dtype == dtype
    answer = probe.ask("open", "e", bundle)
    assert answer["error"] == "TargetUnavailable"
    assert f"in float32, not in {dtype}" in answer["problem"]
