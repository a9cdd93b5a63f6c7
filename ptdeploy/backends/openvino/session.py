"""A compiled OpenVINO model, and the arrays that are put into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.forks import cannot_follow, survive_forks
from ptdeploy.backends.openvino.core import PASSES
from ptdeploy.backends.openvino.errors import run_error
from ptdeploy.backends.session import DeviceArray, PagedCache
from ptdeploy.backends.telemetry import import_openvino
from ptdeploy.bundle import Graph
from ptdeploy.bundle.task import TensorSpec


@dataclass(frozen=True)
class HostArray:
    """Memory of this process; OpenVINO takes it as it is, and copies it where its device must."""

    array: NDArray[Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def rows(self, rows: slice) -> HostArray:
        return HostArray(self.array[rows])

    def read(self) -> NDArray[Any]:
        return self.array

    def write(self, array: NDArray[Any]) -> None:
        if array.ctypes.data != self.array.ctypes.data:
            self.array[...] = array

    def write_slots(self, lengths: NDArray[np.int64], tokens: HostArray) -> None:
        for row, length, states in zip(self.array, lengths, tokens.array, strict=True):
            row[:, length : length + states.shape[1]] = states


class OpenVinoSession:
    """A compiled OpenVINO model; tensors with several names have those of `graph`.

    Each run has an infer request to itself, so that threads may run at once. A process that was
    forked has none of OpenVINO's threads: there the graph is compiled again, by `reopen`, when it
    is first used.
    """

    in_host_memory = True

    def __init__(
        self,
        compiled: Any,
        reopen: Callable[[], Any] | None = None,
        cache: PagedCache | None = None,
        graph: Graph | None = None,
    ) -> None:
        self._compiled, self._reopen = compiled, reopen
        self.cache = cache
        self._process = os.getpid()
        # All requests, and those that no run has.
        self._requests: list[Any] = []
        self._free: list[Any] = []
        survive_forks(self)
        given, gives = ((), ()) if graph is None else (graph.inputs, graph.outputs)
        self._inputs = _names(compiled.inputs, given)
        self._outputs = _names(compiled.outputs, gives)

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        with self._request() as request:
            try:
                # What they share memory with stays until the run is over.
                arrays = {name: _contiguous(_host(inputs[name])) for name in self._inputs}
                for name, array in arrays.items():
                    request.set_tensor(name, shared(array))
                with PASSES.one():
                    request.infer()
                # The request keeps what it gave for its next run.
                return {name: np.array(request.get_tensor(name).data) for name in self._outputs}
            except Exception as error:  # as in start
                raise run_error(error) from error

    def place(self, array: NDArray[Any]) -> HostArray:
        """Leave an array where it is."""
        return HostArray(array)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        outputs: Mapping[str, NDArray[Any] | DeviceArray],
    ) -> Callable[[], None]:
        """A function that runs over what these arrays then hold, and copies what it gives."""

        def step() -> None:
            given = self.run(inputs)
            for name, array in outputs.items():
                _host(array)[...] = given[name]

        return step

    def native(self) -> Any:
        """The model and its requests: see forks.py."""
        return self._compiled, *self._requests

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """An infer request that no other run has, in the process that it was made in."""
        if self._process != os.getpid():
            if self._reopen is None:
                raise cannot_follow("cpu")
            self._requests, self._free = [], []
            self._compiled = self._reopen()
            self._process = os.getpid()
        free = self._free
        # No lock, which a fork could find taken: a list's own methods do as one step.
        try:
            request = free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
            self._requests.append(request)
        try:
            yield request
        finally:
            free.append(request)


def name_of(port: Any, wanted: Set[str]) -> str:
    """An input's or output's name: a tensor may have several, of which one of ours is."""
    names = sorted(port.get_names() & wanted) or sorted(port.get_names())
    return names[0] if names else ""


def _names(ports: Iterable[Any], specs: Iterable[TensorSpec]) -> list[str]:
    wanted = {spec.name for spec in specs}
    return [name_of(port, wanted) for port in ports]


def shared(array: NDArray[Any]) -> Any:
    """An array as OpenVINO's tensor, over the same memory; `array` must be contiguous.

    Numbers of 16 bits without a sign are bfloat16's bits: no input of a graph is anything else of
    that type.
    """
    openvino = import_openvino()
    if array.dtype == np.uint16:
        return openvino.Tensor(array, openvino.Shape(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _host(array: NDArray[Any] | DeviceArray) -> NDArray[Any]:
    return array.array if isinstance(array, HostArray) else np.asarray(array)


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    # numpy's own would make an axis for a number that has none.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
