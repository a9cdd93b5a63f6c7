"""Whatever kills a process that writes a bundle, the older bundle or the new one is there."""

from __future__ import annotations

import bisect

import pytest
from attacks import kill_points


@pytest.mark.parametrize("scenario", kill_points.SCENARIOS)
def test_a_kill_leaves_the_old_or_the_new_bundle_and_nothing_for_long(compiled, scenario):
    """A few points of each; `python -m attacks.kill_points BUNDLE` takes all of them."""
    source = compiled("gpt2", "CAUSAL_LM").bundle
    found = kill_points.attack(source, scenario, iter(range(1, 400, 29)))
    assert found.pop("came to its end") == 1
    before = {"none", "new"} if scenario == "new" else {"old", "new", "old, brought back"}
    assert set(found) <= before, found
    assert len(found) > 1, "it is killed before and after"


@pytest.mark.parametrize("scenario", kill_points.ADDING)
def test_a_kill_while_a_prompt_is_added_leaves_the_old_or_the_new_bundle(
    compiled, packed, scenario
):
    bundle, pack = compiled("qwen2", "CAUSAL_LM").bundle, packed("qwen2", "CAUSAL_LM").path
    found = kill_points.attack(bundle, scenario, iter(range(1, 1000, 13)), pack)
    assert found.pop("came to its end") == 1
    assert set(found) <= {"old", "new", "old, brought back"}, found
    assert len(found) > 1, "it is killed before and after"


def _around_the_replacement(source, scenario, ends):
    """What is found at ten points on either side of the first that leaves another bundle."""

    def replaced(point: int) -> bool:
        return set(kill_points.attack(source, scenario, iter([point]), ends=ends)) != {"old"}

    first = bisect.bisect_left(range(600), True, lo=1, key=replaced)
    points = iter(range(first - 10, first + 10))
    return kill_points.attack(source, scenario, points, ends=ends)


def test_the_points_lie_between_all_steps_of_a_replacement(compiled):
    source = compiled("gpt2", "CAUSAL_LM").bundle
    found = _around_the_replacement(source, "replace without exchange", kill_points.dies_at)
    assert set(found) <= {"old", "new", "old, brought back", "came to its end"}, found
    assert found["old"] == 10
    assert found["new"] > 0


@pytest.mark.parametrize("scenario", ["replace", "replace without exchange"])
def test_a_signal_at_any_line_of_a_replacement_leaves_the_old_or_the_new_bundle(compiled, scenario):
    """Nothing has to be brought back later: what the signal ends clears up itself."""
    source = compiled("gpt2", "CAUSAL_LM").bundle
    found = _around_the_replacement(source, scenario, kill_points.ended_at)
    assert found == {"old": 10, "new": 10}
