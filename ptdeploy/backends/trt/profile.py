"""TensorRT's own profiler on each execution context: how long each layer took, run by run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptdeploy.backends.layers import Layer, LayerTime, module_of_nodes
from ptdeploy.backends.trt.session import TrtSession, _Lane


class ProfiledSession(TrtSession):
    """A session whose runs report their layers. One thread at a time.

    A recorded step would report nothing by itself, so that none is recorded.
    """

    captures = False
    NOTES = (
        "steps ran one by one, not as CUDA graphs, and TensorRT waits for each layer's events: "
        "the whole run is slower than it is without a profile.",
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._runs: list[list[tuple[str, float]]] = []
        self._profiler = _profiler(self._vendor.module, self._report)

    def runs(self) -> list[list[LayerTime]]:
        """What each run took so far."""
        known = {layer.name: layer for layer in self.layers().layers}
        return [
            [
                LayerTime(known.get(name) or _unknown(name), milliseconds / 1e3)
                for name, milliseconds in run
            ]
            for run in self._runs
        ]

    def _take(self, profile: int) -> _Lane:
        lane = super()._take(profile)
        lane.context.profiler = self._profiler
        # Each enqueue then waits for its own end, and reports before it returns.
        lane.context.enqueue_emits_profile = True
        return lane

    def _enqueue(self, lane: _Lane) -> None:
        self._runs.append([])
        super()._enqueue(lane)

    def _report(self, layer: str, milliseconds: float) -> None:
        self._runs[-1].append((layer, milliseconds))


def _unknown(name: str) -> Layer:
    return Layer(name, module_of_nodes(name.split(" + ")), "")


def _profiler(module: Any, report: Callable[[str, float], None]) -> Any:
    class Reporting(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Reporting()
