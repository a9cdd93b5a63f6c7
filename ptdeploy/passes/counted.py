"""How many of the weights that a graph multiplies with were quantized, whatever passes did it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptdeploy.errors import BaseModelError
from ptdeploy.passes.quantize import constant_product
from ptdeploy.passes.quantize_rows import has_tokens

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.bundle import Quantization

# How much must be quantized, and how much without a note.
_MOST, _NEARLY_ALL = 0.5, 0.99
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "Conv", "Einsum")
# Products that read codes themselves.
_OF_CODES = ("MatMulNBits", "MatMulIntegerToFloat")
# What gives the weights that it reads, the other way round or in another type.
_SAME_WEIGHTS = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Expand", "Identity")


@dataclass(frozen=True)
class CountedWeights:
    """Weights of products, by whether they are codes; `left` says of floats where they are read."""

    quantized: int
    left: dict[str, int]

    @property
    def share(self) -> float:
        """How much of them is quantized, 1 where there are none."""
        every = self.quantized + sum(self.left.values())
        return self.quantized / every if every else 1.0

    def largest_left(self) -> str:
        """The module, or the operator, that reads the most of what is left."""
        return max(self.left, key=self.left.__getitem__)


def count_weights(model: ir.Model, quantization: Quantization) -> CountedWeights:
    """Count a graph's constant matrices; vectors, such as biases, are no weights of products.

    Where activations are quantized too, products of one token for each text stay as they are by
    design (quantize_rows), and do not count.
    """
    seen: set[int] = set()
    quantized = 0
    left: dict[str, int] = {}
    for node in model.graph.all_nodes():
        of_codes = node.op_type in _OF_CODES
        if not of_codes and (node.op_type not in _PRODUCTS or _stays(node, quantization)):
            continue
        for value in (node.inputs[1],) if of_codes else node.inputs:
            found = _constant(value)
            if found is None or id(found[0]) in seen:
                continue
            tensor, is_codes = found
            seen.add(id(tensor))
            size = tensor.size
            if node.op_type == "MatMulNBits":
                size = node.attributes["K"].as_int() * node.attributes["N"].as_int()
            if of_codes or is_codes:
                quantized += size
            elif tensor.dtype.is_floating_point() and len(tensor.shape) > 1:
                place = (node.name or "").rpartition("/")[0] or node.op_type
                left[place] = left.get(place, 0) + size
    return CountedWeights(quantized, left)


def notes_on(counted: CountedWeights, architecture: str, precision: str) -> tuple[str, ...]:
    """What a user should know of weights that no pass could quantize, if they are many.

    Raises BaseModelError if they are most: an engine of their size and speed is not what was asked
    for. By the sizes of its matrices Mixtral 8x7B is at 0.03 if no expert can be quantized.
    """
    if counted.share >= _NEARLY_ALL:
        return ()
    words = (
        f"{counted.share:.0%} of the weights in products; the others stay floats, most of them in "
        f"{counted.largest_left()}"
    )
    if counted.share < _MOST:
        raise BaseModelError(
            f"{architecture}: {precision} would quantize {words}.",
            "Compile it in a precision that keeps weights as they are, such as fp32.",
        )
    return (f"{precision} quantizes {words}.",)


def _stays(node: ir.Node, quantization: Quantization) -> bool:
    one_token = quantization.activations != "float" and not has_tokens(node)
    return one_token and constant_product(node) is not None


def _constant(value: ir.Value | None) -> tuple[ir.TensorProtocol, bool] | None:
    """The constant that a value is made of, and whether that is codes."""
    is_codes = False
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            is_codes = True
        elif producer.op_type not in _SAME_WEIGHTS:
            return None
        value = producer.inputs[0]
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value, is_codes


def bytes_of_constants(model: ir.Model) -> int:
    """How much a graph's constants take, equal ones once: an engine of it takes no less."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    return sum({id(one): one.nbytes for one in constants if one is not None}.values())
