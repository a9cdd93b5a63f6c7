"""What is carried to a GPU machine arrives whole, and its steps go on from call to call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
FAKES = """
import os, time
from pathlib import Path
from prove import Context, Incomplete, NoGpu, Step

def once(name):
    def work(context):
        with open(os.environ["RAN"], "a") as file:
            file.write(name + "\\n")
        context.reach("half of it")
        return {"name": name}
    return work

def naps(context):
    time.sleep(1)
    return once("a")(context)

def fails(context):
    context.reach("the middle")
    if Path(os.environ["RAN"] + ".mended").exists():
        return {}
    raise ValueError("no such kernel")

def half(context):
    raise Incomplete("without trt", {"ort": 1})

def crashes(context):
    print("about to crash", flush=True)
    os.abort()

def hangs(context):
    time.sleep(60)

def no_gpu(context):
    context.reach("the model was made")
    raise NoGpu("there is none")

"""


@pytest.fixture
def prove(tmp_path):
    """`prove(steps, *arguments, **environment)`: the exit code, and proof.json."""

    def call(steps: str, *arguments: str, **environment: str) -> tuple[int, dict]:
        (tmp_path / "fakes.py").write_text(f"{FAKES}\nSTEPS = [{steps}]\n")
        places = {"PROVEN": "proven", "OUT": "out", "RAN": "ran"}
        variables = {name: str(tmp_path / place) for name, place in places.items()}
        command, *names = arguments or ("run",)
        done = subprocess.run(
            [sys.executable, GPU / "prove.py", command, *names, "--steps", tmp_path / "fakes.py"],
            env={**os.environ, **variables, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        proof = tmp_path / "out" / "proof.json"
        found = json.loads(proof.read_text()) if proof.exists() else {}
        return done.returncode, {**found, "printed": done.stdout + done.stderr}

    return call


def states(found: dict) -> dict[str, str]:
    return {name: one["state"] for name, one in found["steps"].items()}


def test_a_step_that_does_not_fit_is_left_and_the_next_call_goes_on(prove, tmp_path):
    steps = "Step('a', 1, naps), Step('b', 30, once('b'), ('a',)), Step('c', 1, once('c'))"
    # A step longer than a whole call begins only where a whole call is left.
    code, found = prove(steps, PROVE_SECONDS="5")
    assert (code, states(found)) == (4, {"a": "passed", "b": "left", "c": "passed"})
    assert "takes about 30 s" in found["steps"]["b"]["error"]
    code, found = prove(steps, PROVE_SECONDS="5")
    assert (code, found["counts"]) == (0, {"passed": 3})
    assert found["steps"]["b"]["found"] == {"name": "b"}
    # Nothing that had passed ran again.
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "b", "c"]


def test_what_was_done_before_the_first_step_is_a_part_of_the_call(prove):
    steps = "Step('a', 3, once('a')), Step('b', 1, once('b'))"
    code, found = prove(steps, PROVE_SECONDS="60", PROVE_BEGAN=str(time.time() - 58))
    assert (code, states(found)) == (4, {"a": "left", "b": "passed"})
    assert found["steps"]["a"]["error"] in [
        f"takes about 3 s of which {n} were left" for n in (1, 2)
    ]


def test_a_call_is_counted_from_the_start_of_its_script(tmp_path):
    """A program in Python's place says what it is told: installing takes two seconds there."""
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\ncase "$2" in take) sleep 2 ;; libraries) ;;\n'
        '*) echo "$(($(date +%s) - PROVE_BEGAN))" ;; esac\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", GPU / "prove.sh"],
        env={**os.environ, "PYTHON": str(python), "PROVEN": str(tmp_path), "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 2


def test_a_step_that_fails_or_crashes_ends_no_other(prove, tmp_path):
    steps = (
        "Step('bad', 1, fails), Step('dead', 1, crashes), Step('good', 1, once('good')), "
        "Step('half', 1, half), "
        "Step('vain', 1, once('vain'), ('bad',)), Step('then', 1, once('then'), (), ('bad',))"
    )
    code, found = prove(steps)
    assert code == 1
    want = {"bad": "failed", "dead": "failed", "good": "passed", "vain": "skipped"}
    want["half"] = "failed"
    assert states(found) == {**want, "then": "passed"}
    assert "Traceback" in found["steps"]["bad"]["error"]
    assert found["steps"]["bad"]["error"].strip().endswith("ValueError: no such kernel")
    assert found["steps"]["bad"]["reached"] == ["the middle"]
    assert "about to crash" in found["steps"]["dead"]["error"]
    assert found["steps"]["vain"]["error"] == "needs bad, which did not pass"
    assert found["steps"]["half"]["found"] == {"ort": 1}
    # One that failed is run again where it is named, and what needs it after that.
    (tmp_path / "ran.mended").touch()
    assert prove(steps)[0] == 1
    code, found = prove(steps, "run", "bad", "vain")
    assert (code, states(found)["vain"]) == (0, "passed")


def test_a_step_that_hangs_fails_after_a_whole_call_and_is_left_after_a_part(prove):
    steps = "Step('a', 1, naps), Step('slow', 0, hangs)"
    code, found = prove(steps, PROVE_SECONDS="3")
    assert (code, states(found)) == (4, {"a": "passed", "slow": "left"})
    code, found = prove(steps, PROVE_SECONDS="1")
    assert (code, states(found)) == (1, {"a": "passed", "slow": "failed"})
    assert "did not end within" in found["steps"]["slow"]["error"]


def test_a_named_step_runs_what_it_needs_and_waits_for_no_other(prove, tmp_path):
    steps = (
        "Step('a', 1, once('a')), Step('b', 1, once('b')), Step('c', 1, once('c')), "
        "Step('d', 1, once('d'), ('a',), ('b',))"
    )
    code, found = prove(steps, "run", "d")
    assert (code, found["counts"]) == (0, {"passed": 2, "left": 2})
    assert (tmp_path / "ran").read_text().split() == ["a", "d"]


def test_steps_side_by_side_all_run(prove, tmp_path):
    steps = ", ".join(f"Step('{one}', 1, once('{one}'), together=True)" for one in "abc")
    code, found = prove(steps, PROVE_AT_ONCE="3")
    assert (code, found["counts"]) == (0, {"passed": 3})
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "b", "c"]


def test_a_rehearsal_accepts_a_missing_gpu_and_no_other_reason(prove):
    steps = "Step('gpu', 1, no_gpu), Step('next', 1, once('next'), ('gpu',))"
    code, found = prove(steps, "rehearse")
    assert (code, states(found)) == (0, {"gpu": "no GPU", "next": "passed"})
    assert found["steps"]["gpu"]["reached"] == ["the model was made"]
    assert found["rehearsal"]
    code, found = prove(f"{steps}, Step('bad', 1, fails)", "rehearse")
    assert (code, states(found)["bad"]) == (1, "failed")
    # Where it counts, a missing GPU is a failure; what was rehearsed counts for nothing.
    code, found = prove(steps)
    assert (code, states(found)) == (1, {"gpu": "failed", "next": "skipped"})


def test_a_step_that_nobody_knows_is_refused(prove):
    code, found = prove("Step('a', 1, no_gpu)", "run", "b")
    assert (code, found["printed"]) == (2, "no step b; there are a\n")


@pytest.fixture
def carry(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import carry

    return carry


@pytest.fixture
def wheel(tmp_path):
    """A wheel of a package of one module."""
    import zipfile

    path = tmp_path / "carried_example-1.0-py3-none-any.whl"
    info = "carried_example-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carried_example.py", f"VALUE = '{'x' * 300}'\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-example\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_parts_carried_one_a_call_are_installed_once_all_are_there(carry, wheel, tmp_path, capsys):
    made, carried, kept = tmp_path / "made", tmp_path / "carried", tmp_path / "kept"
    carry.cut([wheel], made, 4096)
    names = sorted(json.loads((made / "parts.json").read_text()))
    assert len(names) > 2
    for name in names:
        carried.mkdir()
        for file in ("parts.json", name):
            (carried / file).write_bytes((made / file).read_bytes())
        complete = carry.take(carried, kept)
        assert complete == (name == names[-1])
        for file in carried.iterdir():
            file.unlink()
        carried.rmdir()
    # A later call carries nothing.
    assert carry.take(carried, kept)
    carry.install(kept)
    assert "xxx" in (kept / "site" / "carried_example.py").read_text()
    assert not (kept / "wheels.tar").exists()
    # Other parts than those: nothing of the old archive stays.
    carry.cut([wheel], carried, 8192)
    assert carry.take(carried, kept)
    assert not (kept / "site").exists()


def test_a_part_that_is_not_what_the_list_says_is_refused(carry, wheel, tmp_path, capsys):
    carried, kept = tmp_path / "carried", tmp_path / "kept"
    carry.cut([wheel], carried, 4096)
    whole = (carried / "part.01").read_bytes()
    (carried / "part.01").write_bytes(whole[:-1] + b"?")
    with pytest.raises(SystemExit) as ended:
        carry.take(carried, kept)
    assert ended.value.code == 2
    assert "part.01: not what parts.json says" in capsys.readouterr().err
    assert not (kept / "parts" / "part.01").exists()
    (carried / "part.01").write_bytes(whole)
    assert carry.take(carried, kept)


def test_parts_without_their_list_are_refused(carry, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        carry.take(tmp_path / "carried", tmp_path / "kept")
    assert ended.value.code == 2
    assert "parts.json is missing" in capsys.readouterr().err


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    import prove

    yield prove.read_steps(prove.STEPS)
    # What the steps import from it is this test's own.
    del sys.modules["prove"]


def test_the_first_step_says_what_is_installed_before_it_asks_for_a_gpu(steps, tmp_path):
    import prove

    context = prove.Context(tmp_path, rehearsal=True)
    found = prove.work(steps[0], context)
    assert found["state"] in ("no GPU", "passed"), found
    assert context.reached[0] == "packages were listed"


def test_tests_that_fail_for_more_than_a_missing_gpu_are_told_from_others(steps):
    only = steps[0].work.__globals__["only_without_gpu"]
    missing = (
        "FAILED a.py::t - TargetUnavailable: CUDAExecutionProvider did not start on this machine.\n"
    )
    assert only("SKIPPED [1] a.py: none\n", 0)
    assert only(missing, 1)
    assert not only(missing + "FAILED a.py::u - AssertionError: 1\n", 1)
    assert not only("INTERNALERROR\n", 3)


class Recorded:
    """An engine that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def generate(self, rows, tokens, eos_token_ids):
        self.asked.append((len(rows), len(rows[0]), tokens))

    def logits(self, rows):
        self.asked.append((len(rows), len(rows[0]), 0))


def test_numbers_are_taken_of_every_request_by_turns(steps):
    import engines

    one, other = Recorded(), Recorded()
    found = engines.measure(
        {"one": engines.generate(one, 9), "other": engines.generate(other, 9)}, 1
    )
    assert list(found) == [
        *("first token, 16 tokens", "first token, 512 tokens"),
        *("decode step, batch 1", "decode step, batch 8", "decode step, batch 32"),
    ]
    assert all(set(times) == {"one", "other"} for times in found.values())
    steps_ = [(rows, 16, tokens) for rows in (1, 8, 32) for tokens in (33, 1)]
    assert one.asked == other.asked == 4 * [(1, 16, 1), (1, 512, 1), *steps_]
    texts = Recorded()
    engines.measure({"one": engines.classify(texts, 9)}, 1)
    assert texts.asked == 4 * [(1, 32, 0), (16, 128, 0), (64, 128, 0)]


def test_a_contender_that_cannot_answer_is_left_out_and_the_rest_are_timed(steps):
    import engines

    able = steps[0].work.__globals__["able"]
    makers = {"mute": object, "absent": lambda: 1 / 0, "one": Recorded}
    found, left_out = able(makers, lambda one: engines.classify(one, 9))
    assert list(found) == ["one"]
    assert left_out["absent"] == "ZeroDivisionError: division by zero"
    assert left_out["mute"].startswith("AttributeError")


def test_the_share_of_the_bandwidth_is_of_weights_in_16_bits(steps, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(4000))
    times = {"median_ms": {"decode step, batch 1": {"trt": 2.0}}}
    shares = steps[-1].work.__globals__["shares"]
    assert shares(times, tmp_path, 2e6) == {"trt": pytest.approx(0.5)}


@pytest.mark.parametrize("runs", ["default", "current", "none"])
def test_an_engine_for_the_gpu_at_hand_is_tried_where_the_default_does_not_run(
    steps, tmp_path, monkeypatch, runs
):
    import engines
    import prove

    step = next(one for one in steps if one.name == "trt-starts")
    parts = steps[0].work.__globals__
    asked = []

    def build(context, adapter, output, options, where):
        engine = options.get("engine")
        asked.append(engine.compute_capability if engine else "default")
        if runs == asked[-1]:
            return {"compile_s": 1}
        raise RuntimeError(f"cannot load it: {asked[-1]}")

    monkeypatch.setitem(parts, "build", build)
    monkeypatch.setattr(engines, "shape", lambda model, tiny: (tmp_path, tmp_path))
    found = prove.work(step, prove.Context(tmp_path))
    assert asked == ["default", "current"][: 1 if runs == "default" else 2]
    if runs == "none":
        assert found["state"] == "failed"
        # Why neither ran.
        assert "cannot load it: default" in found["error"]
        assert "cannot load it: current" in found["error"]
        return
    assert (found["state"], found["found"]["built_for"]) == ("passed", runs)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "trt-starts.json").write_text(json.dumps(found))
    # Later steps build what runs.
    parts["bundle"](prove.Context(tmp_path), "trt", "fp16", "later", tmp_path, tmp_path)
    assert asked[-1] == runs


def test_every_step_waits_only_for_earlier_ones_that_do_not_run_beside_it(steps):
    import itertools

    groups = [list(one) for _, one in itertools.groupby(steps, key=lambda step: step.together)]
    before: set[str] = set()
    for group in groups:
        for step in group:
            assert {*step.needs, *step.after} <= before, step.name
            if not step.together:
                before.add(step.name)
        before |= {step.name for step in group}
    assert len(before) == len(steps)


def test_every_step_fits_into_a_call(steps):
    assert max(step.seconds for step in steps) < 540 * 0.9


def test_the_pinned_packages_have_a_version(carry):
    import re

    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (carry.ROOT / "constraints.txt").read_text(), re.M))
    assert {*carry.PINNED, *carry.BUILT} <= set(pins)
