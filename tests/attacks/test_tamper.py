"""Changed bundles and several threads: a small part of what tamper.py and soak.py run."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.soak import soak
from attacks.tamper import make_bundles, on_openvino, tamper
from support import native


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bundles(tmp_path_factory.mktemp("attacked"))


def test_a_changed_bundle_is_refused_or_answers_as_before(attacked, tmp_path):
    counts, wrong = tamper(attacked, tmp_path, 40, 1, None)
    assert wrong == []
    assert {kind for _, kind in counts} >= {"refused", "harmless"}


def test_python_and_cpp_say_the_same_of_a_changed_bundle(attacked, tmp_path, built):
    _, wrong = tamper(attacked, tmp_path, 40, 2, str(built / "probe"))
    assert wrong == []


def test_python_and_cpp_say_the_same_of_a_changed_bundle_of_openvino(attacked, tmp_path, built):
    native.need_openvino()
    (tmp_path / "openvino").mkdir()
    bundles = on_openvino(attacked, tmp_path / "openvino")
    _, wrong = tamper(bundles, tmp_path, 30, 3, str(built / "probe"))
    assert wrong == []


def test_threads_get_the_answers_that_each_would_get_alone(attacked):
    one, _ = soak(attacked, 300, 4, 0)
    assert one.wrong == []
    assert len(one.counts) == 10
