"""What is asked of a command: made and checked at its doors, the API and the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ptdeploy.arguments import (
    MOST,
    Check,
    check_fields,
    flag,
    having,
    instance,
    maybe,
    one_of,
    output,
    path,
    refused,
    text,
    whole,
)
from ptdeploy.bundle.quantization import QUANTIZATION_OPTIONS, QuantizationOptions
from ptdeploy.bundle.schema import DEFAULT_PROMPT, is_prompt_name
from ptdeploy.bundle.task import Task
from ptdeploy.commands.tasks import TaskId, is_all, prompt_name, prompt_names, task_or_all
from ptdeploy.errors import InputError
from ptdeploy.targets.options import TargetOptions


def _names_for(task_id: Any) -> Check:
    return prompt_names if is_all(task_id) else prompt_name


# Which prompts an engine takes: of the kind of the first one, or of any kind.
PROMPT_KINDS = ("own", "all")


def _stem(checkpoint: str | Path) -> str:
    """A checkpoint's name, a file's without its ending."""
    given = Path(checkpoint).resolve()
    return given.stem if given.is_file() else given.name


def _kinds(name: str, value: Any) -> str:
    found = text(name, value)
    if found in PROMPT_KINDS:
        return found
    raise refused(name, found, f"one of {', '.join(PROMPT_KINDS)}")


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """What ptdeploy.compile takes, but for its progress. Raises InputError as it does."""

    checkpoint: str | Path | None = None
    target: str
    base: str | None = None
    output: str | Path | None = None
    name: str | None = None
    device: str | None = None
    precision: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    task: Task | None = None
    labels: str | None = None
    head: str | None = None
    task_id: TaskId | None = None
    force: bool = False
    freeze_kv: bool = True
    prompt_kinds: str = "own"
    max_batch: int | None = None
    max_context: int | None = None
    quantization: QuantizationOptions | None = None
    golden: int | None = None
    engine: TargetOptions | None = None
    cpp_tokenizer: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            checkpoint=maybe(path),
            target=text,
            base=maybe(path),
            output=maybe(output),
            name=maybe(_names_for(self.task_id)),
            device=maybe(text),
            precision=maybe(text),
            adapter=maybe(text),
            tokenizer=maybe(path),
            task=maybe(one_of(Task)),
            labels=maybe(text),
            head=maybe(text),
            task_id=maybe(task_or_all),
            force=flag,
            freeze_kv=flag,
            prompt_kinds=_kinds,
            max_batch=maybe(whole(most=MOST)),
            max_context=maybe(whole(most=MOST)),
            quantization=maybe(instance(QuantizationOptions, **QUANTIZATION_OPTIONS)),
            golden=maybe(whole()),
            engine=maybe(having("given")),
            cpp_tokenizer=flag,
        )
        if self.checkpoint is None:
            self._check_base_alone()
        if self.prompt_kinds == "all" and not self.freeze_kv:
            raise InputError(
                "--prompt-kinds all takes prefix KV too, and --no-freeze-kv runs virtual tokens "
                "alone.",
                "Leave one of them out.",
            )

    def _check_base_alone(self) -> None:
        """Without a checkpoint there is no prompt, and nothing of one can be asked for."""
        if self.base is None:
            raise InputError(
                "There is no checkpoint to compile.",
                "Pass one, or for a bundle without a prompt --base MODEL and --task CAUSAL_LM.",
            )
        for name in ("name", "adapter", "labels", "head", "task_id"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is about a prompt, and there is no checkpoint.",
                    "Pass a checkpoint, or leave it out.",
                )
        if not self.freeze_kv:
            raise InputError(
                "--no-freeze-kv is about a prompt, and there is no checkpoint.",
                "Pass a checkpoint, or leave --no-freeze-kv out.",
            )

    @property
    def prompt_name(self) -> str | None:
        """What the prompt is called in the bundle, or what all tasks' are if that was said; None
        where there is none."""
        if self.checkpoint is None or is_all(self.task_id):
            return self.name
        return self.name or DEFAULT_PROMPT

    @property
    def place(self) -> Path:
        """Where the bundle is written; unless told `<checkpoint's name>.<target>.bundle`, here."""
        if self.output:
            return Path(self.output)
        return Path(f"{_stem(self.checkpoint or self.base or '')}.{self.target}.bundle")


@dataclass(frozen=True, kw_only=True)
class _OfCheckpoint:
    """What is asked of a checkpoint whose prompt goes over an engine that is there."""

    base: str | None = None
    name: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    task: Task | None = None
    labels: str | None = None
    head: str | None = None
    task_id: TaskId | None = None
    golden: int | None = None

    def checks_of_checkpoint(self) -> dict[str, Check]:
        return {
            "base": maybe(path),
            "name": maybe(_names_for(self.task_id)),
            "adapter": maybe(text),
            "tokenizer": maybe(path),
            "task": maybe(one_of(Task)),
            "labels": maybe(text),
            "head": maybe(text),
            "task_id": maybe(task_or_all),
            "golden": maybe(whole()),
        }


@dataclass(frozen=True, kw_only=True)
class OverRequest(_OfCheckpoint):
    """What ptdeploy.compile_prompt takes, but for its progress. Raises InputError as it does."""

    checkpoint: str | Path
    over: str | Path
    output: str | Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            checkpoint=path,
            over=path,
            output=maybe(output),
            force=flag,
            **self.checks_of_checkpoint(),
        )

    @property
    def place(self) -> Path:
        """Where the pack is written; unless told `<checkpoint's name>.prompt`, here."""
        return Path(self.output) if self.output else Path(f"{_stem(self.checkpoint)}.prompt")

    @property
    def prompt_name(self) -> str | None:
        """What the prompt is called: unless told, as its folder is, without `.prompt`. None where
        all tasks' names were not said. Raises InputError if the folder is called as no prompt can
        be."""
        if self.name or is_all(self.task_id):
            return self.name
        name = self.place.absolute().name.removesuffix(".prompt")
        if not is_prompt_name(name):
            raise InputError(
                f"{self.place}: no prompt can be called {name!r}, as its pack is.",
                "Say what it is called with --name: letters, digits, dots, underscores and dashes.",
            )
        return name


@dataclass(frozen=True, kw_only=True)
class PromptAddRequest(_OfCheckpoint):
    """What ptdeploy.prompt_add takes, but for its progress. Raises InputError as it does."""

    bundle: str | Path
    prompt: str | Path
    replace: bool = False

    def __post_init__(self) -> None:
        check_fields(self, bundle=path, prompt=path, replace=flag, **self.checks_of_checkpoint())

    def of_checkpoint(self) -> OverRequest:
        """The same of `prompt`, a checkpoint. Raises InputError if it has no name."""
        if self.name is None and not is_all(self.task_id):
            raise InputError(
                f"{self.prompt}: a checkpoint does not say what its prompt is called.",
                "Say it with --name NAME.",
            )
        given = {one.name: getattr(self, one.name) for one in fields(_OfCheckpoint)}
        return OverRequest(checkpoint=self.prompt, over=self.bundle, **given)

    def refuse_of_checkpoint(self) -> None:
        """Raises InputError for what is asked of a checkpoint, where a pack was given."""
        for name in self.checks_of_checkpoint():
            if name in ("name", "labels"):
                continue
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is about a checkpoint, and {self.prompt} is a "
                    "pack.",
                    "Leave it out.",
                )


@dataclass(frozen=True, kw_only=True)
class PromptChange:
    """What ptdeploy.prompt_remove and prompt_default take. Raises InputError as they do.

    A `name` of None is the base model alone.
    """

    bundle: str | Path
    name: str | None

    def __post_init__(self) -> None:
        check_fields(self, bundle=path, name=maybe(text))


# What ptdeploy.convert writes, and what each is.
FORMS = {
    "peft": "an adapter folder that PEFT loads",
    "full": "the same with what made the prompt, so that training can resume",
    "npy": "virtual tokens or a prefix KV as a bare tensor",
    "prefix-kv": "the keys and values that a decoder keeps of the prompt, as a bare tensor",
}


def _form(name: str, value: Any) -> str:
    found = text(name, value)
    if found in FORMS:
        return found
    raise refused(name, found, f"one of {', '.join(FORMS)}")


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What ptdeploy.convert takes, but for its progress. Raises InputError as it does."""

    checkpoint: str | Path
    to: str
    output: str | Path
    base: str | None = None
    adapter: str | None = None
    task: Task | None = None
    task_id: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            checkpoint=path,
            to=_form,
            output=output,
            base=maybe(path),
            adapter=maybe(text),
            task=maybe(one_of(Task)),
            task_id=maybe(whole()),
            force=flag,
        )


@dataclass(frozen=True, kw_only=True)
class RebuildRequest:
    """What ptdeploy.rebuild takes, but for its progress. Raises InputError as it does."""

    bundle: str | Path
    output: str | Path | None = None
    engine: TargetOptions | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self, bundle=path, output=maybe(output), engine=maybe(having("given")), force=flag
        )


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What ptdeploy.verify takes, but for its progress. Raises InputError as it does."""

    bundle: str | Path
    checkpoint: str | Path | None = None
    base: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    data: str | Path | None = None
    thresholds: str | Path | None = None
    locate: bool = False
    report: str | Path | None = None
    graph: bool = False
    prompt: str | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            bundle=path,
            checkpoint=maybe(path),
            base=maybe(path),
            adapter=maybe(text),
            tokenizer=maybe(path),
            data=maybe(path),
            thresholds=maybe(path),
            locate=flag,
            report=maybe(output),
            graph=flag,
            prompt=maybe(text),
        )
