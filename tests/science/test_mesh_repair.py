"""Repair of the mesh: trusted cells, filling of the other cells, median filter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from fcnpipe.core.errors import SpecError
from fcnpipe.science.background import estimate_background
from fcnpipe.science.mesh_repair import _local_median, find_trusted_cells, repair_cells
from fcnpipe.science.mesh_statistics import CellStatistics, measure_cells
from tests.science.skies import NOISE, SKY, noisy, none_bad, sloping_field


def test_filter_is_a_median_that_keeps_the_border_in_place():
    mesh = noisy((9, 11), 4)
    cells = CellStatistics(mesh, np.full_like(mesh, 100), np.ones_like(mesh))
    filtered = repair_cells(cells, 3).sky
    assert_array_equal(filtered[1:-1, 1:-1], ndimage.median_filter(mesh, 3)[1:-1, 1:-1])
    assert_array_equal(filtered[0, 1:-1], ndimage.median_filter(mesh[0], 3)[1:-1])
    assert_array_equal(filtered[0, 0], mesh[0, 0])
    assert_array_equal(repair_cells(cells, 1).sky, mesh)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(-5, 5), st.sampled_from([0.0, 1.0, np.nan])), min_size=12, max_size=12
    ),
    size=st.sampled_from([1, 3, 5]),
)
def test_local_median_agrees_with_numpy(values, size):
    mesh = np.array(values).reshape(3, 4)
    padded = np.pad(mesh, size // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).reshape(12, -1)
    truth = [
        np.nan if np.isnan(v) else np.nanmedian(w) for v, w in zip(values, windows, strict=True)
    ]
    assert_array_equal(_local_median(mesh, size, False).ravel(), truth)


def test_a_galaxy_larger_than_the_filter_is_not_sky():
    image = noisy((960, 960), 7)
    y, x = np.mgrid[:960, :960]
    galaxy = 200 * np.exp(-np.hypot(y - 500, x - 480) / 60)
    found = estimate_background(image + galaxy.astype(np.float32), none_bad(image), 64)
    assert not find_trusted_cells(measure_cells(image + galaxy, none_bad(image), 64))[7, 7]
    assert found.sky(500, 480, (1, 1))[0, 0] < SKY + 30
    assert_allclose(found.sky(0, 0, (100, 100)), SKY, atol=0.5 * NOISE)
    assert found.noise(0, 0, image.shape).max() < 2 * NOISE


def test_good_cells_are_trusted():
    image, _ = sloping_field()
    trusted = find_trusted_cells(measure_cells(image, none_bad(image), 64))
    assert trusted.mean() >= 0.97


@pytest.mark.parametrize("padding", [0.0, np.nan, 65535.0])
def test_padding_does_not_leak_into_the_image(padding):
    image = noisy((640, 640), 8)
    image[:, 400:] = padding
    found = estimate_background(image, none_bad(image), 64)
    assert_allclose(found.sky(0, 0, (640, 400)), SKY, atol=0.5 * NOISE)
    assert_allclose(found.noise(0, 0, (640, 640)), NOISE, rtol=0.2)


def test_cells_with_few_pixels_are_filled():
    image = noisy((192, 192), 9)
    bad = none_bad(image)
    bad[64:128, 64:128] = True
    bad[64:84, 64:84] = False
    cells = measure_cells(image, bad, 64)
    assert_array_equal(find_trusted_cells(cells), np.arange(9).reshape(3, 3) != 4)
    assert abs(repair_cells(cells, 1).sky[1, 1] - SKY) < NOISE


def test_filling_works_inwards_and_is_the_mean_of_the_rim():
    mesh = np.full((5, 9), np.nan, np.float32)
    mesh[:, 0], mesh[:, 8] = 10, 20
    noise = np.where(np.isnan(mesh), np.nan, 1).astype(np.float32)
    cells = CellStatistics(mesh, noise, np.ones_like(mesh))
    filled = repair_cells(cells, 1)
    assert_array_equal(filled.sky[2], [10, 10, 10, 10, 15, 20, 20, 20, 20])
    assert_array_equal(filled.noise, 1)
    row = CellStatistics(
        mesh[:1, [0, 1, 1, 8]], noise[:1, [0, 1, 1, 8]], np.ones((1, 4), np.float32)
    )
    assert_array_equal(repair_cells(row, 1).sky, [[10, 10, 20, 20]])


@pytest.mark.parametrize("size", [0, 2, -3])
def test_impossible_filter(size):
    image = noisy((4, 4))
    with pytest.raises(SpecError, match="odd"):
        estimate_background(image, none_bad(image), filter_size=size)
