"""From the answers of the network, its thresholds and fluxes to integers.

Everything after the quantised maps is integer or totally ordered, so that sums and orders cannot
depend on how the image was tiled.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

ELEVATION_MAX = 65535
PROBABILITY_MAX = 255
SKY_DIVISOR = 4
"""What is less probable than this part of the foreground's level is sky for certain."""
FLUX_BITS = 14
"""Fixed-point fluxes resolve the typical noise of a pixel to 2**-FLUX_BITS."""


def quantise_probability(probability: Float) -> NDArray[np.uint8]:
    """Round probabilities in [0, 1] to 255ths."""
    return np.asarray(np.rint(probability * np.float32(PROBABILITY_MAX)), np.uint8)


def quantise_elevation(elevation: Float) -> NDArray[np.uint16]:
    """Round elevations in [0, 1] to 65535ths."""
    return np.asarray(np.rint(elevation * np.float32(ELEVATION_MAX)), np.uint16)


def zero_sky_elevation(
    elevation: NDArray[np.uint16], probability: NDArray[np.uint8], foreground: int
) -> None:
    """Set the elevation to 0, in place, where the sky is: far below the level of the foreground.

    Only foreground is separated. Of the sky the elevation says nothing, in noise that does not
    compress: without it the map takes a third of the space, and of the time to write it.
    """
    elevation[probability < foreground // SKY_DIVISOR] = 0


def quantise_threshold(fraction: float, top: int) -> int:
    """Give the least integer level of a map with this top that is not below ``fraction`` of it.

    Examples
    --------
    >>> quantise_threshold(0.5, 255), quantise_threshold(0.0, 255), quantise_threshold(1.0, 255)
    (128, 0, 255)
    """
    return math.ceil(fraction * top - 1e-9)


def flux_unit(noise: float) -> float:
    """Give the power of two that resolves ``noise`` (image units, > 0) to FLUX_BITS bits.

    Examples
    --------
    >>> flux_unit(1.0) == flux_unit(1.9) == 2.0**-14
    True
    """
    return math.ldexp(1.0, math.floor(math.log2(noise)) - FLUX_BITS)
