"""Sums over tiles: seams, invalid input, storage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fcnpipe.core.geometry import Box
from fcnpipe.science.sums import Sums, accumulate
from tests.science.simulated_sources import (
    SHAPE,
    label_above,
    make_crowd,
    make_gaussian,
    make_pixels,
)


def test_bad_neighbour_across_a_seam_is_counted():
    """The bad pixel is in the next tile; only the margin of ``flags`` holds it."""
    image, labels = label_above(make_gaussian((100, 90), (2, 2), 0.0, 5000))
    edge = int(np.nonzero(labels.any(axis=0))[0].max()) + 1
    flags = np.zeros(SHAPE, np.uint8)
    flags[100, edge] = 1
    whole = make_pixels(image, labels, np.ones(SHAPE, np.float32), flags)
    core = Box(0, 0, SHAPE[0], edge)
    cut = {
        name: getattr(whole, name)[core.slices]
        for name in ("labels", "value", "variance", "elevation")
    }
    tile = dataclasses.replace(
        whole,
        **cut,
        probability=whole.probability[:, :, :edge],
        flags=flags[:, : edge + 1],
        core=core,
    )
    sums = accumulate(tile, np.array([[100, 90]]))
    assert sums.beside_bad[0] > 0
    with pytest.raises(ValueError, match="margin of 1 px"):
        accumulate(dataclasses.replace(tile, flags=flags[:, :edge]), np.array([[100, 90]]))


def test_labels_without_an_anchor_and_values_out_of_range_are_refused():
    image, labels = label_above(make_gaussian((100, 90), (2, 2), 0.0, 5000))
    pixels = make_pixels(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="no anchor"):
        accumulate(pixels, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="no anchor"):
        accumulate(pixels, np.zeros((2, 2)), np.array([3, 9], np.int32))
    with pytest.raises(ValueError, match="flux exceeds"):
        accumulate(dataclasses.replace(pixels, value=pixels.value * 2**12), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="variance is outside"):
        accumulate(dataclasses.replace(pixels, variance=-pixels.variance), np.zeros((1, 2)))


def test_sums_are_unchanged_by_npz(tmp_path):
    image, labels = make_crowd(count=6)
    pixels = make_pixels(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    sums = accumulate(pixels, np.zeros((labels.max(), 2)))
    np.savez(tmp_path / "sums.npz", **sums.to_arrays())
    with np.load(tmp_path / "sums.npz") as arrays:
        back = Sums.from_arrays(arrays)
    for name, array in sums.to_arrays().items():
        np.testing.assert_array_equal(getattr(back, name), array)
        assert getattr(back, name).dtype == array.dtype
