"""Lazy ICRS coordinates of an image for xarray."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from xarray.core.coordinate_transform import CoordinateTransform
from xarray.indexes import CoordinateTransformIndex

from fcnpipe.science.wcs import pixel_to_icrs, read_wcs


class SkyTransform(CoordinateTransform):
    """Transformation between pixels (y, x) and ICRS degrees, for a rectangular part of an image.

    Parameters
    ----------
    cards : tuple of str
        FITS header cards of the whole image.
    shape : (int, int)
        Height and width of the part, px.
    origin : (int, int)
        First pixel (y, x) of the part in the whole image.
    """

    def __init__(
        self, cards: tuple[str, ...], shape: tuple[int, int], origin: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__(("ra", "dec"), {"y": shape[0], "x": shape[1]}, np.dtype(np.float64))
        self.cards, self.shape, self.origin = cards, shape, origin

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        """Return ra and dec of pixel positions."""
        y, x = (
            np.asarray(dim_positions[dim], np.float64) + start
            for dim, start in zip("yx", self.origin, strict=True)
        )
        ra, dec = pixel_to_icrs(x.ravel(), y.ravel(), self.cards)
        return {"ra": ra.reshape(x.shape), "dec": dec.reshape(x.shape)}

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        """Return the fractional pixel positions of ra and dec."""
        wcs = read_wcs(self.cards)
        assert wcs is not None
        sky = SkyCoord(coord_labels["ra"], coord_labels["dec"], unit="deg", frame="icrs")
        x, y = wcs.world_to_pixel(sky)
        return {"y": y - self.origin[0], "x": x - self.origin[1]}

    def equals(
        self, other: CoordinateTransform, *, exclude: frozenset[Hashable] | None = None
    ) -> bool:
        """Return whether both have the same header cards, shape and origin."""
        return isinstance(other, SkyTransform) and self._state == other._state

    @property
    def _state(self) -> tuple[Any, ...]:
        return self.cards, self.shape, self.origin


class SkyIndex(CoordinateTransformIndex):
    """Index of lazy sky coordinates that slicing preserves."""

    transform: SkyTransform

    def isel(self, indexers: Any) -> SkyIndex | None:
        """Return the index of a part of the image, or None unless the part is made of slices of step 1."""
        shape, origin = list(self.transform.shape), list(self.transform.origin)
        for axis, dim in enumerate("yx"):
            cut = indexers.get(dim, slice(None))
            if not isinstance(cut, slice):
                return None
            start, stop, step = cut.indices(shape[axis])
            if step != 1:
                return None
            origin[axis] += start
            shape[axis] = max(stop - start, 0)
        cards = self.transform.cards
        return SkyIndex(SkyTransform(cards, (shape[0], shape[1]), (origin[0], origin[1])))
