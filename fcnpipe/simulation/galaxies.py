"""Stamps of galaxies made of a bulge and a disk, each known without noise.

A bulge is a Sersic profile of index 4, a disk one of index 1, about one centre, under one PSF;
fluxes are in sky noises of one pixel.
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
"""Stamps of neighbouring seeds that share a PSF, which takes longer to draw than they do."""


@dataclass(frozen=True)
class Galaxy:
    """What a stamp is drawn from."""

    bulge: SersicComponent
    disk: SersicComponent
    phase: tuple[float, float]
    """Displacement (y, x) of the centre from pixel ``(SIDE // 2, SIDE // 2)``, px."""

    def draw(self, psf: Psf) -> tuple[Floats, Floats]:
        """Give bulge and disk without noise, each (SIDE, SIDE) float32."""
        bulge = draw_stamp((self.bulge,), psf, self.phase, SIDE)
        return bulge, draw_stamp((self.disk,), psf, self.phase, SIDE)


@dataclass(frozen=True)
class Stamp:
    """A galaxy as observed, and its parts."""

    image: Floats
    """(SIDE, SIDE) float32, with noise of 1."""
    bulge: Floats
    """(SIDE, SIDE) float32, without noise."""
    disk: Floats
    """(SIDE, SIDE) float32, without noise."""
    galaxy: Galaxy
    """What was drawn."""
    psf: Psf
    """What it was seen through."""
    snr: float
    """Signal-to-noise of a matched filter."""

    @property
    def bulge_to_total(self) -> float:
        """Part of the light within the stamp that is the bulge's."""
        return float(self.bulge.sum() / (self.bulge.sum() + self.disk.sum()))


def draw_galaxy(seed: int) -> Stamp:
    """Give a stamp; the same for the same seed."""
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
    part = rng.uniform(0, 1)
    radius = float(np.exp(rng.uniform(*np.log(DISK_RADIUS_PX))))
    turn = rng.uniform(0, np.pi)
    bulge = SersicComponent(
        flux * part,
        BULGE_INDEX,
        radius * rng.uniform(*BULGE_TO_DISK_RADIUS),
        rng.uniform(0.6, 1.0),
        turn + rng.normal(0, 0.3),
    )
    disk = SersicComponent(flux * (1 - part), DISK_INDEX, radius, rng.uniform(0.25, 1.0), turn)
    return Galaxy(bulge, disk, (float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))))
