"""Every way in which a bundle may be damaged, and what it is then refused for.

One table for all readers: the tests of the Python reader and of the C++ library go through it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from ptdeploy.bundle import DEFAULT_PROMPT, MAX_MANIFEST_BYTES, MODEL, prompt_folder
from ptdeploy.errors import BundleError, InputError, PtdeployError

# Of the default prompt: its folder, and the files in it.
FOLDER = prompt_folder(DEFAULT_PROMPT)
PROMPT, REFERENCE, PARITY = (
    f"{FOLDER}/{name}" for name in ("prompt.safetensors", "reference.safetensors", "parity.json")
)
FILES = ("model.onnx", "model.onnx.data", PROMPT, REFERENCE, PARITY)
DECODER, ENCODER = ("gpt2", "CAUSAL_LM"), ("bert", "SEQ_CLS")
QUANTIZED = {
    "bits": 8,
    "block_size": 0,
    "accuracy_level": 0,
    "min_agreement": 0.9,
    "min_class_agreement": 0.95,
    "max_perplexity_ratio": 1.1,
    "max_logits_error": 0.15,
}


@dataclass(frozen=True)
class Damage:
    """`do` damages the bundle in a folder; readers then raise `error` with `reason` in it.

    Where `same_words` is false the message quotes a library (a JSON parser, an engine) up to whose
    words, in the last parentheses, all readers say the same.
    """

    name: str
    do: Callable[[Path], object]
    reason: str
    error: type[PtdeployError] = BundleError
    same_words: bool = True
    bundle: tuple[str, str] = DECODER

    def __str__(self) -> str:
        return self.name


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as JSON."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def first_file(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["files"][0]
    return found


def the_graph(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["graphs"][MODEL]
    return found


def the_prompt(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["prompts"][DEFAULT_PROMPT]
    return found


def fix_slots(manifest: dict[str, Any], slots: int) -> None:
    """Say that every KV buffer has this many slots."""
    graph = the_graph(manifest)
    for spec in (*graph["inputs"], *graph["outputs"]):
        if spec["shape"][2:3] == ["slots"]:
            spec["shape"][2] = slots


def replace(bundle: Path, name: str, content: bytes) -> None:
    """Give a file other content and the manifest its size and hash: made to attack, not damaged."""
    (bundle / name).write_bytes(content)

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = (one for one in manifest["files"] if one["path"] == name)
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit(bundle, change)


def with_layers(bundle: Path, place: Path, name: str, layers: int) -> None:
    """A copy whose prompt of that name says, and holds, a prefix KV of so many layers."""
    shutil.copytree(bundle, place)
    file = f"{prompt_folder(name)}/prompt.safetensors"
    tensors = load_file(place / file)
    kv = np.resize(tensors["prefix_kv"], (layers, *tensors["prefix_kv"].shape[1:]))
    tensors["prefix_kv"] = kv
    replace(place, file, save(tensors))
    digest = hashlib.sha256(kv.tobytes()).hexdigest()
    edit(place, lambda m: m["prompts"][name].update(prefix_kv=kv.shape, sha256=digest))


def shift_reference(bundle: Path, prompt: str | None) -> None:
    """Let the stored logits of a prompt be others by 1, which no engine gives; None is of the base
    model alone."""
    name = f"{prompt_folder(prompt)}/reference.safetensors"
    with safe_open(bundle / name, "np") as opened:
        told = opened.metadata()
    tensors = load_file(bundle / name)
    for key in tensors:
        if key.endswith(".logits"):
            tensors[key] = tensors[key] + 1
    replace(bundle, name, save(tensors, told))


def _hollow(name: str, size: int) -> Callable[[Path], None]:
    """Zeros behind a file, which take no place on a disk; the manifest says how many."""

    def change(bundle: Path) -> None:
        os.truncate(bundle / name, size)

        def lengthen(manifest: dict[str, Any]) -> None:
            (entry,) = (one for one in manifest["files"] if one["path"] == name)
            entry.update(size=size)

        edit(bundle, lengthen)

    return change


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def _link(target: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / "model.onnx").unlink()
        (bundle / "model.onnx").symlink_to(target)

    return change


def _link_to_other_bytes(bundle: Path) -> None:
    outside = bundle.parent / f"{bundle.name}.outside"
    shutil.move(bundle / "model.onnx", outside)
    flip(outside, 0.5)
    (bundle / "model.onnx").symlink_to(outside)


def _fifo(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return change


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _folder_instead(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()


def _external_data_outside(bundle: Path) -> None:
    import onnx

    shutil.copy(bundle / "model.onnx.data", bundle.parent / "secret")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    replace(bundle, "model.onnx", model.SerializeToString())


def _prompt(header: dict[str, Any], data: bytes = b"\0" * 64) -> Callable[[Path], None]:
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    return lambda bundle: replace(bundle, PROMPT, content)


def _with_large_header(content: bytes) -> bytes:
    """The same tensors behind a header with blanks at its end, as the format allows."""
    size = int.from_bytes(content[:8], "little")
    blanks = b" " * (4 * 1024 * 1024 + 8 - size)
    return (
        (size + len(blanks)).to_bytes(8, "little")
        + content[8 : 8 + size]
        + blanks
        + content[8 + size :]
    )


def _f32(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"virtual_tokens": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


def _manifest(content: bytes) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "manifest.json").write_bytes(content) and None


def _text(old: str, new: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        file = bundle / "manifest.json"
        content = json.dumps(json.loads(file.read_text()))
        assert old in content
        file.write_bytes(content.replace(old, new, 1).encode("utf-8", "surrogateescape"))

    return change


def _edit(
    name: str, change: Callable[[dict[str, Any]], object], reason: str, **more: Any
) -> Damage:
    return Damage(f"manifest: {name}", lambda bundle: edit(bundle, change), reason, **more)


_OF_FILES = [
    *(Damage(f"{f} missing", lambda b, f=f: (b / f).unlink(), "is missing") for f in FILES),
    *(
        Damage(
            f"{f} cut short",
            lambda b, f=f: (b / f).write_bytes((b / f).read_bytes()[:-1]),
            "bytes, but the manifest says",
        )
        for f in FILES
    ),
    *(
        Damage(
            f"{f} with a byte more",
            lambda b, f=f: (b / f).write_bytes((b / f).read_bytes() + b"\0"),
            "bytes, but the manifest says",
        )
        for f in FILES
    ),
    *(
        Damage(f"{f} flipped at {p}", lambda b, f=f, p=p: flip(b / f, p), "SHA-256 is not the")
        for f in FILES
        for p in (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.9999)
    ),
    *(
        Damage(
            f"{f} of holes",
            _hollow(f, 1 << 40),
            "has 1099511627776 bytes, but nearly all of them are holes, which are on no disk.",
        )
        for f in ("model.onnx.data", PROMPT, REFERENCE)
    ),
    *(
        Damage(
            f"{f} larger than any is",
            _hollow(f, most + 1),
            f"has {most + 1} bytes; at most {most} are read of a file with the role {role!r}.",
        )
        for f, role, most in (("model.onnx", "model", 2**31 - 1), (PARITY, "parity", 128 << 20))
    ),
    Damage("no folder", shutil.rmtree, "no such bundle folder"),
    Damage("no manifest", lambda b: (b / "manifest.json").unlink(), "so it is no bundle"),
    Damage("a link out of the folder to other bytes", _link_to_other_bytes, "SHA-256 is not the"),
    Damage("a link to a file of another size", _link("/etc/passwd"), "but the manifest says"),
    Damage("a link to a device", _link("/dev/zero"), "is a link to no file"),
    Damage("a link to nowhere", _link("/nowhere/model.onnx"), "is a link to no file"),
    Damage("a link to itself", _link("model.onnx"), "is a link that leads back to itself"),
    Damage("a folder where a file should be", _folder_instead, "is missing"),
    Damage("a fifo where a file should be", _fifo("model.onnx"), "is missing"),
    Damage("a fifo where the manifest should be", _fifo("manifest.json"), "so it is no bundle"),
    Damage(
        "a file that Git LFS did not fetch",
        lambda b: (b / "model.onnx.data").write_bytes(POINTER),
        "model.onnx.data: is a Git LFS pointer",
    ),
    Damage(
        "a manifest that Git LFS did not fetch",
        lambda b: (b / "manifest.json").write_bytes(POINTER),
        "manifest.json: is a Git LFS pointer",
    ),
    Damage(
        "external data outside the folder",
        _external_data_outside,
        "takes weights from '../secret', which the manifest does not list",
    ),
    Damage(
        "a prompt without tensors", _prompt({}, b""), "holds no virtual tokens", same_words=False
    ),
    Damage("a prompt of more bytes", _prompt({}), "holds no virtual tokens", same_words=False),
    Damage(
        "a prompt whose offsets leave it",
        _prompt(_f32([4, 4], 0, 1 << 40)),
        "holds no virtual tokens",
        same_words=False,
    ),
    Damage(
        "a prompt whose shape is larger than memory",
        _prompt(_f32([1 << 31, 1 << 31, 1 << 31], 0, 64)),
        "holds no virtual tokens",
        same_words=False,
    ),
    Damage(
        "a prompt of another shape",
        _prompt(_f32([2, 8], 0, 64)),
        "virtual tokens has shape (2, 8), not the manifest's",
    ),
    Damage(
        "a prompt of many axes",
        _prompt(_f32([1] * 8 + [4, 4], 0, 64)),
        "holds no virtual tokens (virtual_tokens has 10 axes; at most 8 are read)",
    ),
    Damage(
        "a prompt with a large header",
        lambda b: replace(b, PROMPT, _with_large_header((b / PROMPT).read_bytes())),
        "holds no virtual tokens (its header has 4194312 bytes; at most 4194304 are read)",
    ),
    Damage(
        "a prompt with a header longer than itself",
        lambda b: replace(b, PROMPT, (1 << 40).to_bytes(8, "little")),
        "holds no virtual tokens",
        same_words=False,
    ),
]

_OF_PATHS = [
    _edit(f"path {p!r:.40}", lambda m, p=p: first_file(m).update(path=p), "leaves the bundle's")
    for p in ("../model.onnx", "/etc/passwd", "a/../../b", "a\\b", "", "a\0b", "..", "a/..")
] + [
    _edit("path of the folder", lambda m: first_file(m).update(path="."), "is missing"),
    _edit("path with no file", lambda m: first_file(m).update(path="a/./b//c"), "is missing"),
    _edit("endless path", lambda m: first_file(m).update(path="a" * 5000), "is missing"),
    _edit("quoted path", lambda m: first_file(m).update(path="it's\n../\\"), "leaves the bundle"),
    _edit("a file twice", lambda m: m["files"].append(first_file(m)), "twice"),
    _edit("no model", lambda m: m["files"].pop(0), "role 'model' or 'engine'"),
    _edit(
        "an engine where the target needs a model",
        lambda m: first_file(m).update(role="engine"),
        "bundle: lists no file with the role 'model'.",
    ),
    _edit(
        "no prompt",
        lambda m: m.update(files=[one for one in m["files"] if one["role"] != "prompt"]),
        "role 'prompt'",
    ),
    _edit("no files", lambda m: m.update(files=[]), "role 'model' or 'engine'"),
]

_OF_FIELDS = [
    _edit("the next version", lambda m: m.update(format_version=5), "version 5; this ptdeploy"),
    _edit(
        "the last version",
        lambda m: m.update(format_version=3),
        "is 'ptdeploy-bundle' version 3; this ptdeploy reads 'ptdeploy-bundle' version 4.",
    ),
    _edit("version in words", lambda m: m.update(format_version="4"), "Expected `int`, got `str`"),
    _edit("no version", lambda m: m.pop("format_version"), "required field `format_version`"),
    _edit("no format", lambda m: m.pop("format"), "required field `format`"),
    _edit("another format", lambda m: m.update(format="zip"), "is 'zip'"),
    _edit("a format that is none", lambda m: m.update(format=None), "Expected `str`, got `null`"),
    _edit("an unknown field", lambda m: m.update(surprise=[[1]]), "unknown field `surprise`"),
    _edit(
        "an unknown field within",
        lambda m: the_graph(m)["inputs"][1].update(surprise=1),
        "unknown field `surprise` - at `$.graphs[...].inputs[1]`",
    ),
    _edit("no limits", lambda m: m.pop("limits"), "required field `limits`"),
    _edit(
        "several fields missing",
        lambda m: [m.pop("files"), m.pop("limits"), m.pop("versions")],
        "required field `versions`",
    ),
    _edit(
        "a field missing within",
        lambda m: the_prompt(m).pop("sha256"),
        "required field `sha256` - at `$.prompts[...]`",
    ),
    _edit("another task", lambda m: m.update(task="MAGIC"), "Invalid enum value 'MAGIC'"),
    _edit("a task's number", lambda m: m.update(task=3), "Expected `str`, got `int` - at `$.task`"),
    _edit("another role", lambda m: first_file(m).update(role="virus"), "'virus' - at `$.files[0]"),
    _edit("another route", lambda m: the_graph(m).update(route="scenic"), "'scenic'"),
    _edit(
        "a tensor's unknown role",
        lambda m: the_graph(m)["inputs"][3].update(role="virus"),
        "Invalid enum value 'virus' - at `$.graphs[...].inputs[3].role`",
    ),
    _edit(
        "a tensor of no role",
        lambda m: the_graph(m)["outputs"][0].pop("role"),
        "required field `role` - at `$.graphs[...].outputs[0]`",
    ),
    _edit(
        "a prompt in words",
        lambda m: m["prompts"].update(default="x"),
        "Expected `object`, got `str` - at `$.prompts[...]`",
    ),
    _edit("prompts as a list", lambda m: m.update(prompts=[]), "Expected `object`, got `array`"),
    _edit("graphs as a list", lambda m: m.update(graphs=[]), "Expected `object`, got `array`"),
    _edit("no graph", lambda m: m.pop("graphs"), "required field `graphs`"),
    _edit("no prompts", lambda m: m.pop("prompts"), "required field `prompts`"),
    _edit("no default", lambda m: m.pop("default_prompt"), "required field `default_prompt`"),
    _edit(
        "a default by number",
        lambda m: m.update(default_prompt=0),
        "Expected `str | null`, got `int` - at `$.default_prompt`",
    ),
    _edit(
        "a file of a number",
        lambda m: first_file(m).update(of=1),
        "Expected `str | null`, got `int` - at `$.files[0].of`",
    ),
    _edit(
        "a prompt's checkpoint in part",
        lambda m: the_prompt(m)["source"].pop("adapter"),
        "required field `adapter` - at `$.prompts[...].source`",
    ),
    _edit("no base", lambda m: m.pop("base"), "required field `base`"),
    _edit(
        "a field of the last version",
        lambda m: m["limits"].update(max_sequence=59),
        "unknown field `max_sequence` - at `$.limits`",
    ),
    _edit("a quoted word", lambda m: m.update(task="M'\n\u0001é"), "M'\\n\\x01é"),
    _edit(
        "a fraction",
        lambda m: m["limits"].update(max_context=1.0),
        "Expected `int`, got `float` - at `$.limits.max_context`",
    ),
    _edit("a truth", lambda m: m["limits"].update(max_context=True), "got `bool`"),
    _edit("a batch in words", lambda m: m["limits"].update(max_batch="x"), "Expected `int | null`"),
    _edit(
        "a prefill in fractions",
        lambda m: m["limits"].update(max_prefill=0.5),
        "Expected `int | null`, got `float` - at `$.limits.max_prefill`",
    ),
    _edit(
        "an axis that is null",
        lambda m: the_graph(m)["inputs"][0]["shape"].append(None),
        "Expected `int | str`, got `null`",
    ),
    _edit("a prefix in words", lambda m: the_prompt(m).update(prefix_kv="x"), "`array | null`"),
    _edit(
        "a version that is none",
        lambda m: m["versions"].update(onnx=None),
        "at `$.versions[...]`",
    ),
    _edit("versions as a list", lambda m: m.update(versions=[]), "Expected `object`, got `array`"),
    _edit(
        "labels as null",
        lambda m: the_prompt(m).update(labels=None),
        "Expected `array`, got `null`",
    ),
    _edit("a label's number", lambda m: the_prompt(m).update(labels=[1]), "[...].labels[0]`"),
    _edit("an unknown head", lambda m: the_prompt(m).update(head="argmax"), "'argmax' - at `$."),
    _edit(
        "another task's head",
        lambda m: the_prompt(m).update(head="sigmoid"),
        "prompts['default'].head is for SEQ_CLS, which it is not",
    ),
    _edit(
        "segments in words",
        lambda m: m["limits"].update(type_vocab_size="2"),
        "Expected `int`, got `str` - at `$.limits.type_vocab_size`",
    ),
    _edit(
        "segments that the signature does not take",
        lambda m: m["limits"].update(type_vocab_size=2),
        "its limits have segments, but its signature takes none",
    ),
    _edit("quantized by list", lambda m: m.update(quantization=[]), "Expected `object | null`"),
    _edit(
        "quantized to another type",
        lambda m: m.update(quantization={**QUANTIZED, "type": "float3"}),
        "Invalid enum value 'float3' - at `$.quantization.type`",
    ),
    _edit(
        "activations quantized to another type",
        lambda m: m.update(quantization={**QUANTIZED, "activations": "int4"}),
        "Invalid enum value 'int4' - at `$.quantization.activations`",
    ),
    _edit(
        "quantized without bits",
        lambda m: m.update(quantization={"type": "float8e4m3fn"}),
        "required field `bits` - at `$.quantization`",
    ),
    _edit(
        "a graph's parity by list",
        lambda m: the_prompt(m).update(graph_parity=[]),
        "Expected `object | n",
    ),
    _edit(
        "a graph's parity in part",
        lambda m: the_prompt(m).update(graph_parity={"passed": True, "cases": 1, "max_abs": 0}),
        "required field `top1_agreement` - at `$.prompts[...].graph_parity`",
    ),
    _edit("generation in words", lambda m: m.update(generation="x"), "Expected `object | null`"),
    _edit(
        "an EOS in words",
        lambda m: m["generation"].update(eos_token_ids=[1, "x"]),
        "at `$.generation.eos_token_ids[1]`",
    ),
    *(
        _edit(
            f"an EOS of no token, {token}",
            lambda m, token=token: m["generation"].update(eos_token_ids=[1, token]),
            "generation.eos_token_ids must be token ids from 0 to 100",
        )
        for token in (-1, 101, 1 << 40)
    ),
    _edit(
        "a temperature in words",
        lambda m: m["generation"].update(temperature="x"),
        "Expected `float`, got `str`",
    ),
    _edit(
        "sampling by number",
        lambda m: m["generation"].update(do_sample=1),
        "Expected `bool`, got `int`",
    ),
    _edit("a tokenizer by list", lambda m: m.update(tokenizer=[]), "Expected `object | null`"),
    _edit(
        "a tokenizer of nobody's",
        lambda m: m.update(tokenizer={"origin": "nobody", "type": "x", "size": 1}),
        "Invalid enum value 'nobody' - at `$.tokenizer.origin`",
    ),
    _edit(
        "a tokenizer in part",
        lambda m: m.update(tokenizer={"origin": "base", "type": "x"}),
        "required field `size` - at `$.tokenizer`",
    ),
    _edit(
        "a tokenizer's flag by number",
        lambda m: m.update(
            tokenizer={"origin": "base", "type": "x", "size": 1, "split_special_tokens": 1}
        ),
        "Expected `bool`, got `int`",
    ),
    _edit(
        "a ratio in words",
        lambda m: the_prompt(m)["parity"].update(perplexity_ratio="x"),
        "Expected `float | null`",
    ),
    _edit("a file that is null", lambda m: m["files"].append(None), "Expected `object`"),
    Damage(
        "manifest: a wrong field under a right one of its name",
        _text('"target": "ort"', '"target": 3, "target": "ort"'),
        "Expected `str`, got `int` - at `$.target`",
    ),
    Damage(
        "manifest: a number past all",
        _text('"max_context": ', '"max_context": 1e400, "max_context": '),
        "Number out of range",
    ),
]

_OF_LAYOUT = [
    _edit("no generation", lambda m: m.update(generation=None), "it has no generation defaults"),
    _edit("another target", lambda m: m.update(target="abacus"), "'abacus'", error=InputError),
]

_OF_JSON = [
    Damage(f"manifest: {name}", _manifest(content), "not a valid manifest", same_words=False)
    for name, content in (
        ("empty", b""),
        ("cut short", b"{"),
        ("a list", b"[]"),
        ("null", b"null"),
        ("no UTF-8", b"\xff\xfe"),
        ("with a byte order mark", b"\xef\xbb\xbf{}"),
        ("nested without end", b"[" * 100_000),
        ("nested objects", b'{"a":' * 100_000),
    )
] + [
    Damage(f"manifest: {name}", _text(old, new), "not a valid manifest", same_words=False)
    for name, old, new in (
        ("NaN", '"max_context": 64', '"max_context": NaN'),
        ("a leading zero", '"max_context": 64', '"max_context": 064'),
        ("a comment", '"target"', '/* x */ "target"'),
        ("single quotes", '"target"', "'target'"),
        ("a comma too many", '"target"', ', "target"'),
        ("a control character", '"ort"', '"o\nrt"'),
        ("a lone surrogate", '"ort"', '"o\\ud800"'),
        ("a low surrogate", '"ort"', '"o\\udc00"'),
        ("an unknown escape", '"ort"', '"o\\x41"'),
        ("an overlong character", '"ort"', '"o\udcc0\udcaf"'),
        ("a surrogate in UTF-8", '"ort"', '"o\udced\udca0\udc80"'),
        ("half a character", '"ort"', '"o\udce2\udc82"'),
        ("a key without quotes", '"target"', "target"),
        ("more after its end", '"format"', '}{"format"'),
    )
]

_OVERSIZE = Damage(
    "manifest: oversize",
    _manifest(b" " * (MAX_MANIFEST_BYTES + 1)),
    "larger than 4194304 bytes, not a manifest",
)

DAMAGE = [*_OF_FILES, *_OF_PATHS, *_OF_FIELDS, *_OF_LAYOUT, *_OF_JSON, _OVERSIZE]


def rewrite_reference(
    bundle: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]
) -> None:
    """Change the stored reference's tensors and metadata; its hash then fits."""
    path = bundle / REFERENCE
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()["ptdeploy"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    content = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, _packed(metadata))
    replace(bundle, REFERENCE, content)


def leave_out_base(tensors: dict[str, np.ndarray], _: object) -> None:
    """Make a reference one of before it had rows of the base model alone."""
    for name in [name for name in tensors if "without_prompt" in name]:
        del tensors[name]


def _packed(metadata: dict[str, Any]) -> dict[str, str]:
    return {"ptdeploy": json.dumps(metadata)}


def _reference(name: str, change: Callable[[Any, Any], object], reason: str, **more: Any) -> Damage:
    return Damage(
        f"reference: {name}", lambda bundle: rewrite_reference(bundle, change), reason, **more
    )


def _reference_bytes(
    name: str, change: Callable[[bytes], bytes], reason: str = "", same_words: bool = False
) -> Damage:
    return Damage(
        f"reference: {name}",
        lambda bundle: replace(bundle, REFERENCE, change((bundle / REFERENCE).read_bytes())),
        f"not a stored reference ({reason}",
        same_words=same_words,
    )


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return changed


def _twice_told(content: bytes) -> bytes:
    """Thresholds that all pass stand before the honest ones, or behind them."""
    end = 8 + int.from_bytes(content[:8], "little")
    old, new = b'"__metadata__":{', b'"__metadata__":{"ptdeploy":"{}",'
    header = content[8:end].replace(old, new, 1)
    return len(header).to_bytes(8, "little") + header + content[end:]


# Bundles that open, and have a stored reference that verify cannot go by.
REFERENCE_DAMAGE = [
    _reference_bytes("empty", lambda _: b""),
    _reference_bytes("cut in its data", lambda content: content[:-4]),
    _reference_bytes("cut in its header", lambda content: content[:40]),
    _reference_bytes("with a byte more", lambda content: content + b"\0"),
    _reference_bytes("with an endless header", lambda c: b"\xff" * 8 + c[8:]),
    _reference_bytes(
        "with a large header",
        _with_large_header,
        "its header has 4194312 bytes; at most 4194304 are read)",
        same_words=True,
    ),
    _reference_bytes(
        "with many axes",
        _header(lambda h: h["rows.001.ids"]["shape"].extend([1] * 8)),
        "rows.001.ids has 9 axes; at most 8 are read)",
        same_words=True,
    ),
    _reference_bytes(
        "with two sets of metadata",
        _twice_told,
        "its header names 'ptdeploy' twice)",
        same_words=True,
    ),
    _reference_bytes(
        "with a header longer than itself", lambda c: (1 << 26).to_bytes(8, "little") + c[8:]
    ),
    _reference_bytes("whose header is no JSON", lambda c: c[:8] + b"x" + c[9:]),
    _reference_bytes("without metadata", _header(lambda h: h.pop("__metadata__"))),
    _reference_bytes(
        "whose metadata is no text", _header(lambda h: h.update(__metadata__={"ptdeploy": 1}))
    ),
    _reference_bytes(
        "with another's metadata", _header(lambda h: h.update(__metadata__={"other": "{}"}))
    ),
    _reference_bytes(
        "whose metadata is no JSON", _header(lambda h: h.update(__metadata__={"ptdeploy": "{"}))
    ),
    _reference_bytes(
        "with a tensor behind its end",
        _header(lambda h: h["rows.000.ids"].update(data_offsets=[1 << 40, (1 << 40) + 8])),
    ),
    _reference_bytes(
        "with a tensor that ends before it begins",
        _header(lambda h: h["rows.001.ids"].update(data_offsets=[16, 0])),
    ),
    _reference_bytes(
        "with a tensor before its start",
        _header(lambda h: h["rows.000.ids"].update(data_offsets=[-8, 0])),
    ),
    _reference_bytes(
        "with tensors over one another",
        _header(lambda h: h["rows.001.ids"].update(data_offsets=h["rows.002.ids"]["data_offsets"])),
    ),
    _reference_bytes(
        "with a shape larger than memory",
        _header(lambda h: h["rows.001.logits"].update(shape=[1 << 31, 1 << 31, 1 << 31])),
    ),
    _reference_bytes(
        "with a shape less than none", _header(lambda h: h["rows.001.ids"].update(shape=[-2]))
    ),
    _reference("without its first row", lambda t, _: t.pop("rows.000.ids"), "rows.000.ids"),
    _reference("without a row's logits", lambda t, _: t.pop("rows.003.logits"), "rows.003.logits"),
    _reference(
        "of no rows", lambda _, m: m.update(rows=0, sources=[], cases=[]), "it holds no rows"
    ),
    _reference(
        "of more rows than it has",
        lambda _, m: m.update(rows=m["rows"] + 1, sources=[*m["sources"], "random"]),
        "File does not contain tensor rows.",
    ),
    _reference("of endless rows", lambda _, m: m.update(rows=1 << 60), f" for {1 << 60} rows"),
    _reference("of less than no rows", lambda _, m: m.update(rows=-1), "`int` >= 0 - at `$.rows`"),
    _reference("of less than no greedy rows", lambda _, m: m.update(greedy=-1), "`$.greedy`"),
    _reference("of rows in words", lambda _, m: m.update(rows="9"), "Expected `int`, got `str`"),
    _reference("of an unknown field", lambda _, m: m.update(surprise=1), "field `surprise`"),
    _reference("of an unknown source", lambda _, m: m.update(sources=["rumour"]), "'rumour'"),
    _reference("of too few sources", lambda _, m: m.update(sources=["text"]), "has 1 sources for"),
    _reference("of no sources", lambda _, m: m.pop("sources"), "missing required field `sources`"),
    _reference(
        "with rows of the user's data", lambda _, m: m["sources"].append("data"), "value 'data'"
    ),
    _reference("without cases", lambda _, m: m.pop("cases"), "missing required field `cases`"),
    _reference("of no cases", lambda _, m: m.update(cases=[]), "it holds no cases"),
    _reference(
        "of too many cases",
        lambda _, m: m.update(cases=m["cases"][:1] * 10_001),
        "Expected `array` of length <= 10000 - at `$.cases`",
    ),
    _reference(
        "with a case of no rows",
        lambda _, m: m["cases"][1].update(rows=[]),
        "Expected `array` of length >= 1 - at `$.cases[1].rows`",
    ),
    _reference(
        "with a case of too many rows",
        lambda _, m: m["cases"][1].update(rows=[0] * 65),
        "Expected `array` of length <= 64 - at `$.cases[1].rows`",
    ),
    _reference(
        "with a case of a row it has not",
        lambda _, m: m["cases"][1].update(rows=[0, 99]),
        "cases[1] has row 99 of 9",
    ),
    _reference(
        "with a case of a row before the first",
        lambda _, m: m["cases"][1].update(rows=[-1]),
        "Expected `int` >= 0 - at `$.cases[1].rows[0]`",
    ),
    _reference(
        "with a case of unlike rows",
        lambda _, m: (m["sources"].__setitem__(2, "text"), m["cases"][0].update(rows=[2, 1])),
        "cases[0] has rows of random and text",
    ),
    _reference(
        "with a case padded nowhere",
        lambda _, m: m["cases"][0].update(padding="up"),
        "Invalid enum value 'up' - at `$.cases[0].padding`",
    ),
    _reference(
        "with a named case", lambda _, m: m["cases"][0].update(name="alone"), "field `name`"
    ),
    _reference("without thresholds", lambda _, m: m.pop("thresholds"), "field `thresholds`"),
    _reference(
        "without one of the thresholds",
        lambda _, m: m["thresholds"].pop("min_top1_agreement"),
        "missing required field `min_top1_agreement` - at `$.thresholds`",
    ),
    _reference(
        "with a threshold below nothing",
        lambda _, m: m["thresholds"].update(max_abs=-1e-5),
        "Expected `float` >= 0.0 - at `$.thresholds.max_abs`",
    ),
    _reference(
        "with a relative threshold below nothing",
        lambda _, m: m["thresholds"].update(relative=-1),
        "Expected `float` >= 0.0 - at `$.thresholds.relative`",
    ),
    _reference(
        "with a threshold in words",
        lambda _, m: m["thresholds"].update(kl="small"),
        "Expected `float`, got `str` - at `$.thresholds.kl`",
    ),
    _reference(
        "with an unknown threshold",
        lambda _, m: m["thresholds"].update(surprise=1),
        "field `surprise` - at `$.thresholds`",
    ),
    _reference(
        "with a threshold that is no number",
        lambda _, m: m["thresholds"].update(kl=float("nan")),
        "JSON is malformed",
        same_words=False,
    ),
    _reference(
        "with an id behind the vocabulary",
        lambda t, _: t["rows.002.ids"].put(0, 101),
        "rows.002.ids holds a token id outside 0 to 100",
    ),
    _reference(
        "with an id before the vocabulary",
        lambda t, _: t["rows.002.ids"].put(0, -1),
        "rows.002.ids holds a token id outside 0 to 100",
    ),
    _reference(
        "with a row of no tokens",
        lambda t, _: t.update({"rows.001.ids": np.zeros(0, np.int64)}),
        "rows.001.ids has 0 tokens, but the bundle takes 1 to 59",
    ),
    _reference(
        "with a row longer than the bundle takes",
        lambda t, _: t.update({"rows.001.ids": np.zeros(60, np.int64)}),
        "rows.001.ids has 60 tokens, but the bundle takes 1 to 59",
    ),
    _reference(
        "with ids in a table",
        lambda t, _: t.update({"rows.001.ids": np.zeros((1, 2), np.int64)}),
        "rows.001.ids has shape (1, 2), but is a list",
    ),
    _reference(
        "with ids that are fractions",
        lambda t, _: t.update({"rows.001.ids": np.zeros(2, np.float32)}),
        "rows.001.ids is F32, not I64",
    ),
    _reference(
        "with more positions than tokens",
        lambda t, _: t.update({"rows.001.logits": np.zeros((3, 101), np.float32)}),
        "rows.001.logits has shape (3, 101), but the engine gives (2, 101)",
    ),
    _reference(
        "with fewer scores than the engine",
        lambda t, _: t.update({"rows.001.logits": np.zeros((2, 7), np.float32)}),
        "rows.001.logits has shape (2, 7), but the engine gives (2, 101)",
    ),
    _reference(
        "with no positions",
        lambda t, _: t.update({"rows.001.logits": np.zeros((0, 101), np.float32)}),
        "rows.001.logits has shape (0, 101)",
    ),
    _reference(
        "with logits that are whole numbers",
        lambda t, _: t.update({"rows.001.logits": np.zeros((2, 101), np.int64)}),
        "rows.001.logits is I64, not F32",
    ),
    _reference(
        "with logits of no number",
        lambda t, _: t["rows.001.logits"].put(5, np.nan),
        "rows.001.logits holds a number that is not finite",
    ),
    _reference(
        "with a class too many",
        lambda t, _: t.update({"rows.001.logits": np.zeros(4, np.float32)}),
        "rows.001.logits has shape (4,), but the engine gives (3,)",
        bundle=ENCODER,
    ),
    _reference(
        "with a segment that the bundle has not",
        lambda t, _: t["rows.001.type_ids"].put(1, 2),
        "rows.001.type_ids holds a segment that the bundle does not take: it has 2",
        bundle=ENCODER,
    ),
    _reference(
        "with a segment less than none",
        lambda t, _: t["rows.001.type_ids"].put(1, -1),
        "rows.001.type_ids holds a segment that the bundle does not take: it has 2",
        bundle=ENCODER,
    ),
    _reference(
        "with too few segments",
        lambda t, _: t.update({"rows.003.type_ids": np.zeros(4, np.int64)}),
        "rows.003.type_ids has 4 entries, not 5",
        bundle=ENCODER,
    ),
    _reference(
        "with segments where the model has none",
        lambda t, _: t.update({"rows.001.type_ids": np.zeros(2, np.int64)}),
        "rows.001.type_ids holds a segment that the bundle does not take: it has 0",
    ),
    _reference(
        "with a pair of three texts",
        lambda _, m: m.update(pairs=[["a", "b", "c"]]),
        "Expected `array` of length 2 - at `$.pairs[0]`",
    ),
    _reference(
        "with a greedy row past the context",
        lambda t, _: t.update({"greedy.000.tokens": np.zeros(59, np.int64)}),
        "greedy.000.tokens has 59 tokens, but its text leaves room for 58",
    ),
    _reference(
        "with a greedy row of no tokens",
        lambda t, _: t.update({"greedy.000.tokens": np.zeros(0, np.int64)}),
        "greedy.000.tokens has 0 tokens",
    ),
    _reference(
        "with a margin too few",
        lambda t, _: t.update({"greedy.000.margins": np.zeros(15, np.float32)}),
        "greedy.000.margins has 15 entries, not 16",
    ),
    _reference(
        "with a row that is continued without a prompt by no tokens",
        lambda t, _: t.update({"without_prompt.tokens": np.zeros(0, np.int64)}),
        "without_prompt.tokens has 0 tokens",
    ),
]
