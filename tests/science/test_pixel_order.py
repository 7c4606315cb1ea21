"""Keys order pixels by elevation, then in raster order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.science.pixel_order import key_elevation, key_index, pixel_key

indices = st.integers(0, 2**45 - 1)
heights = st.integers(0, 65535)


@given(heights, indices, heights, indices)
def test_keys_order_by_elevation_then_raster(e: int, i: int, f: int, j: int) -> None:
    first, second = pixel_key([e, f], [i, j])
    assert (first > second) == ((e, -i) > (f, -j))
    assert (int(key_elevation(first)), int(key_index(first))) == (e, i)
