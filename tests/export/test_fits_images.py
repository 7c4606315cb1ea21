"""Export of maps as FITS images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from fcnpipe import export
from fcnpipe.core.errors import SpecError
from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import CARDS, LAYOUT, make_labels


@pytest.mark.parametrize("name", ["labels.fits", "labels.fits.fz"])
def test_the_label_image_is_exported_with_its_wcs(
    rich: ZarrStore, tmp_path: Path, name: str
) -> None:
    export.export(rich, tmp_path / name, "labels")
    with fits.open(tmp_path / name) as hdus:
        hdu = hdus[-1]
        np.testing.assert_array_equal(hdu.data, make_labels())
        assert hdu.header["BITPIX"] == 32
        assert hdu.header["OBJECT"] == "test field"
        assert WCS(hdu.header).pixel_to_world_values(99.5, 74.5) == pytest.approx((150, 2))
        hdus.verify("exception")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_probability_is_scaled_to_one(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "p.fits", "probability")
    expected = (make_labels() * 60 / 255).astype(np.float32)
    np.testing.assert_allclose(fits.getdata(tmp_path / "p.fits"), expected, rtol=1e-6)


def test_structural_cards_of_the_input_are_not_copied(
    make_rich: Callable[..., ZarrStore], tmp_path: Path
) -> None:
    cards = ("NAXIS   = 3", "BZERO   = 32768.0", "BSCALE  = 2.0", "BLANK   = -1", *CARDS)
    export.export_labels(make_rich(cards=cards), tmp_path / "l.fits")
    np.testing.assert_array_equal(fits.getdata(tmp_path / "l.fits"), make_labels())


@pytest.mark.parametrize("card", ["\0ADESYS = 'ICRS'", "HIERAR/H ESO DET X = 3"])
def test_a_broken_card_of_the_input_does_not_affect_others(
    make_rich: Callable[..., ZarrStore], tmp_path: Path, card: str
) -> None:
    export.export_labels(make_rich(cards=(card, *CARDS)), tmp_path / "l.fits")
    with fits.open(tmp_path / "l.fits") as hdus:
        assert hdus[0].header["OBJECT"] == "test field"
        np.testing.assert_array_equal(hdus[0].data, make_labels())


def test_an_unknown_map_is_refused(rich: ZarrStore, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="choose one of label, flags, probability"):
        export.export_map(rich, tmp_path / "m.fits", "science")


def test_the_layout_of_the_test_store() -> None:
    assert LAYOUT.shape == (150, 200)
