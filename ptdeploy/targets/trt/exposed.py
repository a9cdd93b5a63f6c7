"""A graph whose inner values are outputs too: built, run once and dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptdeploy.backends.trt.deserialize import refuse_too_large
from ptdeploy.backends.trt.engine_file import EngineInfo, Profile
from ptdeploy.backends.trt.session import TrtSession
from ptdeploy.backends.trt.vendor import Vendor, open_vendor
from ptdeploy.bfloat16 import from_stored
from ptdeploy.errors import BaseModelError, TargetUnavailable
from ptdeploy.targets.trt.builder import Request, build_plan
from ptdeploy.targets.trt.options import TrtOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ptdeploy.backends.session import DeviceArray
    from ptdeploy.bundle.signature import Signature


def run_exposed(
    info: EngineInfo,
    onnx: Path,
    signature: Signature,
    inner: tuple[str, ...],
    feed: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Outputs and `inner` values by name, from an engine of the flavor that `info` names.

    A feed's bfloat16 is its bits; what comes out in it is given as float32. Raises as
    `build_exposed` does, and TargetUnavailable if the engine cannot be loaded here.
    """
    vendor = open_vendor(info.flavor)
    request = exposed_request(info, onnx, signature, inner, feed)
    session = _open(vendor, build_exposed(vendor, request), request.profiles)
    bfloat16 = vendor.module.DataType.BF16
    return {
        name: from_stored(array) if session.engine.get_tensor_dtype(name) == bfloat16 else array
        for name, array in _run(session, feed).items()
    }


def exposed_request(
    info: EngineInfo,
    onnx: Path,
    signature: Signature,
    inner: tuple[str, ...],
    feed: Mapping[str, NDArray[Any]],
) -> Request:
    """A build as the bundle's engine had it, for the shapes of `feed` alone."""
    shapes = {name: tuple(np.shape(array)) for name, array in feed.items()}
    profile = Profile("requests", {name: (shape,) * 3 for name, shape in shapes.items()})
    options = TrtOptions(flavor=info.flavor, workspace=info.workspace)
    return Request(onnx, signature, (profile,), info.tf32, options, inner)


def build_exposed(vendor: Vendor, request: Request) -> Any:
    """The plan of such a graph. TensorRT-RTX builds it without a GPU.

    Raises BaseModelError if the graph cannot be built so.
    """
    try:
        return build_plan(vendor, request, None)
    except BaseModelError as error:
        raise BaseModelError(
            f"{request.onnx}: cannot be built with its inner values as outputs ({error.problem})."
        ) from error


def _open(vendor: Vendor, plan: Any, profiles: tuple[Profile, ...]) -> TrtSession:
    runtime = vendor.module.Runtime(vendor.logger)
    vendor.errors.clear()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = (vendor.errors or ["it gives no reason"])[0].rstrip(".")
        refuse_too_large(vendor, reason, "the graph with its inner values as outputs")
        raise TargetUnavailable(
            f"{vendor.name} could not load the graph with its inner values as outputs ({reason}).",
            "Ask for --graph and --locate: that compares the graph itself, without a GPU.",
        )
    return TrtSession(
        vendor, engine, profiles, lambda _: engine.create_execution_context(), lambda: None
    )


def _run(session: TrtSession, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One run; what the engine updates in place is read where it lies."""
    updated = {
        name: aliased
        for name in session.outputs
        if (aliased := session.engine.get_aliased_input_tensor(name))
    }
    shared = {name: session.place(feed[name]) for name in set(updated.values())}
    found = session.empty_outputs({name: array.shape for name, array in feed.items()})
    outputs: dict[str, NDArray[Any] | DeviceArray] = {**found}
    outputs.update({name: shared[aliased] for name, aliased in updated.items()})
    session.bind({**feed, **shared}, outputs)()
    return {
        name: shared[updated[name]].read() if name in updated else array
        for name, array in found.items()
    }
