"""Model ``none``: a matched filter, for those who trust no network, and the baseline of all.

The S/N image is correlated with a Gaussian of the point-spread function's width, the best linear
detector of point sources in white noise. It needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import asinh, ceil, erfc, log, sqrt

import numba
import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box
from fcnpipe.networks.base import (
    ELEVATION_SIGMAS,
    Certificate,
    Defaults,
    Maps,
    ModelHeader,
    Output,
    Reach,
    Share,
)

VERSION = "2"
DEFAULT_THRESH = 4.0
"""Sigma of the filtered image: noise alone passes it about once in 30,000 px (SExtractor's 1.5 is of the raw noise)."""
_TRUNCATION = 4.0
"""Radius of the kernel in its sigmas: the weight left out is 6e-5."""


def gaussian_taps(fwhm_px: float) -> NDArray[np.float32]:
    """Give one axis of the kernel.

    Parameters
    ----------
    fwhm_px : float
        Full width at half maximum, px.

    Returns
    -------
    ndarray
        (2 r + 1,) float32, symmetric; squares sum to 1, so white noise keeps unit variance.
    """
    sigma = fwhm_px / sqrt(8 * log(2))
    radius = ceil(_TRUNCATION * sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(taps / np.sqrt(np.sum(taps**2)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class MatchedFilter:
    """A Gaussian matched filter behind the interface of a network.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum of the kernel, px.

    Raises
    ------
    ModelError
        If the width is not between 0.5 and 20 px.
    """

    fwhm: float = 3.0

    def __post_init__(self) -> None:
        if not 0.5 < self.fwhm <= 20:
            raise ModelError(
                f"fwhm={self.fwhm} px is outside (0.5, 20]: give the width of a star in the image"
            )

    @property
    def header(self) -> ModelHeader:
        """The header, made up rather than read."""
        radius = len(gaussian_taps(self.fwhm)) // 2
        reach = Reach(radius, radius, radius, radius, cell=radius)
        return ModelHeader(
            name="none",
            version=VERSION,
            architecture="matched",
            arguments={"fwhm": float(self.fwhm)},
            bands=0,
            outputs=(
                Output(name="source", role="source"),
                Output(name="significance", role="elevation"),
            ),
            elevation={"significance": Share(weight=1.0)},
            detect_on="elevation",
            thresh_unit="sigma",
            defaults=Defaults(thresh=DEFAULT_THRESH, mincont=0.005),
            reach=reach,
            bytes_per_pixel=24,
            certificate=Certificate("proven", reach, reach.halo, 0.0, probed=True),
            recipe={"kind": "Gaussian matched filter", "fwhm_px": float(self.fwhm)},
            licence="same as fcnpipe",
        )

    @property
    def digest(self) -> str:
        """Digest of the header, which decides everything."""
        return hashlib.blake2b(self.header.model_dump_json().encode(), digest_size=16).hexdigest()

    @property
    def halo(self) -> int:
        """Radius of the kernel, px."""
        return self.header.halo

    @property
    def stride(self) -> int:
        """Always 1: any shift commutes."""
        return 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The one class, ``source``."""
        return self.header.classes

    @property
    def bytes_per_pixel(self) -> int:
        """Peak memory for each pixel looked at."""
        return self.header.bytes_per_pixel

    def precision(self, wanted: str, device: str = "auto") -> str:
        """Always fp32."""
        return "fp32"

    def predictor(
        self, device: str = "auto", precision: str = "fp32", threads: int = 1
    ) -> MatchedPredictor:
        """Make it ready to run; it runs on one thread of the CPU in float32, whatever is asked."""
        return MatchedPredictor(gaussian_taps(self.fwhm))


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPredictor:
    """The filter at work.

    Parameters
    ----------
    taps : ndarray
        (2 r + 1,) float32, one axis of the kernel.
    """

    taps: NDArray[np.float32]

    def __call__(self, snr: NDArray[np.float32], keep: Box | None = None) -> Maps:
        """Give the maps of (bands, h, w) float32 S/N, or of the pixels of ``keep`` alone.

        Elevation is ``asinh(max(s, 0)) / 16`` of the filtered S/N ``s``, clipped to [0, 1].
        Probability is the chance that the true ``s`` exceeds the default threshold, given unit Gaussian noise
        and no prior.
        """
        significance = filter_image(_combine_bands(snr), self.taps)
        return compute_maps(significance[keep.slices] if keep else significance)

    def outputs(self, snr: NDArray[np.float32], keep: Box | None = None) -> NDArray[np.float32]:
        """Give probability and elevation as outputs, (2, h, w)."""
        maps = self(snr, keep)
        return np.stack([maps.probability[0], maps.elevation])


def filter_image(snr: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlate with a separable kernel and keep white noise at unit variance up to the border.

    Parameters
    ----------
    snr : ndarray
        (h, w) float32, no NaN.
    taps : ndarray
        (2 r + 1,) float32, one axis of the kernel.

    Returns
    -------
    ndarray
        (h, w) float32, in sigmas. Each pixel is summed in one order, so any crop of the input that
        holds its neighbours gives the same bits.

    Notes
    -----
    Beyond the border there is nothing rather than zero: the sum is divided by the noise of the taps
    that fell inside.
    """
    columns = np.empty_like(snr)
    _along_y(snr, taps, _gains(snr.shape[0], taps), columns)
    out = np.empty_like(snr)
    _along_x(columns, taps, _gains(snr.shape[1], taps), out)
    return out


def compute_maps(significance: NDArray[np.float32]) -> Maps:
    """Turn filtered S/N, (h, w) float32 in sigmas, into maps."""
    elevation = np.empty_like(significance)
    probability = np.empty((1, *significance.shape), np.float32)
    _squash(significance, elevation, probability[0])
    return Maps(probability, elevation)


def _combine_bands(snr: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add bands up with equal weights, keeping the noise at 1."""
    total: NDArray[np.float32] = np.array(snr[0], dtype=np.float32, order="C")
    if len(snr) == 1:
        return total
    for band in snr[1:]:
        total += band
    total *= np.float32(1 / sqrt(len(snr)))
    return total


def _gains(length: int, taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give 1 / noise of the taps that fall inside, for each of ``length`` pixels."""
    radius = len(taps) // 2
    squares = np.concatenate([[0.0], np.cumsum(taps.astype(np.float64) ** 2)])
    at = np.arange(length)
    first, last = np.maximum(radius - at, 0), np.minimum(radius + length - at, len(taps))
    whole = (first == 0) & (last == len(taps))
    return np.where(whole, 1.0, 1 / np.sqrt(squares[last] - squares[first])).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _along_y(image, taps, gains, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = image.shape
    radius = len(taps) // 2
    for y in range(height):
        row = out[y]
        row[:] = 0
        for k in range(max(radius - y, 0), min(radius + height - y, len(taps))):
            tap, source = taps[k], image[y + k - radius]
            for x in range(width):
                row[x] += tap * source[x]
        for x in range(width):
            row[x] *= gains[y]


@numba.njit(cache=True, nogil=True)
def _along_x(image, taps, gains, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = image.shape
    radius = len(taps) // 2
    for y in range(height):
        row, source = out[y], image[y]
        row[:] = 0
        # Taps outside, pixels inside: each pixel still adds its taps in ascending order.
        for k in range(len(taps)):
            tap, shift = taps[k], k - radius
            for x in range(max(-shift, 0), min(width - shift, width)):
                row[x] += tap * source[x + shift]
        for x in range(width):
            row[x] *= gains[x]


@numba.njit(cache=True, nogil=True)
def _squash(significance, elevation, probability):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = significance.shape
    for y in range(height):
        for x in range(width):
            s = significance[y, x]
            elevation[y, x] = min(asinh(s) / ELEVATION_SIGMAS, 1.0) if s > 0 else 0.0
            probability[y, x] = 0.5 * erfc((DEFAULT_THRESH - s) / sqrt(2.0))
