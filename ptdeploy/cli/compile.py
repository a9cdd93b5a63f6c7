"""The command `compile`."""

from __future__ import annotations

import argparse
import json

from ptdeploy.backends import engine_facts, engine_words, get_backend
from ptdeploy.bundle import DEFAULT_PROMPT, Manifest
from ptdeploy.bundle.precision import default_words, quantized
from ptdeploy.bundle.signature import words_of
from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json_facts
from ptdeploy.cli.parity_lines import parity_lines, prompt_parity_lines
from ptdeploy.cli.parser import path
from ptdeploy.errors import InputError
from ptdeploy.printable import number_of, printable, printable_fields, shell_word
from ptdeploy.targets import TARGETS, get_target
from ptdeploy.targets.options import TargetOptions

SUMMARY = "Compile a trained prompt and its base model into a verified bundle."


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "checkpoint",
        type=path,
        metavar="CHECKPOINT",
        nargs="?",
        help="PEFT adapter folder, Trainer checkpoint, state dict file, file of one tensor, or "
        ".nemo file; "
        "without one, --base and --task CAUSAL_LM make a bundle without a prompt",
    )
    runs = sub.add_mutually_exclusive_group(required=True)
    runs.add_argument("--target", choices=sorted(TARGETS), help="what is to run it")
    runs.add_argument(
        "--over",
        type=path,
        metavar="BUNDLE",
        help="a bundle whose engine is to run it: makes a pack, the prompt alone",
    )
    sub.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="PATH",
        help="default: ./NAME.TARGET.bundle, or with --over ./NAME.prompt",
    )
    sub.add_argument(
        "--name",
        help=f"what the prompt is called; default: {DEFAULT_PROMPT}, or with --over as the pack; "
        "of --task-id all A,B,C, or one with {task} in it",
    )
    sub.add_argument(
        "--device", choices=options.devices(), help=f"default: {options.default_devices()}"
    )
    sub.add_argument(
        "--precision",
        metavar="TYPE",
        help=f"default: the first; {_precisions()}",
    )
    sub.add_argument("--labels", type=path, metavar="A,B,C|FILE", help="class names, by index")
    options.add_head(sub)
    options.add_task(sub)
    sub.add_argument("--force", action="store_true", help="replace a bundle that is there")
    options.add_golden(sub)
    options.add_cpp_tokenizer(sub)
    sub.add_argument(
        "--prompt-kinds",
        choices=("own", "all"),
        default="own",
        help="all: an encoder's engine takes virtual tokens and prefix KV; default: %(default)s, "
        "what the checkpoint has",
    )
    _add_causal(sub)
    for name in TARGETS:
        get_target(name).add_options(sub)
    _add_quantization(sub)
    options.add_adapter(sub)
    options.add_task_id(sub, or_all=True)
    options.add_checkpoint(sub)


def _add_causal(sub: argparse.ArgumentParser) -> None:
    causal = sub.add_argument_group("causal models")
    causal.add_argument(
        "--no-freeze-kv",
        dest="freeze_kv",
        action="store_false",
        help="keep the virtual tokens as embeddings, and run them with each prefill",
    )
    causal.add_argument("--max-batch", type=int, metavar="N", help="most rows of one request")
    causal.add_argument(
        "--max-context", type=int, metavar="N", help="most tokens of a row, with virtual tokens"
    )


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from ptdeploy.bundle.quantization import QuantizationOptions

    if arguments.over is not None:
        return _run_over(arguments)
    from ptdeploy.commands.compile import compile_checkpoint
    from ptdeploy.commands.inspect import facts_of, megabytes, tokenizer_words
    from ptdeploy.commands.request import CompileRequest

    request = CompileRequest(
        **options.asked(
            CompileRequest,
            arguments,
            quantization=QuantizationOptions(**options.asked(QuantizationOptions, arguments)),
            engine=_engine_options(arguments),
        )
    )
    bundle = compile_checkpoint(request, options.progress(arguments))
    if arguments.json:
        return show_json_facts(facts_of(bundle))
    manifest, path = printable_fields(bundle.manifest), printable(str(bundle.path))
    size = sum(entry.size for entry in manifest.files)
    computed = engine_words(manifest.target, engine_facts(bundle)).computes
    types = "".join(f"          {dtype}: {words}\n" for dtype, words in computed)
    tokenizer = None if manifest.tokenizer is None else msgspec.to_builtins(manifest.tokenizer)
    ask = '"text"' if bundle.file("tokenizer") else "--ids 1,2,3"
    show(
        f"read      {manifest.prompt.source.format}, {manifest.task.value} on "
        f"{manifest.base.architecture} ({manifest.base.name})\n"
        f"frozen    {_frozen(manifest)}\n"
        f"tokenizer {tokenizer_words(tokenizer)}\n"
        f"{_head_line(manifest)}"
        f"graph     {manifest.graph.route}: {manifest.graph.reason}\n"
        f"bundle    {path}, {megabytes(size)}, {manifest.target} {manifest.precision} on "
        f"{manifest.device}\n{types}"
        f"{parity_lines(manifest)}"
        f"run it    ptdeploy run {shell_word(bundle.path)} {ask}\n"
        f"          ptdeploy.load({json.dumps(str(bundle.path), ensure_ascii=False)}) in Python, "
        "without torch"
    )
    return 0


def _frozen(manifest: Manifest) -> str:
    """What prompts are in a new bundle; its strings are printable."""
    if not manifest.prompts:
        return "no prompt"
    prompt, names = manifest.prompt, list(manifest.prompts)
    words = number_of(prompt.num_virtual_tokens, "virtual token")
    if prompt.prefix_kv:
        words += f" as prefix KV {words_of(prompt.prefix_kv)}"
    words = f"{words} ({prompt.kind})"
    if len(names) > 1:
        return f"{len(names)} prompts of {words}: {', '.join(names)}; {names[0]} is the default"
    return words if names == [DEFAULT_PROMPT] else f"{words}, named {names[0]}"


def _run_over(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.inspect import facts_of, megabytes
    from ptdeploy.commands.over import compile_over
    from ptdeploy.commands.request import OverRequest

    _refuse_of_engine(arguments)
    if arguments.checkpoint is None:
        raise InputError(
            "--over makes a pack of a checkpoint, and there is none.",
            "Pass it: ptdeploy compile CHECKPOINT --over BUNDLE",
        )
    request = OverRequest(**options.asked(OverRequest, arguments))
    pack = compile_over(request, options.progress(arguments))
    if arguments.json:
        return show_json_facts(facts_of(pack))
    manifest, path = printable_fields(pack.manifest), printable(str(pack.path))
    prompt, size = manifest.prompt, sum(entry.size for entry in manifest.files)
    show(
        f"read      {prompt.source.format}, {manifest.task.value} on "
        f"{manifest.base.architecture} ({manifest.base.name})\n"
        f"frozen    {number_of(prompt.num_virtual_tokens, 'virtual token')} ({prompt.kind}), named "
        f"{manifest.name}\n"
        f"pack      {path}, {megabytes(size)}\n"
        f"{prompt_parity_lines(prompt, manifest.precision in quantized())}"
        f"add it    ptdeploy prompt add BUNDLE {shell_word(pack.path)}"
    )
    return 0


def _refuse_of_engine(arguments: argparse.Namespace) -> None:
    """Raises InputError for an option that is about an engine, which --over has already."""
    import dataclasses

    from ptdeploy.bundle.quantization import QuantizationOptions

    names = (one.name for one in dataclasses.fields(QuantizationOptions))
    given = [
        n
        for n in ("device", "precision", "max_batch", "max_context", *names)
        if getattr(arguments, n) is not None
    ]
    if arguments.cpp_tokenizer:
        given.append("cpp_tokenizer")
    if not arguments.freeze_kv:
        given.append("no_freeze_kv")
    if arguments.prompt_kinds != "own":
        given.append("prompt_kinds")
    if any(get_target(one).read_options(arguments).given() for one in TARGETS):
        given.append("an option of a target")
    if given:
        option = given[0] if " " in given[0] else f"--{given[0].replace('_', '-')}"
        raise InputError(
            f"{option}: is about an engine, and --over takes that of its bundle.",
            f"Leave {option} out.",
        )


def _add_quantization(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group(
        ", ".join(quantized()),
        "Quantized weights are accepted or refused on text, against PyTorch in fp32.",
    )
    group.add_argument("--block-size", type=int, metavar="N", help="weights a scale")
    group.add_argument(
        "--accuracy-level", type=int, metavar="L", help="1 computes in fp32, 4 in int8 (default)"
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        metavar="A",
        help=f"top-1; default: {default_words('min_agreement')}; of a classifier's answers that "
        f"are no near ties: {default_words('min_class_agreement', 3)}",
    )
    group.add_argument(
        "--max-perplexity-ratio",
        type=float,
        metavar="R",
        help=f"causal models; default: {default_words('max_perplexity_ratio')}",
    )
    group.add_argument(
        "--max-logits-error",
        type=float,
        metavar="E",
        help=f"classifiers that choose one class; default: {default_words('max_logits_error')}",
    )
    group.add_argument(
        "--quality-text",
        type=path,
        metavar="FILE",
        help="evaluate on this, a text a line; default: our own",
    )
    group.add_argument(
        "--calibration",
        type=path,
        metavar="FILE",
        help="encoders in int8 on a CPU: find activations' scales on this, a text a line; default: "
        "each token's own as it runs, which is slower",
    )


def _engine_options(arguments: argparse.Namespace) -> TargetOptions:
    """What was asked of the target, or of another one: that is refused like any wrong option."""
    own: TargetOptions = get_target(arguments.target).read_options(arguments)
    others = (get_target(one).read_options(arguments) for one in TARGETS if one != arguments.target)
    return next((one for one in others if one.given()), own)


def _head_line(manifest: Manifest) -> str:
    from ptdeploy.commands.inspect import HEADS
    from ptdeploy.runtime import ENGINES

    prompt = manifest.prompt
    if not prompt.labels:
        return ""
    names = ", ".join(prompt.labels[:6]) + (", ..." if len(prompt.labels) > 6 else "")
    one_of_several = len(ENGINES[manifest.task].heads) > 1
    kind = HEADS[prompt.head].partition(":")[0] if one_of_several else "a class"
    return f"head      {kind} over {names}\n"


def _precisions() -> str:
    return "; ".join(
        f"{name} on {device}: {', '.join(get_target(name).precisions(device))}"
        for name in TARGETS
        for device in get_backend(name).devices
    )
