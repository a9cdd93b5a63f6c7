"""ONNX to ONNX. Each pass is one file with one function, `run(model, context)`, listed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import Activations, QuantizedReader

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.passes.fixed_scales import FixedScale


@dataclass(frozen=True)
class PassContext:
    """What a pass may know beside the graph.

    The signature it must keep, how weights are to be stored (None: as they are), the type that
    activations are computed in, whether the engine knows ONNX Runtime's own operators, which one
    reads quantized weights, whether word embeddings are weights in that, how many positions a table
    of rotary angles has to hold, 0 where attention does not turn its inputs by one, and at which
    fixed scale each product takes activations, None where at none.
    """

    signature: Signature
    quantization: Quantization | None = None
    activations: Activations = "float32"
    custom_operators: bool = True
    weights: QuantizedReader = "MatMulNBits"
    quantizes_embeddings: bool = False
    rotary_positions: int = 0
    scales: tuple[FixedScale | None, ...] = ()


def run_passes(
    model: ir.Model, context: PassContext, look: Callable[[ir.Model], None] = lambda _: None
) -> ir.Model:
    """Run every pass in order; `look` is shown the graph before weights are quantized.

    order: one order and naming, whatever the trace's. fold: constants folded, dead nodes and
    repeated work dropped. layout: no transposes and reshapes that undo each other. residual: sums
    with the norm after them. rotary: queries and keys that attention turns itself, by a table.
    join: rows that come as one sequence, kept apart.
    narrow: the last layer for the tokens that are read. half: float16 but where it would lose.
    deduplicate: one copy of equal weights. head: large weights are read the way round they lie.
    fixed_scales: products of activations at scales found on texts. quantize_rows: products of int8
    by int8. quantize, dequantize: constant matrices in a few bits, with ONNX Runtime's own operator
    or with standard ones. pack: an attention's three products as one. embeddings: what token ids
    look up in 8 bits. declare: inputs and outputs get the signature's names, types and axes.
    name: nodes are named after their modules. anonymise: nothing of the machine that exported
    stays.
    """
    from ptdeploy.passes import (
        anonymise,
        declare,
        deduplicate,
        dequantize,
        embeddings,
        fixed_scales,
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
    weights = (fixed_scales, quantize_rows, quantize, dequantize, pack, embeddings)
    for one in before:
        model = one.run(model, context)
    look(model)
    for one in (*weights, declare, name, anonymise):
        model = one.run(model, context)
    return model
