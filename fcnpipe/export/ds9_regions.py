"""Sources as a DS9 region file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.export.base import Finished, Floats, ToSky, written_whole

SIGMAS = 3.0
"""Semi-axes of the ellipses, in units of the catalogue's 1-sigma ones."""

CORNERS = 24
"""Corners of the polygon that stands for an ellipse on the sky."""

LEAST_PX = 1.0
"""Least semi-axis that is drawn, px."""

NAMES = ("label", "x_centroid", "y_centroid", "semimajor_axis", "semiminor_axis", "orientation")


def export_regions(store: Finished, path: str | Path, to_sky: ToSky | None = None) -> None:
    """Write one ellipse for each source.

    Parameters
    ----------
    store : Finished
        The store.
    path : path
        ``.reg``.
    to_sky : callable, optional
        With it, regions are ICRS polygons of the same outline, which fit any image of that
        part of the sky; without it ellipses in DS9's image coordinates, 1-based.

    Notes
    -----
    Polygons, because an ellipse in sky coordinates would need the local scale and angle of a
    distorted WCS. Sources without a finite shape are small circles, those whose outline leaves the
    sky ellipses in image coordinates.
    """
    with written_whole(path) as temporary, temporary.open("w") as file:
        file.write("# Region file format: DS9 version 4.1\nglobal color=green width=1\n")
        file.write("image\n" if to_sky is None else "icrs\n")
        for block in store.source_blocks(NAMES):
            lines = _ellipses(block) if to_sky is None else _polygons(block, to_sky)
            file.writelines(f"{line}\n" for line in lines)


def _shapes(block: dict[str, NDArray[Any]]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Give x, y, semi-axes (px) and angle (degrees); NaN axes become the least ones."""
    a, b = (np.fmax(SIGMAS * block[f"semi{axis}_axis"], LEAST_PX) for axis in ("major", "minor"))
    return block["x_centroid"], block["y_centroid"], a, b, np.nan_to_num(block["orientation"])


def _ellipses(block: dict[str, NDArray[Any]]) -> Iterator[str]:
    for label, x, y, a, b, angle in zip(block["label"], *_shapes(block), strict=True):
        shape = f"ellipse({x + 1:.3f},{y + 1:.3f},{a:.3f},{b:.3f},{angle:.2f})"
        yield f"{shape} # text={{{label}}}"


def _polygons(block: dict[str, NDArray[Any]], to_sky: ToSky) -> Iterator[str]:
    corners = np.stack(outline(*_shapes(block), to_sky), axis=2)
    for label, ring, ellipse in zip(block["label"], corners, _ellipses(block), strict=True):
        text = ",".join(f"{value:.7f}" for value in ring.ravel())
        on_sky = np.isfinite(ring).all()
        yield f"polygon({text}) # text={{{label}}}" if on_sky else f"image\n{ellipse}\nicrs"


def outline(
    x: Floats, y: Floats, a: Floats, b: Floats, angle: Floats, to_sky: ToSky
) -> tuple[Floats, Floats]:
    """Give ra and dec, (n, `CORNERS`) degrees, of points on ellipses given in pixels."""
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    along, across = a[:, None] * np.cos(turn), b[:, None] * np.sin(turn)
    cosine, sine = np.cos(np.radians(angle))[:, None], np.sin(np.radians(angle))[:, None]
    px = x[:, None] + along * cosine - across * sine
    py = y[:, None] + along * sine + across * cosine
    ra, dec = to_sky(px.ravel(), py.ravel())
    return ra.reshape(px.shape), dec.reshape(px.shape)
