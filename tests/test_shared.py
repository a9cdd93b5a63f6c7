"""What tests share is made once, whoever asks at the same time, and made again where it failed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.shared import Shared


def test_what_several_ask_for_at_once_is_made_once(tmp_path):
    made = []

    def fill(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        (folder / "whole").touch()

    def ask(key: str) -> Path:
        # Each as a process would: with its own view of the same folder.
        folder = Shared(tmp_path / "shared").folder(key, fill)
        assert (folder / "whole").exists()
        return folder

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(ask, ["one", "one", "other", "one"]))
    assert sorted(made) == sorted(set(folders))
    assert len(made) == 2


def test_what_failed_is_made_again_from_nothing(tmp_path):
    shared = Shared(tmp_path / "shared")

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        shared.folder("one", fail)
    folder = shared.folder("one", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
