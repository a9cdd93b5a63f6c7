"""The C++ library's sources, and new projects that use it. See docs/cpp.md."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ptdeploy.backends import BACKENDS, get_backend
from ptdeploy.bundle import Manifest, read_bundle
from ptdeploy.errors import OutputError, TargetUnavailable
from ptdeploy.text_files import library_path

_HERE = Path(__file__).parent


def cmake_dir() -> Path:
    """The folder to give CMake as `ptdeploy_DIR`."""
    return _HERE / "cmake"


def cmake_flags(manifest: Manifest) -> list[str]:
    """What CMake must be told for a bundle besides where ONNX Runtime is.

    OpenVINO's folders are those of its Python packages, where these are installed.
    """
    flags = list(get_backend(manifest.target).cmake) if manifest.target in BACKENDS else []
    reads_text = any(entry.role == "tokenizer_program" for entry in manifest.files)
    if reads_text:
        openvino = get_backend("openvino").cmake
        tokenizers = "-DPTDEPLOY_OPENVINO_TOKENIZERS=/path/to/libopenvino_tokenizers.so"
        flags = [*(flag for flag in flags if flag not in openvino), *openvino, tokenizers]
    for package, place, file in (
        ("openvino", "/path/to/openvino/cmake", "cmake"),
        (
            "openvino_tokenizers",
            "/path/to/libopenvino_tokenizers.so",
            "lib/libopenvino_tokenizers.so",
        ),
    ):
        found = find_spec(package)
        installed = Path(found.origin).parent / file if found and found.origin else None
        if installed is not None and installed.exists():
            flags = [flag.replace(place, shlex.quote(str(installed))) for flag in flags]
    return flags


def new_project(folder: Path, bundle: Path) -> tuple[Manifest, list[str]]:
    """Write a project that opens `bundle` into `folder`; gives its manifest and the files' names.

    Raises BundleError if the bundle is damaged, OutputError unless `folder` is new or empty,
    InputError if the bundle's name is not UTF-8, TargetUnavailable if the C++ library does not run
    its engine.
    """
    place = library_path(bundle.absolute(), "the project's sources name it in UTF-8")
    opened = read_bundle(bundle)
    manifest = opened.manifest
    refused = get_backend(manifest.target).no_cpp(opened) if manifest.target in BACKENDS else None
    if refused:
        raise TargetUnavailable(*refused)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is not a folder.", "Choose another folder for the project.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty.", "Choose another folder for the project.")
    words = {
        "@NAME@": target_name(folder),
        "@CMAKE_DIR@": cmake_dir().as_posix(),
        # A JSON string is a C++ one.
        "@BUNDLE@": json.dumps(place, ensure_ascii=False),
    }
    sources = {
        "CMakeLists.txt": "CMakeLists.txt",
        "main.cc": f"{manifest.task.value.lower()}.cc",
        "arguments.hpp": "arguments.hpp",
    }
    texts = {}
    for name, source in sources.items():
        text = (_HERE / "template" / source).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        texts[name] = text
    _write_new(folder, texts)
    return manifest, list(sources)


def _write_new(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files that are not there yet, all of them or none."""
    is_new = not folder.exists()
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                made.append(folder / name)
                file.write(text)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"{folder}: cannot be written ({error.strerror}).") from error
        raise


def target_name(folder: Path) -> str:
    """A name that CMake takes for a target, from the folder's."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", folder.absolute().name).strip("_")
    return name if name and name not in _RESERVED and not name[0].isdigit() else f"run_{name}"


# Targets that a CMake project has already with one generator or another, and the library's own.
# Source: CMake's cmGlobalGenerator, IsReservedTarget and the names beside it.
_RESERVED = {
    *("all", "ALL_BUILD", "clean", "codegen", "edit_cache", "help", "install", "INSTALL"),
    *("list_install_components", "package", "PACKAGE", "package_source", "preinstall"),
    *("rebuild_cache", "RUN_TESTS", "test", "ZERO_CHECK", "ptdeploy"),
}
