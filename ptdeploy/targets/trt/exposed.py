"""A graph whose inner values are outputs too, as an engine that is built, run once and dropped.

Polygraphy marks outputs and compares them as well, but its runner gives every output memory of its
own, and an engine that updates a KV buffer in place needs the input's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.engine_options import EngineOptions
from ptdeploy.errors import TargetUnavailable
from ptdeploy.runtime.bfloat16 import from_stored
from ptdeploy.targets.trt.builder import Request, build_plan
from ptdeploy.targets.trt.engine_file import EngineInfo
from ptdeploy.targets.trt.plan import Profile
from ptdeploy.targets.trt.session import TrtSession
from ptdeploy.targets.trt.vendor import Vendor, open_vendor


def run_exposed(
    info: EngineInfo, onnx: Path, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Outputs and inner values by name, from an engine of the flavor that `info` names."""
    vendor = open_vendor(info.flavor)
    profile = shapes_of(feed)
    plan = build_exposed(vendor, info, onnx, inner, profile)
    engine = vendor.module.Runtime(vendor.logger).deserialize_cuda_engine(plan)
    if engine is None:
        reason = (vendor.errors or ["it gives no reason"])[0]
        raise TargetUnavailable(f"{vendor.name} cannot load an engine here ({reason}).")
    session = TrtSession(vendor, engine, (profile,), engine.create_execution_context, _keep_nothing)
    narrow = vendor.module.DataType.BF16
    return {
        name: from_stored(array) if engine.get_tensor_dtype(name) == narrow else array
        for name, array in session.run(feed).items()
    }


def build_exposed(
    vendor: Vendor, info: EngineInfo, onnx: Path, inner: tuple[str, ...], profile: Profile
) -> Any:
    """The plan of a graph with inner values as outputs. TensorRT-RTX builds it without a GPU."""
    request = Request(onnx, None, (profile,), info.tf32, EngineOptions(), inner)
    return build_plan(vendor, request, None)


def shapes_of(feed: Mapping[str, NDArray[Any]]) -> Profile:
    return Profile("requests", {name: (np.shape(array),) * 3 for name, array in feed.items()})


def _keep_nothing() -> None:
    """Kernels compiled for one run are of no use to another."""
