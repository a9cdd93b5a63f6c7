"""A graph whose inner values are outputs too, built, run once and dropped: Polygraphy's work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.trt.engine_file import EngineInfo
from ptdeploy.backends.trt.vendor import INSTALL, NAMES
from ptdeploy.errors import BaseModelError, TargetUnavailable


def run_exposed(
    info: EngineInfo,
    onnx: Path,
    inner: tuple[str, ...],
    outputs: tuple[str, ...],
    feed: Mapping[str, NDArray[Any]],
    narrow: frozenset[str],
) -> dict[str, NDArray[Any]]:
    """`outputs` and `inner` values by name, from an engine of the flavor that `info` names.

    The inputs in `narrow` are bfloat16, as bits; what comes out in it is given as float32.
    """
    import torch

    plan = build_exposed(info, onnx, inner, outputs, shapes_of(feed))
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    # Of all array libraries that Polygraphy takes only torch has bfloat16.
    given = {
        name: torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
        if name in narrow
        else torch.from_numpy(np.ascontiguousarray(array))
        for name, array in feed.items()
    }
    try:
        with _quiet(), TrtRunner(EngineFromBytes(plan)) as runner:
            found = runner.infer(given)
            return {name: _float32(array) for name, array in found.items()}
    except PolygraphyException as error:
        raise TargetUnavailable(
            f"{NAMES[info.flavor]} could not run the graph with its inner values as outputs "
            f"({str(error).splitlines()[0]}).",
            "verify --graph --locate compares the graph itself, without a GPU.",
        ) from None


def build_exposed(
    info: EngineInfo,
    onnx: Path,
    inner: tuple[str, ...],
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
) -> Any:
    """The plan of a graph with inner values as outputs. TensorRT-RTX builds it without a GPU.

    Raises TargetUnavailable if Polygraphy is not installed, BaseModelError if the graph cannot be
    built so.
    """
    rtx = info.flavor == "rtx"
    # Read when Polygraphy is imported, and by what it imports later.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(rtx))
    try:
        from polygraphy.backend import trt
        from polygraphy.exception import PolygraphyException
    except ImportError:
        raise TargetUnavailable(
            f"--locate on an engine of {NAMES[info.flavor]} needs Polygraphy.", INSTALL[info.flavor]
        ) from None
    profile = trt.Profile()
    for name, shape in shapes.items():
        profile.add(name, shape, shape, shape)
    network = trt.NetworkFromOnnxPath(str(onnx), strongly_typed=True)
    marked = trt.ModifyNetworkOutputs(network, outputs=[*outputs, *inner])
    try:
        with _quiet():
            return trt.EngineBytesFromNetwork(marked, config=_config(profile, info))()
    except PolygraphyException as error:
        raise BaseModelError(
            f"{onnx}: cannot be built with its inner values as outputs "
            f"({str(error).splitlines()[0]})."
        ) from None


def shapes_of(feed: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(np.shape(array)) for name, array in feed.items()}


def _config(profile: Any, info: EngineInfo) -> Callable[[Any, Any], Any]:
    def create(builder: Any, network: Any) -> Any:
        from polygraphy.backend import tensorrt_rtx, trt
        from polygraphy.mod.trt_importer import lazy_import_trt

        kind = tensorrt_rtx.CreateConfigRTX if info.flavor == "rtx" else trt.CreateConfig
        config = kind(profiles=[profile])(builder, network)
        flag = lazy_import_trt().BuilderFlag.TF32
        (config.set_flag if info.tf32 else config.clear_flag)(flag)
        return config

    return create


def _quiet() -> Any:
    from polygraphy.logger import G_LOGGER

    return G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1)


def _float32(array: Any) -> NDArray[Any]:
    """A result as numpy has it: from torch, and bfloat16 widened."""
    import torch

    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    wide = array.float() if array.dtype == torch.bfloat16 else array
    return np.asarray(wide.cpu().numpy())
