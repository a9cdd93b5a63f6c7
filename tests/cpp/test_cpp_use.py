"""The C++ examples, the C ABI and new projects, as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import native
from support.damage import edit
from support.native import ROWS, bits, text_of
from support.tools import tool

import ptdeploy
from ptdeploy.cli.main import main
from ptdeploy.cpp import target_name
from ptdeploy.printable import printable

LIBRARY = native.REPOSITORY / "ptdeploy" / "cpp"


@pytest.fixture(scope="module")
def examples(built) -> Path:
    return built / "ptdeploy-library" / "examples"


def output(*command: object, code: int = 0, given: str = "") -> str:
    done = subprocess.run(
        [str(word) for word in command], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_classifier_example(bundles, examples):
    bundle = bundles("encoder classifier")
    want = [f"{one.label} {one.probability:.3f}" for one in ptdeploy.load(bundle).classify(ROWS)]
    assert output(examples / "classify", bundle, *text_of(ROWS).split(";")).splitlines() == want


def headed(bundle: Path, head: str) -> ptdeploy.runtime.Engine:
    edit(bundle, lambda manifest: manifest["prompts"]["default"].update(head=head))
    return ptdeploy.load(bundle)


def test_the_examples_say_what_is_true_of_several_classes_and_a_regressions_values(
    bundles, examples, tmp_path
):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    asked = text_of(ROWS).split(";")

    def said() -> list[str]:
        lines = output(examples / "classify", bundle, *asked).splitlines()
        given = output(examples / "server", bundle, 1, given=f"a {asked[0]}\n")
        assert given == f"a\t{lines[0]}\n"
        return lines

    engine = headed(bundle, "sigmoid")
    names = engine.manifest.prompt.labels
    want = [
        [f"{name} {one.probabilities[names.index(name)]:.3f}" for name in one.labels]
        for one in engine.classify(ROWS)
    ]
    assert said() == ["  ".join(words) for words in want]
    assert max(map(len, want)) > 1
    engine = headed(bundle, "regression")
    values = [zip(names, one.values, strict=True) for one in engine.regress(ROWS)]
    assert said() == ["  ".join(f"{name} {v:.6g}" for name, v in one) for one in values]


def test_the_classifier_example_labels_tokens(bundles, examples):
    bundle = bundles("token classifier")
    (tokens,) = ptdeploy.load(bundle).tag([ROWS[0]])
    want = [f"{one.token_id}, {one.label} {one.probability:.3f}" for one in tokens]
    assert output(examples / "classify", bundle, "5,6,7").splitlines() == want


def test_the_streaming_example_writes_each_token_as_it_comes(bundles, examples):
    bundle = bundles("fused")
    (want,) = ptdeploy.load(bundle).generate([ROWS[0]], 10)
    got = output(examples / "generate", bundle, "5,6,7", 10)
    assert got == "".join(f"{token}," for token in want.token_ids) + "\n"


def test_another_text_fits_behind_the_examples_seam(bundles, built):
    bundle = bundles("fused")
    ids = [byte % 101 for byte in b"some text"]
    (want,) = ptdeploy.load(bundle).generate([ids], 10)
    got = output(built / "generate_letters", bundle, "some text", 10)
    assert got == "".join(chr(ord("!") + token % 90) for token in want.token_ids) + "\n"


@pytest.mark.parametrize("kind", ["fused", "plain", "encoder classifier"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_server_example_answers_every_request_as_python_does(bundles, examples, kind, threads):
    bundle = bundles(kind)
    engine = ptdeploy.load(bundle, threads=threads)
    rows = {f"r{i}": [5, 6, i % 101][: 1 + i % 3] for i in range(1, 41)}
    asked = "".join(f"{name} {','.join(map(str, row))}\n" for name, row in rows.items())
    answers = output(
        examples / "server", bundle, 4, threads, given=asked + "bad 5,6x\nout 5,101\n"
    ).splitlines()
    got = dict(line.split("\t") for line in answers)
    assert got.pop("bad").startswith("error: '6x' is no token id")
    assert got.pop("out") == "error: Row 0 holds a token id outside 0 to 100."
    assert set(got) == set(rows)
    for name, row in rows.items():
        if kind == "encoder classifier":
            (want,) = engine.classify([row])
            assert got[name] == f"{want.label} {want.probability:.3f}"
        else:
            written = engine.generate([row])[0].token_ids
            assert got[name] == "".join(f"{token}," for token in written)


def test_an_engine_whose_threads_are_tied_answers_the_same(bundles, examples, monkeypatch):
    bundle = bundles("encoder classifier")
    asked = [examples / "server", bundle, 4, 2]
    given = "".join(f"r{i} 5,6,{i}\n" for i in range(20))
    free = sorted(output(*asked, given=given).splitlines())
    monkeypatch.setenv("PTDEPLOY_PIN", "1")
    if len(os.sched_getaffinity(0)) > 1:
        assert sorted(output(*asked, given=given).splitlines()) == free
    refused = output(examples / "server", bundle, 1, 999, code=2)
    assert "PTDEPLOY_PIN is '1'; 999 threads cannot have a core each" in refused


@pytest.mark.parametrize("kind", ["encoder classifier", "token classifier"])
def test_no_label_acts_on_a_terminal_or_forges_a_line(bundles, examples, tmp_path, kind):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    label = "\x1b]0;x\x07\x9b2J\u202e\nr2\tgood"

    def rename(manifest: dict[str, Any]) -> None:
        prompt = manifest["prompts"]["default"]
        prompt["labels"] = [f"{label}{i}" for i in range(len(prompt["labels"]))]

    edit(bundle, rename)
    lines = output(examples / "classify", bundle, "5,6,7").splitlines()
    assert len(lines) == (1 if kind == "encoder classifier" else 3)
    assert all(printable(label) in line for line in lines)
    if kind == "encoder classifier":
        said = output(examples / "server", bundle, given="r\x1b1 5,6,7\n")
        assert said.startswith(f"r\\x1b1\t{printable(label)}")
        assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["classify", "generate", "server"])
def test_examples_say_what_is_wrong_and_exit_2(bundles, examples, tmp_path, name):
    assert "usage" in output(examples / name, code=2)
    assert "no such bundle folder" in output(examples / name, tmp_path / "nothing", "5", code=2)


def test_c99_calls_the_c_abi(bundles, built):
    """Checked line by line: classes, tokens, a session, and the words of a refusal."""
    rows = [[5, 6, 7], [40], [9, 10]]
    bundle = bundles("encoder classifier")
    lines = output(built / "c_api", bundle).splitlines()
    assert lines[0].split() == [ptdeploy.__version__, "0", "59", "101"]
    for line, one in zip(lines[1:], ptdeploy.load(bundle).classify(rows), strict=True):
        assert [float(p) for p in line.split()[1::2]] == pytest.approx(one.probabilities, rel=1e-14)
        assert line.split()[::2] == ["LABEL_0", "LABEL_1", "LABEL_2"]

    bundle = bundles("token classifier")
    lines = output(built / "c_api", bundle).splitlines()[1:]
    tokens = [one for row in ptdeploy.load(bundle).tag(rows) for one in row]
    for line, one in zip(lines, tokens, strict=True):
        assert max(float(p) for p in line.split()[1::2]) == pytest.approx(one.probability)

    bundle = bundles("fused")
    lines = output(built / "c_api", bundle).splitlines()[1:]
    engine = ptdeploy.load(bundle)
    want = [one.token_ids for one in engine.generate(rows, 8, eos_token_ids=())]
    spelt = [" ".join(map(str, row)) + " stopped 0" for row in want]
    assert lines == [
        *spelt,
        "calls 24",
        spelt[0],
        spelt[0],
        "lengths 3 11",
        "2 top_p is 1.5; it must be more than 0 and at most 1.",
        "2 ptdeploy_options.size is not sizeof(ptdeploy_options). | "
        "Start from ptdeploy_default_options().",
    ]


@pytest.mark.parametrize(("architecture", "task"), [("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM")])
def test_c99_gives_each_row_its_prompt(compiled, packed, built, architecture, task):
    rows, pack = [[5, 6, 7], [40], [9, 10]], packed(architecture, task).path
    bundle, writes = compiled(architecture, task).bundle, task == "CAUSAL_LM"
    engine = ptdeploy.load(bundle)
    for name in ("other", "again"):
        engine.load_prompt(pack, name)
    names = ["other", None if writes else "again"]
    names.insert(1, "default")
    lines = iter(output(built / "c_api", bundle, "prompts", pack).splitlines()[1:])
    heads = ["softmax", "sigmoid", "regression"]

    def listed(expected: list[str]) -> None:
        for name in expected:
            info = engine.prompt_info(name)
            room = engine.limits_beside(info.num_virtual_tokens).max_sequence
            columns = len(info.labels) or engine.manifest.limits.vocab_size
            facts = [name, info.kind, heads.index(info.head), info.num_virtual_tokens, room]
            assert next(lines) == "|".join(map(str, [*facts, columns, *info.labels]))
        assert next(lines).startswith(f"1 The list has {len(expected)} prompts; there is none")

    listed(["default", "other", "again"])
    logits = engine.logits(rows, prompt=names)
    numbers = np.concatenate([array.ravel() for array in logits])
    assert np.array_equal(np.array(next(lines).split(), np.float32), numbers)
    assert next(lines) == " ".join(str(array.shape[-1]) for array in logits)
    fewer = f"2 The answer has {numbers.size} numbers, but capacity is {numbers.size - 1}."
    assert next(lines) == fewer
    if writes:
        for row in engine.greedy(rows, 8, prompt=names):
            assert next(lines) == " ".join(map(str, row)) + " stopped 0"
        (row,) = engine.greedy(rows[:1], 8, prompt=None)
        assert next(lines) == " ".join(map(str, row)) + " stopped 0"
    else:
        given = np.concatenate([one.probabilities for one in engine.classify(rows, prompt=names)])
        assert list(map(float, next(lines).split())) == pytest.approx(given.tolist(), rel=1e-14)
    unknown = f"2 {bundle}: has no prompt 'nobody'; it has 'again', 'default', 'other'."
    for said in (
        unknown,
        "2 prompt names 2, but the request has 3 rows.",
        "2 prompts is null.",
        "2 ptdeploy_request.size is not sizeof(ptdeploy_request). | "
        "Start from ptdeploy_default_request().",
        unknown,
    ):
        assert next(lines) == said
    listed(["default", "other"])
    assert next(lines, None) is None


def test_the_examples_take_a_prompt(compiled, packed, examples, tmp_path):
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    ptdeploy.prompt_add(bundle, packed("bert", "SEQ_CLS").path, name="legal")
    (want,) = ptdeploy.load(bundle).classify([[5, 6, 7]], prompt="legal")
    line = f"{want.label} {want.probability:.3f}\n"
    assert output(examples / "classify", "--prompt", "legal", bundle, "5,6,7") == line
    assert "has no prompt 'lagel'" in output(
        examples / "classify", "--prompt", "lagel", bundle, "5,6,7", code=2
    )
    assert output(examples / "server", bundle, given="a@legal 5,6,7\n") == f"a@legal\t{line}"
    lines = output(examples / "verify", bundle).splitlines()
    assert lines[0] == "prompt 'default'"
    assert "prompt 'legal'" in lines
    assert lines[-1] == "parity holds"


def test_the_c_abi_refuses_with_a_status(built, tmp_path):
    done = subprocess.run(
        [built / "c_api", tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"open: 1: {tmp_path / 'none'}: no such bundle folder.\n"


def test_another_language_loads_the_shared_library(bundles, built):
    bundle = bundles("encoder classifier")
    (library,) = (built / "ptdeploy-library").glob("libptdeploy.so")
    code = """
        import ctypes, json, sys

        library = ctypes.CDLL(sys.argv[1])
        library.ptdeploy_last_error.restype = ctypes.c_char_p
        engine = ctypes.c_void_p()
        status = library.ptdeploy_open(sys.argv[2].encode(), None, 0, 0, ctypes.byref(engine))
        assert status == 0, library.ptdeploy_last_error()
        ids, lengths = (ctypes.c_int64 * 4)(5, 6, 7, 40), (ctypes.c_size_t * 2)(3, 1)
        logits = (ctypes.c_float * 6)()
        assert library.ptdeploy_logits(engine, ids, None, lengths, 2, logits) == 0
        library.ptdeploy_close(engine)
        print(json.dumps(list((ctypes.c_uint32 * 6).from_buffer(logits))))
        """
    got = output(sys.executable, "-c", textwrap.dedent(code), library, bundle)
    first, second = ptdeploy.load(bundle).logits([[5, 6, 7], [40]])
    assert json.loads(got) == bits(first) + bits(second)


def test_a_shared_library_shows_its_api_alone(built):
    (library,) = (built / "ptdeploy-library").glob("libptdeploy.so")
    shown = native.checked([tool("nm"), "-DC", "--defined-only", str(library)])
    assert "ptdeploy_open" in shown
    assert "ptdeploy::Engine::open" in shown
    assert "ptdeploy::detail::parse_json" not in shown


@pytest.fixture(scope="module")
def project(bundles, tmp_path_factory) -> Path:
    """`ptdeploy cpp-new`, built as its own words say."""
    folder = tmp_path_factory.mktemp("projects") / "my app"
    bundle = shutil.copytree(bundles("fused"), folder.with_name("bundle"))
    assert main(["cpp-new", str(folder), str(bundle)]) == 0
    native.checked(
        [
            *(tool("cmake"), "-S", str(folder), "-B", str(folder / "build")),
            f"-DONNXRUNTIME_ROOT={native.onnxruntime_root()}",
            # Faster to compile than the Release it would choose.
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DCMAKE_CXX_FLAGS=-Werror",
        ]
    )
    native.compile_(folder / "build")
    return folder


def test_a_new_project_builds_and_runs_its_bundle(bundles, project):
    want = ptdeploy.load(bundles("fused")).generate([[5, 6, 7], [40]], 16)
    got = [line.split() for line in output(project / "build" / "my_app", "5,6,7", 40).splitlines()]
    for index, row in enumerate(want):
        assert [int(token) for at, token in got if int(at) == index] == row.token_ids


def test_every_folder_gives_a_name_that_cmake_takes_for_a_target(tmp_path):
    reserved = (
        *("all", "ALL_BUILD", "clean", "codegen", "edit_cache", "help", "install", "INSTALL"),
        *("list_install_components", "package", "PACKAGE", "package_source", "preinstall"),
        *("rebuild_cache", "RUN_TESTS", "test", "ZERO_CHECK"),
    )
    for folder in (*reserved, "ptdeploy", "2 apps"):
        assert target_name(tmp_path / folder) == f"run_{folder.replace(' ', '_')}"
    assert target_name(tmp_path / "my app") == "my_app"


def test_a_new_project_says_how_it_is_called(project):
    asked = output(project / "build" / "my_app", "--help")
    assert "my_app [--prompt NAME] ROW..." in asked
    assert "5,6,7" in asked
    assert output(project / "build" / "my_app", code=2) == asked


def test_a_new_project_takes_a_prompt_wherever_it_stands(project):
    program = project / "build" / "my_app"
    want = output(program, "5,6,7", "40")
    for words in (
        ["--prompt", "default", "5,6,7", "40"],
        ["5,6,7", "--prompt", "default", "40"],
        ["5,6,7", "40", "--prompt", "default"],
    ):
        assert output(program, *words) == want
    assert "has no prompt 'lagel'" in output(program, "5,6,7", "--prompt", "lagel", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ["--prompt"],
        ["--prompt", "Once upon"],
        ["--prompt", "default", "--prompt"],
        ["5,6,7", "--prompt"],
    ],
)
def test_a_new_project_wants_a_row_behind_the_prompts_name(project, words):
    program = project / "build" / "my_app"
    assert output(program, *words, code=2) == output(program, "--help")


@pytest.mark.parametrize(
    ("given", "part"), [("Once upon a time",) * 2, ("5,5x", "5x"), ("5,,6", "")]
)
def test_a_new_project_says_what_is_no_token_id(project, given, part):
    said = output(project / "build" / "my_app", given, code=2)
    assert said == (
        f"'{part}' is no token id.\n"
        "Compile the bundle with --cpp-tokenizer to give text, or give ids: 5,6,7\n"
    )


def test_a_library_built_without_openvino_says_how_to_build_it(project):
    bundle = project.with_name("bundle")
    edit(bundle, lambda manifest: manifest.update(target="openvino"))
    done = subprocess.run(
        [project / "build" / "my_app", "5,6"], capture_output=True, text=True, check=False
    )
    edit(bundle, lambda manifest: manifest.update(target="ort"))
    assert done.returncode == 2
    assert "no backend for the target openvino" in done.stderr
    assert "-DPTDEPLOY_OPENVINO=ON" in done.stderr


@pytest.mark.parametrize("kind", ["encoder classifier", "token classifier"])
def test_a_new_project_for_a_classifier_runs(bundles, project, tmp_path, kind):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    assert main(["cpp-new", str(tmp_path / "app"), str(bundle)]) == 0
    # Linked with the library that the first project built.
    (library,) = (project / "build").rglob("libptdeploy.a")
    lib = native.onnxruntime_root() / "lib"
    native.checked(
        [
            *(tool("c++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread"),
            *(f"-I{LIBRARY / 'include'}", str(tmp_path / "app" / "main.cc"), str(library)),
            *(f"-L{lib}", "-lonnxruntime", f"-Wl,-rpath,{lib}", "-o", str(tmp_path / "run")),
        ]
    )
    engine = ptdeploy.load(bundle)
    lines = [line.split() for line in output(tmp_path / "run", "5,6,7", "40").splitlines()]
    rows = [[5, 6, 7], [40]]
    if kind == "encoder classifier":
        assert [line[0] for line in lines] == [one.label for one in engine.classify(rows)]
        want = [one.labels for one in headed(bundle, "sigmoid").classify(rows)]
        assert max(map(len, want)) > 1
        lines = output(tmp_path / "run", "5,6,7", "40").splitlines()
        said = [line.split()[::2] for line in lines]
        assert said == list(map(list, want))
        values = [one.values for one in headed(bundle, "regression").regress(rows)]
        lines = output(tmp_path / "run", "5,6,7", "40").splitlines()
        said = [line.split()[1::2] for line in lines]
        assert np.allclose(np.array(said, float), values, rtol=1e-5)
    else:
        tagged = [one for row in engine.tag(rows) for one in row]
        assert [line[:2] for line in lines] == [[str(one.token_id), one.label] for one in tagged]


def test_a_new_project_never_writes_over_anything(bundles, compiled, tmp_path, capsys):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "main.cc").write_text("all my work")
    assert main(["cpp-new", str(mine), bundle]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.read_text() for path in mine.iterdir()] == ["all my work"]
    assert main(["cpp-new", str(mine / "main.cc"), bundle]) == 2
    assert main(["cpp-new", str(tmp_path / "new"), str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert main(["cpp-new", str(tmp_path / "empty"), bundle, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts["files"]) == sorted(os.listdir(tmp_path / "empty"))


def test_no_project_is_written_for_a_bundle_that_cpp_does_not_run(compiled, tmp_path, capsys):
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    edit(bundle, lambda manifest: manifest.update(device="cuda"))
    assert main(["cpp-new", str(tmp_path / "app"), str(bundle)]) == 3
    said = capsys.readouterr().err
    assert "The C++ library runs bundles on cpu, not on 'cuda'." in said
    assert "Compile for --device cpu." in said
    assert not (tmp_path / "app").exists()


def test_the_words_that_build_a_new_project_are_for_a_shell(compiled, tmp_path, capsys):
    folder = tmp_path / "it's my app"
    assert main(["cpp-new", str(folder), str(compiled("bert", "SEQ_CLS").bundle)]) == 0
    words, run = capsys.readouterr().out.split("build it  ")[1].split("run it    ")
    configure, build = (shlex.split(line) for line in words.split("\n          cmake "))
    program, row = shlex.split(run.splitlines()[0])
    assert (program, row) == (str(folder / "build" / "it_s_my_app"), "5,6,7")
    assert run.splitlines()[1].startswith("opens     ")
    assert configure[:5] == ["cmake", "-S", str(folder), "-B", str(folder / "build")]
    assert build == ["--build", str(folder / "build")]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("all", "run_all"), ("9lives", "run_9lives"), ("ünï", "n"), ("a.b-c", "a_b_c")],
)
def test_a_new_projects_target_has_a_name_that_cmake_takes(compiled, tmp_path, folder, name):
    assert main(["cpp-new", str(tmp_path / folder), str(compiled("bert", "SEQ_CLS").bundle)]) == 0
    assert f"project({name} " in (tmp_path / folder / "CMakeLists.txt").read_text()


def test_cmake_dir_is_where_find_package_looks(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--cmake-dir"])
    assert exit_.value.code == 0
    assert (Path(capsys.readouterr().out.strip()) / "ptdeployConfig.cmake").is_file()


def test_a_missing_onnxruntime_is_named(tmp_path):
    done = subprocess.run(
        [
            *(tool("cmake"), "-S", str(LIBRARY), "-B", str(tmp_path)),
            f"-DONNXRUNTIME_ROOT={tmp_path / 'nowhere'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "-DONNXRUNTIME_ROOT=/path/to/onnxruntime" in " ".join(done.stderr.split())


def test_the_wheel_holds_what_cmake_needs(tmp_path):
    """Every file of ptdeploy/cpp is in the wheel, and find_package works on the unpacked wheel."""
    native.checked(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=native.REPOSITORY,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(unpacked)
    ours = {
        path.relative_to(native.REPOSITORY).as_posix()
        for path in LIBRARY.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(ours) > 40
    assert {name for name in ours if not (unpacked / name).is_file()} == set()
    project = tmp_path / "project"
    shutil.copytree(native.TESTS, project)
    native.configure(
        project, tmp_path / "build", ptdeploy_DIR=str(unpacked / "ptdeploy" / "cpp" / "cmake")
    )
