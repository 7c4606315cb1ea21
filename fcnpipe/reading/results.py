"""Finished stores with sky positions, cone search, cutouts and exports; ``fcnpipe.open`` opens one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fcnpipe import export
from fcnpipe.core.errors import SpecError
from fcnpipe.reading.sky_coordinates import SkyIndex, SkyTransform
from fcnpipe.science.wcs import pixel_to_icrs, read_wcs
from fcnpipe.stores import ZarrStore, open_store

CUTOUT_MAPS = ("label", "probability", "flags", "science")
"""Maps of a cutout, as far as the store has them."""


def open(path: str | Path) -> Segmentation:
    """Open a finished store.

    Parameters
    ----------
    path : str or Path
        The store OUT.zarr, or its URL.

    Returns
    -------
    Segmentation
        The store; arrays are read on access.

    Raises
    ------
    StoreError
        If there is no store at ``path``.
    """
    return Segmentation(open_store(path))


@dataclass(frozen=True)
class Segmentation:
    """The maps and the catalogue of a finished run as lazy xarray objects.

    Attributes
    ----------
    store : ZarrStore
        The store that holds them.
    """

    store: ZarrStore

    @cached_property
    def tree(self) -> xr.DataTree:
        """All groups of the store, as ``xarray.open_datatree`` returns them.

        Raises
        ------
        StoreError
            If metadata or coordinates of the store are damaged.
        """
        with self.store.convert_errors("a group"):
            return xr.open_datatree(self.store.location, engine="zarr")

    @cached_property
    def image(self) -> xr.Dataset:
        """Maps at full resolution; with a WCS also the lazy coordinates ``ra`` and ``dec`` (y, x), ICRS degrees."""
        dataset = self.tree["image/0"].to_dataset()
        if not self.has_sky:
            return dataset
        transform = SkyTransform(self.store.cards, self.store.layout.shape)
        return dataset.assign_coords(xr.Coordinates.from_xindex(SkyIndex(transform)))

    @cached_property
    def sources(self) -> xr.Dataset:
        """The catalogue: one row for each source, and the columns in the order of the store.

        Raises
        ------
        StoreError
            If the store has no catalogue, because ``fcnpipe predict`` made it.
        """
        columns = self.store.columns
        return self.tree["sources"].to_dataset()[columns]

    @cached_property
    def has_sky(self) -> bool:
        """Whether the image has celestial coordinates."""
        return read_wcs(self.store.cards) is not None

    def cone(self, ra: float, dec: float, radius: float) -> xr.Dataset:
        """Return the sources within a radius of a position, nearest first.

        Parameters
        ----------
        ra, dec : float
            Centre of the cone, ICRS, degrees.
        radius : float
            Radius of the cone, degrees.

        Returns
        -------
        Dataset
            The rows of the sources, with their ``separation`` from the centre in degrees.

        Raises
        ------
        SpecError
            If the image has no celestial coordinates, or the position or radius is invalid.
        """
        if not (np.isfinite(ra) and abs(dec) <= 90 and radius >= 0):
            raise SpecError(
                f"cone ra={ra}, dec={dec}, radius={radius} is invalid: use degrees, dec from -90 to 90, and a "
                "radius of at least 0"
            )
        if not self.has_sky:
            raise SpecError(f"{self.store.path} has no sky positions: its image has no WCS")
        distance = np.concatenate(
            [
                _separation(ra, dec, block["ra"], block["dec"])
                for block in self.store.source_blocks(["ra", "dec"])
            ]
        )
        rows = np.flatnonzero(distance <= radius)
        rows = rows[np.argsort(distance[rows], kind="stable")]
        attrs = {"units": "deg", "long_name": "distance from the centre of the cone"}
        return self.sources.isel(source=rows).assign(separation=("source", distance[rows], attrs))

    def cutout(
        self, label: int | None = None, *, source_id: int | None = None, margin: int = 8
    ) -> xr.Dataset:
        """Return the maps around one source.

        Parameters
        ----------
        label, source_id : int, optional
            Label or permanent id of the source; exactly one of the two is needed.
        margin : int
            Margin around the bounding box of the source, px; the cutout is clipped at the edge of the image.

        Returns
        -------
        Dataset
            The maps of `CUTOUT_MAPS` that the store has, with the pixel coordinates of the full image.

        Raises
        ------
        SpecError
            If there is no such source, or not exactly one of label and source_id is given.
        """
        row = self._find_row(label, source_id)
        names = [f"bbox_{axis}{end}" for axis in "yx" for end in ("min", "max")]
        found = self.store.read_sources(names, slice(row, row + 1))
        y0, y1, x0, x1 = (int(found[name][0]) for name in names)
        maps = [name for name in CUTOUT_MAPS if name in self.image]
        return self.image[maps].isel(
            y=slice(max(y0 - margin, 0), y1 + 1 + margin),
            x=slice(max(x0 - margin, 0), x1 + 1 + margin),
        )

    def export(self, path: str | Path, kind: str | None = None) -> None:
        """Write the catalogue, a map, regions or a picture to a file.

        Parameters
        ----------
        path : str or Path
            The file; an existing one is replaced.
        kind : str, optional
            One of ``fcnpipe.export.KINDS``, or names of outputs for a prediction; by default the suffix of
            the file selects it. See `fcnpipe.export.export`.

        Raises
        ------
        SpecError
            If the kind or the suffix is unknown, or if the file is a URL.
        StoreError
            If the file cannot be written.
        """
        to_sky = partial(pixel_to_icrs, cards=self.store.cards) if self.has_sky else None
        export.export(self.store, path, kind, to_sky=to_sky)

    def _find_row(self, label: int | None, source_id: int | None) -> int:
        if label is not None and source_id is None:
            if not 1 <= label <= self.store.n_sources:
                raise SpecError(
                    f"label={label} is not in 1 to {self.store.n_sources}: use a label of the catalogue"
                )
            return label - 1
        if source_id is None or label is not None:
            raise SpecError("a cutout needs a label or a source_id: use one of the two")
        # Rows are sorted by source_id.
        ids = self.store.read_sources(["source_id"])["source_id"].astype(np.int64)
        row = int(np.searchsorted(ids, source_id))
        if row == len(ids) or ids[row] != source_id:
            raise SpecError(f"source_id={source_id} is not in the catalogue: use one of its ids")
        return row


def _separation(
    ra: float, dec: float, ras: NDArray[np.float64], decs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute angular separations in degrees with the haversine formula, which is accurate for small angles."""
    lon, lat, lons, lats = (np.radians(value) for value in (ra, dec, ras, decs))
    half = np.sin((lats - lat) / 2) ** 2
    half = half + np.cos(lat) * np.cos(lats) * np.sin((lons - lon) / 2) ** 2
    angle: NDArray[np.float64] = np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
    return angle
