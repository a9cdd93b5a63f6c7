"""Weights in a few bits: each product with a large constant becomes MatMulNBits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant, replace

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle import Quantization
    from ptdeploy.passes import PassContext

# Columns quantized at once: an upper bound on the scratch memory, not on the weights.
_COLUMNS = 4096


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Quantize the constant side of every MatMul, Gemm and FusedMatMul; all else stays fp32.

    Embeddings, biases, norms and the virtual tokens' KV are not touched. Without a quantization
    in the context, or for an engine that has another operator for it, the model stays as it is; so
    it does where activations are quantized too (quantize_rows).
    """
    import onnx_ir as ir

    wanted = context.quantization
    if wanted is None or wanted.activations != "float" or context.weights != "MatMulNBits":
        return model
    graph = model.graph
    done: dict[tuple[int, bool], tuple[ir.Value, ir.Value]] = {}
    for node in list(graph):
        found = constant_product(node)
        if found is None:
            continue
        weight, constant, is_transposed = found
        key = id(constant), is_transposed
        if key not in done:
            columns = constant.numpy()
            packed, scales = quantize(columns if is_transposed else columns.T, wanted)
            # The operator wants them in the type of its activations.
            scales = scales.astype(columns.dtype)
            # One tensor may be read both ways round, and is rounded along its columns in each.
            name = f"{weight.name}.transposed" if is_transposed else str(weight.name)
            done[key] = (
                add_constant(graph, f"{name}.q", packed),
                add_constant(graph, f"{name}.scale", scales),
            )
        n, k = constant.shape.numpy()[:: 1 if is_transposed else -1]
        product = ir.node(
            "MatMulNBits",
            [node.inputs[0], *done[key]],
            attributes={
                "K": k,
                "N": n,
                "bits": wanted.bits,
                "block_size": wanted.block_size,
                "accuracy_level": wanted.accuracy_level,
            },
            domain="com.microsoft",
            name=node.name,
        )
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        nodes = [product] if bias is None else [product, ir.node("Add", [product.outputs[0], bias])]
        for new in nodes:
            new.metadata_props.update(node.metadata_props)
        replace(graph, node, *nodes)
        if not weight.uses():
            del graph.initializers[str(weight.name)]
    model.opset_imports["com.microsoft"] = 1
    return model


def quantize(
    rows: NDArray[np.float32], quantization: Quantization
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round rows (N, K) to nearest in blocks along K: packed (N, blocks, bytes) and scales.

    Symmetric: a block's value is (q - 2^(bits-1)) * scale, its widest value one end of the range.
    Source: ONNX Runtime's ContribOperators.md, MatMulNBits.
    """
    size, bits = quantization.block_size, quantization.bits
    blocks = -(-rows.shape[1] // size)
    packed = np.empty((rows.shape[0], blocks, size * bits // 8), np.uint8)
    scales = np.empty((rows.shape[0], blocks), np.float32)
    for start in range(0, rows.shape[0], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        block = np.zeros((rows[part].shape[0], blocks * size), np.float32)
        block[:, : rows.shape[1]] = rows[part]
        codes, scales[part] = _round(block.reshape(-1, blocks, size), bits)
        packed[part] = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    return packed, scales


def _round(block: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    half = 1 << (bits - 1)
    widest = np.take_along_axis(block, np.abs(block).argmax(-1)[..., None], -1)
    # The range has one more step below zero: the widest value takes that end, whatever its sign.
    scale = (widest / -half).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.rint(block * inverse) + half, 0, 2 * half - 1).astype(np.uint8)
    return codes, scale[..., 0]


def constant_product(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol, bool] | None:
    """The constant matrix of a product, and whether its rows are the output's columns."""
    if node.op_type not in ("MatMul", "FusedMatMul", "Gemm") or any(
        _number(node, name) for name in ("transA", "transBatchA")
    ):
        return None
    if any(_number(node, name, 1) != 1 for name in ("alpha", "beta")):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer():
        return None
    if len(weight.const_value.shape) != 2:
        return None
    return weight, weight.const_value, bool(_number(node, "transB"))


def _number(node: ir.Node, name: str, default: float = 0) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
