"""Matched filter: its definition, its maps, and tiles equal to the whole bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fcnpipe.core.errors import ModelError
from fcnpipe.networks import load_model, threshold_of
from fcnpipe.networks.matched_filter import MatchedFilter, compute_maps, filter_image, gaussian_taps
from fcnpipe.testing.networks import NetworkTests, starry


class TestMatchedFilter(NetworkTests):
    @pytest.fixture(params=[1.0, 3.0])
    def model(self, request: pytest.FixtureRequest) -> MatchedFilter:
        return MatchedFilter(request.param)


def filter_slowly(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Compute the filter pixel by pixel: weighted sum of the pixels inside, over its noise."""
    radius, (height, width) = len(taps) // 2, image.shape
    kernel = np.outer(taps, taps).astype(float)
    out = np.empty(image.shape)
    for y in range(height):
        for x in range(width):
            rows = slice(max(y - radius, 0), y + radius + 1)
            columns = slice(max(x - radius, 0), x + radius + 1)
            inside = image[rows, columns]
            y0, x0 = rows.start - y + radius, columns.start - x + radius
            weight = kernel[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]]
            out[y, x] = (weight * inside).sum() / np.sqrt((weight**2).sum())
    return out


@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (20, 5), (17, 23)])
def test_the_filter_equals_its_definition(shape: tuple[int, int]) -> None:
    image = starry(1, shape)[0]
    taps = gaussian_taps(2.5)
    np.testing.assert_allclose(
        filter_image(image, taps), filter_slowly(image, taps), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("fwhm", [1.0, 3.0, 6.0])
def test_white_noise_keeps_unit_variance_up_to_the_border(fwhm: float) -> None:
    noise = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    out = filter_image(noise, gaussian_taps(fwhm))
    assert out[:, :1].std() == pytest.approx(1, abs=0.06)
    assert out[100:-100, 20:-20].std() == pytest.approx(1, abs=0.03)


def test_bands_are_added_and_the_noise_stays_1() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 256, 256)).astype(np.float32)
    elevation = MatchedFilter().predictor()(noise).elevation
    strength = np.sinh(16 * elevation[elevation > 0])
    assert np.sqrt((strength**2).mean()) == pytest.approx(1, abs=0.03)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40), st.integers(1, 40))
def test_any_box_with_its_halo_has_the_same_bits(y0: int, x0: int, height: int, width: int) -> None:
    image, model = starry(1, (80, 70)), MatchedFilter(2.0)
    predictor, halo = model.predictor(), model.halo
    whole = predictor(image).elevation
    rows = slice(max(y0 - halo, 0), y0 + height + halo)
    columns = slice(max(x0 - halo, 0), x0 + width + halo)
    part = predictor(np.ascontiguousarray(image[:, rows, columns])).elevation
    inner = part[y0 - rows.start :, x0 - columns.start :][:height, :width]
    np.testing.assert_array_equal(inner, whole[y0 : y0 + height, x0 : x0 + width])


def test_a_halo_one_pixel_too_short_changes_the_result() -> None:
    image, model = starry(1, (60, 60)), MatchedFilter(2.0)
    short = 20 - (model.halo - 1)
    whole = model.predictor()(image).elevation
    part = model.predictor()(np.ascontiguousarray(image[:, :, short:])).elevation
    assert not np.array_equal(part[:, 20 - short], whole[:, 20])


def test_maps_follow_their_formulas() -> None:
    sigma = np.array([[-2.0, 0.0, 1.5, 5.0, 1e4, 1e7]], np.float32)
    maps = compute_maps(sigma)
    expected = np.clip(np.arcsinh(np.maximum(sigma, 0)) / 16, 0, 1)
    np.testing.assert_allclose(maps.elevation, expected, rtol=1e-6)
    np.testing.assert_allclose(maps.probability[0], stats.norm.cdf(sigma - 4.0), atol=1e-6)


def test_the_threshold_is_in_sigma() -> None:
    header = MatchedFilter().header
    assert threshold_of(header) == pytest.approx(np.arcsinh(4.0) / 16)
    with pytest.raises(ModelError, match=r"outside \(0, 4.44e\+06 sigma\]"):
        threshold_of(header, 1e7)
    sigma = np.float32([[2.9, 3.1]])
    above = compute_maps(sigma).elevation >= threshold_of(header, 3.0)
    assert above.tolist() == [[False, True]]


@pytest.mark.parametrize("fwhm", [0.5, -1, 21, float("nan")])
def test_a_width_out_of_range_is_refused(fwhm: float) -> None:
    with pytest.raises(ModelError, match=r"outside \(0.5, 20\]"):
        load_model("none", fwhm=fwhm)


def test_the_digest_depends_on_the_width() -> None:
    assert load_model("none", fwhm=3).digest == load_model("none", fwhm=3.0).digest
    assert load_model("none", fwhm=3).digest != load_model("none", fwhm=4).digest


def test_the_filter_does_not_import_torch() -> None:
    code = (
        "import sys, numpy; from fcnpipe.networks import load_model;"
        "load_model('none').predictor()(numpy.zeros((1, 8, 8), 'f4'));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
