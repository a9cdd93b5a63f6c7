"""Exported programs decomposed where they are, instead of being traced twice more.

torch's ONNX exporter has `run_decompositions` rebuild each program from two runs of it on tensors
without values: more than half of what an export costs. In a model that is not trained, nearly all
operations are such that the exporter translates them as they are, and what the others become is
said here. A program with an operation that is not known here is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten
# What shares memory with its input and is translated as it is.
_VIEWS = {
    _ATEN.expand.default,
    _ATEN.permute.default,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    _ATEN.squeeze.dim,
    _ATEN.transpose.int,
    _ATEN.unsqueeze.default,
    _ATEN.view.default,
}


@contextmanager
def decomposed_in_place() -> Iterator[None]:
    """Have torch decompose by itself, in this block, only the programs that need it."""
    theirs = ExportedProgram.run_decompositions

    def ours(
        program: ExportedProgram, decomp_table: dict[Any, Any] | None = None, **options: Any
    ) -> ExportedProgram:
        module = program.graph_module
        if decomp_table is None or not _is_known(module, decomp_table):
            traced: ExportedProgram = theirs(program, decomp_table, **options)
            return traced
        for node in list(module.graph.nodes):
            if _is_rewritten(node):
                _REWRITES[node.target](node)
        module.graph.eliminate_dead_code()
        module.recompile()
        return program

    ExportedProgram.run_decompositions = ours  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = theirs  # type: ignore[method-assign]


def _is_known(module: GraphModule, table: dict[Any, Any]) -> bool:
    """Whether each operation stays as it is or is one of `_REWRITES`, and no graph has another."""
    return len(list(module.modules())) == 1 and all(
        _stays(node.target, table) or _is_rewritten(node)
        for node in module.graph.nodes
        if node.op == "call_function"
    )


def _stays(operator: Any, table: dict[Any, Any]) -> bool:
    if not isinstance(operator, torch._ops.OpOverload):
        return True
    shares = any(one.alias_info is not None for one in operator._schema.arguments)
    return operator in _VIEWS or not (operator in table or shares)


def _is_rewritten(node: Node) -> bool:
    if node.target == _ATEN.dropout.default:
        return node.args[2] is False
    if node.target == _ATEN.chunk.default:
        return isinstance(_chunked(node), int)
    if node.target == _ATEN.flatten.using_ints:
        return _value(_source(node)).dim() > 0
    return node.op == "call_function" and node.target in _REWRITES


def _become(node: Node, operator: Any, *args: Any, **kwargs: Any) -> None:
    # In its place and under its name: by that the program knows its outputs.
    node.target, node.args, node.kwargs = operator, args, kwargs


def _value(node: Any) -> torch.Tensor:
    """The tensor without values that the tracer had there."""
    value: torch.Tensor = node.meta["val"]
    return value


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _erase(node: Node) -> None:
    node.graph.erase_node(node)


def _same(node: Node) -> None:
    if any(user.op == "output" for user in node.users):
        _become(node, _ATEN.clone.default, _source(node))
        return
    node.replace_all_uses_with(_source(node))
    _erase(node)


def _cast(node: Node) -> None:
    dtype = _value(node).dtype
    if _value(_source(node)).dtype == dtype:
        _same(node)
    else:
        _become(node, _ATEN._to_copy.default, _source(node), dtype=dtype)


def _contiguous(node: Node) -> None:
    if _value(_source(node)).is_contiguous():
        _same(node)
    else:
        how = torch.contiguous_format
        _become(node, _ATEN.clone.default, _source(node), memory_format=how)


def _reshape(node: Node) -> None:
    given = node.args[1]
    assert isinstance(given, (list, tuple))
    # A size that is to be worked out is often known, and better said.
    shape = zip(given, _value(node).shape, strict=True)
    sizes = [new if old == -1 and isinstance(new, int) else old for old, new in shape]
    _view(node, sizes)


def _flatten(node: Node) -> None:
    source = _source(node)
    axes = _value(source).dim()
    first, last = (
        cast("int", one) % axes for one in (*node.args[1:], *(0, -1)[len(node.args) - 1 :])
    )
    joined: Any = _value(node).shape[first]
    sizes = [_length(node, axis) for axis in range(axes) if axis < first or axis > last]
    sizes.insert(first, joined if isinstance(joined, int) else -1)
    _view(node, sizes)


def _length(node: Node, axis: int) -> Any:
    """The length of an axis of a node's input, or the node before that has the same."""
    length: Any = _value(_source(node)).shape[axis]
    if isinstance(length, int):
        return length
    for one in node.graph.nodes:
        if one is node:
            break
        if str(one.meta.get("val")) == str(length):
            return one
    with node.graph.inserting_before(node):
        found = node.graph.call_function(_ATEN.sym_size.int, (_source(node), axis))
    found.meta = {**node.meta, "val": length}
    return found


def _view(node: Node, sizes: list[Any]) -> None:
    source = _source(node)
    if not _value(source).is_contiguous():
        # Nothing else can be viewed in another shape.
        with node.graph.inserting_before(node):
            copy = node.graph.call_function(_ATEN.clone.default, (source,))
        copy.kwargs = {"memory_format": torch.contiguous_format}
        copy.meta = {**node.meta, "val": _value(source)}
        source = copy
    _become(node, _ATEN.view.default, source, sizes)


def _chunked(node: Node) -> Any:
    """How long the chunks are but the last; no int where that depends on the program's inputs."""
    size = _value(_source(node)).shape[_axis(node)]
    return -(-size // node.args[1])  # type: ignore[operator]


def _axis(node: Node) -> int:
    axis = node.args[2] if len(node.args) > 2 else 0
    assert isinstance(axis, int)
    return axis


def _chunk(node: Node) -> None:
    _become(node, _ATEN.split.Tensor, _source(node), _chunked(node), _axis(node))


def _transpose(node: Node) -> None:
    axes = list(reversed(range(_value(node).dim())))
    _become(node, _ATEN.permute.default, _source(node), axes)


_REWRITES: dict[Any, Callable[[Node], None]] = {
    # Guards of the tracer, which the exporter drops too.
    _ATEN._assert_tensor_metadata.default: _erase,
    _ATEN._assert_scalar.default: _erase,
    # What changes nothing where nothing is trained.
    _ATEN.detach.default: _same,
    _ATEN.detach_.default: _same,
    _ATEN.dropout.default: _same,
    _ATEN.to.device: _cast,
    _ATEN.to.dtype: _cast,
    _ATEN.to.dtype_layout: _cast,
    _ATEN.contiguous.default: _contiguous,
    _ATEN.reshape.default: _reshape,
    _ATEN.flatten.using_ints: _flatten,
    _ATEN.chunk.default: _chunk,
    _ATEN.numpy_T.default: _transpose,
    _ATEN.square.default: lambda node: _become(node, _ATEN.pow.Tensor_Scalar, *node.args, 2),
    _ATEN.__and__.Tensor: lambda node: _become(node, _ATEN.bitwise_and.Tensor, *node.args),
}
