"""Simulated pairs of a sharp image and its blurred, noisy observation, for restoration networks.

The blur follows Hradis et al. (2015): a defocus disc of radius 0 to 4 px, convolved with the track
of a random walk (camera shake) that extends over 5 to 21 px. The noise has a standard deviation of
0 to 7/255. The images are pages of text or fields of stars, grey, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, signal

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

DEFOCUS_PX, WALK_PX = (0.0, 4.0), (5.0, 21.0)
NOISE = (0.0, 7 / 255)
"""Range of the standard deviation of the noise; white is 1."""
KERNEL_SIDE = 31
"""Side of a blur kernel, px, large enough for any defocus and walk."""
_OVERSAMPLING = 5
_LETTERS = np.array(
    list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    .,;:-()")
)


@dataclass(frozen=True)
class BlurredPair:
    """A sharp image and its observation."""

    observed: Floats
    """(h, w) float32, blurred and noisy; white is 1."""
    truth: Floats
    """(h, w) float32 in [0, 1], the sharp image."""
    kernel: Doubles
    """(k, k) float64 of sum 1, the blur kernel."""
    noise: float
    """Standard deviation of the added noise."""


def draw_pair(
    kind: str, shape: tuple[int, int], seed: int, noise: tuple[float, float] = NOISE
) -> BlurredPair:
    """Draw a pair of images; equal arguments return equal pairs.

    Parameters
    ----------
    kind : {"text", "stars"}
        Content of the image.
    shape : (int, int)
        Height and width, px.
    seed : int
        Any non-negative integer.
    noise : (float, float)
        Range of the standard deviation of the noise.

    Returns
    -------
    BlurredPair
        The sharp image, its observation, and the kernel and noise in between.
    """
    rng = np.random.default_rng([seed, 0xB1])
    margin = KERNEL_SIDE // 2
    wide = KINDS[kind]((shape[0] + 2 * margin, shape[1] + 2 * margin), rng)
    kernel, level = draw_kernel(rng), rng.uniform(*noise)
    observed = signal.fftconvolve(wide, kernel, "valid") + level * rng.standard_normal(shape)
    truth = wide[margin:-margin, margin:-margin]
    return BlurredPair(observed.astype(np.float32), np.ascontiguousarray(truth), kernel, level)


def draw_kernel(rng: np.random.Generator) -> Doubles:
    """Draw a blur kernel, (KERNEL_SIDE, KERNEL_SIDE) float64, of sum 1 and with its centroid in the middle."""
    kernel = signal.fftconvolve(
        _random_walk(rng.uniform(*WALK_PX), rng), _defocus_disc(rng.uniform(*DEFOCUS_PX))
    )
    kernel = np.maximum(kernel, 0)
    middle = (np.array(kernel.shape) - 1) / 2
    kernel = ndimage.shift(kernel, middle - ndimage.center_of_mass(kernel), order=1)
    cut = (kernel.shape[0] - KERNEL_SIDE) // 2
    kernel = kernel[cut : cut + KERNEL_SIDE, cut : cut + KERNEL_SIDE]
    return np.asarray(kernel / kernel.sum(), np.float64)


def _defocus_disc(radius_px: float) -> Doubles:
    """Return a disc of sum 1 whose edge falls linearly over one pixel, (11, 11)."""
    y, x = np.ogrid[-5:6, -5:6]
    disc = np.clip(radius_px + 0.5 - np.hypot(y, x), 0, 1)
    return np.asarray(disc / disc.sum(), np.float64)


def _random_walk(size_px: float, rng: np.random.Generator) -> Doubles:
    """Draw the track of a smooth random walk whose longer side is ``size_px``, (41, 41), sum 1."""
    speed = np.cumsum(rng.standard_normal((200, 2)), axis=0) + rng.normal(0, 10, 2)
    path = np.cumsum(speed, axis=0)
    path = (path - path.mean(axis=0)) * (size_px / max(np.ptp(path, axis=0).max(), 1e-9))
    steps = np.linspace(0, len(path) - 1, 200 * _OVERSAMPLING)
    places = np.stack([np.interp(steps, np.arange(len(path)), axis) for axis in path.T]) + 20.0
    kernel = np.zeros((41, 41))
    low = np.floor(places).astype(int)
    part = places - low
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - dy - part[0]) * np.abs(1 - dx - part[1])
        place = np.clip(low + np.array([[dy], [dx]]), 0, 40)
        np.add.at(kernel, (place[0], place[1]), weight)
    return np.asarray(kernel / kernel.sum(), np.float64)


def draw_text(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Draw a page of random characters, dark on light, (h, w) float32 in [0, 1]."""
    page = Image.new("L", (shape[1], shape[0]), int(rng.integers(200, 256)))
    size = float(rng.uniform(10, 22))
    font, ink = ImageFont.load_default(size), int(rng.integers(0, 80))
    pencil = ImageDraw.Draw(page)
    columns = int(shape[1] / (0.45 * size)) + 4
    for top in np.arange(-rng.uniform(0, size), shape[0], 1.25 * size):
        line = "".join(rng.choice(_LETTERS, columns))
        pencil.text((float(-rng.uniform(0, size)), float(top)), line, fill=ink, font=font)
    return np.asarray(page, np.float32) / np.float32(255)


def draw_stars(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Draw sharp stars and round galaxies on a dark sky, (h, w) float32 in [0, 1]."""
    count = rng.poisson(shape[0] * shape[1] * np.exp(rng.uniform(np.log(3e-4), np.log(6e-3))))
    field = np.zeros(shape)
    galaxies = rng.random(count) < 0.3
    for part, sigma in ((~galaxies, 0.8), (galaxies, rng.uniform(1.5, 3.0))):
        light = np.zeros(shape)
        y, x = (rng.integers(0, side, part.sum()) for side in shape)
        np.add.at(light, (y, x), 0.03 * rng.pareto(1.0, part.sum()) + 0.05)
        field += ndimage.gaussian_filter(light, sigma) * (2 * np.pi * sigma**2)
    return np.clip(field + rng.uniform(0.02, 0.15), 0, 1).astype(np.float32)


KINDS: dict[str, Callable[[tuple[int, int], np.random.Generator], Floats]] = {
    "text": draw_text,
    "stars": draw_stars,
}
"""Functions that draw sharp images, by kind."""
