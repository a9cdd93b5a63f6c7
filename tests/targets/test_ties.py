"""Threads that are tied to cores, where PTDEPLOY_PIN=1 says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.backends import get_backend
from ptdeploy.backends.ties import Seat, tied_cpus
from ptdeploy.bundle import read_bundle

CORES = len(os.sched_getaffinity(0))
ROW = [5, 6, 7]


def test_a_thread_has_one_hardware_thread_of_a_core_of_its_own(monkeypatch, tmp_path):
    assert tied_cpus() is None
    monkeypatch.setenv("PTDEPLOY_PIN", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {2, 3, 6, 7, 9})
    for cpu, siblings in {2: "2,6", 3: "3,7", 6: "2,6", 7: "3,7"}.items():
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert tied_cpus(3, tmp_path) == (2, 3, 9)
    assert tied_cpus(2, tmp_path) == (2, 3)
    with pytest.raises(ptdeploy.InputError, match=r"4 threads cannot have a core each: .* has 3\."):
        tied_cpus(4, tmp_path)


def affinities() -> dict[int, frozenset[int]]:
    """Where each thread of this process may run."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    return {thread: frozenset(os.sched_getaffinity(thread)) for thread in threads}


@pytest.mark.skipif(CORES < 2, reason="a second thread needs a second core")
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_a_tied_engine_answers_the_same_and_leaves_its_caller_free(compiled, monkeypatch, target):
    bundle = compiled("bert", "SEQ_CLS", target=target).bundle
    free = ptdeploy.load(bundle, threads=2)
    expected = free.logits([ROW])[0].tobytes()
    before = affinities()
    assert len(set(before.values())) == 1
    monkeypatch.setenv("PTDEPLOY_PIN", "1")
    tied = ptdeploy.load(bundle, threads=2)
    cpus = tied_cpus(2)
    assert cpus is not None
    assert tied.logits([ROW])[0].tobytes() == expected
    after = affinities()
    assert [where for thread, where in after.items() if thread not in before and len(where) == 1]
    assert {after[thread] for thread in before if thread in after} == set(before.values())


def test_a_profile_is_of_an_engine_whose_caller_is_tied_too(compiled, monkeypatch):
    bundle = compiled("bert", "SEQ_CLS").bundle
    backend = get_backend("ort")
    for value in ("0", "1"):
        monkeypatch.setenv("PTDEPLOY_PIN", value)
        with backend.profiled(read_bundle(bundle), "cpu", 1) as opened:
            assert (opened.session._seat is not None) is (value == "1")


@pytest.mark.skipif(CORES < 2, reason="a second thread needs a second core")
def test_a_tied_decoder_writes_the_same(compiled, monkeypatch):
    bundle = compiled("qwen2", "CAUSAL_LM").bundle
    rows = [ROW, ROW[:1]]
    free = [one.token_ids for one in ptdeploy.load(bundle, threads=2).generate(rows, 6)]
    monkeypatch.setenv("PTDEPLOY_PIN", "1")
    tied = ptdeploy.load(bundle, threads=2)
    where: list[set[int]] = []

    @contextmanager
    def looked_at(seat: Seat) -> Iterator[None]:
        with taken(seat):
            where.append(os.sched_getaffinity(0))
            yield

    taken = Seat.taken
    monkeypatch.setattr(Seat, "taken", looked_at)
    assert [one.token_ids for one in tied.generate(rows, 6)] == free
    cpus = tied_cpus(2)
    assert cpus is not None
    assert len(where) >= max(map(len, free)), "the prefill and each step"
    assert all(one == {cpus[0]} for one in where)


def test_one_caller_at_a_time_is_tied():
    mine = os.sched_getaffinity(0)
    cpu = min(mine)
    seat = Seat(cpu)

    def where() -> set[int]:
        with seat.taken():
            return os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as pool:
        # A thread has the affinity of the one that starts it.
        assert pool.submit(where).result() == {cpu}
        with seat.taken():
            assert os.sched_getaffinity(0) == {cpu}
            assert pool.submit(where).result() == mine
    assert os.sched_getaffinity(0) == mine
    with pytest.raises(KeyError), seat.taken():
        raise KeyError
    assert os.sched_getaffinity(0) == mine
    assert where() == {cpu}


def test_a_caller_that_may_not_run_there_stays_where_it_is(monkeypatch):
    tied: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: tied.append(cpus))
    with Seat(0).taken():
        assert tied == []
    assert tied == []


def test_a_system_that_ties_no_thread_costs_no_request(monkeypatch):
    def refuse(thread: int, cpus: set[int]) -> None:
        raise PermissionError

    seat = Seat(min(os.sched_getaffinity(0)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", refuse)
        for _ in range(2):
            with seat.taken():
                pass
    with seat.taken():
        assert len(os.sched_getaffinity(0)) == 1
