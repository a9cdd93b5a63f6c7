"""compile, verify, profile and the like, as the API has them: what may be asked, in one place each.

Their types are imported here for real, so that typing.get_type_hints finds them; torch is not.
"""

from __future__ import annotations

import functools
import inspect as signatures
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from ptdeploy.backends.telemetry import switch_off
from ptdeploy.bundle import Bundle, Pack, PromptInfo
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.bundle.task import Task
from ptdeploy.commands.convert import Converted
from ptdeploy.commands.diff import compare_bundles
from ptdeploy.commands.inspect import inspect as inspect_path
from ptdeploy.commands.profile import ROUNDS, Profile
from ptdeploy.errors import PtdeployError
from ptdeploy.parity.report import ParityReport
from ptdeploy.progress import Progress
from ptdeploy.runtime import Engine
from ptdeploy.runtime.prompt_choice import DEFAULT, OnePrompt
from ptdeploy.targets.openvino_options import OpenVinoOptions
from ptdeploy.targets.options import TargetOptions
from ptdeploy.targets.trt.options import TrtOptions

P = ParamSpec("P")
R = TypeVar("R")
# An option, or a whole command of ours, whose options stay as it has them.
_OPTION = re.compile(
    r"(?<![^\s(])(?:ptdeploy [a-z].*?(?=[.,;:)]+\s|$)|(?:--([a-z][a-z-]*)|-o)(?![\w-]))",
    re.MULTILINE,
)
# The parameters that have objects of options, which are options of their own on the command line.
_OBJECTS: dict[str, tuple[type[Any], ...]] = {
    "quantization": (QuantizationOptions,),
    "engine": (TrtOptions, OpenVinoOptions),
}
# Options that are no parameter's name with dashes.
_OTHERS = {
    "no-freeze-kv": "freeze_kv=False",
    "no-engine-cache": "engine.cache=False",
    "trt-flavor": "engine.flavor",
    "-o": "output",
}


def by_parameters(function: Callable[P, R]) -> Callable[P, R]:
    """Have its errors name its parameters, where commands, which the command line has too, name
    options. What another function takes is named as that one's command has it."""
    parameters = signatures.signature(function).parameters
    asked = {name: one.default for name, one in parameters.items()}
    for holder in _OBJECTS.keys() & parameters.keys():
        found = (one for kind in _OBJECTS[holder] for one in fields(kind))
        asked = {f"{holder}.{one.name}": one.default for one in found} | asked
    names = dict(_OTHERS)
    for name, default in asked.items():
        option = name.rpartition(".")[2].replace("_", "-")
        names[option] = f"{name}=True" if default is False else name

    def named(found: re.Match[str]) -> str:
        return names.get(found[1] or found[0], found[0])

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except PtdeployError as error:
            error.reword(functools.partial(_OPTION.sub, named))
            raise

    return call


@by_parameters
def compile(
    checkpoint: str | Path | None = None,
    *,
    target: str,
    base: str | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    task: Task | None = None,
    labels: str | None = None,
    head: str | None = None,
    task_id: int | Literal["all"] | None = None,
    force: bool = False,
    freeze_kv: bool = True,
    prompt_kinds: str = "own",
    max_batch: int | None = None,
    max_context: int | None = None,
    quantization: QuantizationOptions | None = None,
    golden: int | None = None,
    engine: TargetOptions | None = None,
    cpp_tokenizer: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Compile a trained prompt into a verified bundle.

    `checkpoint` is a PEFT adapter folder, a Trainer checkpoint, a state dict file, a file of one
    tensor or a `.nemo` file; `base` overrides the base model it names (a local folder or a hub id).
    Without a `checkpoint`, `base` and `task` CAUSAL_LM make a bundle without a prompt, compared
    with transformers.
    `name` is what the prompt is called in the bundle, "default" unless told.
    `target` is "ort", "openvino" or "trt"; `device` ("cpu" or "cuda", with OpenVINO "cpu", "gpu" or
    "npu") and `precision` are the target's default unless told. `labels` names the classes; `head`
    says what SEQ_CLS logits are, "softmax", "sigmoid" or "regression", over what the base's
    problem_type says. `task_id` is one of the tasks that a multitask prompt was trained for, or
    "all": each is then a prompt, the first the default, named "task-0", "task-1" and so on, or as
    `name` says, a list "A,B,C" or a pattern with "{task}" in it. `tokenizer` is a folder or a hub
    id to take the tokenizer from, or "none" for a bundle that takes token ids only; unless told it
    is the checkpoint's own, else the base model's.
    For CAUSAL_LM the virtual tokens are frozen as prefix KV unless `freeze_kv` is False, and the
    KV buffer is bounded to `max_batch` rows of `max_context` tokens, virtual tokens included.
    With `prompt_kinds` "all" an encoder's engine takes prompts of virtual tokens and of prefix KV;
    unless told those of the checkpoint's own kind. A decoder's takes both anyway.
    `quantization` has the options of the precisions "int8", "int4" and "fp8", which are accepted or
    refused on agreement and perplexity against the reference on text.
    `golden` reference rows are stored, for verify without the checkpoint: random ones of unequal
    lengths and then text, 1 to 1000; all that were compared unless told.
    `engine` has the target's own options, such as TrtOptions for "trt". Where its engine cannot
    run, the graph given to its builder must show parity in ONNX Runtime, and the manifest says that
    the engine's is pending. With `cpp_tokenizer` the bundle holds the tokenizer as OpenVINO's
    programs too, with which C++ takes text.
    The bundle is written to `output` atomically, after parity with PEFT on PyTorch was shown.
    Raises CheckpointError, BaseModelError, BundleError, InputError, OutputError, ParityError or
    TargetUnavailable; then no bundle is written and an older one is kept.
    """
    switch_off()
    from ptdeploy.commands.compile import compile_checkpoint
    from ptdeploy.commands.request import CompileRequest

    request = CompileRequest(
        checkpoint=checkpoint,
        target=target,
        base=base,
        output=output,
        name=name,
        device=device,
        precision=precision,
        adapter=adapter,
        tokenizer=tokenizer,
        task=task,
        labels=labels,
        head=head,
        task_id=task_id,
        force=force,
        freeze_kv=freeze_kv,
        prompt_kinds=prompt_kinds,
        max_batch=max_batch,
        max_context=max_context,
        quantization=quantization,
        golden=golden,
        engine=engine,
        cpp_tokenizer=cpp_tokenizer,
    )
    return compile_checkpoint(request, _shown(progress))


@by_parameters
def verify(
    bundle: str | Path,
    *,
    checkpoint: str | Path | None = None,
    base: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    data: str | Path | None = None,
    thresholds: str | Path | None = None,
    locate: bool = False,
    report: str | Path | None = None,
    graph: bool = False,
    prompt: str | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Check a bundle's files, and its engine against the reference of every prompt.

    A prompt's reference is the one stored in the bundle at compile time, which needs no torch.
    `prompt` names one to be checked alone; so is the default one where `checkpoint` or `data` is
    given, which are about one prompt. With `checkpoint` the reference is computed again with PEFT
    on PyTorch, each row alone; `tokenizer` is then as for compile.
    `data` is a JSONL file of your own texts or token ids, compared too, and scored where it has
    labels. `thresholds` is a JSON file of bounds over the reference's own. `locate` names the first
    module that does not match (needs `checkpoint`). `report` is a folder for report.json,
    junit.xml, report.md, report.html and, where parity does not hold, the smallest failing input.
    `graph` holds the graph that the engine was built from against the reference, in ONNX Runtime,
    instead of the engine itself: it needs no GPU, and the bundle's ONNX.
    The caller asks `report.passed`. Raises BundleError if the bundle is damaged, InputError if an
    option or a file does not fit, and what compile raises for a checkpoint.
    """
    switch_off()
    from ptdeploy.commands.request import VerifyRequest
    from ptdeploy.commands.verify import verify_bundle

    request = VerifyRequest(
        bundle=bundle,
        checkpoint=checkpoint,
        base=base,
        adapter=adapter,
        tokenizer=tokenizer,
        data=data,
        thresholds=thresholds,
        locate=locate,
        report=report,
        graph=graph,
        prompt=prompt,
    )
    return verify_bundle(request, _shown(progress))


@by_parameters
def compile_prompt(
    checkpoint: str | Path,
    *,
    over: str | Path,
    base: str | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    task: Task | None = None,
    labels: str | None = None,
    head: str | None = None,
    task_id: int | None = None,
    golden: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Pack:
    """Compile a trained prompt into a verified pack, over the engine of a bundle.

    A pack is a small folder that any bundle of the same engine takes, with `prompt_add` or while
    it runs. Nothing is exported or built: the prompt is frozen over the base model, and the
    engine of the bundle `over`, which stays as it is, is compared with PEFT on PyTorch.
    `name` is what the prompt is called unless it is given another name; `output` is
    `NAME.prompt` unless told; the others are as for `compile`.
    Raises BaseModelError where the checkpoint's base model is not the one that the engine was
    made of, CheckpointError where the engine has no inputs for such a prompt, and what compile
    raises; then no pack is written and an older one is kept.
    """
    switch_off()
    from ptdeploy.commands.over import compile_over
    from ptdeploy.commands.request import OverRequest

    request = OverRequest(
        checkpoint=checkpoint,
        over=over,
        base=base,
        output=output,
        name=name,
        adapter=adapter,
        tokenizer=tokenizer,
        task=task,
        labels=labels,
        head=head,
        task_id=task_id,
        golden=golden,
        force=force,
    )
    return compile_over(request, _shown(progress))


@by_parameters
def prompt_add(
    bundle: str | Path,
    prompt: str | Path,
    *,
    name: str | None = None,
    base: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    task: Task | None = None,
    labels: str | None = None,
    head: str | None = None,
    task_id: int | Literal["all"] | None = None,
    golden: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Put a prompt, of a pack or a checkpoint, into a bundle that is there.

    The engine is compared with the prompt's reference first: a pack's own, which needs no torch,
    or a checkpoint's, computed as for `compile_prompt`. `name` is what it is called in the bundle,
    as in the pack unless told; `replace` lets it take the place of a prompt of that name. `task_id`
    "all" adds a prompt for each task of a multitask prompt, named as by `compile`. `labels` names
    the classes; the others are about a checkpoint, as for `compile`.
    The bundle is the old one or the new one at every instant, and running engines are not
    disturbed. Raises what compile_prompt raises, and OutputError if another process is changing the
    bundle; then it is as it was.
    """
    switch_off()
    from ptdeploy.commands.prompts import add_prompt
    from ptdeploy.commands.request import PromptAddRequest

    request = PromptAddRequest(
        bundle=bundle,
        prompt=prompt,
        name=name,
        base=base,
        adapter=adapter,
        tokenizer=tokenizer,
        task=task,
        labels=labels,
        head=head,
        task_id=task_id,
        golden=golden,
        replace=replace,
    )
    return add_prompt(request, _shown(progress))


@by_parameters
def prompt_list(bundle: str | Path) -> dict[str, PromptInfo]:
    """The prompts of a bundle by name; its manifest says which is the default.

    Raises BundleError if the bundle is damaged.
    """
    from ptdeploy.commands.prompts import list_prompts

    return list_prompts(bundle)


@by_parameters
def prompt_remove(bundle: str | Path, name: str) -> Bundle:
    """Take a prompt out of a bundle, which is the old one or the new one at every instant.

    Raises InputError if there is no prompt of that name, or it is the default one.
    """
    from ptdeploy.commands.prompts import remove_prompt
    from ptdeploy.commands.request import PromptChange

    return remove_prompt(PromptChange(bundle=bundle, name=name))


@by_parameters
def prompt_default(bundle: str | Path, name: str | None) -> Bundle:
    """Make a prompt of a bundle the one of requests that name none; None: the base model alone.

    Raises InputError if there is no prompt of that name, or the base model alone was not proven
    over the bundle's engine.
    """
    from ptdeploy.commands.prompts import set_default_prompt
    from ptdeploy.commands.request import PromptChange

    return set_default_prompt(PromptChange(bundle=bundle, name=name))


@by_parameters
def rebuild(
    bundle: str | Path,
    *,
    output: str | Path | None = None,
    engine: TargetOptions | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Build a bundle's engine again, for this machine, from the ONNX that it keeps.

    It needs neither the checkpoint nor torch. The bundle is replaced, or a new one written to
    `output` (`force` replaces what is there). `engine` has options of its
    target that replace those it was built with, such as TrtOptions(flavor="rtx").
    Where the engine can run, parity with the stored reference is shown before anything is written.
    Raises BundleError if the bundle is damaged or keeps no ONNX, InputError if its target has
    nothing to build, TargetUnavailable if it cannot build here, ParityError if the new one does
    not match.
    """
    from ptdeploy.commands.rebuild import rebuild_bundle
    from ptdeploy.commands.request import RebuildRequest

    request = RebuildRequest(bundle=bundle, output=output, engine=engine, force=force)
    return rebuild_bundle(request, _shown(progress))


@by_parameters
def convert(
    checkpoint: str | Path,
    *,
    to: str,
    output: str | Path,
    base: str | None = None,
    adapter: str | None = None,
    task: Task | None = None,
    task_id: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a trained prompt in another format, values unchanged, in float32.

    `checkpoint`, `base`, `adapter`, `task` and `task_id` are as for compile. `to` is "peft", an
    adapter folder that PEFT loads (virtual tokens that PEFT did not train become prompt tuning, a
    prefix KV prefix tuning); "full", the same with what made the prompt, for load_full; "npy", the
    virtual tokens, (tokens, width), or prefix KV, (layers, 2, heads, tokens, head dim), as a
    `.npy` file; "prefix-kv", the keys and values that a decoder keeps of the prompt, for which the
    base model is run unless the checkpoint is a prefix KV.
    `force` replaces what convert wrote there before, and nothing else. Raises CheckpointError if
    the format cannot hold what was trained, and what compile raises for a checkpoint, a base model
    and an output.
    """
    switch_off()
    from ptdeploy.commands.convert import convert_checkpoint
    from ptdeploy.commands.request import ConvertRequest

    request = ConvertRequest(
        checkpoint=checkpoint,
        to=to,
        output=output,
        base=base,
        adapter=adapter,
        task=task,
        task_id=task_id,
        force=force,
    )
    return convert_checkpoint(request, _shown(progress))


@by_parameters
def profile(
    bundle: str | Path,
    *,
    batch: int = 1,
    tokens: int | None = None,
    rounds: int = ROUNDS,
    device: str | None = None,
    threads: int | None = None,
    prompt: OnePrompt = DEFAULT,
    progress: Progress | None = None,
) -> Profile:
    """Run a bundle's engine under its own profiler, `rounds` times after a few that do not count.

    A classifier gets one request of `batch` rows of `tokens` tokens; a CAUSAL_LM a prefill of one
    row, and a decode step of `batch` rows behind so many tokens. `tokens` is 32, or as many as fit,
    unless told, `prompt` the bundle's default one, and None the base model alone; `device` and
    `threads` are as for load.
    Raises BundleError if the bundle is damaged, InputError if a request does not fit or there is no
    such prompt, TargetUnavailable if the engine or its profiler cannot run here.
    """
    switch_off()
    from ptdeploy.commands.profile import profile_bundle

    return profile_bundle(
        bundle,
        batch=batch,
        tokens=tokens,
        rounds=rounds,
        device=device,
        threads=threads,
        prompt=prompt,
        progress=_shown(progress),
    )


@by_parameters
def load(
    bundle: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    map_weights: bool = False,
    max_prompts: int | None = None,
) -> Engine:
    """Open a bundle: a Classifier, TokenClassifier or CausalLM, with numpy and its engine alone.

    `device` is the one it was compiled for unless told; `threads` the engine's own default.
    On a CPU `map_weights` leaves the weights in their file instead of copying them into the layout
    that runs fastest: it opens at once and processes share the memory, but each token takes longer.
    `max_prompts` bounds the prompts in memory, beside those that requests are using; of more, the
    least recently used is read again from its file when it is asked for.
    Raises BundleError if the bundle is damaged, TargetUnavailable if its engine cannot run here.
    """
    from ptdeploy.runtime import load

    return load(bundle, device, threads, map_weights, max_prompts)


diff = by_parameters(compare_bundles)
inspect = by_parameters(inspect_path)


def _shown(progress: Progress | None) -> Progress:
    """Python callers see no stages unless they ask; notes are on the result and in the log."""
    return Progress(quiet=True) if progress is None else progress
