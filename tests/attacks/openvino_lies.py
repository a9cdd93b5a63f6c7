"""Bundles for OpenVINO that say what is not so: see lies.py."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attacks.lies import LIES, Lie, graph, kind_words, says, set_to
from support.damage import DECODER, ENCODER, edit, the_graph


def _engine_json(content: bytes, **fields: Any) -> Callable[[Path], None]:
    """List an engine.json, which the manifests that these lies are told of have not."""
    entry = {"path": "engine.json", "role": "engine_info", "of": "model", **fields}

    def do(bundle: Path) -> None:
        (bundle / "engine.json").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        one = {**entry, "size": len(content), "sha256": digest}
        edit(bundle, lambda manifest: manifest["files"].append(one))

    return do


def _twice(do: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(bundle: Path) -> None:
        do(bundle)
        edit(bundle, lambda manifest: manifest["files"].append(manifest["files"][-1]))

    return both


def _drop(role: str, manifest: dict[str, Any]) -> None:
    """List no file of a role, which still lies there."""
    manifest["files"] = [one for one in manifest["files"] if one["role"] != role]


def _attention(**sizes: int) -> Callable[[Path], None]:
    """Change sizes of the first attention; what an operator lacks is added."""

    def change(model: Any) -> None:
        from onnx import helper

        node = next(one for one in model.graph.node if one.op_type == "GroupQueryAttention")
        others = [one for one in node.attribute if one.name not in sizes]
        del node.attribute[:]
        node.attribute.extend(others)
        node.attribute.extend(helper.make_attribute(name, size) for name, size in sizes.items())

    return graph(change)


_UNREAD = "Compile the checkpoint again with the versions installed here."
_OFFSETS = {
    "name": "token_offsets",
    "role": "offsets",
    "dtype": "int64",
    "shape": [3, "sequence"],
    "meaning": "",
}
_NONE = "engine.json: does not describe an engine"
_ITS_OWN = [
    *(
        Lie(name, _engine_json(content), None)
        for name, content in (
            ("no group of activations", b'{"group": 0}'),
            ("an engine.json that says nothing", b"{}"),
        )
    ),
    *(
        Lie(name, _engine_json(content), _NONE)
        for name, content in (
            ("a KV cache in no type", b'{"kv_precision": "f64"}'),
            ("a KV cache in no word", b'{"kv_precision": 16}'),
            ("a block size of the KV cache", b'{"kv_block_size": 64}'),
            ("a group past all", b'{"group": 65537}'),
            ("a group of less than none", b'{"group": -1}'),
            ("half a group", b'{"group": 0.5}'),
            ("an engine.json that is a list", b"[]"),
            ("an engine.json that is none", b"{"),
            ("an engine.json of nothing", b""),
            ("an engine.json past all", b" " * (1 << 17) + b"{}"),
        )
    ),
    says(
        "rows that come as one",
        lambda m: the_graph(m)["inputs"].append(_OFFSETS),
        "OpenVINO cannot load it (rows that come as one sequence are not carried over)",
        fix=_UNREAD,
    ),
    *(
        Lie(f"attention of {sizes}", _attention(**sizes), reason, fix=_UNREAD)
        for sizes, reason in (
            *(
                ({name: size, **more}, f"its attention's {name} must be from 1 to 2147483647")
                for name, size, more in (
                    ("num_heads", 2**62, {"kv_num_heads": 2**62 + 2**61}),
                    ("num_heads", 2**63 - 1, {}),
                    ("num_heads", 0, {}),
                    ("kv_num_heads", 2**62, {}),
                    ("kv_num_heads", -1, {}),
                    ("local_window_size", 2**40 + 5, {}),
                    ("local_window_size", 0, {}),
                    ("local_window_size", -2, {}),
                )
            ),
            *(
                (sizes, "its attention's tokens are not as wide as their heads")
                for sizes in ({"num_heads": 1}, {"num_heads": 64}, {"kv_num_heads": 3})
            ),
        )
    ),
    Lie("attention of an absent window", _attention(local_window_size=-1), None),
    Lie("an engine.json of a prompt", _engine_json(b"{}", of="default"), "not the name of a graph"),
    Lie("an engine.json of nobody", _engine_json(b"{}", of=None), "not the name of a graph"),
    Lie("two engine.json", _twice(_engine_json(b"{}")), "lists 'engine.json' twice", fix=""),
    *(
        says(f"the precision {name!r}", set_to("precision", name), f"no precision {name!r}", fix="")
        for name in ("fp8", "")
    ),
    *(
        says(f"no {role}, {kind_words(kind)}", partial(_drop, role), reason, bundle=kind, fix=fix)
        for kind in (DECODER, ENCODER)
        for role, reason, fix in (
            ("model", "lists no file with the role 'model' or 'engine'", ""),
            ("weights", "from 'model.onnx.data', which the manifest does not list", Lie.fix),
            ("prompt", "lists no file with the role 'prompt'", ""),
        )
    ),
]


# Of the table for ONNX Runtime, those that an engine decides about. OpenVINO keeps no axes' names,
# and makes another program of a graph that writes.
_OTHER_WORDS = {
    "keys for values": "'(?, 4, ?, 8)', but the manifest says 'past_key_values.0.value'",
    "a layer less, and its prefix": "'(?, 4, ?, 8)', but the manifest says missing",
    "fewer and wider heads": "its inputs[3] is 'past_key_values.0.key': 'float32' '(?, 4, ?, 8)'",
    "more logits than there are": "its outputs[0] is 'logits': 'float32' '(?, ?, 101)'",
    "a head with its axes in turn": "'head.classifier.weight': 'float32' '(?, ?, 32)', but",
    "segments of a decoder's classifier": "its inputs[2] is 'prefix_kv': 'float32' '(?, 2, ?, 8)'",
    "an input by another name": "its inputs[1] is 'lengths': 'int64' '(?)', but the manifest says",
    "keys and values in turn in the graph's own list": "its inputs[3] is 'past_key_values.0.value'",
    "a classifier of one row": "its inputs[0] is 'input_ids': 'int64' '(1, ?)', but the manifest",
}
_ALIKE = {
    *("one layer for another", "layers given back in turn", "heads past all", "another prefix"),
    *("fixed slots of an engine that has none", "fewer logits than tokens", "a head named twice"),
    *("a layer by another name", "another number of heads", "words that the embedding has not"),
    *("90 words before the virtual tokens of bert SEQ_CLS", "a wider prompt", "no graph"),
    *("words that a decoder's classifier has not", "rows one by one", "fewer words"),
    *("weights that are not listed", "weights by another way", "weights of a branch"),
    *("ids of one row in the graph", "slots that are few", "graphs without end"),
    *("all tensors by other names, qwen2 CAUSAL_LM", "all tensors by other names, bert SEQ_CLS"),
    *("all tensors by other names, fused, not frozen", "KV that is no number"),
}
_TOLD = [
    *_ITS_OWN,
    *(one for one in LIES if one.name in _ALIKE),
    *(
        dataclasses.replace(one, reason=_OTHER_WORDS[one.name])
        for one in LIES
        if one.name in _OTHER_WORDS
    ),
    # The paged program hangs on no route.
    *(
        dataclasses.replace(one, reason=None)
        for one in LIES
        if one.name == "the plain route, new KV and all"
    ),
]
OPENVINO_LIES = [
    dataclasses.replace(one, name=f"{one.name}, on openvino", target="openvino") for one in _TOLD
]
