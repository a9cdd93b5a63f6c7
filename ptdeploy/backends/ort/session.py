"""A loaded ONNX Runtime session, and memory on its device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.forks import cannot_follow, survive_forks
from ptdeploy.backends.ort.errors import run_error
from ptdeploy.backends.session import DeviceArray
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.backends.ties import Seat


@dataclass(frozen=True)
class OrtMemory:
    """Memory on a device. `value` keeps it: a host array itself, or an OrtValue.

    The memory is `shape[0]` of the value's rows, from `first` on.
    """

    device: str
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: Any
    first: int = 0

    def rows(self, rows: slice) -> OrtMemory:
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        first = self.first + start
        return replace(self, pointer=self.pointer + start * size, shape=shape, first=first)

    def read(self) -> NDArray[Any]:
        return self._of(self._whole())

    def write(self, array: NDArray[Any]) -> None:
        whole = self._whole()
        mine = self._of(whole)
        if array.ctypes.data != mine.ctypes.data:
            mine[...] = array
        if whole is not self.value:
            self.value.update_inplace(whole)

    def write_slots(self, lengths: NDArray[np.int64], tokens: OrtMemory) -> None:
        # Elsewhere than on a CPU ONNX Runtime copies whole values only.
        buffer, new = self.read(), tokens.read()
        for row, length, states in zip(buffer, lengths, new, strict=True):
            row[:, length : length + new.shape[2]] = states
        self.write(buffer)

    def _whole(self) -> NDArray[Any]:
        whole: NDArray[Any] = (
            self.value if isinstance(self.value, np.ndarray) else self.value.numpy()
        )
        return whole

    def _of(self, whole: NDArray[Any]) -> NDArray[Any]:
        part: NDArray[Any] = whole[self.first : self.first + self.shape[0]]
        return part


class OrtSession:
    """A loaded ONNX Runtime session.

    A process that was forked has none of its threads: there it is opened again, by `reopen`, when
    it is first used. What is bound to it follows, as the memory is copied by the fork.
    """

    cache = None

    def __init__(
        self,
        session: Any,
        device: str = "cpu",
        reopen: Callable[[], Any] | None = None,
        seat: Seat | None = None,
    ) -> None:
        self._session, self._device, self._seat = session, device, seat
        self._reopen, self._process = reopen, os.getpid()
        survive_forks(self)
        self._outputs = [output.name for output in session.get_outputs()]
        self.in_host_memory = device == "cpu"

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        session = self._live()
        try:
            if self._device == "cpu":
                arrays = {n: a.read() if isinstance(a, OrtMemory) else a for n, a in inputs.items()}
                with self._seated():
                    values = session.run(self._outputs, arrays)
            else:
                binding = self._binding(session, inputs, {})
                for name in self._outputs:
                    binding.bind_output(name)
                session.run_with_iobinding(binding)
                values = binding.copy_outputs_to_cpu()
        except Exception as error:  # as in start
            raise run_error(error, self._device) from error
        return dict(zip(self._outputs, values, strict=True))

    def place(self, array: NDArray[Any]) -> OrtMemory:
        """Put an array on the session's device; on a CPU it stays where it is."""
        if self._device == "cpu":
            return _host(array)
        onnxruntime = import_onnxruntime()

        try:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        except Exception as error:  # as in start
            raise run_error(error, self._device) from error
        return OrtMemory(self._device, value.data_ptr(), array.shape, array.dtype, value)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        """Bind arrays by their memory; the function returned runs over what they then hold.

        An array may be input and output at once. All must be contiguous and stay as they are.
        """
        session = self._live()
        try:
            binding = self._binding(session, inputs, outputs)
        except Exception as error:  # as in start
            raise run_error(error, self._device) from error
        # The closure keeps the arrays: the binding knows only their addresses.
        kept = (inputs, outputs)
        # Elsewhere than on a CPU host memory is copied when it is bound, not when the session runs.
        moved = {} if self._device == "cpu" else _in_host_memory(inputs)

        def step() -> None:
            nonlocal session, binding
            live = self._live()
            try:
                if session is not live:
                    session, binding = live, self._binding(live, *kept)
                # A name that is bound again has the new array's content.
                _bind(binding.bind_input, moved)
                with self._seated():
                    session.run_with_iobinding(binding)
            except Exception as error:  # as in start
                raise run_error(error, self._device) from error

        return step

    def native(self) -> Any:
        """The session as it is: see forks.py."""
        return self._session

    def _seated(self) -> AbstractContextManager[None]:
        """While the session runs: its caller's thread on the core that is kept for it, if any."""
        return self._seat.taken() if self._seat else nullcontext()

    def _live(self) -> Any:
        """The session, in the process that it was opened in."""
        if self._process == os.getpid():
            return self._session
        if self._device != "cpu" or self._reopen is None:
            raise cannot_follow(self._device)
        self._session = self._reopen()
        self._process = os.getpid()
        return self._session

    def _binding(
        self,
        session: Any,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Any:
        binding = session.io_binding()
        _bind(binding.bind_input, inputs)
        _bind(binding.bind_output, outputs)
        return binding


def _bind(bind: Callable[..., None], arrays: Mapping[str, NDArray[Any] | DeviceArray]) -> None:
    """Hand arrays to a binding by their memory, each under its name."""
    for name, array in arrays.items():
        memory = array if isinstance(array, OrtMemory) else _host(np.asarray(array))
        bind(name, memory.device, 0, memory.dtype, memory.shape, memory.pointer)


def _in_host_memory(
    arrays: Mapping[str, NDArray[Any] | DeviceArray],
) -> dict[str, NDArray[Any] | DeviceArray]:
    return {name: array for name, array in arrays.items() if not isinstance(array, OrtMemory)}


def _host(array: NDArray[Any]) -> OrtMemory:
    assert array.flags.c_contiguous
    return OrtMemory("cpu", array.ctypes.data, array.shape, array.dtype, array)
