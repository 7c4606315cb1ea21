"""Overlaps of pixels with circles and ellipses, compared with photutils."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photutils.geometry import circular_overlap_grid, elliptical_overlap_grid

from fcnpipe.science import aperture_kernels as kernels


@pytest.mark.parametrize("radius", [0.3, 0.7071, 1.0, 2.5, 7.3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.31, -0.47), (0.5, 0.5)])
def test_circle_overlap_is_exact(radius, shift):
    expected = circular_overlap_grid(
        -9.5 - shift[0], 9.5 - shift[0], -9.5 - shift[1], 9.5 - shift[1], 19, 19, radius, 1, 1
    )
    circle = kernels._Ellipse(radius, radius, 0.0, radius, 0.0, radius)
    np.testing.assert_allclose(overlaps(circle, shift), expected, atol=1e-12)


@pytest.mark.parametrize("radius", [1.5, 1.77, 2.5, 7.3])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.31, -0.47), (0.5, 0.5), (-0.02, 0.23)])
def test_crossed_pixels_and_their_arcs_are_exact(radius, shift):
    def all_overlaps(r):
        edges = (-9.5 - shift[0], 9.5 - shift[0], -9.5 - shift[1], 9.5 - shift[1])
        return circular_overlap_grid(*edges, 19, 19, r, 1, 1)

    span, step = np.arange(-9, 10), 1e-6
    expected, grown = (
        all_overlaps(radius),
        (all_overlaps(radius + step) - all_overlaps(radius - step)) / (2 * step),
    )
    crossed = 0
    for i, j in np.ndindex(19, 19):
        dy, dx = abs(span[i] - shift[1]), abs(span[j] - shift[0])
        if abs(np.hypot(dy, dx) - radius) < np.sqrt(0.5):
            area, angle = kernels._circle_overlap(min(dx, dy), max(dx, dy), radius)
            assert area == pytest.approx(expected[i, j], abs=1e-12)
            assert angle * radius == pytest.approx(grown[i, j], abs=2e-3)
            crossed += 1
    assert crossed > 4 * radius


@pytest.mark.parametrize("axes", [(7.0, 2.0), (8.0, 0.4), (0.6, 0.25), (3.0, 3.0)])
@pytest.mark.parametrize("angle", [0.0, 0.6, np.pi / 2, 2.8, np.pi, 5.1])
def test_ellipse_overlap_is_exact(axes, angle):
    ellipse = kernels._make_ellipse(make_source(axes, angle), 1.0)
    expected = elliptical_overlap_grid(-9.6, 9.4, -9.2, 9.8, 19, 19, *axes, angle, 1, 1)
    np.testing.assert_allclose(overlaps(ellipse, (0.1, -0.3)), expected, atol=1e-11)


@given(
    st.floats(0.3, 30), st.floats(0.05, 1), st.floats(0, 2 * np.pi), st.floats(-0.5, 0.5),
    st.floats(0.5, 2),
)  # fmt: skip
def test_a_strip_touches_and_fills_the_reported_pixels(a, ratio, angle, shift, scale):
    ellipse = kernels._make_ellipse(make_source((a, a * ratio), angle), scale)
    edge = int(a * scale) + 3
    for y in range(-edge, edge + 1):
        strip = kernels._make_strip(ellipse, y + shift - 0.5)
        if strip[1] <= strip[0]:
            continue
        first, end, low, high = kernels._strip_pixels(ellipse, strip, shift, -edge, edge + 1)
        for x in range(-edge, edge + 1):
            overlap = kernels._overlap(ellipse, y + shift, x - shift)
            if not first <= x < end:
                assert abs(overlap) < 1e-9
            elif low <= x < high:
                assert overlap == pytest.approx(strip[1] - strip[0], abs=1e-9)


def make_source(axes: tuple[float, float], angle: float) -> kernels._Source:
    (a, b), c, s = axes, np.cos(angle), np.sin(angle)
    form = (c / a) ** 2 + (s / b) ** 2, 2 * c * s * (a**-2 - b**-2), (s / a) ** 2 + (c / b) ** 2
    return kernels._Source(1, 0.0, 0.0, a, b, c, s, *form)


def overlaps(ellipse: kernels._Ellipse, shift: tuple[float, float]) -> np.ndarray:
    span = np.arange(-9, 10)
    return np.array(
        [[kernels._overlap(ellipse, y - shift[1], x - shift[0]) for x in span] for y in span]
    )
