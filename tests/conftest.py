"""Fixtures: tiny trained models and their bundles, each compiled once in a session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# It would hide what a program that was started here leaves in its streams.
os.environ.pop("PYTHONUNBUFFERED", None)
# Two cores, and as many processes as pytest-xdist was asked for: torch has its share of them here
# and in what tests start. More threads than cores spin while they wait for each other.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max(2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))
)

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import native, tiny
from support.exports import TO_ONNX, exported_once, kept_exports
from support.shared import Compiled, Packed, Shared
from support.siblings import Siblings
from support.siblings import siblings as make_siblings

from ptdeploy.program import export

# What was imported stays, so that collecting garbage need not look through it each time; nor
# through what tests leave in libraries' caches, which is soon more.
gc.freeze()
_TESTS_TO_A_FREEZE = 100
_done = 0


def pytest_runtest_logfinish() -> None:
    global _done
    _done += 1
    if _done % _TESTS_TO_A_FREEZE == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """What is compiled once for all tests and test processes."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its processes a folder of its own in the session's.
    return Shared((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared")


@pytest.fixture(scope="session", autouse=True)
def _exported_once() -> Iterator[None]:
    with exported_once(kept_exports(native.CACHE / "exports")):
        yield


@pytest.fixture
def exported_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of the export itself: torch traces each program, as it does for users."""
    monkeypatch.setattr(export, "to_onnx", TO_ONNX)


@pytest.fixture(scope="session")
def compiled(shared: Shared) -> Callable[..., Compiled]:
    """`compiled(architecture, task)`: the same bundle however often it is asked for."""
    return shared.compiled


@pytest.fixture(scope="session")
def packed(shared: Shared) -> Callable[..., Packed]:
    """`packed(architecture, task)`: a pack of another prompt over that bundle's engine."""
    return shared.packed


@pytest.fixture(scope="session")
def siblings(shared: Shared) -> Callable[..., Siblings]:
    """`siblings(architecture, task)`: bundles of one engine, whose prompts differ in length, labels
    and kind; `names` are those beside the first."""

    def get(
        architecture: str,
        task: str,
        names: tuple[str, ...] = ("long", "short"),
        options: dict[str, Any] | None = None,
        **how: Any,
    ) -> Siblings:
        return make_siblings(shared, architecture, task, names, options or {}, **how)

    return get


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[..., tiny.Trained]:
    """A tiny trained model of each kind, made once."""
    made: dict[tuple[str, ...], tiny.Trained] = {}

    def get(kind: str, architecture: str = "qwen2", task: str = "CAUSAL_LM") -> tiny.Trained:
        key = (kind, architecture, task)
        if key not in made:
            made[key] = tiny.make(tmp_path_factory.mktemp("k"), architecture, task, kind=kind)
        return made[key]

    return get


@pytest.fixture(scope="session")
def bundles(shared: Shared) -> Callable[[str], Path]:
    """`bundles(kind)`: one of native.KINDS; the causal ones have room for 64 new tokens."""

    def get(kind: str) -> Path:
        architecture, task, options = native.KINDS[kind]
        if task != "CAUSAL_LM" and not options:
            return shared.compiled(architecture, task).bundle
        how = {"max_position_embeddings": 700, **native.CONFIGURED.get(kind, {})}
        return shared.compiled(architecture, task, options, **how).bundle

    return get


@pytest.fixture(scope="session")
def built() -> Path:
    """Where the C++ tests and examples were built."""
    return native.build(native.TESTS, BUILD_SHARED_LIBS="ON", **native.with_openvino())


@pytest.fixture(scope="module")
def probe(built: Path) -> Iterator[native.Probe]:
    """The C++ library, behind a program that answers a request a line."""
    running = native.Probe(str(built / "probe"))
    yield running
    running.close()
