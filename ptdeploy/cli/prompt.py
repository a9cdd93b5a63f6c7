"""The command `prompt`: the prompts of a bundle."""

from __future__ import annotations

import argparse

from ptdeploy.bundle import Bundle, PromptInfo
from ptdeploy.cli import options
from ptdeploy.cli.console import show, show_json, show_json_facts
from ptdeploy.cli.parser import path
from ptdeploy.errors import InputError
from ptdeploy.printable import number_of, printable, printable_fields
from ptdeploy.progress import Progress

SUMMARY = "Put prompts into a bundle, take them out, or list them."


def add_options(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(metavar="ACTION", required=True, dest="action")
    for name, words in (
        ("add", "Put a trained prompt into a bundle, once it is proven over the bundle's engine."),
        ("list", "List the prompts of a bundle."),
        ("remove", "Take a prompt out of a bundle."),
        ("default", "Make a prompt the one of requests that name none."),
    ):
        action = actions.add_parser(name, help=words, description=words)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="JSON on standard output"
        )
        options.add_bundle(action)
        if name == "add":
            _add(action)
        elif name == "default":
            action.add_argument("name", metavar="NAME", nargs="?", help="the prompt's")
            action.add_argument("--none", action="store_true", help="the base model alone")
        elif name == "remove":
            action.add_argument("name", metavar="NAME", help="the prompt's")


def _add(action: argparse.ArgumentParser) -> None:
    action.add_argument("prompt", type=path, metavar="CKPT_OR_PACK", help="a checkpoint, or a pack")
    action.add_argument(
        "--name",
        help="what it is called in the bundle; default: as in the pack; of --task-id all A,B,C, or "
        "one with {task} in it",
    )
    action.add_argument(
        "--replace", action="store_true", help="take the place of a prompt of that name"
    )
    action.add_argument("--labels", type=path, metavar="A,B,C|FILE", help="class names, by index")
    options.add_head(action)
    options.add_task(action)
    options.add_golden(action)
    options.add_adapter(action)
    options.add_task_id(action, or_all=True)
    options.add_checkpoint(action)


def run(arguments: argparse.Namespace) -> int:
    return {"add": _run_add, "list": _run_list, "remove": _run_change, "default": _run_change}[
        arguments.action
    ](arguments)


def _run_add(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.prompts import add_prompt
    from ptdeploy.commands.request import PromptAddRequest

    request = PromptAddRequest(**options.asked(PromptAddRequest, arguments))
    return _show(arguments, add_prompt(request, options.progress(arguments)))


def _run_change(arguments: argparse.Namespace) -> int:
    from ptdeploy.commands.prompts import remove_prompt, set_default_prompt
    from ptdeploy.commands.request import PromptChange

    if arguments.action == "default" and (arguments.name is None) != arguments.none:
        raise InputError(
            "prompt default takes a NAME, or --none for the base model alone.", "Give one of them."
        )
    change = remove_prompt if arguments.action == "remove" else set_default_prompt
    done = change(PromptChange(bundle=arguments.bundle, name=arguments.name))
    for note in done.notes:
        Progress().note(note)
    return _show(arguments, done)


def _show(arguments: argparse.Namespace, bundle: Bundle) -> int:
    if arguments.json:
        from ptdeploy.commands.inspect import facts_of

        return show_json_facts(facts_of(bundle))
    show(f"bundle    {printable(str(bundle.path))}")
    _show_prompts(bundle.manifest.prompts, bundle.manifest.default_prompt)
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    import msgspec

    from ptdeploy.bundle import read_bundle

    manifest = read_bundle(arguments.bundle, hashes=False).manifest
    if arguments.json:
        prompts = msgspec.to_builtins(manifest.prompts)
        for one in prompts.values():
            if not one["labels"]:
                one["head"] = None
        show_json({"default_prompt": manifest.default_prompt, "prompts": prompts}, indent=2)
    else:
        _show_prompts(manifest.prompts, manifest.default_prompt)
    return 0


def _show_prompts(prompts: dict[str, PromptInfo], default: str | None) -> None:
    if default is None:
        show("prompt    none, unless a request names one")
    for name, prompt in prompts.items():
        info = printable_fields(prompt)
        own = " (the default)" if name == default else ""
        labels = f", {number_of(len(info.labels), 'label')}" if info.labels else ""
        tokens = number_of(info.num_virtual_tokens, "virtual token")
        show(f"prompt    {name}{own}: {tokens}, {info.kind}{labels}")
