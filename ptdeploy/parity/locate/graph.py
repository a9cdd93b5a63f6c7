"""A bundle's graph by module: which values a module takes and gives, and what they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle
from ptdeploy.errors import InputError
from ptdeploy.passes.name import module_of
from ptdeploy.targets import get_target

# They move numbers or change their type, and compute none.
_MOVES = {"Reshape", "Transpose", "Cast", "Identity", "Slice", "Squeeze", "Unsqueeze", "Expand"}


@dataclass(frozen=True)
class ModuleGraph:
    """An ONNX model read without its weights; nodes are known by the values they give."""

    bundle: Bundle
    path: Path
    model: onnx.ModelProto
    producers: Mapping[str, onnx.NodeProto]
    users: Mapping[str, tuple[onnx.NodeProto, ...]]
    initializers: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, bundle: Bundle, path: Path, model: onnx.ModelProto) -> ModuleGraph:
        """A model's graph; what its initializers hold outside of it lies beside `path`."""
        users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                users[name].append(node)
        return cls(
            bundle,
            path,
            model,
            {name: node for node in model.graph.node for name in node.output if name},
            {name: tuple(nodes) for name, nodes in users.items()},
            {tensor.name: tensor for tensor in model.graph.initializer},
        )

    def module(self, value: str) -> str:
        """The path of the module whose node gives a value; "" for the program's own."""
        if value not in self.producers:
            return ""
        return module_of(value) or module_of(self.producers[value].name)

    def nodes(self, module: str, inside: bool = True) -> list[onnx.NodeProto]:
        """A module's nodes in order; `inside` counts those of the modules in it too."""
        belongs = _inside if inside else str.__eq__
        return [n for n in self.model.graph.node if belongs(module_of(n.name), module)]

    def taken(self, module: str) -> list[str]:
        """The computed values a module's nodes take from outside of it.

        That includes the extra output of a fused node (a residual sum) that belongs to another
        module.
        """
        names = (name for node in self.nodes(module) for name in (*node.input, *node.output))
        return list(
            dict.fromkeys(
                name
                for name in names
                if name in self.producers and not _inside(self.module(name), module)
            )
        )

    def given(self, module: str) -> list[str]:
        """The values a module gives to others, or to the caller."""
        outputs = {output.name for output in self.model.graph.output}
        return [
            name
            for name, node in self.producers.items()
            if _inside(self.module(name), module)
            and (
                name in outputs
                or not _inside(module_of(node.name), module)
                or not all(self._works_for(user, module) for user in self.users.get(name, ()))
            )
        ]

    def _works_for(self, node: onnx.NodeProto, module: str) -> bool:
        """Whether a node is in a module, or computes one of its values beside its own."""
        return any(
            _inside(path, module)
            for path in (module_of(node.name), *(module_of(name) for name in node.output))
        )

    def constants(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and contents of the constants that nodes read, each once."""
        for name in dict.fromkeys(name for node in nodes for name in node.input):
            if name in self.initializers:
                yield name, self.constant(name)

    def constant(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = onnx.numpy_helper.to_array(
            self.initializers[name], base_dir=str(self.path.parent)
        )
        return array

    def outputs_of(self, operator: str) -> set[str]:
        """What the nodes of one operator give."""
        nodes = (node for node in self.model.graph.node if node.op_type == operator)
        return {name for node in nodes for name in node.output}

    def behind(self, value: str, known: set[str]) -> list[onnx.NodeProto]:
        """The nodes that compute a value from what is `known`, in the graph's order."""
        seen: set[int] = set()
        wanted = [value]
        while wanted:
            node = self.producers.get(wanted.pop())
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            wanted += [name for name in node.input if name not in known]
        return [node for node in self.model.graph.node if id(node) in seen]


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def read_graph(bundle: Bundle) -> ModuleGraph:
    """Read a bundle's graph. Raises InputError if its nodes are not named after modules."""
    path = bundle.in_folder("model")
    if path is None:
        raise InputError(
            f"{bundle.path}: holds no ONNX, whose modules could be compared.",
            "Compile it with --keep-onnx.",
        )
    model = onnx.load(path, load_external_data=False)
    if not any(module_of(node.name) for node in model.graph.node):
        raise InputError(
            f"{bundle.path}: its graph does not say which module a node is from.",
            "Compile the checkpoint again; then --locate can name the module.",
        )
    return ModuleGraph.of(bundle, path, model)


def computes(node: onnx.NodeProto) -> bool:
    """Whether a node makes numbers, instead of moving them."""
    return node.op_type not in _MOVES


def run_exposed(
    graph: ModuleGraph, names: Iterable[str], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run the graph with inner values as outputs too, by the bundle's own target.

    A value that the target does not give out is left out.
    """
    there = {output.name for output in graph.model.graph.output}
    added = tuple(name for name in dict.fromkeys(names) if name not in there)
    return get_target(graph.bundle.manifest.target).run_graph(graph.bundle, added, feed)
