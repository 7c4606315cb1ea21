"""Isophotal columns of sources: positions, second moments, fluxes and flags from complete sums.

The sums are integers; floats appear here for the first time, source by source, so the columns do not
depend on the tiling. The definitions are those of photutils 3 (``SourceCatalog``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.records import PROBABILITY_SCALE, PixelFlag, SourceFlag
from fcnpipe.science.sums import (
    FLUX,
    MASS,
    MASS_X,
    MASS_XX,
    MASS_XY,
    MASS_Y,
    MASS_YY,
    VARIANCE,
    Sums,
    int128_to_float,
)

Columns = dict[str, NDArray[Any]]
"""Measured columns by name: arrays with one element for each source."""

_BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
_SATURATED = int(PixelFlag.SATURATED)


def measure_isophotes(sums: Sums, unit: float, variance_unit: float, width: int) -> Columns:
    """Compute the isophotal columns from complete sums.

    Parameters
    ----------
    sums : Sums
        Sums over all pixels of each source.
    unit, variance_unit : float
        Value of one count of flux and of variance.
    width : int
        Width of the image in pixels, which converts global pixel indices to (y, x).

    Returns
    -------
    dict of (n,) arrays
        Names of photutils 3; positions are 0-based and in pixels, angles in degrees. All values are
        finite, except that ``snr`` is NaN where the variance is 0 and ``probability`` is NaN if
        ``sums`` has no probabilities. ``flags`` holds `SourceFlag` bits.

    Notes
    -----
    As in photutils, negative pixels do not contribute to the moments, and the covariance of a shape
    thinner than a pixel is increased in steps of 1/12 px^2. Unlike in photutils, a source without
    positive pixels has the centre and the covariance of its bounding box instead of NaN, and the flag
    ISOPHOTE_INCOMPLETE.
    """
    mass = int128_to_float(sums.exact[:, MASS])
    is_dark = mass == 0
    centre, spread = _compute_moments(sums, np.where(is_dark, 1.0, mass))
    _fill_from_bounding_box(sums, is_dark, centre, spread)
    columns = {"label": sums.label, **_position_columns(sums, centre, width)}
    columns |= _ellipse_columns(*_thicken(*spread.T))
    columns |= _flux_columns(sums, unit, variance_unit)
    columns |= _pixel_columns(sums)
    columns["flags"] = _source_flags(sums, is_dark)
    return columns


def _compute_moments(
    sums: Sums, mass: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centroids (y, x), (n, 2), and central second moments (xx, xy, yy), (n, 3)."""
    y, x, yy, xy, xx = (
        int128_to_float(sums.exact[:, k]) / mass
        for k in (MASS_Y, MASS_X, MASS_YY, MASS_XY, MASS_XX)
    )
    centre = np.stack([y, x], axis=1) + sums.anchor
    return centre, np.stack(
        [np.maximum(xx - x * x, 0), xy - x * y, np.maximum(yy - y * y, 0)], axis=1
    )


def _fill_from_bounding_box(
    sums: Sums, is_dark: NDArray[np.bool_], centre: NDArray[np.float64], spread: NDArray[np.float64]
) -> None:
    """Set the moments of sources without positive pixels to those of a uniform bounding box."""
    box = sums.box[is_dark].astype(np.float64)
    edge = box[:, 2:] - box[:, :2]
    centre[is_dark] = (box[:, :2] + box[:, 2:] - 1) / 2
    variance = (edge * edge - 1) / 12
    spread[is_dark] = np.stack([variance[:, 1], np.zeros(len(box)), variance[:, 0]], axis=1)


def _position_columns(sums: Sums, centre: NDArray[np.float64], width: int) -> Columns:
    y0, x0, y1, x1 = sums.box.T
    high_y, high_x = np.divmod(sums.highest[:, 1], width)
    low_y, low_x = np.divmod(sums.lowest[:, 1], width)
    return {
        "x_centroid": centre[:, 1],
        "y_centroid": centre[:, 0],
        "x_peak": sums.anchor[:, 1],
        "y_peak": sums.anchor[:, 0],
        "bbox_xmin": x0,
        "bbox_xmax": x1 - 1,
        "bbox_ymin": y0,
        "bbox_ymax": y1 - 1,
        "area": sums.area,
        "max_value_xindex": high_x,
        "max_value_yindex": high_y,
        "min_value_xindex": low_x,
        "min_value_yindex": low_y,
    }


def _thicken(
    xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Increase xx and yy by 1/12, a pixel's own variance, until the determinant is at least 1/144."""
    delta = 1.0 / 12
    xx, yy = xx.copy(), yy.copy()
    while (thin := xx * yy - xy * xy < delta**2).any():
        xx[thin] += delta
        yy[thin] += delta
    return xx, xy, yy


def _ellipse_columns(
    xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]
) -> Columns:
    det = xx * yy - xy * xy
    half = (xx - yy) / 2
    major = (xx + yy) / 2 + np.sqrt(half * half + xy * xy)
    minor = np.minimum(det / major, major)
    a, b = np.sqrt(major), np.sqrt(minor)
    return {
        "covariance_xx": xx,
        "covariance_xy": xy,
        "covariance_yy": yy,
        "semimajor_axis": a,
        "semiminor_axis": b,
        "orientation": _orientation(xx, xy, yy),
        "eccentricity": np.sqrt(1 - minor / major),
        "elongation": a / b,
        "ellipticity": 1 - b / a,
        "ellipse_cxx": yy / det,
        "ellipse_cxy": -2 * xy / det,
        "ellipse_cyy": xx / det,
        "fwhm": 2 * np.sqrt(np.log(2.0) * (major + minor)),
    }


@njit(cache=True, nogil=True)
def _orientation(xx, xy, yy):  # type: ignore[no-untyped-def]
    """Return the angles of the major axes from x towards y, in [0, 360) degrees.

    A loop over scalars: the vectorised functions of NumPy may round the tail of an array differently.
    """
    angle = np.empty(len(xx))
    for i in range(len(xx)):
        angle[i] = np.degrees(0.5 * np.arctan2(2.0 * xy[i], xx[i] - yy[i])) % 360.0
    return angle


def _flux_columns(sums: Sums, unit: float, variance_unit: float) -> Columns:
    flux = int128_to_float(sums.exact[:, FLUX]) * unit
    error = np.sqrt(int128_to_float(sums.exact[:, VARIANCE]) * variance_unit)
    return {
        "segment_flux": flux,
        "segment_flux_err": error,
        "snr": np.divide(flux, error, out=np.full(len(flux), np.nan), where=error > 0),
        "max_value": sums.highest[:, 0] * unit,
        "min_value": sums.lowest[:, 0] * unit,
    }


def _pixel_columns(sums: Sums) -> Columns:
    mean = sums.probability * PROBABILITY_SCALE / np.maximum(sums.area, 1)[:, None]
    has_classes = mean.shape[1] > 1
    return {
        "probability": mean[:, 0] if mean.shape[1] else np.full(len(sums), np.nan),
        "class": np.argmax(mean[:, 1:], axis=1) + 1 if has_classes else np.full(len(sums), -1),
        "elevation": sums.elevation,
        "saturated_pixels": sums.saturated,
        "beside_bad_pixels": sums.beside_bad,
    }


def _source_flags(sums: Sums, is_dark: NDArray[np.bool_]) -> NDArray[np.int32]:
    incomplete = (sums.beside_bad > 0) | (sums.flags & _BAD != 0) | is_dark
    flags = np.where(sums.flags & _SATURATED != 0, int(SourceFlag.SATURATED), 0)
    flags |= np.where(sums.border, int(SourceFlag.TRUNCATED), 0)
    flags |= np.where(incomplete, int(SourceFlag.ISOPHOTE_INCOMPLETE), 0)
    return flags.astype(np.int32)
