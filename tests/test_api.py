"""The public door: everything that the API takes or gives is there, with its types, at no cost."""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
import sys
import typing

import pytest
from support import tiny

import ptdeploy
from ptdeploy.errors import PtdeployError

TYPED = ("compile", "convert", "diff", "inspect", "load", "profile", "rebuild", "verify")


@pytest.mark.parametrize("name", ptdeploy.__all__)
def test_what_is_exported_is_there_and_documented(name):
    found = getattr(ptdeploy, name)
    assert inspect.getdoc(found)
    assert name in dir(ptdeploy)
    assert found.__module__.startswith("ptdeploy.")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'complie'"):
        ptdeploy.complie  # noqa: B018 - asked for what it raises


@pytest.mark.parametrize("name", TYPED)
def test_what_a_function_takes_and_gives_can_be_imported_from_ptdeploy(name):
    hints = typing.get_type_hints(getattr(ptdeploy, name))
    ours = {
        one.__name__
        for hint in hints.values()
        for one in (hint, *typing.get_args(hint))
        if getattr(one, "__module__", "").startswith("ptdeploy.")
    }
    assert ours <= set(ptdeploy.__all__)
    assert "return" in hints


def test_progress_is_asked_of_no_python_caller():
    exported = [getattr(ptdeploy, name) for name in ptdeploy.__all__]
    functions = [inspect.signature(one) for one in exported if inspect.isfunction(one)]
    shown = [one.parameters["progress"] for one in functions if "progress" in one.parameters]
    assert len(shown) >= 7
    assert all(one.default is None for one in shown)


def test_every_error_is_exported():
    import ptdeploy.errors as errors

    ours = {
        name
        for name, one in vars(errors).items()
        if inspect.isclass(one) and issubclass(one, PtdeployError)
    }
    assert ours <= set(ptdeploy.__all__)


def test_the_command_line_and_the_api_are_asked_the_same():
    """A field of a request that one door lacks would be one that nobody can ask for."""
    from ptdeploy.commands.request import (
        CompileRequest,
        ConvertRequest,
        OverRequest,
        PromptAddRequest,
        RebuildRequest,
        VerifyRequest,
    )

    for function, kind, first in (
        (ptdeploy.compile, CompileRequest, "checkpoint"),
        (ptdeploy.compile_prompt, OverRequest, "checkpoint"),
        (ptdeploy.prompt_add, PromptAddRequest, "bundle"),
        (ptdeploy.convert, ConvertRequest, "checkpoint"),
        (ptdeploy.verify, VerifyRequest, "bundle"),
        (ptdeploy.rebuild, RebuildRequest, "bundle"),
    ):
        parameters = inspect.signature(function).parameters
        # Behind the first they are keywords, in the order that a reader of each door likes.
        assert {*parameters} == {*inspect.signature(kind).parameters, "progress"}
        assert next(iter(parameters)) == first
        assert {name: one.default for name, one in parameters.items() if name != "progress"} == {
            name: one.default for name, one in inspect.signature(kind).parameters.items()
        }


def test_importing_ptdeploy_imports_nothing_else():
    program = (
        "import sys; before = set(sys.modules); import ptdeploy; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded & {"numpy", "msgspec", "torch", "transformers", "jinja2", "onnx"} == set()


def test_notes_reach_a_python_caller_and_its_log(tmp_path, caplog):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    with caplog.at_level(logging.INFO, logger="ptdeploy"):
        bundle = ptdeploy.compile(
            trained.adapter, target="ort", base=str(trained.base), output=tmp_path / "bundle"
        )
    (note,) = [one for one in bundle.notes if "no tokenizer was found" in one]
    assert note in [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "check parity" in [one.getMessage() for one in caplog.records]
