"""Simulated skies for the quality benchmarks, of other kinds than the training scenes.

Nothing is shared with fcnpipe.simulation. The profiles (exponential with a Gaussian core, King,
Elson, Einasto, irregular blobs), the PSFs (Kolmogorov, the Fourier transform of an obscured pupil
with struts, two elliptical Gaussians), the number counts (broken and log-normal) and the layouts
differ, and everything is drawn in real space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

from fcnpipe.science.scores import Truth

Floats = NDArray[np.float32]

KINDS = ("ground", "crowded", "cluster", "hst")
"""Kinds of sky; their order is part of the seeds."""
FINE = 5
"""Number of fine cells in a pixel along each axis."""
SIDE = 121
"""Side of a PSF stamp, px."""
FAINT = 0.02
"""Level at which the stamp of a star ends, in sky noises."""


@dataclass(frozen=True)
class Field:
    """An image with its ground truth."""

    image: Floats
    """(h, w) float32, counts."""
    sigma: float
    """True rms of the sky noise, counts."""
    psf: Floats
    """(s, s) float32, pixel-integrated, sum 1."""
    fwhm_px: float
    """FWHM of the PSF with its pixel, px."""
    truth: Truth
    """Ground truth at a threshold of 0.7 sky noises."""


def simulate(kind: str, seed: int, side: int = 1536) -> Field:
    """Simulate a field of one of KINDS, (side, side) px; kind ``blank`` is pure noise."""
    rng = np.random.default_rng([seed, KINDS.index(kind) if kind in KINDS else 9, 4242])
    optics, scene = {
        "ground": (_seeing_psf, _ground),
        "crowded": (partial(_pupil_psf, fwhm_px=(1.7, 2.3)), partial(_crowded, per_mpix=12_000)),
        "hst": (partial(_pupil_psf, fwhm_px=(2.0, 2.6)), partial(_crowded, per_mpix=4_000)),
        "cluster": (_double_gaussian_psf, _cluster),
    }.get(kind, (_seeing_psf, _blank))
    canvas = Canvas(optics(rng), (side, side))
    scene(canvas, rng)
    sigma, gain = float(rng.uniform(3, 30)), float(rng.uniform(10, 100))
    noise = rng.standard_normal((side, side)) * np.sqrt(1 + canvas.light / gain)
    y, x = np.mgrid[:side, :side] / side
    sky = 200 + rng.uniform(-3, 3) * y + rng.uniform(-3, 3) * x * y
    image = ((canvas.light + noise + sky) * sigma).astype(np.float32)
    return Field(image, sigma, canvas.psf, canvas.fwhm_px, canvas.truth())


class Canvas:
    """Canvas that records the contribution of each source; light is in sky noises."""

    def __init__(self, fine: NDArray[np.float64], shape: tuple[int, int]) -> None:
        self.fine = fine / fine.sum()
        self.light, self.first = np.zeros(shape), np.zeros(shape)
        self.owner = np.zeros(shape, np.int32)
        self._bank: dict[tuple[int, int], NDArray[np.float64]] = {}
        self.psf = self._star(0, 0).astype(np.float32)
        self.area = 1 / float((self.psf**2).sum())
        seen = ndimage.uniform_filter(self.fine, FINE)
        self.fwhm_px = 2 * np.sqrt((seen > seen.max() / 2).sum() / np.pi) / FINE
        ring = np.hypot(*(np.indices(self.psf.shape) - SIDE // 2)).astype(int).ravel()
        top = np.zeros(SIDE)
        np.maximum.at(top, ring, self.psf.ravel())
        self.reach = np.maximum.accumulate(top[::-1])[::-1]
        self.rows: list[tuple[float, ...]] = []

    def _star(self, j: int, i: int) -> NDArray[np.float64]:
        if (j, i) not in self._bank:
            moved = np.roll(self.fine, (j, i), (0, 1))
            self._bank[j, i] = moved.reshape(SIDE, FINE, SIDE, FINE).sum((1, 3))
        return self._bank[j, i]

    def add_star(self, y: float, x: float, snr: float) -> None:
        """Add a star of this matched-filter signal-to-noise ratio."""
        flux = snr * np.sqrt(self.area)
        base, phase = _split(y, x)
        half = int(np.clip(np.searchsorted(-self.reach, -FAINT / flux), 4, SIDE // 2))
        cut = slice(SIDE // 2 - half, SIDE // 2 + half + 1)
        self._paste(flux * self._star(*phase)[cut, cut], base, half, (y, x))

    def add_galaxy(self, y: float, x: float, snr: float, form: GalaxyShape) -> None:
        """Add a galaxy of this matched-filter signal-to-noise ratio."""
        base, phase = _split(y, x)
        seen = float(np.clip(np.log10(snr) / 3, 0.4, 1))
        half = int(min(form.reach_px * seen, 260)) + SIDE // 10
        image = form.draw(half, (phase[0] / FINE, phase[1] / FINE))
        inner = min(half, SIDE // 2)
        cut = slice(SIDE // 2 - inner, SIDE // 2 + inner + 1)
        stamp = np.maximum(signal.fftconvolve(image, self.psf[cut, cut], mode="same"), 0)
        stamp *= snr / np.sqrt((stamp**2).sum())
        r = np.hypot(*(np.indices(stamp.shape) - half)) / half
        stamp *= np.clip((1 - r) / 0.15, 0, 1)
        self._paste(stamp, base, half, (y, x))

    def _paste(
        self,
        stamp: NDArray[np.float64],
        base: tuple[int, int],
        half: int,
        centre: tuple[float, float],
    ) -> None:
        y0, x0 = base[0] - half, base[1] - half
        top, left = max(0, -y0), max(0, -x0)
        if y0 >= self.light.shape[0] or x0 >= self.light.shape[1]:
            return
        stamp = stamp[top : self.light.shape[0] - y0, left : self.light.shape[1] - x0]
        if stamp.size == 0:
            return
        box = (
            slice(y0 + top, y0 + top + stamp.shape[0]),
            slice(x0 + left, x0 + left + stamp.shape[1]),
        )
        self.light[box] += stamp
        peak = np.unravel_index(int(stamp.argmax()), stamp.shape)
        self.rows.append(
            (
                *centre,
                y0 + top + peak[0],
                x0 + left + peak[1],
                stamp.max(),
                np.sqrt((stamp**2).sum()),
                stamp.sum(),
            )
        )
        leads = stamp > self.first[box]
        self.first[box][leads] = stamp[leads]
        self.owner[box][leads] = len(self.rows)

    def truth(self, sigma: float = 0.7) -> Truth:
        """Return the truth at a threshold in sky noises; it contains only sources that own a pixel."""
        owner = np.where(self.first > sigma, self.owner, 0)
        kept, label = np.unique(np.r_[0, owner.ravel()], return_inverse=True)
        label = label[1:].reshape(owner.shape).astype(np.int32)
        rows = np.array(self.rows).reshape(-1, 7)[kept[1:] - 1]
        return Truth(
            label=label,
            unclear=(label == 0) & (self.light > sigma),
            peak=rows[:, 2:4].astype(np.int64),
            brightness=rows[:, 4],
            centre=rows[:, :2],
            snr=rows[:, 5],
            flux=rows[:, 6],
        )


@dataclass(frozen=True)
class GalaxyShape:
    """Shape of a galaxy: name of a profile, scale, axis ratio and angle."""

    profile: str
    scale_px: float
    ratio: float
    angle: float
    seed: int = 0

    @property
    def reach_px(self) -> float:
        """Radius beyond which nothing is drawn, px."""
        return {"king": 12, "elson": 14, "einasto": 9, "core": 9, "blobs": 6}[
            self.profile
        ] * self.scale_px + 4

    def draw(self, half: int, offset: tuple[float, float]) -> NDArray[np.float64]:
        """Return the image before convolution, of side 2 half + 1, oversampled where the profile is steep."""
        fine = 5 if self.scale_px < 2 else 3 if self.scale_px < 6 else 1
        axis = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
        y, x = axis[:, None] - offset[0], axis[None, :] - offset[1]
        u = x * np.cos(self.angle) + y * np.sin(self.angle)
        v = (y * np.cos(self.angle) - x * np.sin(self.angle)) / self.ratio
        light = self._light(np.hypot(u, v) / self.scale_px, u, v)
        side = 2 * half + 1
        return light.reshape(side, fine, side, fine).mean((1, 3))

    def _light(
        self, r: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if self.profile == "king":
            return np.clip(1 / np.sqrt(1 + r**2) - 1 / np.sqrt(1 + 12.0**2), 0, None) ** 2
        if self.profile == "elson":
            return (1 + r**2) ** -1.4
        if self.profile == "einasto":
            return np.exp(-3.5 * (r + 0.02) ** 0.55)
        if self.profile == "core":
            return np.exp(-r) + 3 * np.exp(-0.5 * (r / 0.25) ** 2)
        rng = np.random.default_rng(self.seed)
        total = np.exp(-0.5 * r**2)
        for _ in range(rng.integers(3, 9)):
            a, b = rng.normal(0, 0.8, 2) * self.scale_px
            w = self.scale_px * rng.uniform(0.15, 0.4)
            total = total + rng.uniform(0.1, 0.6) * np.exp(
                -0.5 * ((u - a) ** 2 + (v - b) ** 2) / w**2
            )
        return total


def _split(y: float, x: float) -> tuple[tuple[int, int], tuple[int, int]]:
    j, i = round(y * FINE), round(x * FINE)
    base = (int(np.rint(j / FINE)), int(np.rint(i / FINE)))
    return base, (j - base[0] * FINE, i - base[1] * FINE)


def _axis() -> NDArray[np.float64]:
    return (np.arange(SIDE * FINE) - (SIDE * FINE) // 2) / FINE


def _seeing_psf(rng: np.random.Generator) -> NDArray[np.float64]:
    # The transfer function of a long exposure is exp(-3.44 (f / f0)^(5/3)).
    fwhm = rng.uniform(3.2, 4.8)
    f = np.hypot(
        fft.fftfreq(SIDE * FINE, 1 / FINE)[:, None], fft.fftfreq(SIDE * FINE, 1 / FINE)[None, :]
    )
    otf = np.exp(-3.44 * (f * fwhm / 0.976) ** (5 / 3))
    return np.clip(fft.fftshift(fft.ifft2(otf).real), 0, None)


def _pupil_psf(rng: np.random.Generator, fwhm_px: tuple[float, float]) -> NDArray[np.float64]:
    # |Fourier transform of the aperture|^2, averaged over a passband, with a little jitter.
    side, total = SIDE * FINE, np.zeros((SIDE * FINE, SIDE * FINE))
    fwhm = rng.uniform(*fwhm_px)
    y, x = np.mgrid[:side, :side] - side // 2
    for stretch in (0.88, 0.94, 1.0, 1.06, 1.12):
        radius = 0.5 * side / FINE / fwhm / stretch
        r = np.hypot(y, x) / radius
        open_ = (r < 1) & (r > 0.33)
        azimuth = 0.6
        for axis in (azimuth, azimuth + np.pi / 2):
            open_ &= np.abs(x * np.sin(axis) - y * np.cos(axis)) > 0.025 * radius
        total += (
            np.abs(fft.fftshift(fft.fft2(fft.ifftshift(open_.astype(float))))) ** 2 / open_.sum()
        )
    return ndimage.gaussian_filter(total, 0.25 * FINE)


def _double_gaussian_psf(rng: np.random.Generator) -> NDArray[np.float64]:
    a = _axis()
    azimuth, fwhm = rng.uniform(0, np.pi), rng.uniform(2.6, 3.6)
    u = a[None, :] * np.cos(azimuth) + a[:, None] * np.sin(azimuth)
    v = a[:, None] * np.cos(azimuth) - a[None, :] * np.sin(azimuth)
    s = fwhm / 2.355
    core = np.exp(-0.5 * ((u / s) ** 2 + (v / (0.85 * s)) ** 2))
    wing = np.exp(-0.5 * (u**2 + v**2) / (2.2 * s) ** 2)
    return core + 0.09 * wing


def _draw_galaxy_shape(rng: np.random.Generator, scale: float) -> GalaxyShape:
    name = str(
        rng.choice(["king", "elson", "einasto", "core", "blobs"], p=[0.15, 0.2, 0.3, 0.25, 0.1])
    )
    shrink = {"king": 0.5, "elson": 0.5}.get(name, 1.0)
    return GalaxyShape(
        name, scale * shrink, rng.uniform(0.25, 1), rng.uniform(0, np.pi), int(rng.integers(2**31))
    )


def _draw_snr(rng: np.random.Generator, centre: float, dex: float) -> float:
    # Log-normal counts whose faint end rises below the detection limit.
    return float(min(max(10 ** (np.log10(centre) + dex * rng.standard_normal()), 1.5), 2e4))


def _ground(canvas: Canvas, rng: np.random.Generator) -> None:
    side = canvas.light.shape[0]
    for _ in range(int(500e-6 * side**2)):
        canvas.add_star(*rng.uniform(0, side, 2), _draw_snr(rng, 12, 0.9))
    for _ in range(int(1600e-6 * side**2)):
        scale = 1.3 * np.exp(0.6 * rng.standard_normal())
        canvas.add_galaxy(
            *rng.uniform(0, side, 2),
            _draw_snr(rng, 9, 0.5) * max(1, scale / 2),
            _draw_galaxy_shape(rng, scale),
        )
    for _ in range(int(8e-6 * side**2)):
        canvas.add_galaxy(
            *rng.uniform(0, side, 2),
            rng.uniform(150, 1500),
            _draw_galaxy_shape(rng, rng.uniform(4, 12)),
        )
    _add_pairs(canvas, rng, int(150e-6 * side**2))


def _crowded(canvas: Canvas, rng: np.random.Generator, per_mpix: int) -> None:
    side = canvas.light.shape[0]
    wanted = int(per_mpix * 1e-6 * side**2)
    cluster_centre = rng.uniform(0.3, 0.7, 2) * side
    for _ in range(wanted):
        if rng.random() < 0.4:
            y, x = cluster_centre + rng.laplace(0, side / 8, 2)
        else:
            y, x = rng.uniform(0, side, 2)
        canvas.add_star(y, x, _draw_snr(rng, 10, 0.75))
    for _ in range(int(150e-6 * side**2)):
        canvas.add_galaxy(
            *rng.uniform(0, side, 2),
            _draw_snr(rng, 30, 0.5),
            _draw_galaxy_shape(rng, rng.uniform(0.8, 5)),
        )


def _cluster(canvas: Canvas, rng: np.random.Generator) -> None:
    side = canvas.light.shape[0]
    for cluster_centre in rng.uniform(0.15, 0.85, (int(2.5e-6 * side**2) + 1, 2)) * side:
        canvas.add_galaxy(
            *cluster_centre,
            rng.uniform(1500, 5000),
            GalaxyShape("elson", rng.uniform(6, 14), rng.uniform(0.6, 1), rng.uniform(0, 3)),
        )
        for _ in range(int(rng.integers(120, 260))):
            distance, azimuth = rng.gamma(1.6, 55), rng.uniform(0, 2 * np.pi)
            scale = 1.5 * np.exp(0.7 * rng.standard_normal())
            place = cluster_centre + distance * np.array([np.sin(azimuth), np.cos(azimuth)])
            canvas.add_galaxy(
                *place,
                _draw_snr(rng, 30, 0.6) * max(1, scale / 3),
                _draw_galaxy_shape(rng, min(scale, 12)),
            )
    for _ in range(int(900e-6 * side**2)):
        scale = 1.2 * np.exp(0.5 * rng.standard_normal())
        canvas.add_galaxy(
            *rng.uniform(0, side, 2), _draw_snr(rng, 9, 0.4), _draw_galaxy_shape(rng, scale)
        )
    for _ in range(int(250e-6 * side**2)):
        canvas.add_star(*rng.uniform(0, side, 2), _draw_snr(rng, 15, 0.9))
    _add_pairs(canvas, rng, int(150e-6 * side**2))


def _add_pairs(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    side = canvas.light.shape[0]
    for _ in range(count):
        y, x = rng.uniform(8, side - 8, 2)
        distance, azimuth = canvas.fwhm_px * rng.uniform(0.8, 3), rng.uniform(0, 2 * np.pi)
        snr = _draw_snr(rng, 30, 0.3)
        canvas.add_star(y, x, snr)
        canvas.add_star(
            y + distance * np.sin(azimuth),
            x + distance * np.cos(azimuth),
            snr * rng.uniform(0.25, 1),
        )


def _blank(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add nothing: pure noise."""


__all__ = ["KINDS", "Canvas", "Field", "GalaxyShape", "simulate"]
