"""What a user may ask of OpenVINO's engines."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import ClassVar, cast

from ptdeploy.backends.openvino.engine_file import KV_PRECISIONS, KVPrecision
from ptdeploy.errors import InputError


@dataclass(frozen=True)
class OpenVinoOptions:
    """Options of the target openvino: what keys and values are kept in, f32, f16 or u8."""

    about: ClassVar[str] = "OpenVINO's KV cache"

    kv_precision: KVPrecision = "f32"

    def given(self) -> list[str]:
        """The command line's names of what was asked for."""
        return ["--kv-precision"] if self.kv_precision != "f32" else []


def check_options(options: OpenVinoOptions) -> None:
    """Raises InputError on a type that there is none of."""
    if cast(object, options.kv_precision) not in KV_PRECISIONS:
        raise InputError(f"--kv-precision must be one of {', '.join(KV_PRECISIONS)}.")


def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("target openvino")
    group.add_argument(
        "--kv-precision",
        choices=KV_PRECISIONS,
        default="f32",
        help="what keys and values are kept in; default: f32",
    )
