"""What a user may ask of OpenVINO's engines."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import ClassVar

from ptdeploy.arguments import instance, text
from ptdeploy.backends.openvino.engine_file import KV_PRECISIONS, KVPrecision
from ptdeploy.errors import InputError


@dataclass(frozen=True)
class OpenVinoOptions:
    """Options of the target openvino: what keys and values are kept in, f32, f16, bf16 or u8.

    None is f32, or bf16 where the engine computes in that.
    """

    about: ClassVar[str] = "OpenVINO's KV cache"

    kv_precision: KVPrecision | None = None

    def given(self) -> list[str]:
        """The command line's names of what was asked for."""
        return ["--kv-precision"] if self.kv_precision is not None else []

    def keeps(self, precision: str) -> KVPrecision:
        """What an engine that computes in `precision` keeps keys and values in."""
        return self.kv_precision or ("bf16" if precision == "bf16" else "f32")


def checked_options(given: OpenVinoOptions) -> OpenVinoOptions:
    """The same as Python's own values. Raises InputError on a type that there is none of."""
    options: OpenVinoOptions = instance(OpenVinoOptions, kv_precision=text)("engine", given)
    if options.kv_precision not in (None, *KV_PRECISIONS):
        raise InputError(f"--kv-precision must be one of {', '.join(KV_PRECISIONS)}.")
    return options


def check_kept(options: OpenVinoOptions, precision: str) -> None:
    """Raises InputError on a type that attention in `precision` takes no keys and values in."""
    kept = options.keeps(precision)
    if precision == "bf16" and kept not in ("bf16", "u8"):
        raise InputError(
            f"--kv-precision {kept}: OpenVINO's attention in bf16 takes keys and values in bf16 or "
            "u8.",
            "Leave --kv-precision out, or choose another --precision.",
        )
    if kept == "bf16" and precision != "bf16":
        raise InputError(
            f"--kv-precision bf16: OpenVINO takes keys and values in bf16 with --precision bf16 "
            f"only, not {precision}.",
            "Choose f16 or u8.",
        )


def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("target openvino")
    group.add_argument(
        "--kv-precision",
        choices=KV_PRECISIONS,
        default=None,
        help="what keys and values are kept in; default: f32, with --precision bf16 bf16",
    )
