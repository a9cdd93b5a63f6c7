"""The first stage of compile: what was asked for, held against what the target can do here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from ptdeploy.backends import get_backend
from ptdeploy.bundle import Quantization, check_destination
from ptdeploy.bundle.precision import quantized
from ptdeploy.bundle.publish import Destination
from ptdeploy.bundle.quantization import (
    QuantizationOptions,
    quantization_for,
    read_calibration,
    read_texts,
)
from ptdeploy.bundle.task import Head
from ptdeploy.commands.bounds import refuse_logits_error
from ptdeploy.commands.request import CompileRequest
from ptdeploy.errors import InputError, TargetUnavailable
from ptdeploy.parity.cases import check_golden
from ptdeploy.targets import Numerics, Target, get_target
from ptdeploy.targets.options import TargetOptions
from ptdeploy.text_files import library_path

if TYPE_CHECKING:
    from ptdeploy.program.kinds import ProgramKind


# What runs where activations are looked at.
_FLOATS, _CPU, _FP32 = "ort", "cpu", "fp32"


@dataclass(frozen=True)
class Plan:
    """A request whose every default is filled in and that the target can carry out.

    `texts` are what a quantized engine is evaluated on, None for our own; `calibration` what fixed
    scales of activations are found on, None where there are to be none.
    """

    request: CompileRequest
    target: Target[Any]
    device: str
    precision: str
    numerics: Numerics
    quantization: Quantization | None
    options: TargetOptions
    texts: tuple[str, ...] | None
    calibration: tuple[str, ...] | None
    destination: Destination

    @property
    def weight_bits(self) -> int:
        """How many bits most weights take in the bundle."""
        if self.quantization:
            return self.quantization.bits
        return 32 if self.numerics.activations == "float32" else 16

    def of_kind(self, kind: ProgramKind, head: Head) -> Plan:
        """The plan for such a program, as far as its quantization depends on that.

        A classifier has bounds of its own. int8 quantizes activations too where that is faster;
        a block size or an accuracy level was asked of weights alone, and stays with them.
        Raises InputError for a bound that such a program cannot be held to.
        """
        found, asked = self.quantization, self.request.quantization or QuantizationOptions()
        if found is None:
            return self
        _check_bounds(asked, kind, head)
        changes: dict[str, Any] = {}
        if kind.generates:
            changes["max_logits_error"] = None
        if asked.min_agreement is None and not kind.generates:
            changes["min_class_agreement"] = quantized()[self.precision].min_class_agreement
        of_weights = asked.block_size is not None or asked.accuracy_level is not None
        if self.calibration is not None:
            _check_calibration(self, kind, of_weights)
        if kind.quantizes_activations and self.numerics.int8_products and not of_weights:
            changes |= {"activations": "int8", "block_size": 0, "accuracy_level": 0}
        return replace(self, quantization=msgspec.structs.replace(found, **changes))


def _check_calibration(plan: Plan, kind: ProgramKind, of_weights: bool) -> None:
    """Raises InputError where no activations can have fixed scales, TargetUnavailable where there
    is nothing to find them with."""
    if not kind.quantizes_activations or not plan.numerics.fixed_scales or of_weights:
        why = "--block-size and --accuracy-level are about weights alone" if of_weights else ""
        raise InputError(
            "--calibration is about the activations of encoders in int8 on a CPU, on ort and "
            f"openvino{f'; {why}' if why else ''}.",
            "Leave them out." if of_weights else "Leave it out.",
        )
    if problem := get_backend(_FLOATS).unavailable(_CPU):
        raise TargetUnavailable(f"--calibration runs {_FLOATS}: {problem[0]}", problem[1])


def in_floats(plan: Plan) -> Plan:
    """The same for ONNX Runtime on a CPU, in fp32: an engine whose activations can be looked at."""
    request = replace(
        plan.request,
        target=_FLOATS,
        device=_CPU,
        precision=_FP32,
        quantization=None,
        engine=None,
        cpp_tokenizer=False,
    )
    target = get_target(_FLOATS)
    return replace(
        plan,
        request=request,
        target=target,
        device=_CPU,
        precision=_FP32,
        numerics=target.numerics(_CPU, _FP32),
        quantization=None,
        options=target.options(None),
        texts=None,
        calibration=None,
    )


def _check_bounds(asked: QuantizationOptions, kind: ProgramKind, head: Head) -> None:
    """Raises InputError for a bound on something that such a program does not give."""
    if asked.max_perplexity_ratio is not None and not kind.generates:
        raise InputError(
            "--max-perplexity-ratio is of a causal model, and this one is a classifier.",
            "Leave it out: a classifier has no perplexity.",
        )
    if asked.max_logits_error is not None:
        refuse_logits_error(kind.generates, {head}, _option)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def make_plan(request: CompileRequest) -> Plan:
    """Refuse what cannot be done before any work is: nothing is replaced by something near.

    Raises InputError, OutputError or TargetUnavailable.
    """
    check_golden(request.golden)
    if request.cpp_tokenizer:
        from ptdeploy.program.text_program.convert import check_installed

        check_installed()
    target = get_target(request.target)
    options = target.options(request.engine)
    backend = get_backend(request.target)
    device = request.device or backend.devices[0]
    precision = _precision(request, target, device)
    numerics = target.numerics(device, precision)
    asked = request.quantization or QuantizationOptions()
    quantization = quantization_for(
        precision, asked, numerics.block_size, numerics.custom_operators, numerics.group
    )
    for problem in (
        target.unbuildable(device, precision, options, quantization),
        _unprovable(request.target, device),
    ):
        if problem:
            raise TargetUnavailable(*problem)
    texts = read_texts(asked.quality_text, "--quality-text") if asked.quality_text else None
    calibration = read_calibration(asked.calibration) if asked.calibration else None
    for given in (request.checkpoint or "", request.base or "", request.place):
        library_path(given)
    destination = check_destination(request.place, request.force)
    return Plan(
        request,
        target,
        device,
        precision,
        numerics,
        quantization,
        options,
        texts,
        calibration,
        destination,
    )


def runs_here(name: str) -> bool:
    """Whether the target of that name runs on its default device here."""
    backend = get_backend(name)
    return backend.unavailable(backend.devices[0]) is None


def _precision(request: CompileRequest, target: Target[Any], device: str) -> str:
    precisions = target.precisions(device)
    precision = request.precision or precisions[0]
    if precision not in precisions:
        raise InputError(
            f"Target {request.target} has no precision {precision!r} on {device}; "
            f"there is {', '.join(precisions)}."
        )
    return precision


def _unprovable(name: str, device: str) -> tuple[str, str] | None:
    """Why neither the engine nor its graph can be compared with PEFT here, or None."""
    problem = get_backend(name).unavailable(device)
    graph_check = get_target(name).graph_check
    if problem is None or not graph_check:
        return problem
    if runs_here(graph_check):
        return None
    return f"Nothing here could show parity: {problem[0]}", "pip install 'ptdeploy[cpu]'"
