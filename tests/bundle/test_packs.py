"""A pack is read as strictly as a bundle: what it says is what lies in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.damage import edit
from support.pack_damage import PACK_DAMAGE, Change

from ptdeploy.bundle import pack_schema, read_pack
from ptdeploy.errors import BundleError


@pytest.fixture
def pack(packed, tmp_path) -> Path:
    shutil.copytree(packed("bert", "SEQ_CLS").path, tmp_path / "pack")
    return tmp_path / "pack"


def test_a_pack_says_what_it_is_and_where_it_fits(pack):
    found = read_pack(pack).manifest
    assert (found.name, found.task, found.precision) == ("other", "SEQ_CLS", "fp32")
    assert found.prompt.num_virtual_tokens == 3
    assert len(found.prompt.labels) == 5
    assert found.prompt.parity is not None
    assert [one.path for one in found.files] == [
        "prompt.safetensors",
        "reference.safetensors",
        "parity.json",
    ]


def test_a_pack_lies_anywhere(pack, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    moved = pack.rename(tmp_path / "deep" / "er" / "x")
    assert read_pack(moved).manifest.name == "other"
    assert str(tmp_path) not in (moved / "manifest.json").read_text()


def test_the_published_schema_is_the_readers_own(pack):
    published = Path(__file__).parents[2] / "docs" / "pack.schema.json"
    assert published.read_bytes() == pack_schema(), "run: make schema"
    jsonschema = pytest.importorskip("jsonschema")
    manifest = json.loads((pack / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads(published.read_text()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *PACK_DAMAGE,
        (lambda m: m.update(format="ptdeploy-bundle"), "is a bundle, not a pack."),
        (lambda m: m.update(format="ptdeploy"), "reads 'ptdeploy-prompt' version 1"),
        (
            lambda m: m["files"][0].update(sha256="0" * 64),
            "its SHA-256 is not the manifest's",
        ),
    ],
)
def test_a_pack_that_says_what_is_not_so_is_refused(pack, change: Change, reason):
    edit(pack, change)
    with pytest.raises(BundleError) as refused:
        read_pack(pack)
    assert reason in str(refused.value)


@pytest.mark.parametrize("name", ["prompt.safetensors", "reference.safetensors", "parity.json"])
def test_a_changed_byte_is_refused(pack, name):
    content = bytearray((pack / name).read_bytes())
    content[-1] ^= 1
    (pack / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"its SHA-256 is not the manifest's"):
        read_pack(pack)


def test_no_folder_and_no_manifest_are_no_packs(tmp_path):
    with pytest.raises(BundleError, match="no such pack folder"):
        read_pack(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no manifest\.json, so it is no pack"):
        read_pack(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([]))
    with pytest.raises(BundleError, match="not a valid manifest"):
        read_pack(tmp_path)
