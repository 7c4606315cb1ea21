"""Sky and noise: right, robust, and the same bits for any box."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from fcnpipe.core.errors import InputError, SpecError
from fcnpipe.science.background import (
    Cells,
    _local_median,
    estimate,
    evaluate_spline,
    find_trusted,
    fit_background,
    fit_spline,
    measure_cells,
    measure_weight,
    noise_from_weight,
    repair_cells,
    subtract_spline,
    weight_scale,
)

REAL_IMAGES = Path(
    os.environ.get("FCNPIPE_REAL_IMAGES", Path(__file__).parents[3] / "shared" / "data")
)
SKY, NOISE = 100.0, 5.0


def none_bad(image):
    return np.zeros(image.shape, bool)


def noisy(shape, seed=0, sky=SKY, noise=NOISE):
    return np.random.default_rng(seed).normal(sky, noise, shape).astype(np.float32)


def add_stars(image, count, seed, sigma_px=1.8):
    """Add Gaussian stars of 50 to 50,000 counts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-12:13, -12:13]
    profile = np.exp(-(y**2 + x**2) / (2 * sigma_px**2))
    for _ in range(count):
        j, i = (int(rng.integers(12, n - 13)) for n in image.shape)
        flux = 10 ** rng.uniform(1.7, 4.7)
        image[j - 12 : j + 13, i - 12 : i + 13] += flux * profile / profile.sum()
    return image


def sloping_field(size=640, seed=3):
    y, x = np.mgrid[:size, :size]
    sky = SKY + 20.0 * y / size - 30.0 * x / size
    image = (sky + np.random.default_rng(seed).normal(0, NOISE, sky.shape)).astype(np.float32)
    return add_stars(image, size * size // 1000, seed), sky


def clip_slowly(values):
    """Clip as SExtractor does, on sorted values: the obvious version."""
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


# ------------------------------------------------------------------ one cell


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
    # What clipping at 3 sigma leaves of a Gaussian.
    assert abs(cells.noise.mean() / NOISE - 0.986) < 0.003


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.5, 0.7])
def test_whole_numbers_do_not_pull_the_sky(fraction):
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
def test_any_pixels_end_and_give_sane_cells(values, cell):
    image = np.array([values], np.float32)
    cells = measure_cells(image, none_bad(image), cell)
    padded = np.pad(image[0], (0, -len(values) % cell), constant_values=np.nan)
    empty = ~np.isfinite(padded).reshape(-1, cell).any(axis=1)
    assert_array_equal(np.isnan(cells.noise[0]), empty)
    assert np.all(cells.noise[0][~empty] >= 0)
    assert np.all((cells.good >= 0) & (cells.good <= 1))
    assert_array_equal(cells.good[0] == 0, empty)


# ------------------------------------------------------------------ tiles and boxes


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    cell=st.integers(1, 20),
    corners=st.tuples(*[st.integers(0, 80)] * 4),
    seed=st.integers(0, 99),
)
def test_cells_do_not_see_the_tile(shape, cell, corners, seed):
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


@settings(max_examples=60, deadline=None)
@given(
    mesh_shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    cell=st.integers(1, 33),
    corner=st.tuples(st.integers(-40, 150), st.integers(-40, 150)),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
def test_spline_has_the_same_bits_in_any_box(mesh_shape, cell, corner, shape, seed):
    coefficients = fit_spline(np.random.default_rng(seed).normal(SKY, NOISE, mesh_shape))
    whole = evaluate_spline(coefficients, cell, -40, -40, (250, 250), (95.0, 103.0))
    box = evaluate_spline(coefficients, cell, *corner, shape, (95.0, 103.0))
    y, x = corner[0] + 40, corner[1] + 40
    assert_array_equal(box, whole[y : y + shape[0], x : x + shape[1]])


def test_background_has_the_same_bits_in_odd_strips():
    image, _ = sloping_field(300)
    found = estimate(image, none_bad(image), 32)
    for evaluate in (found.sky, found.noise):
        strips = [
            [evaluate(y, x, (min(17, 300 - y), min(111, 300 - x))) for x in range(0, 300, 111)]
            for y in range(0, 300, 17)
        ]
        assert_array_equal(np.block(strips), evaluate(0, 0, (300, 300)))


# ------------------------------------------------------------------ spline


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (3, 1), (6, 7)])
def test_spline_passes_through_the_mesh(shape):
    mesh = np.random.default_rng(5).normal(SKY, NOISE, shape)
    pixels = evaluate_spline(fit_spline(mesh), 9, 0, 0, (9 * shape[0], 9 * shape[1]))
    assert_allclose(pixels[4::9, 4::9], mesh, rtol=1e-6)


def test_spline_is_the_natural_one():
    mesh = np.random.default_rng(6).normal(SKY, NOISE, (5, 7))
    pixels = evaluate_spline(fit_spline(mesh), 11, 5, 5, (45, 67))
    truth = mesh
    for axis, n in enumerate(mesh.shape):
        fine = np.arange(11 * (n - 1) + 1) / 11
        truth = make_interp_spline(np.arange(n), truth, bc_type="natural", axis=axis)(fine)
    assert_allclose(pixels, truth, rtol=1e-6)


@pytest.mark.parametrize("cell", [1, 8, 9])
def test_spline_carries_a_slope_to_the_border(cell):
    y, x = np.mgrid[: 5 * cell, : 4 * cell]
    plane = SKY + 0.3 * y - 0.2 * x
    mesh = plane.reshape(5, cell, 4, cell).mean(axis=(1, 3))
    assert_allclose(evaluate_spline(fit_spline(mesh), cell, 0, 0, plane.shape), plane, rtol=1e-6)


def test_spline_beyond_the_mesh_stays_what_it_was():
    coefficients = fit_spline(np.array([[1.0, 2.0], [3.0, 4.0]]))
    pixels = evaluate_spline(coefficients, 4, -9, -9, (30, 30))
    assert_array_equal(pixels[:, 0], pixels[:, 3])
    assert_array_equal(pixels[-1], pixels[-5])


@settings(max_examples=40, deadline=None)
@given(
    noise=st.lists(st.floats(-10, 10), min_size=6, max_size=6),
    cell=st.integers(1, 16),
)
def test_noise_never_leaves_the_mesh(noise, cell):
    mesh = (10.0 ** np.array(noise)).reshape(2, 3).astype(np.float32)
    cells = Cells(np.zeros_like(mesh), mesh, np.ones_like(mesh))
    found = fit_background(cells, cell, 1)
    pixels = found.noise(0, 0, (2 * cell, 3 * cell))
    assert pixels.min() >= found.cells.noise.min() > 0
    assert pixels.max() <= found.cells.noise.max()


# ------------------------------------------------------------------ repair


def test_filter_is_a_median_that_keeps_the_border_in_place():
    mesh = noisy((9, 11), 4)
    cells = Cells(mesh, np.full_like(mesh, 100), np.ones_like(mesh))
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
    found = estimate(image + galaxy.astype(np.float32), none_bad(image), 64)
    assert not find_trusted(measure_cells(image + galaxy, none_bad(image), 64))[7, 7]
    assert found.sky(500, 480, (1, 1))[0, 0] < SKY + 30
    assert_allclose(found.sky(0, 0, (100, 100)), SKY, atol=0.5 * NOISE)
    assert found.noise(0, 0, image.shape).max() < 2 * NOISE


def test_good_cells_are_trusted():
    image, _ = sloping_field()
    trusted = find_trusted(measure_cells(image, none_bad(image), 64))
    assert trusted.mean() >= 0.97


@pytest.mark.parametrize("padding", [0.0, np.nan, 65535.0])
def test_padding_does_not_leak_into_the_image(padding):
    image = noisy((640, 640), 8)
    image[:, 400:] = padding
    found = estimate(image, none_bad(image), 64)
    assert_allclose(found.sky(0, 0, (640, 400)), SKY, atol=0.5 * NOISE)
    assert_allclose(found.noise(0, 0, (640, 640)), NOISE, rtol=0.2)


def test_cells_with_few_pixels_are_filled():
    image = noisy((192, 192), 9)
    bad = none_bad(image)
    bad[64:128, 64:128] = True
    bad[64:84, 64:84] = False
    cells = measure_cells(image, bad, 64)
    assert_array_equal(find_trusted(cells), np.arange(9).reshape(3, 3) != 4)
    assert abs(repair_cells(cells, 1).sky[1, 1] - SKY) < NOISE


def test_filling_works_inwards_and_is_the_mean_of_the_rim():
    mesh = np.full((5, 9), np.nan, np.float32)
    mesh[:, 0], mesh[:, 8] = 10, 20
    noise = np.where(np.isnan(mesh), np.nan, 1).astype(np.float32)
    cells = Cells(mesh, noise, np.ones_like(mesh))
    filled = repair_cells(cells, 1)
    assert_array_equal(filled.sky[2], [10, 10, 10, 10, 15, 20, 20, 20, 20])
    assert_array_equal(filled.noise, 1)
    row = Cells(mesh[:1, [0, 1, 1, 8]], noise[:1, [0, 1, 1, 8]], np.ones((1, 4), np.float32))
    assert_array_equal(repair_cells(row, 1).sky, [[10, 10, 20, 20]])


def test_image_without_usable_pixel():
    image = np.full((100, 70), np.nan, np.float32)
    found = estimate(image, none_bad(image))
    assert found.is_blank
    assert not found.is_noiseless
    assert_array_equal(found.sky(0, 0, image.shape), 0)
    assert np.isnan(found.noise(0, 0, image.shape)).all()


def test_image_without_noise_says_so():
    image = np.full((100, 70), 3, np.float32)
    image[64:, :] = 5
    found = estimate(image, none_bad(image))
    assert found.is_noiseless
    assert not found.is_blank
    assert_array_equal(found.noise(0, 0, image.shape), 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 7), (65, 64), (129, 63)])
def test_odd_shapes(shape):
    image = noisy(shape, 10)
    found = estimate(image, none_bad(image))
    assert_allclose(found.sky(0, 0, shape), SKY, atol=3 * NOISE)
    assert found.is_noiseless == (shape == (1, 1))


# ------------------------------------------------------------------ weights


def test_weight_gives_the_noise_of_each_pixel():
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


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize("cell", [0, -64])
def test_impossible_cell(cell):
    image = noisy((4, 4))
    with pytest.raises(SpecError, match=f"{cell} px"):
        measure_cells(image, none_bad(image), cell)


@pytest.mark.parametrize("size", [0, 2, -3])
def test_impossible_filter(size):
    image = noisy((4, 4))
    with pytest.raises(SpecError, match="odd"):
        estimate(image, none_bad(image), filter_size=size)


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 4)])
def test_impossible_image(shape):
    image = noisy(shape)
    with pytest.raises(InputError, match="shape"):
        measure_cells(image, none_bad(image), 64)


def test_mask_of_another_shape():
    with pytest.raises(InputError, match=r"\(3, 4\)"):
        measure_cells(noisy((4, 4)), np.zeros((3, 4), bool), 64)


# ------------------------------------------------------------------ beside SEP


def compare_with_sep(image):
    """Median difference of the sky in sigma, and of the noise as a fraction."""
    sep = pytest.importorskip("sep")
    bad = ~np.isfinite(image)
    found = estimate(image, bad, 64)
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
    found = estimate(image, none_bad(image), 64).sky(0, 0, image.shape)
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
        pytest.skip(f"{name} is not here; set FCNPIPE_REAL_IMAGES to its folder")
    with fits.open(REAL_IMAGES / name) as hdus:
        image = np.ascontiguousarray(hdus[extension].data, dtype=np.float32)
    sky_off, noise_off = compare_with_sep(image)
    assert sky_off < 0.05
    assert noise_off < 0.02


def test_sky_is_taken_off_as_it_is_evaluated():
    rng = np.random.default_rng(11)
    coefficients = fit_spline(rng.normal(SKY, NOISE, (5, 7)))
    values = rng.normal(SKY, NOISE, (130, 150)).astype(np.float32)
    expected = values - evaluate_spline(coefficients, 32, 17, 40, values.shape)
    subtract_spline(values, coefficients, 32, 17, 40)
    assert_array_equal(values, expected)
