"""What a fork waits for: no thread of OpenVINO's may hold a lock as the process is copied."""

import hashlib
import subprocess
import sys
import threading

import pytest

from ptdeploy.backends.openvino import stillness
from ptdeploy.backends.openvino.stillness import Passes, wait_for_sleep

linux = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what sleeps")


def in_a_thread(act):
    """Start it; gives the thread, and an event that is set when it is over."""
    over = threading.Event()

    def run():
        act()
        over.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, over


def test_a_fork_waits_for_another_threads_pass_and_a_pass_for_the_fork():
    passes, begun, end, order = Passes(), threading.Event(), threading.Event(), []

    def first():
        with passes.one():
            begun.set()
            end.wait(60)
            order.append("first pass")

    def fork():
        passes.hold()
        order.append("fork")

    def second():
        with passes.one():
            order.append("second pass")

    in_a_thread(first)
    assert begun.wait(60)
    _, held = in_a_thread(fork)
    assert not held.wait(0.1)
    _, ran = in_a_thread(second)
    assert not ran.wait(0.1)
    end.set()
    assert held.wait(60)
    assert not ran.wait(0.1)
    passes.let_go()
    assert ran.wait(60)
    assert order == ["first pass", "fork", "second pass"]


def test_a_thread_that_forks_within_its_own_pass_does_not_wait_for_itself():
    passes = Passes()
    with passes.one():
        passes.hold()
        # As a graph that is compiled again, within a run.
        with passes.one():
            pass
        passes.let_go()
    passes.hold()
    passes.let_go()


def test_a_forked_process_forgets_the_passes_of_threads_that_it_has_not():
    passes, begun = Passes(), threading.Event()

    def never_ends():
        with passes.one():
            begun.set()
            threading.Event().wait()

    in_a_thread(never_ends)
    assert begun.wait(60)
    passes.after_fork()
    passes.hold()
    passes.let_go()
    with passes.one():
        pass


def test_a_thread_of_a_forked_process_that_made_no_pass_yet_may_fork():
    passes = Passes()
    passes.after_fork()
    _, held = in_a_thread(passes.hold)
    assert held.wait(60)


def test_a_pass_within_which_the_process_was_forked_is_waited_for_in_the_child():
    passes = Passes()
    with passes.one():
        passes.after_fork()
        _, held = in_a_thread(passes.hold)
        assert not held.wait(0.1)
    assert held.wait(60)


def test_let_go_more_often_than_held_leaves_passes_free():
    passes = Passes()
    passes.let_go()
    passes.hold()
    passes.let_go()
    _, ran = in_a_thread(lambda: passes.one().__enter__())
    assert ran.wait(60)


@linux
def test_threads_sleep_that_wait_and_not_those_that_work(monkeypatch):
    stop, waits = threading.Event(), threading.Event()

    def work():
        while not stop.is_set():
            hashlib.sha256(bytes(1 << 24))

    sleeper, _ = in_a_thread(waits.wait)
    monkeypatch.setattr(stillness, "_foreign_threads", lambda: {sleeper.native_id})
    assert wait_for_sleep(60)
    worker, over = in_a_thread(work)
    monkeypatch.setattr(
        stillness, "_foreign_threads", lambda: {sleeper.native_id, worker.native_id}
    )
    assert not wait_for_sleep(0.1)
    stop.set()
    assert over.wait(60)
    worker.join()
    # One that has ended is not waited for.
    assert wait_for_sleep(60)
    waits.set()


@linux
def test_threads_of_python_are_no_threads_of_openvino():
    waits = threading.Event()
    thread, _ = in_a_thread(waits.wait)
    assert {thread.native_id, threading.get_native_id()}.isdisjoint(stillness._foreign_threads())
    waits.set()


FORK = """
import os, sys, threading
from ptdeploy.backends.openvino import core as cores
cores.core()
begun, end = threading.Event(), threading.Event()
def work():
    with cores.PASSES.one():
        begun.set()
        end.wait(60)
        print("pass", flush=True)
thread = threading.Thread(target=work)
thread.start()
begun.wait()
threading.Timer(0.2, end.set).start()
if not os.fork():
    print("child", flush=True)
    with cores.PASSES.one():
        os._exit(0)
code = os.waitstatus_to_exitcode(os.wait()[1])
thread.join()
with cores.PASSES.one():
    print("parent", flush=True)
sys.exit(code)
"""


def test_a_process_with_a_core_forks_when_its_passes_are_over():
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", FORK], check=False, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["pass", "child", "parent"]
