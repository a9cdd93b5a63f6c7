"""A CUDA runtime and a TensorRT engine on the host, with the calls that this project makes.

What is enqueued runs at once, or when its graph is launched if it was recorded. An engine gives
y = 2 x.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ptdeploy.backends.trt.engine_file import Profile
from ptdeploy.backends.trt.session import TrtSession
from ptdeploy.backends.trt.vendor import Vendor

OK, NO_MEMORY, BROKEN = "cudaSuccess", "cudaErrorMemoryAllocation", "cudaErrorUnknown"


class FakeCuda:
    """cuda.bindings.runtime. `log` has the name of each call and its thread's GPU."""

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=NO_MEMORY)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.fails: dict[str, str] = {}
        self.graphs: set[int] = set()
        self._memory: dict[int, Any] = {}
        self._recorded: dict[int, list[Callable[[], object]]] = {}
        self._mine = threading.local()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        call = getattr(type(self), f"_{name}", None)
        if call is None:
            raise AttributeError(name)

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.log.append((name, self.device))
            if name not in self.fails:
                return (OK, *call(self, *arguments))
            if name == "cudaStreamEndCapture":
                self._recording = None
            return (self.fails[name], None)

        called.__name__ = name
        return called

    @property
    def device(self) -> int:
        return getattr(self._mine, "device", 0)

    @property
    def _recording(self) -> list[Callable[[], object]] | None:
        """What this thread has recorded so far; None while it does not."""
        return getattr(self._mine, "recording", None)

    @_recording.setter
    def _recording(self, recorded: list[Callable[[], object]] | None) -> None:
        self._mine.recording = recorded

    def enqueue(self, work: Callable[[], object]) -> None:
        work() if self._recording is None else self._recording.append(work)

    def _cudaGetDevice(self):
        return (self.device,)

    def _cudaSetDevice(self, device):
        self._mine.device = device
        return ()

    def _cudaGetLastError(self):
        return ()

    def _cudaGetErrorString(self, status):
        return (f"{status} for a test".encode(),)

    def _cudaStreamCreateWithFlags(self, flags):
        return (len(self.log),)

    def _cudaStreamDestroy(self, stream):
        return ()

    def _cudaStreamSynchronize(self, stream):
        return ()

    def _cudaStreamBeginCapture(self, stream, mode):
        self._recording = []
        return ()

    def _cudaStreamEndCapture(self, stream):
        graph, recorded = len(self.log), self._recording
        self._recording = None
        assert recorded is not None
        self._recorded[graph] = recorded
        self.graphs.add(graph)
        return (graph,)

    def _cudaGraphInstantiate(self, graph, flags):
        return (graph,)

    def _cudaGraphDestroy(self, graph):
        self.graphs.remove(graph)
        return ()

    def _cudaGraphExecDestroy(self, instance):
        return ()

    def _cudaGraphLaunch(self, instance, stream):
        for work in self._recorded[instance]:
            work()
        return ()

    def _cudaMalloc(self, size):
        held = ctypes.create_string_buffer(size + 256)
        pointer = -(-ctypes.addressof(held) // 256) * 256
        self._memory[pointer] = held
        return (pointer,)

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, pointer):
        del self._memory[pointer]
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, target, source, size, kind, stream):
        self.enqueue(lambda: ctypes.memmove(target, source, size))
        return ()

    def _cudaMemcpy2DAsync(
        self, target, target_pitch, source, source_pitch, width, height, kind, stream
    ):
        for line in range(height):
            to, from_ = target + line * target_pitch, source + line * source_pitch
            self.enqueue(lambda to=to, from_=from_: ctypes.memmove(to, from_, width))
        return ()


MODULE = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT=0, OUTPUT=1),
    TensorLocation=SimpleNamespace(DEVICE=0, HOST=1),
    DataType=SimpleNamespace(FLOAT=0, HALF=1, BF16=2, INT64=3, INT32=4, BOOL=5),
)


class FakeEngine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> int:
        return int(name == "y")

    def get_tensor_dtype(self, name: str) -> int:
        return MODULE.DataType.INT64

    def get_tensor_location(self, name: str) -> int:
        return MODULE.TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return (9460 << 20) + 1 + index

    def get_aliased_input_tensor(self, name: str) -> None:
        return None


class FakeContext:
    """Its runs fail where `refuses` is not "", with that as TensorRT's reason."""

    def __init__(self, api: FakeCuda, errors: list[str]) -> None:
        self._api, self._errors = api, errors
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self.refuses = ""
        self.refuses_while_recorded = False
        self.runs_on: list[int] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self.refuses:
            self._errors.append(self.refuses)
        return not self.refuses

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.refuses_while_recorded and self._api._recording is not None:
            self._errors.append("it cannot be recorded")
            return False
        self.runs_on.append(self._api.device)
        self._api.enqueue(self._double)
        return True

    def _double(self) -> None:
        x, y = (self._seen(name) for name in "xy")
        y[...] = 2 * x

    def _seen(self, name: str) -> np.ndarray:
        size = int(np.prod(self._shape)) * 8
        held = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(held, np.int64).reshape(self._shape)


def session(api: FakeCuda, made: Callable[[FakeContext], FakeContext | None]) -> TrtSession:
    """A session of that engine; each of its contexts is what `made` makes of a new one."""
    errors: list[str] = []
    vendor = Vendor("rtx", MODULE, "1.7.1.116", None, errors)
    profile = Profile("requests", {"x": ((1,), (4,), (8,))})
    return TrtSession(
        vendor, FakeEngine(), (profile,), lambda _: made(FakeContext(api, errors)), lambda: None
    )
