"""The public API on the command line.

Exit codes: 0 done, 1 parity departs, 2 bad input, 3 target not available here, 4 a fault of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptdeploy import __version__
from ptdeploy.backends import BACKENDS, engine_facts, engine_words, get_backend
from ptdeploy.backends.telemetry import switch_off
from ptdeploy.bundle.precision import default_words, quantized
from ptdeploy.bundle.task import Task
from ptdeploy.cli.console import (
    abandon,
    complain,
    complain_of,
    finish,
    open_streams,
    show,
    show_json,
    show_json_text,
)
from ptdeploy.cli.run import GENERATION
from ptdeploy.errors import InputError, OutputError, PtdeployError
from ptdeploy.memory import out_of_memory, ran_out_of_memory
from ptdeploy.printable import printable, printable_fields
from ptdeploy.progress import Progress
from ptdeploy.signals import EndedBySignal, end_by_signals
from ptdeploy.targets import TARGETS, get_target

if TYPE_CHECKING:
    from ptdeploy.bundle import Manifest
    from ptdeploy.targets.options import TargetOptions

_TASKS = [task.value for task in Task]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_streams()
    switch_off()
    with end_by_signals():
        return _command(argv)


def _command(argv: Sequence[str] | None) -> int:
    arguments = argparse.Namespace(json=False)
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        finish()
        return code
    except SystemExit:
        # --help and --version end so; a console that takes neither is no reason to fail.
        with contextlib.suppress(OutputError):
            finish()
        raise
    except PtdeployError as error:
        return _refuse(arguments, error)
    except KeyboardInterrupt as ended:
        number = ended.signal if isinstance(ended, EndedBySignal) else signal.SIGINT
        complain(f"ptdeploy: ended by {number.name}; nothing half made is left.")
        return 128 + number
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while it shuts down.
        abandon(sys.stdout)
        return 141
    except OSError as error:
        if ran_out_of_memory(error):
            return _out_of_memory(arguments, error)
        # A path too long, a disk full, a device that fails: the system's reason is the message.
        complain(f"ptdeploy: {error.filename or 'input'}: {error.strerror or error}.")
        return 2
    except Exception as error:
        if ran_out_of_memory(error):
            return _out_of_memory(arguments, error)
        # Python's own exit code for a traceback is 1, which a gate would read as a departure.
        complain(traceback.format_exc())
        complain("ptdeploy: this is a fault in ptdeploy; please report the above.")
        return 4


def _refuse(arguments: argparse.Namespace, error: PtdeployError) -> int:
    if getattr(arguments, "json", False):
        with contextlib.suppress(OutputError, BrokenPipeError):
            show_json({"error": error.problem, "fix": error.fix, "exit": error.exit_code})
            finish()
    complain_of(error)
    return error.exit_code


def _out_of_memory(arguments: argparse.Namespace, error: Exception) -> int:
    return _refuse(arguments, out_of_memory("there is too little of it here", error))


def _compile(arguments: argparse.Namespace) -> int:
    import msgspec

    from ptdeploy.bundle.quantization import Rounding
    from ptdeploy.commands.compile import compile_checkpoint
    from ptdeploy.commands.inspect import inspect, megabytes, tokenizer_words
    from ptdeploy.commands.request import CompileRequest

    request = CompileRequest(
        **_asked(
            CompileRequest,
            arguments,
            rounding=Rounding(**_asked(Rounding, arguments)),
            engine=_engine_options(arguments),
        )
    )
    bundle = compile_checkpoint(request, _progress(arguments))
    if arguments.json:
        return _print_json(inspect(bundle.path))
    manifest, path = printable_fields(bundle.manifest), printable(str(bundle.path))
    prompt = manifest.prompt
    size = sum(entry.size for entry in manifest.files)
    frozen = f"{prompt.num_virtual_tokens} virtual tokens"
    if prompt.prefix_kv:
        frozen += f" as prefix KV {list(prompt.prefix_kv)}"
    computed = engine_words(manifest.target, engine_facts(bundle)).computes
    types = "".join(f"          {dtype}: {words}\n" for dtype, words in computed)
    tokenizer = None if manifest.tokenizer is None else msgspec.to_builtins(manifest.tokenizer)
    ask = '"text"' if bundle.file("tokenizer") else "--ids 1,2,3"
    show(
        f"read      {manifest.source.format}, {manifest.task.value} on "
        f"{manifest.source.architecture} ({manifest.source.base_model})\n"
        f"frozen    {frozen} ({prompt.kind})\n"
        f"tokenizer {tokenizer_words(tokenizer)}\n"
        f"{_head_line(manifest)}"
        f"graph     {manifest.graph.route}: {manifest.graph.reason}\n"
        f"bundle    {path}, {megabytes(size)}, {manifest.target} {manifest.precision} on "
        f"{manifest.device}\n{types}"
        f"{_parity_lines(manifest)}"
        f"run it    ptdeploy run {path} {ask}\n"
        f'          ptdeploy.load("{path}") in Python, without torch'
    )
    return 0


def _head_line(manifest: Manifest) -> str:
    from ptdeploy.commands.inspect import HEADS
    from ptdeploy.runtime import ENGINES

    if not manifest.labels:
        return ""
    names = ", ".join(manifest.labels[:6]) + (", ..." if len(manifest.labels) > 6 else "")
    one_of_several = len(ENGINES[manifest.task].heads) > 1
    kind = HEADS[manifest.head].partition(":")[0] if one_of_several else "a class"
    return f"head      {kind} over {names}\n"


def _parity_lines(manifest: Manifest) -> str:
    from ptdeploy.commands.inspect import agreement_words
    from ptdeploy.parity.checks import ratio_words

    manifest, lines = printable_fields(manifest), ""
    for found, of in ((manifest.parity, ""), (manifest.graph_parity, "of the engine's graph: ")):
        if found is None or (lines and of):
            continue
        lines += (
            f"parity    {of}max abs {found.max_abs:.2g} over {found.cases} cases"
            f"{agreement_words(manifest.head, bool(manifest.quantization), found.top1_agreement)}"
            f"{ratio_words(found.perplexity_ratio)}\n"
            f"          against {found.reference}\n"
        )
    if manifest.parity is None:
        lines += "          of the engine: PENDING, it cannot run here\n"
    return lines


def _inspect(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.inspect import describe, inspect

    facts = inspect(
        arguments.path, arguments.adapter, _task(arguments.task), layers=arguments.layers
    )
    if arguments.json:
        return _print_json(facts)
    show(describe(facts))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.request import VerifyRequest
    from ptdeploy.commands.verify import verify_bundle
    from ptdeploy.parity.reports import report_json
    from ptdeploy.parity.reports.text import describe

    request = VerifyRequest(**_asked(VerifyRequest, arguments))
    report = verify_bundle(request, _progress(arguments))
    if arguments.json:
        show_json_text(report_json(report).decode())
    else:
        show(describe(report))
        if arguments.report:
            show(f"report: {printable(arguments.report)}/report.html")
    return 0 if report.passed else 1


def _diff(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.diff import compare_bundles, describe

    most = arguments.max_slowdown
    if arguments.rounds < 1:
        raise InputError(f"--rounds {arguments.rounds}: must be at least 1.")
    if most is not None and not most > 0:
        raise InputError(f"--max-slowdown {most}: must be more than 0.")
    found = compare_bundles(
        arguments.before, arguments.after, arguments.speed or most is not None, arguments.rounds
    )
    slow = [one for one in found.speed if most is not None and not one.ratio <= most]
    if arguments.json:
        import msgspec

        _print_json(msgspec.to_builtins(found))
    else:
        show(describe(found))
        for one in slow:
            show(f"TOO SLOW: {one.request} takes {one.ratio:.2f} times as long, allowed {most}")
    return 1 if slow else 0


def _rebuild(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.inspect import inspect
    from ptdeploy.commands.rebuild import rebuild_bundle
    from ptdeploy.commands.request import RebuildRequest

    request = RebuildRequest(
        **_asked(RebuildRequest, arguments, engine=_rebuild_options(arguments))
    )
    bundle = rebuild_bundle(request, _progress(arguments))
    if arguments.json:
        return _print_json(inspect(bundle.path))
    show(f"bundle    {printable(str(bundle.path))}\n{_parity_lines(bundle.manifest)}", end="")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.profile import describe, profile_bundle

    if arguments.top < 1:
        raise InputError(f"--top {arguments.top}: must be at least 1.")
    found = profile_bundle(
        arguments.bundle,
        batch=arguments.batch,
        tokens=arguments.tokens,
        rounds=arguments.rounds,
        device=arguments.device,
        threads=arguments.threads,
        progress=_progress(arguments),
    )
    if arguments.json:
        return _print_json(dataclasses.asdict(found))
    show(describe(found, arguments.top))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ptdeploy.cli.run import run

    return run(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.doctor import describe, examine

    facts = examine()
    if arguments.json:
        _print_json(facts)
    else:
        show(describe(facts))
    return 3 if facts["problems"] else 0


def _cpp_new(arguments: argparse.Namespace) -> int:
    from ptdeploy.cpp import new_project

    folder = Path(arguments.folder)
    manifest, names = new_project(folder, Path(arguments.bundle))
    known = manifest.target in BACKENDS
    flags = " ".join(get_backend(manifest.target).cmake) if known else ""
    more = f" \\\n          {flags}" if flags else ""
    if arguments.json:
        return _print_json({"folder": str(folder), "files": names})
    show(
        f"wrote     {', '.join(str(folder / name) for name in names)}\n"
        f"build it  cmake -S {folder} -B {folder / 'build'} -DONNXRUNTIME_ROOT=/path/to/onnxruntime"
        f"{more}\n          cmake --build {folder / 'build'}"
    )
    return 0


class _CMakeDir(argparse.Action):
    """Print where find_package(ptdeploy) looks, as --version prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ptdeploy.cpp import cmake_dir

        show(str(cmake_dir()))
        parser.exit()


def _asked(kind: type[Any], arguments: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """The fields of a request by the options of the same names; `given` ones have other names."""
    names = (one.name for one in dataclasses.fields(kind))
    return {name: given[name] if name in given else getattr(arguments, name) for name in names}


def _engine_options(arguments: argparse.Namespace) -> TargetOptions:
    """What was asked of the target, or of another one: that is refused like any wrong option."""
    own: TargetOptions = get_target(arguments.target).read_options(arguments)
    others = (get_target(one).read_options(arguments) for one in TARGETS if one != arguments.target)
    return next((one for one in others if one.given()), own)


def _rebuild_options(arguments: argparse.Namespace) -> TargetOptions | None:
    asked = (get_target(one).read_rebuild_options(arguments) for one in TARGETS)
    return next((one for one in asked if one is not None), None)


def _task(name: str | None) -> Task | None:
    return Task(name) if name else None


def _progress(arguments: argparse.Namespace) -> Progress:
    return Progress(quiet=arguments.quiet)


def _print_json(facts: dict[str, Any]) -> int:
    show_json(facts, indent=2)
    return 0


def _devices() -> list[str]:
    return sorted({device for name in BACKENDS for device in get_backend(name).devices})


def _default_devices() -> str:
    return ", ".join(f"{get_backend(name).devices[0]} for {name}" for name in BACKENDS)


def _precisions() -> str:
    return "; ".join(
        f"{name} on {device}: {', '.join(get_target(name).precisions(device))}"
        for name in TARGETS
        for device in get_backend(name).devices
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ptdeploy",
        description="Compile P-Tuned language models to bundles that run without PyTorch.",
        epilog="Exit codes: 0 done, 1 parity departs, 2 bad input, 3 target not available here, "
        "4 a fault in ptdeploy.",
    )
    parser.add_argument("--version", action="version", version=f"ptdeploy {__version__}")
    parser.add_argument(
        "--cmake-dir", action=_CMakeDir, nargs=0, help="print ptdeploy_DIR for CMake, and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="JSON on standard output")
        return sub

    def checkpoint_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--adapter", metavar="NAME", help="which of several adapters")

    def long_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--base", metavar="PATH_OR_ID", help="base model, over the adapter's own")
        sub.add_argument(
            "--tokenizer",
            metavar="PATH_OR_ID",
            help="default: the checkpoint's own, else the base model's; none: token ids only",
        )
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")

    sub = command("compile", _compile, "Compile a P-Tuned checkpoint into a verified bundle.")
    sub.add_argument(
        "checkpoint", help="PEFT adapter folder, Trainer checkpoint, or state dict file"
    )
    sub.add_argument("--target", required=True, choices=sorted(TARGETS), help="what is to run it")
    sub.add_argument("-o", "--output", metavar="BUNDLE", help="default: ./NAME.TARGET.bundle")
    sub.add_argument("--device", choices=_devices(), help=f"default: {_default_devices()}")
    sub.add_argument(
        "--precision",
        metavar="TYPE",
        help=f"default: the first; {_precisions()}",
    )
    sub.add_argument("--labels", metavar="A,B,C|FILE", help="class names, by index")
    sub.add_argument(
        "--head",
        choices=("softmax", "sigmoid", "regression"),
        help="what SEQ_CLS logits are: scores of classes of which one is true, of classes each "
        "true or not, or the answer itself; default: as config.json's problem_type says",
    )
    sub.add_argument("--task", choices=_TASKS, help="for a state dict without adapter_config.json")
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    sub.add_argument(
        "--golden",
        type=int,
        metavar="N",
        help="reference rows to store for verify without the checkpoint, at least 1; "
        "default: 8 or 9 random ones and up to 8 texts",
    )
    causal = sub.add_argument_group("causal models")
    causal.add_argument(
        "--no-freeze-kv",
        dest="freeze_kv",
        action="store_false",
        help="keep the virtual tokens as embeddings in the graph, run with each prefill",
    )
    causal.add_argument("--max-batch", type=int, metavar="N", help="most rows of one request")
    causal.add_argument(
        "--max-context", type=int, metavar="N", help="most tokens of a row, with virtual tokens"
    )
    for name in TARGETS:
        get_target(name).add_options(sub)
    rounding = sub.add_argument_group(
        ", ".join(quantized()),
        "Quantized weights are accepted or refused on text, against PyTorch in fp32.",
    )
    rounding.add_argument("--block-size", type=int, metavar="N", help="weights a scale")
    rounding.add_argument(
        "--accuracy-level", type=int, metavar="L", help="1 computes in fp32, 4 in int8 (default)"
    )
    rounding.add_argument(
        "--min-agreement",
        type=float,
        metavar="A",
        help=f"top-1; default: {default_words('min_agreement')}",
    )
    rounding.add_argument(
        "--max-perplexity-ratio",
        type=float,
        metavar="R",
        help=f"default: {default_words('max_perplexity_ratio')}",
    )
    rounding.add_argument(
        "--max-logits-error",
        type=float,
        metavar="E",
        help=f"classifiers; default: {default_words('max_logits_error')}",
    )
    rounding.add_argument(
        "--quality-text", metavar="FILE", help="judge on this, a text a line; default: our own"
    )
    checkpoint_options(sub)
    long_options(sub)

    sub = command("verify", _verify, "Check a bundle's files and its parity with PyTorch.")
    sub.add_argument("bundle")
    sub.add_argument(
        "--checkpoint",
        metavar="CKPT",
        help="compute the reference again with PEFT; default: the one stored in the bundle",
    )
    sub.add_argument(
        "--data",
        metavar="FILE",
        help='compare on your own data too: JSONL with {"text": ...} or {"ids": [...]}, '
        '"text_pair" or "token_type_ids", and "label" to score it',
    )
    sub.add_argument(
        "--thresholds", metavar="FILE", help="JSON with bounds over the precision's own"
    )
    sub.add_argument(
        "--locate",
        action="store_true",
        help="name the first module that departs; needs --checkpoint",
    )
    sub.add_argument(
        "--report",
        metavar="DIR",
        help="write report.json, junit.xml, report.md, report.html and the smallest failing input",
    )
    sub.add_argument(
        "--graph",
        action="store_true",
        help="without a GPU: not the engine but the graph that it was built from",
    )
    checkpoint_options(sub)
    long_options(sub)

    sub = command("diff", _diff, "Say what changed from one bundle to another.")
    sub.add_argument("before", metavar="BUNDLE_A")
    sub.add_argument("after", metavar="BUNDLE_B")
    sub.add_argument(
        "--speed", action="store_true", help="time both engines on the same requests, in turns"
    )
    sub.add_argument(
        "--max-slowdown",
        type=float,
        metavar="R",
        help="time them, and exit 1 if B takes over R times as long as A",
    )
    sub.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="timed turns of each; default: 15"
    )

    sub = command("run", _run, "Run a bundle on text.")
    sub.add_argument("bundle")
    sub.add_argument("text", nargs="*")
    sub.add_argument("--file", metavar="FILE", help="one text a line; - for standard input")
    sub.add_argument(
        "--ids", metavar="1,2,3", action="append", default=[], help="token ids instead of text"
    )
    sub.add_argument(
        "--pair",
        metavar="TEXT",
        action="append",
        default=[],
        help="the second text of a pair, one for each text; classifiers only",
    )
    sub.add_argument(
        "--pairs", action="store_true", help="a line of --file is two texts, a tab between them"
    )
    sub.add_argument(
        "--token-type-ids",
        metavar="0,0,1",
        action="append",
        default=[],
        help="the segment of each of --ids; default: all 0",
    )
    sub.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    sub.add_argument("--device", choices=_devices(), help="default: the bundle's")
    sub.add_argument("--threads", type=int, metavar="N", help="default: the engine's")
    sub.add_argument(
        "--map-weights",
        action="store_true",
        help="leave weights in the file: opens fast, runs slower",
    )
    causal = sub.add_argument_group("causal models", "What is not given is the model's default.")
    for name, settings in GENERATION.items():
        causal.add_argument(f"--{name.replace('_', '-')}", **settings)

    sub = command("rebuild", _rebuild, "Build a bundle's engine again, for this machine.")
    sub.add_argument("bundle", help="one that was compiled with its ONNX")
    sub.add_argument("-o", "--output", metavar="BUNDLE", help="default: the bundle is replaced")
    for name in TARGETS:
        get_target(name).add_rebuild_options(sub)
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress")

    sub = command("inspect", _inspect, "Say what a checkpoint or a bundle is.")
    sub.add_argument("path")
    sub.add_argument("--task", choices=_TASKS, help="for a state dict without adapter_config.json")
    sub.add_argument(
        "--layers",
        action="store_true",
        help="open the bundle's engine, and list the layers it runs, their types and its memory",
    )
    checkpoint_options(sub)

    sub = command("profile", _profile, "Time each layer of a bundle's engine.")
    sub.add_argument("bundle")
    sub.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="rows of a request, or of a decode step; default: 1",
    )
    sub.add_argument("--tokens", type=int, metavar="N", help="in each row; default: 32")
    sub.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="timed runs, after a few; default: 20"
    )
    sub.add_argument("--device", choices=_devices(), help="default: the bundle's")
    sub.add_argument("--threads", type=int, metavar="N", help="default: the engine's")
    sub.add_argument(
        "--top", type=int, default=20, metavar="N", help="lines of each table; default: 20"
    )
    sub.add_argument("-q", "--quiet", action="store_true", help="no progress")

    sub = command("cpp-new", _cpp_new, "Write a C++ project that runs a bundle.")
    sub.add_argument("folder", metavar="DIR", help="a new or empty folder")
    sub.add_argument("bundle")

    command("doctor", _doctor, "Say what is installed and which targets can run here.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
