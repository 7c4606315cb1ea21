"""Sky and noise of mesh cells: clipped statistics of their pixels.

The conventions are those of SExtractor (Bertin & Arnouts 1996): clip at 3 sigma around the
median until nothing changes, then sky = 2.5 median - 1.5 mean, or the median in a crowded cell;
as there, the noise is the clipped one (1.4 % low for pure Gaussian noise). Where it departs: the
median of whole-numbered images is a grouped one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError, SpecError

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

CLIP = 3.0
"""Pixels further than this from the median, in sigma, do not count."""
CROWDED = 0.3
"""A cell whose mean and median differ by more than this, in sigma, takes the median."""
# Bins of a cell's histogram: no more than pixels, so that small cells stay fast.
_FEWEST_BINS, _MOST_BINS = 256, 1024
_HALF_RANGE = 5.0
_NARROWEST = 16.0
_PLANES = 4
# A sample sets the range of the histogram; the step is odd, so as not to see stripes.
_STEP = 5
_SAMPLED = 1024


@dataclass(frozen=True, slots=True)
class CellStatistics:
    """What was measured in each mesh cell.

    Parameters
    ----------
    sky : (my, mx) float32
        Sky level in image units; NaN where no pixel was usable.
    noise : (my, mx) float32
        Standard deviation of the sky pixels in image units; 0 where they are all equal, NaN
        where no pixel was usable.
    good : (my, mx) float32
        Pixels that were usable and survived the clipping, as a fraction of a whole cell.
    """

    sky: Plane
    noise: Plane
    good: Plane

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the mesh."""
        return self.sky.shape[0], self.sky.shape[1]


def measure_cells(image: Plane, bad: Mask, cell: int) -> CellStatistics:
    """Measure sky and noise in every mesh cell of an image, or of a box cut along the mesh.

    Parameters
    ----------
    image : (h, w) float32
        Pixels whose first one lies on a corner of the global mesh; NaN and infinite ones are
        left out. Cells at the far edges may be partial.
    bad : (h, w) bool
        Pixels to leave out.
    cell : int
        Edge of a cell in pixels.

    Returns
    -------
    CellStatistics
        A mesh of ceil(h / cell) x ceil(w / cell) cells.

    Raises
    ------
    SpecError
        If ``cell`` is not positive.
    InputError
        If the image is empty or not two-dimensional, or ``bad`` has another shape.

    Notes
    -----
    A cell's values depend on nothing but its own pixels.

    Examples
    --------
    >>> image = np.full((3, 5), 7, np.float32)
    >>> measure_cells(image, image < 0, 4).sky
    array([[7., 7.]], dtype=float32)
    """
    planes = _measure_planes(image, bad, cell)
    return CellStatistics(sky=planes[0], noise=planes[2], good=planes[3])


def measure_weight(weight: Plane, bad: Mask, cell: int) -> Plane:
    """Measure the clipped median of the positive weights of every mesh cell.

    Parameters
    ----------
    weight : (h, w) float32
        Relative inverse variance; 0, negative and not finite: the pixel has no weight.
    bad : (h, w) bool
        Pixels to leave out.
    cell : int
        Edge of a cell in pixels.

    Returns
    -------
    (my, mx) float32
        Typical weight per cell; NaN where no pixel has one.
    """
    medians: Plane = _measure_planes(weight, bad | ~(weight > 0), cell)[1]
    return medians


def _measure_planes(image: Plane, bad: Mask, cell: int) -> Plane:
    _check_image(image, bad, cell)
    shape = tuple(-(-n // cell) for n in image.shape)
    planes = np.full((_PLANES, *shape), np.nan, np.float32)
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    _measure(pixels, np.ascontiguousarray(bad, dtype=np.bool_), cell, planes)
    return planes


def _check_image(image: Plane, bad: Mask, cell: int) -> None:
    if cell < 1:
        raise SpecError(f"a mesh cell of {cell} px is impossible: give 1 or more, usually 64")
    if image.ndim != 2 or image.size == 0:
        raise InputError(f"an image of shape {image.shape} has no sky: give (h, w), both >= 1")
    if bad.shape != image.shape:
        raise InputError(f"mask of {bad.shape} over an image of {image.shape}: give equal shapes")


@njit(cache=True, nogil=True)
def _measure(image, bad, cell, planes):  # type: ignore[no-untyped-def]
    values = np.empty(cell * cell, np.float32)
    for row in range(planes.shape[1]):
        for column in range(planes.shape[2]):
            n = _gather(image, bad, cell, row, column, values)
            if n == 0:
                planes[3, row, column] = 0.0
                continue
            sky, median, noise, survivors = _measure_cell(values[:n])
            planes[0, row, column] = sky
            planes[1, row, column] = median
            planes[2, row, column] = noise
            planes[3, row, column] = survivors / (cell * cell)


@njit(cache=True, nogil=True)
def _gather(image, bad, cell, row, column, values):  # type: ignore[no-untyped-def]
    n = 0
    x0, x1 = column * cell, min((column + 1) * cell, image.shape[1])
    for y in range(row * cell, min((row + 1) * cell, image.shape[0])):
        n += _gather_row(image[y, x0:x1], bad[y, x0:x1], values[n:])
    return n


@njit(cache=True, nogil=True)
def _gather_row(pixels, bad, values):  # type: ignore[no-untyped-def]
    # value - value is 0 for a number, NaN for NaN and infinity; no branch to predict.
    usable = 0
    for x in range(pixels.size):
        usable += (pixels[x] - pixels[x] == 0) & (not bad[x])
    if usable == pixels.size:
        values[: pixels.size] = pixels
        return usable
    n = 0
    for x in range(pixels.size):
        if (pixels[x] - pixels[x] == 0) & (not bad[x]):
            values[n] = pixels[x]
            n += 1
    return n


@njit(cache=True, nogil=True)
def _measure_cell(values):  # type: ignore[no-untyped-def]
    """Sky, median, noise and number of survivors of one cell's pixels."""
    bins = min(max(values.size, _FEWEST_BINS), _MOST_BINS)
    counts, sums = np.empty(bins + 1, np.int64), np.empty((3, bins + 1), np.int64)
    n, mean, sigma = _find_range(values)
    # Each round looks closer where outliers made the range too wide for the bins.
    while sigma > 0.0:
        low, width = mean - _HALF_RANGE * sigma, 2.0 * _HALF_RANGE * sigma / bins
        _count(values, low, width, counts)
        _accumulate(counts, sums)
        first, last, middle, average, spread = _clip(counts, sums)
        n = sums[0, last] - sums[0, first]
        if spread >= _NARROWEST or n == 0:
            median, mean, noise = low + width * middle, low + width * average, width * spread
            if abs(mean - median) < CROWDED * noise:
                return 2.5 * median - 1.5 * mean, median, noise, n
            return median, median, noise, n
        n, mean, sigma = _moments(values, low + width * first, low + width * last)
    return mean, mean, 0.0, n


@njit(cache=True, nogil=True)
def _find_range(values):  # type: ignore[no-untyped-def]
    """Count, mean and sigma after one cut at 2 sigma; from a sample, if that is not constant."""
    if values.size >= _SAMPLED:
        n, mean, sigma = _clipped_moments(values[::_STEP].copy())
        if sigma > 0.0:
            return n, mean, sigma
    return _clipped_moments(values)


@njit(cache=True, nogil=True)
def _clipped_moments(values):  # type: ignore[no-untyped-def]
    _, mean, sigma = _moments(values, -np.inf, np.inf)
    return _moments(values, mean - 2.0 * sigma, mean + 2.0 * sigma)


@njit(cache=True, nogil=True)
def _moments(values, low, high):  # type: ignore[no-untyped-def]
    """Count, mean and sigma within [low, high]; sigma is exactly 0 for equal values.

    Four partial sums in a fixed order: as fast as one may reorder, yet the same on every CPU.
    """
    start = 0
    while start < values.size and not (low <= values[start] <= high):
        start += 1
    if start == values.size:
        return 0, low, 0.0
    shift = np.float64(values[start])
    n, total = _sum_power(values, low, high, shift, False)
    mean = shift + total / n
    return n, mean, np.sqrt(_sum_power(values, low, high, mean, True)[1] / n)


@njit(cache=True, nogil=True)
def _sum_power(values, low, high, shift, squared):  # type: ignore[no-untyped-def]
    lanes = np.zeros(4, np.float64)
    n = 0
    whole = values.size - values.size % 4
    for i in range(0, whole, 4):
        for lane in range(4):
            value = np.float64(values[i + lane])
            inside = (value >= low) & (value <= high)
            d = value - shift if inside else 0.0
            lanes[lane] += d * d if squared else d
            n += inside
    for i in range(whole, values.size):
        value = np.float64(values[i])
        inside = (value >= low) & (value <= high)
        d = value - shift if inside else 0.0
        lanes[i - whole] += d * d if squared else d
        n += inside
    return n, (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])


@njit(cache=True, nogil=True)
def _count(values, low, width, counts):  # type: ignore[no-untyped-def]
    """Fill the histogram; its last bin takes all that lies outside."""
    counts[:] = 0
    bins = counts.size - 1
    scale = 1.0 / width
    for value in values:
        place = (np.float64(value) - low) * scale
        inside = (place >= 0.0) & (place < bins)
        counts[np.int64(place) if inside else bins] += 1


@njit(cache=True, nogil=True)
def _accumulate(counts, sums):  # type: ignore[no-untyped-def]
    """Sum up counts, counts * bin and counts * bin^2: whole numbers, so exact."""
    zeroth = first = second = np.int64(0)
    bins = counts.size - 1
    for i in range(bins):
        sums[0, i], sums[1, i], sums[2, i] = zeroth, first, second
        zeroth += counts[i]
        first += counts[i] * i
        second += counts[i] * i * i
    sums[0, bins], sums[1, bins], sums[2, bins] = zeroth, first, second


@njit(cache=True, nogil=True)
def _clip(counts, sums):  # type: ignore[no-untyped-def]
    """Clip a histogram until nothing changes; range, median, mean and sigma in bins."""
    low, high = 0, counts.size - 1
    while True:
        n = sums[0, high] - sums[0, low]
        if n == 0:
            return low, high, 0.0, 0.0, 0.0
        average = (sums[1, high] - sums[1, low]) / n
        spread = np.sqrt(max((sums[2, high] - sums[2, low]) / n - average * average, 0.0))
        middle = _middle(counts, sums, low, high)
        next_low = max(low, int(np.floor(middle - CLIP * spread + 0.5)))
        next_high = min(high, int(np.floor(middle + CLIP * spread + 0.5)))
        if (next_low == low and next_high == high) or next_high <= next_low:
            return low, high, middle, average + 0.5, spread
        low, high = next_low, next_high


@njit(cache=True, nogil=True)
def _middle(counts, sums, low, high):  # type: ignore[no-untyped-def]
    """Give the grouped median: a bin's pixels spread over the interval between bins.

    In an image of whole numbers the plain median jumps by a whole unit, and 2.5 median makes
    it 2.5; spreading a value over its rounding interval removes the jump.
    """
    half = sums[0, low] + 0.5 * (sums[0, high] - sums[0, low])
    # The bin b with sums[b] <= half < sums[b + 1].
    b = np.searchsorted(sums[0, low : high + 1], half, side="right") - 1 + low
    before, after = b - 1, b + 1
    while before >= low and counts[before] == 0:
        before -= 1
    while after < high and counts[after] == 0:
        after += 1
    # The nearer neighbour sets the interval, else a far outlier would pull the median.
    interval = min(b - before, after - b) if before >= low and after < high else 1
    return b + 0.5 + interval * ((half - sums[0, b]) / counts[b] - 0.5)
