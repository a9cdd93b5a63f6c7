"""The C++ library under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer, valgrind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support import families, native
from support.damage import DAMAGE, REFERENCE_DAMAGE, replace
from support.native import ROWS, text_of
from support.openvino import behind, copied, keep_kv_in
from support.siblings import rename_prompt, renamed
from support.spelling import with_tokenizer
from support.tools import tool

# oneTBB loads its libraries in a way that sanitizers cannot follow unless it is told.
OPENVINO = {
    "TBB_ENABLE_SANITIZERS": "1",
    "LSAN_OPTIONS": f"suppressions={native.TESTS / 'leak_openvino.supp'}:print_suppressions=0",
    "TSAN_OPTIONS": f"suppressions={native.TESTS / 'thread_openvino.supp'}",
}
SOME = ["encoder classifier", "token classifier", "decoder classifier", "fused", "plain"]


@pytest.fixture(scope="module")
def address() -> Path:
    targets = ("probe", "c_api", "planted")
    return native.build(native.TESTS, "address", targets, **native.with_openvino())


@pytest.fixture(scope="module")
def thread() -> Path:
    targets = ("ptdeploy_server", "planted", "storm")
    return native.build(native.TESTS, "thread", targets, **native.with_openvino())


@pytest.fixture(scope="module")
def paged(compiled, tmp_path_factory) -> Path:
    """A model that writes over OpenVINO's paged cache."""
    native.need_openvino()
    one = compiled("qwen2", "CAUSAL_LM", {}, max_position_embeddings=700)
    return copied(one.bundle, tmp_path_factory.mktemp("paged") / "bundle")


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
        f"{free} text=1 pieces=0 stop=61",
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


@pytest.mark.parametrize("kv", ["f32", "u8"])
def test_none_over_the_paged_cache(paged, address, tmp_path, kv):
    """Prompts that end within a block, with one, and behind it; rows of several blocks."""
    probe = native.Probe(str(address / "probe"), env=OPENVINO)
    if kv == "f32":
        exercise(probe, paged)
    for tokens in (32, 33):
        bundle = behind(paged, tmp_path / str(tokens), tokens)
        if kv != "f32":
            keep_kv_in(bundle, kv)
        assert probe.ask("open", "e", bundle) == {}
        long = ",".join(str(7 + n % 90) for n in range(560))
        assert "error" not in probe.ask("logits", "e", f"{long};5,6")
        other = rename_prompt(behind(paged, tmp_path / f"{tokens} and 70", 70), "long")
        if kv != "f32":
            keep_kv_in(other, kv)
        assert probe.ask("load", "e", other, "long") == {}
        for names in ("+long * +long *", "* - +long +nobody"):
            probe.ask("generate", "e", text_of(ROWS), "max_new_tokens=5", f"each {names}")
        assert probe.ask("unload", "e", "long") == {}
        probe.ask("session-open", "s", "e 100 *")
        free = "max_new_tokens=9 eos_token_ids="
        for name, given in (
            ("append", ",".join(["7"] * 40)),
            ("generate", free),
            ("fork", "f"),
            ("rollback", "20"),
            ("generate", free),
        ):
            assert "error" not in probe.ask(f"session-{name}", "s", given)
        assert "error" not in probe.ask("session-generate", "f", free)
    assert probe.close() == ""


def test_none_in_a_decoder_of_any_kind(bundles, address, tmp_path):
    probe = native.Probe(str(address / "probe"))
    for kind in families.KINDS:
        families.make(kind).save_pretrained(tmp_path / kind)
        file = tmp_path / kind / "tokenizer.json"
        bundle = with_tokenizer(bundles("fused"), tmp_path / f"{kind} bundle", file)
        assert probe.ask("open", "e", bundle) == {}
        for ids in ("5,6,7", "300,301,302,1,0", "-1,99999999999", ""):
            probe.ask("decode", "e", ids)
        free = "max_new_tokens=20 eos_token_ids= repetition_penalty=1.3"
        probe.ask("generate", "e", text_of(ROWS), f"{free} pieces=0 stop=61,2065,c3a9")
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


def storm(
    thread: Path, bundle: Path, guests: Sequence[Path], times: int, **env: str
) -> tuple[int, ...]:
    """How many requests were answered and refused, and how often a prompt came and went."""
    done = subprocess.run(
        [thread / "storm", bundle, *guests, str(times)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(map(int, done.stdout.split()))


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
    assert "error: " not in done.stdout


@pytest.mark.parametrize("kind", ["encoder classifier", "fused", "plain", "fused, not frozen"])
def test_no_data_race_in_the_server_and_nothing_suppressed(bundles, thread, kind):
    serve(thread, bundles(kind), 1, None)


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_no_data_race_while_prompts_come_and_go_beside_requests(
    compiled, packed, thread, architecture, task
):
    pack = packed(architecture, task).path
    answered, refused, rounds = storm(thread, compiled(architecture, task).bundle, [pack, pack], 20)
    assert answered + refused == 80
    assert answered
    assert rounds


def test_no_data_race_over_the_paged_cache(paged, thread, tmp_path):
    """Requests, sessions and forks over blocks that they share, while prompts come and go."""
    other = behind(paged, tmp_path / "other", 70)
    guests = [renamed(other, tmp_path / name, name) for name in ("guest0", "guest1")]
    answered, refused, rounds = storm(thread, paged, guests, 20, **OPENVINO)
    assert answered + refused == 80
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
