"""Weights in a few bits with standard operators: each large constant matrix is dequantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.passes.edit import add_constant
from ptdeploy.passes.head import transposed_weight
from ptdeploy.passes.quantize import constant_product

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle import Quantization
    from ptdeploy.passes import PassContext

_LARGEST_FLOAT8 = 448.0


def run(model: ir.Model, context: PassContext) -> ir.Model:
    """Read the constant side of products through DequantizeLinear, in the type of the activations.

    Symmetric, rounded to nearest, a scale for each column or for each block along it. Columns that
    are no whole number of blocks end in zeros, and so does what is multiplied with them. Does
    nothing for engines that read weights through MatMulNBits.
    """
    import onnx_ir as ir

    wanted = context.quantization
    if wanted is None or context.weights != "DequantizeLinear":
        return model
    graph = model.graph
    done: dict[tuple[int, bool], ir.Value] = {}
    longer: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        found = constant_matrix(node)
        if found is None:
            continue
        weight, tensor, is_transposed, transpose = found
        matrix = tensor.numpy().T if is_transposed else tensor.numpy()
        rest = -matrix.shape[0] % wanted.block_size if wanted.block_size else 0
        if rest:
            matrix = np.pad(matrix, ((0, rest), (0, 0)))
            given = node.inputs[0]
            assert given is not None
            if given not in longer:
                longer[given] = _lengthened(graph, node, given, rest)
            node.replace_input_with(0, longer[given])
        key = id(tensor), is_transposed
        if key not in done:
            name = f"{weight.name}.transposed" if is_transposed else str(weight.name)
            # As it lies it has the very codes of an embedding that it is tied to.
            as_it_lies = is_transposed and context.quantizes_embeddings and not wanted.block_size
            used = _read(graph, name, matrix, wanted, as_it_lies)
            for one in used:
                one.metadata_props.update(node.metadata_props)
                one.outputs[0].type = ir.TensorType(tensor.dtype)
            graph.insert_before(node, used)
            done[key] = used[-1].outputs[0]
        node.replace_input_with(1, done[key])
        node.attributes.pop("transB", None)
        if node.op_type == "FusedMatMul":
            node.op_type, node.domain = "MatMul", ""
        if transpose is not None and not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)
        if not weight.uses():
            del graph.initializers[str(weight.name)]
    return model


def _read(
    graph: ir.Graph, name: str, matrix: NDArray[Any], wanted: Quantization, as_it_lies: bool
) -> list[ir.Node]:
    """The nodes that give a matrix (K, N) back; with `as_it_lies` it is stored as (N, K)."""
    import onnx_ir as ir

    codes, scales = quantize(matrix, wanted)
    parts = [
        add_constant(graph, f"{name}.q", np.ascontiguousarray(codes.T) if as_it_lies else codes),
        add_constant(graph, f"{name}.scale", scales.astype(matrix.dtype)),
    ]
    attributes = {"axis": 0 if as_it_lies else 1}
    if wanted.block_size:
        attributes = {"axis": 0, "block_size": wanted.block_size}
    read = ir.node("DequantizeLinear", parts, attributes=attributes)
    read.outputs[0].name = f"{name}.read"
    if not as_it_lies:
        return [read]
    turned = ir.node("Transpose", read.outputs, attributes={"perm": [1, 0]})
    turned.outputs[0].name = f"{name}.turned"
    return [read, turned]


def _lengthened(graph: ir.Graph, node: ir.Node, given: ir.Value, rest: int) -> ir.Value:
    """What a node reads, so many zeros longer along its last axis; made before that node."""
    import onnx_ir as ir

    def constant(name: str, array: NDArray[Any]) -> ir.Value:
        found = graph.initializers.get(name)
        return add_constant(graph, name, array) if found is None else found

    inputs = [
        given,
        constant(f"zeros.{rest}", np.array([0, rest], np.int64)),
        None,
        constant("zeros.axis", np.array([-1], np.int64)),
    ]
    pad = ir.node("Pad", inputs)
    pad.metadata_props.update(node.metadata_props)
    pad.outputs[0].type = given.type
    graph.insert_before(node, pad)
    return pad.outputs[0]


def quantize(
    matrix: NDArray[Any], quantization: Quantization
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Codes (K, N) as int8, int4 or float8e4m3fn, and scales (blocks, N), or (N,) for columns.

    A value is its code times its scale. Source: ONNX's DequantizeLinear, version 21 and later.
    """
    import ml_dtypes

    rows, columns = matrix.shape
    block = quantization.block_size or rows
    blocks = matrix.astype(np.float32).reshape(rows // block, block, columns)
    if quantization.type == "float8e4m3fn":
        largest, dtype = _LARGEST_FLOAT8, np.dtype(ml_dtypes.float8_e4m3fn)
    else:
        largest = float((1 << (quantization.bits - 1)) - 1)
        dtype = np.dtype(np.int8 if quantization.bits == 8 else ml_dtypes.int4)
    scales = np.abs(blocks).max(axis=1) / largest
    # Scales are stored in the matrix's type; codes are for what is stored. A column of zeros has
    # codes of zero whatever its scale, and one that underflows must not divide by zero.
    stored = scales.astype(matrix.dtype).astype(np.float32)
    stored[stored == 0] = 1
    codes = blocks / stored[:, None]
    if quantization.type == "int":
        codes = np.clip(np.rint(codes), -largest, largest)
    else:
        codes = np.clip(codes, -largest, largest)
    packed = codes.reshape(rows, columns).astype(dtype)
    return packed, stored if quantization.block_size else stored[0]


def constant_matrix(
    node: ir.Node,
) -> tuple[ir.Value, ir.TensorProtocol, bool, ir.Node | None] | None:
    """The constant matrix of a product, whether its rows are output columns, and its Transpose."""
    found = constant_product(node)
    if found is not None:
        return (*found, None)
    turned = transposed_weight(node)
    if turned is None:
        return None
    transpose, weight, tensor = turned
    return weight, tensor, True, transpose
