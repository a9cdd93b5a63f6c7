"""TensorRT and TensorRT-RTX: the engine file is a plan, with what it was built for beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from ptdeploy.backends import EngineWords, of_another_target
from ptdeploy.backends.trt.engine_file import EngineInfo, read_info
from ptdeploy.backends.trt.words import describe_engine
from ptdeploy.errors import InputError, TargetUnavailable

if TYPE_CHECKING:
    from ptdeploy.backends.layers import EngineLayers, Profiled
    from ptdeploy.backends.trt.deserialize import Opened
    from ptdeploy.backends.trt.session import TrtSession
    from ptdeploy.bundle import Bundle


class TrtBackend:
    """Runs plans on the current GPU, with the flavor of TensorRT that they were built by."""

    devices = ("cuda",)
    packages = ("tensorrt", ("tensorrt", "tensorrt-rtx-cu13", "cuda-bindings"))
    cmake = ("-DPTDEPLOY_TENSORRT=ON", "-DTENSORRT_ROOT=/path/to/TensorRT")
    fastest_at = ""

    def problem(self, installed: Mapping[str, str | None]) -> str:
        return ""

    def unavailable(self, device: str) -> tuple[str, str] | None:
        from ptdeploy.backends.trt import cuda
        from ptdeploy.backends.trt.vendor import INSTALL, MODULES, NAMES, is_installed

        if device not in self.devices:
            return of_another_target("trt", device)
        if not any(is_installed(flavor) for flavor in MODULES):
            return (
                f"Neither {' nor '.join(NAMES.values())} is installed here.",
                " or ".join(INSTALL.values()),
            )
        if problem := cuda.unavailable():
            return f"The target trt needs an NVIDIA GPU to run ({problem}).", ""
        return None

    def load(
        self, bundle: Bundle, device: str, threads: int | None, map_weights: bool
    ) -> TrtSession:
        from ptdeploy.backends.trt.session import TrtSession

        return self._open(bundle, device, threads, map_weights, TrtSession)

    def layers(self, bundle: Bundle, device: str) -> EngineLayers:
        """What the engine inspector says of a bundle's engine; it reads engines only on a GPU."""
        return self.load(bundle, device, None, False).layers()

    @contextmanager
    def profiled(self, bundle: Bundle, device: str, threads: int | None) -> Iterator[Profiled]:
        """Open the engine with a profiler on each of its execution contexts."""
        from ptdeploy.backends.layers import Profiled
        from ptdeploy.backends.trt.profile import ProfiledSession

        session = self._open(bundle, device, threads, False, ProfiledSession)
        yield Profiled(session, session.runs, session.NOTES)

    def no_cpp(self, bundle: Bundle) -> tuple[str, str] | None:
        """It runs no engine without weights, and none that brings code of its own."""
        info = engine_info(bundle)
        if info.version_compatible:
            return (
                f"{bundle.path}: a version compatible engine holds code that runs on the host, "
                "which the C++ library does not load.",
                "Compile without --version-compatible, or run the bundle in Python.",
            )
        if info.strip_weights:
            return (
                f"{bundle.path}: its engine has no weights, and the C++ library cannot give it "
                "any.",
                "Compile without --strip-weights, or run the bundle in Python.",
            )
        return None

    def held_as(self, bundle: Bundle) -> str:
        return bundle.manifest.precision

    def takes(self, bundle: Bundle, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return any(profile.takes(dict(shapes)) for profile in engine_info(bundle).profiles)

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """What `engine.json` says."""
        found: dict[str, Any] = msgspec.to_builtins(engine_info(bundle))
        return found

    def describe(self, facts: Mapping[str, Any]) -> EngineWords:
        return describe_engine(facts)

    def _open(
        self,
        bundle: Bundle,
        device: str,
        threads: int | None,
        map_weights: bool,
        kind: type[Opened],
    ) -> Opened:
        if threads is not None or map_weights:
            option = "map_weights" if map_weights else "threads"
            raise InputError(f"{option} is about a CPU; this engine runs on a GPU.")
        if problem := self.unavailable(device):
            raise TargetUnavailable(*problem)
        from ptdeploy.backends.trt.deserialize import open_session

        allowed = os.environ.get("PTDEPLOY_ALLOW_HOST_CODE") == "1"
        return open_session(bundle, allowed, kind)


def engine_info(bundle: Bundle) -> EngineInfo:
    """What a bundle's engine was built for. Raises BundleError if its engine.json does not say."""
    with bundle.reading("engine_info") as path:
        return read_info(path)
