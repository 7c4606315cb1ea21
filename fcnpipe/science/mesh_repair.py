"""Repair of the background mesh: cells that cannot be trusted are filled, and a median filter."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import SpecError
from fcnpipe.science.mesh_statistics import CellStatistics, Mask, Plane

Coefficients = NDArray[np.float64]

MINIMUM_GOOD = 0.2
"""A cell in which fewer than this fraction of a whole cell survive is filled from neighbours."""
OUTLYING = 5.0
"""A cell stands out when it is this many scaled median deviations above its neighbours."""
EXCESS = 1.0
"""... and by at least this many times the noise around it."""
NEIGHBOURHOOD = 7
"""Edge, in cells, of the window a cell is compared with."""
SIGMA_PER_MAD = 1.4826


def repair_cells(cells: CellStatistics, filter_size: int = 3) -> CellStatistics:
    """Fill the cells that cannot be trusted from their neighbours, then median-filter the mesh.

    Parameters
    ----------
    cells : CellStatistics
        The mesh of the whole image, as measured.
    filter_size : int
        Edge of the median filter in cells, odd; 1 leaves the mesh unfiltered.

    Returns
    -------
    CellStatistics
        Finite sky and noise > 0 everywhere, with two exceptions: where no cell had a usable
        pixel, sky is 0 and noise NaN; where no cell had any noise, noise is 0. ``good`` is
        that of the measurement.

    Raises
    ------
    SpecError
        If ``filter_size`` is not a positive odd number.

    Notes
    -----
    Not trusted are cells without pixels, constant ones (padding, or the core of a saturated
    star), those with few surviving pixels, and those that a source fills: sky or noise far
    above the cells around. SExtractor leaves the last kind to its median filter, which a source
    larger than two cells defeats.
    """
    if filter_size < 1 or filter_size % 2 == 0:
        raise SpecError(f"background filter of {filter_size} cells: give an odd number, usually 3")
    if np.isnan(cells.sky).all():
        return CellStatistics(np.zeros_like(cells.sky), cells.noise, cells.good)
    trusted = find_trusted_cells(cells)
    return CellStatistics(
        sky=_filter_median(_fill(cells.sky, trusted), filter_size),
        noise=_filter_median(_fill(cells.noise, trusted), filter_size),
        good=cells.good,
    )


def find_trusted_cells(cells: CellStatistics) -> Mask:
    """Tell which cells of a mesh measured the sky; at least one, if any cell has a sky.

    Returns
    -------
    (my, mx) bool
        False where the cell is empty, constant, mostly bad, or filled by a source.
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
    typical = _local_median(noise, NEIGHBOURHOOD, False)
    return _stands_out(sky, EXCESS * typical) | _stands_out(noise, EXCESS * typical)


def _stands_out(values: Coefficients, least: Coefficients) -> Mask:
    excess = values - _local_median(values, NEIGHBOURHOOD, False)
    spread = SIGMA_PER_MAD * _local_median(np.abs(excess), NEIGHBOURHOOD, False)
    outstanding: Mask = excess > OUTLYING * spread + least
    return outstanding


def _fill(values: Plane, trusted: Mask) -> Coefficients:
    filled = np.where(trusted, values, np.nan).astype(np.float64)
    _fill_inwards(filled)
    return filled


def _filter_median(values: Coefficients, size: int) -> Plane:
    filtered: Plane = _local_median(values, size, True).astype(np.float32)
    return filtered


@njit(cache=True, nogil=True)
def _local_median(values, size, symmetric):  # type: ignore[no-untyped-def]
    """Median of the numbers in a window around each cell that has one; NaN stays NaN.

    At the border the window is cut, or shrunk on both sides if ``symmetric``: a one-sided
    window would move the outermost sky along its gradient.
    """
    out = np.full_like(values, np.nan)
    window = np.empty(size * size, np.float64)
    for y in range(values.shape[0]):
        y0, y1 = _window(y, size // 2, values.shape[0], symmetric)
        for x in range(values.shape[1]):
            if np.isnan(values[y, x]):
                continue
            x0, x1 = _window(x, size // 2, values.shape[1], symmetric)
            n = 0
            for j in range(y0, y1):
                for i in range(x0, x1):
                    window[n] = values[j, i]
                    n += not np.isnan(values[j, i])
            out[y, x] = _median(window[:n])
    return out


@njit(cache=True, nogil=True)
def _window(place, reach, length, symmetric):  # type: ignore[no-untyped-def]
    if symmetric:
        reach = min(reach, place, length - 1 - place)
    return max(place - reach, 0), min(place + reach + 1, length)


@njit(cache=True, nogil=True)
def _median(values):  # type: ignore[no-untyped-def]
    """Give the median of values, which are put in another order."""
    if values.size == 0:
        return np.nan
    half = values.size // 2
    upper = _select(values, half)
    return upper if values.size % 2 else 0.5 * (upper + values[:half].max())


@njit(cache=True, nogil=True)
def _select(values, rank):  # type: ignore[no-untyped-def]
    """Give the value of this rank; no greater one is left before it (Hoare's selection)."""
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
    """Fill NaN from the rims inwards: each round, the mean of the neighbours known before."""
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
