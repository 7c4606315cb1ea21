"""Conversion of stored numbers to pixel values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
STRIP = 128
"""Rows that are scaled at a time, so that the float64 intermediate stays in the cache."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a stored number becomes a pixel value: ``offset + factor * stored``.

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
        """Give (h, w) float32, native and contiguous; NaN is blank.

        Notes
        -----
        Scaled in float64 and rounded once, so a value does not depend on the size of its array.
        Integers beyond 2**24 and doubles are rounded; out of float32's range they are infinite.
        """
        values = np.empty(stored.shape, np.float32)
        self.fill(values, stored)
        return values

    def fill(self, values: NDArray[Any], stored: NDArray[Any]) -> None:
        """Write into ``values`` what :meth:`to_float` gives; doubles are not rounded."""
        for start in range(0, len(stored), STRIP):
            rows = slice(start, start + STRIP)
            with np.errstate(over="ignore", invalid="ignore"):
                values[rows] = self._apply(stored[rows])

    def to_integer(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        """Give (h, w) int64; blank, NaN and infinite are -1, that is all bits set.

        Notes
        -----
        Fractions are rounded away from zero: what is not zero in a mask stays so. Unsigned 64-bit
        numbers keep their bits.
        """
        if stored.dtype.kind == "f" or self.factor != 1 or not self.offset.is_integer():
            with np.errstate(invalid="ignore"):
                return _round_outwards(self._apply(stored.astype(np.float64)))
        shift = np.uint64(int(self.offset) % 2**64).astype(np.int64)
        values = stored.astype(np.int64) + shift
        if self.blank is not None:
            values[stored == self.blank] = -1
        return values

    def _apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        if self == AS_STORED:
            return stored
        values: NDArray[Any] = stored.astype("f4" if self._is_short(stored) else "f8")
        if self.factor != 1:
            values *= self.factor
        values += self.offset
        if self.blank is not None:
            values[stored == self.blank] = np.nan
        return values

    def _is_short(self, stored: NDArray[Any]) -> bool:
        """Whether float32 holds every value exactly (unsigned 16 bits kept as signed, mostly)."""
        short = stored.dtype.kind in "biu" and stored.dtype.itemsize <= 2
        shift = self.factor == 1 and self.offset.is_integer() and abs(self.offset) < 2**22
        return short and shift


AS_STORED = Scaling()
"""The stored number is the value."""


def _round_outwards(values: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.isfinite(values)
    whole = np.copysign(np.ceil(np.abs(values)), values)
    return np.where(known, whole, -1).astype(np.int64)
