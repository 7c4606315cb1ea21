"""Aperture columns of sources: Kron flux, half-light radius and windowed position.

The measurement of a source reads only the pixels of its own box, in a fixed order, so it does not
depend on the tiling or on how far the region extends beyond the box. The definitions are those of
photutils 3 (``SourceCatalog``); the windowed position is that of SExtractor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.science.aperture_kernels import (
    KRON_EXTENT,
    KRON_SCALE,
    NOT_COVERED,
    Field,
    Scratch,
    fill_owners,
    measure_all_sources,
)
from fcnpipe.science.aperture_regions import Region
from fcnpipe.science.moments import Columns

RADIUS_CAP = 512.0
"""Maximum semi-axis of a measured aperture, px."""


def aperture_boxes(
    columns: Mapping[str, NDArray[Any]], shape: tuple[int, int], cap: float = RADIUS_CAP
) -> NDArray[np.int64]:
    """Compute the box of pixels that the apertures of each source may need.

    Parameters
    ----------
    columns : mapping
        Columns of ``measure_isophotes``.
    shape : (int, int)
        Height and width of the image.
    cap : float
        Maximum semi-axis of an aperture, px.

    Returns
    -------
    (n, 4) int64
        Boxes y0, x0, y1, x1, half-open and clipped at the image; never empty.
    """
    reach = np.minimum(columns["semimajor_axis"] * (KRON_SCALE * KRON_EXTENT), cap)
    reach = np.ceil(reach).astype(np.int64) + 2
    y = np.floor(columns["y_centroid"] + 0.5).astype(np.int64)
    x = np.floor(columns["x_centroid"] + 0.5).astype(np.int64)
    low = np.stack([y - reach, x - reach], axis=1)
    high = np.stack([y + reach + 1, x + reach + 1], axis=1)
    return np.concatenate([np.maximum(low, 0), np.minimum(high, shape)], axis=1)


def measure_apertures(
    columns: Mapping[str, NDArray[Any]], region: Region, cap: float = RADIUS_CAP
) -> Columns:
    """Measure the Kron flux, half-light radius and windowed position of sources inside one region.

    Parameters
    ----------
    columns : mapping
        Columns of ``measure_isophotes``, for sources whose ``aperture_boxes`` are inside the region.
    region : Region
        Pixels. Those outside the sources' boxes have no influence.
    cap : float
        Maximum semi-axis of an aperture, px; the same as for ``aperture_boxes``.

    Returns
    -------
    dict of (n,) arrays
        ``kron_radius`` (in semi-axes), ``kron_flux``, ``kron_flux_err``, ``half_light_radius``
        (px), ``x_winpos``, ``y_winpos`` (px; the centroid where the iteration fails) and ``flags``
        with the aperture bits of `SourceFlag` added. NaN is a value that could not be measured.

    Raises
    ------
    ValueError
        If the box of a source extends beyond the region.

    Notes
    -----
    The definitions are those of photutils with ``kron_params=(2.5, 1.4, 0.0)`` and
    ``aperture_mask_method='correct'``: a neighbour's pixel is replaced by its mirror image about the
    centroid, or by 0 if that pixel cannot be used either. Bad pixels are replaced in the same way
    (photutils leaves them out), so a star with a bad column keeps its flux. Overlaps of pixels with
    ellipses and circles are exact. The windowed position iterates a Gaussian window with sigma =
    half-light radius * 2 / 2.35 (XWIN_IMAGE of SExtractor) over the same repaired pixels.
    """
    _check_region(region, aperture_boxes(columns, region.shape, cap))
    return measure_covered_apertures(columns, region, cap)[0]


def measure_covered_apertures(
    columns: Mapping[str, NDArray[Any]], region: Region, cap: float = RADIUS_CAP
) -> tuple[Columns, NDArray[np.bool_]]:
    """Measure the sources whose apertures the region covers.

    Few apertures grow as large as ``aperture_boxes`` must allow, so a region much smaller than
    those boxes suffices for nearly all sources. Parameters are those of `measure_apertures`, except
    that the boxes may extend beyond the region.

    Returns
    -------
    dict of (n,) arrays
        Columns as in `measure_apertures`; not valid for sources that were not measured.
    (n,) bool
        Whether each source was measured. The others need a larger region.
    """
    boxes = aperture_boxes(columns, region.shape, cap)
    n = len(boxes)
    edge = min(int((boxes[:, 2:] - boxes[:, :2]).max(initial=1)), max(region.box.shape))
    shapes = np.stack([np.asarray(columns[name], np.float64) for name in _ELLIPSE_COLUMNS], axis=1)
    values, bits = np.full((n, len(_APERTURE_COLUMNS)), np.nan), np.zeros(n, np.int32)
    labels = np.asarray(columns["label"], np.int32)
    measure_all_sources(
        _make_field(region),
        cap,
        _allocate_scratch(edge),
        (labels, shapes, boxes),
        (values, bits),
    )
    measured: Columns = dict(zip(_APERTURE_COLUMNS, values.T.copy(), strict=True))
    done = bits != NOT_COVERED
    measured["flags"] = columns["flags"] | np.where(done, bits, 0).astype(np.int32)
    return measured, done


_ELLIPSE_COLUMNS = (
    "x_centroid",
    "y_centroid",
    "semimajor_axis",
    "semiminor_axis",
    "orientation",
    "ellipse_cxx",
    "ellipse_cxy",
    "ellipse_cyy",
)
_APERTURE_COLUMNS = (
    "x_winpos",
    "y_winpos",
    "kron_radius",
    "kron_flux",
    "kron_flux_err",
    "half_light_radius",
)


def _check_region(region: Region, boxes: NDArray[np.int64]) -> None:
    for name in ("image", "noise", "labels", "flags"):
        if getattr(region, name).shape != region.box.shape:
            raise ValueError(
                f"{name} has shape {getattr(region, name).shape}, but its box has {region.box.shape}: "
                "pass all maps of the box"
            )
    if not len(boxes):
        return
    hull = Box(*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    if not region.box.contains(hull):
        raise ValueError(
            f"region {region.box} does not contain the apertures' {hull}: read the hull of aperture_boxes"
        )


def _make_field(region: Region) -> Field:
    image = np.ascontiguousarray(region.image, np.float32)
    noise = np.ascontiguousarray(region.noise, np.float32)
    labels = np.ascontiguousarray(region.labels, np.int32)
    owner = np.empty(labels.shape, np.int32)
    fill_owners(labels, np.ascontiguousarray(region.flags, np.uint8), image, noise, owner)
    return Field(image, noise, owner, region.box.y0, region.box.x0)


def _allocate_scratch(edge: int) -> Scratch:
    square = (edge, edge)
    return Scratch(
        np.empty(square),
        np.empty(2 * edge + 8, np.int64),
        np.empty(edge * edge, np.int64),
        np.empty((edge * edge, 3)),
        np.empty(2 * edge + 8),
        np.empty(edge),
    )


LAST_KERNEL: Any = measure_all_sources
"""The kernel that a run compiles last: if it is cached, all kernels are."""
