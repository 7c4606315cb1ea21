"""FITS files with the extensions of space telescopes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits


def write_telescope_file(path: Path) -> Path:
    """Write one file with two bands (SCI), noise (ERR) and flags (DQ)."""
    extensions = [("SCI", 1, 10), ("DQ", 1, 11), ("SCI", 2, 20), ("ERR", 2, 22)]
    hdus = [fits.ImageHDU(np.full((6, 5), v, "f4"), name=n, ver=k) for n, k, v in extensions]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path
