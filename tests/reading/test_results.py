"""Stores opened by fcnpipe.open: sky coordinates, cone search, cutouts, exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

import fcnpipe
from fcnpipe.core.errors import SpecError, StoreError
from fcnpipe.reading.results import Segmentation
from fcnpipe.testing.small_run import CARDS, make_labels, make_rich_store


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Segmentation:
    return fcnpipe.open(make_rich_store(tmp_path_factory.mktemp("rich") / "out.zarr").path)


def test_sky_positions_are_those_of_the_wcs(result: Segmentation) -> None:
    wcs = WCS(fits.Header.fromstring("\n".join(CARDS), sep="\n"))
    part = result.image.isel(y=slice(20, 23), x=slice(-3, None))
    ra, dec = wcs.pixel_to_world_values(*np.meshgrid([197, 198, 199], [20, 21, 22]))
    np.testing.assert_allclose(part.ra, ra, rtol=0, atol=1e-10)
    np.testing.assert_allclose(part.dec, dec, rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.image.ra[20, 197], ra[0, 0], atol=1e-10)


def test_pixels_are_found_by_sky_position(result: Segmentation) -> None:
    for image, y, x in ((result.image, 30, 40), (result.image.isel(y=slice(10, 99)), 20, 40)):
        here = {name: xr.Variable((), image[name].values[y, x]) for name in ("ra", "dec")}
        found = image.sel(**here, method="nearest")
        assert (int(found.y), int(found.x)) == (30, 40)


def test_strides_and_single_rows_keep_the_coordinates_without_the_index(
    result: Segmentation,
) -> None:
    thinned = result.image.isel(y=slice(None, None, 2))
    np.testing.assert_allclose(thinned.ra[3, 4], result.image.ra[6, 4])
    assert result.image.isel(y=3).ra.dims == ("x",)


def test_cone_search_agrees_with_astropy(result: Segmentation) -> None:
    ra, dec = result.sources.ra.values, result.sources.dec.values
    separation = (
        SkyCoord(ra, dec, unit="deg").separation(SkyCoord(150.0, 2.0, unit="deg")).to_value(u.deg)
    )
    found = result.cone(150.0, 2.0, 0.095)
    expected = [i for i in np.argsort(separation) if separation[i] <= 0.095]
    assert 1 <= len(expected) < 4
    np.testing.assert_array_equal(found.label, np.array(expected) + 1)
    np.testing.assert_allclose(found.separation, separation[expected])
    assert result.cone(10.0, 2.0, 0.1).sizes["source"] == 0


@pytest.mark.parametrize("cone", [(10, 95, 1), (10, 0, -1), (np.nan, 0, 1), (10, np.nan, 1)])
def test_an_invalid_cone_is_refused(result: Segmentation, cone: tuple[float, float, float]) -> None:
    with pytest.raises(SpecError, match=r"cone ra=.*dec from -90 to 90"):
        result.cone(*cone)


def test_catalogue_has_its_columns_in_order(result: Segmentation) -> None:
    assert list(result.sources) == result.store.columns


def test_cutout_is_the_part_around_a_source(result: Segmentation) -> None:
    part = result.cutout(2, margin=3)
    assert (part.y.values[[0, -1]].tolist(), part.x.values[[0, -1]].tolist()) == (
        [55, 71],
        [56, 72],
    )
    np.testing.assert_array_equal(part.label, make_labels()[55:72, 56:73])
    assert part.probability.max() == pytest.approx(120 / 255)
    by_id = result.cutout(source_id=63 * 200 + 64, margin=3)
    xr.testing.assert_equal(part, by_id)


def test_cutout_is_clipped_at_the_edge_of_the_image(result: Segmentation) -> None:
    assert result.cutout(1).label.shape == (9 + 8, 10 + 8)
    assert int(result.cutout(4).y[-1]) == 149


@pytest.mark.parametrize("source", [{}, {"label": 1, "source_id": 604}, {"label": 5}, {"label": 0}])
def test_cutout_of_a_missing_source_is_refused(
    result: Segmentation, source: dict[str, int]
) -> None:
    with pytest.raises(SpecError, match="label"):
        result.cutout(**source)
    with pytest.raises(SpecError, match="source_id=5 is not in the catalogue"):
        result.cutout(source_id=5)


def test_image_without_wcs_has_no_sky_coordinates(tmp_path: Path) -> None:
    result = fcnpipe.open(make_rich_store(tmp_path / "out.zarr", cards=()).path)
    assert "ra" not in result.image.coords
    with pytest.raises(SpecError, match="has no sky positions"):
        result.cone(1, 2, 3)


def test_exports_contain_sky_positions(result: Segmentation, tmp_path: Path) -> None:
    result.export(tmp_path / "s.reg")
    assert "icrs\npolygon(" in (tmp_path / "s.reg").read_text()


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not an fcnpipe store"):
        fcnpipe.open(tmp_path / "none.zarr")
