"""Export of sources as ellipses or polygons in a DS9 region file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.export.base import FinishedStore, Floats, ToSky, atomic_write

SIGMAS = 3.0
"""Semi-axes of the ellipses, in units of the 1-sigma semi-axes of the catalogue."""

CORNERS = 24
"""Number of corners of the polygon that represents an ellipse on the sky."""

MIN_SEMI_AXIS_PX = 1.0
"""Minimum semi-axis of an ellipse, px."""

NAMES = ("label", "x_centroid", "y_centroid", "semimajor_axis", "semiminor_axis", "orientation")


def export_regions(store: FinishedStore, path: str | Path, to_sky: ToSky | None = None) -> None:
    """Write one ellipse or polygon for each source.

    Parameters
    ----------
    store : FinishedStore
        The store.
    path : path
        File with the suffix ``.reg``.
    to_sky : callable, optional
        Function that converts pixel to sky coordinates. If it is passed, regions are ICRS polygons, which fit
        any image of that part of the sky; otherwise they are ellipses in DS9's 1-based image coordinates.

    Notes
    -----
    Polygons are used on the sky because an ellipse would need the local scale and angle of a distorted
    WCS. Sources without a finite shape become small circles. Sources with corners outside the sky become
    ellipses in image coordinates.
    """
    with atomic_write(path) as temporary, temporary.open("w") as file:
        file.write("# Region file format: DS9 version 4.1\nglobal color=green width=1\n")
        file.write("image\n" if to_sky is None else "icrs\n")
        for block in store.source_blocks(NAMES):
            lines = _format_ellipses(block) if to_sky is None else _format_polygons(block, to_sky)
            file.writelines(f"{line}\n" for line in lines)


def _ellipse_parameters(
    block: dict[str, NDArray[Any]],
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return x, y, semi-axes (px) and angle (degrees); NaN semi-axes become the minimum."""
    a, b = (
        np.fmax(SIGMAS * block[f"semi{axis}_axis"], MIN_SEMI_AXIS_PX) for axis in ("major", "minor")
    )
    return block["x_centroid"], block["y_centroid"], a, b, np.nan_to_num(block["orientation"])


def _format_ellipses(block: dict[str, NDArray[Any]]) -> Iterator[str]:
    for label, x, y, a, b, angle in zip(block["label"], *_ellipse_parameters(block), strict=True):
        shape = f"ellipse({x + 1:.3f},{y + 1:.3f},{a:.3f},{b:.3f},{angle:.2f})"
        yield f"{shape} # text={{{label}}}"


def _format_polygons(block: dict[str, NDArray[Any]], to_sky: ToSky) -> Iterator[str]:
    corners = np.stack(outline(*_ellipse_parameters(block), to_sky), axis=2)
    for label, ring, ellipse in zip(block["label"], corners, _format_ellipses(block), strict=True):
        text = ",".join(f"{value:.7f}" for value in ring.ravel())
        on_sky = np.isfinite(ring).all()
        yield f"polygon({text}) # text={{{label}}}" if on_sky else f"image\n{ellipse}\nicrs"


def outline(
    x: Floats, y: Floats, a: Floats, b: Floats, angle: Floats, to_sky: ToSky
) -> tuple[Floats, Floats]:
    """Return the corners on the sky of polygons that represent ellipses.

    Parameters
    ----------
    x, y : (n,) float64
        Centres, px, 0-based.
    a, b : (n,) float64
        Semi-axes, px.
    angle : (n,) float64
        Angle of the major axis from x towards y, degrees.
    to_sky : callable
        Function that converts pixel to sky coordinates.

    Returns
    -------
    ra, dec : (n, `CORNERS`) float64
        Corners, ICRS degrees; NaN if a corner is not on the sky.
    """
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    along, across = a[:, None] * np.cos(turn), b[:, None] * np.sin(turn)
    cosine, sine = np.cos(np.radians(angle))[:, None], np.sin(np.radians(angle))[:, None]
    px = x[:, None] + along * cosine - across * sine
    py = y[:, None] + along * sine + across * cosine
    ra, dec = to_sky(px.ravel(), py.ravel())
    return ra.reshape(px.shape), dec.reshape(px.shape)
