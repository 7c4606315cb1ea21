"""Conversion of stored numbers to pixel values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
STRIP_ROWS = 128
"""Number of rows that are scaled at a time, so that the float64 intermediate stays in the CPU cache."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Linear relation between stored numbers and pixel values: ``value = offset + factor * stored``.

    Attributes
    ----------
    factor, offset : float
        FITS ``BSCALE`` and ``BZERO``, or CF ``scale_factor`` and ``add_offset``.
    blank : int or float, optional
        Stored number that means "no data" (FITS ``BLANK``, CF ``_FillValue``).

    Examples
    --------
    >>> Scaling(2.0, 1.0, blank=-9).to_float(np.array([[0, 3, -9]], np.int16))
    array([[ 1.,  7., nan]], dtype=float32)
    """

    factor: float = 1.0
    offset: float = 0.0
    blank: int | float | None = None

    def to_float(self, stored: NDArray[Any]) -> Float:
        """Return pixel values, (h, w) float32 in native byte order and contiguous; blank becomes NaN.

        Notes
        -----
        Values are computed in float64 and rounded once, so a value does not depend on the size of its
        array. Integers beyond 2**24 and doubles are rounded; beyond the range of float32 they become
        infinite.
        """
        values = np.empty(stored.shape, np.float32)
        self.fill(values, stored)
        return values

    def fill(self, values: NDArray[Any], stored: NDArray[Any]) -> None:
        """Write the pixel values, as in :meth:`to_float`, into ``values``, an array of float32 or float64."""
        for start in range(0, len(stored), STRIP_ROWS):
            rows = slice(start, start + STRIP_ROWS)
            with np.errstate(over="ignore", invalid="ignore"):
                values[rows] = self._apply(stored[rows])

    def to_integer(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        """Return pixel values, (h, w) int64; blank, NaN and infinity become -1 (all bits set).

        Notes
        -----
        Fractions are rounded away from zero, so that a non-zero value of a mask stays non-zero.
        Unsigned 64-bit numbers keep their bits.
        """
        if stored.dtype.kind == "f" or self.factor != 1 or not self.offset.is_integer():
            with np.errstate(invalid="ignore"):
                return _round_away_from_zero(self._apply(stored.astype(np.float64)))
        shift = np.uint64(int(self.offset) % 2**64).astype(np.int64)
        values = stored.astype(np.int64) + shift
        if self.blank is not None:
            values[stored == self.blank] = -1
        return values

    def _apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        if self == AS_STORED:
            return stored
        values: NDArray[Any] = stored.astype("f4" if self._is_exact_in_float32(stored) else "f8")
        if self.factor != 1:
            values *= self.factor
        values += self.offset
        if self.blank is not None:
            values[stored == self.blank] = np.nan
        return values

    def _is_exact_in_float32(self, stored: NDArray[Any]) -> bool:
        """Return whether float32 represents every value exactly, as for uint16 stored as int16."""
        short = stored.dtype.kind in "biu" and stored.dtype.itemsize <= 2
        shift = self.factor == 1 and self.offset.is_integer() and abs(self.offset) < 2**22
        return short and shift


AS_STORED = Scaling()
"""Scaling that leaves the stored numbers unchanged."""


def _round_away_from_zero(values: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.isfinite(values)
    whole = np.copysign(np.ceil(np.abs(values)), values)
    return np.where(known, whole, -1).astype(np.int64)
