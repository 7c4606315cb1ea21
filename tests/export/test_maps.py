"""Maps as FITS images, regions, pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcnpipe import export
from fcnpipe.core.errors import SpecError
from fcnpipe.export import preview
from fcnpipe.reporting.thumbnails import picture_result
from fcnpipe.science.catalogue import sky_coordinates
from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import CARDS, LAYOUT, make_labels, make_science

# -- FITS ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels.fits", "labels.fits.fz"])
def test_label_image_comes_back_with_its_wcs(rich: ZarrStore, tmp_path: Path, name: str) -> None:
    export.export(rich, tmp_path / name, "labels")
    with fits.open(tmp_path / name) as hdus:
        hdu = hdus[-1]
        np.testing.assert_array_equal(hdu.data, make_labels())
        assert hdu.header["BITPIX"] == 32
        assert hdu.header["OBJECT"] == "test field"
        assert WCS(hdu.header).pixel_to_world_values(99.5, 74.5) == pytest.approx((150, 2))
        hdus.verify("exception")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_probability_is_scaled(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "p.fits", "probability")
    expected = (make_labels() * 60 / 255).astype(np.float32)
    np.testing.assert_allclose(fits.getdata(tmp_path / "p.fits"), expected, rtol=1e-6)


def test_structure_of_the_input_is_left_behind(
    make_rich: Callable[..., ZarrStore], tmp_path: Path
) -> None:
    cards = ("NAXIS   = 3", "BZERO   = 32768.0", "BSCALE  = 2.0", "BLANK   = -1", *CARDS)
    export.export_labels(make_rich(cards=cards), tmp_path / "l.fits")
    np.testing.assert_array_equal(fits.getdata(tmp_path / "l.fits"), make_labels())


@pytest.mark.parametrize("card", ["\0ADESYS = 'ICRS'", "HIERAR/H ESO DET X = 3"])
def test_a_broken_card_of_the_input_costs_nothing_else(
    make_rich: Callable[..., ZarrStore], tmp_path: Path, card: str
) -> None:
    export.export_labels(make_rich(cards=(card, *CARDS)), tmp_path / "l.fits")
    with fits.open(tmp_path / "l.fits") as hdus:
        assert hdus[0].header["OBJECT"] == "test field"
        np.testing.assert_array_equal(hdus[0].data, make_labels())


def test_unknown_map_is_told(rich: ZarrStore, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="choose one of label, flags, probability"):
        export.export_map(rich, tmp_path / "m.fits", "science")


# -- DS9 -------------------------------------------------------------------------------


def test_ellipses_are_one_based(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "s.reg")
    lines = (tmp_path / "s.reg").read_text().splitlines()
    assert lines[0] == "# Region file format: DS9 version 4.1"
    assert lines[2] == "image"
    assert lines[3] == "ellipse(5.000,4.000,9.000,3.000,30.00) # text={1}"
    assert lines[6] == "ellipse(200.000,150.000,1.000,1.000,0.00) # text={4}"
    assert len(lines) == 7


def test_sky_outlines_lie_where_the_ellipses_do(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "s.reg", to_sky=partial(sky_coordinates, cards=CARDS))
    lines = (tmp_path / "s.reg").read_text().splitlines()
    assert lines[2] == "icrs"
    numbers = np.array(lines[3].split("(")[1].split(")")[0].split(","), float).reshape(-1, 2)
    wcs = WCS(fits.Header.fromstring("\n".join(CARDS), sep="\n"))
    x, y = wcs.world_to_pixel_values(*numbers.T)
    angle = np.radians(30)
    along = ((x - 4) * np.cos(angle) + (y - 3) * np.sin(angle)) / 9
    across = ((y - 3) * np.cos(angle) - (x - 4) * np.sin(angle)) / 3
    np.testing.assert_allclose(along**2 + across**2, 1, atol=1e-3)


def test_outlines_that_leave_the_sky_are_not_lost(rich: ZarrStore, tmp_path: Path) -> None:
    def to_sky(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(x < 100, np.nan, x), y

    export.export(rich, tmp_path / "s.reg", to_sky=to_sky)
    lines = (tmp_path / "s.reg").read_text().splitlines()
    ellipse = "ellipse(5.000,4.000,9.000,3.000,30.00) # text={1}"
    assert lines[2:6] == ["icrs", "image", ellipse, "icrs"]
    assert lines[-1].startswith("polygon(200.0")


# -- PNG -------------------------------------------------------------------------------


def test_small_image_is_enlarged_and_upright(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "p.png", science=make_science())
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (1500, 2000, 3)
    # Row 149 of a FITS image is the top one; its first ten columns have no data.
    assert (picture[50, 50] == preview.NO_DATA).all()
    # The first source, at (y, x) = (3, 4), has its outline at its right border, x = 9.
    assert (picture[1500 - 35, 99] == preview.COLOURS[0]).all()
    assert (picture[1500 - 35, 101] != preview.COLOURS[0]).any()


def test_images_without_header_are_not_turned(
    make_rich: Callable[..., ZarrStore], tmp_path: Path
) -> None:
    export.export(make_rich(cards=()), tmp_path / "p.png", science=make_science())
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert (picture[-50, 50] == preview.NO_DATA).all()


def test_pyramid_stands_in_for_the_image(rich: ZarrStore, tmp_path: Path) -> None:
    style = export.Style(size=200, outlines=False)
    export.export_preview(rich, tmp_path / "p.png", style=style)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (150, 200, 3)
    assert picture[150 - 64, 10].min() > 150 > 60 > picture[100:].mean()
    export.export_preview(rich, tmp_path / "q.png", style=export.Style(size=100))
    assert np.asarray(Image.open(tmp_path / "q.png")).shape == (75, 100, 3)


def test_a_picture_may_be_smaller_than_the_pyramid(rich: ZarrStore, tmp_path: Path) -> None:
    export.export_preview(rich, tmp_path / "p.png", style=export.Style(size=60))
    assert np.asarray(Image.open(tmp_path / "p.png")).shape == (45, 60, 3)
    assert max(Image.open(io.BytesIO(picture_result(rich, 60))).size) == 60


@pytest.mark.parametrize(
    ("bands", "red"), [(("g", "r", "i"), 2), (("R", "G", "B"), 0), (("0", "1", "2"), 0)]
)
def test_longest_wavelength_is_red(bands: tuple[str, ...], red: int) -> None:
    science = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    science[red, 10:14, 10:14] += 100
    assert preview.stretch(science, bands)[12, 12].argmax() == 0


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_flat_image_is_drawn(value: float) -> None:
    picture = preview.stretch(np.full((1, 5, 6), value, np.float32), ("0",))
    assert picture.shape == (5, 6, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_touching_sources_have_other_colours() -> None:
    labels = make_labels()
    labels[30:40, 30:40], labels[30:40, 40:50], labels[40:50, 35:45] = 5, 6, 7
    colours = preview.colour_labels(labels)
    assert len({colours[5], colours[6], colours[7]}) == 3
    assert not colours[:5].any()


@given(arrays(np.int32, (7, 8), elements=st.integers(0, 3)))
@settings(max_examples=50, deadline=None)
def test_borders_are_those_of_the_pixels(labels: np.ndarray) -> None:
    found = preview.find_borders(labels)
    for y, x in np.ndindex(labels.shape):
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        around = [labels[p] for p in near if 0 <= p[0] < 7 and 0 <= p[1] < 8]
        assert found[y, x] == (labels[y, x] != 0 and any(v != labels[y, x] for v in around))


def test_store_without_image_says_so(rich: ZarrStore, tmp_path: Path) -> None:
    class Blind:
        layout, cards, read = rich.layout, rich.cards, staticmethod(rich.read)

        def has(self, name: str) -> bool:
            return False

    with pytest.raises(SpecError, match="preview needs the image"):
        export.export_preview(Blind(), tmp_path / "p.png")  # type: ignore[arg-type]


def test_layout_of_the_tests_is_what_they_think() -> None:
    assert LAYOUT.shape == (150, 200)
