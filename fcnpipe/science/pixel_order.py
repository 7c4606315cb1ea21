"""A strict total order of the pixels of an image, and their neighbours in raster order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INDEX_BITS = 45
"""Bits of a global pixel index in a key: images of up to 2**45 pixels."""

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""(dy, dx) of the eight neighbours in raster order: direction 0 to 7."""

_LAST = (1 << INDEX_BITS) - 1

Int64 = NDArray[np.int64]
Key = NDArray[np.uint64]


def pixel_key(elevation: Any, index: Any) -> Key:
    """Give the key of pixels: a strict total order, highest first by elevation, then raster order.

    Parameters
    ----------
    elevation : array_like of uint16
    index : array_like of int64
        Global index y * width + x, below ``2**INDEX_BITS``.
    """
    high = np.asarray(elevation, np.uint64) << np.uint64(48)
    return np.asarray(
        high | ((_LAST - np.asarray(index, np.int64)).astype(np.uint64) << np.uint64(3))
    )


def key_index(key: Key) -> Int64:
    """Give the global index of the pixel with this key."""
    return _LAST - ((key >> np.uint64(3)) & np.uint64(_LAST)).astype(np.int64)


def key_elevation(key: Key) -> Int64:
    """Give the elevation of the pixel with this key."""
    return (key >> np.uint64(48)).astype(np.int64)
