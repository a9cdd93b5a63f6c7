"""TensorRT's session over a CUDA that runs on the host: what it does where something fails."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from support.gpu import BROKEN, MODULE, NO_MEMORY, FakeContext, FakeCuda, FakeEngine, session

from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.deserialize import _contexts, refuse_too_large
from ptdeploy.backends.trt.engine_file import Profile
from ptdeploy.backends.trt.session import TrtSession
from ptdeploy.backends.trt.vendor import Vendor
from ptdeploy.errors import EngineFault, OutOfMemory


@pytest.fixture
def api(monkeypatch) -> FakeCuda:
    # What earlier tests left is freed by the CUDA that it came from.
    gc.collect()
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    yield fake
    gc.collect()


def same(context: FakeContext) -> FakeContext:
    return context


def doubles(step, given: np.ndarray, got: np.ndarray, value: int) -> bool:
    given[:] = value
    step()
    return got.tolist() == [2 * value] * given.size


def bound(opened) -> tuple:
    given, got = np.zeros(3, np.int64), np.zeros(3, np.int64)
    return opened.bind({"x": given}, {"y": got}), given, got


def count(api: FakeCuda, name: str) -> int:
    return [called for called, _ in api.log].count(name)


def test_a_step_is_recorded_once_and_launched_from_then_on(api):
    step = bound(session(api, same))
    assert all(doubles(*step, value) for value in range(6))
    assert count(api, "cudaStreamBeginCapture") == 1
    assert count(api, "cudaGraphLaunch") == 4
    assert not api.graphs


@pytest.mark.parametrize(
    "fails",
    [
        {"cudaStreamBeginCapture": BROKEN},
        {"cudaStreamEndCapture": BROKEN},
        {"cudaGraphInstantiate": BROKEN},
        {"cudaGraphInstantiate": NO_MEMORY},
        {},
    ],
    ids=str,
)
def test_a_step_that_cannot_be_recorded_is_tried_once_and_goes_on_plainly(api, fails):
    def made(context: FakeContext) -> FakeContext:
        context.refuses_while_recorded = not fails
        return context

    step = bound(session(api, made))
    api.fails.update(fails)
    assert all(doubles(*step, value) for value in range(6))
    assert count(api, "cudaStreamBeginCapture") == 1
    assert count(api, "cudaGraphLaunch") == 0
    # What was recorded of it is gone, and so is CUDA's memory of the failure.
    assert not api.graphs
    assert not fails or count(api, "cudaGetLastError") == 1


class Cycle:
    """Memory on the GPU that only a collection frees."""

    def __init__(self) -> None:
        self.block, self.me = cuda.Block(16), self


def test_no_garbage_is_collected_until_a_recording_has_ended(api):
    """Whether it would be depends on how near the collector was to its next collection."""
    stream, live, while_recorded = cuda.Stream(), [], []
    free = FakeCuda._cudaFree

    def noted(self, pointer):
        while_recorded.append(self._recording is not None)
        return free(self, pointer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCuda, "_cudaFree", noted)
        for _ in range(3000):
            Cycle()
            live.append([])
            stream.capture(lambda: None)
    assert len(while_recorded) > 1000
    assert True not in while_recorded
    assert gc.isenabled()


def test_two_threads_that_record_at_once_keep_the_collector_off_until_both_have_ended(api):
    first, second, states = cuda.Stream(), cuda.Stream(), []
    begun, ended = threading.Event(), threading.Event()

    def longer() -> None:
        begun.set()
        assert ended.wait(10)
        states.append(gc.isenabled())

    thread = threading.Thread(target=lambda: second.capture(longer))

    def shorter() -> None:
        thread.start()
        assert begun.wait(10)

    first.capture(shorter)
    ended.set()
    thread.join()
    assert states == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off_after_a_recording(api):
    gc.disable()
    try:
        cuda.Stream().capture(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_session_stays_on_the_gpu_that_it_was_opened_on(api):
    api.cudaSetDevice(1)
    contexts: list[FakeContext] = []

    def made(context: FakeContext) -> FakeContext:
        contexts.append(context)
        return context

    opened = session(api, made)
    before = len(api.log)
    found = {}

    def elsewhere() -> None:
        placed = opened.place(np.arange(4))
        found["run"] = opened.run({"x": placed})["y"].tolist()
        found["empty"] = opened.empty_outputs({"x": (4,)})["y"].shape
        step = bound(opened)
        found["steps"] = all(doubles(*step, value) for value in range(4))
        found["device"] = api.device

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == {"run": [0, 2, 4, 6], "empty": (4,), "steps": True, "device": 0}
    about = ("cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaGraphLaunch")
    used = {name: device for name, device in api.log[before:] if name in about}
    assert used == dict.fromkeys(used, 1)
    assert used.keys() == {
        "cudaMalloc",
        "cudaMallocHost",
        "cudaStreamCreateWithFlags",
        "cudaGraphLaunch",
    }
    assert {device for context in contexts for device in context.runs_on} == {1}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.)", OutOfMemory),
        ("Error Code 1: Cuda Runtime (out of memory)", OutOfMemory),
        ("Error Code 3: the plan wants another GPU", EngineFault),
    ],
)
@pytest.mark.parametrize("gives_none", [True, False])
def test_why_a_context_cannot_be_made_is_said_in_tensorrts_words(api, said, error, gives_none):
    def made(context: FakeContext) -> FakeContext | None:
        context.refuses = said
        if not gives_none:
            return context
        context.set_optimization_profile_async(0, 0)
        return None

    opened = session(api, made)
    for use in (lambda: opened.run({"x": np.zeros(2, np.int64)}), bound(opened)[0]):
        with pytest.raises(error, match=said.split(":")[0]) as refusal:
            use()
        assert isinstance(refusal.value, OutOfMemory) is (error is OutOfMemory)
        if error is OutOfMemory:
            # Fewer rows would not help: it is made for the largest request.
            assert "9461 MiB for the largest request that its profile requests takes" in str(
                refusal.value
            )
            assert "--profile" in refusal.value.fix


@pytest.mark.parametrize(
    ("reason", "errors"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", ()),
        ("cuda error", ("Error Code 1: Cuda Runtime (out of memory)",)),
        ("insufficient gpu memory", ()),
    ],
)
def test_a_plan_that_the_gpu_has_no_room_for_is_not_called_unfit_for_it(reason, errors):
    vendor = SimpleNamespace(errors=list(errors))
    with pytest.raises(OutOfMemory, match=r"^Memory ran out on cuda: the plan does not fit\."):
        refuse_too_large(vendor, reason, "the plan")
    refuse_too_large(SimpleNamespace(errors=["the plan wants another GPU"]), "cuda error", "it")


class Dying:
    """Says in `log` when it is gone."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def __del__(self) -> None:
        self._log.append(self._name)


class Kernels(Dying):
    def serialize(self):
        return None


def test_kernels_outlive_the_execution_contexts_that_run_them(api, monkeypatch, tmp_path):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path))
    log: list[str] = []
    errors: list[str] = []
    strategies = SimpleNamespace(ON_PROFILE_CHANGE=1, EAGER=1, LAZY=0)
    module = SimpleNamespace(
        **vars(MODULE),
        ExecutionContextAllocationStrategy=strategies,
        DynamicShapesKernelSpecializationStrategy=strategies,
    )

    class Engine(FakeEngine):
        def create_runtime_config(self):
            return SimpleNamespace(
                set_execution_context_allocation_strategy=lambda strategy: None,
                create_runtime_cache=lambda: Kernels(log, "kernels"),
                # Whether the library keeps it is not known.
                set_runtime_cache=lambda kernels: True,
            )

        def create_execution_context(self, config):
            context = FakeContext(api, errors)
            context.dying = Dying(log, "context")
            return context

    vendor = Vendor("rtx", module, "1.7.1.116", None, errors)
    profile = Profile("requests", {"x": ((1,), (4,), (8,))})
    info, device = SimpleNamespace(profiles=(profile,)), cuda.Device("a GPU", "8.9", 1)
    opened = TrtSession(
        vendor, engine := Engine(), (profile,), *_contexts(vendor, engine, info, "", device)
    )
    step = bound(opened)[0]
    step()
    opened.run({"x": np.zeros(2, np.int64)})
    del step, opened
    gc.collect()
    assert log == ["context", "context", "kernels"]


def test_slots_are_written_before_the_memory_that_they_come_from_is_freed(api):
    stream = cuda.Stream()
    memory = cuda.place(np.zeros((2, 1, 3, 2), np.float32), stream)
    memory.write_slots(np.array([0, 2]), cuda.place(np.ones((2, 1, 1, 2), np.float32), stream))
    gc.collect()
    calls = [name for name, _ in api.log]
    last_copy = len(calls) - calls[::-1].index("cudaMemcpy2DAsync")
    assert "cudaStreamSynchronize" in calls[last_copy : calls.index("cudaFree")]
    assert memory.read()[:, 0, :, 0].tolist() == [[1, 0, 0], [0, 0, 1]]
