"""ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ptdeploy.backends import EngineWords

if TYPE_CHECKING:
    from ptdeploy.backends.layers import EngineLayers, Profiled
    from ptdeploy.backends.ort.session import OrtSession
    from ptdeploy.bundle import Bundle


class OrtBackend:
    """Runs graphs in ONNX Runtime, on a CPU or on CUDA."""

    devices = ("cpu", "cuda")
    packages = ("engines", ("onnxruntime", "onnxruntime-gpu"))
    cmake = ()
    fastest_at = "writing one row alone in fp32, on a CPU"

    def problem(self, installed: Mapping[str, str | None]) -> str:
        if not all(installed[name] for name in self.packages[1]):
            return ""
        return (
            "onnxruntime and onnxruntime-gpu are both installed, and they are the same module: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them."
        )

    def unavailable(self, device: str) -> tuple[str, str] | None:
        from ptdeploy.backends.ort.open import unavailable

        return unavailable(device)

    def no_cpp(self, bundle: Bundle) -> tuple[str, str] | None:
        """It runs graphs on a CPU only."""
        device = bundle.manifest.device
        if device == "cpu":
            return None
        problem = f"The C++ library runs bundles on cpu, not on {device!r}."
        return problem, "Compile for --device cpu."

    def load(
        self,
        bundle: Bundle,
        device: str,
        threads: int | None = None,
        map_weights: bool = False,
    ) -> OrtSession:
        """Open the engine on `device`. Raises TargetUnavailable if the provider does not start.

        ONNX Runtime copies a CPU's weights into the layout its products are fastest with, unless
        `map_weights` leaves them in the file, mapped.
        """
        from ptdeploy.backends.ort.open import seat_of, session_options, start
        from ptdeploy.backends.ort.session import OrtSession

        def opened() -> Any:
            return start(bundle, device, session_options(device, threads, map_weights))

        return OrtSession(opened(), device, opened, seat_of(device, threads))

    def layers(self, bundle: Bundle, device: str) -> EngineLayers:
        """The graph as ONNX Runtime optimises it on this machine."""
        from ptdeploy.backends.ort.graph_layers import read_layers

        return read_layers(bundle, device)

    def profiled(
        self, bundle: Bundle, device: str, threads: int | None
    ) -> AbstractContextManager[Profiled]:
        """Open the engine with ONNX Runtime's profiler on."""
        from ptdeploy.backends.ort.profile import open_profiled

        return open_profiled(bundle, device, threads)

    def held_as(self, bundle: Bundle) -> str:
        return bundle.manifest.precision

    def takes(self, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return True

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """The graph says it all."""
        return {}

    def describe(self, facts: Mapping[str, Any]) -> EngineWords:
        return EngineWords()
