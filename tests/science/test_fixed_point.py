"""Fixed-point rounding of labelled pixels."""

from __future__ import annotations

import numpy as np

from fcnpipe.science.fixed_point import quantise_flux, quantise_labelled, quantise_variance


def test_labelled_pixels_are_rounded_as_arrays_are():
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
