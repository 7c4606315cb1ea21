"""Shrinking of maps for the pyramid, compared with a slow and obvious implementation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.stores import Layout, ZarrStore
from fcnpipe.stores.pyramid import shrink_labels, shrink_probability, shrink_science
from fcnpipe.testing.small_run import IDENTITY

few = settings(max_examples=50, deadline=None)
seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 9)


def reduce_slowly(data: NDArray, reduce) -> NDArray:  # type: ignore[no-untyped-def, type-arg]
    """Reduce each 2 x 2 square of the last two axes; an odd last row or column counts twice."""
    *lead, height, width = data.shape
    small = np.empty((*lead, -(-height // 2), -(-width // 2)), data.dtype)
    for place in np.ndindex(small.shape):
        y, x = (2 * n for n in place[-2:])
        rows, columns = [y, min(y + 1, height - 1)], [x, min(x + 1, width - 1)]
        small[place] = reduce(data[place[:-2]][np.ix_(rows, columns)].ravel().tolist())
    return small


def most_frequent(values: list[int]) -> int:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def rounded_mean(values: list[int]) -> int:
    return (sum(values) + 2) // 4


def mean_without_nan(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def pad_to_even(data: NDArray) -> NDArray:  # type: ignore[type-arg]
    pad = [(0, 0)] * (data.ndim - 2) + [(0, n % 2) for n in data.shape[-2:]]
    return np.pad(data, pad, mode="edge")


@given(seeds, sizes, sizes)
@few
def test_shrunk_labels_are_the_most_frequent(seed: int, height: int, width: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (height, width), np.int32)
    np.testing.assert_array_equal(
        shrink_labels(pad_to_even(labels)), reduce_slowly(labels, most_frequent)
    )
    assert shrink_labels(pad_to_even(labels)).dtype == np.int32


@given(seeds, sizes, sizes)
@few
def test_shrunk_probability_is_the_rounded_mean(seed: int, height: int, width: int) -> None:
    maps = np.random.default_rng(seed).integers(0, 256, (2, height, width)).astype(np.uint8)
    np.testing.assert_array_equal(
        shrink_probability(pad_to_even(maps)), reduce_slowly(maps, rounded_mean)
    )


@given(seeds, sizes, sizes)
@few
def test_shrunk_science_is_the_mean_without_nan(seed: int, height: int, width: int) -> None:
    random = np.random.default_rng(seed)
    bands = random.normal(size=(2, height, width)).astype(np.float32)
    bands[random.random(bands.shape) < 0.5] = np.nan
    np.testing.assert_array_equal(
        shrink_science(pad_to_even(bands)), reduce_slowly(bands, mean_without_nan)
    )


@pytest.mark.parametrize("shape", [(131, 203), (129, 64), (65, 257)])
def test_levels_of_an_odd_image(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(1).integers(0, 3, shape, np.int32)
    layout = Layout(shape, (64, 64), (-(-shape[0] // 64), -(-shape[1] // 64)))
    store = ZarrStore.create(tmp_path / "out.zarr", layout, IDENTITY)
    for tile in layout.grid:
        store.write_tile("label", tile.core, labels[tile.core.slices])
    store.write_pyramid()
    expected = reduce_slowly(labels, most_frequent)
    np.testing.assert_array_equal(store.read("label", Box(0, 0, *expected.shape), 1), expected)
