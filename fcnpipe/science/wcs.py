"""Celestial coordinates of pixels from FITS header cards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray

TYPE_LENGTH = 8
"""Characters of an axis type such as RA---TAN, without the name of a distortion."""


def read_wcs(cards: Sequence[str]) -> WCS | None:
    """Give the celestial coordinates that header cards describe, or None if they describe none.

    Parameters
    ----------
    cards : sequence of str
        FITS header cards of 80 characters (shorter ones are padded); SIP and TPV distortions are
        followed.
    """
    try:
        return _parse_cards(cards)
    except Exception:  # a broken WCS costs the sky positions, never the catalogue
        return None


def describe_wcs_error(cards: Sequence[str]) -> str:
    """Say why the positions that header cards promise cannot be given; empty if they can, or none are.

    Examples
    --------
    >>> describe_wcs_error(("CTYPE1  = 'RA---XYZ'", "CTYPE2  = 'DEC--XYZ'"))
    'Unrecognized projection code (XYZ in CTYPE1).'
    """
    try:
        wcs = _parse_cards(cards)
        if wcs is not None:
            _to_icrs(wcs, np.zeros(1), np.zeros(1))
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[-1]
    return ""


def _parse_cards(cards: Sequence[str]) -> WCS | None:
    if not cards:
        return None
    with warnings.catch_warnings():
        # astropy mends old cards and says so: not the concern of who wants a catalogue.
        warnings.simplefilter("ignore")
        header = fits.Header.fromstring("\n".join(cards), sep="\n")
        wcs = WCS(_append_sip(header), relax=True)
        return wcs.celestial if wcs.has_celestial else None


def _append_sip(header: fits.Header) -> fits.Header:
    """Complete axis types: astropy follows SIP without its name too, but tells the terminal."""
    for name in ("CTYPE1", "CTYPE2"):
        if "A_ORDER" in header and len(kind := str(header.get(name, ""))) == TYPE_LENGTH:
            header[name] = f"{kind}-SIP"
    return header


def pixel_to_icrs(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], cards: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give right ascension and declination (ICRS, degrees) of pixel positions.

    Parameters
    ----------
    x, y : (n,) float
        Positions in pixels, 0-based.
    cards : sequence of str
        FITS header cards.

    Returns
    -------
    ra, dec : (n,) float64
        Degrees, ra in [0, 360); NaN where there is no WCS, or the projection has no sky there.
    """
    blank = np.full(len(x), np.nan)
    wcs = read_wcs(cards)
    if wcs is None or not len(x):
        return blank, blank.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _to_icrs(wcs, np.asarray(x, np.float64), np.asarray(y, np.float64))
        except Exception:  # such as the frame of a planet, which has no place on the sky
            return blank, blank.copy()


def _to_icrs(
    wcs: WCS, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lon, lat = (
        wcs.all_pix2world(x, y, 0)
        if wcs.wcs.lng < wcs.wcs.lat
        else wcs.all_pix2world(x, y, 0)[::-1]
    )
    frame = wcs_to_celestial_frame(wcs)
    if frame.name != "icrs":
        sky = SkyCoord(lon, lat, unit="deg", frame=frame).icrs
        lon, lat = sky.ra.deg, sky.dec.deg
    return np.asarray(lon, np.float64) % 360.0, np.asarray(lat, np.float64)
