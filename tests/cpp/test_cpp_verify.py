"""The C++ library's verify judges a bundle as Python's does, and refuses what that refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import damage, native
from support.batches import one_off_in_batches
from support.c_abi import FAULT, Library
from support.damage import REFERENCE_DAMAGE, edit
from support.exchange import exchange_prompts
from support.faults import Editor, with_prompts_length, with_table
from support.parity import assert_same, near
from support.refusals import same_refusal

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.bundle.precision import PRECISIONS
from ptdeploy.bundle.quantization import QuantizationOptions
from ptdeploy.errors import EngineFault, PtdeployError
from ptdeploy.parity.cases import BatchCase, Source, batches
from ptdeploy.parity.compare import compare
from ptdeploy.parity.reference import Reference, ReferenceRow
from ptdeploy.parity.reference.store import load_reference, save_reference
from ptdeploy.parity.report import ParityReport
from ptdeploy.parity.reports.text import describe
from ptdeploy.printable import printable

REFERENCE = "prompts/default/reference.safetensors"
KINDS = [
    "encoder classifier",
    "token classifier",
    "decoder classifier",
    "fused",
    "plain",
    "fused, not frozen",
    "int4",
    "int8 classifier",
]


@pytest.fixture(scope="module")
def example(built) -> Callable[..., subprocess.CompletedProcess[str]]:
    program = built / "ptdeploy-library" / "examples" / "verify"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def verified(probe: native.Probe, bundle: Path) -> Any:
    assert probe.ask("open", "v", bundle) == {}
    return probe.ask("verify", "v")


def change_weights(bundle: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change every matrix of the engine; hashes fit, and quantized weights have bounds to miss."""
    model = onnx.load(bundle / "model.onnx")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.dtype in (np.float32, np.uint8, np.int8):
            tensor.CopyFrom(onnx.numpy_helper.from_array(how(array), tensor.name))
    damage.replace(bundle, "model.onnx", model.SerializeToString())

    def bounds(manifest: dict[str, Any]) -> None:
        if manifest["quantization"]:
            bounds = {"min_class_agreement": None, "max_perplexity_ratio": 1.02}
            manifest["quantization"].update(min_agreement=0.97, **bounds)

    edit(bundle, bounds)


def other(array: np.ndarray) -> np.ndarray:
    return array * np.float32(1.01) if array.dtype == np.float32 else array ^ 0x55


def store(bundle: Path, reference: Reference) -> None:
    save_reference(reference, bundle / "prompts" / "default")
    damage.replace(bundle, REFERENCE, (bundle / REFERENCE).read_bytes())


def alone(rows: list[ReferenceRow]) -> tuple[BatchCase, ...]:
    return tuple(BatchCase((index,), "right", row.source) for index, row in enumerate(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_pythons_numbers(bundles, probe, kind):
    bundle = bundles(kind)
    ours = ptdeploy.verify(bundle)
    assert ours.passed
    assert max(one.max_abs for one in ours.cases) > 0
    theirs = verified(probe, bundle)
    assert_same(theirs, ours)
    assert theirs["notes"] == list(ours.notes)
    assert theirs["texts_not_compared"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_changed_weights_do_not_match_in_pythons_words(bundles, probe, tmp_path, kind):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    change_weights(bundle, other)
    ours = ptdeploy.verify(bundle)
    assert not ours.passed
    assert_same(verified(probe, bundle), ours)


@pytest.mark.parametrize("kind", ["int8", "int8 classifier"])
def test_a_quantized_engine_that_is_not_itself_in_batches_fails(bundles, probe, tmp_path, kind):
    bundle = one_off_in_batches(Path(shutil.copytree(bundles(kind), tmp_path / "bundle")))
    ours = ptdeploy.verify(bundle)
    assert not ours.passed
    assert all(one.passed for one in ours.cases if not one.held_to_own)
    wrong = ours.greedy if kind == "int8" else [one for one in ours.cases if one.held_to_own]
    assert not all(one.passed for one in wrong)
    assert_same(verified(probe, bundle), ours)


def test_a_fault_beside_a_row_that_ends_first_counts_as_in_python(compiled, probe, tmp_path):
    options = {"max_context": 27, "max_batch": None}
    honest = compiled("qwen2", "CAUSAL_LM", options).bundle
    bundle = one_off_in_batches(Path(shutil.copytree(honest, tmp_path / "bundle")), rows=3)
    ours = ptdeploy.verify(bundle)
    own = [one.passed for one in ours.greedy if not one.mixed]
    assert own == [False, False, True, False]
    assert_same(verified(probe, bundle), ours)


@pytest.mark.parametrize("options", [{}, {"max_batch": 1}, {"precision": "int8"}])
def test_an_engine_that_is_wrong_without_a_prompt_fails_in_pythons_words(
    compiled, probe, tmp_path, options
):
    if "precision" in options:
        options = {**options, "quantization": native.LOOSE}
    editor = Editor.copy(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "bundle")
    with_prompts_length(editor)
    editor.write()
    ours = ptdeploy.verify(tmp_path / "bundle")
    wrong = [one for one in ours.runs if not one.passed]
    assert wrong
    assert all(one.without_prompt for one in wrong)
    theirs = verified(probe, tmp_path / "bundle")
    assert_same(theirs, ours)
    assert theirs["notes"] == list(ours.notes)


def test_a_reference_without_the_base_model_is_said_to_have_none_as_in_python(
    bundles, probe, tmp_path
):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    damage.rewrite_reference(bundle, damage.leave_out_base)
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    assert ours.notes[-1].startswith("requests without a prompt were not compared: ")
    assert theirs["notes"] == list(ours.notes)
    assert_same(theirs, ours)


def test_a_row_that_a_full_batch_leaves_alone_is_mixed_in_both(compiled, packed, probe, tmp_path):
    options = {"max_batch": 3}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    for name in "abc":
        ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", options=options).path, name=name)
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    own, *others = ours.each()
    assert_same(theirs, own)
    for got, want in zip(theirs["prompts"], others, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(("kind", "told"), [("int8", True), ("int4", True), ("fused", None)])
def test_what_rows_without_a_prompt_may_have_is_found_as_in_python(
    bundles, probe, tmp_path, kind, told
):
    """The reference's are as far on the other side of the prompt's."""
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))

    def turned(tensors: dict[str, np.ndarray], _: dict[str, Any]) -> None:
        for name in [one for one in tensors if one.startswith("rows.")]:
            if name.endswith(".without_prompt"):
                logits = tensors[name.replace("without_prompt", "logits")]
                tensors[name] = 2 * logits - tensors[name]

    assert verified(probe, bundle)["passed"]
    damage.rewrite_reference(bundle, turned)
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    assert_same(theirs, ours)
    assert theirs["failures"] == ours.failures()
    assert not ours.passed
    if told is None:
        assert ours.effects == ()
    else:
        assert [one.without_prompt for one in ours.effects] == [False, True]
        assert ours.effects[1].missing == pytest.approx(2, abs=0.1)
        assert (
            "what sets logits without a prompt apart from those of 'default'"
            in (theirs["failures"][-1])
        )


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_prompts_in_each_others_place_fail_in_pythons_words(
    compiled, packed, probe, tmp_path, precision
):
    options = {"precision": precision, "quantization": native.LOOSE}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", tokens=5, options=options).path)
    exchange_prompts(bundle, "default", "other")
    own, *others = ptdeploy.verify(bundle).each()
    theirs = verified(probe, bundle)
    assert not own.passed
    for got, want in zip(theirs["prompts"], others, strict=True):
        assert_same(got, want)
        assert not want.passed
    assert theirs["effects"][-1]["missing"] == pytest.approx(2, abs=0.1)


def test_of_a_short_reference_each_row_counts_once_as_in_python(compiled, packed, probe, tmp_path):
    options = {"precision": "int8", "quantization": native.LOOSE, "golden": 2}
    bundle = Path(shutil.copytree(compiled("qwen2", "CAUSAL_LM", options).bundle, tmp_path / "b"))
    ptdeploy.prompt_add(bundle, packed("qwen2", "CAUSAL_LM", tokens=5, options=options).path)
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    assert theirs["effects"][-1]["positions"] == ours.effects[-1].positions == 2
    for got, want in zip(theirs["prompts"], ours.prompts, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("kind", ["encoder classifier", "fused", "int4"])
def test_what_is_not_finite_never_passes(bundles, probe, tmp_path, kind):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    change_weights(bundle, lambda a: a if a.dtype == np.uint8 else a * np.float32(np.nan))
    ours = ptdeploy.verify(bundle)
    assert all(one.max_abs is None for one in ours.cases)
    theirs = verified(probe, bundle)
    assert_same(theirs, ours)
    lost = [line for line in theirs["failures"] if "max abs not finite, KL not finite" in line]
    assert len(lost) == len(ours.cases)
    if kind == "int4":
        assert "perplexity nan times the reference's" in theirs["failures"][-1]


def test_an_engine_that_fails_is_described_through_the_c_abi_as_in_python(bundles, built, tmp_path):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    change_weights(bundle, lambda a: a * np.float32(np.nan))
    with pytest.raises(EngineFault) as ours:
        ptdeploy.load(bundle).generate([[5, 6]])
    library = Library(built, bundle)
    library.expected = (FAULT,)
    assert library.generate(library.options()) == (ours.value.problem, 0)
    assert library.c.ptdeploy_last_fix().decode() == ours.value.fix != ""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_measure_has_pythons_threshold(bundles, probe, tmp_path, precision):
    """One row's huge logits allow the others any difference: cosine and KL decide on them."""
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    reference = load_reference(read_bundle(bundle))
    ids = reference.rows[0].ids
    logits = ptdeploy.load(bundle).logits([ids])[0]
    rows = [ReferenceRow(ids, logits * np.float32(1e9))]
    for power in np.arange(0, 6, 0.25):
        step = np.float32(10**-power)
        # Another scale has the same cosine, a shift of all scores the same probabilities.
        rows += [ReferenceRow(ids, logits * (1 + step)), ReferenceRow(ids, logits + step)]
    thresholds = PRECISIONS[precision].thresholds
    assert thresholds is not None
    cases = alone(rows)
    store(bundle, replace(reference, rows=tuple(rows), cases=cases, thresholds=thresholds))
    ours = ptdeploy.verify(bundle)
    bounds, cases = ours.thresholds, ours.cases[1:]
    assert bounds is not None
    assert all(one.max_abs <= ours.largest_allowed for one in cases)
    by_cosine = {one.cosine >= bounds.cosine for one in cases if one.kl <= bounds.kl}
    by_kl = {one.kl <= bounds.kl for one in cases if one.cosine >= bounds.cosine}
    assert by_cosine == by_kl == {one.passed for one in cases} == {False, True}
    assert_same(verified(probe, bundle), ours)


def evaluate_to_own_values(bundle: Path, off_by: float) -> None:
    """Have the reference find in each evaluation text what the engine does, but for some noise."""
    engine = ptdeploy.load(bundle)
    random = np.random.default_rng(5)

    def with_values(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        for i in range(metadata["evaluation"]):
            ids, types = (tensors.get(f"evaluation.{i:03}.{name}") for name in ("ids", "type_ids"))
            (logits,) = engine.logits([ids], token_type_ids=None if types is None else [types])
            noisy = (logits + random.normal(0, off_by, logits.shape)).astype(np.float32)
            tensors[f"evaluation.{i:03}.logits"] = noisy[None]
            tensors[f"evaluation.{i:03}.top1"] = noisy.argmax(-1)[None]

    damage.rewrite_reference(bundle, with_values)


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "regression"])
def test_each_head_is_held_to_its_own_agreement_as_in_python(bundles, probe, tmp_path, head):
    bundle = Path(shutil.copytree(bundles("int8 classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(head=head))
    evaluate_to_own_values(bundle, off_by=0.5)
    asked = {"min_agreement": 0.0, "min_class_agreement": 0.0, "max_logits_error": None}
    own = "min_class_agreement" if head == "softmax" else "min_agreement"
    found = []
    for bounds in (asked, asked | {own: 1.0}):
        edit(bundle, lambda m, bounds=bounds: m["quantization"].update(bounds))
        ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
        assert theirs["failures"] == ours.failures()
        assert ours.quality_allowed is not None
        assert ours.quality_allowed.min_agreement == bounds[own]
        found.append(any("--min-agreement" in line for line in theirs["failures"]))
    assert found == [False, True]


@pytest.mark.parametrize("head", ["sigmoid", "regression"])
def test_quantization_of_a_head_without_one_class_is_evaluated_as_in_python(
    bundles, probe, tmp_path, head
):
    bundle = Path(shutil.copytree(bundles("int8 classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(head=head))
    edit(bundle, lambda m: m["quantization"].update(min_agreement=0.999))
    damage.rewrite_reference(bundle, lambda t, _: t.pop("evaluation.000.logits"))
    refused = verified(probe, bundle)
    assert "evaluation.000.logits" in refused["problem"]
    with pytest.raises(
        ptdeploy.BundleError, match=re.escape(refused["problem"].partition(": ")[2])
    ):
        ptdeploy.verify(bundle)
    evaluate_to_own_values(bundle, off_by=0.05)
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    assert ours.quality is not None
    assert 0 < ours.quality.top1_agreement < 1
    assert theirs["quality"]["top1_agreement"] == near(ours.quality.top1_agreement)
    assert theirs["failures"] == ours.failures()
    assert "explained variance of the values" in theirs["failures"][-1]


@pytest.mark.parametrize("kind", ["encoder classifier", "int8 classifier"])
def test_outputs_that_are_numbers_of_their_own_are_judged_as_in_python(
    bundles, probe, tmp_path, kind
):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    edit(bundle, lambda m: m["prompts"]["default"].update(head="regression"))
    assert_same(verified(probe, bundle), ptdeploy.verify(bundle))
    one_off_in_batches(bundle)
    ours = ptdeploy.verify(bundle)
    assert_same(verified(probe, bundle), ours)
    wanted = "from the engine's own" if ours.own_allowed else "off, allowed"
    assert re.search(rf"; output \d is \S+ {wanted}", ours.failures()[0])


def test_an_engine_that_fails_on_evaluation_text_is_reported_as_in_python(
    compiled, probe, built, tmp_path
):
    loose = QuantizationOptions(min_agreement=0.0, max_logits_error=1e9)
    how = {"target": "ort", "precision": "int8", "quantization": loose}
    honest = compiled("gpt2", "TOKEN_CLS", how).bundle
    bundle = with_table(honest, "wpe.weight", lambda table: table[:20], tmp_path / "bundle")
    ours, theirs = ptdeploy.verify(bundle), verified(probe, bundle)
    assert ours.quality is not None
    assert ours.quality.stopped
    assert theirs["failures"] == ours.failures()
    program = built / "ptdeploy-library" / "examples" / "verify"
    ran = subprocess.run([program, bundle], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "THE ENGINE FAILS" in ran.stdout
    assert "quantized weights on" not in ran.stdout


def hide_the_embedding(bundle: Path) -> None:
    """Let nothing in the graph say how many ids it takes: a lie about that is found in its runs."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["given" if name == "input_ids" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["input_ids"], ["given"]))
    damage.replace(bundle, "model.onnx", model.SerializeToString())


def test_an_engine_that_fails_on_a_stored_row_says_why_once(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("decoder classifier"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(vocab_size=1000))
    hide_the_embedding(bundle)
    damage.rewrite_reference(bundle, lambda t, _: t["rows.003.ids"].put(0, 900))
    ours = ptdeploy.verify(bundle)
    theirs = verified(probe, bundle)
    assert_same(theirs, ours)
    assert sum(one["max_abs"] is None for one in theirs["cases"]) >= 2
    assert theirs["notes"] == list(ours.notes)
    fault, *others = theirs["failures"]
    assert fault.startswith("the engine failed in ")
    assert re.search(r": ONNX Runtime failed \(\w+ at model\.embed_tokens", fault)
    assert not any("not finite" in other for other in others)


@pytest.mark.parametrize("max_batch", [None, 1, 2, 5, 8, 70])
def test_cases_are_pythons_for_every_source_and_bound(bundles, probe, tmp_path, max_batch):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    edit(bundle, lambda m: m["limits"].update(max_batch=max_batch))
    engine = ptdeploy.load(bundle)
    random = np.random.default_rng(3)
    sources: list[Source] = ["random", "text"] * 16
    rows = [
        ReferenceRow(ids, engine.logits([ids])[0], source)
        for source in sources
        if (ids := random.integers(0, 101, random.integers(1, 6))) is not None
    ]
    cases = batches(sources, max_batch)
    stored = load_reference(read_bundle(bundles("fused")))
    stored = replace(stored, rows=tuple(rows), cases=cases)
    store(bundle, stored)
    ours = compare(engine, stored)
    assert ours.passed
    assert_same(verified(probe, bundle), ours)


def test_rows_whose_last_positions_alone_were_stored_are_compared_there(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))

    def keep_two(tensors: dict[str, np.ndarray], _: Any) -> None:
        for name in tensors:
            if name.endswith(("logits", ".without_prompt")):
                tensors[name] = tensors[name][-2:]

    damage.rewrite_reference(bundle, keep_two)
    ours = ptdeploy.verify(bundle)
    assert ours.passed
    assert_same(verified(probe, bundle), ours)


def test_a_greedy_row_may_end_in_another_token_at_a_near_tie_alone(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))

    def change(tensors: dict[str, np.ndarray], margin: float) -> None:
        tensors["greedy.001.tokens"][4] += 1
        tensors["greedy.001.margins"][4] = margin

    damage.rewrite_reference(bundle, lambda t, _: change(t, 1e-9))
    ours = ptdeploy.verify(bundle)
    assert (ours.greedy[1].agreed, ours.passed) == (4, True)
    assert_same(verified(probe, bundle), ours)
    damage.rewrite_reference(bundle, lambda t, _: change(t, 1.0))
    theirs = verified(probe, bundle)
    assert theirs["failures"] == ["greedy tokens of a row of 8: 4 of 16 agree"]
    assert theirs["failures"] == ptdeploy.verify(bundle).failures()


def test_texts_for_the_tokenizer_are_said_to_be_left_out(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))
    reference = load_reference(read_bundle(bundle))
    store(bundle, replace(reference, texts=("a", "b"), text_ids=((1,), (2,))))
    (bundle / "tokenizer.json").write_text("{}")
    entry = {"path": "tokenizer.json", "role": "tokenizer", "size": 2, "sha256": "", "of": None}
    edit(bundle, lambda m: m["files"].append(entry))
    damage.replace(bundle, "tokenizer.json", b"{}")
    theirs = verified(probe, bundle)
    assert theirs["passed"]
    assert theirs["texts_not_compared"] == 2
    (note,) = theirs["notes"]
    assert note == (
        "the tokenizer was not compared (2 texts): only Python's ptdeploy verify compares it."
    )


@pytest.mark.parametrize(("kind", "side"), [("fused", "left"), ("decoder classifier", "right")])
def test_a_padded_batch_of_pefts_own_that_does_not_match_is_noted(
    bundles, probe, tmp_path, kind, side
):
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    damage.rewrite_reference(bundle, lambda _, m: m.update(padded_mismatch=0.125))
    theirs = verified(probe, bundle)
    assert theirs["notes"] == list(ptdeploy.verify(bundle).notes)
    assert f"own {side}-padded batch does not match" in theirs["notes"][0]
    assert ", by 0.12;" in theirs["notes"][0]


def test_quantized_weights_without_text_to_evaluate_them_on_do_not_pass(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("int4"), tmp_path / "bundle"))
    damage.rewrite_reference(bundle, lambda _, m: m.update(evaluation=0))
    theirs = verified(probe, bundle)
    text = "the reference holds no text to evaluate quantized weights on"
    # Without it a batch may be off by what sums in fp32 cost alone.
    assert theirs["failures"][-1] == text
    assert all("the engine finds log probabilities" in one for one in theirs["failures"][:-1])
    ours = ptdeploy.verify(bundle).failures()
    assert [one.partition(" finds ")[0] for one in theirs["failures"]] == [
        one.partition(" finds ")[0] for one in ours
    ]


def test_every_file_of_another_prompt_is_hashed_by_verify_as_in_python(
    compiled, packed, probe, tmp_path
):
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    ptdeploy.prompt_add(bundle, packed("bert", "SEQ_CLS").path, name="other")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    others = [one for one in files if one["of"] == "other"]
    assert {one["role"] for one in others} == {"prompt", "reference", "parity"}
    for entry in others:
        file = bundle / entry["path"]
        honest = file.read_bytes()
        damage.flip(file, 0.5)
        with pytest.raises(ptdeploy.BundleError, match="its SHA-256 is not the") as refused:
            ptdeploy.verify(bundle)
        assert same_refusal(verified(probe, bundle), refused.value, True)
        file.write_bytes(honest)
    assert verified(probe, bundle)["passed"]


@pytest.mark.parametrize("one", REFERENCE_DAMAGE, ids=str)
def test_a_damaged_reference_is_refused_as_in_python(compiled, probe, tmp_path, one):
    bundle = Path(shutil.copytree(compiled(*one.bundle).bundle, tmp_path / "bundle"))
    one.do(bundle)
    theirs = verified(probe, bundle)
    with pytest.raises(one.error) as refused:
        ptdeploy.verify(bundle)
    ours: PtdeployError = refused.value
    assert one.reason in ours.problem
    assert one.reason in theirs["problem"]
    assert (theirs["error"], theirs["fix"]) == (type(ours).__name__, ours.fix)
    if one.same_words:
        assert theirs["problem"] == ours.problem


def test_an_evaluation_text_that_does_not_fit_is_refused(bundles, probe, tmp_path):
    two, lost = np.zeros((1, 2), np.float32), np.full((1, 3), np.nan, np.float32)
    for kind, name, array, reason in (
        ("int4", "top1", np.zeros(3, np.int64), "top1 has 3 entries, not"),
        ("int4", "nll", np.zeros(3, np.float32), "nll has 3 entries, not"),
        ("int4", "ids", np.full(1, 101), "ids holds a token id outside 0 to 100"),
        ("int8 classifier", "logits", two, "logits has shape (1, 2), not (1, 3)"),
        ("int8 classifier", "logits", lost, "logits holds a number that is not finite"),
    ):
        bundle = Path(shutil.copytree(bundles(kind), tmp_path / reason[:12]))
        tensor = f"evaluation.000.{name}"
        damage.rewrite_reference(bundle, lambda t, _, n=tensor, a=array: t.update({n: a}))
        assert f"evaluation.000.{reason}" in verified(probe, bundle)["problem"]
        with pytest.raises(ptdeploy.BundleError, match=re.escape(f"evaluation.000.{reason}")):
            ptdeploy.verify(bundle)


def without_kl(text: str) -> list[str]:
    """Lines without the table's column of KL: near zero its last digits are rounding's."""
    return [
        line[:61] + line[71:] if line.endswith(("%", "MISMATCH")) else line
        for line in text.splitlines()
    ]


@pytest.mark.parametrize("kind", ["token classifier", "fused", "int4", "int8 classifier"])
def test_the_example_prints_what_ptdeploy_verify_prints(bundles, example, tmp_path, kind):
    done = example(bundles(kind))
    want = describe(ptdeploy.verify(bundles(kind)))
    assert (done.returncode, done.stderr) == (0, "")
    assert without_kl(done.stdout) == without_kl(want)
    bundle = Path(shutil.copytree(bundles(kind), tmp_path / "bundle"))
    change_weights(bundle, other)
    done = example(bundle)
    lines = without_kl(done.stdout)
    assert done.returncode == 1
    assert lines[-1] == "PARITY MISMATCH"
    # Python shortens the list of what does not match.
    wanted = without_kl(describe(ptdeploy.verify(bundle)))
    assert [one for one in wanted if one not in lines] in (
        [],
        [one for one in wanted if one.startswith("mismatch: and ")],
    )


def test_the_example_prints_no_character_of_the_bundles_that_acts(compiled, example, tmp_path):
    """Neither a terminal nor a line of the report is a bundle's to write."""
    bundle = Path(shutil.copytree(compiled("bert", "SEQ_CLS").bundle, tmp_path / "bundle"))
    words = "\x1b[2J\x9b31m\u202e\nparity holds"

    def change(_: object, metadata: dict[str, Any]) -> None:
        metadata.update(made_by=words)

    damage.rewrite_reference(bundle, change)
    done = example(bundle)
    assert done.returncode == 0, done.stderr
    assert f"reference: {printable(words)}\n" in done.stdout
    edit(bundle, lambda m: m.update(target=words))
    done = example(bundle)
    assert done.returncode in (2, 3)
    assert printable(done.stderr.replace("\n", "")) == done.stderr.replace("\n", "")
    assert "\nparity holds" not in done.stderr


def test_the_example_says_what_is_wrong_by_its_exit_code(compiled, example, tmp_path):
    source = compiled("bert", "SEQ_CLS").bundle
    bundle = Path(shutil.copytree(source, tmp_path / "no reference"))
    edit(
        bundle,
        lambda m: m.update(files=[one for one in m["files"] if one["role"] != "reference"]),
    )
    done = example(bundle)
    assert done.returncode == 2
    assert "holds no stored reference.\nCompile the checkpoint again" in done.stderr
    bundle = Path(shutil.copytree(source, tmp_path / "damaged"))
    damage.replace(bundle, REFERENCE, b"no reference")
    done = example(bundle)
    assert done.returncode == 2
    assert "not a stored reference" in done.stderr
    bundle = Path(shutil.copytree(source, tmp_path / "elsewhere"))
    edit(bundle, lambda m: m.update(device="cuda"))
    done = example(bundle)
    assert done.returncode == 3
    assert "on cpu, not on 'cuda'" in done.stderr
    assert example(tmp_path / "nothing").returncode == 2
    assert example().returncode == 2


def test_c99_reads_the_report(bundles, built, tmp_path):
    bundle = Path(shutil.copytree(bundles("encoder classifier"), tmp_path / "bundle"))

    def run() -> list[str]:
        return native.checked([str(built / "c_api"), str(bundle), "verify"]).splitlines()[1:]

    def wanted(report: ParityReport) -> list[str]:
        cases = [
            f"default|{one.name}|{one.max_abs:.17g}|{one.top1_agreement:.17g}|{one.passed:d}"
            for one in report.cases
        ]
        count = len(cases)
        past = f"1 The report has {count} cases; there is none with index {count}."
        return [f"parity {report.passed:d}", *cases, past, *report.failures(), *report.notes]

    assert run() == wanted(ptdeploy.verify(bundle))
    change_weights(bundle, other)
    changed = wanted(ptdeploy.verify(bundle))
    assert changed[0] == "parity 0"
    assert run() == changed
    damage.replace(bundle, REFERENCE, b"")
    done = subprocess.run(
        [built / "c_api", bundle, "verify"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "verify: 1: " in done.stdout
    assert "not a stored reference" in done.stdout


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("max_abs", 0.0),
        ("relative", 1e30),
        ("cosine", 2.0),
        ("kl", -1.0),
        ("min_top1_agreement", 2),
    ],
)
def test_the_stored_thresholds_decide_whatever_the_precision(
    bundles, probe, tmp_path, bound, value
):
    """Those that the bundle was proven with: a table of this version's may say something else."""
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    edit(bundle, lambda m: m.update(precision="fp1"))
    damage.rewrite_reference(bundle, lambda _, m: m["thresholds"].update({bound: value}))
    if bound == "max_abs":
        damage.rewrite_reference(bundle, lambda _, m: m["thresholds"].update(relative=0.0))
    ours = ptdeploy.verify(bundle)
    assert ours.passed == (bound == "relative")
    assert_same(verified(probe, bundle), ours)


def test_the_stored_cases_alone_are_run(bundles, probe, tmp_path):
    bundle = Path(shutil.copytree(bundles("fused"), tmp_path / "bundle"))
    cases = [{"rows": [2, 0, 2], "padding": "both"}, {"rows": [1], "padding": "left"}]
    damage.rewrite_reference(bundle, lambda _, m: m.update(cases=cases))
    ours = ptdeploy.verify(bundle)
    own = [one.name for one in ours.cases if not (one.without_prompt or one.mixed)]
    assert own == ["batch 3 both-padded", "alone"]
    assert_same(verified(probe, bundle), ours)
