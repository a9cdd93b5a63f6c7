"""A pack goes into a bundle whose engine takes other lengths and batches than its own did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ptdeploy
from ptdeploy.bundle import read_bundle
from ptdeploy.errors import CheckpointError, InputError
from ptdeploy.parity.reference.store import load_reference

DECODER = ("gpt2", "CAUSAL_LM")


@pytest.fixture
def engine(compiled, tmp_path):
    """A copy of a decoder's bundle with these limits; its prompt has 5 virtual tokens."""

    def get(**limits: int) -> Path:
        bundle = compiled(*DECODER, limits or None).bundle
        return Path(shutil.copytree(bundle, tmp_path / "bundle"))

    return get


def added(bundle: Path, pack: Path):
    ptdeploy.prompt_add(bundle, pack)
    return load_reference(read_bundle(bundle).by_default("other"))


def test_a_shorter_context_takes_a_pack_by_the_rows_that_fit(engine, packed):
    pack = packed(*DECODER).path
    bundle = engine(max_context=40)
    reference = added(bundle, pack)
    # Of rows of 1, 2, 3, 5, 8, 13, 21, 34 and 61 tokens; the prompt takes 3 of the 40 positions.
    assert [row.ids.size for row in reference.rows] == [1, 2, 3, 5, 8, 13, 21, 34]
    assert max(len(case.rows) for case in reference.cases) == 8
    assert reference.greedy
    assert all(one.ids.size + one.tokens.size <= 37 for one in reference.greedy)
    assert ptdeploy.verify(bundle, prompt="other").passed


def test_a_smaller_batch_takes_a_pack_in_its_own_batches(engine, packed):
    reference = added(engine(max_batch=2), packed(*DECODER).path)
    assert len(reference.rows) == 9
    assert max(len(case.rows) for case in reference.cases) == 2


def test_a_pack_of_smaller_batches_is_proven_in_larger_ones(engine, packed):
    reference = added(engine(), packed(*DECODER, options={"max_batch": 2}).path)
    assert max(len(case.rows) for case in reference.cases) == 8


def test_a_longer_context_is_said_to_be_compared_up_to_the_packs_rows(engine, packed):
    pack = packed(*DECODER, options={"max_context": 40}).path
    bundle = ptdeploy.prompt_add(engine(), pack)
    said = "no row of over 37 tokens was run, but the bundle takes up to 61"
    assert any(said in note for note in bundle.notes)


def test_a_pack_of_whose_reference_too_little_fits_is_refused_with_the_reason(engine, packed):
    pack = packed(*DECODER).path
    with pytest.raises(InputError) as refused:
        ptdeploy.prompt_add(engine(max_context=12), pack)
    assert refused.value.problem == (
        f"{pack}: was proven over an engine of a longer context, and no row with its continuation "
        "of its reference fits in the 9 tokens of text that this bundle takes beside it."
    )
    assert "compile CHECKPOINT --over BUNDLE" in refused.value.fix


def test_a_pack_whose_prompt_leaves_no_room_is_refused_for_that(engine, packed):
    pack = packed(*DECODER, name="long", tokens=20).path
    with pytest.raises(CheckpointError, match="20 virtual tokens leave no room for text in the 12"):
        ptdeploy.prompt_add(engine(max_context=12), pack)
