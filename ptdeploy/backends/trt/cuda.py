"""CUDA memory, streams and graphs through cuda-bindings; nothing here knows of TensorRT."""

from __future__ import annotations

import ctypes
import gc
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptdeploy.errors import EngineFault


@dataclass(frozen=True)
class Device:
    """The GPU in use: its name, and its compute capability such as "8.9"."""

    name: str
    compute_capability: str
    memory: int


@cache
def runtime() -> Any:
    """cuda.bindings.runtime. Raises ImportError where it is not installed."""
    from cuda.bindings import runtime

    return runtime


def unavailable() -> str | None:
    """Why no GPU can be used here, in words, or None if one can."""
    try:
        api = runtime()
    except (ImportError, RuntimeError) as error:
        return f"cuda-bindings cannot be loaded: {error}"
    try:
        status, count = api.cudaGetDeviceCount()
    except RuntimeError as error:
        return str(error)
    if status != api.cudaError_t.cudaSuccess:
        return f"CUDA: {_words(api, status)}"
    return None if count else "CUDA finds no GPU"


def device() -> Device:
    """The current GPU. Raises CudaError."""
    api = runtime()
    properties = call(api.cudaGetDeviceProperties, call(api.cudaGetDevice))
    return Device(
        properties.name.split(b"\0")[0].decode(),
        f"{properties.major}.{properties.minor}",
        int(properties.totalGlobalMem),
    )


def current() -> int:
    """The calling thread's current GPU."""
    return int(call(runtime().cudaGetDevice))


@contextmanager
def use(index: int) -> Iterator[None]:
    """Make a GPU the calling thread's current one, and afterwards the earlier one again.

    A thread starts with the first, whatever another thread has chosen.
    """
    before = current()
    if before == index:
        yield
        return
    api = runtime()
    call(api.cudaSetDevice, index)
    try:
        yield
    finally:
        api.cudaSetDevice(before)


class CudaError(EngineFault, RuntimeError):
    """A CUDA call failed. Memory that ran out is a MemoryError instead."""


def call(function: Any, *arguments: Any) -> Any:
    """Call the CUDA runtime; gives what follows the status, alone if it is one thing."""
    status, *results = function(*arguments)
    api = runtime()
    if status != api.cudaError_t.cudaSuccess:
        # It is told here, and to no library that asks later for what failed last.
        api.cudaGetLastError()
    if status == api.cudaError_t.cudaErrorMemoryAllocation:
        raise MemoryError("the GPU has no memory left")
    if status != api.cudaError_t.cudaSuccess:
        raise CudaError(f"{function.__name__}: {_words(api, status)}")
    return results[0] if len(results) == 1 else results


def _words(api: Any, status: Any) -> str:
    _, text = api.cudaGetErrorString(status)
    return text.decode() if isinstance(text, bytes) else str(status)


# How many threads record now, and whether the collector is to run again after the last of them.
_recording, _collects = 0, False
_recording_lock = threading.Lock()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No collection while a thread records: memory that it frees there would end the capture.

    The collector is the process's, so that it stays off until the last thread has recorded.
    """
    global _recording, _collects
    with _recording_lock:
        if not _recording:
            _collects = gc.isenabled()
            gc.disable()
        _recording += 1
    try:
        yield
    finally:
        with _recording_lock:
            _recording -= 1
            if not _recording and _collects:
                gc.enable()


class Stream:
    """A stream of its own, which does not wait for the default one."""

    def __init__(self) -> None:
        api = runtime()
        self.handle = int(call(api.cudaStreamCreateWithFlags, api.cudaStreamNonBlocking))
        self._end = weakref.finalize(self, api.cudaStreamDestroy, self.handle)

    def wait(self) -> None:
        call(runtime().cudaStreamSynchronize, self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """The graph of what `work` enqueues on this stream; nothing of it runs yet."""
        api = runtime()
        # Only this thread's calls count: another may allocate meanwhile.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with _no_collection():
            call(api.cudaStreamBeginCapture, self.handle, mode)
            try:
                work()
            except BaseException:
                # An open capture would make the stream useless to whoever comes next.
                self._drop_capture()
                raise
            recorded = call(api.cudaStreamEndCapture, self.handle)
        return Graph(recorded)

    def _drop_capture(self) -> None:
        api = runtime()
        status, graph = api.cudaStreamEndCapture(self.handle)
        if status == api.cudaError_t.cudaSuccess:
            api.cudaGraphDestroy(graph)
        else:
            api.cudaGetLastError()


class Graph:
    """Work recorded once and launched as one."""

    def __init__(self, graph: Any) -> None:
        api = runtime()
        try:
            self._instance = call(api.cudaGraphInstantiate, graph, 0)
        finally:
            api.cudaGraphDestroy(graph)
        self._end = weakref.finalize(self, api.cudaGraphExecDestroy, self._instance)

    def launch(self, stream: Stream) -> None:
        call(runtime().cudaGraphLaunch, self._instance, stream.handle)


class Block:
    """An allocation on the GPU, freed with its last user."""

    def __init__(self, size: int) -> None:
        api = runtime()
        # Nothing to hold still needs an address that TensorRT takes.
        self.pointer, self.size = int(call(api.cudaMalloc, max(size, 1))), size
        self._end = weakref.finalize(self, api.cudaFree, self.pointer)


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that the GPU copies from and to by itself."""
    api = runtime()
    size = math.prod(shape) * dtype.itemsize
    pointer = int(call(api.cudaMallocHost, max(size, 1)))
    memory = (ctypes.c_byte * size).from_address(pointer)
    # The array's views keep `memory` alive, and nothing else knows when the last is gone.
    weakref.finalize(memory, api.cudaFreeHost, pointer)
    return np.ndarray(shape, dtype, cast("Any", memory))


def upload(pointer: int, array: NDArray[Any], stream: Stream) -> None:
    """Enqueue a copy to the GPU from contiguous memory, which must stay until it has run."""
    _copy(pointer, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice", stream)


def download(array: NDArray[Any], pointer: int, stream: Stream) -> None:
    """Enqueue a copy from the GPU into contiguous memory."""
    _copy(array.ctypes.data, pointer, array.nbytes, "cudaMemcpyDeviceToHost", stream)


def _copy(target: int, source: int, size: int, kind: str, stream: Stream) -> None:
    api = runtime()
    if size:
        kinds = api.cudaMemcpyKind
        call(api.cudaMemcpyAsync, target, source, size, getattr(kinds, kind), stream.handle)


@dataclass(frozen=True)
class Memory:
    """Part of a block, seen as an array: contiguous, of `dtype`, an axis a dimension."""

    block: Block
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: Stream

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, rows: slice) -> Memory:
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        pointer = self.pointer + start * size
        return Memory(self.block, pointer, (stop - start, *self.shape[1:]), self.dtype, self.stream)

    def read(self) -> NDArray[Any]:
        array = np.empty(self.shape, self.dtype)
        download(array, self.pointer, self.stream)
        self.stream.wait()
        return array

    def write(self, array: NDArray[Any]) -> None:
        # Kept until the copy has run: it may be an array of its own.
        contiguous = np.ascontiguousarray(array, self.dtype)
        upload(self.pointer, contiguous, self.stream)
        self.stream.wait()

    def write_slots(self, lengths: NDArray[np.int64], tokens: Memory) -> None:
        """Put `tokens` (rows, heads, new, width) behind the filled slots of each row.

        One strided copy a row, on the GPU. All are done when it returns: `tokens` may go then.
        """
        api = runtime()
        _, heads, slots, width = self.shape
        new, line = tokens.shape[2], width * self.dtype.itemsize
        for row, length in enumerate(lengths.tolist()):
            assert length + new <= slots
            call(
                api.cudaMemcpy2DAsync,
                self.rows(slice(row, row + 1)).pointer + length * line,
                slots * line,
                tokens.rows(slice(row, row + 1)).pointer,
                new * line,
                new * line,
                heads,
                api.cudaMemcpyKind.cudaMemcpyDeviceToDevice,
                self.stream.handle,
            )
        self.stream.wait()


def place(array: NDArray[Any], stream: Stream) -> Memory:
    """A copy of an array on the GPU. Raises MemoryError if it does not fit."""
    block = Block(array.nbytes)
    memory = Memory(block, block.pointer, array.shape, array.dtype, stream)
    memory.write(array)
    return memory
