"""Sersic light profiles of galaxies, and stamps of galaxies convolved with a PSF.

A Sersic profile of index n >= 0.5 is a sum of Gaussians with positive weights, because it is
completely monotone in the squared radius. Its two-dimensional Fourier transform is therefore a sum
of Gaussians too. The transform is tabulated once for each index. A stamp is then one affine
look-up, one product with the PSF's transfer function and one inverse FFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, optimize, special

from fcnpipe.simulation.psfs import Psf

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

INDICES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.7, 3.4, 4.0, 5.0, 6.0)
"""Tabulated Sersic indices."""
SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Sides of stamps, px."""
_LOG_Q = np.linspace(np.log(1e-4), np.log(2e3), 2048)
_LOG_R = np.linspace(np.log(1e-3), np.log(60.0), 400)


@dataclass(frozen=True)
class SersicComponent:
    """Elliptical Sersic profile."""

    flux: float
    """Total flux."""
    index: float
    """Sersic index; the nearest of INDICES is drawn."""
    radius_px: float
    """Half-light radius along the major axis, px."""
    axis_ratio: float = 1.0
    """Ratio of minor to major axis."""
    angle: float = 0.0
    """Angle of the major axis from +x towards +y, radians."""


@dataclass(frozen=True)
class DiskStructure:
    """Spiral arms, clumps, knots and a dust lane that modulate the first component of a galaxy."""

    count: int = 2
    """Number of spiral arms; 0: none."""
    strength: float = 0.6
    """Depth of the modulation between the arms, 0 to 1."""
    pitch: float = 0.35
    """Pitch angle, radians."""
    phase: float = 0.0
    """Position angle of the arms at the half-light radius, radians."""
    clumps: float = 0.0
    """Amplitude of the random log-normal clumps."""
    grain: float = 0.15
    """Size of the clumps, in half-light radii."""
    knots: float = 0.0
    """Fraction of the light in point-like knots of young stars, which are placed where the galaxy
    is bright."""
    lane: float = 0.0
    """Depth of a dust lane along the major axis, 0 to 1."""
    seed: int = 0
    """Seed of the clumps and knots."""


def nearest_index(index: float) -> float:
    """Return the tabulated Sersic index nearest to a value."""
    return min(INDICES, key=lambda n: abs(np.log(n / index)))


@cache
def expand_in_gaussians(index: float) -> tuple[Doubles, Doubles]:
    """Return weights (sum 1) and standard deviations (in half-light radii) of the Gaussians of a Sersic profile."""
    scale = float(special.gammaincinv(2 * index, 0.5))
    radius = np.exp(_LOG_R)
    target = np.exp(-scale * radius ** (1 / index))
    keep = target > 1e-7 * target[0]
    sigma = np.exp(np.linspace(np.log(2e-3), np.log(40.0), 32))
    shape = np.exp(-0.5 * (radius[keep, None] / sigma) ** 2)
    # These weights keep both the cusp and the wings in the fit.
    importance = 1.0 / (target[keep] + 1e-5 * target[0])
    weight, _ = optimize.nnls(shape * importance[:, None], target[keep] * importance, maxiter=5000)
    flux = weight * 2 * np.pi * sigma**2
    used = flux > 0
    return flux[used] / flux.sum(), sigma[used]


@cache
def fourier_transform(index: float) -> Doubles:
    """Return the Fourier transform of a unit profile at the table's log-frequencies, (2048,) float64."""
    flux, sigma = expand_in_gaussians(index)
    squares = np.exp(2 * _LOG_Q)[:, None]
    return np.asarray(np.exp(-0.5 * squares * sigma**2) @ flux, np.float64)


@cache
def surface_brightness(index: float) -> Doubles:
    """Return the surface brightness of a unit profile at the table's log-radii, (400,) float64."""
    flux, sigma = expand_in_gaussians(index)
    squares = np.exp(2 * _LOG_R)[:, None]
    norm = flux / (2 * np.pi * sigma**2)
    return np.asarray(np.exp(-0.5 * squares / sigma**2) @ norm, np.float64)


def extent_px(component: SersicComponent, level: float) -> float:
    """Return the radius along the major axis beyond which the component is below the level, px."""
    area = component.radius_px**2 * component.axis_ratio
    profile = surface_brightness(nearest_index(component.index)) * component.flux / area
    beyond = int(np.searchsorted(-profile, -level))
    return float(component.radius_px * np.exp(_LOG_R[min(beyond, len(_LOG_R) - 1)]))


def stamp_size(radius_px: float) -> int:
    """Return the smallest of SIZES that contains a radius, px; the largest if none does."""
    return next((size for size in SIZES if size >= 2 * radius_px + 2), SIZES[-1])


def draw_stamp(
    components: tuple[SersicComponent, ...],
    psf: Psf,
    phase: tuple[float, float],
    size: int,
    structure: DiskStructure | None = None,
) -> Floats:
    """Draw a galaxy without noise, convolved with the PSF and integrated over pixels.

    Parameters
    ----------
    components
        Profiles that are added; ``structure`` modulates the first.
    psf
        The PSF.
    phase
        Sub-pixel displacement (y, x) of the centre from pixel ``(size // 2, size // 2)``.
    size
        Even side of the stamp, px.
    structure
        Structure of the first component.

    Returns
    -------
    ndarray
        (size, size) float32, at least 0; tapered smoothly to 0 at the inscribed circle.
    """
    hat = np.zeros((size, size // 2 + 1), np.complex64)
    for component in components:
        table = fourier_transform(nearest_index(component.index))
        _add_transform(
            hat,
            component.flux,
            table,
            _LOG_Q[0],
            _LOG_Q[1] - _LOG_Q[0],
            _frequency_matrix(component),
        )
        if structure is not None:
            hat = _modulate(hat, component, structure)
            structure = None
    hat *= psf.transfer(size)
    _shift_phase(hat, size // 2 + phase[0], size // 2 + phase[1])
    stamp = np.asarray(fft.irfft2(hat, s=(size, size)), np.float32)
    _taper(stamp)
    return stamp


def _frequency_matrix(component: SersicComponent) -> tuple[float, float, float, float]:
    """Return the matrix, row by row, from frequencies (x, y) of the image to those of the round unit profile."""
    cos, sin = np.cos(component.angle), np.sin(component.angle)
    radius, ratio = component.radius_px, component.axis_ratio
    return (radius * cos, radius * sin, -radius * ratio * sin, radius * ratio * cos)


def _modulate(
    hat: NDArray[np.complex64], component: SersicComponent, structure: DiskStructure
) -> NDArray[np.complex64]:
    # The image is in real space, before the PSF, centred on pixel (0, 0) with wrap-around.
    size = hat.shape[0]
    image = fft.irfft2(hat, s=(size, size))
    offset = fft.fftfreq(size, 1.0 / size)
    y, x = offset[:, None], offset[None, :]
    cos, sin = np.cos(component.angle), np.sin(component.angle)
    major, minor = x * cos + y * sin, (y * cos - x * sin) / component.axis_ratio
    radius = np.hypot(major, minor) / component.radius_px + 1e-3
    factor = np.ones((size, size))
    outer = np.clip(radius / 0.3, 0, 1)
    if structure.count:
        wave = structure.count * (
            np.arctan2(minor, major) - np.log(radius) / np.tan(structure.pitch) - structure.phase
        )
        factor *= 1 - structure.strength * outer * (0.5 - 0.5 * np.cos(wave))
    if structure.clumps:
        factor *= np.exp(
            structure.clumps
            * outer
            * _clump_field(size, structure.grain * component.radius_px, structure.seed)
        )
    if structure.lane:
        factor *= 1 - structure.lane * np.exp(
            -0.5 * (minor * component.axis_ratio / (0.12 * component.radius_px)) ** 2
        )
    modulated = image * factor
    modulated *= component.flux / max(float(modulated.sum()), 1e-30)
    if structure.knots:
        modulated = _add_knots(modulated, outer * (radius < 3), component.flux, structure)
    return np.asarray(fft.rfft2(modulated), np.complex64)


def _add_knots(image: Doubles, where: Doubles, flux: float, structure: DiskStructure) -> Doubles:
    rng = np.random.default_rng([structure.seed, 1])
    odds = np.maximum(image * where, 0).ravel()
    if odds.sum() <= 0:
        return image
    places = rng.choice(odds.size, int(rng.integers(4, 60)), p=odds / odds.sum())
    parts = rng.lognormal(0.0, 1.0, len(places))
    lit = (1 - structure.knots) * image.ravel()
    np.add.at(lit, places, structure.knots * flux * parts / parts.sum())
    return np.asarray(lit.reshape(image.shape), np.float64)


def _clump_field(size: int, sigma_px: float, seed: int) -> Doubles:
    noise = np.random.default_rng(seed).standard_normal((size, size))
    k = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])
    smooth = fft.irfft2(
        fft.rfft2(noise) * np.exp(-0.5 * (k * 2 * np.pi * sigma_px) ** 2), s=(size, size)
    )
    return np.asarray(smooth / (smooth.std() + 1e-30), np.float64)


@njit(cache=True, nogil=True)
def _add_transform(hat, flux, table, log_first, log_step, affine):  # type: ignore[no-untyped-def]
    """Add the Fourier transform of a profile, interpolated in its table, to ``hat``."""
    size, half = hat.shape
    step = 2.0 * np.pi / size
    last = table.shape[0] - 2
    for j in range(size):
        ky = step * (j if j <= size // 2 else j - size)
        for i in range(half):
            kx = step * i
            u = kx * affine[0] + ky * affine[1]
            v = kx * affine[2] + ky * affine[3]
            square = u * u + v * v
            if square < 1e-8:
                hat[j, i] += flux
                continue
            place = (0.5 * np.log(square) - log_first) / log_step
            cell = min(max(int(place), 0), last)
            part = min(place - cell, 1.0)
            hat[j, i] += flux * (table[cell] * (1.0 - part) + table[cell + 1] * part)


@njit(cache=True, nogil=True)
def _shift_phase(hat, dy, dx):  # type: ignore[no-untyped-def]
    """Multiply a Fourier transform by the phase of a displacement by (dy, dx) px."""
    size, half = hat.shape
    step = 2.0 * np.pi / size
    row = np.empty(half, np.complex64)
    for i in range(half):
        row[i] = np.exp(-1j * step * i * dx)
    for j in range(size):
        ky = step * (j if j <= size // 2 else j - size)
        turn = np.exp(-1j * ky * dy)
        for i in range(half):
            hat[j, i] *= row[i] * turn


@njit(cache=True, nogil=True)
def _taper(stamp):  # type: ignore[no-untyped-def]
    """Clip a stamp at 0 and reduce it smoothly to 0 at the inscribed circle."""
    size = stamp.shape[0]
    centre = size // 2
    end = centre - 1.0
    for j in range(size):
        for i in range(size):
            radius = np.sqrt((j - centre) ** 2.0 + (i - centre) ** 2.0)
            inside = min(max((end - radius) / (0.2 * end), 0.0), 1.0)
            stamp[j, i] = max(stamp[j, i], 0.0) * inside * inside * (3.0 - 2.0 * inside)
