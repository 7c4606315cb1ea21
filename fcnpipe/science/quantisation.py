"""Quantisation of a network's maps and thresholds, and the unit of fixed-point fluxes.

All steps after the quantised maps use integers or a total order. Sums and comparisons therefore do not
depend on the tiling.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

ELEVATION_MAX = 65535
"""Quantised elevation of 1."""
PROBABILITY_MAX = 255
"""Quantised probability of 1."""
SKY_DIVISOR = 4
"""A pixel is certainly sky if its probability is below the foreground threshold divided by this."""
FLUX_BITS = 14
"""The step of fixed-point fluxes is at most 2**-FLUX_BITS of the typical noise of a pixel."""


def quantise_probability(probability: Float) -> NDArray[np.uint8]:
    """Round probabilities in [0, 1] to multiples of 1 / 255."""
    return np.asarray(np.rint(probability * np.float32(PROBABILITY_MAX)), np.uint8)


def quantise_elevation(elevation: Float) -> NDArray[np.uint16]:
    """Round elevations in [0, 1] to multiples of 1 / 65535."""
    return np.asarray(np.rint(elevation * np.float32(ELEVATION_MAX)), np.uint16)


def zero_sky_elevation(
    elevation: NDArray[np.uint16], probability: NDArray[np.uint8], foreground: int
) -> None:
    """Set the elevation of sky pixels to 0, in place.

    Parameters
    ----------
    elevation : (h, w) uint16
        Quantised elevation.
    probability : (h, w) uint8
        Quantised source probability.
    foreground : int
        Quantised threshold of the foreground.

    Notes
    -----
    Only the foreground is separated. The elevation of the sky is noise, which does not compress: without
    this noise the map takes a third of the space and of the writing time.
    """
    elevation[probability < foreground // SKY_DIVISOR] = 0


def quantise_threshold(fraction: float, maximum: int) -> int:
    """Compute the smallest integer that is not below ``fraction`` of ``maximum``.

    Examples
    --------
    >>> quantise_threshold(0.5, 255), quantise_threshold(0.0, 255), quantise_threshold(1.0, 255)
    (128, 0, 255)
    """
    # The tolerance absorbs rounding errors: 3 * 0.2 * 255 is 153.00000000000003 and must not become 154.
    return math.ceil(fraction * maximum - 1e-9)


def flux_unit(noise: float) -> float:
    """Compute the unit of fixed-point fluxes: the power of two that resolves ``noise`` to FLUX_BITS bits.

    ``noise`` is > 0 and in image units, as is the result.

    Examples
    --------
    >>> flux_unit(1.0) == flux_unit(1.9) == 2.0**-14
    True
    """
    return math.ldexp(1.0, math.floor(math.log2(noise)) - FLUX_BITS)
