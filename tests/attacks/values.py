"""Bad values, and every parameter of every public function that they are given to.

A call ends with an answer or with a PtdeployError: never with another exception, with an answer
that is empty, or with the process.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from support.damage import edit, replace

import ptdeploy
from ptdeploy.errors import PtdeployError


class _Raises:
    """Whatever it is asked, it raises what nobody expects."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise KeyError("not an array")

    def __index__(self) -> int:
        raise ZeroDivisionError

    def __fspath__(self) -> str:
        raise LookupError

    def __len__(self) -> int:
        raise ArithmeticError

    def __getitem__(self, _: Any) -> Any:
        raise RuntimeError("no item")

    def __eq__(self, _: object) -> bool:
        raise OSError("do not compare")

    def __bool__(self) -> bool:
        raise NameError("neither true nor false")

    def __repr__(self) -> str:
        raise UnicodeError("no words")

    __hash__ = object.__hash__


class _Array:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self._array


def _deep(depth: int) -> list[Any]:
    nest: list[Any] = []
    # So many new lists would have garbage collected over and over, which is most of the time.
    gc.disable()
    try:
        for _ in range(depth):
            nest = [nest]
    finally:
        gc.enable()
    return nest


def _itself() -> list[Any]:
    nest: list[Any] = []
    nest.append(nest)
    return nest


# Made anew for each call: a generator is used up by the first.
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "-0.0": lambda: -0.0,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "-infinity": lambda: -math.inf,
    "1e-320": lambda: 1e-320,
    "1e-40": lambda: 1e-40,
    "1e308": lambda: 1e308,
    "2**31 - 1": lambda: 2**31 - 1,
    "2**31": lambda: 2**31,
    "2**32": lambda: 2**32,
    "2**63 - 1": lambda: 2**63 - 1,
    "2**63": lambda: 2**63,
    "2**64": lambda: 2**64,
    "-2**63": lambda: -(2**63),
    "10**5000": lambda: 10**5000,
    "a complex number": lambda: 1j,
    "no text": lambda: "",
    "text": lambda: "w5 w6",
    "a number as text": lambda: "3",
    "a NUL": lambda: "a\0b",
    "half a surrogate pair": lambda: "\ud800",
    "a long text": lambda: "x" * 100_000,
    "bytes": lambda: b"abc",
    "a bytearray": lambda: bytearray(b"abc"),
    "a memoryview": lambda: memoryview(b"abc"),
    "an empty list": list,
    "a list of an empty list": lambda: [[]],
    "a list with an empty list": lambda: [[5], []],
    "a ragged list": lambda: [[5, 6], [7]],
    "a list of two kinds": lambda: [5, [6]],
    "a list of text and ids": lambda: ["w5", [6]],
    "a list of None": lambda: [None],
    "a list of truths": lambda: [True, False],
    "a list of fractions": lambda: [1.0, 2.0],
    "a list of NaN": lambda: [math.nan],
    "a list of a huge number": lambda: [2**70],
    "a list of 2**63": lambda: [[2**63]],
    "a list of -1": lambda: [-1],
    "a list of bytes": lambda: [b"abc"],
    "a list of texts": lambda: ["w5", "w6 w7"],
    "a list of no texts": lambda: ["", ""],
    "a nest 50 deep": lambda: _deep(50),
    "a nest 100,000 deep": lambda: _deep(100_000),
    "a list of itself": _itself,
    "a tuple": lambda: (5, 6),
    "a set": lambda: {5, 6},
    "a dict": lambda: {5: 6},
    "a dict of a batch": lambda: {"input_ids": [[5, 6]]},
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: len,
    "an object that raises": _Raises,
    "a list of objects that raise": lambda: [_Raises()],
    "an object as an array": lambda: _Array(np.array([[5, 6]])),
    "an object as no array": lambda: _Array("x"),
    "a generator": lambda: (i for i in range(3)),
    "an endless generator": itertools.count,
    "an endless list": lambda: itertools.repeat([5]),
    "a range": lambda: range(5),
    "a range of 10**12": lambda: range(10**12),
    "numpy's int64": lambda: np.int64(3),
    "numpy's uint64": lambda: np.uint64(2**63),
    "numpy's int8": lambda: np.int8(-3),
    "numpy's int8, 3": lambda: np.int8(3),
    "numpy's int16": lambda: np.int16(3),
    "numpy's int32": lambda: np.int32(3),
    "numpy's uint8": lambda: np.uint8(3),
    "numpy's uint64, 3": lambda: np.uint64(3),
    "numpy's timedelta": lambda: np.timedelta64(3, "s"),
    "numpy's timedelta without a unit": lambda: np.timedelta64(3),
    "numpy's float32": lambda: np.float32(0.5),
    "numpy's NaN": lambda: np.float64(math.nan),
    "numpy's bool": lambda: np.bool_(True),
    "numpy's str": lambda: np.str_("w5"),
    "numpy's datetime": lambda: np.datetime64("2024-01-01"),
    "an array of no axis": lambda: np.array(3),
    "an array of one number": lambda: np.array([3]),
    "an empty array": lambda: np.zeros((0,), np.int64),
    "an array of no rows": lambda: np.zeros((0, 3), np.int64),
    "an array of empty rows": lambda: np.zeros((3, 0), np.int64),
    "an array of three axes": lambda: np.zeros((2, 2, 2), np.int64),
    "an array of 30 axes": lambda: np.zeros((1,) * 30, np.int64),
    "an array of bools": lambda: np.array([[True, False]]),
    "an array of floats": lambda: np.array([[1.0, 2.0]]),
    "an array of NaN": lambda: np.array([[math.nan]]),
    "an array of objects": lambda: np.array([[5, None]], dtype=object),
    "an array of strings": lambda: np.array([["a", "b"]]),
    "an array of bytes": lambda: np.array([b"ab"]),
    "an array of records": lambda: np.zeros(2, [("a", "i4"), ("b", "f8")]),
    "an array of uint64": lambda: np.array([[2**63]], np.uint64),
    "an array of int8": lambda: np.array([[5, 6]], np.int8),
    "an array of the other byte order": lambda: np.array([[5, 6]], ">i4"),
    "an array seen backwards": lambda: np.arange(6)[::-2],
    "a masked array": lambda: np.ma.masked_array([[5, 6]], [[0, 1]]),
}


@dataclasses.dataclass(frozen=True)
class Door:
    """One parameter of one function."""

    name: str
    call: Callable[[Any], Any]
    # An answer of no items is none.
    items: bool = False

    def __str__(self) -> str:
        return self.name


def with_words(bundle: Path) -> Path:
    """Give a bundle a tokenizer of the words w0 to w100, and a chat template if it is causal."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(101)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _add(bundle, "tokenizer.json", "tokenizer", tokenizer.to_str().encode())
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
    if json.loads((bundle / "manifest.json").read_text())["task"] == "CAUSAL_LM":
        content = json.dumps({"template": template, "special_tokens": {}}).encode()
        _add(bundle, "chat_template.json", "chat_template", content)
    return bundle


def _add(bundle: Path, name: str, role: str, content: bytes) -> None:
    entry = {"path": name, "role": role, "size": 0, "sha256": ""}
    edit(bundle, lambda manifest: manifest["files"].append(entry))
    replace(bundle, name, content)


def _of_an_engine(name: str, engine: Any) -> Iterator[Door]:
    ids = [[5, 6, 7]]
    yield Door(f"{name}.encode(inputs)", engine.encode, True)
    yield Door(f"{name}.encode(truncate)", lambda v: engine.encode(ids, truncate=v), True)
    yield Door(f"{name}.logits(input_ids)", engine.logits, True)
    yield Door(f"{name}.logits(attention_mask)", lambda v: engine.logits(ids, v), True)
    yield Door(f"{name}.logits(prompt)", lambda v: engine.logits(ids, prompt=v), True)
    yield Door(f"{name}.encode(prompt)", lambda v: engine.encode(ids, prompt=v), True)
    yield Door(f"{name}.load_prompt(path)", engine.load_prompt)
    path = engine.bundle.path
    yield Door(f"{name}.load_prompt(name)", lambda v: taken_in(engine, path, v))
    yield Door(f"{name}.unload_prompt(name)", engine.unload_prompt)
    for method in ("classify", "tag"):
        if not hasattr(engine, method):
            continue
        call = getattr(engine, method)
        yield Door(f"{name}.{method}(inputs)", call, True)
        yield Door(f"{name}.{method}(truncate)", lambda v, call=call: call(ids, truncate=v), True)
        yield Door(
            f"{name}.{method}(batch_size)", lambda v, call=call: call(ids, batch_size=v), True
        )


def taken_in(engine: Any, path: Path, name: Any) -> None:
    """Take in a prompt by that name, and take it out again."""
    before = set(engine.prompts)
    engine.load_prompt(path, name)
    for one in set(engine.prompts) - before:
        engine.unload_prompt(one)


_OPTIONS = (
    "max_new_tokens",
    "prompt",
    "stop",
    "seed",
    "cancel",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "min_new_tokens",
    "eos_token_ids",
    "no_such_option",
)


def _of_a_causal_model(engine: Any) -> Iterator[Door]:
    few = {"max_new_tokens": 3, "eos_token_ids": ()}

    def generate(name: str) -> Callable[[Any], Any]:
        return lambda value: engine.generate([[5, 6], [7]], **{**few, name: value})

    def sampled(name: str) -> Callable[[Any], Any]:
        chosen = {**few, "do_sample": True, "seed": 1}
        return lambda value: engine.generate([[5, 6], [7]], **{**chosen, name: value})

    def stream(name: str) -> Callable[[Any], Any]:
        return lambda value: list(engine.stream([5, 6], **{**few, name: value}))

    def session(change: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            one = engine.session(20)
            one.append([5, 6])
            answer = change(one, value)
            # Whatever was asked, it goes on.
            one.append([7])
            one.generate(1, eos_token_ids=())
            return answer

        return call

    yield Door("generate(inputs)", lambda v: engine.generate(v, 3, eos_token_ids=()), True)
    yield Door("stream(inputs)", lambda v: list(engine.stream(v, 3, eos_token_ids=())))
    for name in (*_OPTIONS, "logprobs"):
        yield Door(f"generate({name})", generate(name), True)
        yield Door(f"generate({name}, sampled)", sampled(name), True)
    for name in _OPTIONS:
        yield Door(f"stream({name})", stream(name))
        yield Door(
            f"session.generate({name})",
            session(lambda one, v, name=name: one.generate(**{**few, name: v})),
        )
    yield Door("session(max_tokens)", engine.session)
    yield Door("session(prompt)", lambda v: engine.session(prompt=v))
    yield Door("session.append(inputs)", session(lambda one, v: one.append(v)))
    yield Door("session.rollback(tokens)", session(lambda one, v: one.rollback(v)))
    yield Door("chat_text(messages)", engine.chat_text)
    yield Door("chat_ids(messages)", engine.chat_ids)
    message = {"role": "user", "content": "w5"}
    yield Door("chat_text(a message)", lambda v: engine.chat_text([v]))
    yield Door("chat_text(role)", lambda v: engine.chat_text([{**message, "role": v}]))
    yield Door("chat_text(content)", lambda v: engine.chat_text([{**message, "content": v}]))
    yield Door("chat_text(a prompt)", lambda v: engine.chat_text([message], v))


def _of_compile(nowhere: Path) -> Iterator[Door]:
    yield Door("compile(checkpoint)", lambda v: ptdeploy.compile(v, target="ort"))
    yield Door("compile(target)", lambda v: ptdeploy.compile(nowhere, target=v))
    names = (
        "base",
        "output",
        "name",
        "device",
        "precision",
        "adapter",
        "tokenizer",
        "task",
        "labels",
        "force",
    )
    names += ("freeze_kv", "prompt_kinds", "max_batch", "max_context", "golden")
    names += ("head", "task_id", "cpp_tokenizer", "quantization", "engine", "progress")
    for one in names:
        yield Door(
            f"compile({one})",
            lambda v, one=one: ptdeploy.compile(nowhere, target="ort", **{one: v}),
        )
    for kind, target in (
        (ptdeploy.QuantizationOptions, "ort"),
        (ptdeploy.TrtOptions, "trt"),
        (ptdeploy.OpenVinoOptions, "openvino"),
    ):
        option = "quantization" if target == "ort" else "engine"
        for one in dataclasses.fields(kind):
            yield Door(
                f"{kind.__name__}({one.name})",
                lambda v, one=one, kind=kind, target=target, option=option: ptdeploy.compile(
                    nowhere,
                    target=target,
                    precision="int8" if target == "ort" else None,
                    **{option: kind(**{one.name: v})},
                ),
            )


def _of_prompts(bundle: Path) -> Iterator[Door]:
    """Nothing is put into the bundle: it is no checkpoint, and has no prompt of those names."""
    yield Door("prompt_list(bundle)", ptdeploy.prompt_list)
    yield Door("prompt_remove(name)", lambda v: ptdeploy.prompt_remove(bundle, v))
    yield Door("prompt_default(name)", lambda v: ptdeploy.prompt_default(bundle, v))
    yield Door("prompt_add(bundle)", lambda v: ptdeploy.prompt_add(v, bundle))
    yield Door("prompt_add(prompt)", lambda v: ptdeploy.prompt_add(bundle, v, name="x"))
    names = ("name", "base", "adapter", "tokenizer", "task", "labels", "head", "task_id", "golden")
    for one in (*names, "replace", "progress"):
        yield Door(
            f"prompt_add({one})",
            lambda v, one=one: ptdeploy.prompt_add(bundle, bundle / "x", **{"name": "x", one: v}),
        )
    for one in (*names, "output", "force", "progress"):
        yield Door(
            f"compile_prompt({one})",
            lambda v, one=one: ptdeploy.compile_prompt(bundle / "x", over=bundle, **{one: v}),
        )


_LOAD = ("device", "threads", "map_weights", "max_prompts")


def _of_the_package(bundle: Path) -> Iterator[Door]:
    from ptdeploy.commands.diff import compare_bundles
    from ptdeploy.commands.inspect import inspect

    def of(name: str, function: Any, *given: Any, names: tuple[str, ...]) -> Iterator[Door]:
        for one in names:
            yield Door(f"{name}({one})", lambda v, one=one: function(*given, **{one: v}))

    yield Door("verify(bundle)", ptdeploy.verify)
    names = ("checkpoint", "base", "adapter", "data", "thresholds", "locate", "report", "graph")
    yield from of("verify", ptdeploy.verify, bundle, names=(*names, "progress"))
    yield from of("verify", ptdeploy.verify, bundle, names=("prompt",))
    yield from _of_prompts(bundle)
    yield Door("rebuild(bundle)", ptdeploy.rebuild)
    names = ("output", "engine", "force", "progress")
    yield from of("rebuild", ptdeploy.rebuild, bundle, names=names)
    nothing = {"checkpoint": bundle / "none", "to": "npy", "output": bundle.parent / "none.npy"}
    for one in (*nothing, "base", "adapter", "task", "task_id", "progress"):
        yield Door(f"convert({one})", lambda v, one=one: ptdeploy.convert(**{**nothing, one: v}))
    yield Door("load(bundle)", ptdeploy.load)
    yield from of("load", ptdeploy.load, bundle, names=_LOAD)
    yield Door("inspect(path)", inspect)
    yield from of("inspect", inspect, bundle, names=("adapter", "task", "layers"))
    yield Door("diff(before)", lambda v: compare_bundles(v, bundle))
    yield Door("diff(after)", lambda v: compare_bundles(bundle, v))
    yield from of("diff", compare_bundles, bundle, bundle, names=("speed", "rounds"))
    yield Door("profile(bundle)", lambda v: ptdeploy.profile(v, batch=1, rounds=1))
    for one in ("batch", "tokens", "rounds", "device", "threads", "prompt", "progress"):
        yield Door(
            f"profile({one})",
            lambda v, one=one: ptdeploy.profile(bundle, **{"batch": 1, "rounds": 1, one: v}),
        )


def doors(classifier: Path, tagger: Path, causal: Path) -> list[Door]:
    """Every parameter of the public functions, over three bundles with tokenizers."""
    loaded = {
        "classifier": ptdeploy.load(classifier),
        "tagger": ptdeploy.load(tagger),
        "causal": ptdeploy.load(causal),
    }
    found = [door for name, one in loaded.items() for door in _of_an_engine(name, one)]
    found += _of_a_causal_model(loaded["causal"])
    return [*found, *_of_compile(classifier / "no such checkpoint"), *_of_the_package(classifier)]


def outcome(door: Door, value: Any) -> str:
    """ "answered" or "refused", or in words what went wrong."""
    try:
        answer = door.call(value)
    except PtdeployError as error:
        return "refused" if error.problem.strip() else "an error without words"
    except BaseException as error:
        return f"raised {type(error).__name__}: {str(error)[:200]}"
    if isinstance(answer, Event):
        return "answered"
    return "an empty answer" if door.items and not len(answer) else "answered"
