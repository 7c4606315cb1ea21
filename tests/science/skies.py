"""Simulated skies for the tests of the background."""

from __future__ import annotations

import numpy as np

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
