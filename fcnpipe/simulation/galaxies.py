"""Simulated stamps of bulge-plus-disk galaxies whose components are known without noise.

A bulge is a Sersic profile of index 4, a disk one of index 1. Both have the same centre and PSF.
Fluxes are in units of the sky noise of one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fcnpipe.simulation.profiles import SersicComponent, draw_stamp
from fcnpipe.simulation.psfs import Psf, bin_psf, draw_shape

Floats = NDArray[np.float32]

SIDE = 64
"""Side of a stamp, px."""
BULGE_INDEX, DISK_INDEX = 4.0, 1.0
FWHM_PX, DISK_RADIUS_PX, SNR = (2.5, 4.0), (3.0, 9.0), (15.0, 300.0)
BULGE_TO_DISK_RADIUS = (0.15, 0.8)
SHARED_PSF = 16
"""Number of stamps of consecutive seeds that share a PSF, because a PSF takes longer to draw than a
stamp."""


@dataclass(frozen=True)
class Galaxy:
    """Parameters of a bulge-plus-disk galaxy."""

    bulge: SersicComponent
    disk: SersicComponent
    phase: tuple[float, float]
    """Displacement (y, x) of the centre from pixel ``(SIDE // 2, SIDE // 2)``, px."""

    def draw(self, psf: Psf) -> tuple[Floats, Floats]:
        """Draw bulge and disk without noise, each (SIDE, SIDE) float32."""
        bulge = draw_stamp((self.bulge,), psf, self.phase, SIDE)
        return bulge, draw_stamp((self.disk,), psf, self.phase, SIDE)


@dataclass(frozen=True)
class Stamp:
    """An observed galaxy and its components."""

    image: Floats
    """(SIDE, SIDE) float32, with noise of standard deviation 1."""
    bulge: Floats
    """(SIDE, SIDE) float32, without noise."""
    disk: Floats
    """(SIDE, SIDE) float32, without noise."""
    galaxy: Galaxy
    """Parameters of the galaxy."""
    psf: Psf
    """PSF of the stamp."""
    snr: float
    """Signal-to-noise ratio of a matched filter."""

    @property
    def bulge_to_total(self) -> float:
        """Fraction of the light within the stamp that belongs to the bulge."""
        return float(self.bulge.sum() / (self.bulge.sum() + self.disk.sum()))


def draw_galaxy(seed: int) -> Stamp:
    """Draw a stamp of a random galaxy; equal seeds return equal stamps."""
    rng = np.random.default_rng([seed, 0xBD])
    psf = _draw_psf(seed // SHARED_PSF)
    galaxy = _draw_galaxy_model(rng, 1.0)
    snr = float(np.exp(rng.uniform(*np.log(SNR))))
    bulge, disk = galaxy.draw(psf)
    scale = np.float32(snr / np.sqrt(float(np.square(bulge + disk).sum())))
    bulge, disk = bulge * scale, disk * scale
    noise = rng.standard_normal(bulge.shape, dtype=np.float32)
    return Stamp(bulge + disk + noise, bulge, disk, galaxy, psf, snr)


@lru_cache(maxsize=64)
def _draw_psf(seed: int) -> Psf:
    rng = np.random.default_rng([seed, 0xB5])
    return bin_psf(draw_shape(rng, rng.uniform(*FWHM_PX), ("moffat",)))


def _draw_galaxy_model(rng: np.random.Generator, flux: float) -> Galaxy:
    bulge_fraction = rng.uniform(0, 1)
    radius = float(np.exp(rng.uniform(*np.log(DISK_RADIUS_PX))))
    position_angle = rng.uniform(0, np.pi)
    bulge = SersicComponent(
        flux * bulge_fraction,
        BULGE_INDEX,
        radius * rng.uniform(*BULGE_TO_DISK_RADIUS),
        rng.uniform(0.6, 1.0),
        position_angle + rng.normal(0, 0.3),
    )
    disk = SersicComponent(
        flux * (1 - bulge_fraction), DISK_INDEX, radius, rng.uniform(0.25, 1.0), position_angle
    )
    return Galaxy(bulge, disk, (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))))
