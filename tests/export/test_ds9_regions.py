"""Export of sources as DS9 regions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from fcnpipe import export
from fcnpipe.science.wcs import pixel_to_icrs
from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import CARDS


def test_ellipses_are_one_based(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "s.reg")
    lines = (tmp_path / "s.reg").read_text().splitlines()
    assert lines[0] == "# Region file format: DS9 version 4.1"
    assert lines[2] == "image"
    assert lines[3] == "ellipse(5.000,4.000,9.000,3.000,30.00) # text={1}"
    assert lines[6] == "ellipse(200.000,150.000,1.000,1.000,0.00) # text={4}"
    assert len(lines) == 7


def test_polygons_on_the_sky_match_the_ellipses(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "s.reg", to_sky=partial(pixel_to_icrs, cards=CARDS))
    lines = (tmp_path / "s.reg").read_text().splitlines()
    assert lines[2] == "icrs"
    numbers = np.array(lines[3].split("(")[1].split(")")[0].split(","), float).reshape(-1, 2)
    wcs = WCS(fits.Header.fromstring("\n".join(CARDS), sep="\n"))
    x, y = wcs.world_to_pixel_values(*numbers.T)
    angle = np.radians(30)
    along = ((x - 4) * np.cos(angle) + (y - 3) * np.sin(angle)) / 9
    across = ((y - 3) * np.cos(angle) - (x - 4) * np.sin(angle)) / 3
    np.testing.assert_allclose(along**2 + across**2, 1, atol=1e-3)


def test_outlines_outside_the_sky_become_image_ellipses(rich: ZarrStore, tmp_path: Path) -> None:
    def to_sky(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(x < 100, np.nan, x), y

    export.export(rich, tmp_path / "s.reg", to_sky=to_sky)
    lines = (tmp_path / "s.reg").read_text().splitlines()
    ellipse = "ellipse(5.000,4.000,9.000,3.000,30.00) # text={1}"
    assert lines[2:6] == ["icrs", "image", ellipse, "icrs"]
    assert lines[-1].startswith("polygon(200.0")
