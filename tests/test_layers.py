"""Each layer imports only from those to its right; what runs a bundle imports nothing to compile.

cli -> commands -> parity -> {targets, passes, program, source} -> runtime -> backends -> bundle
    -> files, errors and other modules that stand alone
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ptdeploy"
# From left to right; what stands in one line is one layer. "" is `import ptdeploy` itself, whose
# modules are the doors to all the rest.
LAYERS = (
    ("", "__init__", "__main__", "api", "pytest_plugin", "cli", "cpp"),
    ("commands",),
    ("parity",),
    ("targets", "passes", "program", "source"),
    ("runtime",),
    ("backends",),
    ("bundle",),
    (
        *("arguments", "bfloat16", "errors", "files", "memory", "printable"),
        *("progress", "signals", "tables", "text_files", "threads"),
    ),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
RUNS_A_BUNDLE = RANKS["runtime"]
TO_COMPILE = {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript"}
# Imported where it is installed alone: it reads the graph that ONNX Runtime wrote, for people.
READS_GRAPHS = {("backends/ort/graph_layers.py", "onnx")}


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def layer_of(module: str) -> str:
    """The folder or file of the package that a module of it lies in."""
    return module.split(".")[1] if "." in module else ""


def upward(root: Path) -> set[tuple[str, str]]:
    """What imports from a layer to its left: the file, and the folder that it imports from."""
    found = set()
    for file in sorted(root.rglob("*.py")):
        here = file.relative_to(root)
        rank = RANKS[here.parts[0].removesuffix(".py")]
        for module in imports(file):
            if module.split(".")[0] == "ptdeploy" and RANKS[layer_of(module)] < rank:
                found.add((here.as_posix(), ".".join(module.split(".")[:2])))
    return found


def compiling(root: Path) -> set[tuple[str, str]]:
    """What runs a bundle and imports a package that is for compiling one."""
    found = set()
    for file in sorted(root.rglob("*.py")):
        here = file.relative_to(root)
        if RANKS[here.parts[0].removesuffix(".py")] >= RUNS_A_BUNDLE:
            packages = {module.split(".")[0] for module in imports(file)}
            found |= {(here.as_posix(), package) for package in packages & TO_COMPILE}
    return found


def test_each_layer_imports_only_from_those_to_its_right():
    assert upward(PACKAGE) == set()


def test_what_runs_a_bundle_imports_no_package_that_compiles_one():
    assert compiling(PACKAGE) == READS_GRAPHS


def test_every_module_has_its_layer():
    names = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert names - {"__pycache__", "py"} <= set(RANKS)


def test_no_module_hides_a_function_of_its_package():
    """Importing `package.name` sets the package's attribute `name` to the module."""
    for package in (PACKAGE, PACKAGE / "targets", PACKAGE / "targets" / "trt"):
        modules = {path.stem for path in package.glob("*.py")}
        body = ast.parse((package / "__init__.py").read_text()).body
        assert not modules & {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "line",
    [
        "import ptdeploy.targets.ort",
        "from ptdeploy import targets",
        "def later():\n    from ptdeploy.targets import get_target",
        "from ptdeploy import load",
    ],
)
def test_an_import_upward_is_found(tmp_path, line):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "new.py").write_text(line)
    (found,) = upward(tmp_path)
    assert found[0] == "runtime/new.py"


@pytest.mark.parametrize("line", ["import torch", "from transformers import AutoModel"])
def test_an_import_of_what_compiles_is_found(tmp_path, line):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "new.py").write_text(line)
    assert len(compiling(tmp_path)) == 1
