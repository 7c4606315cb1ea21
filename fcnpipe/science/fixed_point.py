"""Rounding of fluxes and variances to fixed-point integers.

Sums of integers do not depend on their order, so the sums of a source are the same for every tiling.
The kernels take their limits as arguments: numba does not recompile a cached kernel when a constant
of another file changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.records import PixelFlag
from fcnpipe.science.sums import FLUX_LIMIT, VARIANCE_LIMIT

_BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)


def quantise_flux(flux: NDArray[np.floating[Any]], unit: float) -> NDArray[np.int64]:
    """Round fluxes to whole numbers of a unit, clipped to +-``FLUX_LIMIT``.

    Parameters
    ----------
    flux : array of float
        Flux above the sky; NaN becomes 0.
    unit : float
        Value of one count, preferably a power of two.

    Returns
    -------
    array of int64
        Counts, in the shape of ``flux``.

    Examples
    --------
    >>> quantise_flux(np.array([1.0, -0.5, np.nan, np.inf]), 0.25).tolist()
    [4, -2, 0, 1099511627776]
    """
    return _quantise(flux, unit, (-FLUX_LIMIT, FLUX_LIMIT))


def quantise_variance(variance: NDArray[np.floating[Any]], unit: float) -> NDArray[np.int64]:
    """Round variances to whole numbers of a unit, clipped to [0, ``VARIANCE_LIMIT``].

    Parameters
    ----------
    variance : array of float
        Variance of each pixel; NaN becomes 0.
    unit : float
        Value of one count, preferably a power of two.

    Returns
    -------
    array of int64
        Counts, in the shape of ``variance``.
    """
    return _quantise(variance, unit, (0, VARIANCE_LIMIT))


def _quantise(
    values: NDArray[np.floating[Any]], unit: float, limits: tuple[int, int]
) -> NDArray[np.int64]:
    counts = np.empty(values.shape, np.int64)
    flat = np.ascontiguousarray(values).reshape(-1)
    _round(flat, 1.0 / unit, (float(limits[0]), float(limits[1])), counts.reshape(-1))
    return counts


def quantise_labelled(
    maps: tuple[NDArray[np.int32], NDArray[np.uint8]],
    flux: NDArray[np.float32],
    noise: NDArray[np.float32],
    units: tuple[float, float],
    gain: float | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Round the flux and the variance of labelled pixels to fixed point.

    Parameters
    ----------
    maps : (h, w) int32 and (h, w) uint8
        Labels, and `PixelFlag` bits.
    flux : (h, w) float32
        Flux above the sky, in image units.
    noise : (h, w) float32
        Standard deviation of the sky, in image units.
    units : (float, float)
        Value of one count of flux and of variance.
    gain : float, optional
        Electrons per image unit. With it, the photon noise of the sources, ``max(flux, 0) / gain``,
        is added to the variance.

    Returns
    -------
    flux, variance : (h, w) int64
        Counts; 0 where a pixel has no label or is bad (without data, or masked).
    """
    labels, flags = maps
    counts = np.zeros((2, *labels.shape), np.int64)
    scales = (1.0 / units[0], 1.0 / units[1])
    limits = ((float(-FLUX_LIMIT), float(FLUX_LIMIT)), (0.0, float(VARIANCE_LIMIT)))
    _round_labelled((labels, flags), flux, noise, scales, limits, np.float64(gain or 0), counts)
    return counts[0], counts[1]


@njit(cache=True, nogil=True)
def _round_labelled(maps, flux, noise, scales, limits, gain, counts):  # type: ignore[no-untyped-def]
    labels, flags = maps
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            if labels[i, j] == 0 or (flags[i, j] & _BAD) != 0:
                continue
            value, sigma = np.float64(flux[i, j]), np.float64(noise[i, j])
            variance = sigma * sigma
            if gain > 0:
                variance += max(value, 0.0) / gain
            counts[0, i, j] = _nearest(value, scales[0], limits[0][0], limits[0][1])
            counts[1, i, j] = _nearest(variance, scales[1], limits[1][0], limits[1][1])


@njit(cache=True, nogil=True, forceinline=True)
def _nearest(value, scale, low, high):  # type: ignore[no-untyped-def]
    """Return the integer nearest to ``value * scale``, clipped to limits; 0 for NaN."""
    count = np.float64(value) * scale
    if np.isnan(count):
        return np.int64(0)
    return np.int64(np.rint(min(max(count, np.float64(low)), np.float64(high))))


@njit(cache=True, nogil=True)
def _round(values, scale, limits, counts):  # type: ignore[no-untyped-def]
    """Round in one pass. NumPy needs five passes and float64 copies, which takes longer than the sums."""
    for i in range(len(values)):
        counts[i] = _nearest(values[i], scale, limits[0], limits[1])
