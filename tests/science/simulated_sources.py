"""Simulated sources with labels, and the columns measured on them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fcnpipe.core.geometry import Box
from fcnpipe.science.aperture_regions import Region
from fcnpipe.science.apertures import measure_apertures
from fcnpipe.science.fixed_point import quantise_flux, quantise_variance
from fcnpipe.science.moments import Columns, measure_isophotes
from fcnpipe.science.sums import Pixels, accumulate

UNIT = 2.0**-24
VARIANCE_UNIT = 2.0**-40
SHAPE = (300, 320)


def make_gaussian(
    centre: tuple[float, float], axes: tuple[float, float], angle: float, flux: float
) -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    dy, dx = y - centre[0], x - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / axes[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / axes[1]
    return flux / (2 * np.pi * axes[0] * axes[1]) * np.exp(-0.5 * (u * u + v * v))


def make_crowd(seed: int = 5, count: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and labels of overlapping sources with noise of standard deviation 1."""
    rng = np.random.default_rng(seed)
    image, best = np.zeros(SHAPE), np.full(SHAPE, 1.5)
    labels = np.zeros(SHAPE, np.int32)
    for label in range(1, count + 1):
        centre = rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1])
        axes = np.sort(rng.uniform(1.2, 4.5, 2))[::-1]
        source = make_gaussian(
            centre, tuple(axes), rng.uniform(0, np.pi), 10 ** rng.uniform(2.8, 4.3)
        )
        image += source
        labels[source > best] = label
        best = np.maximum(best, source)
    image = (image + rng.standard_normal(SHAPE)).astype(np.float32)
    return image, renumber(labels)


def renumber(labels: np.ndarray) -> np.ndarray:
    _, dense = np.unique(labels, return_inverse=True)
    return dense.reshape(labels.shape).astype(np.int32)


def make_pixels(
    image: np.ndarray, labels: np.ndarray, noise: np.ndarray, flags: np.ndarray
) -> Pixels:
    return Pixels(
        labels,
        quantise_flux(np.where(flags & 3, 0, image), UNIT),
        quantise_variance(noise**2, VARIANCE_UNIT),
        np.full((1, *image.shape), 255, np.uint8),
        np.zeros(image.shape, np.uint16),
        flags,
        Box(0, 0, *image.shape),
        image.shape,
    )


def measure_moments(pixels: Pixels) -> Columns:
    where = ndimage.maximum_position(
        pixels.value, pixels.labels, np.arange(1, pixels.labels.max() + 1)
    )
    sums = accumulate(pixels, np.array(where, np.int64))
    return measure_isophotes(sums, UNIT, VARIANCE_UNIT, pixels.shape[1])


def make_region(
    image: np.ndarray, labels: np.ndarray, noise: np.ndarray, flags: np.ndarray
) -> Region:
    return Region(image, noise, labels, flags, Box(0, 0, *image.shape), image.shape)


def measure(image: np.ndarray, labels: np.ndarray, flags: np.ndarray | None = None) -> Columns:
    """Return all columns of an image whose noise has a standard deviation of 1."""
    noise = np.ones(image.shape, np.float32)
    bits = np.zeros(image.shape, np.uint8) if flags is None else flags
    columns = measure_moments(make_pixels(image, labels, noise, bits))
    return columns | measure_apertures(columns, make_region(image, labels, noise, bits))


def label_above(source: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    return source.astype(np.float32), (source > threshold).astype(np.int32)
