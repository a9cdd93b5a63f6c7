"""verify as a release gate: your own data, thresholds, golden rows, reports, the failing input."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support import tiny, tools
from support.characters import add_tokenizer
from support.without_torch import run_without_torch

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.cli.main import main
from ptdeploy.parity.reference.store import load_reference

REPORTS = ("report.json", "junit.xml", "report.md", "report.html")


@pytest.fixture(scope="module")
def texts(compiled) -> tuple[tiny.Trained, Path]:
    """A classifier with a tokenizer."""
    labels = {"labels": "no,maybe,yes"}
    one = compiled("bert", "SEQ_CLS", labels, tokenizer="characters", jitter=True)
    return one.trained, one.bundle


def with_checkpoint(trained: tiny.Trained) -> list[str]:
    return ["--checkpoint", str(trained.adapter), "--base", str(trained.base)]


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_real_text_is_compared_with_and_without_the_checkpoint(texts):
    trained, bundle = texts
    for report in (
        ptdeploy.verify(bundle),
        ptdeploy.verify(bundle, checkpoint=trained.adapter, base=str(trained.base)),
    ):
        assert report.passed
        assert sum(case.name == "text alone" for case in report.cases) == 8
        assert {"text batch 8 left-padded", "batch 3 both-padded"} <= {c.name for c in report.cases}


def test_the_edges_of_the_profile_are_compared(tmp_path):
    trained = tiny.make(tmp_path, "qwen2", "CAUSAL_LM")
    bundle = ptdeploy.compile(
        trained.adapter,
        target="ort",
        base=str(trained.base),
        output=tmp_path / "bundle",
        max_batch=11,
        max_context=45,
    )
    report = ptdeploy.verify(bundle.path)
    assert report.passed
    assert max(max(case.lengths) for case in report.cases) == 40
    assert max(len(case.rows) for case in report.cases) == 11
    # The last token generated lies in the context's last position.
    assert max(one.length + one.total for one in report.greedy) == 40


def test_your_data_is_compared_and_scored(texts, tmp_path, capsys):
    trained, bundle = texts
    engine = ptdeploy.load(bundle)
    rows = ["hello there", "a second text", "three"]
    labels = [one.label for one in engine.classify(rows)]
    data = write_lines(
        tmp_path / "data.jsonl",
        *({"text": t, "label": label} for t, label in zip(rows, labels, strict=True)),
        {"ids": [5, 6, 7], "label": 0},
    )
    arguments = ["verify", str(bundle), "--data", str(data), "-q"]
    assert main([*arguments, *with_checkpoint(trained), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["name"] == "accuracy"
    assert report["data"]["engine"] == report["data"]["reference"] >= 0.75
    assert sum(case["name"] == "data alone" for case in report["cases"]) == 4
    # Labels alone need no reference, so no checkpoint.
    assert main(arguments) == 0
    assert "accuracy on 4 rows of the given data" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--data", str(write_lines(data, {"text": "hi"}))]) == 2
    assert "Pass the checkpoint" in capsys.readouterr().err


def test_a_causal_model_is_scored_by_perplexity(compiled, tmp_path):
    one = compiled("gpt2", "CAUSAL_LM")
    data = write_lines(tmp_path / "data.jsonl", {"ids": [5, 6, 7, 8]}, {"ids": [9, 10, 11]})
    report = ptdeploy.verify(
        one.bundle, checkpoint=one.trained.adapter, base=str(one.trained.base), data=data
    )
    assert report.passed
    assert report.data is not None
    assert report.data.name == "perplexity"
    assert report.data.engine == pytest.approx(report.data.reference, rel=1e-5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1 is not a data row"),
        ('{"text": 3}', "line 1 is not a data row"),
        ('{"words": "x"}', "unknown field"),
        ("{}", "neither text nor ids"),
        ('{"ids": [101]}', "outside 0 to 100"),
        ('{"ids": []}', "empty"),
        ('{"ids": [1], "label": "perhaps"}', "none of no, maybe, yes"),
        ('{"ids": [1], "label": 3}', "none of no, maybe, yes"),
        ('{"ids": [1], "label": [1]}', "a text has one class"),
        ('{"ids": [1], "logits": [1, 2]}', "not 3 numbers"),
        ('{"ids": [1], "logits": ["a", "b", "c"]}', "not 3 numbers"),
        ("", "holds no rows"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_its_line(texts, tmp_path, capsys, line, reason):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    assert main(["verify", str(texts[1]), "--data", str(tmp_path / "data.jsonl"), "-q"]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a thresholds file"),
        ('{"max_abs": "x"}', "not a thresholds file"),
        ('{"max_absolute": 1}', "unknown field `max_absolute`"),
        ('{"max_abs": -1}', "max_abs is -1"),
        ('{"max_abs": 1e308, "relative": 1e308}', "max_abs is 1e+308, out of 0.0 to 1e+30"),
        ('{"relative": 1e31}', "relative is 1e+31"),
        ('{"cosine": 2}', "cosine is 2"),
        ('{"min_agreement": 0.9}', "fp32 quantizes none"),
        ('{"min_accuracy": 0.9}', "no labelled data"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(texts, tmp_path, capsys, content, reason):
    (tmp_path / "thresholds.json").write_text(content)
    arguments = ["--thresholds", str(tmp_path / "thresholds.json"), "-q"]
    assert main(["verify", str(texts[1]), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_thresholds_decide(texts, tmp_path, capsys):
    thresholds, data = tmp_path / "thresholds.json", tmp_path / "data.jsonl"
    arguments = ["verify", str(texts[1]), "--thresholds", str(thresholds), "-q"]
    thresholds.write_text('{"max_abs": 0, "relative": 0}')
    assert main(arguments) == 1
    thresholds.write_text('{"max_abs": 1}')
    assert main(arguments) == 0
    wrong = {"yes": "no", "no": "yes", "maybe": "yes"}[
        ptdeploy.load(texts[1]).classify("hi")[0].label
    ]
    write_lines(data, {"text": "hi", "label": wrong})
    thresholds.write_text('{"min_accuracy": 0.5}')
    assert main([*arguments, "--data", str(data)]) == 1
    said = capsys.readouterr().out
    assert "accuracy on the given data: 0, but at least 0.5 (min_accuracy) is asked for" in said
    assert "PARITY HOLDS, BUT A BOUND ON THE GIVEN DATA DOES NOT" in said


def test_exit_codes(texts, tmp_path, monkeypatch):
    bundle = texts[1]
    assert main(["verify", str(bundle), "-q"]) == 0
    assert main(["verify", str(tmp_path), "-q"]) == 2
    assert main(["verify", str(bundle), "--locate", "-q"]) == 2
    from ptdeploy.backends.ort import open as opened

    monkeypatch.setattr(opened, "unavailable", lambda device: ("No engine here.", ""))
    assert main(["verify", str(bundle), "-q"]) == 3


@pytest.mark.parametrize("count", [1, 12])
def test_golden_stores_as_many_rows_as_asked(tmp_path, count):
    trained = tiny.make(tmp_path, "bert", "SEQ_CLS")
    add_tokenizer(trained.base, wrap=True)
    arguments = ["compile", str(trained.adapter), "--target", "ort", "--base", str(trained.base)]
    output = tmp_path / "bundle"
    assert main([*arguments, "-o", str(output), "--golden", str(count), "-q"]) == 0
    stored = load_reference(read_bundle(output))
    assert len(stored.rows) == count
    assert sum(row.source == "text" for row in stored.rows) == max(0, count - 9)
    out = run_without_torch(
        'import sys; from ptdeploy.cli.main import main; main(["verify", sys.argv[1], "-q"])',
        str(output),
    )
    assert "parity holds" in out


def test_golden_of_nothing_is_refused(tmp_path, capsys):
    for count in ("0", "-1", "1001"):
        assert main(["compile", str(tmp_path), "--target", "ort", "--golden", count]) == 2
        assert "must be from 1 to 1000" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mismatched(texts, tmp_path_factory) -> tuple[Path, Path]:
    """A bundle whose classifier is another training's, and the reports of verifying it."""
    from support.faults import Editor, other_head

    folder = tmp_path_factory.mktemp("mismatched")
    other = tiny.make(folder / "other", "bert", "SEQ_CLS", seed=1)
    editor = Editor.copy(texts[1], folder / "bundle")
    other_head("classifier.weight")(editor, other)
    editor.write()
    arguments = ["verify", str(editor.folder), "--report", str(folder / "report"), "-q"]
    assert main([*arguments, *with_checkpoint(texts[0]), "--locate"]) == 1
    return editor.folder, folder / "report"


def test_the_smallest_failing_input_reproduces_in_one_command(mismatched, capsys):
    _, folder = mismatched
    report = json.loads((folder / "report.json").read_text())
    assert report["failing"]["lengths"] == [1]
    command = shlex.split(report["failing"]["command"])
    assert command[0] == "ptdeploy"
    assert main([*command[1:], "-q"]) == 1
    assert "data alone, lengths [1]" in capsys.readouterr().out


def test_a_failing_input_is_reproduced_with_the_bounds_that_it_misses(texts, tmp_path, capsys):
    bounds, data = tmp_path / "thresholds.json", tmp_path / "data.jsonl"
    bounds.write_text('{"max_abs": 0, "relative": 0, "min_accuracy": 0}')
    write_lines(data, {"ids": [5, 6], "label": 0})
    given = ["--thresholds", str(bounds), "--data", str(data), "--report", str(tmp_path / "report")]
    assert main(["verify", str(texts[1]), *given, "-q"]) == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert main([*shlex.split(report["failing"]["command"])[1:], "-q"]) == 1
    assert ptdeploy.verify(texts[1], report=tmp_path / "report").passed
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(REPORTS)


def test_a_failing_causal_row_is_cut_without_the_checkpoint(compiled, tmp_path):
    from support.faults import Editor, changed

    editor = Editor.copy(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    # Position 13 is the ninth token's, after five virtual ones.
    changed("transformer.wpe/Gather", 0, lambda t: np.vstack([t[:13], t[13:14, ::-1], t[14:]]))(
        editor, None
    )
    editor.write()
    report = ptdeploy.verify(editor.folder, report=tmp_path / "report")
    assert not report.passed
    assert report.failing is not None
    assert report.failing.lengths == (9,)


def test_a_failing_tokenizer_leaves_its_text(texts, tmp_path, capsys):
    from support.faults import FAULTS, Editor

    editor = Editor.copy(texts[1], tmp_path / "bundle")
    next(fault for fault in FAULTS if "lower-casing" in fault.name).inject(editor, None)
    editor.write()
    report = ptdeploy.verify(editor.folder, report=tmp_path / "report")
    assert report.failing is not None
    assert main([*shlex.split(report.failing.command)[1:], "-q"]) == 1
    assert "texts give other token ids" in capsys.readouterr().out


def test_an_engine_that_fails_on_a_row_is_said_to_fail_not_to_mismatch(compiled, tmp_path, capsys):
    from support.faults import FAULTS, Editor

    editor = Editor.copy(compiled("gpt2", "CAUSAL_LM").bundle, tmp_path / "bundle")
    next(fault for fault in FAULTS if "(learned)" in fault.name).inject(editor, None)
    editor.write()
    assert main(["verify", str(editor.folder), "-q", "--report", str(tmp_path / "report")]) == 1
    said = capsys.readouterr().out
    assert said.count("the engine failed in ") == 1
    assert "not finite" not in said.split("reference:")[1]
    assert "\nTHE ENGINE FAILS" in said


def test_reports_are_written_whole_and_name_no_machine(mismatched, texts, tmp_path):
    bundle, folder = mismatched
    assert sorted(path.name for path in folder.iterdir()) == sorted([*REPORTS, "failing.jsonl"])
    # A later run that passes takes the failing input away.
    copied = tmp_path / "report"
    shutil.copytree(folder, copied)
    assert ptdeploy.verify(texts[1], report=copied).passed
    assert sorted(path.name for path in copied.iterdir()) == sorted(REPORTS)
    (tmp_path / "file").write_text("")
    assert main(["verify", str(bundle), "--report", str(tmp_path / "file"), "-q"]) == 2


def test_the_json_report_follows_its_published_schema(mismatched, texts, tmp_path):
    from ptdeploy.parity.reports import report_schema

    published = Path(__file__).parents[2] / "docs" / "parity-report.schema.json"
    assert published.read_bytes() == report_schema(), "run: make schema"
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(published.read_text())
    for path in (mismatched[1] / "report.json", read_bundle(texts[1]).file("parity")):
        jsonschema.validate(json.loads(path.read_text()), schema)


def test_junit_counts_every_mismatch(mismatched):
    suite = ElementTree.parse(mismatched[1] / "junit.xml").getroot()[0]
    failed = [case for case in suite if case.find("failure") is not None]
    assert int(suite.get("failures")) == len(failed) > 0
    assert int(suite.get("tests")) == len(suite) > len(failed)


def test_markdown_says_the_verdict_the_place_and_the_command(mismatched):
    text = (mismatched[1] / "report.md").read_text()
    assert text.startswith("### ❌ Parity mismatch")
    assert "classifier is the first mismatch" in text
    assert "ptdeploy verify" in text


class Page(HTMLParser):
    """Tags that were opened, and every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "link", "line", "br"):
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_has_every_plot(mismatched):
    page = Page()
    html = (mismatched[1] / "report.html").read_text()
    page.feed(html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    for title in ("Error by case", "Error by position", "Error by layer", "What does not match"):
        assert title in html


def test_a_browser_shows_the_page_without_a_complaint(mismatched, tmp_path):
    done = subprocess.run(
        [
            tools.browser(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", (mismatched[1] / "report.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == 3


def test_locate_finds_nothing_in_an_honest_bundle(compiled):
    for architecture, task in (("bert", "SEQ_CLS"), ("qwen2", "CAUSAL_LM"), ("gpt2", "SEQ_CLS")):
        one = compiled(architecture, task)
        report = ptdeploy.verify(
            one.bundle, checkpoint=one.trained.adapter, base=str(one.trained.base), locate=True
        )
        assert report.located is not None
        assert report.located.module == ""
        assert report.located.compared > 20


def test_a_prompt_as_long_as_the_window_is_frozen(tmp_path):
    """A model's own cache forgets what slid out of its window; the prefix KV must not."""
    trained = tiny.make(tmp_path, "mistral", "CAUSAL_LM", virtual_tokens=20, sliding_window=16)
    bundle = ptdeploy.compile(
        trained.adapter, target="ort", base=str(trained.base), output=tmp_path / "bundle"
    )
    assert bundle.manifest.prompt.prefix_kv == (2, 2, 2, 20, 8)
    assert ptdeploy.verify(bundle.path).passed
