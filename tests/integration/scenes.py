"""Test images (small, with sources on every seam and bad pixels), and comparison of results."""

from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS

from fcnpipe.simulation.scenes import draw


def make_wcs_header() -> fits.Header:
    """Return a tangent-plane header with pixels of 0.2 arcsec."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.cdelt = [200, 150], [-0.2 / 3600, 0.2 / 3600]
    wcs.wcs.crval, wcs.wcs.ctype = [150.1, 2.2], ["RA---TAN", "DEC--TAN"]
    return wcs.to_header()


def write_field(
    path: Path, shape: tuple[int, int] = (700, 900), seed: int = 3, kind: str = "cluster"
) -> Path:
    """Write a simulated field with a bad column and a rectangle of NaN."""
    image = draw(kind, shape, seed).image.copy()
    image[:, 300] = np.nan
    image[100:105, 500:520] = np.nan
    fits.writeto(path, image, make_wcs_header(), overwrite=True)
    return path


def read_all(out: Path) -> dict[str, bytes]:
    """Return all files of a store and its parquet catalogue, without the seconds of each tile."""
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    kept = {
        name: p.read_bytes() for name, p in files.items() if not name.startswith("tiles/seconds/c")
    }
    return kept | {"parquet": out.with_suffix(".parquet").read_bytes()}


def list_differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Return the names of the files that differ or exist only once."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a store whose shape does not depend on the tiles, and the ledger."""
    tree = xr.open_datatree(path, engine="zarr", decode_cf=False)
    return {
        f"{node.path}/{name}": variable.values
        for node in tree.subtree
        for name, variable in node.to_dataset(inherit=False).variables.items()
        if not node.path.startswith(("/tiles", "/checksums"))
    }


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Check that all arrays are equal, except the ledger, whose shape depends on the tiles."""
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("ledger"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
