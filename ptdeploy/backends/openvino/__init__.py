"""OpenVINO: the engine file is the ONNX model, which it compiles for the device when it opens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from ptdeploy.backends import EngineWords

if TYPE_CHECKING:
    from ptdeploy.backends.layers import EngineLayers, Profiled
    from ptdeploy.backends.openvino.session import OpenVinoSession
    from ptdeploy.bundle import Bundle

_HELD_AS = {"f16": "fp16", "bf16": "bf16", "u8": "bf16"}


class OpenVinoBackend:
    """Runs graphs in OpenVINO: on a CPU, and untried on what else it finds."""

    devices = ("cpu", "gpu", "npu")
    packages = ("openvino", ("openvino",))
    cmake = ("-DPTDEPLOY_OPENVINO=ON", "-DOpenVINO_DIR=/path/to/openvino/cmake")
    fastest_at = "prefill, several rows at once, and encoders in int8, on a CPU"

    def problem(self, installed: Mapping[str, str | None]) -> str:
        return ""

    def unavailable(self, device: str) -> tuple[str, str] | None:
        from ptdeploy.backends.openvino.open import unavailable

        return unavailable(device)

    def no_cpp(self, bundle: Bundle) -> None:
        """It runs them all."""

    def load(
        self,
        bundle: Bundle,
        device: str,
        threads: int | None = None,
        map_weights: bool = False,
    ) -> OpenVinoSession:
        """Compile the graph for `device`. Raises TargetUnavailable if it is not here.

        On a CPU OpenVINO copies weights into the layout its products are fastest with.
        `map_weights` leaves what they are copied from in the file, mapped.
        """
        from ptdeploy.backends.openvino.open import Opening, cache_of, start
        from ptdeploy.backends.openvino.session import OpenVinoSession

        opening = Opening(device, threads, map_weights)

        def opened() -> Any:
            return start(bundle, opening)

        return OpenVinoSession(opened(), opened, cache_of(bundle), bundle.manifest.graph)

    def layers(self, bundle: Bundle, device: str) -> EngineLayers:
        """The graph as OpenVINO compiles it on this machine."""
        from ptdeploy.backends.openvino.graph_layers import read_layers
        from ptdeploy.backends.openvino.open import Opening, start

        return read_layers(start(bundle, Opening(device)))

    def profiled(
        self, bundle: Bundle, device: str, threads: int | None
    ) -> AbstractContextManager[Profiled]:
        """Open the engine with OpenVINO's performance counters on."""
        from ptdeploy.backends.openvino.profile import open_profiled

        return open_profiled(bundle, device, threads)

    def held_as(self, bundle: Bundle) -> str:
        """A KV cache in fewer bits may cost what computing in about as many does, if that is more
        than the precision may."""
        from ptdeploy.backends.openvino.engine_file import engine_info
        from ptdeploy.bundle.precision import looser

        own = bundle.manifest.precision
        return looser(own, _HELD_AS.get(engine_info(bundle).kv_precision, own))

    def takes(self, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return True

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """What `engine.json` says, where there is one; of a KV cache only where one is kept."""
        if bundle.entry("engine_info") is None:
            return {}
        from ptdeploy.backends.openvino.engine_file import engine_info
        from ptdeploy.backends.openvino.open import keeps_kv

        found: dict[str, Any] = msgspec.to_builtins(engine_info(bundle))
        if not keeps_kv(bundle.manifest):
            del found["kv_precision"]
        return found

    def describe(self, facts: Mapping[str, Any]) -> EngineWords:
        if not facts:
            return EngineWords()
        group = facts["group"]
        products = f"int8, a scale for each {group} activations" if group else "the precision"
        words = [("KV cache", facts["kv_precision"])] if "kv_precision" in facts else []
        words.append(("products", f"in {products}"))
        return EngineWords(tuple(words), (), facts)
