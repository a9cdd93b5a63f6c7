"""`model_config.yaml` of a NeMo archive: what it says of where virtual tokens stand in a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ptdeploy.errors import CheckpointError, TargetUnavailable
from ptdeploy.memory import out_of_memory, ran_out_of_memory

CONFIG = "model_config.yaml"
MAX_CONFIG_BYTES = 256 * 1024
_MAX_DEPTH = 32
_IN_FRONT = re.compile(r"(?:<\|VIRTUAL_PROMPT_\d+\|>)+")
_MARK = "<|VIRTUAL_PROMPT_"


def read_config(where: str, file: Path) -> dict[str, Any]:
    """Read the YAML of a NeMo model's configuration as plain data; `where` is its name in errors.

    Raises CheckpointError if it is no YAML mapping, or YAML of the kinds that plain data does not
    need: aliases, which can stand for exponentially much, deep nesting, and Python objects.
    """
    try:
        import yaml
    except ImportError as error:
        raise TargetUnavailable(
            "Reading a .nemo file needs PyYAML, which is not installed here.",
            "pip install 'ptdeploy[compile]'",
        ) from error
    text = file.read_bytes()
    try:
        depth = 0
        # Events come one by one, before anything is built of them.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError(
                    f"{where}: uses a YAML alias (*{str(event.anchor)[:40]}), which is not read.",
                    "Save the configuration with its values written out, as NeMo does.",
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise CheckpointError(f"{where}: is nested more than {_MAX_DEPTH} levels deep.")
        found = yaml.safe_load(text)
    except CheckpointError:
        raise
    except Exception as error:  # PyYAML checks untrusted scalars by raising anything
        if ran_out_of_memory(error):
            raise out_of_memory(f"{where} does not fit", error) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{where}: not valid YAML of plain data ({reason}).",
            "Copy the file again from where it was saved.",
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: holds a YAML {type(found).__name__}, not a mapping.")
    return found


def check_model(where: str, config: dict[str, Any]) -> None:
    """Raises CheckpointError if the model is no decoder, or has a token before the virtual ones."""
    target = str(config.get("target") or "")
    if re.search(r"t5|bart|retro", target, re.IGNORECASE):
        raise CheckpointError(
            f"{where}: target is {target}: encoder-decoder models are not supported.",
            "ptdeploy reads prompts that NeMo trained on GPT models.",
        )
    data = config.get("data")
    sets = [data, *data.values()] if isinstance(data, dict) else []
    if any(isinstance(one, dict) and one.get("add_bos") is True for one in sets):
        raise CheckpointError(
            f"{where}: add_bos is true: in training BOS stood before the virtual tokens.",
            "ptdeploy puts virtual tokens first. Train with add_bos: false.",
        )


def check_template(where: str, config: dict[str, Any], task: str) -> int | None:
    """The number of virtual tokens that a task's template says; None where there is no template.

    Raises CheckpointError unless the template puts all of them before the text, in order.
    """
    templates = config.get("task_templates")
    named = (
        (one for one in templates if isinstance(one, dict)) if isinstance(templates, list) else ()
    )
    found = next((one for one in named if one.get("taskname") == task), None)
    if found is None:
        return None
    template = found.get("prompt_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{where}: task {task!r} has no prompt_template.")
    front = _IN_FRONT.match(template)
    marks = re.findall(r"\d+", front[0]) if front else []
    if (
        front is None
        or _MARK in template[front.end() :]
        or marks != list(map(str, range(len(marks))))
    ):
        raise CheckpointError(
            f"{where}: the template of task {task!r} does not begin with all of its virtual "
            f"tokens: {template[:120]!r}.",
            "ptdeploy puts virtual tokens before the text. Train with a template that begins with "
            "<|VIRTUAL_PROMPT_0|> and has no other.",
        )
    count = found.get("total_virtual_tokens")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise CheckpointError(
            f"{where}: total_virtual_tokens of task {task!r} is {count!r}, "
            "not a positive whole number."
        )
    return count
