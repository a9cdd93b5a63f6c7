"""The public API on the command line.

Exit codes are in `EXIT_CODES`, and in what `--help` says.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ptdeploy import __version__
from ptdeploy.backends.telemetry import switch_off
from ptdeploy.cli import (
    compile,
    convert,
    cpp_new,
    diff,
    doctor,
    inspect,
    profile,
    prompt,
    rebuild,
    run,
    verify,
)
from ptdeploy.cli.console import (
    complain,
    complain_of,
    finish,
    open_streams,
    show,
    show_json,
)
from ptdeploy.cli.ending import asks_for_json, to_the_end
from ptdeploy.cli.parser import CommandParser, UsageError
from ptdeploy.errors import OutputError, PtdeployError
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.signals import interruption

# In the order of --help; each module has a SUMMARY, add_options() and run().
COMMANDS = {
    "compile": compile,
    "verify": verify,
    "diff": diff,
    "run": run,
    "prompt": prompt,
    "rebuild": rebuild,
    "convert": convert,
    "inspect": inspect,
    "profile": profile,
    "cpp-new": cpp_new,
    "doctor": doctor,
}

EXIT_CODES = (
    "Exit codes: 0 done; 1 parity or a bound on your data does not hold, or diff --max-slowdown "
    "is exceeded; 2 bad input, or an engine that fails on good input; 3 the target or enough "
    "memory is not available here, or doctor found a problem; 4 a fault in ptdeploy; 130 "
    "interrupted (by another signal: 128 and its number); 141 whoever read the output has gone."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_streams()
    switch_off()
    return to_the_end(lambda: _command(argv), _words(argv))


def _command(argv: Sequence[str] | None) -> int:
    arguments = argparse.Namespace(json=asks_for_json(_words(argv)))
    try:
        try:
            arguments = _parser().parse_args(argv)
            code: int = arguments.command(arguments)
            finish()
            return code
        except Exception as error:
            if ended := interruption(error):
                raise ended from error
            raise
    except UsageError as error:
        _show_error(arguments, error.problem, error.fix, error.exit_code)
        raise
    except PtdeployError as error:
        error.reword(lambda text: _as_typed(text, _words(argv)))
        return _refuse(arguments, error)
    except BrokenPipeError:
        raise  # no input's: whoever read our output has gone
    except OSError as error:
        if ran_out_of_memory(error):
            return _out_of_memory(arguments, error)
        # A path too long, a disk full, a device that fails: the system's reason is the message.
        problem = f"{error.filename or 'input'}: {error.strerror or error}."
        return _refuse(arguments, PtdeployError(problem))
    except Exception as error:
        if ran_out_of_memory(error):
            return _out_of_memory(arguments, error)
        # Python's own exit code for a traceback is 1, which a gate would read as a mismatch.
        problem = f"A fault in ptdeploy: {''.join(traceback.format_exception_only(error)).strip()}"
        complain(traceback.format_exc())
        complain("ptdeploy: this is a fault in ptdeploy; please report the above.")
        _show_error(arguments, problem, "Please report what is on standard error.", 4)
        return 4


def _words(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


def _as_typed(text: str, words: Sequence[str]) -> str:
    """What says that a parameter is of a wrong value, with the option that was typed for it."""
    name, _, rest = text.partition(" is ")
    option = "--" + name.rpartition(".")[2].replace("_", "-")
    typed = any(word.partition("=")[0] == option for word in words)
    return f"{option} is {rest}" if typed else text


def _refuse(arguments: argparse.Namespace, error: PtdeployError) -> int:
    complain_of(error)
    _show_error(arguments, error.problem, error.fix, error.exit_code)
    return error.exit_code


def _show_error(arguments: argparse.Namespace, problem: str, fix: str, code: int) -> None:
    """With --json, print an error to standard output, if that takes it."""
    if getattr(arguments, "json", False):
        with contextlib.suppress(OutputError):
            show_json({"error": problem, "fix": fix, "exit": code})


def _out_of_memory(arguments: argparse.Namespace, error: Exception) -> int:
    return _refuse(arguments, out_of_memory("there is too little of it here", error))


class _CMakeDir(argparse.Action):
    """Print where find_package(ptdeploy) looks, as --version prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ptdeploy.cpp import cmake_dir

        show(str(cmake_dir()))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ptdeploy",
        description="Compile trained prompts and their models to bundles that run without PyTorch.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"ptdeploy {__version__}")
    parser.add_argument(
        "--cmake-dir", action=_CMakeDir, nargs=0, help="print ptdeploy_DIR for CMake, and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        sub.set_defaults(command=command.run)
        sub.add_argument("--json", action="store_true", help="JSON on standard output")
        command.add_options(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
