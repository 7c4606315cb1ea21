"""Point-spread functions (PSFs), integrated over pixels at sub-pixel phases.

A PSF is drawn in real space on a grid finer than the pixels and binned to pixels at each sub-pixel
phase. Any shape is possible (spikes, coma, rings). The result has no ringing, unlike a transfer
function that is cut off at the Nyquist frequency, and drawing a star is one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

PHASES = 4
"""Number of sub-pixel phases along each axis, and of fine grid cells in a pixel."""
RADIUS_PX = 127
"""Half the side of a PSF stamp, px."""


@dataclass(frozen=True)
class PsfShape:
    """Parameters of the shape of a PSF.

    Lengths are in px unless they are ratios to the FWHM of the core.
    """

    fwhm_px: float
    """Full width at half maximum of the core before integration over pixels, px."""
    beta: float = 3.0
    """Moffat exponent of the core; above 50 the core is Gaussian."""
    axis_ratio: float = 1.0
    """Ratio of minor to major axis."""
    angle: float = 0.0
    """Angle of the major axis from +x towards +y, radians."""
    wing_fraction: float = 0.0
    """Fraction of the light in a wide Moffat wing of beta 2."""
    wing_ratio: float = 3.0
    """Ratio of the wing's FWHM to that of the core."""
    coma: float = 0.0
    """Fraction of the light in a copy of the core that is displaced by 0.6 FWHM along the angle."""
    obscuration: float = -1.0
    """Central obscuration of an Airy core; negative: no Airy core."""
    spikes: int = 0
    """Number of diffraction spikes, even; 0: none."""
    spike_fraction: float = 0.0
    """Fraction of the light in the spikes."""


@dataclass(frozen=True)
class Psf:
    """A PSF, integrated over pixels."""

    shape: PsfShape
    """Parameters of the shape."""
    stamps: Floats
    """(PHASES, PHASES, s, s) float32, each of sum 1 approximately; ``stamps[j, i]`` is centred at
    ``(s // 2 + j / PHASES, s // 2 + i / PHASES)``."""
    envelope: Floats
    """(s // 2 + 1,) float32, maximum value at or beyond each integer radius."""
    monotone_stamps: Floats
    """(PHASES, PHASES, s, s) float32, like ``stamps`` but circular and decreasing everywhere: no
    rings, no spikes."""
    area_px: float
    """Noise-equivalent area 1 / sum(psf**2), px."""
    _transfers: dict[int, NDArray[np.complex64]] = field(default_factory=dict, repr=False)

    def radius_px(self, flux: float, level: float) -> int:
        """Return the radius beyond which a star of this flux is below the level, px."""
        beyond = int(np.searchsorted(-self.envelope, -level / max(flux, 1e-30)))
        return min(max(beyond, 3), RADIUS_PX)

    def transfer(self, size: int) -> NDArray[np.complex64]:
        """Return the transfer function for stamps of an even size, (size, size // 2 + 1) complex64."""
        if size not in self._transfers:
            self._transfers[size] = _transfer_function(self.stamps[0, 0], size)
        return self._transfers[size]


def bin_psf(shape: PsfShape) -> Psf:
    """Return the PSF of a shape, integrated over pixels at every sub-pixel phase."""
    side = 2 * RADIUS_PX + 1
    fine = (np.arange((side + 1) * PHASES) + 0.5) / PHASES - (side + 1) / 2.0
    light = _surface_brightness(shape, fine[:, None], fine[None, :])
    stamps = np.empty((PHASES, PHASES, side, side), np.float32)
    for j in range(PHASES):
        for i in range(PHASES):
            stamps[j, i] = _bin(light, j, i, side)
    stamps /= stamps[0, 0].sum(dtype=np.float64)
    area_px = float(1.0 / np.sum(stamps[0, 0].astype(np.float64) ** 2))
    return Psf(
        shape, stamps, _radial_envelope(stamps[0, 0]), _monotone_stamps(stamps[0, 0]), area_px
    )


def draw_shape(rng: np.random.Generator, fwhm_px: float, kinds: tuple[str, ...]) -> PsfShape:
    """Draw a random shape of one of the kinds ``moffat``, ``gaussian``, ``winged``, ``airy`` and ``coma``."""
    kind = str(rng.choice(kinds))
    extra: dict[str, Any] = {
        "axis_ratio": float(1.0 - 0.25 * rng.random() ** 2),
        "angle": float(rng.uniform(0.0, np.pi)),
        "beta": float(np.exp(rng.uniform(np.log(1.7), np.log(6.0)))),
    }
    if kind == "gaussian":
        extra["beta"] = 100.0
    if kind in ("winged", "airy"):
        extra |= {"wing_fraction": rng.uniform(0.02, 0.3), "wing_ratio": rng.uniform(2.0, 5.0)}
    if kind == "coma":
        extra["coma"] = rng.uniform(0.1, 0.4)
    if kind == "airy":
        extra["obscuration"] = rng.uniform(0.0, 0.45)
    if kind == "airy" or (kind == "winged" and rng.random() < 0.3):
        extra |= {
            "spikes": int(rng.choice([0, 4, 4, 6])),
            "spike_fraction": float(np.exp(rng.uniform(np.log(0.005), np.log(0.08)))),
        }
    return PsfShape(fwhm_px=fwhm_px, **extra)


def _bin(light: Doubles, j: int, i: int, side: int) -> Doubles:
    # To displace a source by +j/PHASES px, the fine grid is read from j cells earlier. The centre of
    # pixel 0 is in the middle of its PHASES fine cells, half a pixel after the first one.
    y0, x0 = PHASES // 2 - j, PHASES // 2 - i
    y0, x0 = y0 % PHASES, x0 % PHASES
    whole = light[y0 : y0 + side * PHASES, x0 : x0 + side * PHASES]
    summed: Doubles = whole.reshape(side, PHASES, side, PHASES).sum(axis=(1, 3))
    down, right = (int(j > PHASES // 2), int(i > PHASES // 2))
    return np.roll(summed, (down, right), axis=(0, 1)) if down or right else summed


def _surface_brightness(shape: PsfShape, y: Doubles, x: Doubles) -> Doubles:
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    major, minor = x * cos + y * sin, (y * cos - x * sin) / shape.axis_ratio
    radius = np.hypot(major, minor)
    core = _core(shape, radius)
    if shape.coma > 0:
        shifted = np.hypot(major - 0.6 * shape.fwhm_px, minor)
        core = (1 - shape.coma) * core + shape.coma * _core(shape, shifted)
    total = core / core.sum()
    if shape.wing_fraction > 0:
        wing = _moffat(radius, shape.fwhm_px * shape.wing_ratio, 2.0)
        total = (1 - shape.wing_fraction) * total + shape.wing_fraction * wing / wing.sum()
    if shape.spikes > 0:
        spikes = _diffraction_spikes(shape, y, x)
        total = (1 - shape.spike_fraction) * total + shape.spike_fraction * spikes / spikes.sum()
    return np.asarray(total * _taper(np.hypot(y, x)), np.float64)


def _core(shape: PsfShape, radius: Doubles) -> Doubles:
    if shape.obscuration >= 0:
        return _airy(radius, shape.fwhm_px, shape.obscuration)
    if shape.beta > 50:
        return np.asarray(np.exp(-4 * np.log(2) * (radius / shape.fwhm_px) ** 2), np.float64)
    return _moffat(radius, shape.fwhm_px, shape.beta)


def _moffat(radius: Doubles, fwhm_px: float, beta: float) -> Doubles:
    scale = fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    return np.asarray((1.0 + (radius / scale) ** 2) ** -beta, np.float64)


def _airy(radius: Doubles, fwhm_px: float, obscuration: float) -> Doubles:
    # The pattern is tabulated over the radius, because Bessel functions take 40 ns for each value.
    axis = np.linspace(0.0, float(radius.max()) + 1.0, 20000)
    v = np.pi * axis * (1.03 - 0.1 * obscuration) / fwhm_px + 1e-9
    outer = 2 * special.j1(v) / v
    inner = 2 * special.j1(obscuration * v + 1e-9) / (obscuration * v + 1e-9)
    pattern = ((outer - obscuration**2 * inner) / (1 - obscuration**2)) ** 2
    return np.asarray(np.interp(radius, axis, pattern), np.float64)


def _diffraction_spikes(shape: PsfShape, y: Doubles, x: Doubles) -> Doubles:
    total = np.zeros(np.broadcast(y, x).shape)
    for arm in range(shape.spikes // 2):
        angle = shape.angle + 2 * np.pi * arm / shape.spikes
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        width = 0.3 * shape.fwhm_px + 0.01 * np.abs(along)
        total += np.exp(-0.5 * (across / width) ** 2) / (1 + (along / (2 * shape.fwhm_px)) ** 2)
    return total


def _taper(radius: Doubles) -> Doubles:
    # A smooth edge, because the square outline of the stamps of bright stars would be visible.
    inside = np.clip((RADIUS_PX - radius) / (0.2 * RADIUS_PX), 0.0, 1.0)
    return np.asarray(inside * inside * (3 - 2 * inside), np.float64)


def _radial_envelope(image: Floats) -> Floats:
    half = image.shape[0] // 2
    y, x = np.indices(image.shape) - half
    ring = np.minimum(np.hypot(y, x).astype(np.int64), half)
    largest = np.zeros(half + 1, np.float32)
    np.maximum.at(largest, ring, image)
    return np.maximum.accumulate(largest[::-1])[::-1].copy()


def _monotone_stamps(image: Floats) -> Floats:
    half = image.shape[0] // 2
    y, x = np.indices(image.shape, np.float32) - np.float32(half)
    ring = np.rint(np.hypot(y, x)).astype(np.int64).ravel()
    mean = np.bincount(ring, image.ravel())[: half + 1] / np.bincount(ring)[: half + 1]
    # A slight slope, so that the gap inside a ring is not a plateau.
    falling = np.maximum.accumulate(mean[::-1])[::-1] * np.linspace(1.0, 0.9, half + 1)
    monotone_stamps = np.empty((PHASES, PHASES, *image.shape), np.float32)
    for j in range(PHASES):
        for i in range(PHASES):
            radius = np.hypot(y - np.float32(j / PHASES), x - np.float32(i / PHASES))
            monotone_stamps[j, i] = np.interp(radius, np.arange(half + 1), falling)
    return monotone_stamps


def _transfer_function(image: Floats, size: int) -> NDArray[np.complex64]:
    half = image.shape[0] // 2
    inner = min(size // 2 - 1, half)
    kernel = np.zeros((size, size), np.float32)
    cut = image[half - inner : half + inner + 1, half - inner : half + inner + 1]
    kernel[: 2 * inner + 1, : 2 * inner + 1] = cut / cut.sum(dtype=np.float64)
    rolled = np.roll(kernel, (-inner, -inner), axis=(0, 1))
    return np.asarray(fft.rfft2(rolled), np.complex64)
