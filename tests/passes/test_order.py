"""One graph has one order and one naming, whatever order its program was traced in."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from support import tiny

from ptdeploy.bundle.signature import Signature
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.passes import PassContext, order, run_passes
from ptdeploy.passes.name import MODULE_KEY

OPERATORS = ("Add", "Sub", "Mul")
MODULES = ("layers.0", "layers.1")
ROWS = ("batch", 4)
SIGNATURE = Signature(
    (TensorSpec("x", "ids", "float32", ROWS, "input"),),
    tuple(TensorSpec(name, "logits", "float32", ROWS, "output") for name in ("y", "z")),
)
# One is a parameter, the others are torch's: constants that it found as it traced.
WEIGHTS = 3
# The number of the first node's value: before it are `x` and the weights.
FIRST = 1 + WEIGHTS
CONTEXT = PassContext(SIGNATURE)


@dataclass(frozen=True)
class Node:
    """A node that reads two values, by number."""

    operator: str
    module: str
    inputs: tuple[int, int]


@dataclass(frozen=True)
class Traced:
    """Nodes, and the order and numbers that a trace happened to give them and the weights."""

    nodes: tuple[Node, ...]
    weights: tuple[tuple[float, ...], ...]
    order: tuple[int, ...]
    numbers: tuple[int, ...]
    first_weights: tuple[int, ...]


@st.composite
def traced_twice(draw: st.DrawFn) -> tuple[Traced, Traced]:
    """One program, traced in two orders."""
    nodes = []
    for index in range(draw(st.integers(1, 9))):
        before = st.integers(0, FIRST + index - 1)
        inputs = (draw(before), draw(before))
        nodes.append(Node(draw(st.sampled_from(OPERATORS)), draw(st.sampled_from(MODULES)), inputs))
    # What is given out hangs on what is given.
    for last in (FIRST + len(nodes) - 1, draw(st.integers(0, FIRST + len(nodes) - 1))):
        nodes.append(Node("Add", MODULES[0], (0, last)))
    # Some weights are equal.
    weights = tuple(draw(st.sampled_from([(1.0,) * 4, (2.0, 3, 4, 5)])) for _ in range(WEIGHTS))

    def trace() -> Traced:
        urgency = draw(st.permutations(range(len(nodes))))
        numbers = draw(st.permutations(range(len(nodes))))
        first_weights = draw(st.permutations(range(WEIGHTS)))
        ordered = topological(nodes, urgency)
        return Traced(tuple(nodes), weights, ordered, tuple(numbers), tuple(first_weights))

    return trace(), trace()


def topological(nodes: list[Node], urgency: list[int]) -> tuple[int, ...]:
    """Every node after those it needs, else the most urgent first."""
    needs = [{one - FIRST for one in node.inputs if one >= FIRST} for node in nodes]
    ordered: list[int] = []
    ready = [(urgency[i], i) for i, needed in enumerate(needs) if not needed]
    heapq.heapify(ready)
    while ready:
        _, chosen = heapq.heappop(ready)
        ordered.append(chosen)
        for index, needed in enumerate(needs):
            if chosen in needed:
                needed.remove(chosen)
                if not needed:
                    heapq.heappush(ready, (urgency[index], index))
    return tuple(ordered)


def exported(traced: Traced) -> ir.Model:
    """The graph as torch would export it."""
    weights = ["weight", *(f"m.lifted_tensor_{traced.first_weights[i]}" for i in range(1, WEIGHTS))]
    inner = [f"val_{number}" for number in traced.numbers[:-2]]
    names = ["x", *weights, *inner, "y", "z"]
    nodes = []
    for index in traced.order:
        node = traced.nodes[index]
        inputs = [names[one] for one in node.inputs]
        nodes.append(
            helper.make_node(node.operator, inputs, [names[FIRST + index]], f"node_{index}")
        )
        nodes[-1].metadata_props.add(key=MODULE_KEY, value=node.module)
    constants = [
        onnx.numpy_helper.from_array(np.array(traced.weights[index], np.float32), weights[index])
        for index in traced.first_weights
    ]
    x, y, z = (declared(name) for name in "xyz")
    graph = helper.make_graph(nodes, "g", [x], [y, z], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def declared(name: str, shape: tuple[str | int, ...] = ROWS) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def run(model: ir.Model, **given: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    # Nothing is computed in another order than the graph says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


X = np.array([[1, -2, 0.5, 3], [0, 1, 2, -1]], np.float32)


@given(traced_twice())
@settings(max_examples=60, deadline=None)
def test_a_graph_is_the_same_whatever_order_it_was_traced_in(traced):
    one, other = (content(order.run(exported(trace), CONTEXT)) for trace in traced)
    assert one == other


@given(traced_twice())
@settings(max_examples=40, deadline=None)
def test_all_passes_keep_the_same_of_equal_nodes_and_weights(traced):
    one, other = (content(run_passes(exported(trace), CONTEXT)) for trace in traced)
    assert one == other


@given(traced_twice())
@settings(max_examples=40, deadline=None)
def test_an_ordered_graph_computes_the_same(traced):
    before = run(exported(traced[0]), x=X)
    after = run(order.run(exported(traced[1]), CONTEXT), x=X)
    assert all(map(np.array_equal, before, after))


@given(traced_twice())
@settings(max_examples=40, deadline=None)
def test_order_of_what_is_in_order_changes_nothing(traced):
    ordered = order.run(exported(traced[0]), CONTEXT)
    before = content(ordered)
    assert content(order.run(ordered, CONTEXT)) == before


def branches(first: str, second: str) -> ir.Model:
    """What to add is chosen by an If, whose branches alone read two nodes around it."""

    def branch(name: str, read: str, doubled: str) -> onnx.GraphProto:
        node = helper.make_node("Add", [read, read], [doubled], f"node_{doubled}")
        return helper.make_graph([node], name, [], [declared(doubled)])

    around = [
        helper.make_node("Neg", ["x"], [first]),
        helper.make_node("Abs", ["x"], [second]),
    ]
    if first > second:
        around.reverse()
    nodes = [
        *around,
        helper.make_node(
            "If",
            ["chosen"],
            [f"{first}.out"],
            then_branch=branch("then", first, f"{first}.then"),
            else_branch=branch("else", second, f"{second}.else"),
        ),
        helper.make_node("Add", [f"{first}.out", "x"], ["y"]),
    ]
    chosen = helper.make_tensor_value_info("chosen", onnx.TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [declared("x"), chosen], [declared("y")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_what_branches_read_from_around_them_comes_before_them():
    models = [order.run(branches(*names), CONTEXT) for names in (("a", "b"), ("b", "a"))]
    assert content(models[0]) == content(models[1])
    assert [node.op_type for node in models[0].graph] == ["Abs", "Neg", "If", "Add"]
    for chosen in (True, False):
        wanted = 2 * (-X if chosen else np.abs(X)) + X
        assert np.array_equal(run(models[0], x=X, chosen=np.array(chosen))[0], wanted)


def test_no_value_gets_the_name_of_an_input_a_weight_or_an_output():
    nodes = [
        helper.make_node("Add", ["add", "add_1"], ["val_0"]),
        helper.make_node("Add", ["val_0", "val_0"], ["val_1"]),
        helper.make_node("Add", ["val_1", "val_0"], ["add_2"]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "add_1")
    graph = helper.make_graph(nodes, "g", [declared("add")], [declared("add_2")], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    order.run(model, CONTEXT)
    assert [node.outputs[0].name for node in model.graph] == ["add_3", "add_4", "add_2"]
    assert np.array_equal(run(model, add=X)[0], 3 * (X + 1))


def test_what_no_output_needs_is_dropped():
    nodes = [helper.make_node("Neg", ["x"], ["unused"]), helper.make_node("Abs", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [declared("x")], [declared("y")])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert [node.op_type for node in order.run(model, CONTEXT).graph] == ["Abs"]


def test_a_deep_graph_is_ordered():
    deep = 3000
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(deep)]
    last = f"v{deep}"
    graph = helper.make_graph(nodes, "g", [declared("v0")], [declared(last)])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    before = list(model.graph)
    assert list(order.run(model, CONTEXT).graph) == before


COMPILE = """
import sys
import ptdeploy

adapter, base, output = sys.argv[1:]
ptdeploy.compile(adapter, target="ort", base=base, output=output)
print(*{"sliding_attention", "full_attention"})
"""


def test_processes_that_walk_through_sets_in_other_orders_give_the_same_bytes(tmp_path):
    trained = tiny.make(tmp_path, "gemma3", "CAUSAL_LM")
    outputs = [tmp_path / seed for seed in ("1", "3")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILE, trained.adapter, trained.base, output],
            env={**os.environ, "PYTHONHASHSEED": output.name},
            stdout=subprocess.PIPE,
            text=True,
        )
        for output in outputs
    ]
    orders = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert orders[0].split() == orders[1].split()[::-1], "these seeds give one order"
    one, other = map(files, outputs)
    assert one == other


def files(bundle: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(bundle)): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["model.lifted_tensor_7", "lifted_tensor_12"])
def test_only_what_torch_numbered_by_itself_is_named_anew(name):
    nodes = [helper.make_node("Add", ["x", name], ["y"])]
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), name)
    graph = helper.make_graph(nodes, "g", [declared("x")], [declared("y")], [weight])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert list(order.run(model, CONTEXT).graph.initializers) == ["lifted_tensor"]
