"""An engine that fails is not one whose numbers differ: what fits is found out, what fails said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support import tiny

import ptdeploy
from ptdeploy.backends.ort.open import session_options
from ptdeploy.backends.ort.session import OrtSession
from ptdeploy.bundle import Quantization
from ptdeploy.memory import out_of_memory
from ptdeploy.parity.quality import Quality
from ptdeploy.parity.refusal import Compiled, refuse_mismatch
from ptdeploy.parity.report import CaseResult, GreedyResult, ParityReport
from ptdeploy.parity.reports.words import verdict
from ptdeploy.program.kinds import BuildOptions
from ptdeploy.program.prompt import freeze
from ptdeploy.progress import Progress
from ptdeploy.source.base import resolve_base
from ptdeploy.source.base_weights import load_model
from ptdeploy.source.checkpoint import read_checkpoint
from ptdeploy.targets import Attention, get_target


def _refused(attention: Attention, target: str = "ort") -> str:
    return get_target(target).refuses("cpu" if target == "ort" else "cuda", "float32", attention)


@pytest.mark.parametrize("size", [4, 5, 7, 12, 20, 100])
def test_heads_that_the_fused_operator_does_not_take_are_found_by_running_it(size):
    why = _refused(Attention(heads=4, kv_heads=2, head_dim=size))
    assert why.startswith(f"GroupQueryAttention does not take 4 heads of {size} over 2 of keys (")
    assert "multiple of 8" in why
    assert "\n" not in why


@pytest.mark.parametrize(
    "attention",
    [
        Attention(4, 2, 8),
        Attention(9, 3, 16),
        Attention(5, 5, 64),
        Attention(7, 1, 80),
        Attention(2, 2, 512),
        Attention(4, 2, 8, window=4, softcap=2.0),
        Attention(4, 2, 8, sinks=True),
    ],
    ids=str,
)
def test_heads_that_it_takes_are_not_refused(attention):
    assert _refused(attention) == ""


def test_queries_that_share_no_whole_number_of_keys_are_refused():
    assert "num_heads must be a multiple of kv_num_heads" in _refused(Attention(4, 3, 8))


def test_attention_of_standard_operators_takes_heads_of_any_width():
    assert _refused(Attention(4, 2, 100), "trt") == ""


@pytest.mark.parametrize(
    ("architecture", "changes", "route"),
    [
        ("llama", {"head_dim": 100}, "plain"),
        ("llama", {"head_dim": 24}, "fused"),
        ("qwen2", {"head_dim": 12, "num_key_value_heads": 1}, "plain"),
        ("gpt2", {"n_embd": 35, "hidden_size": 35, "n_head": 5}, "plain"),
        ("gpt2", {"n_embd": 24, "hidden_size": 24, "n_head": 3}, "fused"),
    ],
    ids=["llama 100", "llama 24", "qwen2 12", "gpt2 7", "gpt2 8"],
)
def test_the_graph_is_the_one_that_the_engine_can_run(tmp_path, architecture, changes, route):
    trained = tiny.make(tmp_path, architecture, "CAUSAL_LM", **changes)
    checkpoint = read_checkpoint(trained.adapter)
    base = resolve_base(checkpoint, str(trained.base))
    model = load_model(checkpoint, base)
    prompt = freeze(checkpoint, model, with_prefix_kv=True, with_head=False)
    _, graph = base.kind.build(model, base, prompt, BuildOptions(refuses=_refused))
    assert graph.route == route
    assert ("GroupQueryAttention does not take" in graph.reason) == (route == "plain")


def test_narrow_heads_compile_with_weights_in_few_bits(tmp_path):
    trained = tiny.make(
        tmp_path, "gpt2", "CAUSAL_LM", n_embd=35, hidden_size=35, n_head=5, n_layer=1
    )
    bundle = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path / "bundle",
        precision="int4",
        quantization=ptdeploy.QuantizationOptions(min_agreement=0.5, max_perplexity_ratio=3),
    )
    assert bundle.manifest.graph.route == "plain"
    assert "5 heads of 7 (head_size must be a multiple of 8" in bundle.manifest.graph.reason
    assert len(ptdeploy.load(bundle.path).generate([[1, 2, 3], [4]], 4)[1].token_ids) == 4


def _huge(tmp_path) -> Path:
    """A graph that asks for 4 PB, as a bundle's engine."""
    node = helper.make_node("Expand", ["input_ids", "shape"], ["logits"], name="layer.0/Expand")
    shape = numpy_helper.from_array(np.array([1 << 25, 1 << 25], np.int64), "shape")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, [1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "huge", [ids], [logits], [shape])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx"
    )
    return tmp_path / "model.onnx"


def _session(path: Path) -> OrtSession:
    options = session_options("cpu")
    return OrtSession(onnxruntime.InferenceSession(str(path), options))


def test_memory_that_an_engine_lacks_is_said_with_its_size(tmp_path):
    with pytest.raises(
        ptdeploy.OutOfMemory, match=r"does not fit \(4.5e\+03 TB asked for at once\)"
    ):
        _session(_huge(tmp_path)).run({"input_ids": np.ones(1, np.float32)})


def _numpy() -> None:
    np.empty(1 << 50)


def _torch() -> None:
    torch.empty(1 << 50)


def _wrapped() -> None:
    try:
        _torch()
    except RuntimeError as error:
        raise ValueError("torch's exporter gave up") from error


def _system() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "model.safetensors")


@pytest.mark.parametrize("fail", [_numpy, _torch, _wrapped, _system])
def test_memory_that_a_library_lacks_names_the_stage(fail):
    with (
        pytest.raises(ptdeploy.OutOfMemory, match="the stage was: load the base model") as raised,
        Progress(quiet=True).stage("load the base model"),
    ):
        fail()
    assert raised.value.exit_code == 3
    assert "This machine has" in raised.value.fix


@pytest.mark.parametrize(
    ("said", "device", "where"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "cpu", "Memory ran out on the GPU: it is large"),
        ("Failed to allocate memory for requested buffer of size 8", "cuda", "ran out on cuda: it"),
    ],
)
def test_memory_that_a_gpu_lacks_is_not_called_the_machines(said, device, where):
    raised = out_of_memory("it is large", RuntimeError(said), "Send less.", device)
    assert where in raised.problem
    assert raised.fix == "Send less."


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Unable to allocate 1.00 PiB for an array with shape (1125899906842624,)", "1.00 PiB"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", "4.1 kB"),
        ("Failed to allocate memory for requested buffer of size 2000000", "2 MB"),
        ("unable to mmap 100 bytes from file", "100 bytes"),
        ("std::bad_alloc", ""),
    ],
)
def test_what_was_asked_for_at_once_is_said(said, asked):
    raised = out_of_memory("it is large", RuntimeError(said))
    words = f" ({asked} asked for at once)" if asked else ""
    assert raised.problem == f"Memory ran out: it is large{words}."


def test_other_errors_pass_a_stage_as_they_are():
    for error in (ValueError("4 bytes"), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)) as raised, Progress(quiet=True).stage("write"):
            raise error
        assert raised.value is error


def test_memory_that_ends_the_command_line_is_exit_3_and_no_traceback(tmp_path, capsys):
    """The hard limit of a process, as a container sets it."""
    program = (
        "import resource, sys, numpy, onnxruntime; from ptdeploy.cli.main import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), -1))\n"
        "sys.exit(main(['compile', 'x', '--target', 'ort', *sys.argv[1:]]))"
    )
    text = tmp_path / "text.txt"
    with text.open("wb") as file:
        file.truncate(256 << 20)
    done = subprocess.run(
        [sys.executable, "-c", program, "--precision", "int8", "--quality-text", str(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr


@pytest.fixture(scope="module")
def report() -> ParityReport:
    """A report of three cases that hold."""
    case = CaseResult(
        name="alone",
        source="random",
        padding="right",
        rows=(0,),
        lengths=(5,),
        max_abs=1e-7,
        mean_abs=1e-8,
        cosine=1.0,
        kl=0.0,
        top1_agreement=1.0,
        histogram=(),
        passed=True,
    )
    return ParityReport(
        passed=False,
        target="trt",
        device="cuda",
        precision="fp16",
        reference="PEFT",
        thresholds=None,
        largest_allowed=0.01,
        cases=(case, case, case),
        greedy=(),
        texts_agreed=0,
        texts_total=0,
        quality=None,
        quality_allowed=None,
        notes=(),
    )


def _changed(report: ParityReport, **changes: Any) -> ParityReport:
    worse = msgspec.structs.replace(report.cases[1], passed=False, **changes)
    return msgspec.structs.replace(report, cases=(report.cases[0], worse, worse))


FP16 = Compiled("bert", "float16", ("fp32", "tf32", "fp16", "bf16"))


def test_an_engine_that_fails_is_an_error_of_its_own_with_one_reason(report):
    failed = _changed(report, max_abs=None, stopped="ONNX Runtime failed (Gather: out of bounds).")
    with pytest.raises(ptdeploy.EngineFault) as raised:
        refuse_mismatch(failed, FP16)
    assert raised.value.exit_code == 2
    assert str(raised.value).count("Gather: out of bounds") == 1
    assert "in 2 of 3 runs, first in alone, lengths [5]" in str(raised.value)
    assert "not finite" not in str(raised.value)
    assert verdict(failed) == "the engine fails"


def test_overflow_of_16_bits_names_bf16(report):
    lost = _changed(report, max_abs=None)
    with pytest.raises(ptdeploy.ParityError, match="65504") as raised:
        refuse_mismatch(lost, FP16)
    assert "--precision bf16 or fp32" in raised.value.fix


def test_overflow_is_said_as_that_where_decoding_stops_at_it_too(report):
    greedy = GreedyResult(5, 0, 16, False, "The engine gave logits that are not finite.")
    lost = msgspec.structs.replace(_changed(report, max_abs=None), greedy=(greedy,))
    with pytest.raises(ptdeploy.ParityError, match="overflow 16 bits"):
        refuse_mismatch(lost, FP16)


def test_overflow_names_no_precision_that_the_target_lacks(report):
    lost = _changed(report, max_abs=None)
    with pytest.raises(ptdeploy.ParityError) as raised:
        refuse_mismatch(lost, Compiled("bert", "float16", ("fp32", "fp16", "int8", "int4")))
    assert raised.value.fix == "Compile with --precision fp32."


@pytest.mark.parametrize(
    ("precision", "fix"),
    [("fp16", "fp32, or bf16"), ("tf32", "--precision fp32"), ("fp32", "If bert is in the README")],
)
def test_the_way_out_fits_the_mismatch(report, precision, fix):
    mismatched = msgspec.structs.replace(_changed(report, max_abs=0.5), precision=precision)
    with pytest.raises(ptdeploy.ParityError) as raised:
        refuse_mismatch(mismatched, FP16)
    assert fix in raised.value.fix


@pytest.mark.parametrize(
    ("error", "fix"),
    [(0.02, "near ties"), (0.5, "Try more bits"), (1.3, "more than quantization costs")],
)
def test_the_way_out_of_quantization_fits_its_logits_error(report, error, fix):
    quality = Quality("ptdeploy's own text", 96, 96, 0.9, None, None, logits_error=error)
    allowed = Quantization(8, 32, 4, 0.97, 1.02, max_logits_error=0.15)
    mismatched = msgspec.structs.replace(
        report, cases=report.cases[:1], precision="int8", quality=quality, quality_allowed=allowed
    )
    with pytest.raises(ptdeploy.ParityError) as raised:
        refuse_mismatch(mismatched, Compiled("bert", "float32", ("fp32", "int8", "int4")))
    assert fix in raised.value.fix


@pytest.mark.parametrize("error", [0.02, 0.5, 1.3])
def test_the_way_out_of_calibration_is_to_leave_it_out_and_no_block_size(report, error):
    quality = Quality("ptdeploy's own text", 96, 96, 0.9, None, None, logits_error=error)
    allowed = Quantization(8, 0, 0, 0.97, 1.02, max_logits_error=0.15, calibrated=0.5)
    mismatched = msgspec.structs.replace(
        report, cases=report.cases[:1], precision="int8", quality=quality, quality_allowed=allowed
    )
    with pytest.raises(ptdeploy.ParityError) as raised:
        refuse_mismatch(mismatched, Compiled("bert", "float32", ("fp32", "int8", "int4")))
    assert "eave out --calibration" in raised.value.fix
    assert "--block-size" not in raised.value.fix


def test_the_way_out_is_of_the_prompt_that_quantization_costs_too_much(report):
    good = Quality("ptdeploy's own text", 96, 96, 1.0, None, None, logits_error=0.01)
    bad = msgspec.structs.replace(good, top1_agreement=0.9)
    allowed = Quantization(8, 32, 4, 0.97, 1.02, max_logits_error=0.15)
    held = msgspec.structs.replace(
        report, cases=report.cases[:1], precision="int8", quality=good, quality_allowed=allowed
    )
    other = msgspec.structs.replace(held, quality=bad, prompt="other", passed=False)
    mismatched = msgspec.structs.replace(held, prompts=(other,), passed=False)
    with pytest.raises(ptdeploy.ParityError) as raised:
        refuse_mismatch(mismatched, Compiled("bert", "float32", ("fp32", "int8", "int4")))
    assert "near ties" in raised.value.fix


def test_a_tokenizer_that_differs_is_not_blamed_on_the_architecture(report):
    held = msgspec.structs.replace(report, cases=report.cases[:1], texts_agreed=3, texts_total=5)
    with pytest.raises(ptdeploy.ParityError, match="2 of 5 texts") as raised:
        refuse_mismatch(held, FP16)
    assert raised.value.fix.startswith("Only the tokenizer differs")
