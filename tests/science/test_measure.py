"""Columns against photutils and sep on simulated sources, and the hard single cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sep
from hypothesis import given
from hypothesis import strategies as st
from photutils.geometry import circular_overlap_grid, elliptical_overlap_grid
from photutils.segmentation import SegmentationImage, SourceCatalog
from scipy import ndimage

from fcnpipe.core.geometry import Box
from fcnpipe.core.records import SourceFlag
from fcnpipe.science import measure
from fcnpipe.science.measure import (
    Columns,
    Pixels,
    Region,
    accumulate,
    finish,
    measure_apertures,
    quantise_flux,
    quantise_labelled,
    quantise_variance,
)

UNIT = 2.0**-24
VARIANCE_UNIT = 2.0**-40
SHAPE = (300, 320)


def blob(
    centre: tuple[float, float], axes: tuple[float, float], angle: float, flux: float
) -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    dy, dx = y - centre[0], x - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / axes[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / axes[1]
    return flux / (2 * np.pi * axes[0] * axes[1]) * np.exp(-0.5 * (u * u + v * v))


def crowd(seed: int = 5, count: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Sources that overlap, on noise of 1: image and labels."""
    rng = np.random.default_rng(seed)
    image, best = np.zeros(SHAPE), np.full(SHAPE, 1.5)
    labels = np.zeros(SHAPE, np.int32)
    for label in range(1, count + 1):
        centre = rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1])
        axes = np.sort(rng.uniform(1.2, 4.5, 2))[::-1]
        source = blob(centre, tuple(axes), rng.uniform(0, np.pi), 10 ** rng.uniform(2.8, 4.3))
        image += source
        labels[source > best] = label
        best = np.maximum(best, source)
    image = (image + rng.standard_normal(SHAPE)).astype(np.float32)
    return image, renumber(labels)


def renumber(labels: np.ndarray) -> np.ndarray:
    _, dense = np.unique(labels, return_inverse=True)
    return dense.reshape(labels.shape).astype(np.int32)


def pixels_of(
    image: np.ndarray, labels: np.ndarray, noise: np.ndarray, flags: np.ndarray
) -> Pixels:
    return Pixels(
        labels,
        measure.quantise_flux(np.where(flags & 3, 0, image), UNIT),
        measure.quantise_variance(noise**2, VARIANCE_UNIT),
        np.full((1, *image.shape), 255, np.uint8),
        np.zeros(image.shape, np.uint16),
        flags,
        Box(0, 0, *image.shape),
        image.shape,
    )


def columns_of(pixels: Pixels) -> Columns:
    where = ndimage.maximum_position(
        pixels.value, pixels.labels, np.arange(1, pixels.labels.max() + 1)
    )
    sums = accumulate(pixels, np.array(where, np.int64))
    return finish(sums, UNIT, VARIANCE_UNIT, pixels.shape[1])


def region_of(
    image: np.ndarray, labels: np.ndarray, noise: np.ndarray, flags: np.ndarray
) -> Region:
    return Region(image, noise, labels, flags, Box(0, 0, *image.shape), image.shape)


def measured(image: np.ndarray, labels: np.ndarray, flags: np.ndarray | None = None) -> Columns:
    """All columns of a scene whose noise is 1."""
    noise = np.ones(image.shape, np.float32)
    bits = np.zeros(image.shape, np.uint8) if flags is None else flags
    columns = columns_of(pixels_of(image, labels, noise, bits))
    return columns | measure_apertures(columns, region_of(image, labels, noise, bits))


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, Columns, SourceCatalog]:
    image, labels = crowd()
    noise = np.random.default_rng(1).uniform(0.8, 1.2, SHAPE).astype(np.float32)
    flags = np.zeros(SHAPE, np.uint8)
    columns = columns_of(pixels_of(image, labels, noise, flags))
    columns |= measure_apertures(columns, region_of(image, labels, noise, flags))
    peer = SourceCatalog(image.astype(float), SegmentationImage(labels), error=noise.astype(float))
    return image, labels, noise, columns, peer


@pytest.mark.parametrize(
    "name",
    [
        "label", "x_centroid", "y_centroid", "bbox_xmin", "bbox_xmax", "bbox_ymin", "bbox_ymax",
        "area", "covariance_xx", "covariance_xy", "covariance_yy", "semimajor_axis",
        "semiminor_axis", "orientation", "eccentricity", "elongation", "ellipticity", "ellipse_cxx",
        "ellipse_cxy", "ellipse_cyy", "fwhm", "segment_flux", "segment_flux_err", "max_value",
        "min_value", "max_value_xindex", "max_value_yindex", "min_value_xindex", "min_value_yindex",
    ],
)  # fmt: skip
def test_isophotal_columns_are_those_of_photutils(scene, name):
    *_, columns, peer = scene
    np.testing.assert_allclose(columns[name], np.asarray(getattr(peer, name)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["kron_radius", "kron_flux", "kron_flux_err"])
def test_kron_columns_are_those_of_photutils(scene, name):
    *_, columns, peer = scene
    np.testing.assert_allclose(columns[name], np.asarray(getattr(peer, name)), rtol=1e-6)


def test_half_light_radius_is_the_flux_radius_of_photutils(scene):
    *_, columns, peer = scene
    expected = np.asarray(peer.flux_radius(0.5))
    np.testing.assert_allclose(columns["half_light_radius"], expected, rtol=1e-6)


def test_windowed_position_is_that_of_photutils_nearly(scene):
    """It differs by 2 / 2.35 against the exact FWHM, and by where the neighbours are mirrored."""
    *_, columns, peer = scene
    off = np.hypot(
        columns["x_winpos"] - peer.x_centroid_win, columns["y_winpos"] - peer.y_centroid_win
    )
    assert np.median(off) < 2e-4
    assert np.quantile(off, 0.9) < 0.02


def test_windowed_position_is_that_of_sep_for_lone_sources():
    image, labels = np.zeros(SHAPE), np.zeros(SHAPE, np.int32)
    for k, (y, x) in enumerate([(60.3, 60.8), (60.0, 230.4), (200.7, 90.2), (210.5, 240.5)], 1):
        source = blob((y, x), (2.0 + 0.3 * k, 2.0), 0.4 * k, 4000)
        image += source
        labels[source > 1.5] = k
    image = (image + np.random.default_rng(2).standard_normal(SHAPE)).astype(np.float32)
    columns = measured(image, labels)
    sigma = columns["half_light_radius"] * 2 / 2.35
    x, y, _ = sep.winpos(
        image.astype(float), columns["x_centroid"], columns["y_centroid"], sigma, subpix=0
    )
    np.testing.assert_allclose(columns["x_winpos"], x, atol=1e-4)
    np.testing.assert_allclose(columns["y_winpos"], y, atol=1e-4)
    assert np.all(columns["x_winpos"] != columns["x_centroid"])


@pytest.mark.parametrize("radius", [0.3, 0.7071, 1.0, 2.5, 7.3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.31, -0.47), (0.5, 0.5)])
def test_circle_overlap_is_exact(radius, shift):
    expected = circular_overlap_grid(
        -9.5 - shift[0], 9.5 - shift[0], -9.5 - shift[1], 9.5 - shift[1], 19, 19, radius, 1, 1
    )
    circle = measure._Ellipse(radius, radius, 0.0, radius, 0.0, radius)
    np.testing.assert_allclose(shares(circle, shift), expected, atol=1e-12)


@pytest.mark.parametrize("radius", [1.5, 1.77, 2.5, 7.3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.31, -0.47), (0.5, 0.5), (-0.02, 0.23)])
def test_crossed_pixels_and_how_they_fill_are_exact(radius, shift):
    def whole(r):
        edges = (-9.5 - shift[0], 9.5 - shift[0], -9.5 - shift[1], 9.5 - shift[1])
        return circular_overlap_grid(*edges, 19, 19, r, 1, 1)

    span, step = np.arange(-9, 10), 1e-6
    expected, grown = whole(radius), (whole(radius + step) - whole(radius - step)) / (2 * step)
    crossed = 0
    for i, j in np.ndindex(19, 19):
        dy, dx = abs(span[i] - shift[1]), abs(span[j] - shift[0])
        if abs(np.hypot(dy, dx) - radius) < np.sqrt(0.5):
            area, angle = measure._crossed(min(dx, dy), max(dx, dy), radius)
            assert area == pytest.approx(expected[i, j], abs=1e-12)
            assert angle * radius == pytest.approx(grown[i, j], abs=2e-3)
            crossed += 1
    assert crossed > 4 * radius


@pytest.mark.parametrize("axes", [(7.0, 2.0), (8.0, 0.4), (0.6, 0.25), (3.0, 3.0)])
@pytest.mark.parametrize("angle", [0.0, 0.6, np.pi / 2, 2.8, np.pi, 5.1])
def test_ellipse_overlap_is_exact(axes, angle):
    ellipse = measure._cut_ellipse(make_source(axes, angle), 1.0)
    expected = elliptical_overlap_grid(-9.6, 9.4, -9.2, 9.8, 19, 19, *axes, angle, 1, 1)
    np.testing.assert_allclose(shares(ellipse, (0.1, -0.3)), expected, atol=1e-11)


@given(
    st.floats(0.3, 30), st.floats(0.05, 1), st.floats(0, 2 * np.pi), st.floats(-0.5, 0.5),
    st.floats(0.5, 2),
)  # fmt: skip
def test_a_strip_touches_and_fills_the_pixels_that_it_says(a, ratio, angle, shift, scale):
    ellipse = measure._cut_ellipse(make_source((a, a * ratio), angle), scale)
    edge = int(a * scale) + 3
    for y in range(-edge, edge + 1):
        strip = measure._cut_strip(ellipse, y + shift - 0.5)
        if strip[1] <= strip[0]:
            continue
        first, end, low, high = measure._strip_ends(ellipse, strip, shift, -edge, edge + 1)
        for x in range(-edge, edge + 1):
            share = measure._share(ellipse, y + shift, x - shift)
            if not first <= x < end:
                assert abs(share) < 1e-9
            elif low <= x < high:
                assert share == pytest.approx(strip[1] - strip[0], abs=1e-9)


def make_source(axes: tuple[float, float], angle: float) -> measure._Source:
    (a, b), c, s = axes, np.cos(angle), np.sin(angle)
    form = (c / a) ** 2 + (s / b) ** 2, 2 * c * s * (a**-2 - b**-2), (s / a) ** 2 + (c / b) ** 2
    return measure._Source(1, 0.0, 0.0, a, b, c, s, *form)


def shares(ellipse: measure._Ellipse, shift: tuple[float, float]) -> np.ndarray:
    span = np.arange(-9, 10)
    return np.array(
        [[measure._share(ellipse, y - shift[1], x - shift[0]) for x in span] for y in span]
    )


# --- hard single cases ---


def lone(source: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    return source.astype(np.float32), (source > threshold).astype(np.int32)


def test_source_without_positive_pixels_has_finite_columns():
    image, labels = lone(blob((100, 90), (3, 2), 0.0, 2000))
    columns = measured(-image, labels)
    assert columns["segment_flux"][0] < 0
    assert abs(columns["x_centroid"][0] - 90) < 1
    assert abs(columns["y_centroid"][0] - 100) < 1
    assert all(np.isfinite(columns[name]).all() for name in ("semimajor_axis", "x_winpos", "snr"))
    assert columns["flags"][0] & SourceFlag.ISOPHOTE_INCOMPLETE


@pytest.mark.parametrize("where", [(0, 0), (299, 319), (150, 0)])
def test_single_pixel_source_is_measured(where):
    image, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int32)
    image[where], labels[where] = 50, 1
    columns = measured(image, labels)
    assert (columns["y_centroid"][0], columns["x_centroid"][0]) == where
    np.testing.assert_allclose(columns["semimajor_axis"], np.sqrt(1 / 12))
    assert columns["flags"][0] & SourceFlag.TRUNCATED


def test_bad_column_through_a_star_is_mirrored():
    image, labels = lone(blob((100.2, 90.1), (2.5, 2.5), 0.0, 5000), 0.05)
    flags = np.zeros(SHAPE, np.uint8)
    flags[:, 93] = 1
    image[:, 93] = np.nan
    labels[:, 93] = 0
    columns = measured(image, labels, flags)
    assert columns["kron_flux"][0] == pytest.approx(5000, rel=0.02)
    expected = SourceFlag.APERTURE_INCOMPLETE | SourceFlag.ISOPHOTE_INCOMPLETE
    assert columns["flags"][0] & expected == expected


def test_bad_pixels_everywhere_else_abort_nothing():
    image, labels = lone(blob((100, 90), (2, 2), 0.0, 5000))
    flags = (labels == 0).astype(np.uint8)
    image[flags > 0] = np.nan
    columns = measured(image, labels, flags)
    assert np.isfinite(columns["kron_flux"]).all()
    assert columns["flags"][0] & SourceFlag.APERTURE_INCOMPLETE


def test_neighbours_in_more_than_a_tenth_of_the_aperture_are_flagged():
    close = blob((100, 90), (3, 3), 0.0, 5000), blob((100, 99), (3, 3), 0.0, 5000)
    far = blob((250, 250), (3, 3), 0.0, 5000)
    labels = np.zeros(SHAPE, np.int32)
    labels[(close[0] > 0.5) & (close[0] >= close[1])] = 1
    labels[(close[1] > 0.5) & (close[1] > close[0])] = 2
    labels[far > 0.5] = 3
    flags = measured((close[0] + close[1] + far).astype(np.float32), labels)["flags"]
    assert (flags & SourceFlag.NEIGHBOURS).astype(bool).tolist() == [True, True, False]


def test_aperture_beyond_the_cap_is_clipped_and_flagged():
    image, labels = lone(blob((150, 160), (12, 12), 0.0, 1e6))
    noise, flags = np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    columns = columns_of(pixels_of(image, labels, noise, flags))
    free = measure_apertures(columns, region_of(image, labels, noise, flags))
    capped = measure_apertures(columns, region_of(image, labels, noise, flags), cap=20.0)
    assert not free["flags"][0] & SourceFlag.APERTURE_INCOMPLETE
    assert capped["flags"][0] & SourceFlag.APERTURE_INCOMPLETE
    assert 0.5 * free["kron_flux"][0] < capped["kron_flux"][0] < free["kron_flux"][0]


def test_saturated_pixels_are_counted_and_flagged():
    image, labels = lone(blob((100, 90), (2, 2), 0.0, 5000))
    flags = np.zeros(SHAPE, np.uint8)
    flags[100, 89:92] = 4
    columns = measured(image, labels, flags)
    assert columns["saturated_pixels"].tolist() == [3]
    assert columns["flags"].tolist() == [int(SourceFlag.SATURATED)]


def test_bad_neighbour_is_seen_across_the_seam():
    """The bad pixel lies in the next tile; only the pixel of halo in flags shows it."""
    image, labels = lone(blob((100, 90), (2, 2), 0.0, 5000))
    edge = int(np.nonzero(labels.any(axis=0))[0].max()) + 1
    flags = np.zeros(SHAPE, np.uint8)
    flags[100, edge] = 1
    whole = pixels_of(image, labels, np.ones(SHAPE, np.float32), flags)
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
    with pytest.raises(ValueError, match="1 px more"):
        accumulate(dataclasses.replace(tile, flags=flags[:, :edge]), np.array([[100, 90]]))


def test_class_is_the_most_probable_of_those_after_the_first():
    image, labels = lone(blob((100, 90), (2, 2), 0.0, 5000))
    pixels = pixels_of(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    maps = np.zeros((3, *SHAPE), np.uint8)
    maps[0], maps[1], maps[2] = 204, 20, 180
    columns = columns_of(dataclasses.replace(pixels, probability=maps))
    assert columns["class"].tolist() == [2]
    np.testing.assert_allclose(columns["probability"], 0.8)


def test_labels_without_an_anchor_and_values_out_of_range_are_refused():
    image, labels = lone(blob((100, 90), (2, 2), 0.0, 5000))
    pixels = pixels_of(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="no anchor"):
        accumulate(pixels, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="no anchor"):
        accumulate(pixels, np.zeros((2, 2)), np.array([3, 9], np.int32))
    with pytest.raises(ValueError, match="flux exceeds"):
        accumulate(dataclasses.replace(pixels, value=pixels.value * 2**12), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="variance is outside"):
        accumulate(dataclasses.replace(pixels, variance=-pixels.variance), np.zeros((1, 2)))


def test_sums_survive_npz(tmp_path):
    image, labels = crowd(count=6)
    pixels = pixels_of(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    sums = accumulate(pixels, np.zeros((labels.max(), 2)))
    np.savez(tmp_path / "sums.npz", **sums.to_arrays())
    with np.load(tmp_path / "sums.npz") as arrays:
        back = measure.Sums.from_arrays(arrays)
    for name, array in sums.to_arrays().items():
        np.testing.assert_array_equal(getattr(back, name), array)
        assert getattr(back, name).dtype == array.dtype


def test_labelled_pixels_are_quantised_as_arrays_are():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, (40, 30)).astype(np.int32)
    flags = np.where(rng.random(labels.shape) < 0.1, 1, 0).astype(np.uint8)
    flux = rng.normal(0, 1e4, labels.shape).astype(np.float32)
    noise = rng.uniform(0.5, 2, labels.shape).astype(np.float32)
    flux[0], flux[1] = np.inf, np.nan
    for gain in (None, 3.0):
        counts = quantise_labelled((labels, flags), flux, noise, (2.0**-9, 2.0**-12), gain)
        value, sigma = flux.astype(np.float64), noise.astype(np.float64)
        variance = sigma**2 + (np.maximum(value, 0) / gain if gain else 0)
        off = (labels == 0) | (flags != 0)
        for found, expected in zip(
            counts,
            (quantise_flux(flux, 2.0**-9), quantise_variance(variance, 2.0**-12)),
            strict=True,
        ):
            np.testing.assert_array_equal(found, np.where(off, 0, expected))
