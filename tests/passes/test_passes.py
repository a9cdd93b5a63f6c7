"""Passes that rewrite weights: the rewritten graph computes what the first one did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import NOTHING, given_rows, graph, random, run, weight

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.quantization import QuantizationOptions, quantization_for, read_texts
from ptdeploy.errors import InputError
from ptdeploy.passes import PassContext, head, layout, residual
from ptdeploy.passes import quantize as quantize_pass
from ptdeploy.passes.quantize import quantize
from ptdeploy.targets import onnx_model


def quantization(bits: int, block_size: int = 32, accuracy_level: int = 1) -> Quantization:
    return Quantization(bits, block_size, accuracy_level, 0, 100)


def tied(folder):
    """Embeddings whose table is the output layer's too."""
    table = weight("table", random(50, 32))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    hidden = ir.node("Gather", [table, ids])
    turned = ir.node("Transpose", [table], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [hidden.outputs[0], turned.outputs[0]])
    return graph(hidden, turned, product, inputs=[ids], weights={"table": table})


def test_a_tied_head_is_stored_once_and_computes_the_same(tmp_path):
    ids = np.array([3, 1, 49])
    before = run(tied(tmp_path), tmp_path, ids=ids)
    model = head.run(tied(tmp_path), PassContext(NOTHING))
    assert [node.op_type for node in model.graph] == ["Gather", "FusedMatMul"]
    np.testing.assert_allclose(run(model, tmp_path, ids=ids), before, atol=1e-5)
    assert (tmp_path / onnx_model.WEIGHTS).stat().st_size < 1.5 * 50 * 32 * 4


def test_a_tied_head_stays_standard_where_custom_operators_are_not_known(tmp_path):
    model = head.run(tied(tmp_path), PassContext(NOTHING, custom_operators=False))
    assert [node.op_type for node in model.graph] == ["Gather", "Transpose", "MatMul"]


def test_an_untied_head_is_stored_as_it_is_read(tmp_path):
    def untied():
        table = weight("head", random(50, 32))
        turned = ir.node("Transpose", [table], attributes={"perm": [1, 0]})
        product = ir.node("MatMul", [(x := given_rows(32)), turned.outputs[0]])
        return graph(turned, product, inputs=[x], weights={"head": table})

    x = random(3, 32, seed=1)
    before = run(untied(), tmp_path, x=x)
    model = head.run(untied(), PassContext(NOTHING))
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["head.transposed"]
    np.testing.assert_allclose(run(model, tmp_path, x=x), before, atol=1e-5)


def test_a_layer_that_runs_twice_reads_one_copy_of_its_weight(tmp_path):
    def twice():
        table = weight("layer", random(32, 32))
        turned = ir.node("Transpose", [table], attributes={"perm": [1, 0]})
        first = ir.node("MatMul", [(x := given_rows(32)), turned.outputs[0]])
        second = ir.node("MatMul", [first.outputs[0], turned.outputs[0]])
        return graph(turned, first, second, inputs=[x], weights={"layer": table})

    x = random(3, 32, seed=1)
    before = run(twice(), tmp_path, x=x)
    model = head.run(twice(), PassContext(NOTHING))
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul"]
    assert list(model.graph.initializers) == ["layer.transposed"]
    np.testing.assert_allclose(run(model, tmp_path, x=x), before, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([16, 32, 64]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_quantization_is_off_by_at_most_one_step(rows, columns, bits, block_size, scale, seed):
    weights = random(rows, columns, seed=seed) * np.float32(scale)
    packed, scales = quantize(weights, quantization(bits, block_size))
    back = dequantized(packed, scales, bits, columns)
    step = np.repeat(np.abs(scales), block_size, axis=1)[:, :columns]
    # Half a step, but at the one end of the range that has no code.
    assert (np.abs(back - weights) <= 1.001 * step + 1e-30).all()
    widest = np.abs(weights).max()
    assert np.abs(back).max() == pytest.approx(widest, rel=1e-5)


def dequantized(packed, scales, bits, columns) -> np.ndarray:
    codes = packed
    if bits == 4:
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
    return values.reshape(len(packed), -1)[:, :columns]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("accuracy_level", [1, 4])
@pytest.mark.parametrize("width", [32, 40, 200])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm transB", "FusedMatMul"])
def test_a_rounded_product_is_the_product_of_the_rounded_weights(
    tmp_path, bits, block_size, accuracy_level, width, kind
):
    n, wanted = 48, quantization(bits, block_size, accuracy_level)
    rows = random(n, width)
    bias = random(n, seed=2)
    x = given_rows(width)
    transposed = kind in ("Gemm transB", "FusedMatMul")
    w = weight("w", rows if transposed else np.ascontiguousarray(rows.T))
    values = {"w": w}
    arguments = [x, w]
    if kind.startswith("Gemm"):
        values["b"] = weight("b", bias)
        arguments.append(values["b"])
    node = ir.node(
        kind.split()[0],
        arguments,
        attributes={"transB": 1} if transposed else {},
        domain="com.microsoft" if kind == "FusedMatMul" else "",
    )
    model = graph(node, inputs=[x], weights=values)
    model = quantize_pass.run(model, PassContext(NOTHING, wanted))
    assert next(one.op_type for one in model.graph) == "MatMulNBits"
    assert "w" not in model.graph.initializers

    feed = random(5, width, seed=1)
    want = feed @ dequantized(*quantize(rows, wanted), bits, width).T
    if kind.startswith("Gemm"):
        want = want + bias
    # Level 4 rounds the other side of the product to int8 as well.
    near = 1e-3 if accuracy_level == 1 else 0.03 * np.abs(want).max()
    np.testing.assert_allclose(run(model, tmp_path, x=feed), want, atol=near)


def test_a_square_weight_read_both_ways_round_is_rounded_for_each(tmp_path):
    rows, wanted = random(32, 32), quantization(8)
    x, w, b = given_rows(32), weight("w", rows), weight("b", random(32, seed=2))
    first = ir.node("MatMul", [x, w])
    last = ir.node("Gemm", [first.outputs[0], w, b], attributes={"transB": 1})
    model = graph(first, last, inputs=[x], weights={"w": w, "b": b})
    model = quantize_pass.run(model, PassContext(NOTHING, wanted))
    feed = random(5, 32, seed=1)
    once = feed @ dequantized(*quantize(np.ascontiguousarray(rows.T), wanted), 8, 32).T
    want = once @ dequantized(*quantize(rows, wanted), 8, 32).T + random(32, seed=2)
    np.testing.assert_allclose(run(model, tmp_path, x=feed), want, atol=2e-3)


@pytest.mark.parametrize("changes", [{"alpha": 0.5}, {"transA": 1}])
def test_other_products_are_left_alone(changes):
    x, w = given_rows(32), weight("w", random(32, 48))
    node = ir.node("Gemm", [x, w, (b := weight("b", random(48)))], attributes=changes)
    model = graph(node, inputs=[x], weights={"w": w, "b": b})
    model = quantize_pass.run(model, PassContext(NOTHING, quantization(4)))
    assert [one.op_type for one in model.graph] == ["Gemm"]


@pytest.mark.parametrize(
    ("precision", "options", "reason"),
    [
        ("fp32", {"block_size": 32}, "--block-size is about quantized weights"),
        ("int4", {"block_size": 24}, "--block-size must be 16, 32"),
        ("int4", {"block_size": 0}, "--block-size must be 16, 32"),
        ("int8", {"accuracy_level": 9}, "--accuracy-level must be 1 or 4"),
        ("int8", {"min_agreement": 1.5}, "--min-agreement must be from 0 to 1"),
        ("int8", {"max_perplexity_ratio": float("nan")}, "--max-perplexity-ratio must be"),
    ],
)
def test_a_quantization_option_that_cannot_be_is_refused(precision, options, reason):
    with pytest.raises(InputError, match=reason):
        quantization_for(precision, QuantizationOptions(**options))


def test_products_in_int8_need_blocks_as_wide_as_their_groups():
    """Asked for, they are refused in smaller blocks; by default those are multiplied in float32."""
    small = QuantizationOptions(block_size=16)
    found = quantization_for("int4", small, 64, group=32)
    assert (found.block_size, found.accuracy_level) == (16, 1)
    with pytest.raises(InputError, match="need blocks of 32 or more"):
        quantization_for("int4", replace(small, accuracy_level=4), 64, group=32)
    for size in (32, None):
        options = QuantizationOptions(block_size=size, accuracy_level=4)
        assert quantization_for("int4", options, 64, group=32).accuracy_level == 4
    assert quantization_for("int8", QuantizationOptions(), 0, group=32).accuracy_level == 4
    assert quantization_for("int4", small).accuracy_level == 4


def test_a_quality_text_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "absent.txt", "--quality-text")
    (tmp_path / "blank.txt").write_text("\n  \n")
    with pytest.raises(InputError, match="holds no text"):
        read_texts(tmp_path / "blank.txt", "--quality-text")


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def shaped(node: ir.Node, *shape: int | str | None) -> ir.Node:
    node.outputs[0].shape = ir.Shape(shape)
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node


def heads(x: ir.Value, shape: ir.Value, *dims: int | str | None) -> ir.Node:
    return shaped(ir.node("Reshape", [x, shape], attributes={"allowzero": 1}), *dims)


def transposed(x: ir.Value, *perm: int) -> ir.Node:
    return ir.node("Transpose", [x], attributes={"perm": perm})


def three_axes() -> ir.Value:
    return ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "sequence", 8])
    )


@settings(max_examples=30, deadline=None)
@given(
    first=st.permutations(range(4)),
    second=st.permutations(range(4)),
    back=st.booleans(),
)
def test_layouts_cancel_only_if_they_undo_each_other(tmp_path_factory, first, second, back):
    array = random(2, 3, 8)

    def build() -> ir.Model:
        x = three_axes()
        shapes = {
            "apart": weight("apart", np.array([2, 3, 4, 2])),
            "together": weight("together", np.array([2, 3, 8])),
        }
        apart = heads(x, shapes["apart"], "batch", "sequence", 4, 2)
        one = transposed(apart.outputs[0], *first)
        undo = [list(first).index(axis) for axis in range(4)]
        two = transposed(one.outputs[0], *(undo if back else second))
        joined = heads(two.outputs[0], shapes["together"], "batch", "sequence", 8)
        last = ir.node("Neg", [joined.outputs[0]])
        return graph(apart, one, two, joined, last, inputs=[x], weights=shapes)

    before, after = build(), layout.run(build(), PassContext(NOTHING))
    cancels = back or [list(first)[axis] for axis in second] == list(range(4))
    assert (operators(after) == ["Neg"]) == cancels
    folders = [tmp_path_factory.mktemp("graph") for _ in range(2)]
    np.testing.assert_array_equal(run(before, folders[0], x=array), run(after, folders[1], x=array))


def test_a_reshape_to_an_unnamed_axis_stays():
    x = three_axes()
    shape = weight("shape", np.array([2, 3, 8]))
    one = heads(x, shape, None, None, 8)
    last = ir.node("Neg", [one.outputs[0]])
    model = graph(one, last, inputs=[x], weights={"shape": shape})
    assert operators(layout.run(model, PassContext(NOTHING))) == ["Reshape", "Neg"]


def residual_graph(shape: tuple[int | str, ...] = ("batch", "sequence", 8)) -> ir.Model:
    """norm(x + branch) * (x + branch), both sums the same value."""
    x = three_axes()
    weights = {"branch": weight("branch", random(2, 3, 8)), "scale": weight("scale", random(8))}
    branch = ir.node("Mul", [x, weights["branch"]])
    shaped(branch, *shape)
    total = shaped(ir.node("Add", [x, branch.outputs[0]]), "batch", "sequence", 8)
    norm = shaped(
        ir.node(
            "SimplifiedLayerNormalization",
            [total.outputs[0], weights["scale"]],
            attributes={"axis": -1, "epsilon": 1e-5, "stash_type": 1},
        ),
        "batch",
        "sequence",
        8,
    )
    last = ir.node("Mul", [norm.outputs[0], total.outputs[0]])
    return graph(branch, total, norm, last, inputs=[x], weights=weights)


def test_a_residual_sum_and_its_norm_become_one_node_that_computes_the_same(tmp_path):
    array = random(2, 3, 8)
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    want = run(residual_graph(), tmp_path / "before", x=array)
    fused = residual.run(residual_graph(), PassContext(NOTHING))
    assert operators(fused) == ["Mul", "SkipSimplifiedLayerNormalization", "Mul"]
    np.testing.assert_allclose(run(fused, tmp_path / "after", x=array), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "custom_operators"),
    [(("batch", "sequence", 8), False), ((1, "sequence", 8), True), (("batch", None, 8), True)],
)
def test_a_sum_that_may_broadcast_or_needs_a_foreign_operator_stays(shape, custom_operators):
    context = PassContext(NOTHING, custom_operators=custom_operators)
    assert "Add" in operators(residual.run(residual_graph(shape), context))
