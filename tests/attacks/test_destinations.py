"""Nothing is deleted or replaced that is not a bundle of ours."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from attacks.kill_points import as_version, publish_copy, rebuild_in_place, state

import ptdeploy.files
from ptdeploy.bundle import check_destination, publish, read_bundle, stage_bundle
from ptdeploy.bundle.working_folder import working_folder
from ptdeploy.errors import OutputError


@pytest.fixture
def versions(compiled, tmp_path) -> tuple[Path, Path]:
    """An older bundle and a newer one."""
    source = compiled("gpt2", "CAUSAL_LM").bundle
    return as_version(source, tmp_path / "v1", "old"), as_version(source, tmp_path / "v2", "new")


@pytest.fixture(params=["exchange", "no exchange"])
def system(request, monkeypatch) -> None:
    """A file system that can exchange two folders, and one that cannot."""
    if request.param == "no exchange":
        monkeypatch.setattr(ptdeploy.files, "_renameat2", lambda *_: False)


def appears_while_it_works(place: Path, new: Path, force: bool, appear) -> None:
    bundle = read_bundle(new)
    destination = check_destination(place, force)
    with stage_bundle(destination) as staging:
        for entry in bundle.manifest.files:
            bundle.copy(entry, staging / entry.path)
        appear()
        publish(staging, bundle.manifest, destination)


def a_folder_with_a_file(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("kept")


def a_file(place: Path) -> None:
    place.write_text("kept")


def a_link(place: Path) -> None:
    place.symlink_to("elsewhere")


def an_empty_folder(place: Path) -> None:
    place.mkdir()


@pytest.mark.parametrize("appear", [a_folder_with_a_file, a_file, a_link, an_empty_folder])
@pytest.mark.parametrize("force", [False, True])
def test_what_appears_while_a_compilation_works_is_kept(versions, tmp_path, system, appear, force):
    place = tmp_path / "out"
    if force and appear is an_empty_folder:
        appears_while_it_works(place, versions[1], force, lambda: appear(place))
        assert state(place) == "new"
        return
    with pytest.raises(OutputError) as refusal:
        appears_while_it_works(place, versions[1], force, lambda: appear(place))
    assert refusal.value.exit_code == 2
    if appear is a_folder_with_a_file:
        assert (place / "thesis.txt").read_text() == "kept"
    elif appear is a_file:
        assert place.read_text() == "kept"
    elif appear is a_link:
        assert os.readlink(place) == "elsewhere"
    else:
        assert list(place.iterdir()) == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "v1", "v2"]


def test_of_two_compilations_to_one_place_the_second_fails(versions, tmp_path, system):
    place = tmp_path / "out"
    first, second = versions

    def the_other_is_done() -> None:
        appears_while_it_works(place, first, False, lambda: None)

    with pytest.raises(OutputError, match="exists already"):
        appears_while_it_works(place, second, False, the_other_is_done)
    assert state(place) == "old"


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "sub/notes.txt", "empty/", ".git/HEAD", "link"),
        *("prompts/notes.txt", "prompts/default/notes.txt", "prompts/other/prompt.safetensors"),
    ],
)
@pytest.mark.parametrize("when", ["before", "while it works"])
def test_a_file_of_others_in_the_older_bundles_folder_is_named_and_kept(
    versions, tmp_path, system, name, when
):
    place = tmp_path / "out"
    shutil.copytree(versions[0], place)

    def appear() -> None:
        if name == "link":
            (place / name).symlink_to("/nowhere")
        elif name.endswith("/"):
            (place / name).mkdir()
        else:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("kept")

    if when == "before":
        appear()
    with pytest.raises(OutputError, match=rf"holds '{Path(name).parts[0]}"):
        appears_while_it_works(
            place, versions[1], True, appear if when == "while it works" else lambda: None
        )
    assert os.path.lexists(place / name)
    assert state(place) == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "v1", "v2"]


def a_file_inside(place: Path) -> None:
    (place / "thesis.txt").write_text("kept")


def a_file_in_its_place(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("kept")


@pytest.mark.parametrize(
    ("comes", "reason"),
    [(a_file_inside, r"holds 'thesis\.txt'"), (a_file_in_its_place, "is not a folder")],
)
@pytest.mark.parametrize("exchanges", [True, False])
def test_what_appears_between_the_last_look_and_the_move_is_kept(
    versions, tmp_path, monkeypatch, exchanges, comes, reason
):
    place = tmp_path / "out"
    shutil.copytree(versions[0], place)
    honest, looked = ptdeploy.files._renameat2, []

    def too_late(source: Path, destination: Path, flags: int) -> bool:
        if flags == ptdeploy.files._EXCHANGE and not looked:
            looked.append(place)
            comes(place)
        return exchanges and honest(source, destination, flags)

    monkeypatch.setattr(ptdeploy.files, "_renameat2", too_late)
    with pytest.raises(OutputError, match=reason):
        publish_copy(versions[1], place)
    assert looked
    left = place if place.is_file() else place / "thesis.txt"
    assert left.read_text() == "kept"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "v1", "v2"]


def test_a_listed_name_below_a_link_is_never_followed(versions, tmp_path, system):
    place, outside = tmp_path / "out", tmp_path / "outside"
    shutil.copytree(versions[0], place)
    outside.mkdir()
    (outside / "thesis.txt").write_text("kept")
    (place / "sub").symlink_to(outside)
    manifest = json.loads((place / "manifest.json").read_text())
    for path in ("sub/thesis.txt", "../outside/thesis.txt", str(outside / "thesis.txt")):
        manifest["files"].append({"path": path, "role": "parity", "size": 4, "sha256": ""})
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match="holds 'sub'"):
        publish_copy(versions[1], place)
    (place / "sub").unlink()
    publish_copy(versions[1], place)
    assert (outside / "thesis.txt").read_text() == "kept"


def test_a_bundle_of_another_version_and_its_completed_parity_may_go(versions, tmp_path, system):
    place = tmp_path / "out"
    shutil.copytree(versions[0], place)
    (place / "parity.json").write_text("{}")
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2, "old": 1}))
    publish_copy(versions[1], place)
    assert state(place) == "new"


def test_links_of_an_older_bundle_go_and_what_they_lead_to_stays(versions, tmp_path, system):
    place = tmp_path / "out"
    place.mkdir()
    for file in [one for one in versions[0].rglob("*") if one.is_file()]:
        link = place / file.relative_to(versions[0])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    publish_copy(versions[1], place)
    assert (state(place), state(versions[0])) == ("new", "old")


def test_a_rebuild_replaces_only_the_bundle_it_was_made_from(versions, tmp_path, system):
    place = tmp_path / "out"
    shutil.copytree(versions[0], place)
    bundle = read_bundle(place)
    destination = check_destination(place, True, bundle.manifest_bytes())
    with stage_bundle(destination) as staging:
        for entry in bundle.manifest.files:
            bundle.copy(entry, staging / entry.path)
        publish_copy(versions[1], place)
        with pytest.raises(OutputError, match="has become another bundle"):
            publish(staging, bundle.manifest, destination)
    assert state(place) == "new"


def test_a_rebuild_through_a_link_rebuilds_what_it_leads_to(versions, tmp_path, system):
    (tmp_path / "live").symlink_to("v1")
    rebuild_in_place(versions[1], tmp_path / "live")
    assert os.readlink(tmp_path / "live") == "v1"
    assert state(versions[0]) == "new"


def test_a_working_folder_of_a_living_process_is_left_alone(versions, tmp_path):
    place = tmp_path / "out"
    destination = check_destination(place, False)
    with stage_bundle(destination) as staging:
        (staging / "model.onnx").write_text("half")
        publish_copy(versions[0], place)
        assert (staging / "model.onnx").read_text() == "half"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out", "v1", "v2"]


def test_a_working_folder_that_somebody_clears_is_not_worked_in(tmp_path, monkeypatch):
    """Its lock is taken between our making it and our locking it."""
    flock, taken = fcntl.flock, []

    def after_another(descriptor: int, how: int) -> None:
        if not taken:
            (lock,) = tmp_path.glob(".out.*/lock")
            taken.append(lock.open("r+"))
            flock(taken[0], fcntl.LOCK_EX)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_another)
    with working_folder(tmp_path, "out") as working, (working / "lock").open("r+") as lock:
        with pytest.raises(BlockingIOError):
            flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert Path(taken[0].name).parent != working
    taken[0].close()


def test_a_folder_that_only_looks_like_a_working_folder_is_left_alone(versions, tmp_path):
    mine = tmp_path / ".out.0123abcd"
    mine.mkdir()
    (mine / "thesis.txt").write_text("kept")
    also_mine = tmp_path / ".out.4567abcd"
    also_mine.mkdir()
    (also_mine / "lock").symlink_to(mine / "thesis.txt")
    locked = tmp_path / ".out.89ababcd"
    locked.mkdir()
    with (locked / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        publish_copy(versions[0], tmp_path / "out")
    assert (mine / "thesis.txt").read_text() == "kept"
    assert (also_mine / "lock").is_symlink()
    assert (locked / "lock").exists()


def test_what_was_left_for_a_long_name_is_not_anothers(versions, tmp_path):
    long = "n" * 230
    mine, other = tmp_path / f"{long}1", tmp_path / f"{long}2"
    with working_folder(tmp_path, mine.name) as working:
        shutil.copytree(versions[0], working / "old")
        left = shutil.copytree(working, tmp_path / "left")
    shutil.rmtree(mine)
    os.rename(left, working)
    check_destination(other, False)
    assert not other.exists()
    check_destination(mine, True)
    assert state(mine) == state(versions[0])
