"""Every deliberate fault of support/faults.py is caught, and its module named."""

from __future__ import annotations

import pytest
from attacks.mutations import Honest, honest, inject
from support.faults import FAULTS, MODELS


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> tuple[str, Honest]:
    return request.param, honest(tmp_path_factory.mktemp("honest"), request.param)


def test_every_fault_of_a_model_is_caught_and_located(model, tmp_path):
    name, one = model
    outcomes = [
        inject(fault, one, tmp_path / str(number))
        for number, fault in enumerate(FAULTS)
        if fault.model == name
    ]
    assert outcomes
    missed = [outcome.fault.name for outcome in outcomes if not outcome.caught]
    assert missed == []
    misplaced = [(o.fault.name, o.module) for o in outcomes if o.module != o.fault.module]
    assert misplaced == []


def test_there_are_enough_faults():
    assert len(FAULTS) >= 25
    assert sum(bool(fault.module) for fault in FAULTS) >= 25
