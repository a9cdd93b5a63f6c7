"""Libraries' advice to their developers is not heard while they work for us."""

from __future__ import annotations

import logging
import warnings

import pytest

from ptdeploy.source.base import quiet_libraries


@pytest.mark.parametrize("name", ["torch.onnx", "transformers", "onnxscript"])
def test_a_library_is_quiet_up_to_the_end_of_the_outermost_block(name):
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with quiet_libraries():
            with quiet_libraries():
                assert logger.level == logging.ERROR
            assert logger.level == logging.ERROR
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_warnings_are_heard_again_after_a_block_that_failed():
    def fail() -> None:
        with quiet_libraries():
            warnings.warn("advice", stacklevel=1)
            raise ValueError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"^$"):
            fail()
        with pytest.raises(UserWarning, match="advice"):
            warnings.warn("advice", stacklevel=1)
