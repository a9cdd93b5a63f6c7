"""Two bundles whose engines are the same may take each other's prompts; no others may."""

from __future__ import annotations

import msgspec
import pytest

from ptdeploy.bundle import engine_sha256, read_bundle


@pytest.fixture
def manifest(compiled):
    return read_bundle(compiled("bert", "SEQ_CLS").bundle).manifest


def test_where_files_lie_and_what_prompts_there_are_changes_no_engine(manifest):
    moved = [msgspec.structs.replace(one, path=f"x/{one.path}") for one in manifest.files]
    prompt = msgspec.structs.replace(manifest.prompt, sha256="0" * 64)
    # A prompt may have the graph's name.
    other = [
        msgspec.structs.replace(one, of="model", sha256="0" * 64) if one.of == "default" else one
        for one in reversed(moved)
    ]
    changed = msgspec.structs.replace(
        manifest, files=tuple(other), prompts={"model": prompt}, default_prompt="model"
    )
    assert engine_sha256(changed) == engine_sha256(manifest)


def test_another_file_of_the_graph_is_another_engine(manifest):
    for at, entry in enumerate(manifest.files):
        files = list(manifest.files)
        files[at] = msgspec.structs.replace(entry, sha256="0" * 64)
        same = engine_sha256(msgspec.structs.replace(manifest, files=tuple(files)))
        assert (same == engine_sha256(manifest)) == (entry.role not in ("model", "weights"))


def test_another_signature_is_another_engine(manifest):
    graph = msgspec.structs.replace(manifest.graph, inputs=manifest.graph.inputs[::-1])
    changed = msgspec.structs.replace(manifest, graphs={"model": graph})
    assert engine_sha256(changed) != engine_sha256(manifest)
