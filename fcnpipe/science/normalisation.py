"""Signal-to-noise for the network from raw pixels, and the units of the image from its answers.

Each function here gives a pixel a value that depends on that pixel and at most
:data:`FILL_REACH` neighbours, never on the array it was cut in.
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
"""A bad pixel takes the weighted mean of good pixels up to this far in y and x; beyond it is sky."""
_NO_DATA = int(PixelFlag.NO_DATA)
BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
"""Pixels that carry no information; saturated ones do."""


def flag_pixels(
    image: Float,
    mask: NDArray[np.bool_] | None = None,
    weight: NDArray[Any] | None = None,
    satur_level: float | None = None,
) -> Flags:
    """Say of each pixel why it is not to be trusted.

    Parameters
    ----------
    image : (h, w) float32
        NaN or infinite is no data.
    mask : (h, w) bool, optional
        True is bad.
    weight : (h, w) float, optional
        Zero, negative or not finite is bad.
    satur_level : float, optional
        Pixels at or above it are saturated.

    Returns
    -------
    (h, w) uint8
        Bits of :class:`fcnpipe.core.records.PixelFlag`; 0 is good.
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
    """Give (I - sky) / noise with bad pixels filled from good neighbours.

    Parameters
    ----------
    residual, noise : (h, w) float32
        Image minus sky, and the noise of a pixel, in image units; noise > 0 where good.
    flags : (h, w) uint8
        Bits of :class:`fcnpipe.core.records.PixelFlag`.

    Returns
    -------
    (h, w) float32
        Finite everywhere; bad pixels with no good one in reach are 0, the sky.
    """
    bad = (flags & BAD) != 0
    if not bad.any():
        return residual / noise
    clean = np.divide(residual, noise, out=np.zeros_like(residual), where=~bad)
    return np.where(bad, _local_mean(clean, ~bad), clean)


def _local_mean(values: Float, good: NDArray[np.bool_]) -> Float:
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
    """Give in the units of the image what a network gives in its own: its scaling undone.

    Parameters
    ----------
    values : (h, w) float32
        As the network gives them.
    noise, zero : (h, w) float32
        What was divided by and, before that, subtracted, image units.
    unit : float
        What the network counts in, in units of the noise.
    stretched : bool
        Whether it gives the arcsinh of the count.

    Returns
    -------
    (h, w) float32
        Each pixel in float64, rounded once; NaN where the noise is not known.
    """
    image = np.empty(values.shape, np.float32)
    _undo(values, noise, zero, (unit, stretched), image)
    return image


@njit(cache=True, nogil=True)
def _undo(values, noise, zero, scaling, image):  # type: ignore[no-untyped-def]
    unit, stretched = scaling
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            value = np.float64(values[y, x])
            count = unit * (math.sinh(value) if stretched else value)
            known = np.isfinite(noise[y, x])
            image[y, x] = count * noise[y, x] + zero[y, x] if known else np.nan


def relative_position(start: int, stop: int, size: int) -> Float:
    """Give where pixels lie along an axis of ``size`` px: -1 is the first of all, 1 the last.

    Examples
    --------
    >>> relative_position(1, 3, 5)
    array([-0.5,  0. ], dtype=float32)
    """
    return (2 * np.arange(start, stop) / max(size - 1, 1) - 1).astype(np.float32)
