"""The C++ library under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer, valgrind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import native
from support.damage import DAMAGE, REFERENCE_DAMAGE, replace
from support.native import ROWS, text_of
from support.openvino import copied
from support.tools import tool

SOME = ["encoder classifier", "token classifier", "decoder classifier", "fused", "plain"]


@pytest.fixture(scope="module")
def address() -> Path:
    return native.build(native.TESTS, "address", ("probe", "c_api", "planted"))


@pytest.fixture(scope="module")
def thread() -> Path:
    return native.build(native.TESTS, "thread", ("ptdeploy_server", "planted", "storm"))


def exercise(probe: native.Probe, bundle: Path) -> None:
    """All that a bundle of any task can be asked, refusals included."""
    assert probe.ask("open", "e", bundle) == {}
    rows = text_of(ROWS)
    for method in ("logits", "classify", "tag"):
        probe.ask(method, "e", rows)
        probe.ask(method, "e", "5,101")
        probe.ask(method, "e", "")
    free = "max_new_tokens=9 eos_token_ids= logprobs=1"
    for options in (
        free,
        f"{free} do_sample=True top_k=9 top_p=0.9 min_p=0.01 seed=1",
        f"{free} repetition_penalty=1.2 min_new_tokens=3",
        f"{free} stop_after=2",
        f"{free} cancel_after=3",
        "top_p=7",
        "max_new_tokens=100000",
    ):
        probe.ask("generate", "e", rows, options)
    assert probe.ask("verify", "e")["passed"]
    if "error" not in probe.ask("session-open", "s", "e 50"):
        for name, given in (
            ("append", "5,6,7"),
            ("generate", free),
            ("fork", "f"),
            ("rollback", "4"),
            ("append", "8"),
            ("generate", free),
            ("append", ",".join(["5"] * 60)),
            ("rollback", "1000"),
            ("generate", "max_new_tokens=1000"),
        ):
            probe.ask(f"session-{name}", "s", given)
        probe.ask("close", "e")  # sessions outlive their engine
        probe.ask("session-generate", "f", free)


@pytest.mark.parametrize("kind", [*SOME, "fused, not frozen", "int4"])
def test_no_address_or_undefined_behaviour_error_and_no_leak(bundles, address, kind):
    probe = native.Probe(str(address / "probe"))
    exercise(probe, bundles(kind))
    assert probe.close() == ""


def test_none_while_refusing_every_damaged_bundle(compiled, address, tmp_path):
    probe = native.Probe(str(address / "probe"))
    for number, damage in enumerate(DAMAGE):
        bundle = tmp_path / str(number) / "bundle"
        shutil.copytree(compiled(*damage.bundle).bundle, bundle)
        damage.do(bundle)
        assert "error" in probe.ask("open", "d", bundle), damage.name
    assert probe.close() == ""


def test_none_while_refusing_every_damaged_reference(compiled, address, tmp_path):
    probe = native.Probe(str(address / "probe"))
    for number, damage in enumerate(REFERENCE_DAMAGE):
        bundle = tmp_path / str(number) / "bundle"
        shutil.copytree(compiled(*damage.bundle).bundle, bundle)
        damage.do(bundle)
        assert probe.ask("open", "d", bundle) == {}, damage.name
        assert "error" in probe.ask("verify", "d"), damage.name
    assert probe.close() == ""


def test_none_whatever_byte_of_the_reference_changed(compiled, address, tmp_path):
    """The bundle stays open while its file is changed: hashes are checked when it opens."""
    probe = native.Probe(str(address / "probe"))
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    assert probe.ask("open", "d", bundle) == {}
    file = bundle / "prompts" / "default" / "reference.safetensors"
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        content[random.integers(8 + header)] = random.integers(256)
        file.write_bytes(content)
        refused += "error" in probe.ask("verify", "d")
    assert refused > 100
    assert probe.close() == ""


def test_none_whatever_byte_of_the_prompts_header_changed(compiled, address, tmp_path):
    """With the hash made to fit: virtual tokens and a head's parameters are read by it."""
    probe = native.Probe(str(address / "probe"))
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, bundle)
    name = "prompts/default/prompt.safetensors"
    whole = (bundle / name).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        content[random.integers(8 + header)] = random.integers(256)
        replace(bundle, name, bytes(content))
        if "error" in probe.ask("open", "d", bundle):
            refused += 1
        else:
            probe.ask("logits", "d", text_of(ROWS))
    assert refused > 50
    assert probe.close() == ""


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_none_while_prompts_come_and_go(siblings, packed, address, kind):
    task = {"encoder": ("bert", "SEQ_CLS"), "decoder": ("qwen2", "CAUSAL_LM")}[kind]
    one = siblings(*task)
    probe = native.Probe(str(address / "probe"))
    assert probe.ask("open", "e", one.first.bundle, "", "", "", 1) == {}
    rows = text_of(ROWS)
    for name in one.others:
        assert probe.ask("load", "e", one.of(name).bundle, name) == {}
    assert probe.ask("load", "e", packed(*task).path, "guest") == {}
    for names in ("+long +short +default +guest", "+guest * +long +nobody", "* - +short +long"):
        probe.ask("logits", "e", rows, "", f"each {names}")
        probe.ask("generate", "e", rows, "max_new_tokens=5", f"each {names}")
    probe.ask("session-open", "s", "e 20 +long")
    assert probe.ask("unload", "e", "long") == {}
    assert "error" in probe.ask("load", "e", one.of("long").bundle, "short")
    probe.ask("close", "e")
    if task[1] == "CAUSAL_LM":
        probe.ask("session-append", "s", "5,6,7")
        assert probe.ask("session-generate", "s", "max_new_tokens=4 eos_token_ids=")["token_ids"]
    assert probe.close() == ""


def test_none_in_the_c_abi(bundles, address):
    for kind in ("token classifier", "fused"):
        for more in ((), ("verify",)):
            done = subprocess.run(
                [address / "c_api", bundles(kind), *more],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")


def serve(thread: Path, bundle: Path, threads: int, suppressions: Path | None) -> None:
    requests = "".join(f"r{i} 5,6,{i}\n" for i in range(30))
    done = subprocess.run(
        [thread / "ptdeploy-library" / "examples" / "server", bundle, "4", str(threads)],
        input=requests,
        capture_output=True,
        text=True,
        check=False,
        env={"TSAN_OPTIONS": f"suppressions={suppressions}"} if suppressions else {},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 30


@pytest.mark.parametrize("kind", ["encoder classifier", "fused", "plain", "fused, not frozen"])
def test_no_data_race_in_the_server_and_nothing_suppressed(bundles, thread, kind):
    serve(thread, bundles(kind), 1, None)


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_no_data_race_while_prompts_come_and_go_beside_requests(
    compiled, packed, thread, architecture, task
):
    pack = packed(architecture, task).path
    done = subprocess.run(
        [thread / "storm", compiled(architecture, task).bundle, pack, "40"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answered, refused, rounds = map(int, done.stdout.split())
    assert answered + refused == 160
    assert answered
    assert rounds


@pytest.mark.parametrize("kind", ["encoder classifier", "fused"])
def test_no_data_race_of_ours_beside_the_engines_thread_pool(bundles, thread, kind):
    serve(thread, bundles(kind), 2, native.TESTS / "thread.supp")


VALGRIND = (
    "--quiet",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite,indirect,possible",
    "--error-exitcode=9",
    f"--suppressions={native.TESTS / 'valgrind.supp'}",
)


def test_valgrind_finds_no_error_and_no_leak(bundles, built):
    probe = native.Probe(tool("valgrind"), *VALGRIND, str(built / "probe"))
    for kind in ("encoder classifier", "fused", "plain"):
        exercise(probe, bundles(kind))
    assert probe.close() == ""


def test_the_checkers_can_find_what_they_look_for(address, thread, built):
    """A clean run would mean nothing if they could not."""

    def report(*command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "detected memory leaks" in report(address / "planted", "leak")
    assert "heap-buffer-overflow" in report(address / "planted", "overflow")
    assert "signed integer overflow" in report(address / "planted", "undefined")
    assert "data race" in report(thread / "planted", "race")
    valgrind = tool("valgrind")
    assert "1,234 bytes" in report(valgrind, *VALGRIND, built / "planted", "leak")


def test_a_library_built_without_openvino_says_how_to_build_it(bundles, address, tmp_path):
    bundle = copied(bundles("encoder classifier"), tmp_path / "bundle")
    probe = native.Probe(str(address / "probe"))
    answer = probe.ask("open", "e", bundle)
    assert answer["error"] == "TargetUnavailable"
    assert "no backend for the target openvino" in answer["problem"]
    assert "-DPTDEPLOY_OPENVINO=ON" in answer["fix"]
    probe.close()
