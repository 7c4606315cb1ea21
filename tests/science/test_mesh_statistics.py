"""Clipped statistics of mesh cells: accurate, robust, and the same for any tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fcnpipe.core.errors import InputError, SpecError
from fcnpipe.science.mesh_statistics import measure_cells
from tests.science.skies import NOISE, SKY, add_stars, noisy, none_bad


def clip_slowly(values):
    """Clip as SExtractor does, with numpy: the reference for one cell."""
    values = values.astype(np.float64)
    kept = values[np.abs(values - values.mean()) <= 2 * values.std()]
    kept = values[np.abs(values - kept.mean()) <= 5 * kept.std()]
    while True:
        median, sigma = np.median(kept), kept.std()
        closer = kept[np.abs(kept - median) <= 3 * sigma]
        if closer.size == kept.size:
            break
        kept = closer
    mean = kept.mean()
    crowded = abs(mean - median) >= 0.3 * sigma
    return (median if crowded else 2.5 * median - 1.5 * mean), sigma, kept.size


@pytest.mark.parametrize("seed", range(8))
def test_cell_agrees_with_the_slow_version(seed):
    image = add_stars(noisy((64, 64), seed), 3 * seed, seed)
    cells = measure_cells(image, none_bad(image), 64)
    sky, noise, count = clip_slowly(image.ravel())
    assert abs(cells.sky[0, 0] - sky) < 0.08 * noise
    assert abs(cells.noise[0, 0] / noise - 1) < 0.02
    assert abs(cells.good[0, 0] - count / 4096) < 0.01


def test_sky_and_noise_of_pure_noise():
    image = noisy((640, 640))
    cells = measure_cells(image, none_bad(image), 64)
    assert abs(cells.sky.mean() - SKY) < 0.01 * NOISE
    assert cells.sky.std() < 0.05 * NOISE
    # Clipping at 3 sigma lowers the standard deviation of a Gaussian by 1.4 %.
    assert abs(cells.noise.mean() / NOISE - 0.986) < 0.003


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.5, 0.7])
def test_whole_numbers_do_not_bias_the_sky(fraction):
    image = np.round(noisy((640, 640), sky=SKY + fraction, noise=2.0))
    cells = measure_cells(image, none_bad(image), 64)
    assert abs(cells.sky.mean() - SKY - fraction) < 0.05 * 2.0


def test_bad_and_not_finite_pixels_do_not_count():
    image = noisy((64, 128))
    bad = np.random.default_rng(1).random(image.shape) < 0.3
    clean = measure_cells(image, bad, 64)
    image[bad] = np.random.default_rng(2).choice([np.nan, np.inf, -np.inf], bad.sum())
    dirty = measure_cells(image, none_bad(image), 64)
    for field in ("sky", "noise", "good"):
        assert_array_equal(getattr(clean, field), getattr(dirty, field))
    assert np.all(clean.good < 0.75)
    assert_allclose(clean.sky, SKY, atol=0.2 * NOISE)


@pytest.mark.parametrize("outlier", [1e4, 1e10, 1e30, -1e30, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (13, 27)])
def test_an_outlier_of_any_size_changes_nothing(outlier, place):
    image = noisy((64, 64))
    image[place] = outlier
    cells = measure_cells(image, none_bad(image), 64)
    assert abs(cells.sky[0, 0] - SKY) < 0.15 * NOISE
    assert abs(cells.noise[0, 0] / NOISE - 1) < 0.05


def test_outliers_of_every_size_change_little():
    image = noisy((64, 64))
    rng = np.random.default_rng(1)
    image.ravel()[rng.permutation(4096)[:400]] = 10.0 ** rng.uniform(3, 30, 400)
    cells = measure_cells(image, none_bad(image), 64)
    assert abs(cells.sky[0, 0] - SKY) < 0.15 * NOISE
    assert abs(cells.noise[0, 0] / NOISE - 1) < 0.05
    assert abs(cells.good[0, 0] - 0.9) < 0.01


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e-12, 65535.0, 1e30])
def test_constant_cell_has_its_sky_and_no_noise(value):
    image = np.full((64, 70), value, np.float32)
    cells = measure_cells(image, none_bad(image), 64)
    assert_array_equal(cells.sky, np.float32(value))
    assert_array_equal(cells.noise, 0)


def test_byte_order_and_strides_do_not_matter():
    image = noisy((130, 130))
    expected = measure_cells(image[::2, ::2].copy(), none_bad(image[::2, ::2]), 32)
    found = measure_cells(image.astype(">f4")[::2, ::2], none_bad(image)[::2, ::2], 32)
    assert_array_equal(found.sky, expected.sky)


def test_tiny_units_keep_their_precision():
    image = noisy((128, 128))
    small = image * np.float32(2.0**-60)
    a, b = (measure_cells(i, none_bad(i), 64) for i in (image, small))
    assert_array_equal(a.sky * np.float32(2.0**-60), b.sky)
    assert_array_equal(a.noise * np.float32(2.0**-60), b.noise)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=30),
    cell=st.integers(1, 7),
)
def test_any_pixels_have_finite_statistics_or_are_empty(values, cell):
    image = np.array([values], np.float32)
    cells = measure_cells(image, none_bad(image), cell)
    padded = np.pad(image[0], (0, -len(values) % cell), constant_values=np.nan)
    empty = ~np.isfinite(padded).reshape(-1, cell).any(axis=1)
    assert_array_equal(np.isnan(cells.noise[0]), empty)
    assert np.all(cells.noise[0][~empty] >= 0)
    assert np.all((cells.good >= 0) & (cells.good <= 1))
    assert_array_equal(cells.good[0] == 0, empty)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    cell=st.integers(1, 20),
    corners=st.tuples(*[st.integers(0, 80)] * 4),
    seed=st.integers(0, 99),
)
def test_cells_do_not_depend_on_the_tile(shape, cell, corners, seed):
    image = noisy(shape, seed)
    image[np.random.default_rng(seed).random(shape) < 0.1] = np.nan
    whole = measure_cells(image, none_bad(image), cell)
    my, mx = whole.shape
    j0, i0 = corners[0] % my, corners[1] % mx
    j1, i1 = j0 + 1 + corners[2] % (my - j0), i0 + 1 + corners[3] % (mx - i0)
    part = image[j0 * cell : j1 * cell, i0 * cell : i1 * cell]
    cells = measure_cells(part, none_bad(part), cell)
    for field in ("sky", "noise", "good"):
        assert_array_equal(getattr(cells, field), getattr(whole, field)[j0:j1, i0:i1])


@pytest.mark.parametrize("cell", [0, -64])
def test_impossible_cell(cell):
    image = noisy((4, 4))
    with pytest.raises(SpecError, match=f"{cell} px"):
        measure_cells(image, none_bad(image), cell)


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 4)])
def test_impossible_image(shape):
    image = noisy(shape)
    with pytest.raises(InputError, match="shape"):
        measure_cells(image, none_bad(image), 64)


def test_mask_of_another_shape():
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        measure_cells(noisy((4, 4)), np.zeros((3, 4), bool), 64)
