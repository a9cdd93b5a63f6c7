"""ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptdeploy.backends.cores import default_threads, may_spin
from ptdeploy.backends.forks import cannot_follow, survive_forks
from ptdeploy.backends.telemetry import import_onnxruntime
from ptdeploy.bundle import Bundle, FileEntry, Limits, staged
from ptdeploy.bundle.task import Activations, TensorSpec
from ptdeploy.engine_options import EngineOptions
from ptdeploy.errors import BundleError, InputError, TargetUnavailable
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.runtime.layout import AGAIN, check_signature
from ptdeploy.targets import Attention, BuildRequest, Built, Numerics, Placed
from ptdeploy.targets.onnx_file import read_onnx_file
from ptdeploy.targets.ort_errors import reason, run_error
from ptdeploy.text_files import library_path

if TYPE_CHECKING:
    import onnx_ir as ir

    from ptdeploy.backends.layers import EngineLayers, Profiled

DEVICES = ("cpu", "cuda")
STAND_IN = ""
MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
# Smaller constants stay inside the model file.
_INLINE = 256
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_EXTRAS = {"cpu": "pip install 'ptdeploy[cpu]'", "cuda": "pip install 'ptdeploy[cuda]'"}


def precisions(device: str) -> tuple[str, ...]:
    # A CPU has no kernels in half precision: it would compute in fp32 and convert.
    return ("fp32", "int8", "int4") if device == "cpu" else ("fp32", "fp16", "int8", "int4")


def numerics(device: str, precision: str) -> Numerics:
    """In fp32 on a CPU; on CUDA in fp16, or in fp32 without fused attention, which has none."""
    if device == "cpu":
        return Numerics("float32", "onnxruntime")
    if precision == "fp32":
        return Numerics("float32", None)
    return Numerics("float16", "onnxruntime")


def refuses(device: str, activations: Activations, attention: Attention) -> str:
    """Why GroupQueryAttention cannot compute that on `device`, found by running it."""
    from ptdeploy.targets.ort_attention import try_attention

    return try_attention(session_options(device), _PROVIDERS[device], activations, attention)


def unavailable(device: str) -> tuple[str, str] | None:
    """Why ONNX Runtime cannot run on `device` here and what to do, or None if it can."""
    if device not in _PROVIDERS:
        return f"The target ort runs on {' or '.join(_PROVIDERS)}, not on {device!r}.", ""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        return "ONNX Runtime is not installed here.", _EXTRAS[device]
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        return (
            f"The installed onnxruntime {onnxruntime.__version__} has no {provider}.",
            f"pip uninstall onnxruntime && {_EXTRAS[device]}" if device == "cuda" else "",
        )
    return None


def unbuildable(device: str, options: EngineOptions) -> tuple[str, str] | None:
    """Its engine file is the graph, and it is shown to be right before it is written."""
    if given := options.given():
        raise InputError(f"{given[0]} is about TensorRT's engines; the target ort has none.")
    return unavailable(device)


def limit(limits: Limits, options: EngineOptions, causal: bool, max_context: int | None) -> Limits:
    """Its graphs take any size that the model does."""
    return limits


def build(request: BuildRequest) -> Built:
    """Write `model.onnx` and its external data."""
    return Built(write_model(request.model, request.folder))


def write_model(model: ir.Model, folder: Path) -> tuple[FileEntry, ...]:
    """Write a graph, with all but its smallest constants as external data beside it."""
    import onnx_ir as ir

    large = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _INLINE
    ]
    # Two names may have one tensor: then both point at the same bytes of the file.
    tensors = {id(value.const_value): value.const_value for value in large}
    if tensors:
        written = ir.external_data.convert_tensors_to_external(
            [tensor for tensor in tensors.values() if tensor is not None], folder, WEIGHTS
        )
        places = dict(zip(tensors, written, strict=True))
        for value in large:
            place = places[id(value.const_value)]
            value.const_value = ir.ExternalTensor(
                place.location,
                place.offset,
                place.length,
                place.dtype,
                shape=place.shape,
                name=value.name or "",
                base_dir=folder,
            )
    ir.save(model, folder / MODEL)
    entries = [staged(MODEL, "model")]
    if (folder / WEIGHTS).exists():
        entries.append(staged(WEIGHTS, "weights"))
    return tuple(entries)


def rebuild(bundle: Bundle, flavor: str | None) -> tuple[str, ...]:
    raise AssertionError("its engine is its graph")


def run_graph(
    bundle: Bundle, inner: tuple[str, ...], feed: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run it on a CPU, whatever the bundle's device; its weights stay in their file."""
    import onnx

    onnxruntime = import_onnxruntime()

    path = bundle.in_folder("model")
    assert path is not None, "the caller read it"
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = session_options("cpu")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=[_PROVIDERS["cpu"]]
    )
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, map(np.asarray, session.run(outputs, dict(feed))), strict=True))


def facts(bundle: Bundle) -> dict[str, Any]:
    """The graph says it all."""
    return {}


def load(
    bundle: Bundle, device: str, threads: int | None = None, map_weights: bool = False
) -> OrtSession:
    """Open the engine on `device`. Raises TargetUnavailable if the provider does not start.

    ONNX Runtime copies a CPU's weights into the layout its products are fastest with, unless
    `map_weights` leaves them in the file, mapped.
    """

    def opened() -> Any:
        return start(bundle, device, session_options(device, threads, map_weights))

    return OrtSession(opened(), device, opened)


def layers(bundle: Bundle, device: str) -> EngineLayers:
    """The graph as ONNX Runtime optimises it on this machine."""
    from ptdeploy.targets.ort_layers import read_layers

    return read_layers(bundle, device)


def profiled(bundle: Bundle, device: str, threads: int | None) -> AbstractContextManager[Profiled]:
    """Open the engine with ONNX Runtime's profiler on."""
    from ptdeploy.targets.ort_profile import open_profiled

    return open_profiled(bundle, device, threads)


def session_options(device: str, threads: int | None = None, map_weights: bool = False) -> Any:
    """The options that every session has. Raises TargetUnavailable where none can be opened."""
    if problem := unavailable(device):
        raise TargetUnavailable(*problem)
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Products with dequantized weights would round the other side too, by default.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if map_weights:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # ONNX Runtime's own default counts the machine's cores, and ties a thread to each of them.
    options.intra_op_num_threads = threads or default_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(may_spin())))
    return options


def start(bundle: Bundle, device: str, options: Any) -> Any:
    """An InferenceSession over a bundle's model, on `device` and no other."""
    onnxruntime = import_onnxruntime()

    model, path = bundle.file("model"), bundle.in_folder("model")
    if model is None or path is None:
        raise BundleError(f"{bundle.path}: lists no file with the role 'model'.")
    _check_file(bundle)
    try:
        session = onnxruntime.InferenceSession(
            library_path(path), sess_options=options, providers=[_PROVIDERS[device]]
        )
    except Exception as error:  # onnxruntime's own errors share no public base class
        if ran_out_of_memory(error):
            raise out_of_memory(f"the engine {model} does not fit", error) from None
        why = reason(error).replace(str(path.parent), str(model.parent))
        raise BundleError(
            f"{model}: ONNX Runtime cannot load it ({why}).",
            "Compile the checkpoint again with the versions installed here.",
        ) from None
    # It found the weights by their name.
    bundle.check_unchanged()
    # onnxruntime logs a provider that fails to start and goes on with the CPU; we do not.
    if session.get_providers()[0] != _PROVIDERS[device]:
        raise TargetUnavailable(
            f"{_PROVIDERS[device]} did not start on this machine.",
            "Check the GPU driver and the CUDA and cuDNN versions that onnxruntime-gpu needs.",
        )
    for side, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        check_signature(str(model), bundle.manifest, side, [_spec(one) for one in found])
    return session


def _check_file(bundle: Bundle) -> None:
    """Raises BundleError unless every file that a graph names is one of the bundle's.

    ONNX Runtime reads whatever lies beside the graph; only what the manifest lists has a hash.
    """
    entry, model, opened = bundle.entry("model"), bundle.file("model"), bundle.opened("model")
    assert entry is not None, "the caller found it"
    assert opened is not None
    try:
        found = read_onnx_file(opened)
    except (ValueError, OSError) as error:
        raise BundleError(f"{model}: is no ONNX file ({error}).", AGAIN) from None
    listed = {os.path.normpath(one.path) for one in bundle.manifest.files}
    for name in sorted(found.external):
        place = os.path.join(os.path.dirname(entry.path), name)
        if "\0" in name or os.path.normpath(place) not in listed:
            raise BundleError(
                f"{model}: takes weights from {name!r}, which the manifest does not list.", AGAIN
            )
    words, wanted = found.words, bundle.manifest.limits.vocab_size
    if words is not None and words < wanted:
        raise BundleError(
            f"{model}: has {words} words, but the manifest's vocab_size is {wanted}.", AGAIN
        )


def _spec(argument: Any) -> TensorSpec:
    """One of a session's own inputs or outputs; an axis without a name is ''."""
    kind = str(argument.type)
    name = kind[7:-1] if kind.startswith("tensor(") else "no tensor"
    shape = tuple(axis if isinstance(axis, (int, str)) else "" for axis in argument.shape)
    return TensorSpec(str(argument.name), "float32" if name == "float" else name, shape, "")


@dataclass(frozen=True)
class OrtMemory:
    """Memory on a device. `value` keeps it: a host array itself, or an OrtValue.

    The memory is `shape[0]` of the value's rows, from `first` on.
    """

    device: str
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: Any
    first: int = 0

    def rows(self, rows: slice) -> OrtMemory:
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        first = self.first + start
        return replace(self, pointer=self.pointer + start * size, shape=shape, first=first)

    def read(self) -> NDArray[Any]:
        return self._of(self._whole())

    def write(self, array: NDArray[Any]) -> None:
        whole = self._whole()
        mine = self._of(whole)
        if array.ctypes.data != mine.ctypes.data:
            mine[...] = array
        if whole is not self.value:
            self.value.update_inplace(whole)

    def write_slots(self, lengths: NDArray[np.int64], tokens: OrtMemory) -> None:
        # Elsewhere than on a CPU ONNX Runtime copies whole values only.
        buffer, new = self.read(), tokens.read()
        for row, length, states in zip(buffer, lengths, new, strict=True):
            row[:, length : length + new.shape[2]] = states
        self.write(buffer)

    def _whole(self) -> NDArray[Any]:
        whole: NDArray[Any] = (
            self.value if isinstance(self.value, np.ndarray) else self.value.numpy()
        )
        return whole

    def _of(self, whole: NDArray[Any]) -> NDArray[Any]:
        part: NDArray[Any] = whole[self.first : self.first + self.shape[0]]
        return part


class OrtSession:
    """A loaded ONNX Runtime session.

    A process that was forked has none of its threads: there it is opened again, by `reopen`, when
    it is first used. What is bound to it follows, as the memory is copied by the fork.
    """

    def __init__(
        self, session: Any, device: str = "cpu", reopen: Callable[[], Any] | None = None
    ) -> None:
        self._session, self._device = session, device
        self._reopen, self._process = reopen, os.getpid()
        survive_forks(self)
        self._outputs = [output.name for output in session.get_outputs()]
        # Whether placed memory is this process's own.
        self.in_host_memory = device == "cpu"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        session = self._live()
        try:
            values = session.run(self._outputs, dict(inputs))
        except Exception as error:  # as in start
            raise run_error(error) from None
        return dict(zip(self._outputs, values, strict=True))

    def place(self, array: NDArray[Any]) -> OrtMemory:
        """Put an array on the session's device; on a CPU it stays where it is."""
        if self._device == "cpu":
            return _host(array)
        onnxruntime = import_onnxruntime()

        try:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        except Exception as error:  # as in start
            raise run_error(error) from None
        return OrtMemory(self._device, value.data_ptr(), array.shape, array.dtype, value)

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any] | Placed],
        outputs: Mapping[str, NDArray[Any] | Placed],
    ) -> Callable[[], None]:
        """Bind arrays by their memory; the function returned runs over what they then hold.

        An array may be input and output at once. All must be contiguous and stay as they are.
        """
        session = self._live()
        binding = self._binding(session, inputs, outputs)
        # The closure keeps the arrays: the binding knows only their addresses.
        kept = (inputs, outputs)

        def step() -> None:
            nonlocal session, binding
            if session is not self._live():
                session = self._live()
                binding = self._binding(session, *kept)
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # as in start
                raise run_error(error) from None

        return step

    def native(self) -> Any:
        """The session as it is: see forks.py."""
        return self._session

    def _live(self) -> Any:
        """The session, in the process that it was opened in."""
        if self._process == os.getpid():
            return self._session
        if self._device != "cpu" or self._reopen is None:
            raise cannot_follow(self._device)
        self._session = self._reopen()
        self._process = os.getpid()
        return self._session

    def _binding(
        self,
        session: Any,
        inputs: Mapping[str, NDArray[Any] | Placed],
        outputs: Mapping[str, NDArray[Any] | Placed],
    ) -> Any:
        binding = session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                memory = array if isinstance(array, OrtMemory) else _host(np.asarray(array))
                try:
                    bind(name, memory.device, 0, memory.dtype, memory.shape, memory.pointer)
                except Exception as error:
                    raise run_error(error) from None
        return binding


def _host(array: NDArray[Any]) -> OrtMemory:
    assert array.flags.c_contiguous
    return OrtMemory("cpu", array.ctypes.data, array.shape, array.dtype, array)
