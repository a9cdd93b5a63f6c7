"""What OpenVINO's performance counters say of each layer, run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from ptdeploy.backends.layers import LayerTime, Profiled
from ptdeploy.backends.openvino.graph_layers import read_layers
from ptdeploy.backends.openvino.open import Opening, cache_of, start
from ptdeploy.backends.openvino.session import OpenVinoSession
from ptdeploy.backends.session import DeviceArray, PagedCache
from ptdeploy.bundle import Bundle, Graph

_COARSE = (
    "OpenVINO's counters are means over all runs so far, in whole microseconds: a run's own time "
    "is worked out of two of them, so that of a layer of a few microseconds only its mean is right."
)
# Microseconds by the layers' names.
Means = dict[str, float]


@contextmanager
def open_profiled(bundle: Bundle, device: str, threads: int | None) -> Iterator[Profiled]:
    """Open a bundle's engine with its counters on."""
    compiled = start(bundle, Opening(device, threads, timed=True))
    session = _Counting(compiled, cache_of(bundle), bundle.manifest.graph)
    known = {layer.name: layer for layer in read_layers(compiled).layers}

    def runs() -> list[list[LayerTime]]:
        return [
            [LayerTime(known[name], took / 1e6) for name, took in one.items() if name in known]
            for one in own_times(session.means)
        ]

    yield Profiled(session, runs, (_COARSE,))


class _Counting(OpenVinoSession):
    """A session that keeps what the counters say after each run."""

    def __init__(self, compiled: Any, cache: PagedCache | None, graph: Graph) -> None:
        super().__init__(compiled, None, cache, graph)
        self.means: list[Means] = []

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        given = super().run(inputs)
        with self._request() as request:
            counters = request.profiling_info
        self.means.append({one.node_name: one.real_time.total_seconds() * 1e6 for one in counters})
        return given


def own_times(means: Sequence[Means]) -> list[Means]:
    """Each run's own times, of the means after each run; no less than nothing."""
    found: list[Means] = []
    before: Means = {}
    for count, after in enumerate(means, 1):
        found.append(
            {
                name: max(count * mean - (count - 1) * before.get(name, 0.0), 0.0)
                for name, mean in after.items()
            }
        )
        before = after
    return found
