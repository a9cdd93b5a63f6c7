"""A bundle's ONNX, held against its manifest before an engine reads it."""

from __future__ import annotations

import os

from ptdeploy.backends.onnx_file import read_onnx_file
from ptdeploy.bundle import Bundle
from ptdeploy.bundle.signature import AGAIN
from ptdeploy.errors import BundleError


def check_onnx(bundle: Bundle) -> None:
    """Raises BundleError unless every file that a graph names is one of the bundle's.

    Engines read whatever lies beside the graph; only what the manifest lists has a hash. The
    words that the graph looks token ids up in must be the manifest's, too.
    """
    entry, model, opened = bundle.entry("model"), bundle.file("model"), bundle.opened("model")
    if entry is None or opened is None:
        raise BundleError(f"{bundle.path}: lists no file with the role 'model'.")
    try:
        roles = {spec.role: spec.name for spec in bundle.manifest.graph.inputs}
        found = read_onnx_file(opened, roles["ids"])
    except (ValueError, OSError) as error:
        raise BundleError(f"{model}: is no ONNX file ({error}).", AGAIN) from error
    listed = {os.path.normpath(one.path) for one in bundle.manifest.files}
    for name in sorted(found.external):
        place = os.path.join(os.path.dirname(entry.path), name)
        if "\0" in name or os.path.normpath(place) not in listed:
            raise BundleError(
                f"{model}: takes weights from {name!r}, which the manifest does not list.", AGAIN
            )
    words, wanted = found.words, bundle.manifest.limits.vocab_size
    # Virtual tokens stand right behind the words.
    if words is not None and (words < wanted or ("table" in roles and words != wanted)):
        raise BundleError(
            f"{model}: has {words} words, but the manifest's vocab_size is {wanted}.", AGAIN
        )
