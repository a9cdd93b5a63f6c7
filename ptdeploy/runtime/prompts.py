"""Prompts in memory, read from their files and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import Bundle, Manifest, PromptInfo
from ptdeploy.bundle.signature import AGAIN, CLASSES, words_of
from ptdeploy.bundle.task import TensorSpec
from ptdeploy.bundle.tensor_file import open_tensors
from ptdeploy.errors import BundleError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A frozen prompt in memory; one that is read again is another one.

    `virtual_tokens` is float32 (virtual tokens, width), None where a prefix KV was trained itself;
    `prefix_kv` float32 (layers, 2, kv heads, virtual tokens, head dim), None where the virtual
    tokens are run; `head` float32 by the names of the graph's inputs.
    """

    name: str
    info: PromptInfo
    virtual_tokens: NDArray[np.float32] | None = field(repr=False)
    prefix_kv: NDArray[np.float32] | None = field(repr=False)
    head: dict[str, NDArray[np.float32]] = field(repr=False)

    @property
    def length(self) -> int:
        """How many positions it takes in front of a row's text."""
        return self.info.num_virtual_tokens


def read_prompt(bundle: Bundle, name: str | None = None) -> Prompt:
    """Read a bundle's prompt of that name, else its default one, and hold it to the manifest.

    Raises BundleError unless its file holds the virtual tokens whose hash the manifest has, a
    prefix KV of the manifest's shape, and the head that the graph takes: float32, all finite.
    """
    name = name or bundle.manifest.default_prompt
    assert name is not None, "whoever asks knows that there is one"
    info = bundle.manifest.prompts[name]
    path = bundle.file("prompt", name)
    if path is None:
        raise BundleError(f"{bundle.path}: lists no file of the prompt {name!r}.", AGAIN)
    with bundle.reading("prompt", name) as opened:
        assert opened is not None, "it has a path"
        own, of_head = list(_wanted(info)), list(_wanted_head(bundle.manifest, info))
        tensors = _tensors(path, opened, [*own, *of_head])
    # An input of a head may have any name, a prompt's own among them.
    found = {wanted.name: tensor for wanted, tensor in zip(own, tensors, strict=False)}
    parts = zip(of_head, tensors[len(own) :], strict=True)
    head = {wanted.name: tensor for wanted, tensor in parts}
    tokens, kv = found.get("virtual_tokens"), found.get("prefix_kv")
    if prompt_sha256(tokens, kv) != info.sha256:
        whose = "prefix KV is not that" if tokens is None else "virtual tokens are not those"
        raise BundleError(f"{path}: its {whose} of prompt.sha256.", AGAIN)
    return Prompt(name, info, tokens, kv, head)


def check_prefix(where: str | Path, info: PromptInfo, others: Iterable[PromptInfo]) -> None:
    """Raises BundleError unless a prompt's prefix KV is of as many layers as the first of `others`
    that has one.

    Prefixes of a run's prompts lie one behind the other: a layer more or less in one would give its
    neighbour's rows another's keys and values.
    """
    first = next((one.prefix_kv for one in others if one.prefix_kv is not None), None)
    own = info.prefix_kv
    if own is not None and first is not None and own[:1] != first[:1]:
        raise BundleError(
            f"{where}: its prefix KV is of {own[0]} layers, and those beside it are of {first[0]}.",
            AGAIN,
        )


def prompt_sha256(
    virtual_tokens: NDArray[np.float32] | None, prefix_kv: NDArray[np.float32] | None
) -> str:
    """SHA-256 of virtual tokens as little-endian float32 in row order, in hexadecimal.

    Of a prefix KV where there are none.
    """
    hashed = prefix_kv if virtual_tokens is None else virtual_tokens
    assert hashed is not None, "a prompt has one of them"
    return hashlib.sha256(hashed.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class _Wanted:
    """A tensor that a prompt's file must hold."""

    name: str
    shape: tuple[int, ...]
    words: str


def _wanted(info: PromptInfo) -> Iterator[_Wanted]:
    if info.token_dim is not None:
        tokens = info.num_virtual_tokens, info.token_dim
        yield _Wanted("virtual_tokens", tokens, "virtual tokens")
    if info.prefix_kv is not None:
        yield _Wanted("prefix_kv", info.prefix_kv, "prefix KV")


def _wanted_head(manifest: Manifest, info: PromptInfo) -> Iterator[_Wanted]:
    for spec in manifest.graph.inputs:
        if spec.role == "head":
            yield _Wanted(spec.name, _own_shape(spec, info.labels), spec.name)


def _own_shape(spec: TensorSpec, labels: Sequence[str]) -> tuple[int, ...]:
    """The shape of one prompt's part of a stacked head input."""
    sizes = (len(labels) if axis == CLASSES else axis for axis in spec.shape[1:])
    return tuple(int(size) for size in sizes)


def _tensors(path: Path, opened: Path, wanted: Sequence[_Wanted]) -> list[NDArray[np.float32]]:
    """These tensors of a prompt's file, in their order."""
    from safetensors import SafetensorError

    found = []
    try:
        with open_tensors(opened) as file:
            for one in wanted:
                found.append(_tensor(path, file, one))
    except (SafetensorError, OSError, ValueError) as error:
        words = wanted[len(found)].words
        raise BundleError(f"{path}: holds no {words} ({error}).", AGAIN) from error
    return found


def _tensor(path: Path, file: Any, wanted: _Wanted) -> NDArray[np.float32]:
    kind = file.get_slice(wanted.name)
    dtype, size = kind.get_dtype(), tuple(kind.get_shape())
    if dtype != "F32":
        raise BundleError(f"{path}: {wanted.name} is {dtype}, not F32.", AGAIN)
    if size != wanted.shape:
        raise BundleError(
            f"{path}: {wanted.words} has shape {words_of(size)}, not the manifest's.", AGAIN
        )
    tensor: NDArray[np.float32] = file.get_tensor(wanted.name)
    if not np.isfinite(tensor).all():
        raise BundleError(f"{path}: {wanted.words} holds a number that is not finite.", AGAIN)
    return tensor
