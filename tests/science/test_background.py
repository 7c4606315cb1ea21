"""Sky and noise of an image, compared with SEP, and noise from weight maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fcnpipe.science.background import (
    estimate_background,
    fit_background,
    noise_from_weight,
    weight_scale,
)
from fcnpipe.science.mesh_statistics import CellStatistics, measure_cells, measure_weight
from tests.science.skies import NOISE, SKY, noisy, none_bad, sloping_field

REAL_IMAGES = Path(
    os.environ.get("FCNPIPE_REAL_IMAGES", Path(__file__).parents[3] / "shared" / "data")
)


def test_background_has_the_same_bits_in_odd_strips():
    image, _ = sloping_field(300)
    found = estimate_background(image, none_bad(image), 32)
    for evaluate in (found.sky, found.noise):
        strips = [
            [evaluate(y, x, (min(17, 300 - y), min(111, 300 - x))) for x in range(0, 300, 111)]
            for y in range(0, 300, 17)
        ]
        assert_array_equal(np.block(strips), evaluate(0, 0, (300, 300)))


@settings(max_examples=40, deadline=None)
@given(
    noise=st.lists(st.floats(-10, 10), min_size=6, max_size=6),
    cell=st.integers(1, 16),
)
def test_noise_never_leaves_the_mesh(noise, cell):
    mesh = (10.0 ** np.array(noise)).reshape(2, 3).astype(np.float32)
    cells = CellStatistics(np.zeros_like(mesh), mesh, np.ones_like(mesh))
    found = fit_background(cells, cell, 1)
    pixels = found.noise(0, 0, (2 * cell, 3 * cell))
    assert pixels.min() >= found.cells.noise.min() > 0
    assert pixels.max() <= found.cells.noise.max()


def test_image_without_usable_pixel_is_blank():
    image = np.full((100, 70), np.nan, np.float32)
    found = estimate_background(image, none_bad(image))
    assert found.is_blank
    assert not found.is_noiseless
    assert_array_equal(found.sky(0, 0, image.shape), 0)
    assert np.isnan(found.noise(0, 0, image.shape)).all()


def test_image_without_noise_is_noiseless():
    image = np.full((100, 70), 3, np.float32)
    image[64:, :] = 5
    found = estimate_background(image, none_bad(image))
    assert found.is_noiseless
    assert not found.is_blank
    assert_array_equal(found.noise(0, 0, image.shape), 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 7), (65, 64), (129, 63)])
def test_odd_shapes(shape):
    image = noisy(shape, 10)
    found = estimate_background(image, none_bad(image))
    assert_allclose(found.sky(0, 0, shape), SKY, atol=3 * NOISE)
    assert found.is_noiseless == (shape == (1, 1))


def test_noise_of_each_pixel_from_its_weight():
    noise = np.where(np.arange(256) < 100, 2.0, 8.0) * np.ones((256, 1))
    image = (SKY + noise * np.random.default_rng(11).normal(size=(256, 256))).astype(np.float32)
    weight = (7 / noise**2).astype(np.float32)
    weight[40:50, 40:50] = 0
    weight[60, 60] = np.nan
    bad = none_bad(image)
    cells = measure_cells(image, bad, 32)
    scale = weight_scale(cells.noise, measure_weight(weight, bad, 32))
    found = noise_from_weight(weight, scale)
    lost = ~(weight > 0)
    assert np.isinf(found[lost]).all()
    assert_allclose(found[~lost], 0.986 * noise[~lost], rtol=0.03)


def test_weight_without_any_pixel_has_no_scale():
    weight = np.zeros((40, 40), np.float32)
    cells = measure_weight(weight, none_bad(weight), 16)
    assert np.isnan(cells).all()
    assert np.isnan(weight_scale(np.ones_like(cells), cells))
    assert np.isinf(noise_from_weight(weight, 1.0)).all()


def compare_with_sep(image):
    """Return the median difference of the sky in sigma, and of the noise as a fraction."""
    sep = pytest.importorskip("sep")
    bad = ~np.isfinite(image)
    found = estimate_background(image, bad, 64)
    peer = sep.Background(image, mask=bad)
    noise = peer.rms()
    sky_off = np.abs(found.sky(0, 0, image.shape) - peer.back()) / noise
    noise_off = np.abs(found.noise(0, 0, image.shape) / noise - 1)
    return np.median(sky_off), np.median(noise_off)


def test_simulated_field_agrees_with_sep_and_with_the_truth():
    image, sky = sloping_field()
    sky_off, noise_off = compare_with_sep(image)
    assert sky_off < 0.02
    assert noise_off < 0.01
    found = estimate_background(image, none_bad(image), 64).sky(0, 0, image.shape)
    assert np.median(np.abs(found - sky)) < 0.1 * NOISE


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("kids_g.fits", 1),
        ("kids_i.fits", 1),
        ("spitzer_glimpse.fits", 0),
        ("m13_blue_0001.fits", 0),
        ("horsehead.fits", 0),
        ("decam_OBS04a.fits", 0),
        ("decam_ooi_z.fits", 1),
    ],
)
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_real_image_agrees_with_sep(name, extension):
    fits = pytest.importorskip("astropy.io.fits")
    if not (REAL_IMAGES / name).exists():
        pytest.skip(f"{name} is missing; set FCNPIPE_REAL_IMAGES to its folder")
    with fits.open(REAL_IMAGES / name) as hdus:
        image = np.ascontiguousarray(hdus[extension].data, dtype=np.float32)
    sky_off, noise_off = compare_with_sep(image)
    assert sky_off < 0.05
    assert noise_off < 0.02
