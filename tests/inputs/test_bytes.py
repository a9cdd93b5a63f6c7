"""Bytes in, bytes out: consoles that are not UTF-8, lines of files, marks, words that are data."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import the_graph, the_prompt

import ptdeploy
from ptdeploy.bundle.quantization import read_texts
from ptdeploy.cli.main import main
from ptdeploy.printable import printable, printable_fields, printable_lines
from ptdeploy.progress import Progress
from ptdeploy.source.checkpoint.labels import read_labels
from ptdeploy.text_files import argument_text, lines_of, read_text

MARK = b"\xef\xbb\xbf"
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r\nptdeploy: all is well"
# Lines that Python's splitlines would cut, an empty one, one that is not UTF-8, one too long.
LINES = (
    MARK
    + "the cat\n\nnight\u2028came\x0cbefore\x0b\x85\r\n".encode()
    + b"caf\xe9\n"
    + b"sea " * 80
    + b"\nthe dog\rran"
)


@pytest.fixture(scope="module")
def made(compiled) -> dict[str, Path]:
    """A classifier and a decoder with tokenizers."""
    return {
        "SEQ_CLS": compiled("bert", "SEQ_CLS", tokenizer="wordpiece", vocab_size=400).bundle,
        "CAUSAL_LM": compiled("gpt2", "CAUSAL_LM", tokenizer="byte_level", vocab_size=400).bundle,
    }


def command(
    *arguments: str | bytes, shell: str = "", **variables: str
) -> subprocess.CompletedProcess:
    """The command line as a program: with `shell` as the redirections behind it."""
    line = [sys.executable, "-m", "ptdeploy", *arguments]
    if shell:
        line = ["sh", "-c", f'exec "$@" {shell}', "sh", *line]
    done = subprocess.run(line, capture_output=True, env={**os.environ, **variables}, check=False)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", ""])
def test_json_is_valid_on_a_console_that_is_not_utf8(made, encoding):
    variables = {**NOT_UTF8, "PYTHONIOENCODING": encoding} if encoding else NOT_UTF8
    text = "café € 東京 😀"
    done = command("run", str(made["SEQ_CLS"]), text, "--json", **variables)
    assert done.returncode == 0
    assert json.loads(done.stdout.decode("ascii"))["input"] == text


def test_text_is_escaped_where_the_console_cannot_show_it(made):
    options = ("--max-new-tokens", "1", "--temperature", "0")
    done = command("run", str(made["CAUSAL_LM"]), "café €", *options, **NOT_UTF8)
    assert done.returncode == 0
    assert done.stdout.startswith(b"caf\\xe9 \\u20ac")


def test_json_on_utf8_is_one_line_to_every_reader(made, capsys):
    text = "ü\u2028\x85\x9b\u202e"
    assert main(["run", str(made["SEQ_CLS"]), text, "--json"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert "ü" in out
    assert json.loads(out)["input"] == text


@pytest.mark.parametrize("shell", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_output_that_cannot_be_written_is_said_and_exits_2(arguments, shell):
    done = command(*arguments, shell=shell)
    assert done.returncode == 2
    assert done.stderr.startswith(b"ptdeploy: Standard output cannot be written (")


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_takes_nothing_stops_nothing(made, shell):
    done = command("verify", str(made["SEQ_CLS"]), "--json", shell=shell)
    assert done.returncode == 0
    assert json.loads(done.stdout)["passed"]
    assert done.stderr == b""


@pytest.mark.parametrize("shell", [">/dev/full", ">&-", ">&- 2>&- <&-"])
def test_help_needs_no_console(shell):
    assert command("--help", shell=shell).returncode == 0


def test_a_closed_standard_input_is_named(made):
    done = command("run", str(made["SEQ_CLS"]), "--file", "-", shell="<&-")
    assert done.returncode == 2
    assert b"--file -: standard input is closed" in done.stderr


@pytest.mark.parametrize("source", ["file", "-"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_every_line_has_an_answer_or_an_error_with_its_number(
    made, tmp_path, capsys, monkeypatch, task, source
):
    file = tmp_path / "lines"
    file.write_bytes(LINES)
    if source == "-":
        # A locale's decoding of standard input has no say.
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES), encoding="ascii"))
    name = "-" if source == "-" else str(file)
    options = ["--max-new-tokens", "2"] if task == "CAUSAL_LM" else []
    assert main(["run", str(made[task]), "--file", name, "--json", *options]) == 2
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [one["line"] for one in answers] == [1, 2, 3, 4, 5, 6]
    assert answers[0]["input"] == "the cat"
    assert answers[2]["input"] == "night\u2028came\x0cbefore\x0b\x85"
    assert answers[5]["input"] == "the dog\rran"
    # An empty text is one to BERT, which puts [CLS] and [SEP] around it, and none to GPT-2.
    refused = [4, 5] if task == "SEQ_CLS" else [2, 4, 5]
    assert [one["line"] for one in answers if "error" in one] == refused
    assert "0xe9, the line's 4." in answers[3]["error"]
    assert "tokens, but at most" in answers[4]["error"]
    assert f"{len(refused)} of 6 inputs have no answer. The first is line {refused[0]}:" in (
        captured.err
    )
    alone = ["run", str(made[task]), "the dog\rran", "--json", *options]
    assert main(alone) == 0
    one = json.loads(capsys.readouterr().out)["result"]
    if task == "CAUSAL_LM":
        assert one == answers[5]["result"]
    else:
        assert one["probability"] == pytest.approx(answers[5]["result"]["probability"], abs=1e-6)


def test_line_n_of_the_output_is_of_line_n(made, tmp_path, capsys):
    (tmp_path / "lines").write_bytes(LINES)
    assert main(["run", str(made["SEQ_CLS"]), "--file", str(tmp_path / "lines")]) == 2
    rows = capsys.readouterr().out.split("\n")
    assert [row.startswith("error: line ") for row in rows] == [
        *(False, False, False, True, True, False),
        False,
    ]
    assert rows[6] == ""


def test_many_lines_are_answered_as_each_alone(made, tmp_path, capsys):
    texts = [f"the {'cat ' * (n % 7 + 1)}{n}" for n in range(40)]
    (tmp_path / "lines").write_text("\n".join([*texts[:20], "sea " * 80, *texts[20:]]))
    assert main(["run", str(made["SEQ_CLS"]), "--file", str(tmp_path / "lines"), "--json"]) == 2
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    engine = ptdeploy.load(made["SEQ_CLS"])
    got = [one["result"]["probability"] for one in answers if "result" in one]
    want = [engine.classify(text)[0].probability for text in texts]
    assert got == pytest.approx(want, abs=1e-6)


def test_a_bad_option_is_said_once_and_not_for_each_line(made, tmp_path, capsys):
    (tmp_path / "lines").write_text("one\ntwo\n")
    arguments = ["run", str(made["CAUSAL_LM"]), "--file", str(tmp_path / "lines")]
    assert main([*arguments, "--temperature", "-1", "--json"]) == 2
    (answer,) = capsys.readouterr().out.splitlines()
    assert json.loads(answer)["exit"] == 2


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")), max_size=5))
def test_lines_joined_are_the_lines_again(texts):
    # A carriage return before the line end is part of it.
    texts = [text.rstrip("\r") for text in texts]
    for end in ("\n", "\r\n"):
        content = "".join(text + end for text in texts).encode()
        found = lines_of(content)
        assert [line.text for line in found] == texts
        assert [line.number for line in found] == list(range(1, len(texts) + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_lines(content):
    found = lines_of(content)
    assert len(found) == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    for line in found:
        line.text.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\nb".encode("utf-16"), "is UTF-16"),
        ("a\nb".encode("utf-32"), "is UTF-32"),
        ("one\ntwo\n".encode("utf-16-le"), "looks like UTF-16"),
        ("one\ntwo\n".encode("utf-16-be"), "looks like UTF-16"),
        ("gut\nschön\n".encode("latin-1"), "line 2 is not UTF-8 (byte 0xf6, the line's 4.)"),
        (b"good\nbad, indeed\0\n", "line 2 holds a zero byte"),
        (None, "Is a directory"),
    ],
)
@pytest.mark.parametrize("option", ["--labels", "--quality-text", "--data", "--thresholds"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, content, words, option):
    file = tmp_path / "file"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ptdeploy.InputError) as refused:
        read_text(file, option)
    assert f"{option} {file}: " in refused.value.problem
    assert words in refused.value.problem


def test_a_byte_order_mark_reaches_nobody(made, tmp_path):
    def marked(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(MARK + text.encode())
        return str(tmp_path / name)

    assert read_labels(marked("labels", "no\r\nyes\r\n\r\n")) == ("no", "yes")
    assert read_texts(marked("texts", "one\n\ntwo"), "--quality-text") == ("one", "two")
    report = ptdeploy.verify(
        made["SEQ_CLS"],
        data=marked("data", '{"text": "the cat", "label": 1}\r\n'),
        thresholds=marked("thresholds", '{"max_abs": 1.0}'),
    )
    assert report.passed
    assert report.data is not None
    assert report.data.rows == 1
    from ptdeploy.source.checkpoint.tensors import read_json

    assert read_json(Path(marked("config.json", '{"peft_type": "P_TUNING"}')))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a,,b", "name 2 is empty"),
        ("a,b,a", "'a' stands twice"),
        ("a,\x1b[31m", "name 2 holds a control character"),
        ("labels.txt", "no such file"),
        ("./labels", "no such file"),
        (",", "needs one distinct name"),
        ("b\udcff,a", "not UTF-8"),
    ],
)
def test_labels_that_name_no_classes_are_refused(source, words):
    with pytest.raises(ptdeploy.InputError, match=words):
        read_labels(source)


def test_a_label_file_goes_by_its_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("no,yes").write_text("with, commas\nwithout\n")
    assert read_labels("no,yes") == ("with, commas", "without")
    assert read_labels("x" * 5000 + ",b") == ("x" * 5000, "b")


def test_an_argument_is_utf8_whatever_the_locale():
    assert argument_text("caf\u00e9") == "caf\u00e9"
    with pytest.raises(ptdeploy.InputError, match="not UTF-8"):
        argument_text("caf\udce9")
    done = command("run", "nowhere", "caf\xe9".encode("latin-1"), **NOT_UTF8)
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr


def test_a_name_that_is_not_utf8_runs_and_is_refused_where_nothing_could_open_it(made, tmp_path):
    place = os.fsencode(tmp_path) + b"/b\xff\x1b[31m"
    shutil.copytree(made["SEQ_CLS"], os.fsdecode(place))
    done = command("inspect", place)
    assert done.returncode == 0
    assert b"\\udcff\\x1b[31m" in done.stdout
    assert b"\x1b" not in done.stdout
    # A bundle's files are read through its open folder, whatever that is called.
    done = command("run", place, "the cat", "--json")
    assert done.returncode == 0, done.stderr
    done = command("compile", place, "--target", "ort", "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert b"its name is not UTF-8" in done.stderr
    assert not (tmp_path / "out").exists()
    done = command("cpp-new", str(tmp_path / "project"), place)
    assert done.returncode == 2
    assert b"its name is not UTF-8, and the project's sources name it" in done.stderr
    assert not (tmp_path / "project").exists()


def test_a_name_that_the_locale_cannot_spell_runs(made, tmp_path):
    place = tmp_path / "b\u00fcndel"
    shutil.copytree(made["SEQ_CLS"], place)
    done = command("run", str(place), "the cat", "--json", **NOT_UTF8)
    assert done.returncode == 0
    done = command("verify", str(place), **NOT_UTF8)
    assert done.returncode == 0


@pytest.fixture(scope="module")
def hostile(made, tmp_path_factory) -> Path:
    """A bundle whose every free string tries to control a terminal and forge a line."""
    bundle = tmp_path_factory.mktemp("hostile") / "bundle"
    shutil.copytree(made["SEQ_CLS"], bundle)
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    graph, prompt = the_graph(manifest), the_prompt(manifest)
    prompt.update(labels=[f"{i}{ESCAPES}" for i in range(3)], kind=ESCAPES)
    prompt["source"].update(format=ESCAPES, adapter=ESCAPES)
    manifest["versions"][ESCAPES] = ESCAPES
    manifest["base"].update(
        name=f"x](http://a) | <img> @team `{ESCAPES}",
        architecture=ESCAPES,
        config_sha256=ESCAPES,
        weights_sha256=ESCAPES,
    )
    graph["reason"] = ESCAPES
    for spec in graph["inputs"]:
        spec["meaning"] = ESCAPES
    file.write_text(json.dumps(manifest))
    return bundle


def is_tame(text: str) -> None:
    for character in "\x1b\x07\x9b\r\u202e":
        assert character not in text
    assert not any(line.startswith("ptdeploy: all") for line in text.splitlines())


def test_words_of_others_control_no_terminal_and_forge_no_line(hostile, made, tmp_path, capsys):
    report = tmp_path / "report"
    for arguments in (
        ["inspect", str(hostile)],
        ["inspect", str(hostile), "--json"],
        ["diff", str(hostile), str(made["SEQ_CLS"])],
        ["run", str(hostile), "the cat"],
        ["run", str(hostile), "the cat", "--json"],
        ["verify", str(hostile), "--report", str(report)],
        ["profile", str(hostile), "--rounds", "1"],
    ):
        assert main(arguments) == 0, arguments
        captured = capsys.readouterr()
        is_tame(captured.out)
        is_tame(captured.err)
    (tmp_path / "data").write_text(json.dumps({"text": "x", "label": ESCAPES}))
    assert main(["verify", str(hostile), "--data", str(tmp_path / "data")]) == 2
    is_tame(capsys.readouterr().err)
    for name in ("report.md", "report.html"):
        is_tame((report / name).read_text())
    heading = (report / "report.md").read_text().splitlines()[0]
    assert r"x\]\(http" in heading.replace("(", r"\(")
    assert r"\| \<img\> \@team \`" in heading


def test_a_report_of_hostile_names_is_well_formed_xml(hostile):
    import msgspec

    from ptdeploy.parity.reports import junit

    report = ptdeploy.verify(hostile)
    case = msgspec.structs.replace(report.cases[0], name=f"{ESCAPES}\ud800\uffff\0", passed=False)
    document = junit.render(msgspec.structs.replace(report, cases=(case,)))
    names = [one.get("name") for one in ElementTree.fromstring(document).iter("testcase")]
    assert any("\\x1b]0;title" in str(name) for name in names)


def test_a_models_own_text_is_raw_in_a_pipe_and_escaped_on_a_terminal(monkeypatch, capsys):
    from ptdeploy.cli.console import show_raw

    show_raw("a\x1b[2J\tb\n")
    assert capsys.readouterr().out == "a\x1b[2J\tb\n\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_raw("a\x1b[2J\tb\n")
    assert capsys.readouterr().out == "a\\x1b[2J\tb\n\n"


@given(st.text())
def test_printable_text_is_one_line_that_no_terminal_acts_on(text):
    said = printable(text)
    assert len(said.splitlines()) <= 1
    said.encode()
    assert all(character.isprintable() or ord(character) > 0x9F for character in said)
    assert printable(said) == said
    assert printable_lines(text).count("\n") == text.count("\n")
    assert printable_fields({"a": [text, (1, None)]}) == {"a": [said, (1, None)]}


def test_progress_never_ends_the_work_it_tells_of(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with Progress(stream=Full()).stage("work"):
        pass
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Progress(stream=ascii_only).note("caf\u00e9\x1b[2J")
    ascii_only.seek(0)
    assert ascii_only.read() == "  note: caf\\xe9\\\\x1b[2J\n"
    monkeypatch.setattr("sys.stderr", None)
    Progress().note("unheard")
    assert capsys.readouterr().out == ""


def test_every_argument_is_utf8_in_another_locale(made, compiled, tmp_path):
    one = compiled("bert", "SEQ_CLS").trained
    shutil.copytree(one.adapter, tmp_path / "adapters" / "\u00c9")
    shutil.copytree(one.base, tmp_path / "bas\u00e9")
    checkpoint, out = str(tmp_path / "adapters"), str(tmp_path / "b\u00fcndel")
    named = (checkpoint, "--adapter", "\u00c9")
    assert command("inspect", *named, **NOT_UTF8).returncode == 0
    how = ("--base", str(tmp_path / "bas\u00e9"), "-q")
    made_of = (*named, *how, "--target", "ort", "-o", out)
    compiling = command("compile", *made_of, **NOT_UTF8)
    assert compiling.returncode == 0, compiling.stderr
    shown = command("verify", out, "--checkpoint", *named, *how, **NOT_UTF8)
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(command("inspect", out, "--json", **NOT_UTF8).stdout)
    assert "\u00c9" in json.dumps(facts, ensure_ascii=False)
    project = str(tmp_path / "proj\u00e9t")
    said = json.loads(command("cpp-new", project, out, "--json", **NOT_UTF8).stdout)
    assert said["folder"] == project
    assert out in Path(project, "main.cc").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_a_line_that_does_not_fit_into_memory_is_said_in_the_exit_code(
    made, tmp_path, capsys, monkeypatch, task
):
    kind, name = {
        "SEQ_CLS": (ptdeploy.Classifier, "records"),
        "CAUSAL_LM": (ptdeploy.CausalLM, "generate"),
    }[task]
    asked = getattr(kind, name)

    def of_a_small_machine(engine, texts, *how, **named):
        if "large" in texts:
            raise ptdeploy.OutOfMemory("Memory ran out: the request does not fit.")
        return asked(engine, texts, *how, **named)

    monkeypatch.setattr(kind, name, of_a_small_machine)
    (tmp_path / "lines").write_bytes(b"the cat\nlarge\ncaf\xe9\nthe dog\n")
    words = ["run", str(made[task]), "--file", str(tmp_path / "lines"), "--json"]
    assert main(words) == 3
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in one for one in answers] == [False, True, True, False]
