"""A process that may start no more threads is told so, whoever would have started one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import ptdeploy
from ptdeploy.arguments import checked
from ptdeploy.source import weights_hash

SAID = "This process may start no more threads."


class Hashing(ThreadPoolExecutor):
    """That of weights alone."""

    submit = ThreadPoolExecutor.submit


def no_more(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, Hashing], ids=["loading", "hashing"])
def test_a_compilation_that_can_start_no_thread_says_so(compiled, tmp_path, monkeypatch, pool):
    trained = compiled("bert", "SEQ_CLS").trained
    monkeypatch.setattr(weights_hash, "ThreadPoolExecutor", Hashing)
    monkeypatch.setattr(pool, "submit", no_more)
    with pytest.raises(ptdeploy.TargetUnavailable) as refused:
        ptdeploy.compile(
            trained.adapter, target="ort", base=str(trained.base), output=tmp_path / "bundle"
        )
    assert refused.value.problem == SAID
    assert "ulimit -u" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_other_faults_stay_what_they_are():
    @checked()
    def fails() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fails()
