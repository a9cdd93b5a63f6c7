"""Bytes that are nearly right: a seed changed as a damaged disk or an attacker would change it.

A JSON document, and the JSON header of a safetensors file, are changed as trees, so that most of
what comes out still parses and reaches the checks behind the parser; everything else as bytes.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(-(2**63), -(2**63) - 1, 10**30, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e-40, 1e38, 1e308, -1e308),
)
_WORDS: tuple[str, ...] = (
    *("", " ", "a", "..", "../x", "/etc/passwd", "a/../b", "a\\b", "\0", "\n", "\r\n", "\x1b[31m"),
    *(
        "é",
        "e\u0301",
        "東京",
        "🙂",
        "\u202e",
        "\u2028",
        "\ufeff",
        "x" * 300,
        "{{ 7 }}",
        "%s%n",
        "NaN",
    ),
    *("float32", "int64", "F32", "I64", "softmax", "model", "weights", "prompt", "ort", "trt"),
)
_DEEP = 60


def mutate(seed: bytes, rng: random.Random) -> bytes:
    """One to four changes of a seed. The same seed and generator state give the same bytes."""
    data = seed
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed = None
        if rng.random() < 0.75:
            changed = _json(data, rng) or _safetensors(data, rng)
        data = changed if changed is not None else _bytes(data, rng)
    return data


def _json(data: bytes, rng: random.Random) -> bytes | None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return json.dumps(_tree(tree, rng), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def _safetensors(data: bytes, rng: random.Random) -> bytes | None:
    if len(data) < 8 or struct.unpack("<Q", data[:8])[0] > len(data) - 8:
        return None
    size = struct.unpack("<Q", data[:8])[0]
    header = _json(data[8 : 8 + size], rng)
    if header is None:
        return None
    length = rng.choice((len(header), len(header), len(header), len(header) + 1, 2**62, 0))
    return struct.pack("<Q", length) + header + data[8 + size :]


def _tree(tree: Any, rng: random.Random) -> Any:
    """A copy with one place of it changed."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []
    waiting = [tree] if isinstance(tree, (dict, list)) else []
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)) and node[key]:
                waiting.append(node[key])
    if not places:
        return _value(tree, rng)
    node, key = rng.choice(places)
    action = rng.random()
    if action < 0.55:
        node[key] = _value(node[key], rng)
    elif action < 0.7:
        del node[key]
    elif action < 0.85:
        other, name = rng.choice(places)
        node[key] = copy.deepcopy(other[name])
    elif isinstance(node, list):
        node.insert(rng.randint(0, len(node)), copy.deepcopy(node[key]))
    else:
        node[rng.choice((*_WORDS, *map(str, node)))] = node.pop(key)
    return tree


def _value(value: Any, rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return rng.choice((*_NUMBERS, value + 1, value - 1, -value, value * 2))
        if isinstance(value, str):
            at = rng.randint(0, len(value))
            return rng.choice((*_WORDS, value[:at], value[:at] + rng.choice(_WORDS) + value[at:]))
        if isinstance(value, list) and value:
            return rng.choice((value * 2, value[1:], value[::-1], [value]))
    if kind < 0.55:
        deep: Any = value
        for _ in range(rng.choice((2, _DEEP, 2000))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        # json itself would not write it.
        return deep if _depth(deep) < 900 else []
    return rng.choice((None, True, [], {}, rng.choice(_NUMBERS), rng.choice(_WORDS)))


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, (list, dict)) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
        depth += 1
    return depth


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    action = rng.random()
    at = rng.randint(0, len(changed))
    if action < 0.3 and changed:
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
    elif action < 0.5:
        changed = changed[:at]
    elif action < 0.65:
        changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 8, 64))))
    elif action < 0.8:
        end = min(len(changed), at + rng.choice((1, 2, 8, 64)))
        del changed[at:end]
    elif action < 0.9:
        start = rng.randint(0, len(changed))
        changed[at:at] = changed[start : start + rng.choice((1, 8, 64))]
    else:
        size = rng.choice((1, 2, 4, 8))
        changed[at : at + size] = rng.choice(
            (b"\xff" * size, b"\0" * size, (2 ** (8 * size - 1)).to_bytes(size, "little"))
        )
    return bytes(changed)
