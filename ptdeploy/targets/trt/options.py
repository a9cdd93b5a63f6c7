"""What a user may ask of a TensorRT engine, checked before any work."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from ptdeploy.arguments import MOST, flag, instance, text, whole
from ptdeploy.backends.trt.engine_file import Compatibility
from ptdeploy.errors import InputError

FLAVORS = ("auto", "tensorrt", "rtx")
COMPATIBILITIES = get_args(Compatibility)


@dataclass(frozen=True)
class Range:
    """The least, the usual and the largest size of an axis that an engine takes."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class TrtOptions:
    """Options of the target trt; None is TensorRT's own default, or follows the model's limits.

    `profile` is text such as "batch=1:8:32,seq=1:128:512". `workspace` is in MiB.
    `compute_capability` is text such as "8.6,8.9" or "current", for TensorRT-RTX.
    """

    about: ClassVar[str] = "TensorRT's engines"

    flavor: str = "auto"
    profile: str | None = None
    keep_onnx: bool = False
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    workspace: int | None = None
    optimization_level: int | None = None
    compute_capability: str | None = None
    cache: bool = True

    def given(self) -> list[str]:
        """The command line's names of what was asked for."""
        flags = {"flavor": "trt-flavor", "cache": "no-engine-cache"}
        return [
            "--" + flags.get(field.name, field.name).replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]


# What its fields may be, where they are not None.
_KINDS = instance(
    TrtOptions,
    flavor=text,
    profile=text,
    keep_onnx=flag,
    strip_weights=flag,
    version_compatible=flag,
    hardware_compatibility=text,
    workspace=whole(most=MOST),
    optimization_level=whole(),
    compute_capability=text,
    cache=flag,
)


def checked_options(given: TrtOptions) -> TrtOptions:
    """The same as Python's own values. Raises InputError on one of another kind or out of range."""
    options: TrtOptions = _KINDS("engine", given)
    read_profile(options.profile)
    read_compute_capabilities(options.compute_capability)
    for option, holds, wanted in (
        ("--trt-flavor", options.flavor in FLAVORS, f"one of {', '.join(FLAVORS)}"),
        (
            "--hardware-compatibility",
            options.hardware_compatibility in COMPATIBILITIES,
            f"one of {', '.join(COMPATIBILITIES)}",
        ),
        ("--workspace", options.workspace is None or options.workspace > 0, "MiB, more than 0"),
        (
            "--optimization-level",
            options.optimization_level is None or 0 <= options.optimization_level <= 5,
            "from 0 to 5",
        ),
    ):
        if not holds:
            raise InputError(f"{option} must be {wanted}.")
    return options


def read_profile(text: str | None) -> dict[str, Range]:
    """Ranges by axis ("batch", "seq") from text such as "batch=1:8:32,seq=1:128:512".

    Raises InputError on anything else. The least size is 1: a single short request must fit.
    """
    ranges: dict[str, Range] = {}
    for part in [] if text is None else text.split(","):
        match = re.fullmatch(
            r"\s*(batch|seq)\s*=\s*(\d{1,9}):(\d{1,9}):(\d{1,9})\s*", part, re.ASCII
        )
        if match is None or match[1] in ranges:
            raise InputError(
                f"--profile {text}: {part.strip()!r} is not one of batch=MIN:OPT:MAX and "
                "seq=MIN:OPT:MAX, each at most once.",
                "For example: --profile batch=1:8:32,seq=1:128:512",
            )
        found = Range(*(int(match[i]) for i in (2, 3, 4)))
        if not 1 <= found.min <= found.opt <= found.max:
            raise InputError(f"--profile {text}: {match[1]} must grow from 1: MIN <= OPT <= MAX.")
        if found.min != 1:
            raise InputError(
                f"--profile {text}: {match[1]} starts at {found.min}, but one row of one token "
                "is a request too.",
                f"Let it start at 1: {match[1]}=1:{found.opt}:{found.max}",
            )
        ranges[match[1]] = found
    return ranges


def read_compute_capabilities(text: str | None) -> tuple[str, ...]:
    """("8.6", "8.9") from "8.6,8.9"; ("current",) for the GPU at hand; () for the default."""
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    valid = parts == ("current",) or all(
        re.fullmatch(r"\d{1,2}\.\d", part, re.ASCII) for part in parts
    )
    if not valid or len(set(parts)) < len(parts):
        raise InputError(
            f"--compute-capability {text}: must be versions such as 8.6,8.9, or current."
        )
    return parts


def add_options(parser: ArgumentParser) -> None:
    """The fields of TrtOptions by their names, as `engine_<field>`."""
    group = parser.add_argument_group(
        "target trt", "What is not given is TensorRT's default, or follows the model's limits."
    )

    def option(flag: str, name: str, **settings: Any) -> None:
        group.add_argument(flag, dest=f"engine_{name}", **settings)

    option("--trt-flavor", "flavor", choices=FLAVORS, default="auto", help="default: auto")
    option(
        "--profile",
        "profile",
        metavar="RANGES",
        help="sizes it takes, MIN:OPT:MAX: batch=1:8:32,seq=1:128:512",
    )
    option("--keep-onnx", "keep_onnx", action="store_true", help="so that it can be rebuilt")
    option("--strip-weights", "strip_weights", action="store_true", help="take them from the ONNX")
    option(
        "--version-compatible",
        "version_compatible",
        action="store_true",
        help="run with newer TensorRT of the same major version",
    )
    option(
        "--hardware-compatibility",
        "hardware_compatibility",
        choices=COMPATIBILITIES,
        default="none",
        help="run on other GPUs than the one it is built on; default: none",
    )
    option(
        "--compute-capability",
        "compute_capability",
        metavar="8.6,8.9",
        help="TensorRT-RTX: the GPUs to build for, or current; default: all it supports",
    )
    option("--workspace", "workspace", type=int, metavar="MIB", help="scratch memory at most")
    option("--optimization-level", "optimization_level", type=int, metavar="0-5", help="default: 3")
    option(
        "--no-engine-cache",
        "cache",
        action="store_false",
        help="build although the same engine was built before",
    )


def add_rebuild_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--trt-flavor", dest="engine_flavor", choices=FLAVORS, help="default: the bundle's"
    )


def read_options(arguments: Namespace) -> TrtOptions:
    """What compile was asked for."""
    return TrtOptions(
        **{one.name: getattr(arguments, f"engine_{one.name}") for one in fields(TrtOptions)}
    )


def read_rebuild_options(arguments: Namespace) -> TrtOptions | None:
    """What rebuild was asked for: "auto" is not the bundle's own flavor."""
    flavor = arguments.engine_flavor
    return None if flavor is None else TrtOptions(flavor=flavor)
