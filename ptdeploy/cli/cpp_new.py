"""The command `cpp-new`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptdeploy.arguments import output
from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parser import path
from ptdeploy.printable import printable, shell_word
from ptdeploy.text_files import system_text

SUMMARY = "Write a C++ project that runs a bundle."


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", type=path, metavar="DIR", help="a new or empty folder")
    options.add_bundle(sub)


def run(arguments: argparse.Namespace) -> int:
    from ptdeploy.cpp import cmake_flags, new_project, target_name

    folder = Path(output("DIR", arguments.folder))
    manifest, names = new_project(folder, Path(arguments.bundle))
    flags = cmake_flags(manifest)
    more = "".join(f" \\\n          {flag}" for flag in flags)
    if arguments.json:
        return show_json_facts({"folder": str(folder), "files": names})
    source, build = shell_word(folder), shell_word(folder / "build")
    program = shell_word(folder / "build" / target_name(folder))
    takes_text = any(entry.role == "tokenizer_program" for entry in manifest.files)
    row = '"some text"' if takes_text else "5,6,7"
    show(
        f"wrote     {', '.join(printable(str(folder / name)) for name in names)}\n"
        f"build it  cmake -S {source} -B {build} -DONNXRUNTIME_ROOT=/path/to/onnxruntime"
        f"{more}\n          cmake --build {build}\n"
        f"run it    {program} {row}\n"
        f"opens     {printable(system_text(str(Path(arguments.bundle).absolute())))} (in main.cc)"
    )
    return 0
