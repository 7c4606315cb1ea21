"""Sky, noise and artefacts of a simulated image: gradients, cirrus, cosmic rays, trails, saturation, bad pixels."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SkySpec:
    """Probability of each effect of sky and detector in a scene."""

    gradient: float = 0.5
    """A smooth gradient or curvature of the background."""
    nebula: float = 0.12
    """Cirrus with a power-law spectrum."""
    correlated: float = 0.3
    """Noise that is correlated between neighbouring pixels, as after resampling."""
    uneven: float = 0.2
    """Noise level that varies over the image."""
    cosmic: float = 0.35
    """Cosmic rays and hot pixels that are not flagged."""
    trail: float = 0.12
    """Satellite trails."""
    picture: float = 0.2
    """Compression, clipping and rounding to few grey levels, as in a published picture, often a
    JPEG."""
    saturated: float = 0.3
    """A saturation level that clips the brightest stars."""
    dead: float = 0.25
    """Flagged dead pixels, columns and edges."""


@dataclass(frozen=True)
class Exposure:
    """A simulated exposure."""

    image: Floats
    """(h, w) float32, image units; NaN where the data are lost."""
    bad: Bools
    """(h, w) bool, flagged pixels."""
    relative_noise: Floats
    """(h, w) float32, rms of the sky noise relative to its nominal level."""
    scale: float
    """Nominal sky noise, image units."""
    softening: float
    """Light in sky noises above which it is compressed, see `asinh_stretch`; infinite: no
    compression."""


def add_sky(light: Floats, fwhm_px: float, sky: SkySpec, rng: np.random.Generator) -> Exposure:
    """Simulate the exposure of the light of all sources, (h, w) float32 in sky noises."""
    shape = light.shape
    relative_noise = _draw_noise_levels(shape, sky, rng)
    gain = np.float32(np.exp(rng.uniform(np.log(2.0), np.log(500.0))))
    noise = relative_noise * np.sqrt(1 + np.maximum(light, 0) / gain)
    image = light + _draw_background(shape, sky, rng) + noise * _draw_noise(shape, sky, rng)
    _add_cosmics_and_trails(image, fwhm_px, sky, rng)
    softening = np.inf
    if rng.random() < sky.picture:
        softening = float(rng.choice([np.inf, np.exp(rng.uniform(np.log(1.5), np.log(30.0)))]))
        image = _quantise_grey(asinh_stretch(image, softening), rng)
    bad = _add_defects(image, sky, rng)
    scale = float(np.exp(rng.uniform(np.log(1e-2), np.log(1e2))))
    image = (image + rng.uniform(-50, 500)) * np.float32(scale)
    return Exposure(image.astype(np.float32), bad, relative_noise, scale, softening)


def asinh_stretch(light: Floats, softening: float) -> Floats:
    """Compress light as in a published picture: linear below the softening, logarithmic above it."""
    if np.isinf(softening):
        return light
    return np.asarray(softening * np.arcsinh(light / np.float32(softening)), np.float32)


def _draw_noise(shape: tuple[int, ...], sky: SkySpec, rng: np.random.Generator) -> Floats:
    white = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() > sky.correlated:
        return white
    if rng.random() < 0.5:
        mixed = ndimage.gaussian_filter(white, rng.uniform(0.3, 0.9), mode="wrap")
    else:
        mixed = ndimage.shift(white, rng.uniform(0.1, 0.9, 2), order=1, mode="grid-wrap")
    return np.asarray(mixed / mixed.std(), np.float32)


def _draw_noise_levels(shape: tuple[int, ...], sky: SkySpec, rng: np.random.Generator) -> Floats:
    relative_noise = np.ones(shape, np.float32)
    if rng.random() < sky.uneven:
        for _ in range(int(rng.integers(1, 4))):
            axis, place = int(rng.integers(2)), rng.random()
            cut = int(place * shape[axis])
            part = relative_noise[cut:] if axis == 0 else relative_noise[:, cut:]
            part *= rng.uniform(0.75, 1.4)
    return relative_noise


def _draw_background(shape: tuple[int, ...], sky: SkySpec, rng: np.random.Generator) -> Floats:
    glow = np.zeros(shape, np.float32)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    if rng.random() < sky.gradient:
        size = np.exp(rng.uniform(np.log(0.3), np.log(30.0)))
        a, b, c, d, e = rng.standard_normal(5).astype(np.float32) * np.float32(size)
        glow += a * y + b * x + 0.5 * (c * y * y + d * x * x + e * x * y)
    if rng.random() < sky.nebula:
        glow += _draw_cirrus(shape, rng)
    return glow


def _draw_cirrus(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    white = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    k = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :])
    k[0, 0] = np.inf
    exponent = rng.uniform(2.8, 3.8)
    field = fft.irfft2(white * k ** (-exponent / 2) * np.exp(-((k * 20) ** 2)), s=shape)
    field *= np.exp(rng.uniform(np.log(0.3), np.log(10.0))) / (field.std() + 1e-30)
    return np.asarray(field, np.float32)


def _add_cosmics_and_trails(
    image: Floats, fwhm_px: float, sky: SkySpec, rng: np.random.Generator
) -> None:
    mpix = image.size / 1e6
    if rng.random() < sky.cosmic:
        for _ in range(rng.poisson(np.exp(rng.uniform(np.log(10), np.log(1000))) * mpix)):
            _add_cosmic_ray(image, rng)
    if rng.random() < sky.trail:
        for _ in range(int(rng.integers(1, 3))):
            _add_trail(image, fwhm_px, rng)


def _add_cosmic_ray(image: Floats, rng: np.random.Generator) -> None:
    length = 1 if rng.random() < 0.4 else 1 + int(rng.exponential(5.0))
    power = np.float32(np.exp(rng.uniform(np.log(6.0), np.log(2000.0))))
    y, x = rng.uniform((0, 0), image.shape)
    direction = rng.uniform(0, 2 * np.pi)
    for _ in range(length):
        j, i = int(y), int(x)
        if 0 <= j < image.shape[0] and 0 <= i < image.shape[1]:
            image[j, i] += power * np.float32(rng.uniform(0.4, 1.0))
        direction += 0.15 * rng.standard_normal()
        y, x = y + np.sin(direction), x + np.cos(direction)


def _add_trail(image: Floats, fwhm_px: float, rng: np.random.Generator) -> None:
    direction = rng.uniform(0, np.pi)
    centre = rng.uniform((0, 0), image.shape)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    across = (y - centre[0]) * np.cos(direction) - (x - centre[1]) * np.sin(direction)
    width = fwhm_px / 2.355 * rng.uniform(1.0, 2.5)
    power = np.exp(rng.uniform(np.log(0.3), np.log(50.0)))
    image += (power * np.exp(-0.5 * (across / width) ** 2)).astype(np.float32)


def _quantise_grey(image: Floats, rng: np.random.Generator) -> Floats:
    floor, step = rng.uniform(-3.5, 1.0), rng.uniform(0.1, 1.0)
    white = rng.choice([np.inf, np.exp(rng.uniform(np.log(15.0), np.log(250.0)))])
    if rng.random() < 0.6:
        return _jpeg_round_trip(image, floor, min(white, floor + 255 * step), rng)
    grey = np.rint((np.clip(image, floor, white) - floor) / step)
    return np.asarray(floor + step * grey, np.float32)


def _jpeg_round_trip(image: Floats, floor: float, white: float, rng: np.random.Generator) -> Floats:
    """Return the image after JPEG compression, whose blocks of 8 px ring around bright sources."""
    step = (white - floor) / 255
    grey = np.rint((np.clip(image, floor, white) - floor) / step).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=int(rng.integers(60, 97)))
    return np.asarray(floor + step * np.asarray(Image.open(file), np.float32), np.float32)


def _add_defects(image: Floats, sky: SkySpec, rng: np.random.Generator) -> Bools:
    bad = np.zeros(image.shape, np.bool_)
    if rng.random() < sky.saturated:
        _saturate(image, bad, rng)
    if rng.random() < sky.dead:
        few = rng.random(image.shape, dtype=np.float32) < np.exp(
            rng.uniform(np.log(1e-5), np.log(3e-3))
        )
        bad |= few
        for _ in range(int(rng.integers(0, 4))):
            column = int(rng.integers(image.shape[1]))
            bad[:, column : column + int(rng.integers(1, 4))] = True
        if rng.random() < 0.2:
            bad[: int(rng.integers(image.shape[0] // 3))] = True
        image[bad] = np.nan if rng.random() < 0.5 else np.float32(rng.uniform(-100, 1000))
    return bad


def _saturate(image: Floats, bad: Bools, rng: np.random.Generator) -> None:
    level = np.float32(np.exp(rng.uniform(np.log(100.0), np.log(5000.0))))
    over = image > level
    image[over] = level
    if rng.random() < 0.6:
        if rng.random() < 0.5:
            over |= _draw_bleed_trails(over, rng)
        bad |= over
        if rng.random() < 0.5:
            image[over] = np.nan


def _draw_bleed_trails(over: Bools, rng: np.random.Generator) -> Bools:
    bled = np.zeros_like(over)
    regions, count = ndimage.label(over)
    for box in ndimage.find_objects(regions)[:200] if count else []:
        height = (box[0].stop - box[0].start) * rng.uniform(1.0, 6.0)
        centre = (box[1].start + box[1].stop) // 2
        if height > 6:
            bled[
                max(0, int(box[0].start - height)) : int(box[0].stop + height), centre : centre + 2
            ] = True
    return bled
