"""What any manifest must say for its engine to be run as it says: ranges, signature, prompt.

The C++ library has the same rules, in the same order and the same words (layout.cc).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.bundle import MANIFEST_NAME, Bundle, Manifest
from ptdeploy.bundle.signature import AGAIN, words_of
from ptdeploy.bundle.task import Head, TensorSpec
from ptdeploy.errors import BundleError

# Ids, positions and sizes fit in 32 bits, so that products of two of them fit in 64.
MOST = 2**31 - 1
_RANGE = f"from 1 to {MOST}"
# An engine built for fixed sizes has room for the logits of so many positions of one run: a large
# vocabulary's are many times as large as all else that a prefill needs.
KEPT = 64
# A prefill longer than this, or than the engine takes, runs in pieces: an engine's scratch space
# grows with its square.
PREFILL = 512


def check_manifest(bundle: Bundle, problems: Iterable[str]) -> None:
    """Raises BundleError naming the first problem of the manifest, if it has any.

    `problems` are `manifest_problems` of its task's engine.
    """
    for problem in problems:
        raise BundleError(f"{bundle.path / MANIFEST_NAME}: {problem}.", AGAIN)


def check_prompt(bundle: Bundle) -> NDArray[np.float32] | None:
    """Hold the prompt's file against the manifest; gives the prefix KV if it is frozen.

    Raises BundleError unless it holds the virtual tokens whose hash the manifest has, and a prefix
    KV of the manifest's shape: float32, all finite.
    """
    from safetensors import SafetensorError, safe_open

    prompt = bundle.manifest.prompt
    path, opened = bundle.file("prompt"), bundle.opened("prompt")
    assert opened is not None, "read_bundle checks it"
    tokens: tuple[int, ...] = prompt.num_virtual_tokens, prompt.token_dim
    wanted = [("virtual_tokens", tokens, "virtual tokens")]
    if prompt.prefix_kv is not None:
        wanted.append(("prefix_kv", prompt.prefix_kv, "prefix KV"))
    found: dict[str, NDArray[Any]] = {}
    for name, shape, words in wanted:
        try:
            with safe_open(opened, framework="np") as file:
                kind = file.get_slice(name)
                dtype, size = kind.get_dtype(), tuple(kind.get_shape())
                if dtype != "F32":
                    raise BundleError(f"{path}: {name} is {dtype}, not F32.", AGAIN)
                if size != shape:
                    raise BundleError(
                        f"{path}: {words} has shape {words_of(size)}, not the manifest's.", AGAIN
                    )
                found[name] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(f"{path}: holds no {words} ({error}).", AGAIN) from error
        if not np.isfinite(found[name]).all():
            raise BundleError(f"{path}: {words} holds a number that is not finite.", AGAIN)
    digest = hashlib.sha256(found["virtual_tokens"].astype("<f4").tobytes()).hexdigest()
    if digest != prompt.sha256:
        raise BundleError(f"{path}: its virtual tokens are not those of prompt.sha256.", AGAIN)
    return found.get("prefix_kv")


def problems_of_any(manifest: Manifest, heads: Sequence[Head]) -> Iterator[str]:
    """What no engine has, whatever its task, in the order in which one thing's range is needed to
    say the next. `heads` are those that its task has."""
    limits, prompt = manifest.limits, manifest.prompt
    for name, value in (
        ("limits.max_sequence", limits.max_sequence),
        ("limits.max_context", limits.max_context),
        ("limits.vocab_size", limits.vocab_size),
        ("limits.max_batch", 1 if limits.max_batch is None else limits.max_batch),
        ("limits.max_prefill", 1 if limits.max_prefill is None else limits.max_prefill),
        ("prompt.num_virtual_tokens", prompt.num_virtual_tokens),
        ("prompt.token_dim", prompt.token_dim),
        *((f"prompt.prefix_kv[{i}]", size) for i, size in enumerate(prompt.prefix_kv or ())),
    ):
        if not 1 <= value <= MOST:
            yield f"{name} must be {_RANGE}"
    if not 0 <= limits.type_vocab_size <= MOST:
        yield f"limits.type_vocab_size must be from 0 to {MOST}"
    if limits.type_vocab_size and all(spec.name != "token_type_ids" for spec in manifest.inputs):
        yield "its limits have segments, but its signature takes none"
    if manifest.head not in heads:
        yield "its head is for SEQ_CLS, which it is not"
    if limits.max_sequence + prompt.num_virtual_tokens != limits.max_context:
        yield "limits.max_sequence and prompt.num_virtual_tokens do not add up to max_context"
    if not re.fullmatch(r"[0-9a-f]{64}", prompt.sha256):
        yield "prompt.sha256 is no SHA-256"
    yield from _of_quantization(manifest)


def _of_quantization(manifest: Manifest) -> Iterator[str]:
    found = manifest.quantization
    if found is None:
        return
    for name, holds, wanted in (
        ("bits", found.bits in (4, 8), "4 or 8"),
        ("block_size", 0 <= found.block_size <= MOST, f"from 0 to {MOST}"),
        ("accuracy_level", 0 <= found.accuracy_level <= 4, "from 0 to 4"),
        ("min_agreement", 0 <= found.min_agreement <= 1, "from 0 to 1"),
        ("max_perplexity_ratio", found.max_perplexity_ratio > 0, "more than 0"),
    ):
        if not holds:
            yield f"quantization.{name} must be {wanted}"


# Name, element type and shape of each tensor that a signature must have.
Specs = list[tuple[str, str, tuple[int | str, ...]]]


def unlike(side: str, found: Sequence[TensorSpec], wanted: Specs) -> Iterator[str]:
    """The first of a signature's tensors that is not what its place needs."""
    for index, (spec, want) in enumerate(zip_longest(found, wanted)):
        place = f"{side}[{index}]"
        if spec is None:
            yield f"{place} is missing; it must be {want[0]!r}"
        elif want is None:
            yield f"{place} is {spec.name!r}, which no engine of this task has"
        elif spec.name != want[0]:
            yield f"{place} is {spec.name!r}; it must be {want[0]!r}"
        elif spec.dtype != want[1]:
            yield f"{place}.dtype is {spec.dtype!r}; it must be {want[1]!r}"
        elif spec.shape != want[2]:
            yield f"{place}.shape is {words_of(spec.shape)!r}; it must be {words_of(want[2])!r}"
