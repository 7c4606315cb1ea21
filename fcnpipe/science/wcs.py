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

AXIS_TYPE_LENGTH = 8
"""Length of an axis type such as RA---TAN, without the name of a distortion."""


def read_wcs(cards: Sequence[str]) -> WCS | None:
    """Read the celestial WCS of header cards.

    Parameters
    ----------
    cards : sequence of str
        FITS header cards of 80 characters; shorter ones are padded. SIP and TPV distortions are
        included.

    Returns
    -------
    WCS or None
        None if the cards have no celestial axes, or if astropy cannot use them. With an invalid WCS the
        catalogue is written without sky positions; `describe_wcs_error` returns the reason.
    """
    try:
        return _parse_cards(cards)
    except Exception:
        return None


def describe_wcs_error(cards: Sequence[str]) -> str:
    """Return why sky positions cannot be computed from celestial header cards.

    The result is empty if they can be computed, or if the cards have no celestial axes.

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
        # astropy repairs outdated cards and warns about each of them.
        warnings.simplefilter("ignore")
        header = fits.Header.fromstring("\n".join(cards), sep="\n")
        wcs = WCS(_append_sip(header), relax=True)
        return wcs.celestial if wcs.has_celestial else None


def _append_sip(header: fits.Header) -> fits.Header:
    """Append -SIP to the axis types of a SIP distortion: without it, astropy prints to the terminal."""
    for name in ("CTYPE1", "CTYPE2"):
        if "A_ORDER" in header and len(kind := str(header.get(name, ""))) == AXIS_TYPE_LENGTH:
            header[name] = f"{kind}-SIP"
    return header


def pixel_to_icrs(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], cards: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the right ascension and declination (ICRS, degrees) of pixel positions.

    Parameters
    ----------
    x, y : (n,) float
        Positions in pixels, 0-based.
    cards : sequence of str
        FITS header cards.

    Returns
    -------
    ra, dec : (n,) float64
        Degrees, ra in [0, 360); NaN without a WCS, and where the projection is not defined.
    """
    blank = np.full(len(x), np.nan)
    wcs = read_wcs(cards)
    if wcs is None or not len(x):
        return blank, blank.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _to_icrs(wcs, np.asarray(x, np.float64), np.asarray(y, np.float64))
        except Exception:  # for example the frame of a planet, which cannot be converted to ICRS
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
