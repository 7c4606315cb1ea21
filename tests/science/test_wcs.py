"""Sky coordinates from header cards, compared with astropy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from fcnpipe.science.wcs import describe_wcs_error, pixel_to_icrs, read_wcs
from tests.science.header_cards import make_cards

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
X, Y = np.array([0.0, 499.0, 999.0]), np.array([0.0, 399.0, 799.0])


def test_sky_of_a_tangent_plane():
    ra, dec = pixel_to_icrs(X, Y, make_cards())
    expected = WCS(fits.Header.fromstring("\n".join(make_cards()), sep="\n")).pixel_to_world(X, Y)
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
    ra, dec = pixel_to_icrs(X, Y, make_cards(**changes))
    lon, lat = WCS(
        fits.Header.fromstring("\n".join(make_cards(**changes)), sep="\n")
    ).all_pix2world(X, Y, 0)
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
    swapped = make_cards(
        CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=60.0, CRVAL2=0.05,
        CD1_1=1e-6, CD1_2=7e-5, CD2_1=-7e-5, CD2_2=1e-6,
    )  # fmt: skip
    for ours, theirs in zip(
        pixel_to_icrs(X, Y, swapped), pixel_to_icrs(X, Y, make_cards()), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_distortions_are_followed():
    sip = make_cards(
        CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, A_2_0=1e-5, B_ORDER=2, B_0_2=1e-5
    )
    tpv = make_cards(
        CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_0=0.0, PV1_1=1.01, PV2_0=0.0, PV2_1=1.01
    )
    plain = pixel_to_icrs(X, Y, make_cards())
    for distorted in (sip, tpv):
        ra, dec = pixel_to_icrs(X, Y, distorted)
        assert abs(dec[0] - plain[1][0]) > 1e-5
        np.testing.assert_allclose([ra[1], dec[1]], [plain[0][1], plain[1][1]], atol=1e-9)


def test_sip_without_its_name_is_followed_and_prints_nothing(capsys):
    named = {"A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5}
    plain = make_cards(**named)
    with_name = make_cards(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", **named)
    np.testing.assert_array_equal(pixel_to_icrs(X, Y, plain), pixel_to_icrs(X, Y, with_name))
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
def test_wcs_errors_are_described(changes, reason):
    message = describe_wcs_error(make_cards(**changes))
    assert reason in message
    assert bool(message) == bool(reason)


def test_planes_of_a_cube_have_sky_coordinates():
    cube = make_cards(
        NAXIS=3, NAXIS3=4, CTYPE3="FREQ", CRVAL3=1e9, CDELT3=1e6, CRPIX3=1.0, CD3_3=1e6
    )
    np.testing.assert_allclose(pixel_to_icrs(X, Y, cube)[1], pixel_to_icrs(X, Y, make_cards())[1])


@pytest.mark.parametrize(
    "header",
    [
        (),
        ("CTYPE1  = 'LINEAR  '", "CTYPE2  = 'LINEAR  '"),
        make_cards(CTYPE1="RA---XYZ", CTYPE2="DEC--XYZ"),
    ],
)
def test_coordinates_are_nan_without_a_usable_wcs(header):
    ra, dec = pixel_to_icrs(X, Y, header)
    assert np.isnan(ra).all()
    assert np.isnan(dec).all()


def test_wcs_is_none_without_celestial_axes():
    assert read_wcs(()) is None
    assert read_wcs(("CTYPE1  = 'LINEAR  '",)) is None
    assert read_wcs(make_cards()) is not None


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are missing")
def test_real_headers_have_sky_coordinates():
    for path in sorted(DATA.glob("*.fits")):
        header = first_cards(path)
        ra, dec = pixel_to_icrs(np.array([10.0]), np.array([10.0]), header)
        expected = any(re.match("CTYPE1 *= '(RA|GLON)-", card) for card in header)
        assert np.isfinite(ra).all() == expected, path.name
        assert np.isfinite(dec).all() == expected, path.name


def first_cards(path: Path) -> tuple[str, ...]:
    text = path.read_bytes()[:200_000].decode("ascii", "replace")
    cards = [text[at : at + 80] for at in range(0, len(text), 80)]
    return tuple(cards[: cards.index("END".ljust(80))])
