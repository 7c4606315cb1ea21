"""The spline is natural, straight beyond the mesh, and has the same bits in any box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import make_interp_spline

from fcnpipe.science.mesh_spline import evaluate_spline, fit_spline, subtract_spline
from tests.science.skies import NOISE, SKY


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


def test_spline_is_constant_far_beyond_the_mesh():
    coefficients = fit_spline(np.array([[1.0, 2.0], [3.0, 4.0]]))
    pixels = evaluate_spline(coefficients, 4, -9, -9, (30, 30))
    assert_array_equal(pixels[:, 0], pixels[:, 3])
    assert_array_equal(pixels[-1], pixels[-5])


def test_subtraction_equals_evaluation():
    rng = np.random.default_rng(11)
    coefficients = fit_spline(rng.normal(SKY, NOISE, (5, 7)))
    values = rng.normal(SKY, NOISE, (130, 150)).astype(np.float32)
    expected = values - evaluate_spline(coefficients, 32, 17, 40, values.shape)
    subtract_spline(values, coefficients, 32, 17, 40)
    assert_array_equal(values, expected)
