"""Which engine a bundle holds: prompts go over to every bundle of the same one."""

from __future__ import annotations

import hashlib

import msgspec

from ptdeploy.bundle.schema import MODEL, Manifest
from ptdeploy.bundle.whose import OF_GRAPH


def engine_sha256(manifest: Manifest) -> str:
    """SHA-256, in hexadecimal, of what runs: the graph's files by role and hash, its signature.

    Where the files lie in the bundle, and which prompts are beside them, plays no part.
    """
    files = sorted((one.role, one.sha256) for one in manifest.files if one.role in OF_GRAPH)
    graph = manifest.graphs[MODEL]
    told = msgspec.json.encode({"files": files, "inputs": graph.inputs, "outputs": graph.outputs})
    return hashlib.sha256(told).hexdigest()
