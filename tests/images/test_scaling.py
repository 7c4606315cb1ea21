"""Conversion of stored numbers to pixel values."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.images.scaling import STRIP_ROWS, Scaling


@given(
    st.integers(-1000, 1000),
    st.sampled_from([1.0, 0.5, -3.0]),
    st.sampled_from([0.0, 32768.0, 0.25]),
    st.sampled_from([None, 7]),
)
def test_integers_are_scaled_and_blank_is_nan(
    stored: int, factor: float, offset: float, blank: int | None
) -> None:
    scaling = Scaling(factor, offset, blank)
    array = np.array([[stored, 7]], np.int16)
    expected = np.nan if stored == blank else stored * factor + offset
    np.testing.assert_equal(scaling.to_float(array)[0, 0], np.float32(expected))
    whole = -1 if np.isnan(expected) else int(np.sign(expected) * np.ceil(abs(expected)))
    assert scaling.to_integer(array)[0, 0] == whole
    assert (scaling.to_integer(array)[0, 1] == -1) == (blank == 7)


def test_scaling_does_not_depend_on_strips() -> None:
    values = (
        np.random.default_rng(2).integers(-(2**31), 2**31, (3 * STRIP_ROWS + 5, 11)).astype(">i4")
    )
    scaling = Scaling(1.1e-3, 5.0, blank=int(values[4, 4]))
    rows = [scaling.to_float(values[i : i + 1]) for i in range(len(values))]
    np.testing.assert_array_equal(scaling.to_float(values), np.concatenate(rows))


def test_doubles_out_of_range_are_infinite() -> None:
    values = Scaling().to_float(np.array([[1e300, -1e300, np.nan, 1.0]]))
    np.testing.assert_array_equal(values, np.array([[np.inf, -np.inf, np.nan, 1]], np.float32))
