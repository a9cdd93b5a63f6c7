"""Each reader on its seeds, on everything that was ever found, and on a few changes of them."""

from __future__ import annotations

import random

import pytest
from attacks.fuzz import SHARES, Harness
from attacks.mutate import mutate
from attacks.readers import CORPUS, READERS


def test_every_reader_has_a_share_of_the_executions():
    assert SHARES.keys() == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_what_is_nearly_right_is_read_or_refused(tmp_path, name):
    harness = Harness(name, tmp_path)
    seeds = harness.reader.seeds(tmp_path)
    assert {harness.run(seed) for seed in seeds} <= {"read", "refused"}
    assert harness.counts["refused"] == 0, "the seeds are files as they should be"
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    rng = random.Random(7)
    for data in [*kept, *(mutate(rng.choice(seeds), rng) for _ in range(60))]:
        harness.run(data)
    assert harness.findings == {}
    assert harness.counts["refused"] > 0
