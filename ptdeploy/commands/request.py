"""What is asked of a command: made and checked at its doors, the API and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptdeploy.arguments import (
    MOST,
    check_fields,
    flag,
    having,
    instance,
    maybe,
    one_of,
    path,
    refused,
    text,
    whole,
)
from ptdeploy.bundle.quantization import QUANTIZATION_OPTIONS, QuantizationOptions
from ptdeploy.bundle.schema import DEFAULT_PROMPT, is_prompt_name
from ptdeploy.bundle.task import Task
from ptdeploy.targets.options import TargetOptions


def _prompt_name(name: str, value: Any) -> str:
    found = text(name, value)
    if is_prompt_name(found):
        return found
    wanted = "1 to 64 letters, digits, '.', '_' or '-' of ASCII, the first a letter or a digit"
    raise refused(name, found, wanted)


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """What ptdeploy.compile takes, but for its progress. Raises InputError as it does."""

    checkpoint: str | Path
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
    task_id: int | None = None
    force: bool = False
    freeze_kv: bool = True
    max_batch: int | None = None
    max_context: int | None = None
    quantization: QuantizationOptions | None = None
    golden: int | None = None
    engine: TargetOptions | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            checkpoint=path,
            target=text,
            base=maybe(path),
            output=maybe(path),
            name=maybe(_prompt_name),
            device=maybe(text),
            precision=maybe(text),
            adapter=maybe(text),
            tokenizer=maybe(path),
            task=maybe(one_of(Task)),
            labels=maybe(text),
            head=maybe(text),
            task_id=maybe(whole()),
            force=flag,
            freeze_kv=flag,
            max_batch=maybe(whole(most=MOST)),
            max_context=maybe(whole(most=MOST)),
            quantization=maybe(instance(QuantizationOptions, **QUANTIZATION_OPTIONS)),
            golden=maybe(whole()),
            engine=maybe(having("given")),
        )

    @property
    def prompt_name(self) -> str:
        """What the prompt is called in the bundle."""
        return self.name or DEFAULT_PROMPT

    @property
    def place(self) -> Path:
        """Where the bundle is written; unless told `<checkpoint's name>.<target>.bundle`, here."""
        if self.output:
            return Path(self.output)
        given = Path(self.checkpoint).resolve()
        return Path(f"{given.stem if given.is_file() else given.name}.{self.target}.bundle")


@dataclass(frozen=True, kw_only=True)
class RebuildRequest:
    """What ptdeploy.rebuild takes, but for its progress. Raises InputError as it does."""

    bundle: str | Path
    output: str | Path | None = None
    engine: TargetOptions | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self, bundle=path, output=maybe(path), engine=maybe(having("given")), force=flag
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
            report=maybe(path),
            graph=flag,
        )
