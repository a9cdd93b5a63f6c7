"""Memory that runs out is no fault of the bundle or the engine, in C++ as in Python."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import native
from support.c_abi import OUT_OF_MEMORY, Library
from support.damage import replace
from support.native import text_of
from support.openvino import copied
from support.refusals import python_refusal, same_refusal

import ptdeploy
from ptdeploy.arguments import checked
from ptdeploy.memory import out_of_memory, ran_out_of_memory

NO_THREADS = "This process may start no more threads."

RAN_OUT = (
    "mmap: Cannot allocate memory",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "Unable to allocate 1.00 PiB",
    "Failed to allocate memory for requested buffer of size 8",
    "std::bad_alloc",
    "bad allocation",
    "Cuda Runtime (out of memory)",
    "Error Code 2: OutOfMemory (Requested size was 9.)",
    "Not enough memory resources",
    "Cannot read (os error 12)",
)


def greedy(model: onnx.ModelProto) -> None:
    """Have a graph ask for 4 TB at once, whatever it is given."""
    make, (output,) = onnx.helper.make_node, model.graph.output
    for node in model.graph.node:
        node.output[:] = ["most" if name == output.name else name for name in node.output]
    shape = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "large")
    model.graph.initializer.append(shape)
    model.graph.node.extend(
        (
            make("ReduceMax", ["input_ids"], ["last"], keepdims=1),
            make("Cast", ["last"], ["number"], to=onnx.TensorProto.FLOAT),
            make("Expand", ["number", "large"], ["numbers"]),
            make("Relu", ["numbers"], ["positive"]),
            make("ReduceMin", ["positive"], ["least"], keepdims=0),
            make("Add", ["most", "least"], [output.name]),
        )
    )


@pytest.fixture
def asking(bundles, tmp_path) -> Path:
    bundle = tmp_path / "asking"
    shutil.copytree(bundles("encoder classifier"), bundle)
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    greedy(model)
    replace(bundle, "model.onnx", model.SerializeToString())
    return bundle


def test_a_request_that_does_not_fit_is_refused_in_pythons_words(asking, probe):
    assert probe.ask("open", "e", asking) == {}
    with pytest.raises(ptdeploy.OutOfMemory, match=r"\(4\.4 TB asked for at once\)") as ours:
        ptdeploy.load(asking).logits([[5, 6]])
    theirs = probe.ask("logits", "e", text_of([[5, 6]]))
    assert same_refusal(theirs, ours.value, same_words=True), theirs


def test_what_openvino_has_no_room_to_compile_is_refused_in_pythons_words(asking, probe, tmp_path):
    native.need_openvino()
    bundle = copied(asking, tmp_path / "openvino")
    ours, theirs = python_refusal(bundle), probe.ask("open", "e", bundle)
    assert isinstance(ours, ptdeploy.OutOfMemory)
    assert ours.problem.endswith("model.onnx does not fit (4.4 TB asked for at once).")
    assert same_refusal(theirs, ours, same_words=True), theirs


def test_the_c_abi_says_that_it_was_memory(asking, built):
    library = Library(built, asking)
    library.expected = (OUT_OF_MEMORY,)
    ids, lengths = (ctypes.c_int64 * 2)(5, 6), (ctypes.c_size_t * 1)(2)
    status = library.c.ptdeploy_logits(
        library.engine, ids, None, lengths, ctypes.c_size_t(1), (ctypes.c_float * 64)()
    )
    assert library.said(status).startswith("Memory ran out: the request does not fit")


def test_a_bundle_that_does_not_fit_is_not_called_broken(compiled, built):
    large = {"vocab_size": 60000, "hidden_size": 128}
    bundle = compiled("qwen2", "CAUSAL_LM", {}, **large).bundle
    probe = native.Probe(str(built / "probe"))
    probe.ask("printable", "")
    # Less than its 62 MB of weights.
    most = _status("VmData", probe.process_id) + (48 << 20)
    resource.prlimit(probe.process_id, resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    answer = probe.ask("open", "e", bundle, 1)
    assert answer["error"] == "OutOfMemory"
    said = re.escape(f"Memory ran out: the engine {bundle / 'model.onnx'} does not fit")
    assert re.fullmatch(rf"{said}( \(.* asked for at once\))?\.", answer["problem"])
    assert answer["fix"].startswith("This machine has")


def test_what_the_standard_library_has_no_room_for_is_refused_in_pythons_words(compiled, built):
    large = {"vocab_size": 60000, "hidden_size": 128}
    bundle = compiled("qwen2", "CAUSAL_LM", {}, **large).bundle
    probe = native.Probe(str(built / "probe"))
    assert probe.ask("open", "e", bundle, 1) == {}
    most = _status("VmData", probe.process_id) + (16 << 20)
    resource.prlimit(probe.process_id, resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))

    @checked()
    def ask() -> None:
        raise MemoryError

    with pytest.raises(ptdeploy.OutOfMemory) as ours:
        ask()
    theirs = probe.ask("read", "e", "weights")
    assert same_refusal(theirs, ours.value, same_words=True), theirs


# Of more kilobytes than a process may have is each thread's stack.
NO_MORE_THREADS = "ulimit -s 1000000000; ulimit -v 500000000; exec"


def probe_alone(built: Path) -> native.Probe:
    """The probe where no other thread fits."""
    return native.Probe("sh", "-c", f"{NO_MORE_THREADS} '{built / 'probe'}'")


def python_alone(program: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where no other thread fits."""
    return subprocess.run(
        ["sh", "-c", f'{NO_MORE_THREADS} "$@"', "sh", sys.executable, "-c", program, bundle],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def test_where_no_other_thread_fits_a_bundle_is_opened_by_one(bundles, built):
    probe = probe_alone(built)
    assert probe.ask("open", "e", bundles("encoder classifier"), 1) == {}
    assert probe.ask("verify", "e")["passed"]


def test_threads_that_do_not_start_are_not_the_bundles_fault(bundles, built):
    bundle = bundles("encoder classifier")
    probe = probe_alone(built)
    theirs = probe.ask("open", "e", bundle, 2)
    assert (theirs["error"], theirs["problem"]) == ("TargetUnavailable", NO_THREADS)
    program = (
        "import sys, ptdeploy\n"
        "for threads in (1, 2):\n"
        "    try:\n"
        "        print(len(ptdeploy.load(sys.argv[1], threads=threads).logits([[5, 6]])))\n"
        "    except ptdeploy.TargetUnavailable as error:\n"
        "        print(error.problem, error.fix, sep='\\n')\n"
    )
    ours = python_alone(program, bundle)
    opened, *said = ours.stdout.splitlines()
    assert opened == "1", ours.stderr
    assert said[-2:] == [theirs["problem"], theirs["fix"]], ours.stderr


def test_openvino_without_threads_is_no_machine_without_a_cpu(bundles, built, tmp_path):
    native.need_openvino()
    bundle = copied(bundles("encoder classifier"), tmp_path / "openvino")
    probe = probe_alone(built)
    theirs = probe.ask("open", "e", bundle, 1)
    assert (theirs["error"], theirs["problem"]) == ("TargetUnavailable", NO_THREADS)
    program = (
        "import sys, ptdeploy\n"
        "try:\n"
        "    ptdeploy.load(sys.argv[1])\n"
        "except ptdeploy.TargetUnavailable as error:\n"
        "    print(error.problem, error.fix, sep='\\n')\n"
    )
    ours = python_alone(program, bundle)
    assert ours.stdout.splitlines() == [theirs["problem"], theirs["fix"]], ours.stderr


@pytest.mark.parametrize(
    "said",
    [
        "Failed to allocate 2 GiB",
        "Unable to allocate 1.00 PiB for an array with shape (1125899906842624,)",
        "you tried to allocate 4096 bytes.",
        "buffer of size 2000000, failed to allocate 7",
        "Failed to allocate 1.5 of size 8",
        "std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
        "out of memory on gpu 1",
        "GPUs are out of memory",
    ],
)
def test_what_was_asked_for_and_where_is_said_in_pythons_words(said, built):
    ours = out_of_memory("it is large", RuntimeError(said), "Send less.")
    theirs = native.checked([str(built / "memory_words"), said])
    assert theirs.splitlines() == [ours.problem, ours.fix]


def test_the_words_it_is_known_by_are_pythons():
    source = native.REPOSITORY / "ptdeploy" / "cpp" / "src" / "out_of_memory.cc"
    (table,) = re.findall(r"kRanOut\[\] = \{(.*?)\};", source.read_text(), re.DOTALL)
    words = re.findall(r'"([^"]+)"', table)
    for said in RAN_OUT:
        assert ran_out_of_memory(RuntimeError(said))
        assert any(one in said.lower() for one in words)
    for one in words:
        assert ran_out_of_memory(RuntimeError(one))
        assert any(one in said.lower() for said in RAN_OUT)


def test_logits_of_every_token_are_in_memory_once(compiled, built):
    large = {"vocab_size": 20000, "max_position_embeddings": 700}
    bundle = compiled("qwen2", "CAUSAL_LM", {}, **large).bundle
    library, count = Library(built, bundle), 600
    ids, lengths = (ctypes.c_int64 * count)(*[5] * count), (ctypes.c_size_t * 1)(count)
    found = np.zeros((count, 20000), np.float32)

    def ask() -> None:
        status = library.c.ptdeploy_logits(
            library.engine,
            ids,
            None,
            lengths,
            ctypes.c_size_t(1),
            found.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        )
        library.said(status)

    ask()  # the KV buffer, which the next request is given
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    found[:] = 0
    ask()
    assert found.any()
    assert 0.9 * found.nbytes < _status("VmHWM") - before < 1.5 * found.nbytes


def _status(field: str, process: int | str = "self") -> int:
    status = Path(f"/proc/{process}/status").read_text()
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", status)
    return int(kilobytes) * 1024
