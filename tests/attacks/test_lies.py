"""A bundle that lies is refused when it is opened, or the lie changes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.lies import LIES, LIES_OF_ANOTHER, Honest, Lie, alike
from attacks.openvino_lies import OPENVINO_LIES
from support import native
from support.native import bits, text_of
from support.refusals import python_refusal, same_refusal

import ptdeploy

ROWS = [[5, 6, 7], [40], [9, 10, 11, 12]]
every_lie = pytest.mark.parametrize("lie", [*LIES, *OPENVINO_LIES], ids=str)


@pytest.fixture(scope="session")
def honest(compiled, bundles) -> Callable[[Honest], Path]:
    """The bundle that a lie is made of."""
    return lambda kind: bundles(kind) if isinstance(kind, str) else compiled(*kind).bundle


@pytest.fixture
def lying(honest, tmp_path) -> Callable[[Lie], Path]:
    def make(lie: Lie) -> Path:
        bundle = Path(shutil.copytree(honest(lie.bundle), tmp_path / "bundle"))
        if lie.target == "openvino":
            native.need_openvino()
        lie.tell(bundle)
        return bundle

    return make


@every_lie
def test_a_lie_is_refused_with_the_reason_or_changes_nothing(honest, lying, lie):
    bundle = lying(lie)
    if lie.reason is None:
        assert alike(ptdeploy.load(bundle), ptdeploy.load(honest(lie.bundle)))
        return
    with pytest.raises(ptdeploy.BundleError, match=re.escape(lie.reason)) as refusal:
        ptdeploy.load(bundle)
    assert refusal.value.fix == lie.fix


@every_lie
def test_a_lie_is_read_in_cpp_as_in_python(lying, probe, lie):
    bundle = lying(lie)
    theirs, ours = probe.ask("open", "d", bundle), python_refusal(bundle)
    assert same_refusal(theirs, ours, "(" not in (lie.reason or "")), (theirs, ours)
    if ours is None:
        rows = [bits(array) for array in ptdeploy.load(bundle).logits(ROWS)]
        assert probe.ask("logits", "d", text_of(ROWS)) == rows


@pytest.mark.parametrize("lie", LIES_OF_ANOTHER, ids=str)
def test_a_lie_about_another_prompt_is_refused_by_both_verify(lying, probe, lie):
    bundle = lying(lie)
    assert lie.reason is not None
    with pytest.raises(ptdeploy.BundleError, match=re.escape(lie.reason)) as refusal:
        ptdeploy.verify(bundle)
    assert probe.ask("open", "v", bundle) == {}
    assert same_refusal(probe.ask("verify", "v"), refusal.value, True)
    with pytest.raises(ptdeploy.BundleError, match=re.escape(lie.reason)):
        ptdeploy.load(bundle).logits(ROWS, prompt="first")
    theirs = probe.ask("logits", "v", text_of(ROWS), "", "all +first")
    assert same_refusal(theirs, refusal.value, True)
