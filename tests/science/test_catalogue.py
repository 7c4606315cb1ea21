"""Rows in any order become one table; header cards become sky positions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.units import Unit
from astropy.wcs import WCS

from fcnpipe.core.errors import VerificationError
from fcnpipe.science import catalogue
from fcnpipe.science.catalogue import (
    COLUMNS,
    FLUX_UNIT,
    assemble,
    columns_of,
    complete,
    explain_no_sky,
    sky_coordinates,
    wcs_of,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def cards(**changes: object) -> tuple[str, ...]:
    header = fits.Header(
        {
            "NAXIS": 2, "NAXIS1": 1000, "NAXIS2": 800, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
            "CRPIX1": 500.0, "CRPIX2": 400.0, "CRVAL1": 0.05, "CRVAL2": 60.0,
            "CD1_1": -7e-5, "CD1_2": 1e-6, "CD2_1": 1e-6, "CD2_2": 7e-5, "RADESYS": "ICRS",
        }
        | changes
    )  # fmt: skip
    return tuple(str(card) for card in header.cards)


X, Y = np.array([0.0, 499.0, 999.0]), np.array([0.0, 399.0, 799.0])


def test_sky_of_a_tangent_plane():
    ra, dec = sky_coordinates(X, Y, cards())
    expected = WCS(fits.Header.fromstring("\n".join(cards()), sep="\n")).pixel_to_world(X, Y)
    np.testing.assert_allclose(ra, expected.ra.deg, rtol=0, atol=1e-11)
    np.testing.assert_allclose(dec, expected.dec.deg, rtol=0, atol=1e-11)
    assert (ra >= 0).all()
    assert (ra < 360).all()


@pytest.mark.parametrize(
    ("changes", "frame"),
    [
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "galactic"),
        ({"RADESYS": "FK5", "EQUINOX": 1975.0}, "fk5"),
        ({"RADESYS": "FK4", "EQUINOX": 1950.0}, "fk4"),
    ],
)
def test_other_frames_become_icrs(changes, frame):
    ra, dec = sky_coordinates(X, Y, cards(**changes))
    lon, lat = WCS(fits.Header.fromstring("\n".join(cards(**changes)), sep="\n")).all_pix2world(
        X, Y, 0
    )
    kept = (
        {}
        if frame == "galactic"
        else {"equinox": f"J{changes['EQUINOX']}" if frame == "fk5" else "B1950"}
    )
    expected = SkyCoord(lon, lat, unit="deg", frame=frame, **kept).icrs
    sky = SkyCoord(ra, dec, unit="deg")
    assert sky.separation(expected).arcsec.max() < 1e-3
    assert abs(ra[1] - lon[1]) > 1e-3


def test_latitude_may_be_the_first_axis():
    swapped = cards(
        CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=60.0, CRVAL2=0.05,
        CD1_1=1e-6, CD1_2=7e-5, CD2_1=-7e-5, CD2_2=1e-6,
    )  # fmt: skip
    for ours, theirs in zip(
        sky_coordinates(X, Y, swapped), sky_coordinates(X, Y, cards()), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_distortions_are_followed():
    sip = cards(
        CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, A_2_0=1e-5, B_ORDER=2, B_0_2=1e-5
    )
    tpv = cards(CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_0=0.0, PV1_1=1.01, PV2_0=0.0, PV2_1=1.01)
    plain = sky_coordinates(X, Y, cards())
    for distorted in (sip, tpv):
        ra, dec = sky_coordinates(X, Y, distorted)
        assert abs(dec[0] - plain[1][0]) > 1e-5
        np.testing.assert_allclose([ra[1], dec[1]], [plain[0][1], plain[1][1]], atol=1e-9)


def test_sip_without_its_name_is_followed_in_silence(capsys):
    named = {"A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5}
    plain = cards(**named)
    with_name = cards(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", **named)
    np.testing.assert_array_equal(sky_coordinates(X, Y, plain), sky_coordinates(X, Y, with_name))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, ""),
        ({"CD1_1": 0.0, "CD1_2": 0.0}, "PCi_ja matrix is singular"),
        ({"CPDIS1": "LOOKUP", "DP1": "EXTVER: 1"}, "required for Lookup table distortion"),
        ({"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"}, "determine celestial frame"),
    ],
)
def test_why_there_are_no_positions(changes, reason):
    said = explain_no_sky(cards(**changes))
    assert reason in said
    assert bool(said) == bool(reason)


def test_planes_of_a_cube_have_a_sky():
    cube = cards(NAXIS=3, NAXIS3=4, CTYPE3="FREQ", CRVAL3=1e9, CDELT3=1e6, CRPIX3=1.0, CD3_3=1e6)
    np.testing.assert_allclose(sky_coordinates(X, Y, cube)[1], sky_coordinates(X, Y, cards())[1])


@pytest.mark.parametrize(
    "header",
    [
        (),
        ("CTYPE1  = 'LINEAR  '", "CTYPE2  = 'LINEAR  '"),
        cards(CTYPE1="RA---XYZ", CTYPE2="DEC--XYZ"),
    ],
)
def test_no_usable_wcs_gives_nan_and_no_warning(header):
    ra, dec = sky_coordinates(X, Y, header)
    assert np.isnan(ra).all()
    assert np.isnan(dec).all()


def test_wcs_is_none_without_a_sky():
    assert wcs_of(()) is None
    assert wcs_of(("CTYPE1  = 'LINEAR  '",)) is None
    assert wcs_of(cards()) is not None


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not here")
def test_real_headers_have_a_sky():
    for path in sorted(DATA.glob("*.fits")):
        header = first_cards(path)
        ra, dec = sky_coordinates(np.array([10.0]), np.array([10.0]), header)
        expected = any(re.match("CTYPE1 *= '(RA|GLON)-", card) for card in header)
        assert np.isfinite(ra).all() == expected, path.name
        assert np.isfinite(dec).all() == expected, path.name


def first_cards(path: Path) -> tuple[str, ...]:
    text = path.read_bytes()[:200_000].decode("ascii", "replace")
    cards = [text[at : at + 80] for at in range(0, len(text), 80)]
    return tuple(cards[: cards.index("END".ljust(80))])


# --- columns and rows ---


def measured_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """What measure gives, filled with the label itself."""
    left_out = {"source_id", "ra", "dec", "half_light_radius"}
    rows = {c.name: labels.astype(np.float64) for c in COLUMNS if c.name not in left_out}
    return rows | {"label": labels.astype(np.int32)}


def test_columns_are_well_formed():
    names = [column.name for column in columns_of("adu", magnitudes=True)]
    assert len(set(names)) == len(names)
    for column in columns_of("adu", magnitudes=True):
        np.dtype(column.dtype)
        Unit(column.unit)
        assert column.description
        assert column.unit != FLUX_UNIT


def test_complete_rows_have_every_column_in_order():
    labels = np.array([3, 1])
    rows = complete(measured_rows(labels), cards(), 1000, zero_point=25.0)
    columns = columns_of(magnitudes=True)
    assert list(rows) == [c.name for c in columns]
    assert [rows[c.name].dtype for c in columns] == [np.dtype(c.dtype) for c in columns]
    assert rows["source_id"].tolist() == [3003, 1001]
    assert np.isnan(rows["half_light_radius"]).all()
    np.testing.assert_allclose(rows["mag"], 25 - 2.5 * np.log10(labels))
    assert np.isfinite(rows["ra"]).all()


def test_assemble_orders_the_rows_of_all_parts():
    order = np.random.default_rng(0).permutation(np.arange(1, 101))
    parts = [complete(measured_rows(part), (), 1000) for part in np.split(order, [7, 7, 60])]
    asked = []

    def read(names):
        asked.append(names)
        return ({name: part[name] for name in names} for part in parts)

    table = {column.name: values for column, values in assemble(read, 100)}
    assert table["label"].tolist() == list(range(1, 101))
    np.testing.assert_array_equal(table["segment_flux"], np.arange(1.0, 101.0))
    assert table["source_id"].dtype == np.uint64
    assert asked[0] == ("label",)
    assert len(asked) == 2  # 100 rows of all columns fit into one group


def test_assemble_holds_few_columns_of_a_large_catalogue(monkeypatch):
    monkeypatch.setattr(catalogue, "GROUP_BYTES", 3 * 8 * 5)
    asked = []

    def read(names):
        asked.append(names)
        part = complete(measured_rows(np.arange(1, 6)), (), 1000)
        return [{name: part[name] for name in names}]

    names = [column.name for column, _ in assemble(read, 5)]
    assert names == [column.name for column in catalogue.COLUMNS]
    assert max(map(len, asked)) == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], [4]], "no row for label 3 of 4"),
        ([[1, 2], [2, 3, 4]], "two rows for label 2"),
        ([[1, 2, 3, 4, 4]], "two rows for label 4"),
        ([[1, 2, 3, 4, 5]], "label 5, beyond the 4 labels"),
        ([[0, 1, 2, 3]], "label 0, beyond"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    def read(names):
        return ({"label": np.array(part)} for part in labels)

    with pytest.raises(VerificationError, match=message):
        list(assemble(read, 4))


def test_no_sources_make_an_empty_table():
    table = {column.name: values for column, values in assemble(lambda names: [], 0)}
    assert all(len(values) == 0 for values in table.values())
