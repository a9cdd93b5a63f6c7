"""A graph with GroupQueryAttention as a program over a paged KV cache.

Each token is a row of its own in the graph; its attention knows which tokens are one text's. So
texts of unequal length, and new tokens beside a text's first ones, run in one pass, and blocks of
slots that several rows begin with lie in memory once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ptdeploy.arguments import MOST
from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.text_files import library_path

OPERATOR, DOMAIN = "GroupQueryAttention", "com.microsoft"


@dataclass(frozen=True)
class StepNames:
    """The graph's own names of what a step takes and gives."""

    positions: str
    logits: str


@dataclass(frozen=True)
class _Mark:
    """Where a GroupQueryAttention stood: its keys and values come in, and its output is taken."""

    joined: Any
    output: Any
    heads: int
    kv_heads: int
    size: int
    scale: float
    window: int


def read_paged(
    path: Path, names: StepNames, map_weights: bool, check: Callable[[Any], None]
) -> Any:
    """An ONNX file as OpenVINO's model over a paged cache. `check` sees the model as the file is.

    Raises ValueError if its attention cannot be paged, and what OpenVINO does.
    """
    openvino = import_openvino()
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    marks: list[_Mark] = []
    extension = import_module("openvino.frontend.onnx").ConversionExtension
    refused: list[ValueError] = []
    frontend.add_extension(extension(OPERATOR, DOMAIN, _marker(marks, refused)))
    try:
        model = frontend.convert(frontend.load(library_path(path), map_weights))
    except Exception as error:  # openvino's own errors share no public base class
        # The frontend keeps no words of it.
        if refused:
            raise refused[-1] from error
        raise
    check(model)
    if not marks:
        raise ValueError(f"it has no {OPERATOR}")
    added: dict[str, Any] = {}

    def parameter(name: str, shape: tuple[int, ...] = (-1,), kind: Any = np.int32) -> Any:
        if name not in added:
            added[name] = openvino.opset13.parameter(list(shape), kind, name=name)
            added[name].output(0).set_names({name})
        return added[name].output(0)

    for number, mark in enumerate(marks):
        _page(mark, number, parameter)
    _keep_logits(model, names, parameter("sampled", kind=np.int64))
    model.add_parameters(list(added.values()))
    for one in list(model.get_parameters()):
        # The dense buffer, and where in a row logits are wanted.
        if not one.output(0).get_target_inputs():
            model.remove_parameter(one)
    model.validate_nodes_and_infer_types()
    return model


def _marker(marks: list[_Mark], refused: list[ValueError]) -> Callable[[Any], list[Any]]:
    """What the frontend puts in the operator's place; `refused` takes why it cannot.

    Parameters may not be made while it converts. A slice of all that comes in has the output's
    shape, so that the shapes behind it stay known.
    """
    op = import_openvino().opset13

    def convert(node: Any) -> list[Any]:
        try:
            return marked(node)
        except ValueError as error:
            refused.append(error)
            raise

    def marked(node: Any) -> list[Any]:
        softcap, rotary = node.get_attribute("softcap", 0.0), node.get_attribute("do_rotary", 0)
        if softcap or rotary or node.get_input_size() > 7:
            raise ValueError("a soft cap, a rotation, a bias or sinks are not carried over")
        heads, kv_heads = _size(node, "num_heads"), _size(node, "kv_num_heads")
        window = _size(node, "local_window_size", -1)
        given = [node.get_input(place) for place in range(3)]
        widths = [_width(tokens) for tokens in given]
        size = widths[0] // heads
        if size < 1 or widths != [heads * size, kv_heads * size, kv_heads * size]:
            raise ValueError("its attention's tokens are not as wide as their heads")
        joined = op.concat(given, -1)
        output = op.slice(joined, _ints([0]), _ints(widths[:1]), _ints([1]), _ints([-1]))
        scale = node.get_attribute("scale", 0.0)
        marks.append(_Mark(joined, output, heads, kv_heads, size, scale, window))
        # Copies: the buffer's own tensors would lose the names that they came in by.
        present = [op.concat([node.get_input(place)], 0).output(0) for place in (3, 4)]
        return [output.output(0), *present]

    return convert


def _size(node: Any, name: str, missing: int | None = None) -> int:
    """An attribute as the operator has it: a size, or -1 where that is what is missing."""
    value: int = node.get_attribute(name, *([] if missing is None else [missing]))
    if value != missing and not 1 <= value <= MOST:
        raise ValueError(f"its attention's {name} must be from 1 to {MOST}")
    return value


def _width(tokens: Any) -> int:
    shape = tokens.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) == 0 or shape[-1].is_dynamic:
        raise ValueError("how wide its attention's tokens are is not known")
    return int(shape[-1].get_length())


def _page(mark: _Mark, number: int, parameter: Callable[..., Any]) -> None:
    """Put the paged operator into a mark's place."""
    openvino = import_openvino()
    op = openvino.opset13
    query, key, value = (mark.joined.input(place).get_source_output() for place in range(3))
    size = mark.size

    def flat(tokens: Any, heads: int) -> Any:
        return op.reshape(tokens, _ints([-1, heads * size]), False).output(0)

    def none(kind: Any, shape: tuple[int, ...] = (0,)) -> Any:
        return op.constant(np.zeros(shape, kind)).output(0)

    def scalar(number: float, kind: Any = np.int32) -> Any:
        return op.constant(np.array(number, kind)).output(0)

    def cache(of: str) -> Any:
        return parameter(f"{of}_cache.{number}", (-1,) * 4, openvino.Type.dynamic)

    paged = openvino.op._PagedAttentionExtension(
        [
            *(flat(query, mark.heads), flat(key, mark.kv_heads), flat(value, mark.kv_heads)),
            *(cache("key"), cache("value")),
            *(parameter("past_lens"), parameter("subsequence_begins")),
            *(parameter("block_indices"), parameter("block_indices_begins")),
            scalar(mark.scale or size**-0.5, np.float32),
            scalar(max(mark.window, 0)),
            none(np.float32),
            parameter("max_context_len", ()),
            # What OpenVINO can do beside that: scores, rotation and eviction of blocks, sinks.
            *(none(np.int32), none(np.int32), none(np.int32), none(np.float32), none(np.float32)),
            *(scalar(0), scalar(0), none(np.float32, (0,) * 4), scalar(0)),
            *(none(np.int32), none(np.int32), none(np.int32), none(np.int32)),
            *(none(np.uint8), none(np.int32)),
        ]
    )
    # The plugin takes the sizes from here.
    for what, count in (
        ("num_k_heads", mark.kv_heads),
        ("k_head_size", size),
        ("num_v_heads", mark.kv_heads),
        ("v_head_size", size),
    ):
        paged.get_rt_info()[what] = count
    result = op.reshape(paged.output(0), _ints([-1, 1, mark.heads * size]), False)
    for taker in mark.output.output(0).get_target_inputs():
        taker.replace_source_output(result.output(0))


def _keep_logits(model: Any, names: StepNames, sampled: Any) -> None:
    """Leave the logits as the only output, of the tokens that `sampled` lists."""
    op = import_openvino().opset13
    # A result that Python still knows would keep its parameter in use.
    for index in reversed(range(len(model.get_results()))):
        if names.logits not in model.get_results()[index].input(0).get_source_output().get_names():
            model.remove_result(model.get_results()[index])
    positions = model.input(names.positions).get_node()
    node = positions
    while node.get_type_name() != "GatherND":
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    # A row has one token, and logits are wanted of that.
    moved = node.input(0).get_source_output().get_node()
    chosen = op.gather(moved.input(0).get_source_output(), sampled, _ints(0))
    moved.input(0).replace_source_output(chosen.output(0))
    for taker in positions.output(0).get_target_inputs():
        taker.replace_source_output(_ints([0]).output(0))


def _ints(values: Any) -> Any:
    return import_openvino().opset13.constant(np.array(values, np.int64))
