"""The TensorRT backend in C++: compiled, and what it decides without a GPU compared with Python.

No test here runs an engine. The backend is compiled against TensorRT's headers where TENSORRT_ROOT
names them and against declarations otherwise; what those declare is defined on the host for one
test's program, whose engine fails as it is told.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import native
from support.tools import tool
from support.values import VALUES

from ptdeploy.backends.trt import cuda
from ptdeploy.backends.trt.deserialize import how_to_fit, how_to_rebuild, why_not_here
from ptdeploy.backends.trt.engine_file import EngineInfo, read_info
from ptdeploy.backends.trt.session import _room
from ptdeploy.bfloat16 import to_stored
from ptdeploy.bundle import read_bundle
from ptdeploy.errors import BundleError, OutOfMemory

LIBRARY = native.REPOSITORY / "ptdeploy" / "cpp"
SOURCES = ("backend_trt", "cuda", "engine_fit", "engine_info", "trt_engine", "trt_run")


def configured(folder: Path, **variables: str) -> list[dict[str, str]]:
    """How CMake would compile each file of the library with the backend."""
    native.configure(
        LIBRARY,
        folder,
        PTDEPLOY_TENSORRT="ON",
        CUDA_ROOT=str(native.cuda_root()),
        CMAKE_EXPORT_COMPILE_COMMANDS="ON",
        CMAKE_UNITY_BUILD="OFF",
        CMAKE_CXX_FLAGS="-Werror",
        **variables,
    )
    commands: list[dict[str, str]] = json.loads((folder / "compile_commands.json").read_text())
    return commands


def test_headers_and_library_are_of_one_folder(tmp_path):
    """A library by its version's name, as packages without a `dev` part have it, is taken too."""
    root, other, cuda = tmp_path / "root", tmp_path / "other", tmp_path / "cuda"
    for file in (
        *(root / "include" / "NvInferRuntime.h", root / "lib" / "libnvinfer.so.11"),
        *(cuda / "include" / "cuda_runtime_api.h", cuda / "lib" / "libcudart.so"),
        other / "libnvinfer.so",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "include" / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 11\n")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(found NONE)\n"
        "set(CMAKE_FIND_LIBRARY_PREFIXES lib)\nset(CMAKE_FIND_LIBRARY_SUFFIXES .so)\n"
        f'include("{LIBRARY}/cmake/tensorrt.cmake")\nmessage("found ${{TENSORRT_LIBRARY}}")\n'
    )
    said = native.checked(
        [
            *(tool("cmake"), "-S", str(tmp_path), "-B", str(tmp_path / "build")),
            *(f"-DTENSORRT_ROOT={root}", f"-DCUDA_ROOT={cuda}"),
        ],
        env={**os.environ, "LIB": str(other)},
    )
    assert f"found {root / 'lib' / 'libnvinfer.so.11'}\n" in said


@pytest.mark.parametrize("flavor", native.TENSORRT)
def test_the_backend_compiles_without_a_warning(tmp_path, flavor):
    root = native.tensorrt_root(flavor, tmp_path / "tensorrt")
    commands = configured(tmp_path / "build", TENSORRT_ROOT=str(root))
    by_name = {Path(one["file"]).stem: one for one in commands}
    assert by_name.keys() > {*SOURCES}
    # As one file they compile in a third of the time.
    together = tmp_path / "together.cc"
    together.write_text("".join(f'#include "{LIBRARY}/src/{name}.cc"\n' for name in SOURCES))
    for name in ("backend", "backend_trt"):
        words = shlex.split(by_name[name]["command"])
        if name == "backend_trt":
            words[words.index(by_name[name]["file"])] = str(together)
        native.checked(words, cwd=by_name[name]["directory"])
    symbols = native.checked(
        [tool("nm"), "-C", *map(str, (tmp_path / "build").rglob("backend*.o"))]
    )
    # Asked for where bundles are opened, and there.
    assert "U ptdeploy::detail::open_trt(" in symbols
    assert "T ptdeploy::detail::open_trt(" in symbols


def test_too_old_a_tensorrt_is_refused_when_it_is_compiled(tmp_path):
    root = native.tensorrt_root("full", tmp_path / "tensorrt")
    version = root / "include" / "NvInferVersion.h"
    version.write_text(version.read_text().replace("MINOR 15", "MINOR 14"))
    commands = configured(tmp_path / "build", TENSORRT_ROOT=str(root))
    (one,) = (one for one in commands if one["file"].endswith("trt_engine.cc"))
    done = subprocess.run(
        shlex.split(one["command"]),
        cwd=one["directory"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "ptdeploy needs TensorRT 10.15 or later" in done.stderr


def test_a_missing_tensorrt_or_cuda_is_named(tmp_path):
    def refusal(**variables: str) -> str:
        defines = {
            "PTDEPLOY_TENSORRT": "ON",
            "ONNXRUNTIME_ROOT": str(native.onnxruntime_root()),
            "CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit": "ON",
            **variables,
        }
        done = subprocess.run(
            [
                *(tool("cmake"), "-S", str(LIBRARY), "-B", str(tmp_path / "build")),
                *(f"-D{name}={value}" for name, value in defines.items()),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    nowhere = str(tmp_path / "nowhere")
    assert "-DTENSORRT_ROOT=/path/to/TensorRT" in refusal(TENSORRT_ROOT=nowhere)
    root = native.tensorrt_root(native.TENSORRT[0], tmp_path / "tensorrt")
    assert "-DCUDA_ROOT=/path/to/cuda" in refusal(TENSORRT_ROOT=str(root), CUDA_ROOT=nowhere)


def test_the_cuda_part_links_with_the_real_runtime_and_says_why_there_is_no_gpu(tmp_path):
    root = native.cuda_root()
    names = ("cuda", "errors", "printable")
    sources = (native.TESTS / "gpu.cc", *(LIBRARY / "src" / f"{name}.cc" for name in names))
    native.checked(
        [
            *(tool("c++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{LIBRARY / 'include'}", f"-I{LIBRARY / 'src'}", '-DPTDEPLOY_VERSION=""'),
            *("-isystem", str(root / "include"), *map(str, sources)),
            *(f"-L{root / 'lib'}", "-lcudart", f"-Wl,-rpath,{root / 'lib'}"),
            *("-o", str(tmp_path / "gpu")),
        ]
    )
    said = native.checked([str(tmp_path / "gpu")])
    assert said == "works" or said.startswith("CUDA")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """`steps(what)`: what the program says of six steps of which this fails."""
    folder = tmp_path_factory.mktemp("steps")
    root, program = native.tensorrt_root("rtx", folder / "tensorrt"), folder / "steps"
    names = (*SOURCES, "element_type", "errors", "numbers", "out_of_memory", "printable", "schema")
    own = (LIBRARY / "src" / f"{name}.cc" for name in names if name != "backend_trt")
    sources = (native.TESTS / "trt_steps.cc", *own)
    native.checked(
        [
            *(tool("c++"), "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{LIBRARY / 'include'}", f"-I{LIBRARY / 'src'}", '-DPTDEPLOY_VERSION=""'),
            *("-isystem", str(root / "include"), "-isystem", str(native.cuda_root() / "include")),
            # What reads engine.json is not called, nor what it needs linked.
            *("-ffunction-sections", "-Wl,--gc-sections", *map(str, sources), "-o", str(program)),
        ]
    )
    (folder / "plan").write_bytes(b"plan")
    return lambda *words: native.checked([str(program), str(folder / "plan"), *words])


def test_a_step_is_recorded_once_and_launched_from_then_on(steps):
    assert steps("nothing") == "right 1 4 0"


@pytest.mark.parametrize(
    ("fails", "tried"),
    [("uncapturable", 0), ("begin", 1), ("end", 1), ("instantiate", 1), ("enqueue", 1)],
)
def test_a_step_that_cannot_be_recorded_is_tried_once_and_goes_on_plainly(steps, fails, tried):
    assert steps(fails) == f"right {tried} 0 0"


@pytest.mark.parametrize("fails", ["context", "profile"])
def test_why_a_context_cannot_be_made_is_said_in_tensorrts_words(steps, fails):
    for said in (
        "Error Code 2: OutOfMemory (Requested size was 9.)",
        "Cuda Runtime (out of memory)",
    ):
        assert steps(fails, said) == (
            "OutOfMemory: The engine's scratch memory does not fit in the GPU's memory: 9461 MiB "
            f"for the largest request that its profile decode takes ({said})."
            "\nSend fewer requests side by side, or compile with a smaller --profile."
        )
    assert steps(fails, "the plan wants another GPU").startswith("EngineFault: TensorRT-RTX 1.7.1")
    assert "(the plan wants another GPU)" in steps(fails, "the plan wants another GPU")


def test_a_decode_step_waits_for_its_kernels_and_a_text_does_not(steps):
    """As in Python: see `_contexts` in ptdeploy/backends/trt/deserialize.py."""
    assert steps("kernels").split() == ["eager", "lazy"]


def test_a_request_that_the_gpu_has_no_room_for_is_refused_in_pythons_words(steps):
    with pytest.raises(OutOfMemory) as ours, _room():
        raise MemoryError("the GPU has no memory left")
    assert steps("memory") == f"OutOfMemory: {ours.value}"


def test_a_plan_that_the_gpu_has_no_room_for_is_not_called_unfit_for_it(steps):
    said = "Error Code 1: Cuda Runtime (out of memory)"
    assert re.fullmatch(
        r"OutOfMemory: Memory ran out on cuda: the engine \S+ does not fit\.", steps("plan", said)
    )
    assert "cannot load it" in steps("plan", "Error Code 3: the plan wants another GPU")


def test_an_output_over_an_input_is_one_that_the_engine_updates_in_place(steps):
    assert steps("aliased").startswith("right")
    assert steps("shared") == "BundleError: The engine does not update y in place."


def test_a_line_alone_is_copied_whatever_its_length(steps):
    """CUDA takes no pitch of 2 GiB."""
    assert steps("copy") == "line 0"


INFO: dict[str, Any] = {
    "flavor": "tensorrt",
    "version": "10.15.1.29",
    "gpu": "NVIDIA L4",
    "compute_capabilities": ["8.9", "8.6"],
    "profiles": [
        {
            "name": "decode",
            "shapes": {
                "input_ids": [[1, 1], [1, 1], [8, 1]],
                "past_lengths": [[1], [1], [8]],
                "past_key_values.0.key": [[1, 2, 64, 8], [1, 2, 64, 8], [8, 2, 64, 8]],
            },
        },
        {
            "name": "prefill",
            "shapes": {
                "input_ids": [[1, 1], [1, 128], [1, 512]],
                "past_lengths": [[1], [1], [1]],
                "past_key_values.0.key": [[1, 2, 64, 8], [1, 2, 64, 8], [1, 2, 64, 8]],
            },
        },
    ],
    "tf32": False,
    "strip_weights": False,
    "version_compatible": False,
    "hardware_compatibility": "none",
    "workspace": None,
    "optimization_level": 3,
    "precisions": {"float16": {"MatMul": 7}},
    "onnx_sha256": "00",
}


def engine(built: Path, *words: object, code: int = 0) -> str:
    done = subprocess.run(
        [built / "engine", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def written(folder: Path, info: dict[str, Any]) -> Path:
    (folder / "engine.json").write_text(json.dumps(info))
    return folder / "engine.json"


def text_of(info: EngineInfo) -> str:
    """As the program `engine` prints it."""
    names = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
    order = ("none", "ampere_plus", "same_compute_capability")
    flags = (info.strip_weights, info.version_compatible, order.index(info.hardware_compatibility))
    lines = [
        names[info.flavor],
        info.version,
        info.gpu,
        "".join(f"{one} " for one in info.compute_capabilities),
        "".join(f"{one} " for one in info.left_out),
        "".join(str(int(flag)) for flag in flags),
    ]
    for profile in info.profiles:
        for name, (least, _, most) in profile.shapes.items():
            lines.append(f"{name} {','.join(map(str, least))} {','.join(map(str, most))}")
    return "".join(f"{line}\n" for line in lines)


def same_reading(built: Path, file: Path) -> bool:
    """Asserts that C++ reads an engine.json, or refuses it, as Python does; gives which."""
    refused = False
    try:
        want = text_of(read_info(file))
    except BundleError as error:
        refused, want = True, f"{error.problem}\n{error.fix}"
    assert engine(built, "info", file, code=2 if refused else 0) == want
    return not refused


def test_an_engines_description_is_read_as_in_python(built, tmp_path):
    assert same_reading(built, written(tmp_path, INFO))
    rtx = {**INFO, "flavor": "rtx", "version": "1.7.1.116", "gpu": "", "compute_capabilities": []}
    assert same_reading(built, written(tmp_path, rtx))
    assert same_reading(built, written(tmp_path, {**rtx, "left_out": ["7.5", "8.0"]}))


@pytest.mark.parametrize(
    "change",
    [
        {"flavor": "abacus"},
        {"hardware_compatibility": "all"},
        {"surprise": 1},
        {"left_out": [8]},
        {"workspace": "much"},
        {"precisions": {"float16": {"MatMul": "x"}}},
        {"precisions": {"float16": 3}},
        {"profiles": [{"name": "idle", "shapes": {}}]},
        {"profiles": [{"name": "decode", "shapes": {"input_ids": [[1], [1]]}}]},
        {"profiles": [{"name": "decode", "shapes": {"input_ids": [[1], [1], [1], "x"]}}]},
        {"profiles": [{"name": "decode", "shapes": {"input_ids": [[1], ["x"]]}}]},
        {"profiles": [{"shapes": {}}]},
        {"tf32": 1},
    ],
    ids=str,
)
def test_another_description_is_refused_in_pythons_words(built, tmp_path, change):
    assert not same_reading(built, written(tmp_path, {**INFO, **change}))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_field_is_judged_as_in_python(built, tmp_path, data):
    info = json.loads(json.dumps(INFO))
    place: Any = info
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(VALUES)
        break
    same_reading(built, written(tmp_path, info))


def test_a_missing_or_endless_description_is_refused(built, tmp_path):
    with pytest.raises(BundleError) as refusal:
        read_info(None)
    assert engine(built, "info", "", code=2) == refusal.value.problem + "\n"
    (tmp_path / "engine.json").write_bytes(b" " * (4 * 1024 * 1024 + 1))
    assert not same_reading(built, tmp_path / "engine.json")


def test_an_engine_of_another_version_or_gpu_is_refused_in_pythons_words(built, tmp_path):
    gpus = {"NVIDIA L4": "8.9", "NVIDIA A100": "8.0", "NVIDIA T4": "7.5"}
    found = set()
    for (name, here), compatibility, capabilities, built_on in itertools.product(
        gpus.items(),
        ("none", "ampere_plus", "same_compute_capability"),
        (["8.9", "8.6"], []),
        ("NVIDIA L4", ""),
    ):
        changes = {
            "hardware_compatibility": compatibility,
            "compute_capabilities": capabilities,
            "gpu": built_on,
        }
        file = written(tmp_path, {**INFO, **changes})
        for version in ("10.15.1.29", "10.16.0.1"):
            want = fitting(built, file, version, cuda.Device(name, here, 1))
            found.add(want)
    # It fits; the version; and two GPUs that it does not fit, with its own GPU's name and without.
    assert len(found) == 6


def fitting(built: Path, file: Path, version: str, device: cuda.Device) -> str:
    """Why an engine does not fit and how to mend it, asserted to be the same in both languages."""
    info = read_info(file)
    want = why_not_here(info, version, device) or ""
    if want:
        bundle = SimpleNamespace(path="/any", file=lambda role: None)
        want += f"\n{how_to_fit(info, device, bundle)}"
    words = (info.flavor, version, device.name, *device.compute_capability.split("."))
    assert engine(built, "fit", file, *words) == want
    return want


def test_an_engine_that_leaves_a_gpu_out_is_refused_in_pythons_words(built, tmp_path):
    changes = {"flavor": "rtx", "version": "1.7.1.116", "gpu": "", "compute_capabilities": []}
    file = written(tmp_path, {**INFO, **changes, "left_out": ["7.5", "8.0"]})
    found = {
        here: fitting(built, file, "1.7.1.116", cuda.Device("a GPU", here, 1))
        for here in ("7.5", "8.0", "8.9")
    }
    assert found["8.9"] == ""
    assert "but compute capability 7.5, 8.0; here is 8.0 (a GPU).\nCompile" in found["8.0"]
    assert "--compute-capability 7.5, with" in found["7.5"]


def test_an_engine_of_the_other_flavor_is_refused(built, tmp_path):
    said = engine(built, "fit", written(tmp_path, INFO), "rtx", "1.7.1.116", "NVIDIA L4", 8, 9)
    assert said.splitlines()[0] == (
        "The engine was built by TensorRT 10.15.1.29; this build of ptdeploy's C++ library runs "
        "those of TensorRT-RTX."
    )


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("name", ["plain-1.bundle", "Bob's $HOME, x", "é", "a;b"])
def test_how_to_make_an_engine_that_fits_is_said_as_in_python(compiled, built, model, name):
    bundle = replace(read_bundle(compiled("gpt2", "CAUSAL_LM").bundle), path=Path("/any") / name)
    if not model:
        bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=()))
    assert engine(built, "rebuild", bundle.path, int(model)) == how_to_rebuild(bundle)


def test_a_run_takes_the_profile_that_python_takes(built, tmp_path):
    file = written(tmp_path, INFO)
    profiles = read_info(file).profiles
    found = set()
    for rows, tokens, slots in itertools.product((1, 2, 8, 9), (1, 2, 512, 513), (64, 63)):
        shapes = {
            "input_ids": (rows, tokens),
            "past_lengths": (rows,),
            "past_key_values.0.key": (rows, 2, slots, 8),
        }
        want = [i for i, profile in enumerate(profiles) if profile.takes(shapes)]
        words = [f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
        said = engine(built, "profile", file, *words, code=0 if want else 2)
        if want:
            assert said == str(want[0])
        else:
            names = {name: list(shape) for name, shape in shapes.items()}
            assert said.startswith(
                f"The engine was not built for this request: its shapes are {names}."
            )
        found.add(want[0] if want else None)
    assert found == {0, 1, None}
    assert engine(built, "profile", file, "input_ids=1,1", code=2)
    assert engine(built, "profile", file, "input_ids=1", "past_lengths=1", code=2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_prefix_is_rounded_as_numpy_rounds(built, dtype):
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    # Each float16 and bfloat16, what lies halfway between two, and a bit to either side of that.
    halves = np.arange(1 << 16, dtype=np.uint16)
    exact = np.concatenate(
        [halves.view(np.float16).astype(np.float32).view(np.uint32), halves.astype(np.uint32) << 16]
    )
    near = [exact + np.uint32(step) for step in (0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    tiny = (np.arange(1 << 12) / np.float32(1 << 27)).astype(np.float32).view(np.uint32)
    values = np.concatenate([bits, *near, tiny]).view(np.float32)
    with np.errstate(over="ignore"):
        want = to_stored(values, dtype)
    done = subprocess.run(
        [built / "engine", "round", dtype], input=values.tobytes(), capture_output=True, check=True
    )
    got = np.frombuffer(done.stdout, want.dtype)
    plain = ~np.isnan(values)
    assert np.array_equal(got[plain].view(np.uint8), want[plain].view(np.uint8))
    if dtype == "float16":
        assert np.isnan(got[~plain]).all()
    elif dtype == "bfloat16":
        assert (got[~plain] == 0x7FC0).all()
