"""A map of single characters to texts, as SentencePiece's normalizer and OpenVINO's read it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

# A unit of the double array: a label in the low byte, or a value behind the highest bit.
_HAS_LEAF, _OFFSET, _VALUE = 1 << 8, 10, 1 << 31
# Further away than this a unit cannot point, as it is written here.
_MOST = 1 << 21
_BLOCK = 256

_Node = dict[int, "_Node | int"]
_Alike = tuple[tuple[int, int], ...]


def charsmap(texts: Mapping[str, str]) -> bytes:
    """A precompiled map: each of the characters becomes its text, every other stays.

    Raises ValueError if there are too many. Source: SentencePiece's normalizer.cc, whose trie is
    Darts-clone's double array: its size in bytes, its units, and the texts with a zero behind each.
    """
    places: dict[str, int] = {}
    blob = bytearray()
    root: _Node = {}
    for character, text in texts.items():
        if text not in places:
            places[text] = len(blob)
            blob += text.encode() + b"\0"
        node = root
        for byte in character.encode():
            child = node.setdefault(byte, {})
            assert isinstance(child, dict), "a label is no end"
            node = child
        # No byte of UTF-8 text but the zero's is a zero, and that one stays as it is.
        node[0] = places[text]
    units = _double_array(root)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(blob)


def _double_array(root: _Node) -> list[int]:
    """Units in which a node's child of a label stands at the node's base xor that label.

    A node of several children gets a block of its own, whose gaps those of one child fill. Nodes
    that are alike have one base.
    """
    units: list[int] = [0] * _BLOCK
    free = list(range(1, _BLOCK))
    bases = {0}
    alike: dict[_Alike, int] = {}
    placed: dict[int, int] = {}
    waiting: list[tuple[int, _Node]] = [(0, root)]
    kinds = _kinds(root, alike)
    while waiting:
        place, node = waiting.pop()
        base = known = placed.get(kinds[id(node)])
        if base is None and len(node) == 1:
            base = _base_of_one(node, free, bases)
        if base is None:
            base = len(units)
            units.extend([0] * _BLOCK)
            free.extend(base + label for label in range(1, _BLOCK) if label not in node)
        if place ^ base >= _MOST:
            raise ValueError("the map has too many characters")
        units[place] |= (place ^ base) << _OFFSET | (_HAS_LEAF if 0 in node else 0)
        if known is not None:
            continue
        bases.add(base)
        placed[kinds[id(node)]] = base
        for label, child in node.items():
            if isinstance(child, int):
                units[base ^ label] = child | _VALUE
            else:
                units[base ^ label] = label
                waiting.append((base ^ label, child))
    return units


def _kinds(node: _Node, alike: dict[_Alike, int]) -> dict[int, int]:
    """A number for each node, by its id(): those below which all is the same have the same."""
    found: dict[int, int] = {}
    key: list[tuple[int, int]] = []
    for label, child in node.items():
        if isinstance(child, int):
            key.append((label, ~child))
        else:
            found.update(_kinds(child, alike))
            key.append((label, found[id(child)]))
    found[id(node)] = alike.setdefault(tuple(sorted(key)), len(alike))
    return found


def _base_of_one(node: _Node, free: list[int], bases: set[int]) -> int | None:
    """A base for a node's one child in a unit that is free, which is then taken; None for none."""
    (label,) = node
    for index in range(len(free) - 1, -1, -1):
        if free[index] ^ label not in bases:
            return free.pop(index) ^ label
    return None
