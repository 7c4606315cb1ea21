"""Blur kernels, and pairs of sharp and blurred images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fcnpipe.simulation.blurred_images import KERNEL_SIDE, KINDS, draw_kernel, draw_pair


@pytest.mark.parametrize("seed", range(20))
def test_a_kernel_spreads_light_and_keeps_its_sum(seed: int) -> None:
    kernel = draw_kernel(np.random.default_rng(seed))
    assert kernel.shape == (KERNEL_SIDE, KERNEL_SIDE)
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(ndimage.center_of_mass(kernel), KERNEL_SIDE // 2, atol=0.3)
    spread = [np.flatnonzero(kernel.sum(axis=axis) > 1e-3) for axis in (0, 1)]
    assert 4 <= max(np.ptp(line) for line in spread) <= 31


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_observation_is_the_blurred_truth(kind: str) -> None:
    pair = draw_pair(kind, (80, 100), 3, (0.0, 0.0))
    assert pair.truth.min() >= 0
    assert pair.truth.max() <= 1
    assert pair.truth.std() > 0.005
    inner = (slice(KERNEL_SIDE, -KERNEL_SIDE),) * 2
    expected = ndimage.convolve(pair.truth.astype(float), pair.kernel)
    np.testing.assert_allclose(pair.observed[inner], expected[inner], atol=1e-5)


def test_the_noise_has_the_standard_deviation_that_the_pair_states() -> None:
    noisy, clean = (draw_pair("stars", (200, 200), 5, (a, a)) for a in (7 / 255, 0.0))
    np.testing.assert_array_equal(noisy.truth, clean.truth)
    assert (noisy.observed - clean.observed).std() == pytest.approx(noisy.noise, rel=0.02)


def test_equal_seeds_return_equal_pairs() -> None:
    first, again, other = (draw_pair("text", (64, 64), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.observed, again.observed)
    assert (first.truth != other.truth).any()
