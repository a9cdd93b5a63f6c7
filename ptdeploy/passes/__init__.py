"""ONNX to ONNX. Each pass is one file with one function, `run(model, context)`, listed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Activations, QuantizedReader

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class PassContext:
    """What a pass may know beside the graph.

    The signature it must keep, how weights are to be stored (None: as they are), the type that
    activations are computed in, whether the engine knows ONNX Runtime's own operators, which one
    reads quantized weights, whether word embeddings are weights in that, and how many positions a
    table of rotary angles has to hold, 0 where attention does not turn its inputs by one.
    """

    signature: Signature
    quantization: Quantization | None = None
    activations: Activations = "float32"
    custom_operators: bool = True
    weights: QuantizedReader = "MatMulNBits"
    quantizes_embeddings: bool = False
    rotary_positions: int = 0


def run_passes(model: ir.Model, context: PassContext) -> ir.Model:
    """Run every pass in order.

    order: one order and naming, whatever the trace's. fold: constants folded, dead nodes and
    repeated work dropped. layout: no transposes and reshapes that undo each other. residual: sums
    with the norm after them. rotary: queries and keys that attention turns itself, by a table.
    join: rows that come as one sequence, kept apart.
    narrow: the last layer for the tokens that are read. half: float16 but where it would lose.
    deduplicate: one copy of equal weights. head: large weights are read the way round they lie.
    quantize_rows: products of int8 by int8. quantize, dequantize: constant matrices in a few bits,
    with ONNX Runtime's own operator or with standard ones. pack: an attention's three products as
    one. embeddings: what token ids look up in 8 bits. declare: inputs and outputs get the
    signature's names, types and axes. name: nodes are named after their modules. anonymise: nothing
    of the machine that exported stays.
    """
    from ptdeploy.passes import (
        anonymise,
        declare,
        deduplicate,
        dequantize,
        embeddings,
        fold,
        half,
        head,
        join,
        layout,
        name,
        narrow,
        order,
        pack,
        quantize,
        quantize_rows,
        residual,
        rotary,
    )

    before = (order, fold, layout, residual, rotary, join, narrow, half, deduplicate, head)
    weights = (quantize_rows, quantize, dequantize, pack, embeddings)
    for one in (*before, *weights, declare, name, anonymise):
        model = one.run(model, context)
    return model
