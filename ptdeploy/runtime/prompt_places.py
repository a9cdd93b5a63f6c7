"""Where a prompt lies that is loaded, once it was found to fit an engine that is open."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ptdeploy.bundle import Bundle, Manifest, engine_sha256, is_pack, read_bundle, read_pack
from ptdeploy.errors import BundleError, InputError
from ptdeploy.runtime.layout import check_manifest
from ptdeploy.runtime.prompt_choice import in_words
from ptdeploy.runtime.prompt_store import PromptPlace


def prompt_place(
    own: Bundle,
    path: str | Path,
    name: str | None,
    problems: Callable[[Manifest], Iterable[str]],
) -> PromptPlace:
    """Where the prompt lies that the pack at `path` is, or that the bundle there has under a name:
    unless told the only one, or the default one.

    `problems` says what is wrong with a manifest for the engine of `own`. Raises InputError if
    there is no such prompt, BundleError if what is there is damaged, its engine is another one, or
    the prompt does not fit. The C++ library has the same rules, in the same order and the same
    words (prompt_place.cc).
    """
    theirs, engine = _read(Path(path), own.manifest)
    found = _found(theirs, None if is_pack(Path(path)) else name)
    if engine != engine_sha256(own.manifest):
        raise BundleError(
            f"{theirs.path}: its engine is another one than that of {own.path}.",
            "A prompt goes over to a bundle of the same engine: the same base model, compiled by "
            "the same versions for the same target. ptdeploy prompt add proves one over another.",
        )
    # Of their manifest what is the prompt's; what an engine has to be like, this one's says.
    manifest = msgspec.structs.replace(
        own.manifest,
        prompts={found: theirs.manifest.prompts[found]},
        default_prompt=found,
        files=theirs.manifest.files,
    )
    check_manifest(Bundle(theirs.path, manifest), problems(manifest))
    return PromptPlace(theirs.path, manifest, found)


def _read(path: Path, engine: Manifest) -> tuple[Bundle, str]:
    """A bundle, or a pack as one over that engine; and the hash of the engine it was proven over.

    The prompt's file is hashed when the prompt is read.
    """
    if not os.path.isdir(path):
        raise BundleError(f"{path}: no such pack or bundle.")
    if is_pack(path):
        pack = read_pack(path, hashes=False)
        return pack.over(engine), pack.manifest.engine_sha256
    bundle = read_bundle(path, hashes=False)
    return bundle, engine_sha256(bundle.manifest)


def _found(theirs: Bundle, name: str | None) -> str:
    prompts, default = theirs.manifest.prompts, theirs.manifest.default_prompt
    if name is None and len(prompts) == 1:
        return next(iter(prompts))
    found = default if name is None else name
    if found in prompts:
        return str(found)
    what = f"prompt {name!r}" if name is not None else "default prompt"
    raise InputError(
        f"{theirs.path}: has no {what}; it has {in_words(prompts)}.",
        "Give the name that it has there; a pack's prompt takes any name.",
    )
