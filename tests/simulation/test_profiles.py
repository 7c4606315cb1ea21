"""Galaxy stamps against direct integration of the Sersic law."""

import numpy as np
import pytest
from scipy import integrate, special

from fcnpipe.simulation.profiles import (
    DiskStructure,
    SersicComponent,
    draw_stamp,
    expand_in_gaussians,
    extent_px,
    stamp_size,
    surface_brightness,
)
from fcnpipe.simulation.psfs import PsfShape, bin_psf


@pytest.fixture(scope="module")
def sharp():
    return bin_psf(PsfShape(fwhm_px=0.3, beta=100.0))


def _sersic(radius, index):
    scale = special.gammaincinv(2 * index, 0.5)
    total = 2 * np.pi * index * scale ** (-2 * index) * special.gamma(2 * index)
    return np.exp(-scale * radius ** (1 / index)) / total


def _elliptical_radius(size, component):
    y, x = np.indices((size, size)) - size // 2
    cos, sin = np.cos(component.angle), np.sin(component.angle)
    return np.hypot(x * cos + y * sin, (y * cos - x * sin) / component.axis_ratio)


@pytest.mark.parametrize("index", [0.7, 1.0, 2.0, 4.0, 6.0])
def test_gaussians_follow_the_sersic_law(index):
    flux, sigma = expand_in_gaussians(index)
    radius = np.geomspace(0.05, 5.0, 60)
    sum_ = (flux / (2 * np.pi * sigma**2) * np.exp(-0.5 * (radius[:, None] / sigma) ** 2)).sum(1)
    np.testing.assert_allclose(sum_, _sersic(radius, index), rtol=0.06)


@pytest.mark.parametrize("index", [1.0, 4.0])
def test_half_of_the_light_is_within_the_half_light_radius(index):
    flux, sigma = expand_in_gaussians(index)
    inside = (flux * (1 - np.exp(-0.5 / sigma**2))).sum()
    direct, _ = integrate.quad(lambda r: 2 * np.pi * r * _sersic(r, index), 0, 1)
    assert direct == pytest.approx(0.5, abs=1e-6)
    assert inside == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("index", [0.5, 1.0, 2.0])
def test_a_stamp_has_the_flux_and_the_half_light_radius(sharp, index):
    component = SersicComponent(7.0, index, 10.0, 0.6, 0.5)
    stamp = draw_stamp((component,), sharp, (0.0, 0.0), 256)
    assert stamp.sum() == pytest.approx(7.0, rel=5e-3)
    order = np.argsort(_elliptical_radius(256, component), axis=None)
    radius = _elliptical_radius(256, component).ravel()[order]
    half = np.interp(0.5, np.cumsum(stamp.ravel()[order]) / stamp.sum(), radius)
    assert half == pytest.approx(10.0, rel=0.03)


def test_a_stamp_at_a_sub_pixel_phase_equals_the_profile(sharp):
    component = SersicComponent(1.0, 1.0, 12.0)
    stamp = draw_stamp((component,), sharp, (0.25, -0.25), 128)
    y, x = np.indices(stamp.shape) - 64
    radius = np.hypot(y - 0.25, x + 0.25)
    want = _sersic(radius / 12.0, 1.0) / 144.0
    ring = (radius > 5) & (radius < 35)
    np.testing.assert_allclose(stamp[ring], want[ring], rtol=0.02)


def test_arms_keep_the_flux_and_redistribute_light(sharp):
    component = SersicComponent(5.0, 1.0, 10.0)
    plain = draw_stamp((component,), sharp, (0, 0), 128)
    spiral = draw_stamp(
        (component,), sharp, (0, 0), 128, DiskStructure(strength=0.9, clumps=0.5, lane=0.3)
    )
    assert spiral.sum() == pytest.approx(plain.sum(), rel=0.03)
    assert np.abs(spiral - plain).max() > 0.1 * plain.max()


def test_knots_take_their_light_from_the_galaxy(sharp):
    component = SersicComponent(50.0, 1.0, 12.0)
    plain = draw_stamp((component,), sharp, (0, 0), 128, DiskStructure(strength=0.5))
    knotty = draw_stamp((component,), sharp, (0, 0), 128, DiskStructure(strength=0.5, knots=0.2))
    assert knotty.sum() == pytest.approx(plain.sum(), rel=0.01)
    assert knotty.max() > 1.2 * plain.max()
    away = np.hypot(*(np.indices(knotty.shape) - 64)) > 3 * 12 + 8
    np.testing.assert_allclose(knotty[away], 0.8 * plain[away], atol=1e-3 * plain.max())


def test_extent_is_where_the_profile_reaches_the_level():
    component = SersicComponent(1000.0, 1.0, 5.0, axis_ratio=0.5)
    radius = extent_px(component, 0.1)
    assert 1000 * _sersic(radius / 5, 1.0) / (25 * 0.5) == pytest.approx(0.1, rel=0.1)
    assert surface_brightness(1.0)[0] > surface_brightness(1.0)[-1] >= 0


def test_stamps_are_large_enough_or_of_maximum_size():
    assert stamp_size(10) == 24
    assert stamp_size(1e6) == 768
