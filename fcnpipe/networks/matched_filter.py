"""The matched filter, model ``none``: detection without a network, and the baseline for networks.

The S/N image is correlated with a Gaussian of the width of the point-spread function, the best linear
detector of point sources in white noise. torch is not needed.
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
"""Threshold in sigma of the filtered image, which noise alone exceeds about once in 30,000 px.

SExtractor's default of 1.5 is in sigma of the unfiltered noise.
"""
_TRUNCATION = 4.0
"""Radius of the kernel in units of its sigma: the weight cut off is 6e-5."""


def gaussian_taps(fwhm_px: float) -> NDArray[np.float32]:
    """Return the Gaussian kernel along one axis.

    Parameters
    ----------
    fwhm_px : float
        Full width at half maximum, px.

    Returns
    -------
    ndarray
        (2 r + 1,) float32, symmetric. The squares sum to 1, so white noise keeps unit variance.
    """
    sigma = fwhm_px / sqrt(8 * log(2))
    radius = ceil(_TRUNCATION * sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(taps / np.sqrt(np.sum(taps**2)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class MatchedFilter:
    """A Gaussian matched filter with the interface of a model.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum of the kernel, px.

    Raises
    ------
    ModelError
        If the width is not in (0.5, 20] px.
    """

    fwhm: float = 3.0

    def __post_init__(self) -> None:
        if not 0.5 < self.fwhm <= 20:
            raise ModelError(
                f"fwhm={self.fwhm} px is outside (0.5, 20]: use the width of a star in the image"
            )

    @property
    def header(self) -> ModelHeader:
        """Header of the filter; it is computed, not read from a file."""
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
        """Hexadecimal digest of the header, which determines the results."""
        return hashlib.blake2b(self.header.model_dump_json().encode(), digest_size=16).hexdigest()

    @property
    def halo(self) -> int:
        """Radius of the kernel, px."""
        return self.header.halo

    @property
    def stride(self) -> int:
        """Always 1: every shift commutes with the filter."""
        return 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The one class, ``source``."""
        return self.header.classes

    @property
    def bytes_per_pixel(self) -> int:
        """Peak memory, bytes for each pixel read."""
        return self.header.bytes_per_pixel

    def precision(self, wanted: str, device: str = "auto") -> str:
        """Return fp32, the only arithmetic of the filter."""
        return "fp32"

    def predictor(
        self, device: str = "auto", precision: str = "fp32", threads: int = 1
    ) -> MatchedPredictor:
        """Return a predictor; it always runs on one thread of the CPU in float32."""
        return MatchedPredictor(gaussian_taps(self.fwhm))


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPredictor:
    """Predictor of a matched filter.

    Parameters
    ----------
    taps : ndarray
        (2 r + 1,) float32, the kernel along one axis.
    """

    taps: NDArray[np.float32]

    def __call__(self, snr: NDArray[np.float32], keep: Box | None = None) -> Maps:
        """Compute the maps of (bands, h, w) float32 S/N, or of the pixels of ``keep`` only.

        The elevation is ``asinh(max(s, 0)) / 16`` of the filtered S/N ``s``, clipped to [0, 1]. The
        probability is that of the true ``s`` exceeding the default threshold, for unit Gaussian noise
        and a flat prior.
        """
        significance = filter_image(_combine_bands(snr), self.taps)
        return compute_maps(significance[keep.slices] if keep else significance)

    def outputs(self, snr: NDArray[np.float32], keep: Box | None = None) -> NDArray[np.float32]:
        """Compute probability and elevation as outputs, (2, h, w) float32."""
        maps = self(snr, keep)
        return np.stack([maps.probability[0], maps.elevation])


def filter_image(snr: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlate with a separable kernel; white noise keeps unit variance up to the border.

    Parameters
    ----------
    snr : ndarray
        (h, w) float32, no NaN.
    taps : ndarray
        (2 r + 1,) float32, the kernel along one axis.

    Returns
    -------
    ndarray
        (h, w) float32, in sigmas. The terms of each pixel are summed in a fixed order, so any crop
        of the input that contains its neighbours has the same bits.

    Notes
    -----
    Pixels beyond the border are left out of the sum, and the sum is divided by its noise, which the
    taps inside the image determine.
    """
    columns = np.empty_like(snr)
    _correlate_y(snr, taps, _inverse_noise(snr.shape[0], taps), columns)
    out = np.empty_like(snr)
    _correlate_x(columns, taps, _inverse_noise(snr.shape[1], taps), out)
    return out


def compute_maps(significance: NDArray[np.float32]) -> Maps:
    """Return the maps of a filtered image, (h, w) float32 in sigmas."""
    elevation = np.empty_like(significance)
    probability = np.empty((1, *significance.shape), np.float32)
    _fill_maps(significance, ELEVATION_SIGMAS, elevation, probability[0])
    return Maps(probability, elevation)


def _combine_bands(snr: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of the bands with equal weights, scaled so that the noise stays 1."""
    total: NDArray[np.float32] = np.array(snr[0], dtype=np.float32, order="C")
    if len(snr) == 1:
        return total
    for band in snr[1:]:
        total += band
    total *= np.float32(1 / sqrt(len(snr)))
    return total


def _inverse_noise(length: int, taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / noise of the sum over the taps inside the image, for each of ``length`` pixels."""
    radius = len(taps) // 2
    squares = np.concatenate([[0.0], np.cumsum(taps.astype(np.float64) ** 2)])
    pixel = np.arange(length)
    first, last = np.maximum(radius - pixel, 0), np.minimum(radius + length - pixel, len(taps))
    all_inside = (first == 0) & (last == len(taps))
    return np.where(all_inside, 1.0, 1 / np.sqrt(squares[last] - squares[first])).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _correlate_y(image, taps, gains, out):  # type: ignore[no-untyped-def]  # pragma: no cover
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
def _correlate_x(image, taps, gains, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = image.shape
    radius = len(taps) // 2
    for y in range(height):
        row, source = out[y], image[y]
        row[:] = 0
        # The loop over pixels is the inner one. Each pixel still adds its taps in ascending order.
        for k in range(len(taps)):
            tap, shift = taps[k], k - radius
            for x in range(max(-shift, 0), min(width - shift, width)):
                row[x] += tap * source[x + shift]
        for x in range(width):
            row[x] *= gains[x]


@numba.njit(cache=True, nogil=True)
def _fill_maps(significance, sigmas, elevation, probability):  # type: ignore[no-untyped-def]  # pragma: no cover
    height, width = significance.shape
    for y in range(height):
        for x in range(width):
            s = significance[y, x]
            elevation[y, x] = min(asinh(s) / sigmas, 1.0) if s > 0 else 0.0
            probability[y, x] = 0.5 * erfc((DEFAULT_THRESH - s) / sqrt(2.0))
