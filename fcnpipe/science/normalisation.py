"""Normalisation of pixels for a network: flags, signal-to-noise, padding, and the inverse transform.

The result for a pixel depends only on that pixel and on pixels within :data:`FILL_REACH`, never
on the box that was read. The input of the network therefore does not depend on the tiling.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from fcnpipe.core.records import PixelFlag

Float = NDArray[np.float32]
Flags = NDArray[np.uint8]

FILL_REACH = 4
"""A bad pixel is filled with the weighted mean of the good pixels within this many px in y and x."""
_NO_DATA = int(PixelFlag.NO_DATA)
BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
"""Flag bits of pixels without usable data; a saturated pixel has usable data."""


def flag_pixels(
    image: Float,
    mask: NDArray[np.bool_] | None = None,
    weight: NDArray[Any] | None = None,
    satur_level: float | None = None,
) -> Flags:
    """Flag each pixel that is missing, masked or saturated.

    Parameters
    ----------
    image : (h, w) float32
        Pixels; NaN and infinite pixels are flagged as no data.
    mask : (h, w) bool, optional
        True where a pixel is masked.
    weight : (h, w) float, optional
        Pixels of zero, negative or non-finite weight are flagged as masked.
    satur_level : float, optional
        Pixels at or above this value are flagged as saturated.

    Returns
    -------
    (h, w) uint8
        Bits of :class:`fcnpipe.core.records.PixelFlag`; 0 is a good pixel.
    """
    flags: Flags = _flag_missing(np.asarray(image))
    if mask is not None:
        flags[mask] |= int(PixelFlag.MASKED)
    if weight is not None:
        flags[~(np.isfinite(weight) & (weight > 0))] |= int(PixelFlag.MASKED)
    if satur_level is not None:
        flags[image >= satur_level] |= int(PixelFlag.SATURATED)
    return flags


@njit(cache=True, nogil=True)
def _flag_missing(image):  # type: ignore[no-untyped-def]
    flags = np.zeros(image.shape, np.uint8)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if not np.isfinite(image[y, x]):
                flags[y, x] = _NO_DATA
    return flags


def signal_to_noise(residual: Float, noise: Float, flags: Flags) -> Float:
    """Compute (image - sky) / noise, with bad pixels filled from good neighbours.

    Parameters
    ----------
    residual, noise : (h, w) float32
        Image minus sky, and the noise of each pixel, in image units; noise > 0 where a pixel is good.
    flags : (h, w) uint8
        Bits of :class:`fcnpipe.core.records.PixelFlag`.

    Returns
    -------
    (h, w) float32
        Finite everywhere. Bad pixels without a good pixel in reach are 0, the sky.
    """
    bad = (flags & BAD) != 0
    if not bad.any():
        return residual / noise
    clean = np.divide(residual, noise, out=np.zeros_like(residual), where=~bad)
    return np.where(bad, _mean_of_good(clean, ~bad), clean)


def _mean_of_good(values: Float, good: NDArray[np.bool_]) -> Float:
    total = _blur(np.where(good, values, np.float32(0)))
    weight = _blur(good.astype(np.float32))
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-6)


def _blur(values: Float) -> Float:
    step = np.arange(-FILL_REACH, FILL_REACH + 1)
    kernel = np.exp(-0.5 * (step / (FILL_REACH / 2)) ** 2)
    rows = correlate1d(values, kernel, axis=0, mode="constant")
    return np.asarray(correlate1d(rows, kernel, axis=1, mode="constant"), np.float32)


def pad_high(array: NDArray[np.float32], shape: tuple[int, int]) -> Float:
    """Repeat the last row and column until the last two axes have ``shape``."""
    missing = shape[0] - array.shape[-2], shape[1] - array.shape[-1]
    if missing == (0, 0):
        return array
    width = [(0, 0)] * (array.ndim - 2) + [(0, missing[0]), (0, missing[1])]
    return np.pad(array, width, mode="edge")


def to_image_units(values: Float, noise: Float, zero: Float, unit: float, stretched: bool) -> Float:
    """Convert an output of a network to image units: undo the scaling of its input.

    Parameters
    ----------
    values : (h, w) float32
        Output of the network.
    noise, zero : (h, w) float32
        Noise that the input was divided by, and zero level that was subtracted before, in image units.
    unit : float
        Unit of the network's values, as a multiple of the noise.
    stretched : bool
        Whether ``values`` are the arcsinh of the flux in these units.

    Returns
    -------
    (h, w) float32
        Computed in float64 and rounded once; NaN where the noise is not finite.
    """
    image = np.empty(values.shape, np.float32)
    _undo_scaling(values, noise, zero, (unit, stretched), image)
    return image


@njit(cache=True, nogil=True)
def _undo_scaling(values, noise, zero, scaling, image):  # type: ignore[no-untyped-def]
    unit, stretched = scaling
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            value = np.float64(values[y, x])
            count = unit * (math.sinh(value) if stretched else value)
            known = np.isfinite(noise[y, x])
            image[y, x] = count * noise[y, x] + zero[y, x] if known else np.nan


def relative_position(start: int, stop: int, size: int) -> Float:
    """Compute the positions of pixels along an axis of ``size`` px: -1 is the first pixel, 1 the last.

    Examples
    --------
    >>> relative_position(1, 3, 5)
    array([-0.5,  0. ], dtype=float32)
    """
    return (2 * np.arange(start, stop) / max(size - 1, 1) - 1).astype(np.float32)
