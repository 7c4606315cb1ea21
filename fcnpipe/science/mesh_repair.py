"""Repair of the background mesh: untrusted cells are filled from their neighbours, then median-filtered.

A cell is not trusted if it is empty or constant, has few good pixels, or is filled by a source::

    sky    100 101  99 100         100 101  99 100
           101 180 nan 100   -->   101 100 100 100        180: filled by a galaxy, nan: no pixel
           100 100 101  99         100 100 101  99        both become the mean of trusted neighbours
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import SpecError
from fcnpipe.science.mesh_statistics import CellStatistics, Mask, Plane

Float64 = NDArray[np.float64]

MINIMUM_GOOD = 0.2
"""Minimum ``good`` of a trusted cell: a cell with fewer pixels after clipping is filled from its neighbours."""
OUTLIER_SIGMA = 5.0
"""A cell is an outlier if its excess over the median of its neighbourhood is above this many sigma, estimated
from the median absolute deviation, plus `MINIMUM_EXCESS`."""
MINIMUM_EXCESS = 1.0
"""Excess over the neighbourhood that is always tolerated, in units of the local noise."""
NEIGHBOURHOOD_CELLS = 7
"""Edge, in cells, of the neighbourhood that a cell is compared with."""
SIGMA_PER_MAD = 1.4826
"""Standard deviation of a Gaussian in units of its median absolute deviation."""


def repair_cells(cells: CellStatistics, filter_size: int = 3) -> CellStatistics:
    """Fill untrusted cells from their neighbours, then apply a median filter to the mesh.

    Parameters
    ----------
    cells : CellStatistics
        The measured mesh of the whole image.
    filter_size : int
        Edge of the median filter in cells, odd; 1 applies no filter.

    Returns
    -------
    CellStatistics
        Finite sky and noise > 0 everywhere, with two exceptions: if no cell had a usable pixel,
        sky is 0 and noise is NaN; if no cell had any noise, noise is 0. ``good`` is unchanged.

    Raises
    ------
    SpecError
        If ``filter_size`` is not a positive odd number.

    Notes
    -----
    A cell is not trusted if it has no usable pixel or is constant (padding, or the core of a
    saturated star), has few pixels left after clipping, or is filled by a source. In that case its sky
    or noise is far above that of the cells around it. SExtractor relies on its median filter to remove the
    last kind, which fails for a source larger than two cells.
    """
    if filter_size < 1 or filter_size % 2 == 0:
        raise SpecError(
            f"background filter of {filter_size} cells: use a positive odd number, usually 3"
        )
    if np.isnan(cells.sky).all():
        return CellStatistics(np.zeros_like(cells.sky), cells.noise, cells.good)
    trusted = find_trusted_cells(cells)
    return CellStatistics(
        sky=_filter(_fill_untrusted(cells.sky, trusted), filter_size),
        noise=_filter(_fill_untrusted(cells.noise, trusted), filter_size),
        good=cells.good,
    )


def find_trusted_cells(cells: CellStatistics) -> Mask:
    """Return which cells of a mesh measured the sky.

    Parameters
    ----------
    cells : CellStatistics
        The measured mesh of the whole image.

    Returns
    -------
    (my, mx) bool
        False where the cell is empty, constant, mostly bad, or filled by a source. At least one cell
        is True if any cell has a sky.
    """
    usable = np.isfinite(cells.sky)
    varied = usable & (cells.noise > 0)
    candidates = varied if varied.any() else usable
    full = candidates & (cells.good >= MINIMUM_GOOD)
    candidates = full if full.any() else candidates
    trusted: Mask = candidates & ~_find_filled(cells, candidates)
    return trusted if trusted.any() else candidates


def _find_filled(cells: CellStatistics, candidates: Mask) -> Mask:
    sky = np.where(candidates, cells.sky, np.nan).astype(np.float64)
    noise = np.where(candidates, cells.noise, np.nan).astype(np.float64)
    typical = _local_median(noise, NEIGHBOURHOOD_CELLS, False)
    return _is_outlier(sky, MINIMUM_EXCESS * typical) | _is_outlier(noise, MINIMUM_EXCESS * typical)


def _is_outlier(values: Float64, minimum: Float64) -> Mask:
    excess = values - _local_median(values, NEIGHBOURHOOD_CELLS, False)
    spread = SIGMA_PER_MAD * _local_median(np.abs(excess), NEIGHBOURHOOD_CELLS, False)
    outlier: Mask = excess > OUTLIER_SIGMA * spread + minimum
    return outlier


def _fill_untrusted(values: Plane, trusted: Mask) -> Float64:
    filled = np.where(trusted, values, np.nan).astype(np.float64)
    _fill_inwards(filled)
    return filled


def _filter(values: Float64, size: int) -> Plane:
    filtered: Plane = _local_median(values, size, True).astype(np.float32)
    return filtered


@njit(cache=True, nogil=True)
def _local_median(values, size, symmetric):  # type: ignore[no-untyped-def]
    """Return the median, ignoring NaN, of a window around each cell; a cell of NaN stays NaN.

    At the border the window is clipped, or shrunk on both sides if ``symmetric``: the median of a
    one-sided window would shift the sky of the outermost cells along its gradient.
    """
    out = np.full_like(values, np.nan)
    window = np.empty(size * size, np.float64)
    for y in range(values.shape[0]):
        y0, y1 = _window_range(y, size // 2, values.shape[0], symmetric)
        for x in range(values.shape[1]):
            if np.isnan(values[y, x]):
                continue
            x0, x1 = _window_range(x, size // 2, values.shape[1], symmetric)
            n = 0
            for j in range(y0, y1):
                for i in range(x0, x1):
                    window[n] = values[j, i]
                    n += not np.isnan(values[j, i])
            out[y, x] = _median(window[:n])
    return out


@njit(cache=True, nogil=True)
def _window_range(position, reach, length, symmetric):  # type: ignore[no-untyped-def]
    if symmetric:
        reach = min(reach, position, length - 1 - position)
    return max(position - reach, 0), min(position + reach + 1, length)


@njit(cache=True, nogil=True)
def _median(values):  # type: ignore[no-untyped-def]
    """Return the median of values; reorders them in place."""
    if values.size == 0:
        return np.nan
    half = values.size // 2
    upper = _select(values, half)
    return upper if values.size % 2 else 0.5 * (upper + values[:half].max())


@njit(cache=True, nogil=True)
def _select(values, rank):  # type: ignore[no-untyped-def]
    """Return the value of this rank by Hoare's selection; reorders values so that none before it is greater."""
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i, j = i + 1, j - 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@njit(cache=True, nogil=True)
def _fill_inwards(values):  # type: ignore[no-untyped-def]
    """Fill NaN from the rim inwards, layer by layer, with the mean of the known neighbours."""
    rim = np.empty((values.size, 2), np.int64)
    reached = ~np.isnan(values)
    start = stop = 0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            if np.isnan(values[y, x]) and not np.isnan(_neighbour_mean(values, y, x)):
                rim[stop, 0], rim[stop, 1] = y, x
                reached[y, x] = True
                stop += 1
    while start < stop:
        means = np.empty(stop - start, np.float64)
        for k in range(start, stop):
            means[k - start] = _neighbour_mean(values, rim[k, 0], rim[k, 1])
        end = stop
        for k in range(start, stop):
            values[rim[k, 0], rim[k, 1]] = means[k - start]
            end = _queue_neighbours(rim, k, end, reached)
        start, stop = stop, end


@njit(cache=True, nogil=True)
def _queue_neighbours(rim, k, end, reached):  # type: ignore[no-untyped-def]
    y, x = rim[k, 0], rim[k, 1]
    for j in range(max(y - 1, 0), min(y + 2, reached.shape[0])):
        for i in range(max(x - 1, 0), min(x + 2, reached.shape[1])):
            if not reached[j, i]:
                reached[j, i] = True
                rim[end, 0], rim[end, 1] = j, i
                end += 1
    return end


@njit(cache=True, nogil=True)
def _neighbour_mean(values, y, x):  # type: ignore[no-untyped-def]
    total, n = 0.0, 0
    for j in range(max(y - 1, 0), min(y + 2, values.shape[0])):
        for i in range(max(x - 1, 0), min(x + 2, values.shape[1])):
            if not np.isnan(values[j, i]):
                total += values[j, i]
                n += 1
    return total / n if n else np.nan
