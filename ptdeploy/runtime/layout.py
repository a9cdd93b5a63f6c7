"""What any manifest must say for its engine to be run as it says: ranges, signature, prompt.

The C++ library has the same rules, in the same order and the same words (layout.cc).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from ptdeploy.bundle import MANIFEST_NAME, MODEL, Bundle, Limits, Manifest, PromptInfo
from ptdeploy.bundle.signature import AGAIN, words_of
from ptdeploy.bundle.task import Head, TensorRole, TensorSpec
from ptdeploy.errors import BundleError

# Ids, positions and sizes fit in 32 bits, so that products of two of them fit in 64.
MOST = 2**31 - 1
_RANGE = f"from 1 to {MOST}"
# What activations can be computed in, and what prompts' tensors then are.
ACTIVATIONS = ("float32", "float16", "bfloat16")
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


def problems_of_any(manifest: Manifest, heads: Sequence[Head]) -> Iterator[str]:
    """What no engine has, whatever its task, in the order in which one thing's range is needed to
    say the next. `heads` are those that its task has."""
    limits = manifest.limits
    for name, value in (
        ("limits.max_context", limits.max_context),
        ("limits.vocab_size", limits.vocab_size),
        ("limits.max_batch", 1 if limits.max_batch is None else limits.max_batch),
        ("limits.max_prefill", 1 if limits.max_prefill is None else limits.max_prefill),
    ):
        if not 1 <= value <= MOST:
            yield f"{name} must be {_RANGE}"
    if not 0 <= limits.type_vocab_size <= MOST:
        yield f"limits.type_vocab_size must be from 0 to {MOST}"
    if limits.type_vocab_size and all(spec.role != "segments" for spec in manifest.graph.inputs):
        yield "its limits have segments, but its signature takes none"
    for name, prompt in manifest.prompts.items():
        yield from _of_prompt(name, prompt, limits, heads)
    yield from _of_quantization(manifest)


def _of_prompt(
    name: str, prompt: PromptInfo, limits: Limits, heads: Sequence[Head]
) -> Iterator[str]:
    where = f"prompts[{name!r}]."
    for field, value in (
        ("num_virtual_tokens", prompt.num_virtual_tokens),
        ("token_dim", 1 if prompt.token_dim is None else prompt.token_dim),
        *((f"prefix_kv[{i}]", size) for i, size in enumerate(prompt.prefix_kv or ())),
    ):
        if not 1 <= value <= MOST:
            yield f"{where}{field} must be {_RANGE}"
    if prompt.token_dim is None and prompt.prefix_kv is None:
        yield f"{where}token_dim and prefix_kv are both null"
    if prompt.head not in heads:
        yield f"{where}head is for SEQ_CLS, which it is not"
    if prompt.padding_id is not None:
        if not 0 <= prompt.padding_id < limits.vocab_size:
            yield f"{where}padding_id must be from 0 to {limits.vocab_size - 1}"
        if prompt.token_dim is not None:
            yield f"{where}padding_id is for a trained prefix KV, which it is not"
    if prompt.num_virtual_tokens >= limits.max_context:
        yield f"{where}num_virtual_tokens leaves no room in limits.max_context"
    if not re.fullmatch(r"[0-9a-f]{64}", prompt.sha256):
        yield f"{where}sha256 is no SHA-256"


def _of_quantization(manifest: Manifest) -> Iterator[str]:
    found = manifest.quantization
    if found is None:
        return
    for name, holds, wanted in (
        ("bits", found.bits in (4, 8), "4 or 8"),
        ("block_size", 0 <= found.block_size <= MOST, f"from 0 to {MOST}"),
        ("accuracy_level", 0 <= found.accuracy_level <= 4, "from 0 to 4"),
        ("min_agreement", 0 <= found.min_agreement <= 1, "from 0 to 1"),
        ("min_class_agreement", 0 <= (found.min_class_agreement or 0) <= 1, "from 0 to 1"),
        ("max_perplexity_ratio", found.max_perplexity_ratio > 0, "more than 0"),
        ("share", 0 <= found.share <= 1, "from 0 to 1"),
        ("calibrated", 0 <= found.calibrated <= 1, "from 0 to 1"),
    ):
        if not holds:
            yield f"quantization.{name} must be {wanted}"


# Role, element type and shape of each tensor that a signature must have.
Specs = list[tuple[TensorRole, str, tuple[int | str, ...]]]


def unlike(side: str, found: Sequence[TensorSpec], wanted: Specs) -> Iterator[str]:
    """The first of a signature's tensors that is not what its place needs."""
    names = set[str]()
    for index, (spec, want) in enumerate(zip_longest(found, wanted)):
        place = f"graphs[{MODEL!r}].{side}[{index}]"
        if spec is None:
            yield f"{place} is missing; its role must be {want[0]!r}"
        elif want is None:
            yield f"{place} has the role {spec.role!r}, which no engine of this task has there"
        elif spec.role != want[0]:
            yield f"{place} has the role {spec.role!r}; it must be {want[0]!r}"
        elif spec.dtype != want[1]:
            yield f"{place}.dtype is {spec.dtype!r}; it must be {want[1]!r}"
        elif spec.shape != want[2]:
            yield f"{place}.shape is {words_of(spec.shape)!r}; it must be {words_of(want[2])!r}"
        elif not spec.name or spec.name in names:
            yield f"{place}.name is empty, or another tensor's too"
        names.add("" if spec is None else spec.name)
