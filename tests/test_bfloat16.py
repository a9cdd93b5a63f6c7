"""bfloat16 as arrays that numpy has no type for."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ptdeploy.bfloat16 import from_stored, stored, to_stored


@given(st.lists(st.floats(width=32), min_size=1))
def test_bfloat16_is_kept_as_ml_dtypes_rounds_it(values):
    array = np.array(values, np.float32)
    bits = to_stored(array, "bfloat16")
    want = array.astype(ml_dtypes.bfloat16)
    assert bits.dtype == stored("bfloat16") == np.uint16
    finite = ~np.isnan(array)
    assert np.array_equal(bits[finite], want.view(np.uint16)[finite])
    assert np.array_equal(from_stored(bits)[finite], want.astype(np.float32)[finite])
    assert np.isnan(bits[~finite].view(ml_dtypes.bfloat16).astype(np.float32)).all()
