"""Bundles that say what is not so: every hash is right, every field of its type.

One table for both readers. A lie is refused when the bundle is opened, with `reason` among the
words, or it is harmless: the bundle opens and answers as the honest one does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from support.damage import DECODER, ENCODER, QUANTIZED, edit, fix_slots, replace

Change = Callable[[dict[str, Any]], object]
TAGGER, PLAIN = ("bert", "TOKEN_CLS"), ("bloom", "CAUSAL_LM")
POOLED = ("qwen2", "SEQ_CLS")
# By architecture and task, or a kind of native.KINDS.
Honest = tuple[str, str] | str
LOOSE = "fused, not frozen"
MOST = 2**31


@dataclass(frozen=True)
class Lie:
    """`do` makes an honest bundle in a folder lie; `reason` is None where that is harmless."""

    name: str
    do: Callable[[Path], object]
    reason: str | None
    bundle: Honest = DECODER

    def __str__(self) -> str:
        return self.name


def _says(name: str, change: Change, reason: str | None, **more: Any) -> Lie:
    return Lie(name, lambda bundle: edit(bundle, change), reason, **more)


def _swap(side: str, a: int, b: int, *fields: str) -> Change:
    """Exchange two tensors of a signature, or some of their fields."""

    def change(manifest: dict[str, Any]) -> None:
        one, other = manifest[side][a], manifest[side][b]
        if not fields:
            manifest[side][a], manifest[side][b] = other, one
        for field in fields:
            one[field], other[field] = other[field], one[field]

    return change


def _set(path: str, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = manifest
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = value

    return change


def _all(*changes: Change) -> Change:
    return lambda manifest: [change(manifest) for change in changes]


def _each_past(**fields: Any) -> Change:
    return lambda m: [spec.update(fields) for spec in (*m["inputs"][3:], *m["outputs"][1:])]


def _heads(manifest: dict[str, Any], heads: int, width: int) -> None:
    """Another number of heads and their width, with the same number of elements."""
    for spec in (*manifest["inputs"][3:], *manifest["outputs"][1:]):
        spec["shape"][1], spec["shape"][3] = heads, width
    manifest["prompt"]["prefix_kv"] = [2, 2, heads, 5, width]


def _prompt(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Change the prompt's tensors, with their file's hash."""

    def do(bundle: Path) -> None:
        tensors = dict(load_file(bundle / "prompt.safetensors"))
        change(tensors)
        replace(bundle, "prompt.safetensors", save(tensors))

    return do


def _put(name: str, place: int, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].put(place, value)

    return change


def _as(name: str, dtype: Any) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: tensors[name].astype(dtype)})


def graph(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change the ONNX model, with its hash."""

    def do(bundle: Path) -> None:
        import onnx

        model = onnx.load(bundle / "model.onnx", load_external_data=False)
        change(model)
        replace(bundle, "model.onnx", model.SerializeToString())

    return do


def _weights_from(name: str, copy: bool = True) -> Callable[[Path], None]:
    """Take the weights from another file, which is there."""

    def do(bundle: Path) -> None:
        if copy:
            shutil.copy(bundle / "model.onnx.data", bundle / name)

        def rename(model: Any) -> None:
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = name

        graph(rename)(bundle)

    return do


def _weights_in_a_subgraph(bundle: Path) -> None:
    """A tensor of an If's branch, in a file that is not listed."""
    from onnx import TensorProto, helper

    (bundle / "more.data").write_bytes(bytes(4000))

    def add(model: Any) -> None:
        tensor = TensorProto(name="more", data_type=TensorProto.FLOAT, dims=[1000])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "more.data"), ("offset", "0"), ("length", "4000")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["branch_out"], value=tensor)],
            "branch",
            [],
            [helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, [1000])],
        )
        truth = helper.make_tensor("truth", TensorProto.BOOL, [], [1])
        model.graph.initializer.append(truth)
        model.graph.node.append(
            helper.make_node("If", ["truth"], ["unused"], then_branch=branch, else_branch=branch)
        )

    graph(add)(bundle)


def _rename(side: str, old: str, new: str) -> Callable[[Any], None]:
    """Rename an input or output of the graph alone."""

    def change(model: Any) -> None:
        for value in getattr(model.graph, side):
            if value.name == old:
                value.name = new
        for node in model.graph.node:
            names = node.input if side == "input" else node.output
            names[:] = [new if name == old else name for name in names]

    return change


def _onnx(content: bytes) -> Callable[[Path], None]:
    return lambda bundle: replace(bundle, "model.onnx", content)


def _fixed(side: str, index: int, axis: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        dim = getattr(model.graph, side)[index].type.tensor_type.shape.dim[axis]
        dim.dim_value = size

    return change


def deep_graph(depth: int) -> bytes:
    """Graphs within attributes within nodes within graphs, as bytes of an ONNX file."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    content = b""
    for _ in range(depth):
        content = field(1, field(5, field(6, content)))
    return field(7, content)


_OF_NUMBERS = [
    *(
        _says(f"{path} is {value}", _set(path, value), f"{path} must be from 1 to 2147483647")
        for path in (
            "limits.max_sequence",
            "limits.max_context",
            "limits.vocab_size",
            "limits.max_batch",
            "limits.max_prefill",
            "prompt.num_virtual_tokens",
            "prompt.token_dim",
        )
        for value in (0, -1, MOST, 2**62)
    ),
    _says(
        "a prefix of a size past all",
        _set("prompt.prefix_kv", [2, 2, 4, 2**62, 8]),
        "prompt.prefix_kv[3] must be from",
    ),
    _says("one slot more", _set("limits.max_context", 65), "do not add up to max_context"),
    _says(
        "sums that overflow",
        _all(_set("limits.max_sequence", MOST - 1), _set("limits.max_context", MOST - 1)),
        "do not add up to max_context",
    ),
    _says("no hash", _set("prompt.sha256", ""), "prompt.sha256 is no SHA-256"),
    _says("a hash in capitals", _set("prompt.sha256", "A" * 64), "is no SHA-256"),
    _says("a hash with a line", _set("prompt.sha256", "a" * 64 + "\n"), "is no SHA-256"),
    _says("another's hash", _set("prompt.sha256", "a" * 64), "not those of prompt.sha256"),
    *(
        _says(
            f"generation.{name} is {value}",
            _set(f"generation.{name}", value),
            f"generation.{name} must be",
        )
        for name, value in (
            ("max_new_tokens", -1),
            ("max_new_tokens", MOST),
            ("min_new_tokens", -1),
            ("min_new_tokens", 2**62),
            ("temperature", 0.0),
            ("temperature", -1.0),
            ("top_k", -1),
            ("top_k", 2**62),
            ("top_p", 0.0),
            ("top_p", 1.5),
            ("min_p", -0.5),
            ("min_p", 2.0),
            ("repetition_penalty", 0.0),
            ("repetition_penalty", -3.0),
            ("eos_token_ids", [-1]),
            ("eos_token_ids", [101]),
            ("eos_token_ids", [2, 2**62]),
        )
    ),
    *(
        _says(
            f"quantization.{name} is {value}",
            _set("quantization", {**QUANTIZED, name: value}),
            f"quantization.{name} must be",
        )
        for name, value in (
            ("bits", 0),
            ("bits", 2**62),
            ("block_size", -1),
            ("block_size", 2**62),
            ("accuracy_level", 5),
            ("accuracy_level", -1),
            ("min_agreement", -0.1),
            ("min_agreement", 1.1),
            ("max_perplexity_ratio", 0.0),
            ("max_perplexity_ratio", -2.0),
        )
    ),
]

_OF_SIGNATURES = [
    _says(
        "keys for values",
        _swap("inputs", 3, 4),
        "inputs[3] is 'past_key_values.0.value'; it must be 'past_key_values.0.key'",
    ),
    _says("one layer for another", _swap("inputs", 3, 5), "inputs[3] is 'past_key_values.1.key'"),
    _says("new values for new keys", _swap("outputs", 1, 2), "outputs[1] is 'present.0.value'"),
    _says("layers given back in turn", _swap("outputs", 1, 3), "outputs[1] is 'present.1.key'"),
    _says("ids for lengths", _swap("inputs", 0, 1, "name"), "inputs[0] is 'past_lengths'"),
    _says("ids behind lengths", _swap("inputs", 0, 1), "inputs[0] is 'past_lengths'"),
    _says("logits last", _swap("outputs", 0, 4), "outputs[0] is 'present.1.value'"),
    _says(
        "a layer less",
        lambda m: [m["inputs"].pop(), m["inputs"].pop(), m["outputs"].pop(), m["outputs"].pop()],
        "prompt.prefix_kv is not the shape",
    ),
    _says(
        "a layer less, and its prefix",
        lambda m: [
            *(m[side].pop() for side in ("inputs", "inputs", "outputs", "outputs")),
            m["prompt"].update(prefix_kv=[1, 2, 4, 5, 8]),
        ],
        "its inputs[5] is 'past_key_values.1.key': 'float32' '(batch, 4, slots, 8)', but the "
        "manifest says missing",
    ),
    _says("half a layer less", lambda m: m["inputs"].pop(), "inputs[6] is missing"),
    _says("a layer named twice", _set("inputs.5.name", "past_key_values.0.key"), "inputs[5] is"),
    _says("a layer left out", _set("inputs.5.name", "past_key_values.7.key"), "inputs[5] is"),
    _says("a layer's number with a zero", _set("inputs.5.name", "past_key_values.01.key"), "[5]"),
    _says(
        "an input more",
        lambda m: m["inputs"].append({**m["inputs"][0], "name": "extra"}),
        "inputs[7] is 'extra'; it must be 'past_key_values.2.key'",
    ),
    _says(
        "an output more",
        lambda m: m["outputs"].append({**m["outputs"][0], "name": "extra"}),
        "outputs[5] is 'extra', which no engine",
    ),
    _says("an output less", lambda m: m["outputs"].pop(), "outputs[4] is missing"),
    _says("no outputs", lambda m: m["outputs"].clear(), "outputs[0] is missing"),
    _says("no inputs", lambda m: m["inputs"].clear(), "inputs[0] is missing"),
    _says("ids that are floats", _set("inputs.0.dtype", "float32"), "inputs[0].dtype is"),
    _says("ids of 32 bits", _set("inputs.0.dtype", "int32"), "inputs[0].dtype is 'int32'"),
    _says("an unknown type", _set("inputs.3.dtype", "object"), "inputs[3].dtype is 'object'"),
    _says("one cache in bfloat16", _set("inputs.4.dtype", "bfloat16"), "inputs[4].dtype is"),
    _says("logits in float16", _set("outputs.0.dtype", "float16"), "outputs[0].dtype is"),
    _says("ids of no axis", _set("inputs.0.shape", []), "inputs[0].shape is '()'"),
    _says("ids of one axis", _set("inputs.0.shape", ["batch"]), "it must be '(batch, sequence)'"),
    _says("ids of one row", _set("inputs.0.shape", [1, "sequence"]), "inputs[0].shape is"),
    _says("axes in turn", _set("inputs.0.shape", ["sequence", "batch"]), "inputs[0].shape is"),
    _says("heads by name", _set("inputs.3.shape.1", "heads"), "inputs[3].shape is"),
    _says("another number of heads", _set("inputs.4.shape.1", 7), "inputs[4].shape is"),
    _says("heads less than none", _set("inputs.3.shape.1", -4), "inputs[3].shape is"),
    _says("heads past all", _set("inputs.3.shape.1", 2**62), "inputs[3].shape is"),
    _says("width of none", _set("inputs.3.shape.3", 0), "inputs[3].shape is"),
    _says(
        "fewer and wider heads",
        lambda m: _heads(m, 2, 16),
        "its inputs[3] is 'past_key_values.0.key': 'float32' '(batch, 4, slots, 8)', but",
    ),
    _says("fixed slots that are too few", lambda m: fix_slots(m, 7), "inputs[3].shape is"),
    _says("fixed slots of an engine that has none", lambda m: fix_slots(m, 64), "its inputs[3]"),
    _says("one buffer with fixed slots", _set("inputs.3.shape.2", 64), "inputs[4].shape is"),
    _says("logits of no shape", _set("outputs.0.shape", []), "outputs[0].shape is '()'"),
    _says(
        "logits without a size", _set("outputs.0.shape", ["batch", "kept", "c"]), "outputs[0].shape"
    ),
    _says(
        "fewer logits than tokens",
        _set("outputs.0.shape", ["batch", "kept", 50]),
        "limits.vocab_size is more than the logits have",
    ),
    _says(
        "more logits than there are",
        _set("outputs.0.shape", ["batch", "kept", 202]),
        "its outputs[0] is 'logits': 'float32' '(batch, kept, 101)'",
    ),
    _says(
        "the plain route for the fused",
        _set("graph.route", "plain"),
        "outputs[1].shape is '(batch, 4, slots, 8)'; it must be '(batch, 4, sequence, 8)'",
    ),
    _says(
        "the plain route, new KV and all",
        _all(
            _set("graph.route", "plain"),
            lambda m: [spec["shape"].__setitem__(2, "sequence") for spec in m["outputs"][1:]],
        ),
        "its outputs[1] is 'present.0.key'",
    ),
    _says(
        "the fused route for the plain", _set("graph.route", "fused"), "outputs[1]", bundle=PLAIN
    ),
    _says(
        "the fused route, buffer and all",
        _all(
            _set("graph.route", "fused"),
            lambda m: [spec["shape"].__setitem__(2, "slots") for spec in m["outputs"][1:]],
        ),
        "its outputs[1] is 'present.0.key'",
        bundle=PLAIN,
    ),
    _says("in half the bits", _each_past(dtype="float16"), "its inputs[3]", bundle=PLAIN),
    _says("another prefix", _set("prompt.prefix_kv", [1, 2, 3]), "is not the shape"),
    _says("a prefix of more layers", _set("prompt.prefix_kv", [3, 2, 4, 5, 8]), "not the shape"),
    _says("no room for text", _set("limits.max_sequence", 0), "max_sequence must be from 1"),
    _says(
        "no prefix",
        _set("prompt.prefix_kv", None),
        None,
        bundle=LOOSE,
    ),
    _says("another task", _set("task", "SEQ_CLS"), "inputs[1] is 'past_lengths'"),
    _says("a decoder for a classifier", _set("task", "CAUSAL_LM"), "generation", bundle=ENCODER),
    _says("labels of a decoder", _set("labels", ["a"]), "labels are a classifier's"),
    _says("a tagger for a classifier", _set("task", "TOKEN_CLS"), "outputs[0]", bundle=ENCODER),
    _says("a classifier for a tagger", _set("task", "SEQ_CLS"), "outputs[0]", bundle=TAGGER),
    _says(
        "a label less",
        lambda m: m["labels"].pop(),
        "outputs[0].shape is '(batch, 3)'; it must be '(batch, 2)'",
        bundle=ENCODER,
    ),
    _says(
        "a label less, and a class",
        _all(lambda m: m["labels"].pop(), _set("outputs.0.shape.1", 2)),
        "its outputs[0] is 'logits': 'float32' '(batch, 3)'",
        bundle=ENCODER,
    ),
    _says(
        "a label more, and a class",
        _all(lambda m: m["labels"].append("x"), _set("outputs.0.shape.1", 4)),
        "its outputs[0] is 'logits'",
        bundle=ENCODER,
    ),
    _says(
        "no labels",
        _all(_set("labels", []), _set("outputs.0.shape.1", 0)),
        "labels are missing",
        bundle=ENCODER,
    ),
    _says("classes by name", _set("outputs.0.shape.1", "c"), "outputs[0].shape", bundle=ENCODER),
    _says(
        "no segments",
        _all(lambda m: m["inputs"].pop(), _set("limits.type_vocab_size", 0)),
        "its inputs[2] is 'token_type_ids'",
        bundle=ENCODER,
    ),
    _says(
        "no segments but their number",
        _all(lambda m: m["inputs"].pop(), _set("limits.type_vocab_size", 2)),
        "its limits have segments, but its signature takes none",
        bundle=ENCODER,
    ),
    *(
        _says(
            f"{value} segments",
            _set("limits.type_vocab_size", value),
            "limits.type_vocab_size must be from 0 to 2147483647",
            bundle=ENCODER,
        )
        for value in (-1, MOST)
    ),
    _says("segments of a decoder", _set("limits.type_vocab_size", 2), "its signature takes none"),
    _says(
        "segments that are not there",
        lambda m: m["inputs"].append({**m["inputs"][0], "name": "token_type_ids"}),
        "its inputs[2] is missing",
        bundle=POOLED,
    ),
    _says("a mask for segments", _swap("inputs", 1, 2), "inputs[1] is", bundle=ENCODER),
    _says("a mask of floats", _set("inputs.1.dtype", "float32"), "inputs[1].dtype", bundle=ENCODER),
    _says(
        "a prefix of keys alone",
        _set("prompt.prefix_kv", [2, 1, 2, 5, 8]),
        "is not the shape of a prefix KV",
        bundle=POOLED,
    ),
    _says(
        "a classifier's prefix of other heads",
        _set("prompt.prefix_kv", [2, 2, 1, 5, 16]),
        "prefix KV has shape (2, 2, 2, 5, 8), not the manifest's",
        bundle=POOLED,
    ),
]


def _fewer_tokens(manifest: dict[str, Any]) -> None:
    manifest["prompt"]["num_virtual_tokens"] = 4
    manifest["limits"]["max_sequence"] = 60


_OF_LIMITS = [
    _says("a virtual token less", _fewer_tokens, "prompt.prefix_kv is not the shape"),
    _says(
        "a virtual token less, and its KV",
        _all(_fewer_tokens, _set("prompt.prefix_kv", [2, 2, 4, 4, 8])),
        "virtual tokens has shape (5, 32), not the manifest's",
    ),
    _says("a classifier's token less", _fewer_tokens, "virtual tokens has", bundle=ENCODER),
    _says("a wider prompt", _set("prompt.token_dim", 64), "virtual tokens has shape (5, 32)"),
    _says(
        "words that the embedding has not",
        _set("limits.vocab_size", 102),
        "limits.vocab_size is more than the logits have",
    ),
    _says(
        "words that a classifier's embedding has not",
        _set("limits.vocab_size", 102),
        "has 101 words, but the manifest's vocab_size is 102",
        bundle=ENCODER,
    ),
    _says(
        "words that a decoder's classifier has not",
        _set("limits.vocab_size", 1000),
        "has 101 words",
        bundle=POOLED,
    ),
    _says("fewer words", _all(_set("limits.vocab_size", 100)), None),
    _says(
        "fewer words before a prompt that is not frozen",
        _set("limits.vocab_size", 100),
        "is not that of the logits, behind which",
        bundle=LOOSE,
    ),
    _says("rows one by one", _set("limits.max_batch", 1), None, bundle=ENCODER),
    _says("tokens one by one", _set("limits.max_prefill", 1), None),
]

_OF_PROMPTS = [
    Lie("a number that is none", _prompt(_put("virtual_tokens", 7, np.nan)), "is not finite"),
    Lie("a number past all", _prompt(_put("virtual_tokens", 7, np.inf)), "is not finite"),
    Lie("KV that is no number", _prompt(_put("prefix_kv", 9, np.nan)), "prefix KV holds a number"),
    Lie("another token", _prompt(_put("virtual_tokens", 7, 1.5)), "not those of prompt.sha256"),
    Lie("tokens in half", _prompt(_as("virtual_tokens", np.float16)), "virtual_tokens is F16"),
    Lie("KV in double", _prompt(_as("prefix_kv", np.float64)), "prefix_kv is F64, not F32"),
    Lie("tokens by number", _prompt(_as("virtual_tokens", np.int64)), "virtual_tokens is I64"),
    Lie("no KV", _prompt(lambda t: t.pop("prefix_kv")), "holds no prefix KV"),
    Lie("no tokens", _prompt(lambda t: t.pop("virtual_tokens")), "holds no virtual tokens"),
    Lie(
        "KV in another order",
        _prompt(lambda t: t.update(prefix_kv=t["prefix_kv"].reshape(2, 2, 5, 4, 8))),
        "prefix KV has shape (2, 2, 5, 4, 8), not the manifest's",
    ),
    Lie(
        "a classifier's tokens",
        _prompt(_put("virtual_tokens", 0, 9.0)),
        "not those of prompt.sha256",
        ENCODER,
    ),
    Lie(
        "a tensor more",
        _prompt(lambda t: t.update(more=np.zeros(3, np.float32))),
        None,
    ),
]

_OF_GRAPHS = [
    Lie("weights that are not listed", _weights_from("other.data"), "from 'other.data', which"),
    Lie("weights that are not there", _weights_from("no.data", False), "from 'no.data', which"),
    Lie("weights outside", _weights_from("../x.data", False), "from '../x.data', which"),
    Lie("weights of the machine", _weights_from("/etc/passwd", False), "from '/etc/passwd', w"),
    Lie("weights in memory", _weights_from("*/_ORT_MEM_ADDR_/*", False), "which the manifest"),
    Lie("weights by another way", _weights_from("./model.onnx.data", False), None),
    Lie("weights of a branch", _weights_in_a_subgraph, "from 'more.data', which"),
    Lie("no graph", _onnx(b""), "is no ONNX file"),
    Lie("a graph cut short", _onnx(b"\x3a\xff\xff\x03abc"), "is no ONNX file"),
    Lie("a graph of groups", _onnx(b"\x3b\x3c"), "is no ONNX file"),
    Lie("a graph by number", _onnx(b"\x38\x01"), "is no ONNX file"),
    Lie("an endless number", _onnx(b"\xff" * 40), "is no ONNX file"),
    Lie("graphs without end", _onnx(deep_graph(60)), "is no ONNX file (nested too deeply)"),
    Lie(
        "an input by another name",
        graph(_rename("input", "past_lengths", "lengths")),
        "its inputs[1] is 'lengths': 'int64' '(batch)', but the manifest says 'past_lengths'",
    ),
    Lie(
        "keys and values in turn in the graph's own list",
        graph(lambda m: m.graph.input.insert(3, m.graph.input.pop(4))),
        "its inputs[3] is 'past_key_values.0.value'",
    ),
    Lie("ids of one row in the graph", graph(_fixed("input", 0, 0, 1)), "its inputs[0]"),
    Lie("slots that are few", graph(_fixed("input", 3, 2, 7)), "its inputs[3] is"),
    Lie(
        "a classifier of one row",
        graph(_fixed("input", 0, 0, 1)),
        "its inputs[0] is 'input_ids': 'int64' '(1, sequence)', but the manifest says",
        ENCODER,
    ),
]

LIES = [*_OF_NUMBERS, *_OF_SIGNATURES, *_OF_LIMITS, *_OF_PROMPTS, *_OF_GRAPHS]


def alike(engine: Any, other: Any) -> bool:
    """Whether two engines answer alike, up to the order of sums."""
    rows = [[5, 6, 7], [40], [9, 10, 11, 12]]
    pairs = zip(engine.logits(rows), other.logits(rows), strict=True)
    return all(np.allclose(one, two, rtol=1e-4, atol=1e-4) for one, two in pairs)
