"""Each form of a report says what is in it, whatever words others put there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from support.manifests import made_manifest

from ptdeploy.bundle import Quantization
from ptdeploy.bundle.precision import Thresholds
from ptdeploy.errors import OutputError, ParityError
from ptdeploy.parity.checks import checks, failures, totals
from ptdeploy.parity.data import TaskMetric
from ptdeploy.parity.effect import PromptEffect
from ptdeploy.parity.quality import Quality
from ptdeploy.parity.refusal import Compiled, refuse_mismatch
from ptdeploy.parity.report import (
    CaseResult,
    Failing,
    GreedyResult,
    Located,
    ModuleError,
    ParityReport,
    PositionError,
)
from ptdeploy.parity.reports import check_report, html, junit, markdown, report_json
from ptdeploy.parity.reports.text import describe
from ptdeploy.parity.reports.words import UNJUDGED

EDGES = tuple(10.0**power for power in range(-9, 2))
# An escape sequence, the end of a line, a turned direction, markup, and a template's own signs.
HOSTILE = "\x1b[2J\n\u202e</code><script>alert(1)</script>&\"'|`](x)@team{{ 7 * 7 }}{% if %}"


def case(name: str = "alone", **changes: Any) -> CaseResult:
    made = CaseResult(
        name=name,
        source="random",
        padding="right",
        rows=(0,),
        lengths=(5,),
        max_abs=2.5e-7,
        mean_abs=1e-8,
        cosine=1.0,
        kl=3e-9,
        top1_agreement=1.0,
        histogram=(0, 3, 9, *[0] * 9),
        passed=True,
    )
    return msgspec.structs.replace(made, **changes)


HOLDS = ParityReport(
    passed=True,
    target="ort",
    device="cpu",
    precision="fp32",
    reference="PEFT 0.18 on PyTorch 2.9, fp32",
    thresholds=Thresholds(max_abs=1e-5, relative=1e-5, cosine=0.99999, kl=1e-6),
    largest_allowed=1.2e-5,
    cases=(case(), case(lengths=(8,), rows=(1,)), case("batch 3 left-padded", rows=(0, 4, 6))),
    greedy=(),
    texts_agreed=5,
    texts_total=5,
    quality=None,
    quality_allowed=None,
    notes=("the rows were short.",),
    positions=(PositionError(0, 0, 1e-7), PositionError(1, 2, 2.5e-7), PositionError(3, 4, 0.0)),
    histogram_edges=EDGES,
)

LOCATED = Located(
    module="bert.encoder.layer.1.output.dense",
    operator="Gemm",
    dtype="float32",
    operators=("MatMul", "Add", "Gemm"),
    cause="its bias is missing from the graph",
    lengths=(5,),
    compared=3,
    modules=(
        ModuleError("bert.embeddings", "output", "a", 1e-8, False),
        ModuleError("bert.encoder.layer.0", "output", "b", 2e-8, False),
        ModuleError("bert.encoder.layer.1.output.dense", "output", "c", 0.4, True),
        ModuleError("bert.encoder.layer.1", "output", "d", None, True),
    ),
)

FAILS = msgspec.structs.replace(
    HOLDS,
    passed=False,
    cases=(
        case(),
        case("batch 8 right-padded", max_abs=0.31, kl=0.02, top1_agreement=0.5, passed=False),
        case(
            "data alone",
            source="data",
            rows=(9,),
            lengths=(12,),
            max_abs=None,
            mean_abs=None,
            cosine=None,
            kl=None,
            histogram=(*[0] * 11, 12),
            passed=False,
        ),
    ),
    greedy=(GreedyResult(1, 16, 16, True), GreedyResult(8, 3, 16, False)),
    texts_agreed=3,
    data=TaskMetric("accuracy", 40, 0.9125, 0.9375, False),
    positions=(PositionError(0, 0, 0.31), PositionError(1, 1, None)),
    located=LOCATED,
    failing=Failing((3, 4), "out/failing.jsonl", "ptdeploy verify b --data out/failing.jsonl"),
)

STOPPED = msgspec.structs.replace(
    HOLDS,
    passed=False,
    cases=(case(), case(max_abs=None, passed=False, stopped="Gather: out of bounds.")),
    greedy=(GreedyResult(5, 0, 16, False, "Gather: out of bounds."),),
)

QUANTIZED = msgspec.structs.replace(
    HOLDS,
    passed=False,
    precision="int8",
    thresholds=None,
    largest_allowed=None,
    quality=Quality(
        "ptdeploy's own text",
        96,
        96,
        0.9166,
        None,
        None,
        logits_error=0.31,
        largest_share=0.4,
        detectable=0.06,
        clear=80,
        near_ties=6,
    ),
    quality_allowed=Quantization(8, 32, 4, 0.97, 1.02, max_logits_error=0.15),
)

PERPLEXED = msgspec.structs.replace(
    QUANTIZED,
    passed=True,
    quality=Quality("ptdeploy's own text", 12, 800, 0.99, 10.1, 10.0, detectable=0.02),
    data=TaskMetric("perplexity", 4, 20.5, None, True),
    greedy=(GreedyResult(1, 16, 16, True),),
)

NOWHERE = msgspec.structs.replace(
    FAILS,
    cases=(case(),),
    greedy=(),
    data=None,
    failing=None,
    located=Located("", "", "", (), "every module agrees", (5,), 12, ()),
)

REPORTS = {
    "holds": HOLDS,
    "fails": FAILS,
    "stopped": STOPPED,
    "quantized": QUANTIZED,
    "perplexed": PERPLEXED,
    "nowhere": NOWHERE,
}


def hostile() -> ParityReport:
    """The failing report with others' words wherever a report has words."""

    def spoil(value: Any) -> Any:
        if isinstance(value, str):
            return f"{value}{HOSTILE}"
        if isinstance(value, tuple):
            return tuple(map(spoil, value))
        if isinstance(value, msgspec.Struct):
            # Two words of a case are among few that are allowed.
            kept = ("source", "padding")
            fields = {n: spoil(getattr(value, n)) for n in value.__struct_fields__ if n not in kept}
            return msgspec.structs.replace(value, **fields)
        return value

    spoiled: ParityReport = spoil(FAILS)
    return spoiled


class Page(HTMLParser):
    """A page's elements and texts; every element must be closed where it was opened."""

    def __init__(self, document: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in ("meta", "link", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("name", REPORTS)
def test_every_check_that_does_not_pass_says_why(name):
    report = REPORTS[name]
    for one in checks(report):
        assert one.passed or one.fails or one.stopped
        assert not (one.passed and one.fails)
    said = [sentence for one in checks(report) for sentence in one.fails]
    assert sorted(failures(report)) == sorted([*report.faults(), *said])


def test_failures_on_your_own_data_come_first():
    assert failures(FAILS)[0].startswith("data alone, lengths [12]: max abs not finite")
    assert failures(FAILS)[1:] == [
        "batch 8 right-padded, lengths [5]: max abs 0.31, KL 0.02, top-1 agreement 0.5000",
        "greedy tokens of a row of 8: 3 of 16 agree",
        "tokenizer: 2 of 5 texts give other token ids",
        "accuracy on the given data: 0.9125, PEFT 0.9375",
    ]


@pytest.mark.parametrize(
    ("engine", "pefts", "said"),
    [
        (1 / 3, 1 / 3, "0.333333, PEFT 0.333333"),
        (0.5, 0.0, "0.5, PEFT 0"),
        (1.25e-7, 2.5e-7, "1.25e-07, PEFT 2.5e-07"),
        (43210.25, 43210.25, "43210.2, PEFT 43210.2"),
    ],
)
def test_the_same_score_of_both_is_the_same_number(engine, pefts, said):
    data = TaskMetric("score", 3, engine, pefts, True)
    report = msgspec.structs.replace(HOLDS, data=data)
    (total,) = (one for one in totals(report) if one.name == "score on 3 rows")
    assert f"{total.value}, {total.bound}" == said
    assert f"score on 3 rows of the given data: {said}" in describe(report).splitlines()
    missed = msgspec.structs.replace(
        report, data=msgspec.structs.replace(data, passed=False), passed=False
    )
    assert f"score on the given data: {said}" in failures(missed)


def test_an_engine_that_stops_is_not_said_to_give_wrong_numbers():
    (fault,) = failures(STOPPED)
    assert fault == (
        "the engine failed in 2 of 3 runs, first in alone, lengths [5]: Gather: out of bounds."
    )


def test_totals_are_the_worst_case_and_the_sums():
    assert [(one.name, one.value, one.bound, one.passed) for one in totals(FAILS)] == [
        ("max abs of logits", "not finite", "allowed 1.2e-05", False),
        ("smallest top-1 agreement", "50.00%", "", False),
        ("cases within thresholds", "1 of 3", "", False),
        ("greedy tokens agree", "19 of 32", "", False),
        ("texts encode alike", "3 of 5", "", False),
        ("accuracy on 40 rows", "0.9125", "PEFT 0.9375", False),
    ]
    assert all(one.passed for one in totals(HOLDS))


def test_near_ties_that_a_report_lets_pass_are_not_shown_as_failures():
    tied = msgspec.structs.replace(
        HOLDS,
        cases=(case(), case("batch 3", top1_agreement=0.98)),
        greedy=(GreedyResult(8, 16, 16, True), GreedyResult(5, 3, 16, True)),
    )
    found = {one.name: one for one in totals(tied)}
    assert found["smallest top-1 agreement"].value == "98.00%"
    assert found["greedy tokens agree"].value == "19 of 32"
    assert all(one.passed for one in found.values())
    page = html.render(tied, made_manifest())
    assert 'class="tile bad"' not in page
    assert 'class="bad"' not in page
    wrong = msgspec.structs.replace(tied, greedy=(GreedyResult(5, 3, 16, False),), passed=False)
    assert html.render(wrong, made_manifest()).count('<rect class="bad"') == 13


def test_each_bound_of_quantized_weights_has_a_total():
    quality = [one for one in totals(QUANTIZED) if one.kind == "quality"]
    assert [(one.name, one.value, one.bound, one.passed) for one in quality] == [
        ("top-1 agreement of 80 clear answers", "91.66%", "at least 97.00%", False),
        ("logits error", "0.31", "at most 0.15", False),
    ]
    quality = [one for one in totals(PERPLEXED) if one.kind == "quality"]
    assert [(one.name, one.value, one.bound, one.passed) for one in quality] == [
        ("top-1 agreement of 800 positions", "99.00%", "at least 97.00%", True),
        ("times the reference's perplexity", "1.010", "at most 1.02", True),
    ]
    assert [one for one in totals(HOLDS) if one.kind == "quality"] == []
    for quality, value in ((None, "none"), (stopped_quality(), "not finite")):
        report = msgspec.structs.replace(QUANTIZED, quality=quality)
        (one,) = (one for one in totals(report) if one.kind == "quality")
        assert (one.value, one.passed) == (value, False)


def stopped_quality() -> Quality:
    assert QUANTIZED.quality is not None
    return msgspec.structs.replace(QUANTIZED.quality, stopped="Gather: out of bounds.")


def test_where_no_answer_is_clear_the_share_over_all_is_said():
    assert QUANTIZED.quality is not None
    none = msgspec.structs.replace(
        QUANTIZED.quality, top1_agreement=1.0, clear=0, near_ties=24, logits_error=0.1
    )
    report = msgspec.structs.replace(QUANTIZED, quality=none, passed=True)
    assert "top-1 agreement 75.00% of 96 answers, none of them clear, in 96 texts" in describe(
        report
    )
    assert report.summary().top1_agreement == 0.75
    assert all(one.passed for one in totals(report))


def test_the_summary_in_a_manifest_counts_near_ties_that_changed():
    report = msgspec.structs.replace(
        QUANTIZED,
        quality=Quality("", 100, 100, 0.95, None, None, clear=80, near_ties=6),
    )
    assert report.summary().top1_agreement == pytest.approx(0.90)
    assert PERPLEXED.summary().top1_agreement == 0.99


def test_an_earlier_report_is_replaced_however_long_it_is(tmp_path):
    (tmp_path / "report.md").touch()
    long = msgspec.structs.replace(HOLDS, notes=("n" * 2**26,))
    for content in (report_json(long), msgspec.json.encode(HOLDS)):
        (tmp_path / "report.json").write_bytes(content)
        check_report(tmp_path)
    for other in (b"", b"[" + report_json(HOLDS), b'{"target": 1, "precision": 2, "cases": 3}'):
        (tmp_path / "report.json").write_bytes(other)
        with pytest.raises(OutputError, match=r"holds report\.json, which is not of a report"):
            check_report(tmp_path)


def test_bounds_without_an_end_are_drawn_nowhere():
    report = msgspec.structs.replace(HOLDS, largest_allowed=float("inf"))
    assert 'class="limit"' in html.render(HOLDS, made_manifest())
    assert 'class="limit"' not in html.render(report, made_manifest())


def test_only_a_bound_that_was_set_is_one_that_the_data_misses():
    missed = TaskMetric("accuracy", 3, 0.5, None, False, missed=("at least 0.9 (min_accuracy)",))
    for data, said in (
        (missed, "parity holds, but a bound on the given data does not"),
        (TaskMetric("accuracy", 3, None, None, False), "parity mismatch"),
    ):
        report = msgspec.structs.replace(HOLDS, passed=False, data=data)
        assert describe(report).splitlines()[-1] == said.upper()
        lines = markdown.render(report, made_manifest()).splitlines()
        assert lines[0].startswith(f"### ❌ {said.capitalize()}")
        assert said.capitalize() in Page(html.render(report, made_manifest())).text


def test_every_form_says_where_cases_are_not_judged():
    said = UNJUDGED.capitalize()
    for report, judged in ((PERPLEXED, False), (HOLDS, True)):
        page = Page(html.render(report, made_manifest()))
        assert (said in page.text) is not judged
        assert ("not judged" in page.texts) is not judged
        lines = markdown.render(report, made_manifest()).splitlines()
        rows = [line for line in lines if line.startswith("| alone")]
        assert all(row.endswith("| ok |" if judged else "| not judged |") for row in rows)
        assert any(line.startswith(said) for line in lines) is not judged
        assert (UNJUDGED in describe(report)) is not judged
        names = [one.name for one in totals(report)]
        assert ("cases within thresholds" in names) is judged


def test_the_terminal_has_a_line_for_each_check_and_the_verdict_last():
    lines = describe(FAILS).splitlines()
    assert next(line for line in lines if line.startswith("data alone")).endswith("MISMATCH")
    assert "greedy tokens, row of 8: 3 of 16 agree" in lines
    assert "tokenizer: 3 of 5 texts encode alike" in lines
    assert "accuracy on 40 rows of the given data: 0.9125, PEFT 0.9375" in lines
    assert (
        "located: bert.encoder.layer.1.output.dense is the first mismatch, of 3 tensors compared"
        in lines
    )
    assert "reproduce: ptdeploy verify b --data out/failing.jsonl" in lines
    assert lines[-1] == "PARITY MISMATCH"
    assert describe(HOLDS).splitlines()[-1] == "parity holds"
    assert describe(STOPPED).splitlines()[-1] == "THE ENGINE FAILS"


def test_the_terminal_says_what_quantization_cost():
    lines = describe(QUANTIZED).splitlines()
    assert (
        "quantized weights on ptdeploy's own text: top-1 agreement 91.66% of 80 clear answers in "
        "96 texts (the others of 96 are near ties; a fault that changes 6.0% of the answers would "
        "be seen 19 times of 20), logits error 0.31, asked for: at least 97.00% agreement, at most "
        "0.15 logits error"
    ) in lines
    # What the table's figures are is said right behind it.
    judged = "rows alone are not judged: quantized weights are held to what much text says"
    assert lines[lines.index("tokenizer: 5 of 5 texts encode alike") - 1] == judged
    assert judged not in describe(HOLDS)
    said = describe(PERPLEXED)
    assert "perplexity 1.010 times the reference's, asked for: at least 97.00% agreement, " in said


def test_markdown_has_the_verdict_first_and_the_facts_in_a_line():
    lines = markdown.render(FAILS, made_manifest()).splitlines()
    assert lines[0] == "### ❌ Parity mismatch: bert-tiny"
    assert lines[10] == (
        "Allowed max abs: 1.2e-05. Greedy tokens: 19 of 32 agree. Tokenizer: 3 of 5 texts alike. "
        "Accuracy on 40 rows of the given data: 0.9125 (PEFT 0.9375)."
    )
    assert "| alone | 1 | 5 | 2.5e-07 | 3e-09 | 100.00% | ok |" in lines
    assert markdown.render(HOLDS, made_manifest()).startswith("### ✅ Parity holds")


def test_junit_counts_a_test_for_each_check():
    suite = ElementTree.fromstring(junit.render(FAILS))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("7", "5")
    found = {
        (one.get("classname"), one.get("name")): [failure.get("message") for failure in one]
        for one in suite
    }
    assert found["parity.logits", "alone, rows [0], lengths [5]"] == []
    assert found["parity.greedy tokens", "row of 8"] == ["3 of 16 tokens agree"]
    assert found["parity.tokenizer", "texts"] == ["3 of 5 texts encode alike"]
    assert found["parity.data", "accuracy"] == ["0.9125 on 40 rows"]
    twice = msgspec.structs.replace(FAILS, greedy=(*FAILS.greedy, *FAILS.greedy))
    several = msgspec.structs.replace(twice, prompt="a", prompts=(twice,))
    cases = list(ElementTree.fromstring(junit.render(several)).iter("testcase"))
    assert len({(one.get("classname"), one.get("name")) for one in cases}) == len(cases)
    data = msgspec.structs.replace(FAILS.data, missed=("at least 0.95 (min_accuracy)",))
    missed = junit.render(msgspec.structs.replace(FAILS, data=data)).decode()
    assert "0.9125 on 40 rows, but at least 0.95 (min_accuracy) is asked for" in missed
    stopped = ElementTree.fromstring(junit.render(STOPPED)).iter("failure")
    assert {failure.get("message") for failure in stopped} == {"Gather: out of bounds."}
    (quality,) = ElementTree.fromstring(junit.render(QUANTIZED)).iter("failure")
    assert "0.97 is asked for (--min-agreement); logits error" in str(quality.text)


def test_the_page_shows_each_total_plot_and_failure():
    page = Page(html.render(FAILS, made_manifest()))
    assert page.open == []
    for words in ("3 of 5 texts encode alike", "19 of 32 greedy tokens agree", *failures(FAILS)):
        assert words in page.text
    for title in ("Error by case", "Error by position", "Error by layer", "Agreement by step"):
        assert title in page.texts
    assert page.elements.count("svg") == 4
    assert page.elements.count("circle") == len(LOCATED.modules)
    assert Page(html.render(HOLDS, made_manifest())).elements.count("svg") == 2
    assert "bert-tiny, SEQ_CLS; ort fp32 on cpu" in page.text
    assert "default: 5 virtual tokens" in page.text
    assert "What fails" in Page(html.render(STOPPED, made_manifest())).texts


def test_hostile_words_stay_words_in_every_form():
    report, base = hostile(), made_manifest(base=f"bert{HOSTILE}")
    document = html.render(report, base)
    page = Page(document)
    assert page.open == []
    assert "script" not in page.elements
    tame = Page(html.render(FAILS, made_manifest()))
    for element in {*page.elements, *tame.elements} - {"text"}:
        assert page.elements.count(element) == tame.elements.count(element), element
    assert "{{ 7 * 7 }}" in page.text
    shown = markdown.render(report, base)
    assert not re.search(r"(?<!\\)[<@|]script", shown.partition("```")[0])
    names = [one.get("name") for one in ElementTree.fromstring(junit.render(report)).iter()]
    assert any("<script>" in str(name) for name in names)
    for form in (document, shown, describe(report), junit.render(report).decode()):
        assert not set(form) & {"\x1b", "\u202e"}
    assert len(describe(report).splitlines()) == len(describe(FAILS).splitlines())


def test_a_missing_prompt_is_called_no_cost_of_quantization():
    kept = msgspec.structs.replace(QUANTIZED.quality, top1_agreement=1.0, logits_error=0.02)
    report = msgspec.structs.replace(
        QUANTIZED, quality=kept, effects=(PromptEffect(None, 1.0, 0.01, 40),)
    )
    with pytest.raises(ParityError) as raised:
        refuse_mismatch(report, Compiled("bert", "float32", ("fp32", "int8")))
    assert "no option accepts it" in raised.value.fix


def test_another_tokenizer_of_a_quantized_engine_is_named():
    kept = msgspec.structs.replace(QUANTIZED.quality, top1_agreement=1.0, logits_error=0.02)
    report = msgspec.structs.replace(QUANTIZED, quality=kept, texts_agreed=3, texts_total=4)
    with pytest.raises(ParityError) as raised:
        refuse_mismatch(report, Compiled("bert", "float32", ("fp32", "int8")))
    assert "Only the tokenizer differs" in raised.value.fix
