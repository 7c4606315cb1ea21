"""A masked image refuses the image itself as its weight or mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcnpipe.core.errors import InputError
from fcnpipe.core.spec import make_spec
from fcnpipe.images.masked_image import MaskedImage
from tests.images.telescope_files import write_telescope_file


@pytest.mark.parametrize("name", ["weight", "mask"])
def test_a_map_is_not_the_image_itself(tmp_path: Path, name: str) -> None:
    path = str(write_telescope_file(tmp_path / "a.fits"))
    with pytest.raises(InputError, match=rf"{name} .*a\.fits is the image itself: .*\[HDU\]"):
        MaskedImage(make_spec(image=(path,), out="o", **{name: path}))
    bands, own = (f"{path}[ERR]", f"{path}[SCI]"), f"{path}[SCI]"
    with pytest.raises(InputError, match=r"\[SCI\] is the image itself: .*a\.fits\[HDU\]$"):
        MaskedImage(make_spec(image=bands, out="o", **{name: own}))
    spec = make_spec(image=(path,), out="o", weight=f"{path}[ERR]", mask=f"{path}[DQ]")
    assert MaskedImage(spec).digest.count("-") == 2
