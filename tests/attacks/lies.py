"""Bundles that say what is not so: every hash is right, every field of its type.

One table for both readers. A lie is refused when the bundle is opened, with `reason` among the
words, or it is harmless: the bundle opens and answers as the honest one does.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from support.damage import (
    DECODER,
    ENCODER,
    FOLDER,
    PROMPT,
    QUANTIZED,
    edit,
    fix_slots,
    replace,
    the_graph,
    the_prompt,
)
from support.openvino import take_rows_apart

Change = Callable[[dict[str, Any]], object]
TAGGER, PLAIN = ("bert", "TOKEN_CLS"), ("bloom", "CAUSAL_LM")
POOLED = ("qwen2", "SEQ_CLS")
# By architecture and task, or a kind of native.KINDS.
Honest = tuple[str, str] | str
LOOSE, SEGMENTLESS = "fused, not frozen", "encoder classifier without segments"
MOST = 2**31


@dataclass(frozen=True)
class Lie:
    """`do` makes an honest bundle in a folder lie; `reason` is None where that is harmless."""

    name: str
    do: Callable[[Path], object]
    reason: str | None
    bundle: Honest = DECODER
    target: str = "ort"
    fix: str = "Compile the checkpoint again."

    def tell(self, bundle: Path) -> None:
        if self.target == "openvino":
            take_rows_apart(bundle)
        self.do(bundle)
        if self.target != "ort":
            edit(bundle, lambda manifest: manifest.update(target=self.target))

    def __str__(self) -> str:
        return self.name


def kind_words(kind: Honest) -> str:
    return kind if isinstance(kind, str) else " ".join(kind)


def says(name: str, change: Change, reason: str | None, **more: Any) -> Lie:
    return Lie(name, lambda bundle: edit(bundle, change), reason, **more)


def _swap(side: str, a: int, b: int, *fields: str) -> Change:
    """Exchange two tensors of a signature, or some of their fields."""

    def change(manifest: dict[str, Any]) -> None:
        specs = the_graph(manifest)[side]
        one, other = specs[a], specs[b]
        if not fields:
            specs[a], specs[b] = other, one
        for field in fields:
            one[field], other[field] = other[field], one[field]

    return change


def set_to(path: str, value: Any) -> Change:
    """`graph` and `prompt` are the graph that there is and the default prompt."""

    def change(manifest: dict[str, Any]) -> None:
        *way, last = path.split(".")
        short = {"graph": the_graph, "prompt": the_prompt}.get(way[0]) if way else None
        place: Any = short(manifest) if short else manifest
        way = way[1:] if short else way
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = value

    return change


def _all(*changes: Change) -> Change:
    return lambda manifest: [change(manifest) for change in changes]


def _each_past(**fields: Any) -> Change:
    return lambda m: [spec.update(fields) for spec in _buffers(m)]


def _buffers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    graph = the_graph(manifest)
    specs = (*graph["inputs"], *graph["outputs"])
    return [one for one in specs if one["role"] in ("past", "present")]


def _new_kv(axis: str) -> Change:
    """What new keys and values are along: the whole buffer's slots, or the new tokens."""
    return lambda m: [one["shape"].__setitem__(2, axis) for one in the_graph(m)["outputs"][1:]]


def _pop(**counts: int) -> Change:
    """Take a KV buffer's last arrays off the signature's sides."""

    def change(manifest: dict[str, Any]) -> None:
        for side, count in counts.items():
            specs = the_graph(manifest)[side]
            for one in [s for s in specs if s["role"] in ("past", "present")][-count:]:
                specs.remove(one)

    return change


def _insert(place: int, **spec: Any) -> Change:
    """One more input, like the first but for what is said."""

    def change(manifest: dict[str, Any]) -> None:
        inputs = the_graph(manifest)["inputs"]
        inputs.insert(place, {**inputs[0], **spec})

    return change


def _heads(manifest: dict[str, Any], heads: int, width: int) -> None:
    """Another number of heads and their width, with the same number of elements."""
    for spec in _buffers(manifest):
        spec["shape"][1], spec["shape"][3] = heads, width
    the_prompt(manifest)["prefix_kv"] = [2, 2, heads, 5, width]


def _prompt(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Change the prompt's tensors, with their file's hash."""

    def do(bundle: Path) -> None:
        tensors = dict(load_file(bundle / PROMPT))
        change(tensors)
        replace(bundle, PROMPT, save(tensors))

    return do


def _prompt_header(old: str, new: str) -> Callable[[Path], None]:
    """Change the text of the header of the prompt's file where it is first so, with the hash."""

    def do(bundle: Path) -> None:
        content = (bundle / PROMPT).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = content[8:end].decode().rstrip().replace(old, new, 1).encode()
        replace(bundle, PROMPT, len(header).to_bytes(8, "little") + header + content[end:])

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


def _all_renamed(bundle: Path) -> None:
    """Other names for all inputs and outputs, in graph, manifest and prompt: no lie at all."""

    def new(name: str) -> str:
        return f"renamed {name}"

    def in_manifest(manifest: dict[str, Any]) -> None:
        for side in ("inputs", "outputs"):
            for spec in the_graph(manifest)[side]:
                spec["name"] = new(spec["name"])

    def in_graph(model: Any) -> None:
        for side in ("input", "output"):
            for value in list(getattr(model.graph, side)):
                _rename(side, value.name, new(value.name))(model)

    def in_prompt(tensors: dict[str, np.ndarray]) -> None:
        for name in [one for one in tensors if one.startswith("head.")]:
            tensors[new(name)] = tensors.pop(name)

    edit(bundle, in_manifest)
    graph(in_graph)(bundle)
    _prompt(in_prompt)(bundle)


def _onnx(content: bytes) -> Callable[[Path], None]:
    return lambda bundle: replace(bundle, "model.onnx", content)


def _fixed(side: str, index: int, axis: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        dim = getattr(model.graph, side)[index].type.tensor_type.shape.dim[axis]
        dim.dim_value = size

    return change


def _varint(number: int) -> bytes:
    begin = b""
    while number > 127:
        begin, number = begin + bytes([number & 127 | 128]), number >> 7
    return begin + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field of an ONNX file that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _graph_of_number(number: int) -> Callable[[Path], None]:
    """The very graph, in a field of another number."""

    def do(bundle: Path) -> None:
        import onnx

        model = onnx.load(bundle / "model.onnx", load_external_data=False)
        content = model.graph.SerializeToString()
        model.ClearField("graph")
        replace(bundle, "model.onnx", model.SerializeToString() + field(number, content))

    return do


def _past_all(bundle: Path) -> None:
    """A graph of 2 GiB of zeros, which take no place on the disk."""
    size, name = 2**31, "model.onnx"
    digest = "a7c744c13cc101ed66c29f672f92455547889cc586ce6d44fe76ae824958ea51"
    with (bundle / name).open("wb") as file:
        file.truncate(size)

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = (one for one in manifest["files"] if one["path"] == name)
        entry.update(size=size, sha256=digest)

    edit(bundle, change)


def deep_graph(depth: int) -> bytes:
    """Graphs within attributes within nodes within graphs, as bytes of an ONNX file."""
    content = b""
    for _ in range(depth):
        content = field(1, field(5, field(6, content)))
    return field(7, content)


_OF_NUMBERS = [
    *(
        says(f"{path} is {value}", set_to(path, value), f"{words} must be from 1 to 2147483647")
        for path, words in (
            ("limits.max_context", "limits.max_context"),
            ("limits.vocab_size", "limits.vocab_size"),
            ("limits.max_batch", "limits.max_batch"),
            ("limits.max_prefill", "limits.max_prefill"),
            ("prompt.num_virtual_tokens", "prompts['default'].num_virtual_tokens"),
            ("prompt.token_dim", "prompts['default'].token_dim"),
        )
        for value in (0, -1, MOST, 2**62)
    ),
    says(
        "a prefix of a size past all",
        set_to("prompt.prefix_kv", [2, 2, 4, 2**62, 8]),
        "prompts['default'].prefix_kv[3] must be from",
    ),
    *(
        says(
            f"room for {room} tokens in all, {kind_words(kind)}",
            set_to("limits.max_context", room),
            "prompts['default'].num_virtual_tokens leaves no room in limits.max_context",
            bundle=kind,
        )
        for room in (1, 5)
        for kind in (DECODER, ENCODER, POOLED)
    ),
    *(
        says(f"padding of {value}", set_to("prompt.padding_id", value), words, bundle=POOLED)
        for value, words in (
            (-1, "prompts['default'].padding_id must be from 0 to 100"),
            (2**62, "prompts['default'].padding_id must be from 0 to 100"),
            (0, "prompts['default'].padding_id is for a trained prefix KV, which it is not"),
        )
    ),
    says("one slot more", set_to("limits.max_context", 65), None),
    says("as many slots as there are numbers", set_to("limits.max_context", MOST - 1), None),
    says("no hash", set_to("prompt.sha256", ""), "prompts['default'].sha256 is no SHA-256"),
    says("a hash in capitals", set_to("prompt.sha256", "A" * 64), "is no SHA-256"),
    says("a hash with a line", set_to("prompt.sha256", "a" * 64 + "\n"), "is no SHA-256"),
    says("another's hash", set_to("prompt.sha256", "a" * 64), "not those of prompt.sha256"),
    *(
        says(
            f"generation.{name} is {value}",
            set_to(f"generation.{name}", value),
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
        says(
            f"quantization.{name} is {value}",
            set_to("quantization", {**QUANTIZED, name: value}),
            f"quantization.{name} must be",
        )
        for name, value in (
            ("bits", 0),
            ("bits", 2**62),
            ("block_size", -1),
            ("block_size", 2**62),
            ("accuracy_level", 5),
            ("accuracy_level", -1),
            ("share", -0.1),
            ("share", 1.1),
            ("calibrated", -0.1),
            ("calibrated", 1.1),
            ("min_agreement", -0.1),
            ("min_agreement", 1.1),
            ("min_class_agreement", -0.1),
            ("min_class_agreement", 1.1),
            ("max_perplexity_ratio", 0.0),
            ("max_perplexity_ratio", -2.0),
        )
    ),
]

# Names are free, so that tensors of one role, type and shape are told apart by the engine alone.
_OF_ROLES = [
    says(
        "keys for values",
        _swap("inputs", 3, 4),
        "its inputs[3] is 'past_key_values.0.key': 'float32' '(batch, 4, slots, 8)', but the "
        "manifest says 'past_key_values.0.value'",
    ),
    says(
        "one layer for another", _swap("inputs", 3, 5), "its inputs[3] is 'past_key_values.0.key'"
    ),
    says("new values for new keys", _swap("outputs", 1, 2), "its outputs[1] is 'present.0.key'"),
    says("layers given back in turn", _swap("outputs", 1, 3), "outputs[1] is 'present.0.key'"),
    says("ids for lengths", _swap("inputs", 0, 1, "name"), "its inputs[0] is 'input_ids'"),
    says(
        "ids behind lengths",
        _swap("inputs", 0, 1),
        "graphs['model'].inputs[0] has the role 'lengths'; it must be 'ids'",
    ),
    says(
        "logits last",
        _swap("outputs", 0, 4),
        "graphs['model'].outputs[0] has the role 'present'; it must be 'logits'",
    ),
    *(
        says(
            f"inputs[{place}] has the role {role}, {kind_words(kind)}",
            set_to(f"graph.inputs.{place}.role", role),
            f"graphs['model'].inputs[{place}] has the role '{role}'; it must be '{wanted}'",
            bundle=kind,
        )
        for kind, place, role, wanted in (
            (DECODER, 0, "mask", "ids"),
            (DECODER, 1, "positions", "lengths"),
            (DECODER, 2, "lengths", "positions"),
            (DECODER, 3, "present", "past"),
            (DECODER, 4, "table", "past"),
            (DECODER, 6, "prefix", "past"),
            (LOOSE, 3, "past", "table"),
            (LOOSE, 4, "table", "past"),
            (ENCODER, 0, "segments", "ids"),
            (ENCODER, 1, "ids", "mask"),
            (ENCODER, 3, "past", "table"),
            (ENCODER, 4, "lengths", "prompt"),
            (POOLED, 1, "segments", "mask"),
            (POOLED, 3, "prompt", "lengths"),
            (POOLED, 4, "lengths", "prompt"),
        )
    ),
    *(
        says(
            f"outputs[{place}] has the role {role}",
            set_to(f"graph.outputs.{place}.role", role),
            f"graphs['model'].outputs[{place}] has the role '{role}'; it must be '{wanted}'",
        )
        for place, role, wanted in ((0, "present", "logits"), (2, "past", "present"))
    ),
    says(
        "a head that is none",
        set_to("graph.inputs.5.role", "table"),
        "graphs['model'].inputs[5] has the role 'table'; it must be 'head'",
        bundle=ENCODER,
    ),
    says("no name", set_to("graph.inputs.3.name", ""), "inputs[3].name is empty, or another"),
    says("logits of no name", set_to("graph.outputs.0.name", ""), "outputs[0].name is empty, or"),
    says(
        "a layer named twice",
        set_to("graph.inputs.5.name", "past_key_values.0.key"),
        "graphs['model'].inputs[5].name is empty, or another tensor's too",
    ),
    says(
        "a new layer named twice",
        set_to("graph.outputs.4.name", "present.0.key"),
        "graphs['model'].outputs[4].name is empty, or another tensor's too",
    ),
    says(
        "a head named twice",
        set_to("graph.inputs.6.name", "head.classifier.weight"),
        "graphs['model'].inputs[6].name is empty, or another tensor's too",
        bundle=ENCODER,
    ),
    says(
        "a layer by another name",
        set_to("graph.inputs.5.name", "past_key_values.7.key"),
        "its inputs[5] is 'past_key_values.1.key'",
    ),
    says(
        "the table by another name",
        set_to("graph.inputs.3.name", "table"),
        "its inputs[3] is 'virtual_tokens'",
        bundle=ENCODER,
    ),
    says(
        "a head by another name",
        set_to("graph.inputs.5.name", "head.weight"),
        "its inputs[5] is 'head.classifier.weight'",
        bundle=ENCODER,
    ),
]

_OF_SIGNATURES = [
    says(
        "a layer less",
        _pop(inputs=2, outputs=2),
        "prompts['default'].prefix_kv is not the shape of the KV buffer's first slots",
    ),
    says(
        "a layer less, and its prefix",
        _all(_pop(inputs=2, outputs=2), set_to("prompt.prefix_kv", [1, 2, 4, 5, 8])),
        "its inputs[5] is 'past_key_values.1.key': 'float32' '(batch, 4, slots, 8)', but the "
        "manifest says 'token_offsets'",
    ),
    says("half a layer less", _pop(inputs=1), "inputs[6] has the role 'offsets'; it must be"),
    says(
        "an input more",
        _insert(7, name="extra"),
        "graphs['model'].inputs[7] has the role 'ids'; it must be 'past'",
    ),
    says(
        "an output more",
        lambda m: the_graph(m)["outputs"].append({**the_graph(m)["outputs"][0], "name": "extra"}),
        "graphs['model'].outputs[5] has the role 'logits', which no engine of this task has there",
    ),
    says("an output less", _pop(outputs=1), "outputs[4] is missing; its role must be 'present'"),
    says("no outputs", set_to("graph.outputs", []), "outputs[0] is missing"),
    says("no inputs", set_to("graph.inputs", []), "inputs[0] is missing; its role must be 'ids'"),
    says("ids that are floats", set_to("graph.inputs.0.dtype", "float32"), "inputs[0].dtype is"),
    says("ids of 32 bits", set_to("graph.inputs.0.dtype", "int32"), "inputs[0].dtype is 'int32'"),
    says(
        "an unknown type", set_to("graph.inputs.3.dtype", "object"), "inputs[3].dtype is 'object'"
    ),
    says("one cache in bfloat16", set_to("graph.inputs.4.dtype", "bfloat16"), "inputs[4].dtype is"),
    says("logits in float16", set_to("graph.outputs.0.dtype", "float16"), "outputs[0].dtype is"),
    says("ids of no axis", set_to("graph.inputs.0.shape", []), "inputs[0].shape is '()'"),
    says(
        "ids of one axis",
        set_to("graph.inputs.0.shape", ["batch"]),
        "it must be '(batch, sequence)'",
    ),
    says("ids of one row", set_to("graph.inputs.0.shape", [1, "sequence"]), "inputs[0].shape is"),
    says(
        "axes in turn", set_to("graph.inputs.0.shape", ["sequence", "batch"]), "inputs[0].shape is"
    ),
    says("heads by name", set_to("graph.inputs.3.shape.1", "heads"), "inputs[3].shape is"),
    says("another number of heads", set_to("graph.inputs.4.shape.1", 7), "inputs[4].shape is"),
    says("heads less than none", set_to("graph.inputs.3.shape.1", -4), "inputs[3].shape is"),
    says("heads past all", set_to("graph.inputs.3.shape.1", 2**62), "inputs[3].shape is"),
    says("width of none", set_to("graph.inputs.3.shape.3", 0), "inputs[3].shape is"),
    says(
        "fewer and wider heads",
        lambda m: _heads(m, 2, 16),
        "its inputs[3] is 'past_key_values.0.key': 'float32' '(batch, 4, slots, 8)', but",
    ),
    says("fixed slots that are too few", lambda m: fix_slots(m, 7), "inputs[3].shape is"),
    says("fixed slots of an engine that has none", lambda m: fix_slots(m, 64), "its inputs[3]"),
    says("one buffer with fixed slots", set_to("graph.inputs.3.shape.2", 64), "inputs[4].shape is"),
    says("logits of no shape", set_to("graph.outputs.0.shape", []), "outputs[0].shape is '()'"),
    says(
        "logits without a size",
        set_to("graph.outputs.0.shape", ["batch", "kept", "c"]),
        "outputs[0].shape",
    ),
    says(
        "fewer logits than tokens",
        set_to("graph.outputs.0.shape", ["batch", "kept", 50]),
        "limits.vocab_size is more than the logits have",
    ),
    says(
        "more logits than there are",
        set_to("graph.outputs.0.shape", ["batch", "kept", 202]),
        "its outputs[0] is 'logits': 'float32' '(batch, kept, 101)'",
    ),
    says(
        "the plain route for the fused",
        set_to("graph.route", "plain"),
        "outputs[1].shape is '(batch, 4, slots, 8)'; it must be '(batch, 4, sequence, 8)'",
    ),
    says(
        "the plain route, new KV and all",
        _all(
            set_to("graph.route", "plain"),
            _new_kv("sequence"),
        ),
        "the plain route keeps no rows apart that come as one: it has no offsets",
    ),
    says(
        "the fused route for the plain", set_to("graph.route", "fused"), "outputs[1]", bundle=PLAIN
    ),
    says(
        "the fused route, buffer and all",
        _all(
            set_to("graph.route", "fused"),
            _new_kv("slots"),
        ),
        "its outputs[1] is 'present.0.key'",
        bundle=PLAIN,
    ),
    says("in half the bits", _each_past(dtype="float16"), "its inputs[3]", bundle=PLAIN),
    says(
        "rows that come as one, on the plain route",
        _insert(7, name="o", role="offsets", shape=[3, "sequence"]),
        "the plain route keeps no rows apart that come as one: it has no offsets",
        bundle=PLAIN,
    ),
    says(
        "offsets of each row",
        lambda m: the_graph(m)["inputs"][-1].update(shape=["batch", "sequence"]),
        "inputs[7].shape is '(batch, sequence)'; it must be '(3, sequence)'",
    ),
    says(
        "offsets that hide no past, of a graph that does",
        lambda m: the_graph(m)["inputs"][-1].update(shape=["sequence"]),
        "its inputs[7] is 'token_offsets': 'int64' '(3, sequence)', but the manifest says "
        "'token_offsets': 'int64' '(sequence)'",
    ),
    says(
        "offsets of four parts",
        lambda m: the_graph(m)["inputs"][-1].update(shape=[4, "sequence"]),
        "inputs[7].shape is '(4, sequence)'; it must be '(3, sequence)'",
    ),
    says(
        "offsets that the graph does not have",
        lambda m: the_graph(m)["inputs"].pop(),
        "its inputs[7] is 'token_offsets': 'int64' '(3, sequence)', but the manifest says missing",
    ),
    says("another prefix", set_to("prompt.prefix_kv", [1, 2, 3]), "is not the shape"),
    says("a prefix of more layers", set_to("prompt.prefix_kv", [3, 2, 4, 5, 8]), "not the shape"),
    says("no prefix", set_to("prompt.prefix_kv", None), None, bundle=LOOSE),
    says(
        "no prefix of a frozen prompt",
        set_to("prompt.prefix_kv", None),
        "graphs['model'].inputs[3] has the role 'past'; it must be 'table'",
    ),
    says(
        "a prefix of a prompt that is run",
        set_to("prompt.prefix_kv", [2, 2, 2, 5, 8]),
        "graphs['model'].inputs[3] has the role 'table'; it must be 'past'",
        bundle=LOOSE,
    ),
    says(
        "a decoder's classifier without a prefix",
        set_to("prompt.prefix_kv", None),
        "prompts['default'].prefix_kv is not what the graph takes",
        bundle=POOLED,
    ),
    says(
        "an encoder with a prefix",
        set_to("prompt.prefix_kv", [2, 2, 2, 5, 8]),
        "prompts['default'].prefix_kv is not what the graph takes",
        bundle=ENCODER,
    ),
    says("another task", set_to("task", "SEQ_CLS"), "prompts['default'].labels are missing"),
    says(
        "another task, with labels",
        _all(set_to("task", "SEQ_CLS"), set_to("prompt.labels", ["a", "b"])),
        "prompts['default'].prefix_kv is not what the graph takes",
    ),
    says(
        "another task, with labels and without a prefix",
        _all(
            set_to("task", "SEQ_CLS"),
            set_to("prompt.labels", ["a", "b"]),
            set_to("prompt.prefix_kv", None),
        ),
        "graphs['model'].inputs[1] has the role 'lengths'; it must be 'mask'",
    ),
    says("a decoder for a classifier", set_to("task", "CAUSAL_LM"), "generation", bundle=ENCODER),
    says("labels of a decoder", set_to("prompt.labels", ["a"]), "labels are a classifier's"),
    says(
        "a tagger for a classifier",
        set_to("task", "TOKEN_CLS"),
        "graphs['model'].inputs[3] has the role 'table'; it must be 'positions'",
        bundle=ENCODER,
    ),
    says(
        "a tagger for a classifier over a prefix KV",
        set_to("task", "TOKEN_CLS"),
        "outputs[0].shape is '(batch, classes)'; it must be '(batch, sequence, classes)'",
        bundle=POOLED,
    ),
    says(
        "a classifier for a tagger",
        set_to("task", "SEQ_CLS"),
        "graphs['model'].inputs[3] has the role 'positions'; it must be 'table'",
        bundle=TAGGER,
    ),
    says(
        "a tagger that gives logits at its virtual tokens too",
        _all(
            lambda manifest: the_graph(manifest)["inputs"].pop(3),
            set_to("graph.outputs.0.shape.1", "sequence"),
        ),
        "graphs['model'].inputs[3] has the role 'table'; it must be 'positions'",
        bundle=TAGGER,
    ),
    says(
        "a tagger's logits along another axis",
        set_to("graph.outputs.0.shape.1", "sequence"),
        "outputs[0].shape is '(batch, sequence, classes)'; it must be '(batch, kept, classes)'",
        bundle=TAGGER,
    ),
    says(
        "a tagger's positions for each row",
        set_to("graph.inputs.3.shape", ["batch", "kept"]),
        "inputs[3].shape is '(batch, kept)'; it must be '(kept)'",
        bundle=TAGGER,
    ),
    *(
        says(
            f"{len(labels)} labels for the head's three, {kind_words(kind)}",
            set_to("prompt.labels", labels),
            f"head.{head}.weight has shape (3, 32), not the manifest's",
            bundle=kind,
        )
        for labels in (["a", "b"], ["a", "b", "c", "d"])
        for kind, head in ((ENCODER, "classifier"), (TAGGER, "classifier"), (POOLED, "score"))
    ),
    says(
        "classes by number",
        set_to("graph.outputs.0.shape.1", 3),
        "graphs['model'].outputs[0].shape is '(batch, 3)'; it must be '(batch, classes)'",
        bundle=ENCODER,
    ),
    says(
        "a label less, and a class in the head's shape",
        _all(
            set_to("prompt.labels", ["a", "b"]),
            set_to("graph.inputs.5.shape", ["prompts", 2, 32]),
            set_to("graph.inputs.6.shape", ["prompts", "classes"]),
        ),
        "its inputs[5] is 'head.classifier.weight': 'float32' '(prompts, classes, 32)', but",
        bundle=ENCODER,
    ),
    says(
        "no class in the head's shape",
        _all(
            set_to("graph.inputs.5.shape", ["prompts", 3, 32]),
            set_to("graph.inputs.6.shape", ["prompts", 3]),
        ),
        "no head has the axis 'classes' of the logits",
        bundle=ENCODER,
    ),
    *(
        says(
            f"a head of the shape {shape}",
            set_to("graph.inputs.5.shape", shape),
            "graphs['model'].inputs[5].shape is",
            bundle=ENCODER,
        )
        for shape in (
            [],
            ["prompts"],
            ["classes", 32],
            ["prompts", "classes", "classes"],
            ["prompts", "classes", 0],
            ["prompts", "classes", 2**62],
            ["prompts", "classes", "width"],
            ["prompts", "classes", 4, 8],
        )
    ),
    says(
        "a head with its axes in turn",
        set_to("graph.inputs.5.shape", ["prompts", 32, "classes"]),
        "its inputs[5] is 'head.classifier.weight': 'float32' '(prompts, classes, 32)', but",
        bundle=ENCODER,
    ),
    says(
        "half a head", set_to("graph.inputs.5.dtype", "float16"), "inputs[5].dtype", bundle=ENCODER
    ),
    says(
        "a row's prompt of 32 bits", set_to("graph.inputs.4.dtype", "int32"), "[4]", bundle=ENCODER
    ),
    says("no labels", set_to("prompt.labels", []), "labels are missing", bundle=ENCODER),
    says(
        "classes by another name",
        set_to("graph.outputs.0.shape.1", "c"),
        "outputs[0]",
        bundle=ENCODER,
    ),
    says(
        "no segments",
        _all(lambda m: the_graph(m)["inputs"].pop(2), set_to("limits.type_vocab_size", 0)),
        "its inputs[2] is 'token_type_ids'",
        bundle=ENCODER,
    ),
    says(
        "no segments but their number",
        lambda m: the_graph(m)["inputs"].pop(2),
        "its limits have segments, but its signature takes none",
        bundle=ENCODER,
    ),
    *(
        says(
            f"{value} segments",
            set_to("limits.type_vocab_size", value),
            "limits.type_vocab_size must be from 0 to 2147483647",
            bundle=ENCODER,
        )
        for value in (-1, MOST)
    ),
    says("segments of a decoder", set_to("limits.type_vocab_size", 2), "its signature takes none"),
    says(
        "segments that are not there",
        _all(_insert(2, name="s", role="segments"), set_to("limits.type_vocab_size", 2)),
        "its inputs[2] is 'virtual_tokens': 'float32' '(virtual, 32)', but the manifest says 's'",
        bundle=SEGMENTLESS,
    ),
    says(
        "segments of a decoder's classifier",
        _all(_insert(2, name="s", role="segments"), set_to("limits.type_vocab_size", 2)),
        "its inputs[2] is 'prefix_kv': 'float32' '(prefixes, 2, prefix, 8)', but the manifest says",
        bundle=POOLED,
    ),
    says("a mask for segments", _swap("inputs", 1, 2), "inputs[1] has the", bundle=ENCODER),
    says("no mask", lambda m: the_graph(m)["inputs"].pop(1), "be 'mask'", bundle=ENCODER),
    says("no table", lambda m: the_graph(m)["inputs"].pop(3), "be 'table'", bundle=ENCODER),
    says("no row's prompt", lambda m: the_graph(m)["inputs"].pop(4), "'prompt'", bundle=ENCODER),
    says("no lengths", lambda m: the_graph(m)["inputs"].pop(3), "be 'lengths'", bundle=POOLED),
    says(
        "a table of another width",
        set_to("graph.inputs.3.shape", ["virtual", 16]),
        "graphs['model'].inputs[3].shape is '(virtual, 16)'; it must be '(virtual, 32)'",
        bundle=ENCODER,
    ),
    says(
        "a mask of floats",
        set_to("graph.inputs.1.dtype", "float32"),
        "inputs[1].dtype",
        bundle=ENCODER,
    ),
    says(
        "a prefix of keys alone",
        set_to("prompt.prefix_kv", [2, 1, 2, 5, 8]),
        "prompts['default'].prefix_kv is not the shape of a prefix KV",
        bundle=POOLED,
    ),
    says(
        "a classifier's prefix of other heads",
        set_to("prompt.prefix_kv", [2, 2, 1, 5, 16]),
        "graphs['model'].inputs[2].shape is '(prefixes, 2, prefix, 8)'; it must be '(prefixes, 1, "
        "prefix, 16)'",
        bundle=POOLED,
    ),
    says(
        "a classifier's prefix of other layers",
        set_to("prompt.prefix_kv", [1, 2, 2, 5, 8]),
        "prefix KV has shape (2, 2, 2, 5, 8), not the manifest's",
        bundle=POOLED,
    ),
]


def _rename_prompt(name: str) -> Change:
    """The default prompt by another name, wherever it stands."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["prompts"] = {name: the_prompt(manifest)}
        manifest["default_prompt"] = name
        for entry in manifest["files"]:
            if entry["of"] == "default":
                entry["of"] = name

    return change


def _of(role: str, of: str | None) -> Change:
    """Say of which graph or prompt the file with a role is."""
    return lambda m: [one.update(of=of) for one in m["files"] if one["role"] == role]


_NAMES = "prompts has a name that no prompt can have"

_OF_NAMES = [
    *(
        says(
            f"a default prompt {name!r}, {kind_words(kind)}",
            set_to("default_prompt", name),
            reason,
            bundle=kind,
        )
        for name in ("other", "", "model")
        for kind, reason in (
            (DECODER, "default_prompt is not the name of a prompt"),
            (ENCODER, "default_prompt is not the name of a prompt"),
        )
    ),
    says(
        "no default prompt of a classifier",
        set_to("default_prompt", None),
        "default_prompt is null, and a head belongs to a prompt",
        bundle=ENCODER,
    ),
    *(
        says(f"a prompt named {name!r:.30}", _rename_prompt(name), _NAMES)
        for name in (
            *("../x", "..", ".", ".hidden", "-x", "_x", "a/b", "a\\b", "/etc/passwd", "a b"),
            *("", "a" * 65, "a\n", "a\0", "\u00e4", "a\u0301", "x\u202e"),
        )
    ),
    *(
        says(f"a prompt named {name!r:.30} throughout", _rename_prompt(name), None)
        for name in ("a", "9", "A.b_c-d", "a" * 64, "model", "a..b")
    ),
    says(
        "a second prompt with a bad name",
        lambda m: m["prompts"].update({"../x": the_prompt(m)}),
        _NAMES,
    ),
    says(
        "a second prompt of a bad hash",
        lambda m: m["prompts"].update(other={**the_prompt(m), "sha256": ""}),
        "prompts['other'].sha256 is no SHA-256",
    ),
    says("no prompts", lambda m: m["prompts"].clear(), "default_prompt is not the name of a prom"),
    says(
        "no prompts, and none by default",
        _all(lambda m: m["prompts"].clear(), set_to("default_prompt", None)),
        "].of is not the name of a prompt",
    ),
    says("no graphs", lambda m: m["graphs"].clear(), "graphs must have one, 'model'"),
    says(
        "a graph by another name",
        lambda m: m["graphs"].update(other=m["graphs"].pop("model")),
        "graphs must have one, 'model'",
    ),
    says(
        "a second graph",
        lambda m: m["graphs"].update(other=the_graph(m)),
        "graphs must have one, 'model'",
    ),
    *(
        says(
            f"a {role} of {of!r}",
            _of(role, of),
            # Then it is of the base model alone.
            None
            if of is None and role in ("reference", "parity")
            else f"].of is not the name of a {what}",
        )
        for role, what in (
            *(("model", "graph"), ("weights", "graph")),
            *(("prompt", "prompt"), ("reference", "prompt"), ("parity", "prompt")),
        )
        for of in (None, "", "other", {"graph": "default", "prompt": "model"}[what])
    ),
    Lie("a tokenizer of the graph", lambda b: _list_another(b, "tokenizer", "model"), "be null"),
    Lie(
        "a template of a prompt", lambda b: _list_another(b, "chat_template", "default"), "be null"
    ),
]


def _list_another(bundle: Path, role: str, of: str) -> None:
    """One more file, as it should be but for whose it is."""
    (bundle / "more").write_bytes(b"{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    more = {"path": "more", "role": role, "size": 2, "sha256": digest, "of": of}
    edit(bundle, lambda manifest: manifest["files"].append(more))


def _two_prompts(first: str) -> Callable[[Path], None]:
    """A second prompt whose files come before the default one's, and are another's."""

    def do(bundle: Path) -> None:
        shutil.copytree(bundle / FOLDER, bundle / "prompts" / first)

        def change(manifest: dict[str, Any]) -> None:
            manifest["prompts"] = {first: the_prompt(manifest), **manifest["prompts"]}
            own = [one for one in manifest["files"] if one["of"] == "default"]
            manifest["files"][:0] = [
                {**one, "of": first, "path": one["path"].replace(FOLDER, f"prompts/{first}")}
                for one in own
            ]

        edit(bundle, change)
        tensors = dict(load_file(bundle / PROMPT))
        tensors["virtual_tokens"] = tensors["virtual_tokens"] + np.float32(3)
        replace(bundle, f"prompts/{first}/prompt.safetensors", save(tensors))

    return do


def _fewer_tokens(manifest: dict[str, Any]) -> None:
    the_prompt(manifest)["num_virtual_tokens"] = 4


_OF_LIMITS = [
    says("a virtual token less", _fewer_tokens, "'].prefix_kv is not the shape of the KV buffer"),
    says(
        "a virtual token less of a decoder's classifier",
        _fewer_tokens,
        "prompts['default'].prefix_kv is not the shape of a prefix KV",
        bundle=POOLED,
    ),
    says(
        "a virtual token less, and its KV",
        _all(_fewer_tokens, set_to("prompt.prefix_kv", [2, 2, 4, 4, 8])),
        "virtual tokens has shape (5, 32), not the manifest's",
    ),
    says("a classifier's token less", _fewer_tokens, "virtual tokens has", bundle=ENCODER),
    says("a wider prompt", set_to("prompt.token_dim", 64), "virtual tokens has shape (5, 32)"),
    says(
        "a wider prompt of a classifier",
        set_to("prompt.token_dim", 64),
        "graphs['model'].inputs[3].shape is '(virtual, 32)'; it must be '(virtual, 64)'",
        bundle=ENCODER,
    ),
    says(
        "a wider prompt, and its table",
        _all(set_to("prompt.token_dim", 64), set_to("graph.inputs.3.shape", ["virtual", 64])),
        "its inputs[3] is 'virtual_tokens': 'float32' '(virtual, 32)', but the manifest says",
        bundle=ENCODER,
    ),
    says(
        "words that the embedding has not",
        set_to("limits.vocab_size", 102),
        "limits.vocab_size is more than the logits have",
    ),
    # Virtual tokens have the ids behind the words, so a graph with their table has just as many.
    *(
        says(
            f"{words} words before the virtual tokens of {kind_words(kind)}",
            set_to("limits.vocab_size", words),
            reason,
            bundle=kind,
        )
        for kind in (ENCODER, TAGGER, LOOSE)
        for words, reason in (
            (90, "has 101 words, but the manifest's vocab_size is 90"),
            (100, "has 101 words, but the manifest's vocab_size is 100"),
            (
                102,
                "limits.vocab_size is more than the logits have"
                if kind == LOOSE
                else "has 101 words, but the manifest's vocab_size is 102",
            ),
        )
    ),
    says(
        "words that a decoder's classifier has not",
        set_to("limits.vocab_size", 1000),
        "has 101 words",
        bundle=POOLED,
    ),
    says("fewer words", set_to("limits.vocab_size", 100), None),
    says(
        "fewer words of a classifier's decoder",
        set_to("limits.vocab_size", 50),
        None,
        bundle=POOLED,
    ),
    says("rows one by one", set_to("limits.max_batch", 1), None, bundle=ENCODER),
    says("tokens one by one", set_to("limits.max_prefill", 1), None),
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
    *(
        Lie(f"{name}, {kind_words(kind)}", _prompt(change), reason, kind)
        for kind, head in ((ENCODER, "head.classifier"), (POOLED, "head.score"))
        for name, change, reason in (
            ("no head", lambda t, h=head: t.pop(f"{h}.weight"), f"holds no {head}.weight ("),
            (
                "a head of other axes",
                lambda t, h=head: t.update({f"{h}.weight": t[f"{h}.weight"].T.copy()}),
                f"{head}.weight has shape (32, 3), not the manifest's",
            ),
            (
                "a head of all prompts",
                lambda t, h=head: t.update({f"{h}.weight": t[f"{h}.weight"][None].copy()}),
                f"{head}.weight has shape (1, 3, 32), not the manifest's",
            ),
            (
                "a head that is no number",
                _put(f"{head}.weight", 40, np.nan),
                f"{head}.weight holds a number that is not finite",
            ),
            (
                "a head past all numbers",
                _put(f"{head}.weight", 0, -np.inf),
                f"{head}.weight holds a number that is not finite",
            ),
            ("half a head", _as(f"{head}.weight", np.float16), f"{head}.weight is F16, not F32"),
        )
    ),
    *(
        Lie(
            f"another prompt, {name!r}, before the default one, {kind_words(kind)}",
            _two_prompts(name),
            None,
            kind,
        )
        for name in ("first", "model")
        for kind in (DECODER, ENCODER)
    ),
    *(
        Lie(f"a header {name}", _prompt_header(old, new), reason)
        for name, old, new, reason in (
            (
                "with a tensor twice",
                "{",
                '{"virtual_tokens":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
                "its header names 'virtual_tokens' twice",
            ),
            (
                "with a key of its metadata twice",
                "{",
                '{"__metadata__":{"a":"1","a":"2"},',
                "its header names 'a' twice",
            ),
            (
                "with a field more",
                '"dtype"',
                '"more":1,"dtype"',
                "Object contains unknown field `more`",
            ),
            (
                "whose metadata is null",
                "{",
                '{"__metadata__":null,',
                "Expected `object`, got `null`",
            ),
            (
                "with a type that is none",
                "{",
                '{"more":{"dtype":"X9","shape":[0],"data_offsets":[0,0]},',
                "holds no virtual tokens (",
            ),
            (
                "with fewer halves than it says",
                "{",
                '{"more":{"dtype":"F16","shape":[100],"data_offsets":[0,0]},',
                "holds no virtual tokens (",
            ),
        )
    ),
    Lie(
        "a tensor of nothing along an endless axis",
        _prompt_header(
            "{", '{"more":{"dtype":"F32","shape":[99999999999,0],"data_offsets":[0,0]},'
        ),
        None,
    ),
    Lie("no bias", _prompt(lambda t: t.pop("head.classifier.bias")), "holds no head.", ENCODER),
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
    Lie("a field of no number", _onnx(b"\0\0"), "is no ONNX file (a field has the number 0)"),
    # ONNX Runtime cuts the number off, and takes it for the graph.
    Lie(
        "a graph by a number past its bits",
        _graph_of_number(7 + 2**29),
        "is no ONNX file (a field has the number 536870919)",
    ),
    Lie(
        "fields without end",
        _onnx(b"\x48\0" * (2**20 + 1)),
        "is no ONNX file (it has over 1048576 fields)",
    ),
    Lie(
        "a graph past all",
        _past_all,
        "has 2147483648 bytes; at most 2147483647 are read of a file with the role 'model'.",
    ),
    Lie(
        "an input whose name is no text",
        _onnx(field(7, field(1, field(1, b"\xff")))),
        "is no ONNX file (a name is not UTF-8)",
    ),
    Lie("graphs without end", _onnx(deep_graph(60)), "is no ONNX file (nested too deeply)"),
    *(
        Lie(f"all tensors by other names, {kind_words(kind)}", _all_renamed, None, kind)
        for kind in (DECODER, PLAIN, LOOSE, ENCODER, SEGMENTLESS, TAGGER, POOLED)
    ),
    Lie(
        "an input by another name",
        graph(_rename("input", "past_lengths", "lengths")),
        "its inputs[1] is 'lengths': 'int64' '(batch)', but the manifest says 'past_lengths'",
    ),
    Lie(
        "ids by another name",
        graph(_rename("input", "input_ids", "tokens")),
        "its inputs[0] is 'tokens': 'int64' '(batch, sequence)', but the manifest says 'input_ids'",
        ENCODER,
    ),
    Lie(
        "keys and values in turn in the graph's own list",
        graph(lambda m: m.graph.input.insert(3, m.graph.input.pop(4))),
        "its inputs[3] is 'past_key_values.0.value': 'float32' '(batch, 4, slots, 8)', but the "
        "manifest says 'past_key_values.0.key'",
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


def _of_another(
    change: Change, tensors: Callable[[dict[str, np.ndarray]], object] = lambda _: None
) -> Callable[[Path], None]:
    """A prompt beside the default one that lies, in the manifest and in its file."""
    name = "first"

    def do(bundle: Path) -> None:
        _two_prompts(name)(bundle)
        file = f"prompts/{name}/prompt.safetensors"
        held = dict(load_file(bundle / file))
        tensors(held)
        replace(bundle, file, save(held))
        edit(bundle, lambda manifest: change(manifest["prompts"][name]))

    return do


def _prefix(*shape: int) -> Callable[[Path], None]:
    return _of_another(
        lambda prompt: prompt.update(prefix_kv=shape),
        lambda tensors: tensors.update(prefix_kv=np.ones(shape, np.float32)),
    )


# Nobody looks at another prompt than the default one before it is asked for; verify asks for all.
LIES_OF_ANOTHER = [
    *(
        Lie(
            f"a prefix of {shape}, {kind_words(kind)}, {target}",
            _prefix(*shape),
            reason,
            kind,
            target,
        )
        for target, kind, reason, shapes in (
            (
                "ort",
                DECODER,
                "prompts['first'].prefix_kv is not the shape of the KV buffer's first slots",
                ((1,), (2, 2, 4, 1, 8), (1, 2, 4, 5, 8), (2, 2, 4, 5, 1)),
            ),
            (
                "openvino",
                DECODER,
                "prompts['first'].prefix_kv is not the shape of the KV buffer's first slots",
                ((1,), (2, 2, 4, 1, 8)),
            ),
            (
                "ort",
                POOLED,
                "prompts['first'].prefix_kv is not the shape of a prefix KV",
                ((1,), (2, 2, 2, 1, 8)),
            ),
        )
        for shape in shapes
    ),
    Lie(
        "a narrower prompt of a classifier",
        _of_another(
            lambda prompt: prompt.update(token_dim=16),
            lambda t: t.update(virtual_tokens=np.ones((5, 16), np.float32)),
        ),
        "graphs['model'].inputs[3].shape is '(virtual, 32)'; it must be '(virtual, 16)'",
        ENCODER,
    ),
]

LIES = [
    *(*_OF_NUMBERS, *_OF_ROLES, *_OF_SIGNATURES, *_OF_NAMES, *_OF_LIMITS),
    *(*_OF_PROMPTS, *_OF_GRAPHS),
]


def alike(engine: Any, other: Any) -> bool:
    """Whether two engines answer alike, up to the order of sums."""
    rows = [[5, 6, 7], [40], [9, 10, 11, 12]]
    pairs = zip(engine.logits(rows), other.logits(rows), strict=True)
    return all(np.allclose(one, two, rtol=1e-4, atol=1e-4) for one, two in pairs)
