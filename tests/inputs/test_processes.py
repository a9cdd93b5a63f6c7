"""Several processes: cores that are shared, engines that are handed over, processes that fork."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tools import tool

import ptdeploy
from ptdeploy.backends.cores import default_threads, spin_us, usable_cores
from ptdeploy.backends.ort.session import OrtSession
from ptdeploy.backends.ties import tied_cpus

SOURCES = Path(ptdeploy.__file__).parent / "cpp"
ROWS = [[5, 6, 7], [8, 9]]
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def classifier(compiled) -> ptdeploy.Classifier:
    return ptdeploy.load(compiled("bert", "SEQ_CLS").bundle)


@pytest.fixture
def decoder(compiled) -> ptdeploy.CausalLM:
    return ptdeploy.load(compiled("qwen2", "CAUSAL_LM").bundle)


def generated(engine: ptdeploy.CausalLM) -> list[list[int]]:
    return [one.token_ids for one in engine.generate(ROWS, 6, eos_token_ids=())]


def options_of(engine: Any) -> Any:
    return engine._session._session.get_session_options()


# How many threads.

TREES: dict[str, tuple[dict[str, str], int]] = {
    "nothing is said": ({}, 64),
    "version 2": ({"self/cgroup": "0::/a/b", "fs/cgroup/a/b/cpu.max": "200000 100000"}, 2),
    "version 2 in a container": ({"self/cgroup": "0::/", "fs/cgroup/cpu.max": "300000 100000"}, 3),
    "version 2 seen from outside": (
        {"self/cgroup": "0::/../host/x", "fs/cgroup/cpu.max": "300000 100000"},
        3,
    ),
    "the group around it has less": (
        {
            "self/cgroup": "0::/a/b",
            "fs/cgroup/a/cpu.max": "100000 100000",
            "fs/cgroup/a/b/cpu.max": "400000 100000",
        },
        1,
    ),
    "part of a core is rounded up": (
        {"self/cgroup": "0::/a", "fs/cgroup/a/cpu.max": "150000 100000"},
        2,
    ),
    "less than a core": ({"self/cgroup": "0::/a", "fs/cgroup/a/cpu.max": "1000 100000"}, 1),
    "no limit": ({"self/cgroup": "0::/a", "fs/cgroup/a/cpu.max": "max 100000"}, 64),
    "version 1": (
        {
            "self/cgroup": "3:cpuset:/\n4:cpu,cpuacct:/docker/x\n0::/",
            "fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
            "fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "version 1 without a limit": (
        {
            "self/cgroup": "1:cpu:/",
            "fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        64,
    ),
    "no numbers": ({"self/cgroup": "x\n0::/a", "fs/cgroup/a/cpu.max": "many few\nmore"}, 64),
    "no period": ({"self/cgroup": "0::/", "fs/cgroup/cpu.max": "100000 0"}, 64),
    "hardware threads of one core": (
        {
            f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": "0-63"
            for cpu in os.sched_getaffinity(0)
        },
        1,
    ),
}


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize("name", TREES)
def test_cores_are_those_that_affinity_and_quota_leave(tmp_path, monkeypatch, name):
    files, wanted = TREES[name]
    if name != "hardware threads of one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    tree = write_tree(tmp_path, files)
    assert usable_cores(tree, tree) == wanted


def test_cpp_counts_cores_as_python_does(tmp_path):
    compiler = tool("c++")
    sources = ("cores", "ties", "schema", "json", "errors", "printable")
    # As one file they compile in a third of the time.
    (tmp_path / "main.cc").write_text(
        "#include <cstdio>\n"
        + "".join(f'#include "{SOURCES}/src/{name}.cc"\n' for name in sources)
        + "int main(int argc, char** argv) try {\n"
        "  for (int i = 1; i < argc; ++i)\n"
        '    std::printf("%d\\n", ptdeploy::detail::usable_cores(argv[i], argv[i]));\n'
        "  const auto tied = ptdeploy::detail::tied_cpus(0);\n"
        '  std::printf("%d %d\\n", ptdeploy::detail::default_threads(),\n'
        "              ptdeploy::detail::spin_us().value_or(-1));\n"
        "  if (tied.empty()) return 0;\n"
        "  ptdeploy::detail::Seat seat(tied.front());\n"
        "  {\n"
        "    const ptdeploy::detail::Seat::Taken taken(&seat), second(&seat);\n"
        '    for (int cpu : ptdeploy::detail::allowed_cpus()) std::printf("%d ", cpu);\n'
        "  }\n"
        '  std::printf("%zu\\n", ptdeploy::detail::allowed_cpus().size());\n'
        "} catch (const std::exception& error) { return std::puts(error.what()), 2; }\n"
    )
    program = tmp_path / "cores"
    line = [
        compiler,
        "-std=c++17",
        "-O0",
        '-DPTDEPLOY_VERSION=""',
        f"-I{SOURCES / 'include'}",
        tmp_path / "main.cc",
        "-o",
        program,
    ]
    subprocess.run(line, check=True)
    trees = [
        write_tree(tmp_path / f"tree {i}", files) for i, (files, _) in enumerate(TREES.values())
    ]
    got = run(program, *map(str, trees)).stdout.split("\n")
    assert [int(count) for count in got[: len(trees)]] == [usable_cores(t, t) for t in trees]
    assert got[len(trees)] == f"{usable_cores()} 50"
    assert run(program, PTDEPLOY_THREADS=" 7 ", PTDEPLOY_SPIN="1").stdout == "7 -1\n"
    assert run(program, PTDEPLOY_THREADS="7", PTDEPLOY_SPIN="0").stdout == "7 0\n"
    tied = run(program, PTDEPLOY_PIN="1", PTDEPLOY_THREADS="1").stdout
    assert tied == f"1 50\n{min(os.sched_getaffinity(0))} {CORES}\n"
    for variables in BAD_VARIABLES:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(ptdeploy.InputError) as refused:
                _ = default_threads(), spin_us(), tied_cpus()
        done = run(program, **variables)
        assert done.returncode == 2
        assert done.stdout == f"{refused.value}\n"


def run(program: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PTDEPLOY_")}
    return subprocess.run(
        [program, *arguments],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


BAD_VARIABLES = [
    *({"PTDEPLOY_THREADS": value} for value in ("0", "-1", "1025", "two", "2.0", "9" * 5000, "²")),
    *({"PTDEPLOY_SPIN": value} for value in ("yes", "2", "01")),
    *({"PTDEPLOY_PIN": value} for value in ("yes", "2", "01")),
    {"PTDEPLOY_PIN": "1", "PTDEPLOY_THREADS": "999"},
]


@pytest.mark.parametrize("variables", BAD_VARIABLES, ids=lambda one: str(one)[:40])
def test_a_variable_that_is_no_such_number_is_refused(classifier, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ptdeploy.InputError, match=r"PTDEPLOY_(THREADS|SPIN|PIN) is"):
        ptdeploy.load(classifier.bundle.path)


def test_an_engine_has_a_thread_for_each_core_of_its_process(classifier, monkeypatch):
    assert options_of(classifier).intra_op_num_threads == usable_cores() <= CORES
    path = classifier.bundle.path
    assert options_of(ptdeploy.load(path, threads=3)).intra_op_num_threads == 3
    monkeypatch.setenv("PTDEPLOY_THREADS", "5")
    assert options_of(ptdeploy.load(path)).intra_op_num_threads == 5
    assert options_of(ptdeploy.load(path, threads=3)).intra_op_num_threads == 3
    monkeypatch.delenv("PTDEPLOY_THREADS")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert options_of(ptdeploy.load(path)).intra_op_num_threads == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_spin_for_a_moment_unless_told_otherwise(classifier, monkeypatch):
    def spins(engine: ptdeploy.Engine) -> tuple[str, ...]:
        options = options_of(engine)

        def entry(name: str) -> str:
            try:
                return str(options.get_session_config_entry(f"session.{name}"))
            except RuntimeError:
                return "not set"

        names = ("intra_op.allow_spinning", "intra_op.spin_duration_us", "force_spinning_stop")
        return tuple(map(entry, names))

    assert spins(classifier) == ("1", "50", "1")
    monkeypatch.setenv("PTDEPLOY_SPIN", "0")
    assert spins(ptdeploy.load(classifier.bundle.path)) == ("0", "0", "1")
    monkeypatch.setenv("PTDEPLOY_SPIN", "1")
    assert spins(ptdeploy.load(classifier.bundle.path)) == ("1", "not set", "not set")


# Engines that are handed to another process.


def logits_in_worker(engine: ptdeploy.Engine) -> list[list[float]]:
    return [row.tolist() for row in engine.logits([ROWS[0]])]


def refused_in_worker(engine: ptdeploy.Engine) -> None:
    engine.logits([[10**9]])


def test_an_engine_handed_to_a_spawned_process_is_opened_there(classifier, decoder):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for engine in (classifier, decoder):
            theirs = pool.submit(logits_in_worker, engine).result()
            assert theirs == logits_in_worker(engine)
        with pytest.raises(ptdeploy.InputError) as refused:
            pool.submit(refused_in_worker, classifier).result()
    assert refused.value.fix, "an error comes back whole"


def test_a_pickled_engine_is_opened_as_it_was(compiled, tmp_path, monkeypatch):
    bundle = compiled("bert", "SEQ_CLS").bundle
    monkeypatch.chdir(bundle.parent)
    engine = ptdeploy.load(bundle.name, threads=1, map_weights=True)
    stored = pickle.dumps(engine)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(stored)
    assert again.options_given == engine.options_given
    assert options_of(again).intra_op_num_threads == 1
    assert logits_in_worker(again) == logits_in_worker(engine)


def test_a_pickled_engine_is_not_another_bundle(compiled, tmp_path):
    place = tmp_path / "bundle"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, place)
    stored = pickle.dumps(ptdeploy.load(place))
    shutil.rmtree(place)
    with pytest.raises(ptdeploy.BundleError):
        pickle.loads(stored)
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, place)
    with pytest.raises(ptdeploy.BundleError, match="is another bundle"):
        pickle.loads(stored)


def test_a_pickled_engine_has_the_default_prompt_that_it_had(compiled, packed, tmp_path):
    bundle = shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM").path, name="other")
    engine = ptdeploy.load(bundle)
    for name in ("other", "default", None):
        one = engine.by_default(name)
        again = pickle.loads(pickle.dumps(one))
        assert again.default_prompt == name
        assert np.array_equal(again.logits(ROWS)[0], one.logits(ROWS)[0])
        assert np.array_equal(one.logits(ROWS)[0], engine.logits(ROWS, prompt=name)[0])


def test_copies_of_an_engine_are_the_engine_and_of_a_session_forks(classifier, decoder):
    assert copy.copy(classifier) is copy.deepcopy({"engine": classifier})["engine"] is classifier
    session = decoder.session()
    session.append([5, 6, 7])
    other = copy.deepcopy(session)
    assert other is not session
    assert other.generate(4, eos_token_ids=()) == session.generate(4, eos_token_ids=())
    other.append([8])
    assert len(other.token_ids) == len(session.token_ids) + 1


def test_what_lives_in_one_process_is_not_handed_to_another(decoder):
    with pytest.raises(ptdeploy.InputError, match="cannot be handed to another process"):
        pickle.dumps(decoder.session())
    with pytest.raises(ptdeploy.InputError, match="has no tokenizer"):
        decoder.stream([5, 6])


def test_every_error_comes_back_from_another_process_whole():
    kinds = [
        kind
        for kind in vars(ptdeploy.errors).values()
        if isinstance(kind, type) and issubclass(kind, ptdeploy.PtdeployError)
    ]
    assert len(kinds) > 5
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("what", "how")))
        assert type(error) is kind
        assert (error.problem, error.fix, str(error)) == ("what", "how", "what\nhow")


# Processes that fork.


def in_fork(work: Callable[[], Any]) -> Any:
    """What `work` gives or raises in a forked process, which has a minute."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            try:
                answer: tuple[Any, Any] = (work(), None)
            except BaseException as error:
                answer = (None, error)
            os.write(writer, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        stored = stream.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the forked process ended by signal {status}"
    result, error = pickle.loads(stored)
    if error is not None:
        raise error
    return result


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_answers_as_the_one_it_comes_from(compiled, threads):
    for architecture, task in (("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM"), ("bloom", "CAUSAL_LM")):
        engine = ptdeploy.load(compiled(architecture, task).bundle, threads=threads)
        want = logits_in_worker(engine)
        assert in_fork(lambda engine=engine: logits_in_worker(engine)) == want
        # Of the child's child too, and the parent's own goes on.
        assert in_fork(lambda engine=engine: in_fork(lambda: logits_in_worker(engine))) == want
        assert logits_in_worker(engine) == want


def test_a_forked_process_really_opens_the_engine_again(classifier):
    logits_in_worker(classifier)
    before = classifier._session._session

    def opened() -> tuple[bool, bool]:
        logits_in_worker(classifier)
        first = classifier._session._session
        logits_in_worker(classifier)
        return first is not before, classifier._session._session is first

    assert in_fork(opened) == (True, True)
    logits_in_worker(classifier)
    assert classifier._session._session is before


def test_sessions_and_kept_buffers_go_on_in_a_forked_process(decoder):
    want = generated(decoder)
    assert in_fork(lambda: generated(decoder)) == want
    session = decoder.session()
    session.append([5, 6, 7])
    session.generate(3, eos_token_ids=())

    def goes_on() -> list[int]:
        session.append([8, 9])
        return session.generate(4, eos_token_ids=()).token_ids

    theirs = in_fork(goes_on)
    assert goes_on() == theirs, "what the child did is not the parent's"


def test_a_stream_that_was_begun_goes_on_in_a_forked_process(compiled):
    one = compiled("gpt2", "CAUSAL_LM", tokenizer="byte_level", vocab_size=400)
    engine = ptdeploy.load(one.bundle)
    pieces = engine.stream("the cat", 12, eos_token_ids=())
    first = next(pieces)
    rest = in_fork(lambda: list(pieces))
    assert list(pieces) == rest
    assert first + "".join(rest) == engine.generate("the cat", 12, eos_token_ids=())[0].text


def test_a_pool_of_forked_workers_shares_what_was_loaded_before(classifier):
    want = logits_in_worker(classifier)
    global _SHARED
    _SHARED = classifier
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(of_shared, range(4))) == [want] * 4


_SHARED: Any = None


def of_shared(_: int) -> list[list[float]]:
    return logits_in_worker(_SHARED)


@pytest.mark.parametrize("spin", ["0", "1"])
@pytest.mark.parametrize(
    "child", ["sys.exit(0)", "del engine; gc.collect(); sys.exit(0)", "engine.logits([[5]])"]
)
def test_a_forked_process_ends_without_waiting_for_threads_it_has_not(compiled, child, spin):
    code = f"""
import gc, os, signal, sys
import ptdeploy
engine = ptdeploy.load(sys.argv[1], threads=2)
engine.logits([[5, 6, 7]])
if not os.fork():
    signal.alarm(60)
    {child}
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    line = [sys.executable, "-c", code, str(compiled("bert", "SEQ_CLS").bundle)]
    environment = {**os.environ, "PTDEPLOY_SPIN": spin}
    assert subprocess.run(line, check=False, timeout=120, env=environment).returncode == 0


def test_a_forked_process_keeps_the_bundle_that_was_loaded(compiled, tmp_path):
    live, other = tmp_path / "live", tmp_path / "other"
    shutil.copytree(compiled("bert", "SEQ_CLS").bundle, live)
    shutil.copytree(compiled("qwen2", "CAUSAL_LM").bundle, other)
    engine = ptdeploy.load(live)
    want = logits_in_worker(engine)
    live.rename(tmp_path / "old")
    other.rename(live)
    assert in_fork(lambda: logits_in_worker(engine)) == want
    shutil.rmtree(tmp_path / "old")
    with pytest.raises(ptdeploy.BundleError):
        in_fork(lambda: logits_in_worker(engine))
    assert logits_in_worker(engine) == want


def test_an_engine_that_cannot_follow_says_so(classifier):
    alone = OrtSession(classifier._session._session)
    arrays = classifier.feed([np.array([5, 6])], [np.array([0, 0])], 0).feed
    alone.run(arrays)
    with pytest.raises(ptdeploy.EngineFault, match="before this process was forked") as refused:
        in_fork(lambda: alone.run(arrays))
    assert "spawn" in refused.value.fix
