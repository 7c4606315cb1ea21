"""Images that the integration tests run on: small, crowded across every seam, with bad pixels."""

from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS

from fcnpipe.simulation.scenes import draw


def sky_header() -> fits.Header:
    """A tangent-plane header with 0.2 arcsec pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.cdelt = [200, 150], [-0.2 / 3600, 0.2 / 3600]
    wcs.wcs.crval, wcs.wcs.ctype = [150.1, 2.2], ["RA---TAN", "DEC--TAN"]
    return wcs.to_header()


def write_field(
    path: Path, shape: tuple[int, int] = (700, 900), seed: int = 3, kind: str = "cluster"
) -> Path:
    """Write a simulated field with a bad column, NaN and a bright plateau."""
    image = draw(kind, shape, seed).image.copy()
    image[:, 300] = np.nan
    image[100:105, 500:520] = np.nan
    fits.writeto(path, image, sky_header(), overwrite=True)
    return path


def read_all(out: Path) -> dict[str, bytes]:
    """Every file of a store but the time that each tile took, and the catalogue beside it."""
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    kept = {
        name: p.read_bytes() for name, p in files.items() if not name.startswith("tiles/seconds/c")
    }
    return kept | {"parquet": out.with_suffix(".parquet").read_bytes()}


def content(path: Path) -> dict[str, np.ndarray]:
    """Every array of a store, except those that have a place for each tile."""
    tree = xr.open_datatree(path, engine="zarr", decode_cf=False)
    return {
        f"{node.path}/{name}": variable.values
        for node in tree.subtree
        for name, variable in node.to_dataset(inherit=False).variables.items()
        if not node.path.startswith(("/tiles", "/checksums"))
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """All but the ledger, which has a place for each tile."""
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("ledger"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
