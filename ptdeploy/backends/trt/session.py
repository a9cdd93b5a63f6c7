"""A loaded TensorRT engine: contexts, device memory, and decode steps as CUDA graphs."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.forks import cannot_follow, survive_forks
from ptdeploy.backends.layers import EngineLayers
from ptdeploy.backends.session import DeviceArray
from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.engine_file import Profile
from ptdeploy.backends.trt.inspector import read_layers
from ptdeploy.backends.trt.vendor import Vendor
from ptdeploy.errors import BundleError, EngineFault, InputError, OutOfMemory
from ptdeploy.memory import ran_out_of_memory

# Enqueued plainly this often before it is recorded: the first runs may still prepare kernels.
_BEFORE_CAPTURE = 2
# What set_tensor_address asks for.
_ALIGNMENT = 256
# Runs of a lane after which newly compiled kernels are kept: more shapes came up by then.
_KEEP_AFTER = (1, 16, 256)


@dataclass(frozen=True)
class _Host:
    """Memory that the GPU copies by itself, its counterpart there, and the part that is in use."""

    bytes: NDArray[np.uint8]
    block: cuda.Block = field(repr=False)
    view: NDArray[Any]


@dataclass
class _Lane:
    """An execution context in one profile, with its own stream: what one run uses at a time."""

    profile: int
    context: Any
    stream: cuda.Stream
    # What the context was made by must not go before it.
    made_by: object = field(repr=False)
    runs: int = 0
    hosts: dict[str, _Host] = field(default_factory=dict)

    def host(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Host:
        """Memory to copy a tensor through, the last run's if that is as large."""
        size = math.prod(shape) * dtype.itemsize
        known = self.hosts.get(name)
        if known is None or known.bytes.size < size:
            block = cuda.Block(size)
            known = _Host(cuda.pinned((size,), np.dtype(np.uint8)), block, np.empty(0))
        view = known.bytes[:size].view(dtype).reshape(shape)
        self.hosts[name] = _Host(known.bytes, known.block, view)
        return self.hosts[name]


class TrtSession:
    """A deserialized engine. Any number of threads may bind and run, each on a lane of its own.

    It stays on the GPU that was the opening thread's current one.
    """

    # Whether steps become CUDA graphs.
    captures = True

    cache = None
    in_host_memory = False

    def __init__(
        self,
        vendor: Vendor,
        engine: Any,
        profiles: tuple[Profile, ...],
        contexts: Callable[[int], Any],
        keep: Callable[[], None],
    ) -> None:
        self._vendor, self.engine, self._profiles = vendor, engine, profiles
        self._process, self._device = os.getpid(), cuda.current()
        survive_forks(self)
        self._contexts, self._keep = contexts, keep
        self._free: dict[int, list[_Lane]] = {}
        # A step that is dropped gives its lane back, whatever this thread is just doing.
        self._lock = threading.RLock()
        self._stream = cuda.Stream()
        trt = vendor.module
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        output = trt.TensorIOMode.OUTPUT
        self.outputs = [name for name in names if engine.get_tensor_mode(name) == output]
        self._dtypes = {name: _numpy(trt, engine.get_tensor_dtype(name)) for name in names}
        for name in names:
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BundleError(f"The engine wants {name} on the host, which is not supported.")

    def layers(self) -> EngineLayers:
        """What the engine inspector says of it."""
        names = [profile.name for profile in self._profiles]
        return read_layers(self._vendor, self.engine, names)

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        profile = self._profile({name: array.shape for name, array in inputs.items()})
        with cuda.use(self._device), _room():
            return self._run(self._take(profile), inputs)

    def _run(
        self, lane: _Lane, inputs: Mapping[str, NDArray[Any] | DeviceArray]
    ) -> dict[str, NDArray[Any]]:
        try:
            for name, array in inputs.items():
                self._shape(lane, name, array.shape)
                if isinstance(array, cuda.Memory):
                    self._address(lane, name, array.pointer)
                    continue
                assert isinstance(array, np.ndarray)
                host = lane.host(name, array.shape, self._dtypes[name])
                np.copyto(host.view, array, casting="no")
                self._address(lane, name, host.block.pointer)
                cuda.upload(host.block.pointer, host.view, lane.stream)
            hosts = {}
            for name in self.outputs:
                shape = tuple(lane.context.get_tensor_shape(name))
                hosts[name] = lane.host(name, shape, self._dtypes[name])
                self._address(lane, name, hosts[name].block.pointer)
            self._enqueue(lane)
            for host in hosts.values():
                cuda.download(host.view, host.block.pointer, lane.stream)
            lane.stream.wait()
            self._ran(lane)
            return {name: host.view.copy() for name, host in hosts.items()}
        finally:
            self._give_back(lane)

    def empty_outputs(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
        """An array for each output of a run whose inputs have these shapes, by name."""
        profile = self._profile(shapes)
        with cuda.use(self._device), _room():
            lane = self._take(profile)
            try:
                for name, shape in shapes.items():
                    self._shape(lane, name, shape)
                return {
                    name: np.empty(tuple(lane.context.get_tensor_shape(name)), self._dtypes[name])
                    for name in self.outputs
                }
            finally:
                self._give_back(lane)

    def native(self) -> Any:
        """All that CUDA has a part in: see forks.py."""
        return self

    def check_process(self) -> None:
        """Raises EngineFault in a process that was forked: CUDA does not work there."""
        if self._process != os.getpid():
            raise cannot_follow("cuda")

    def place(self, array: NDArray[Any]) -> cuda.Memory:
        """A copy of an array in the GPU's memory. Raises MemoryError if it does not fit."""
        self.check_process()
        with cuda.use(self._device):
            return cuda.place(np.ascontiguousarray(array), self._stream)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        """A function that runs over these arrays: those on the host are copied at each run.

        It keeps a lane from its first run on, until it is dropped. Run again and again, it becomes
        one CUDA graph: copies, engine and copies back.
        """
        return _Step(self, inputs, outputs)

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        self.check_process()
        for index, profile in enumerate(self._profiles):
            if profile.takes(dict(shapes)):
                return index
        raise InputError(
            "The engine was not built for this request: its shapes are "
            f"{ {name: list(shape) for name, shape in list(shapes.items())[:3]} }.",
            "Send fewer rows or tokens at once, or compile with a larger --profile.",
        )

    def _take(self, profile: int) -> _Lane:
        with self._lock:
            free = self._free.setdefault(profile, [])
            if free:
                return free.pop()
        stream = cuda.Stream()
        self._vendor.errors.clear()
        context = self._contexts(profile)
        if context is None:
            raise self._cannot("make another execution context", profile)
        if not context.set_optimization_profile_async(profile, stream.handle):
            name = self._profiles[profile].name
            raise self._cannot(f"use the optimization profile {name}", profile)
        stream.wait()
        # Kernels that contexts run lie in what keeps them.
        return _Lane(profile, context, stream, (self._contexts, self._keep))

    def _cannot(self, what: str, profile: int) -> Exception:
        """Why a lane cannot be made: TensorRT says it in words alone, memory that ran out too."""
        reason = (self._vendor.errors or ["it gives no reason"])[-1].rstrip(".")
        fault = EngineFault(f"{self._vendor.name} cannot {what} ({reason}).")
        if not ran_out_of_memory(fault):
            return fault
        name = self._profiles[profile].name
        size = self.engine.get_device_memory_size_for_profile_v2(profile)
        return OutOfMemory(
            f"The engine's scratch memory does not fit in the GPU's memory: {_mib(size)} MiB for "
            f"the largest request that its profile {name} takes ({reason}).",
            "Send fewer requests side by side, or compile with a smaller --profile.",
        )

    def _give_back(self, lane: _Lane) -> None:
        with self._lock:
            self._free[lane.profile].append(lane)

    def _shape(self, lane: _Lane, name: str, shape: tuple[int, ...]) -> None:
        if not lane.context.set_input_shape(name, shape):
            raise InputError(f"The engine refuses {name} of shape {list(shape)}.")

    def _address(self, lane: _Lane, name: str, address: int) -> None:
        if address % _ALIGNMENT:
            raise InputError(
                f"A row of the KV buffer does not begin at a multiple of {_ALIGNMENT} bytes, as "
                "TensorRT needs it to.",
                "Send one row at once, or compile again: a --max-context that fits is said there.",
            )
        if not lane.context.set_tensor_address(name, address):
            raise BundleError(f"The engine has no tensor {name}, which the manifest lists.")

    def _ran(self, lane: _Lane) -> None:
        lane.runs += 1
        if lane.runs in _KEEP_AFTER:
            self._keep()

    def _enqueue(self, lane: _Lane) -> None:
        if not lane.context.execute_async_v3(lane.stream.handle):
            reason = (self._vendor.errors or ["it gives no reason"])[-1]
            raise EngineFault(f"{self._vendor.name} could not run: {reason}")


class _Step:
    """A run over memory that stays. Not for two threads at once, as its arrays are not either."""

    def __init__(
        self,
        session: TrtSession,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> None:
        self._session = session
        self._placed = {
            name: memory
            for name, memory in (*inputs.items(), *outputs.items())
            if isinstance(memory, cuda.Memory)
        }
        self._inputs, self._outputs = (
            {name: np.asarray(array) for name, array in side.items() if name not in self._placed}
            for side in (inputs, outputs)
        )
        given: dict[str, Any] = {**self._placed, **self._inputs}
        self._shapes = {name: tuple(given[name].shape) for name in inputs}
        self._profile = session._profile(self._shapes)
        for name in session.outputs:
            aliased = session.engine.get_aliased_input_tensor(name)
            if aliased and self._pointer(name) != self._pointer(aliased):
                raise BundleError(f"The engine updates {aliased} where {name} does not lie.")
            shared = name in self._placed and any(
                self._pointer(one) == self._pointer(name) for one in inputs
            )
            if shared and not aliased:
                raise BundleError(f"The engine does not update {name} in place.")
        self._lane: _Lane | None = None
        self._uploads: list[tuple[_Host, NDArray[Any]]] = []
        self._downloads: list[tuple[_Host, NDArray[Any]]] = []
        self._graph: cuda.Graph | None = None
        self._runs = 0
        self._records = session.captures

    def __call__(self) -> None:
        self._session.check_process()
        with cuda.use(self._session._device):
            self._run()

    def _run(self) -> None:
        if self._lane is None:
            with _room():
                self._lane = self._prepare()
        lane = self._lane
        for host, array in self._uploads:
            np.copyto(host.view, array)
        if self._records and self._runs == _BEFORE_CAPTURE:
            self._graph = self._recorded(lane)
        if self._graph is not None:
            self._graph.launch(lane.stream)
        else:
            self._work(lane)
        lane.stream.wait()
        self._runs += 1
        self._session._ran(lane)
        for host, array in self._downloads:
            np.copyto(array, host.view)

    def _work(self, lane: _Lane) -> None:
        for host, _ in self._uploads:
            cuda.upload(host.block.pointer, host.view, lane.stream)
        self._session._enqueue(lane)
        for host, _ in self._downloads:
            cuda.download(host.view, host.block.pointer, lane.stream)

    def _prepare(self) -> _Lane:
        session = self._session
        lane = session._take(self._profile)
        # Whoever drops this step gives its lane to the next one.
        weakref.finalize(self, session._give_back, lane)
        for name, shape in self._shapes.items():
            session._shape(lane, name, shape)
        given: dict[str, Any] = {**self._placed, **self._outputs}
        for name in session.outputs:
            # Memory of another shape would be written past its end.
            if tuple(lane.context.get_tensor_shape(name)) != tuple(given[name].shape):
                raise BundleError(f"The engine gives {name} in another shape than the manifest.")
        for name, memory in self._placed.items():
            session._address(lane, name, memory.pointer)
        uploads: list[tuple[_Host, NDArray[Any]]] = []
        downloads: list[tuple[_Host, NDArray[Any]]] = []
        for arrays, copies in ((self._inputs, uploads), (self._outputs, downloads)):
            for name, array in arrays.items():
                if array.dtype != session._dtypes.get(name):
                    raise BundleError(f"The engine has no {name} of {array.dtype}.")
                host = lane.host(name, array.shape, array.dtype)
                copies.append((host, array))
                session._address(lane, name, host.block.pointer)
        self._uploads, self._downloads = uploads, downloads
        return lane

    def _recorded(self, lane: _Lane) -> cuda.Graph | None:
        """The step as one graph, or None where it cannot be one: then it goes on step by step."""
        self._records = False
        try:
            if self._capturable(lane):
                return lane.stream.capture(lambda: self._work(lane))
        except (EngineFault, MemoryError, RuntimeError):
            # A step that fails by itself fails again, run plainly.
            return None
        return None

    def _pointer(self, name: str) -> int | None:
        memory = self._placed.get(name)
        return None if memory is None else memory.pointer

    def _capturable(self, lane: _Lane) -> bool:
        asked = getattr(lane.context, "is_stream_capturable", None)
        return asked is None or bool(asked(lane.stream.handle))


@contextmanager
def _room() -> Iterator[None]:
    """Memory that runs out is about the request's size."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(
            f"The request does not fit in the GPU's memory ({error}).",
            "Send fewer rows at once, or fewer requests side by side.",
        ) from error


def _mib(size: int) -> int:
    return -(-size // (1 << 20))


def _numpy(trt: Any, dtype: Any) -> np.dtype[Any]:
    types = trt.DataType
    known = {
        types.FLOAT: np.float32,
        types.HALF: np.float16,
        # numpy has no such type: its bits.
        types.BF16: np.uint16,
        types.INT64: np.int64,
        types.INT32: np.int32,
        types.BOOL: np.bool_,
    }
    if dtype not in known:
        raise BundleError(f"The engine has tensors of {dtype}, which this version cannot give it.")
    return np.dtype(known[dtype])
