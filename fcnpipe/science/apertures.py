"""Kron fluxes, half-light radii and windowed positions of sources."""

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
    Rules,
    Scratch,
    fill_owners,
    measure_all_sources,
)
from fcnpipe.science.moments import Columns
from fcnpipe.science.regions import Region

RADIUS_CAP = 512.0
"""Largest aperture semi-axis that is measured, px."""


def aperture_boxes(
    columns: Mapping[str, NDArray[Any]], shape: tuple[int, int], cap: float = RADIUS_CAP
) -> NDArray[np.int64]:
    """Give what each source's apertures may look at: the region a caller must read.

    Parameters
    ----------
    columns : mapping
        Columns as ``measure_isophotes`` gives them.
    shape : (int, int)
        Height and width of the image.
    cap : float
        Largest semi-axis measured, px.

    Returns
    -------
    (n, 4) int64
        Boxes y0, x0, y1, x1, half-open, clipped at the image; never empty.
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
    """Measure Kron flux, half-light radius and windowed position of sources inside one region.

    Parameters
    ----------
    columns : mapping
        Columns as ``measure_isophotes`` gives them, of sources whose ``aperture_boxes`` lie in the region.
    region : Region
        Pixels; how far they reach beyond the sources' boxes changes nothing.
    cap : float
        Largest semi-axis measured, px: the one given to ``aperture_boxes``.

    Returns
    -------
    dict of (n,) arrays
        ``kron_radius`` (in semi-axes), ``kron_flux``, ``kron_flux_err``, ``half_light_radius``
        (px), ``x_winpos``, ``y_winpos`` (px; the centroid where the iteration fails) and ``flags``
        with the aperture's bits added. NaN is a value that could not be measured.

    Raises
    ------
    ValueError
        If a source's box sticks out of the region.

    Notes
    -----
    As photutils with ``kron_params=(2.5, 1.4, 0.0)`` and ``aperture_mask_method='correct'``: a
    pixel of a neighbour is replaced by the one mirrored about the centroid, or by 0 if that is no
    better. Bad pixels are replaced in the same way (photutils leaves them out), so a star with a
    bad column keeps its flux. Overlaps of pixels with ellipses are exact. The windowed position
    iterates a Gaussian window with sigma = half-light radius * 2 / 2.35 (SExtractor's XWIN_IMAGE)
    over the same repaired pixels.
    """
    _check_region(region, aperture_boxes(columns, region.shape, cap))
    return measure_covered_apertures(columns, region, cap)[0]


def measure_covered_apertures(
    columns: Mapping[str, NDArray[Any]], region: Region, cap: float = RADIUS_CAP
) -> tuple[Columns, NDArray[np.bool_]]:
    """Measure as `measure_apertures` does, where the region turns out to be large enough.

    Few apertures grow as large as ``aperture_boxes`` must allow, so a region much smaller than
    those boxes serves nearly all sources.

    Returns
    -------
    dict of (n,) arrays
        As `measure_apertures` gives it; meaningless where not measured.
    (n,) bool
        Whether the source was measured; if not, it needs a larger region.
    """
    boxes = aperture_boxes(columns, region.shape, cap)
    n = len(boxes)
    edge = min(int((boxes[:, 2:] - boxes[:, :2]).max(initial=1)), max(region.box.shape))
    shapes = np.stack([np.asarray(columns[name], np.float64) for name in _ELLIPSE_COLUMNS], axis=1)
    values, bits = np.full((n, len(_APERTURE_COLUMNS)), np.nan), np.zeros(n, np.int32)
    labels = np.asarray(columns["label"], np.int32)
    measure_all_sources(
        _make_field(region),
        Rules(cap),
        _allocate_scratch(edge),
        (labels, shapes, boxes),
        (values, bits),
    )
    measured: Columns = dict(zip(_APERTURE_COLUMNS, values.T.copy(), strict=True))
    done = bits != NOT_COVERED
    measured["flags"] = columns["flags"] | np.where(done, bits, 0).astype(np.int32)
    return measured, done


_ELLIPSE_COLUMNS = ("x_centroid", "y_centroid", "semimajor_axis", "semiminor_axis", "orientation",
          "ellipse_cxx", "ellipse_cxy", "ellipse_cyy")  # fmt: skip
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
                f"{name} has shape {getattr(region, name).shape}, its box {region.box.shape}"
            )
    if not len(boxes):
        return
    hull = Box(*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    if not region.box.contains(hull):
        raise ValueError(
            f"region {region.box} does not hold the apertures' {hull}: read aperture_boxes' hull"
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
"""Of those of a run, the one that is called last."""
