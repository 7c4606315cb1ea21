"""Small simulated images for tests of the flows."""

from pathlib import Path

import numpy as np
from astropy.io import fits


def write_stars(path: Path, seed: int = 5, side: int = 96) -> Path:
    """Write an image with a sky level of 100, noise of 2 and eight stars."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side))
    sky = rng.normal(100, 2, (side, side))
    for cy, cx in rng.uniform(10, side - 10, (8, 2)):
        sky += 150 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    fits.writeto(path, sky.astype(np.float32), overwrite=True)
    return path
