"""Exported programs decomposed where they are, instead of being traced twice more.

torch's ONNX exporter has `run_decompositions` rebuild each program from two runs of it on tensors
without values: more than half of what an export costs. In a model that is not trained, nearly all
operations are such that the exporter translates them as they are, and what the others become is
said here. A program with an operation that is not known here is left to torch.
"""

from __future__ import annotations

import itertools
import operator
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

# What never gives memory of its input, as some operations do that change nothing.
_NEW = {
    _ATEN.linear.default,
    _ATEN.matmul.default,
    _ATEN.sum.dim_IntList,
    _ATEN.topk.default,
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
        # Found before the first changes: what one becomes may hide what another is.
        for node in [one for one in module.graph.nodes if _is_rewritten(one)]:
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


def _stays(target: Any, table: dict[Any, Any]) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return True
    shares = any(one.alias_info is not None for one in target._schema.arguments)
    return target in _VIEWS or not (target in table or shares)


def _is_rewritten(node: Node) -> bool:
    if node.target == _ATEN.dropout.default:
        return node.args[2] is False
    if node.target == _ATEN.chunk.default:
        return isinstance(_chunked(node), int)
    if node.target == _ATEN.rsub.Scalar:
        return len(node.args) == 2 and _value(node).dtype == _value(_source(node)).dtype
    if node.target == _ATEN.flatten.using_ints:
        return _value(_source(node)).dim() > 0
    if node.target in _IN_PLACE:
        return _overwrites_its_own(node)
    return node.op == "call_function" and node.target in _REWRITES


def _overwrites_its_own(node: Node) -> bool:
    """Whether what an operation overwrites is seen by no other after it, in this or another view.

    It is then as well written elsewhere: the tracer has what comes after read the result.
    """
    source = node.args[0]
    if not isinstance(source, Node) or not _is_new(source):
        return False
    before, dtype = set(_until(node)), _value(source).dtype
    others = [one for one in source.users if one is not node]
    inputs = [_value(one) for one in node.all_input_nodes]
    return all(one in before and _is_new(one) for one in others) and all(
        isinstance(one, torch.Tensor) and one.dtype == dtype for one in inputs
    )


def _is_new(node: Node) -> bool:
    """Whether a node's value is known to share no memory with its inputs, or with none that is
    read but by way of this node."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and _is_new(node.args[0])
    if node.target in _VIEWS or node.target == _ATEN.reshape.default:
        return len(_source(node).users) == 1 and _is_new(_source(node))
    return node.target in _NEW or node.target in _IN_PLACE.values()


def _until(node: Node) -> Iterator[Node]:
    """The nodes before this one, in order."""
    return itertools.takewhile(lambda one: one is not node, node.graph.nodes)


def _become(node: Node, target: Any, *args: Any, **kwargs: Any) -> None:
    # In its place and under its name: by that the program knows its outputs.
    node.target, node.args, node.kwargs = target, args, kwargs


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


def _unflatten(node: Node) -> None:
    source, axes = _source(node), _value(_source(node)).dim()
    axis, given = cast("int", node.args[1]) % axes, cast("list[Any]", node.args[2])
    # A size that is to be worked out is often known, and better said.
    pairs = zip(given, _value(node).shape[axis : axis + len(given)], strict=True)
    split = [new if old == -1 and isinstance(new, int) else old for old, new in pairs]
    before, after = range(axis), range(axis + 1, axes)
    sizes = [*(_length(node, i) for i in before), *split, *(_length(node, i) for i in after)]
    _become(node, _ATEN.view.default, source, sizes)


def _length(node: Node, axis: int) -> Any:
    """The length of an axis of a node's input, or the node before that has the same."""
    length: Any = _value(_source(node)).shape[axis]
    if isinstance(length, int):
        return length
    for one in _until(node):
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


def _subtract_from(node: Node) -> None:
    _become(node, _ATEN.sub.Tensor, node.args[1], _source(node))


def _anew(node: Node) -> None:
    _become(node, _IN_PLACE[node.target], *node.args, **node.kwargs)


# What writes its result over its first input, and what writes it elsewhere.
_IN_PLACE: dict[Any, Any] = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.div_.Tensor: _ATEN.div.Tensor,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor,
}
_REWRITES: dict[Any, Callable[[Node], None]] = {
    # Guards of the tracer, which the exporter drops too.
    _ATEN._assert_tensor_metadata.default: _erase,
    _ATEN._assert_scalar.default: _erase,
    # What changes nothing where nothing is trained.
    _ATEN.alias.default: _same,
    _ATEN.detach.default: _same,
    _ATEN.detach_.default: _same,
    _ATEN.dropout.default: _same,
    _ATEN.to.device: _cast,
    _ATEN.to.dtype: _cast,
    _ATEN.to.dtype_layout: _cast,
    _ATEN.contiguous.default: _contiguous,
    _ATEN.reshape.default: _reshape,
    _ATEN.flatten.using_ints: _flatten,
    _ATEN.unflatten.int: _unflatten,
    _ATEN.chunk.default: _chunk,
    _ATEN.numpy_T.default: _transpose,
    _ATEN.square.default: lambda node: _become(node, _ATEN.pow.Tensor_Scalar, *node.args, 2),
    _ATEN.rsub.Scalar: _subtract_from,
    _ATEN.item.default: lambda node: _become(node, _ATEN._local_scalar_dense.default, *node.args),
    **dict.fromkeys(_IN_PLACE, _anew),
    _ATEN.__and__.Tensor: lambda node: _become(node, _ATEN.bitwise_and.Tensor, *node.args),
}
