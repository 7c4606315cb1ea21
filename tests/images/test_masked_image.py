"""An image with its weight and mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fcnpipe.core.errors import InputError
from fcnpipe.core.spec import make_spec
from fcnpipe.images.masked_image import MaskedImage


def several(path: Path) -> Path:
    """Write one file of two bands, noise and flags, as space telescopes do."""
    extensions = [("SCI", 1, 10), ("DQ", 1, 11), ("SCI", 2, 20), ("ERR", 2, 22)]
    hdus = [fits.ImageHDU(np.full((6, 5), v, "f4"), name=n, ver=k) for n, k, v in extensions]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


@pytest.mark.parametrize("name", ["weight", "mask"])
def test_a_map_is_not_the_image_itself(tmp_path: Path, name: str) -> None:
    path = str(several(tmp_path / "a.fits"))
    with pytest.raises(InputError, match=rf"{name} .*a\.fits is the image itself: .*\[HDU\]"):
        MaskedImage(make_spec(image=(path,), out="o", **{name: path}))
    bands, own = (f"{path}[ERR]", f"{path}[SCI]"), f"{path}[SCI]"
    with pytest.raises(InputError, match=r"\[SCI\] is the image itself: .*a\.fits\[HDU\]$"):
        MaskedImage(make_spec(image=bands, out="o", **{name: own}))
    spec = make_spec(image=(path,), out="o", weight=f"{path}[ERR]", mask=f"{path}[DQ]")
    assert MaskedImage(spec).digest.count("-") == 2
