"""Clipped statistics of the pixels in each cell of the background mesh: sky, median and noise.

::

    pixels   0        cell      2 cell    3 cell
             |---------|---------|---------|----      the mesh is anchored at pixel (0, 0) of the image
              cell 0    cell 1    cell 2    cell 3    the last cell may be partial

Statistics of a cell depend only on its own pixels. They have the same bits in the whole image and in
any tile that is cut along the mesh.

The method is that of SExtractor (Bertin & Arnouts 1996): clip at 3 sigma around the median until
nothing changes, then sky = 2.5 median - 1.5 mean, or sky = median in a crowded cell. The noise is
the standard deviation after clipping, which is 1.4 % low for pure Gaussian noise, as in
SExtractor. There is one difference: the median is a grouped median, so that the sky of an integer
image does not jump from one integer to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError, SpecError

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

CLIP_SIGMA = 3.0
"""Pixels further than this from the median, in sigma, are clipped."""
CROWDED_SIGMA = 0.3
"""A cell is crowded if its mean and median differ by at least this, in sigma."""
_MIN_BINS, _MAX_BINS = 256, 1024
"""Limits on the number of bins in a cell's histogram: about one per pixel keeps small cells fast."""
_HALF_RANGE_SIGMA = 5.0
"""Half the range of the histogram, in sigma."""
_MIN_SIGMA_BINS = 16.0
"""The histogram is refined until sigma is at least this many bins wide."""
_PLANES = 4
"""Planes of statistics: sky, median, noise, good."""
_SAMPLE_STEP = 5
"""Step of the sample that sets the range of the histogram; odd, so that it sees no stripes."""
_MIN_SAMPLED = 1024
"""Cells with fewer pixels than this are not sampled."""


@dataclass(frozen=True, slots=True)
class CellStatistics:
    """Clipped statistics of every mesh cell.

    Parameters
    ----------
    sky : (my, mx) float32
        Sky level in image units; NaN where no pixel was usable.
    noise : (my, mx) float32
        Standard deviation of the sky pixels in image units; 0 where they are all equal, NaN
        where no pixel was usable.
    good : (my, mx) float32
        Number of pixels that were usable and survived the clipping, as a fraction of a whole cell.
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
        Pixels; the first one is a corner of the global mesh. NaN and infinite pixels are
        ignored. Cells at the high edges may be partial.
    bad : (h, w) bool
        Pixels to ignore.
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
    Statistics of a cell depend only on its own pixels.

    Examples
    --------
    >>> image = np.full((3, 5), 7, np.float32)
    >>> measure_cells(image, image < 0, 4).sky
    array([[7., 7.]], dtype=float32)
    """
    planes = _measure_planes(image, bad, cell)
    return CellStatistics(sky=planes[0], noise=planes[2], good=planes[3])


def measure_weight(weight: Plane, bad: Mask, cell: int) -> Plane:
    """Measure the clipped median of the positive weights in every mesh cell.

    Parameters
    ----------
    weight : (h, w) float32
        Relative inverse variance. Zero, negative and non-finite values are ignored.
    bad : (h, w) bool
        Pixels to ignore.
    cell : int
        Edge of a cell in pixels.

    Returns
    -------
    (my, mx) float32
        Typical weight of each cell; NaN where no pixel has a positive weight.

    Raises
    ------
    SpecError, InputError
        As in `measure_cells`.
    """
    medians: Plane = _measure_planes(weight, bad | ~(weight > 0), cell)[1]
    return medians


def _measure_planes(image: Plane, bad: Mask, cell: int) -> Plane:
    _check_image(image, bad, cell)
    shape = tuple(-(-n // cell) for n in image.shape)
    planes = np.full((_PLANES, *shape), np.nan, np.float32)
    pixels = np.ascontiguousarray(image, dtype=np.float32)
    _measure_cells(pixels, np.ascontiguousarray(bad, dtype=np.bool_), cell, planes)
    return planes


def _check_image(image: Plane, bad: Mask, cell: int) -> None:
    if cell < 1:
        raise SpecError(f"a mesh cell of {cell} px is impossible: use 1 px or more, usually 64")
    if image.ndim != 2 or image.size == 0:
        raise InputError(
            f"an image of shape {image.shape} has no sky: use (h, w) with h and w >= 1"
        )
    if bad.shape != image.shape:
        raise InputError(
            f"a mask of shape {bad.shape} does not fit an image of shape {image.shape}: use equal shapes"
        )


@njit(cache=True, nogil=True)
def _measure_cells(image, bad, cell, planes):  # type: ignore[no-untyped-def]
    values = np.empty(cell * cell, np.float32)
    for row in range(planes.shape[1]):
        for column in range(planes.shape[2]):
            n = _gather_cell(image, bad, cell, row, column, values)
            if n == 0:
                planes[3, row, column] = 0.0
                continue
            sky, median, noise, survivors = _measure_cell(values[:n])
            planes[0, row, column] = sky
            planes[1, row, column] = median
            planes[2, row, column] = noise
            planes[3, row, column] = survivors / (cell * cell)


@njit(cache=True, nogil=True)
def _gather_cell(image, bad, cell, row, column, values):  # type: ignore[no-untyped-def]
    n = 0
    x0, x1 = column * cell, min((column + 1) * cell, image.shape[1])
    for y in range(row * cell, min((row + 1) * cell, image.shape[0])):
        n += _gather_row(image[y, x0:x1], bad[y, x0:x1], values[n:])
    return n


@njit(cache=True, nogil=True)
def _gather_row(pixels, bad, values):  # type: ignore[no-untyped-def]
    # value - value is 0 for a finite number and NaN otherwise: a test without a branch to predict.
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
    """Return sky, median, noise and the number of unclipped pixels of one cell."""
    bins = min(max(values.size, _MIN_BINS), _MAX_BINS)
    counts, sums = np.empty(bins + 1, np.int64), np.empty((3, bins + 1), np.int64)
    n, mean, sigma = _initial_moments(values)
    # Outliers can make the range so wide that sigma is only a few bins: the range is then refined.
    while sigma > 0.0:
        low, width = mean - _HALF_RANGE_SIGMA * sigma, 2.0 * _HALF_RANGE_SIGMA * sigma / bins
        _fill_histogram(values, low, width, counts)
        _sum_cumulatively(counts, sums)
        first, last, middle, average, spread = _clip_histogram(counts, sums)
        n = sums[0, last] - sums[0, first]
        if spread >= _MIN_SIGMA_BINS or n == 0:
            median, mean, noise = low + width * middle, low + width * average, width * spread
            if abs(mean - median) < CROWDED_SIGMA * noise:
                return 2.5 * median - 1.5 * mean, median, noise, n
            return median, median, noise, n
        n, mean, sigma = _moments(values, low + width * first, low + width * last)
    return mean, mean, 0.0, n


@njit(cache=True, nogil=True)
def _initial_moments(values):  # type: ignore[no-untyped-def]
    """Return count, mean and sigma after one clipping at 2 sigma.

    They come from a sample of the pixels, unless the cell is small or the sample constant.
    """
    if values.size >= _MIN_SAMPLED:
        n, mean, sigma = _clipped_moments(values[::_SAMPLE_STEP].copy())
        if sigma > 0.0:
            return n, mean, sigma
    return _clipped_moments(values)


@njit(cache=True, nogil=True)
def _clipped_moments(values):  # type: ignore[no-untyped-def]
    _, mean, sigma = _moments(values, -np.inf, np.inf)
    return _moments(values, mean - 2.0 * sigma, mean + 2.0 * sigma)


@njit(cache=True, nogil=True)
def _moments(values, low, high):  # type: ignore[no-untyped-def]
    """Return count, mean and sigma of the values in [low, high]; sigma is exactly 0 if all are equal."""
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
    """Return the count of the values in [low, high], and the sum of their (squared) deviations from ``shift``.

    Four partial sums in a fixed order are as fast as a reordered sum, and the same on every CPU.
    """
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
def _fill_histogram(values, low, width, counts):  # type: ignore[no-untyped-def]
    """Fill the histogram; its last bin counts the values outside the range."""
    counts[:] = 0
    bins = counts.size - 1
    scale = 1.0 / width
    for value in values:
        position = (np.float64(value) - low) * scale
        inside = (position >= 0.0) & (position < bins)
        counts[np.int64(position) if inside else bins] += 1


@njit(cache=True, nogil=True)
def _sum_cumulatively(counts, sums):  # type: ignore[no-untyped-def]
    """Compute cumulative sums of counts, counts * bin and counts * bin^2; exact, as all are integers."""
    zeroth = first = second = np.int64(0)
    bins = counts.size - 1
    for i in range(bins):
        sums[0, i], sums[1, i], sums[2, i] = zeroth, first, second
        zeroth += counts[i]
        first += counts[i] * i
        second += counts[i] * i * i
    sums[0, bins], sums[1, bins], sums[2, bins] = zeroth, first, second


@njit(cache=True, nogil=True)
def _clip_histogram(counts, sums):  # type: ignore[no-untyped-def]
    """Clip a histogram until nothing changes; return range, median, mean and sigma in bins."""
    low, high = 0, counts.size - 1
    while True:
        n = sums[0, high] - sums[0, low]
        if n == 0:
            return low, high, 0.0, 0.0, 0.0
        average = (sums[1, high] - sums[1, low]) / n
        spread = np.sqrt(max((sums[2, high] - sums[2, low]) / n - average * average, 0.0))
        middle = _grouped_median(counts, sums, low, high)
        next_low = max(low, int(np.floor(middle - CLIP_SIGMA * spread + 0.5)))
        next_high = min(high, int(np.floor(middle + CLIP_SIGMA * spread + 0.5)))
        if (next_low == low and next_high == high) or next_high <= next_low:
            return low, high, middle, average + 0.5, spread
        low, high = next_low, next_high


@njit(cache=True, nogil=True)
def _grouped_median(counts, sums, low, high):  # type: ignore[no-untyped-def]
    """Return the grouped median: the pixels of a bin are spread over the interval between bins.

    In an integer image the plain median jumps by one unit, and the term 2.5 median of the sky by
    2.5 units. Spreading a value over its rounding interval removes the jump.
    """
    half = sums[0, low] + 0.5 * (sums[0, high] - sums[0, low])
    # Find the bin b with sums[b] <= half < sums[b + 1].
    b = np.searchsorted(sums[0, low : high + 1], half, side="right") - 1 + low
    before, after = b - 1, b + 1
    while before >= low and counts[before] == 0:
        before -= 1
    while after < high and counts[after] == 0:
        after += 1
    # The nearer neighbour sets the interval; a distant outlier would pull the median.
    interval = min(b - before, after - b) if before >= low and after < high else 1
    return b + 0.5 + interval * ((half - sums[0, b]) / counts[b] - 0.5)
