"""Strict total order of the pixels of an image, and their neighbours in raster order.

::

    bits of a key   63 ... 48    47 ... 3              2 1 0
                    elevation    2**45 - 1 - index     0; a direction in the level of a pass

Of two pixels, the one with the higher elevation has the greater key; at equal elevation, it is the one
that comes first in raster order. This order has neither ties nor plateaus, so no result depends on the
order in which tiles are processed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INDEX_BITS = 45
"""Bits of a global pixel index in a key: an image has fewer than 2**45 pixels."""

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""(dy, dx) of the eight neighbours in raster order: directions 0 to 7."""

_LAST_INDEX = (1 << INDEX_BITS) - 1

Int64 = NDArray[np.int64]
Key = NDArray[np.uint64]


def pixel_key(elevation: Any, index: Any) -> Key:
    """Compute the keys of pixels.

    Parameters
    ----------
    elevation : array_like of uint16
    index : array_like of int64
        Global index y * width + x, below ``2**INDEX_BITS``.

    Returns
    -------
    array of uint64
        Greater for a higher elevation and, at equal elevation, for a lower index.
    """
    high = np.asarray(elevation, np.uint64) << np.uint64(48)
    return np.asarray(
        high | ((_LAST_INDEX - np.asarray(index, np.int64)).astype(np.uint64) << np.uint64(3))
    )


def key_index(key: Key) -> Int64:
    """Return the global index of the pixel with this key."""
    return _LAST_INDEX - ((key >> np.uint64(3)) & np.uint64(_LAST_INDEX)).astype(np.int64)


def key_elevation(key: Key) -> Int64:
    """Return the elevation of the pixel with this key."""
    return (key >> np.uint64(48)).astype(np.int64)
