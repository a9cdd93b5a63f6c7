"""What inspect, diff, convert and doctor show people."""

from __future__ import annotations

import pytest

from ptdeploy.cli.main import main
from ptdeploy.commands.diff import Change, Difference, describe


@pytest.fixture
def shown(capsys):
    def run(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(list(words)) in (0, 3)
        return capsys.readouterr().out.splitlines()

    return run


def cells(lines: list[str], title: str) -> list[str]:
    return [line[16:] for line in lines if line.startswith(f"{title} ")]


def test_inspect_shows_each_input_but_those_of_the_other_layers(compiled, shown):
    lines = shown("inspect", str(compiled("qwen2", "CAUSAL_LM").bundle))
    inputs = [line.partition(": ")[0] for line in cells(lines, "input")]
    assert inputs == [
        "input_ids int64 (batch, sequence)",
        "past_lengths int64 (batch)",
        "logits_positions int64 (kept)",
        "past_key_values.0.key float32 (batch, 2, slots, 8)",
        "past_key_values.0.value float32 (batch, 2, slots, 8)",
        "token_offsets int64 (3, sequence)",
    ]
    more = [line.strip() for line in lines if line.startswith(" ")]
    assert more == ["and 2 more of the KV buffer, for the other layers"] * 2
    (prompt,) = cells(lines, "prompt")
    assert ": 5 virtual tokens, 32 wide, frozen from " in prompt
    assert prompt.endswith("prefix KV (2, 2, 2, 5, 8)")


def test_inspect_names_the_public_function_that_keeps_training(compiled, shown):
    lines = shown("inspect", str(compiled("bert", "SEQ_CLS").trained.adapter))
    assert "(ptdeploy.save_full keeps it)" in cells(lines, "training")[0]
    assert cells(lines, "prompt")[0] == "5 virtual tokens, 32 wide, float32, evaluated"
    assert "classifier.weight (3, 32)" in cells(lines, "trained head")[0]


def test_diff_says_values_in_words():
    def of(*changes: Change) -> Difference:
        return Difference((), changes, (), (), None, False, None, True, (), ())

    found = describe(
        of(
            Change("max_abs", 4.291534423828125e-06, 2.384185791015625e-06),
            Change("near", 0.99951, 0.99949),
            Change("labels", ("no", "yes"), ()),
            Change("prefix_kv", None, (2, 2, 4, 5, 8)),
            Change("generation", None, {"max_new_tokens": 128, "do_sample": False, "top_p": 0.9}),
        )
    )
    assert found.splitlines()[2:7] == [
        "  max_abs: 4.292e-06 -> 2.384e-06",
        "  near: 0.99951 -> 0.99949",
        "  labels: no, yes -> none",
        "  prefix_kv: none -> (2, 2, 4, 5, 8)",
        "  generation: none -> max_new_tokens 128, do_sample no, top_p 0.9",
    ]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("npy", "5 virtual tokens, 32 wide"),
        ("prefix-kv", "prefix KV (2, 2, 2, 5, 8)"),
        ("peft", "P_TUNING, 5 virtual tokens, 32 wide"),
    ],
)
def test_convert_says_what_it_wrote_in_words(compiled, tmp_path, shown, to, words):
    one, out = compiled("qwen2", "CAUSAL_LM").trained, str(tmp_path / "out.npy")
    base = str(one.base)
    lines = shown("convert", str(one.adapter), "--base", base, "--to", to, "-o", out, "-q")
    assert lines[-1] == f"wrote     {out}: {words}"


def test_doctor_has_two_columns(shown):
    lines = shown("doctor")
    rows = [line for line in lines[1:] if " is fastest at " not in line and "PROBLEM" not in line]
    second = len("openvino on cpu") + 2
    assert len(rows) > 8
    assert all(row[second - 1] == " " and row[second] != " " for row in rows)
