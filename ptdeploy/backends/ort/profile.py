"""What ONNX Runtime's own profiler says of each node, run by run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ptdeploy.backends.layers import Layer, LayerTime, Profiled, module_of_nodes
from ptdeploy.backends.ort.graph_layers import HAS_ONNX, read_optimised
from ptdeploy.backends.ort.open import seat_of, session_options, start
from ptdeploy.backends.ort.session import OrtSession
from ptdeploy.bundle import Bundle

_NODE = "_kernel_time"
_LAUNCHES = (
    "on cuda ONNX Runtime times how long the CPU takes to launch a node, not how long the GPU "
    "takes to run it."
)
_NO_GRAPH = "some fused nodes do not say their module: with onnx installed their neighbours do."


class _Arguments(msgspec.Struct):
    op_name: str = ""
    input_type_shape: list[dict[str, object]] = []
    output_type_shape: list[dict[str, object]] = []


class _Event(msgspec.Struct):
    """One event of the profile, in microseconds since it began."""

    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


@contextmanager
def open_profiled(bundle: Bundle, device: str, threads: int | None) -> Iterator[Profiled]:
    """Open a bundle's engine with the profiler on; it writes to a folder that does not stay."""
    options = session_options(device, threads)
    with tempfile.TemporaryDirectory(prefix="ptdeploy-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        if HAS_ONNX:
            options.optimized_model_filepath = str(optimised)
        session = start(bundle, device, options)
        known = read_optimised(bundle, optimised).layers if HAS_ONNX else ()

        def runs() -> list[list[LayerTime]]:
            profile = Path(session.end_profiling())
            return read_runs(profile.read_bytes(), {layer.name: layer for layer in known})

        notes = [_LAUNCHES] if device == "cuda" else []
        if not HAS_ONNX:
            notes.append(_NO_GRAPH)
        yield Profiled(
            OrtSession(session, device, seat=seat_of(device, threads)), runs, tuple(notes)
        )


def read_runs(profile: bytes, known: Mapping[str, Layer]) -> list[list[LayerTime]]:
    """The nodes' times in each run of a profile; `known` says more of a node than the profile."""
    events = msgspec.json.decode(profile, type=list[_Event])
    nodes = [one for one in events if one.cat == "Node" and one.name.endswith(_NODE)]
    nodes.sort(key=lambda one: one.ts)
    spans = [one for one in events if one.cat == "Session" and one.name == "model_run"]
    runs: list[list[LayerTime]] = []
    place = 0
    for span in sorted(spans, key=lambda one: one.ts):
        times = []
        while place < len(nodes) and nodes[place].ts <= span.ts + span.dur:
            times.append(_time(nodes[place], known))
            place += 1
        runs.append(times)
    return runs


def _time(event: _Event, known: Mapping[str, Layer]) -> LayerTime:
    name = event.name.removesuffix(_NODE)
    layer = known.get(name) or Layer(
        name,
        module_of_nodes([name]),
        event.args.op_name,
        _dtypes(event.args.input_type_shape),
        _dtypes(event.args.output_type_shape),
    )
    return LayerTime(layer, event.dur / 1e6)


def _dtypes(values: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    # The profiler calls fp32 "float".
    return tuple("float32" if one == "float" else one for value in values for one in value)
