"""Folding of array axes to (band, y, x), and refusal of arrays that are not images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.core.errors import InputError
from fcnpipe.images.axes import fold_axes


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_colours_as_the_last_axis_are_refused(colours: int) -> None:
    with pytest.raises(InputError, match=r"a.npy has axes .* as if they were \(y, x, band\): move"):
        fold_axes((300, 260, colours), "a.npy")
    assert fold_axes((colours, 300, 260), "a.npy") == (colours, 300, 260)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_axes_are_folded_or_refused(shape: list[int]) -> None:
    if sum(n > 1 for n in shape[:-2]) > 1:
        with pytest.raises(InputError, match="has axes"):
            fold_axes(shape, "a")
    else:
        bands, height, width = fold_axes(shape, "a")
        assert (height, width) == tuple(shape[-2:])
        assert bands * height * width == np.prod(shape)


@pytest.mark.parametrize("shape", [(10**12, 10**12), (10**12, 9, 9), (2**62, 2**62), (-9, -9)])
def test_absurd_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"a.zarr has axes .*(at most|at least)"):
        fold_axes(shape, "a.zarr")


def test_many_axes_are_shortened_in_messages() -> None:
    with pytest.raises(InputError) as caught:
        fold_axes((2,) * 999, "a.fits")
    assert len(str(caught.value)) < 300
