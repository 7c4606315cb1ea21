r"""Sky and noise: clipped statistics per mesh cell, repaired, filtered and splined.

::

    pixels   0        cell      2 cell    3 cell
             |---------|---------|---------|----      one global mesh, anchored at pixel (0, 0)
             |    o    |    o    |    o    |    o     a node lies in the middle of a whole cell
                  \_______ spline _______/
             <--->                                    straight lines outside the outermost nodes

A cell sees only its own pixels, and a pixel of the spline only its own place and the
coefficients, always in the same order of operations. So every tile, strip or whole image gets
the same bits.

The conventions are those of SExtractor (Bertin & Arnouts 1996): clip at 3 sigma around the
median until nothing changes, then sky = 2.5 median - 1.5 mean, or the median in a crowded cell;
as there, the noise is the clipped one (1.4 % low for pure Gaussian noise). Where it departs: the
median of whole-numbered images is a grouped one, constant cells count as unmeasured, a cell
filled by a source is found by comparison with its neighbours, and the spline runs on as a
straight line at the image border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError, SpecError

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Coefficients = NDArray[np.float64]

CLIP = 3.0
"""Pixels further than this from the median, in sigma, do not count."""
CROWDED = 0.3
"""A cell whose mean and median differ by more than this, in sigma, takes the median."""
MINIMUM_GOOD = 0.2
"""A cell in which fewer than this fraction of a whole cell survive is filled from neighbours."""
OUTLYING = 5.0
"""A cell stands out when it is this many scaled median deviations above its neighbours."""
EXCESS = 1.0
"""... and by at least this many times the noise around it."""
NEIGHBOURHOOD = 7
"""Edge, in cells, of the window a cell is compared with."""
SIGMA_PER_MAD = 1.4826
PADDING = 2
"""Spline coefficients beyond the mesh on each side."""
# Bins of a cell's histogram: no more than pixels, so that small cells stay fast.
_FEWEST_BINS, _MOST_BINS = 256, 1024
_HALF_RANGE = 5.0
_NARROWEST = 16.0
_PLANES = 4
# A sample sets the range of the histogram; the step is odd, so as not to see stripes.
_STEP = 5
_SAMPLED = 1024


@dataclass(frozen=True, slots=True)
class Cells:
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


@dataclass(frozen=True, slots=True)
class Background:
    """Sky and noise of a whole image, ready to be evaluated on any box.

    Parameters
    ----------
    cell : int
        Edge of a mesh cell in pixels.
    cells : Cells
        The repaired and filtered mesh.
    sky_coefficients, noise_coefficients : (my + 4, mx + 4) float64
        Spline coefficients as :func:`fit_spline` gives them.
    """

    cell: int
    cells: Cells
    sky_coefficients: Coefficients
    noise_coefficients: Coefficients

    @property
    def is_blank(self) -> bool:
        """Whether the image had no usable pixel: sky is 0 and noise NaN everywhere."""
        return bool(np.isnan(self.cells.noise).all())

    @property
    def is_noiseless(self) -> bool:
        """Whether every cell was constant: noise is 0 everywhere, so S/N has no meaning."""
        return bool((self.cells.noise == 0).all())

    @property
    def noise_limits(self) -> tuple[float, float]:
        """Least and greatest noise of the mesh, which the spline may not leave."""
        return float(self.cells.noise.min()), float(self.cells.noise.max())

    def sky(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Give the sky, in image units, of the box of this shape with its corner at (y0, x0)."""
        return evaluate_spline(self.sky_coefficients, self.cell, y0, x0, shape)

    def subtract_sky(self, values: Plane, y0: int, x0: int) -> None:
        """Take the sky off the pixels of a box with its corner at (y0, x0), in place."""
        subtract_spline(values, self.sky_coefficients, self.cell, y0, x0)

    def noise(self, y0: int, x0: int, shape: tuple[int, int]) -> Plane:
        """Give the noise of a box; > 0, unless the image is blank (NaN) or noiseless (0)."""
        coefficients, limits = self.noise_coefficients, self.noise_limits
        return evaluate_spline(coefficients, self.cell, y0, x0, shape, limits)


def measure_cells(image: Plane, bad: Mask, cell: int) -> Cells:
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
    Cells
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
    return Cells(sky=planes[0], noise=planes[2], good=planes[3])


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


def repair_cells(cells: Cells, filter_size: int = 3) -> Cells:
    """Fill the cells that cannot be trusted from their neighbours, then median-filter the mesh.

    Parameters
    ----------
    cells : Cells
        The mesh of the whole image, as measured.
    filter_size : int
        Edge of the median filter in cells, odd; 1 leaves the mesh unfiltered.

    Returns
    -------
    Cells
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
        return Cells(np.zeros_like(cells.sky), cells.noise, cells.good)
    trusted = find_trusted(cells)
    return Cells(
        sky=_filter_median(_fill(cells.sky, trusted), filter_size),
        noise=_filter_median(_fill(cells.noise, trusted), filter_size),
        good=cells.good,
    )


def find_trusted(cells: Cells) -> Mask:
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


def _find_filled(cells: Cells, candidates: Mask) -> Mask:
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


def fit_spline(mesh: NDArray[np.floating]) -> Coefficients:
    """Fit the natural bicubic spline that passes through the mesh.

    Parameters
    ----------
    mesh : (my, mx) float32 or float64
        Values at the middle of the cells; one cell gives a constant, one row or column a curve.

    Returns
    -------
    (my + 4, mx + 4) float64
        B-spline coefficients with two more on each side, so that the spline goes on as a
        straight line. NaN everywhere if the mesh has a NaN.

    Notes
    -----
    Natural ends, not the mirrored ones of most image libraries: a mirror flattens a sky gradient
    in the outermost half cell. The spline depends on the whole mesh, so fit it once per image.
    """
    columns = _fit_axis(np.ascontiguousarray(mesh, dtype=np.float64))
    return np.ascontiguousarray(_fit_axis(np.ascontiguousarray(columns.T)).T)


def _fit_axis(values: Coefficients) -> Coefficients:
    n = len(values)
    coefficients = np.empty((n + 2 * PADDING, values.shape[1]))
    coefficients[PADDING:-PADDING] = values
    _solve_natural(coefficients[PADDING:-PADDING])
    step_low, step_high = _end_steps(coefficients, n)
    for i in range(1, PADDING + 1):
        coefficients[PADDING - i] = coefficients[PADDING] - i * step_low
        coefficients[PADDING + n - 1 + i] = coefficients[PADDING + n - 1] + i * step_high
    return coefficients


def _end_steps(coefficients: Coefficients, n: int) -> tuple[Coefficients, Coefficients]:
    if n == 1:
        flat = np.zeros(coefficients.shape[1])
        return flat, flat
    inner = coefficients[PADDING : PADDING + n]
    return inner[1] - inner[0], inner[-1] - inner[-2]


def evaluate_spline(
    coefficients: Coefficients,
    cell: int,
    y0: int,
    x0: int,
    shape: tuple[int, int],
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Plane:
    """Evaluate a spline on a box of pixels.

    Parameters
    ----------
    coefficients : (my + 4, mx + 4) float64
        As :func:`fit_spline` gives them.
    cell : int
        Edge of a mesh cell in pixels.
    y0, x0 : int
        Global pixel in the box's low corner; the box may reach beyond the mesh.
    shape : (int, int)
        Height and width of the box.
    limits : (float, float)
        Values are cut to these; a noise map needs it, since a spline overshoots.

    Returns
    -------
    (h, w) float32
        Values at the pixel centres. Half a cell beyond the mesh they stay what they were.

    Notes
    -----
    A pixel's bits depend on its global (y, x), never on the box it was asked for with.
    """
    out = np.empty(shape, np.float32)
    rows = _weigh(y0, shape[0], cell, coefficients.shape[0])
    columns = _weigh(x0, shape[1], cell, coefficients.shape[1])
    _evaluate(coefficients, rows, columns, limits, out, False)
    return out


def subtract_spline(values: Plane, coefficients: Coefficients, cell: int, y0: int, x0: int) -> None:
    """Take a spline off a box of pixels in place: what :func:`evaluate_spline` gives, in one pass."""
    rows = _weigh(y0, values.shape[0], cell, coefficients.shape[0])
    columns = _weigh(x0, values.shape[1], cell, coefficients.shape[1])
    _evaluate(coefficients, rows, columns, (-np.inf, np.inf), values, True)


def _weigh(start: int, length: int, cell: int, n: int) -> tuple[NDArray[np.int64], Coefficients]:
    """First coefficient and the four B-spline weights of each pixel along one axis."""
    pixel = np.arange(start, start + length, dtype=np.int64)
    node = (2.0 * pixel + (1.0 - cell)) / (2.0 * cell)
    node = np.clip(node, -1.0, float(n - 2 * PADDING))
    first = np.minimum(np.floor(node).astype(np.int64), n - 2 * PADDING - 1)
    t = node - first
    u = 1.0 - t
    weights = np.empty((4, length))
    weights[0] = u * u * u / 6.0
    weights[1] = (4.0 - 3.0 * t * t * (1.0 + u)) / 6.0
    weights[2] = (4.0 - 3.0 * u * u * (1.0 + t)) / 6.0
    weights[3] = t * t * t / 6.0
    return first + PADDING - 1, weights


def estimate(image: Plane, bad: Mask, cell: int = 64, filter_size: int = 3) -> Background:
    """Give the background of an image that fits in memory.

    Parameters
    ----------
    image : (h, w) float32
        Pixels; NaN and infinite ones are left out.
    bad : (h, w) bool
        Pixels to leave out.
    cell : int
        Edge of a mesh cell in pixels (SExtractor's BACK_SIZE).
    filter_size : int
        Edge of the median filter in cells (SExtractor's BACK_FILTERSIZE).

    Returns
    -------
    Background
        Look at ``is_blank`` and ``is_noiseless`` before dividing by its noise.

    Raises
    ------
    SpecError
        If ``cell`` or ``filter_size`` cannot be.
    InputError
        If the image is empty or the mask does not fit.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(100, 5, (64, 64)).astype(np.float32)
    >>> background = estimate(image, np.zeros((64, 64), bool), cell=16)
    >>> bool(abs(background.sky(0, 0, (64, 64)) - 100).max() < 2)
    True
    """
    return fit_background(measure_cells(image, bad, cell), cell, filter_size)


def fit_background(cells: Cells, cell: int, filter_size: int = 3) -> Background:
    """Give the background that belongs to the measured mesh of a whole image.

    Parameters
    ----------
    cells : Cells
        As measured; put together from tiles or not.
    cell : int
        Edge of a mesh cell in pixels.
    filter_size : int
        Edge of the median filter in cells, odd.
    """
    mesh = repair_cells(cells, filter_size)
    return Background(cell, mesh, fit_spline(mesh.sky), fit_spline(mesh.noise))


def weight_scale(noise: Plane, weight: Plane) -> float:
    """Give the factor that turns 1 / sqrt(weight) into noise in image units.

    Parameters
    ----------
    noise : (my, mx) float32
        Measured noise of the cells.
    weight : (my, mx) float32
        Typical weight of the same cells, as :func:`measure_weight` gives it.

    Returns
    -------
    float
        Median over the cells that have both; NaN if there is none.

    Notes
    -----
    SExtractor's MAP_WEIGHT: weights are relative, the image itself says how large the noise is.
    A map of absolute noise (MAP_RMS) needs no scale.
    """
    known = (noise > 0) & np.isfinite(noise) & (weight > 0) & np.isfinite(weight)
    ratios = noise[known].astype(np.float64) * np.sqrt(weight[known].astype(np.float64))
    return float(np.median(ratios)) if ratios.size else float("nan")


def noise_from_weight(weight: Plane, scale: float) -> Plane:
    """Give each pixel's noise from its relative weight.

    Parameters
    ----------
    weight : (h, w) float32
        Relative inverse variance.
    scale : float
        As :func:`weight_scale` gives it.

    Returns
    -------
    (h, w) float32
        ``scale / sqrt(weight)`` in image units; infinite where the weight is not positive or
        not finite, so that such a pixel has no significance.
    """
    known = (weight > 0) & np.isfinite(weight)
    safe = np.where(known, weight, 1).astype(np.float64)
    return np.where(known, scale / np.sqrt(safe), np.inf).astype(np.float32)


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


@njit(cache=True, nogil=True)
def _solve_natural(values):  # type: ignore[no-untyped-def]
    """Turn values into natural spline coefficients along axis 0, in place.

    Natural ends make the outer coefficients equal to the values; between them
    c[i - 1] + 4 c[i] + c[i + 1] = 6 v[i], solved by Thomas' elimination.
    """
    n = values.shape[0]
    pivots = np.empty(n, np.float64)
    for i in range(1, n - 1):
        inner = i > 1
        pivots[i] = 4.0 - 1.0 / pivots[i - 1] if inner else 4.0
        for x in range(values.shape[1]):
            known = values[i - 1, x] / pivots[i - 1] if inner else values[0, x]
            values[i, x] = 6.0 * values[i, x] - known
    for i in range(n - 2, 0, -1):
        for x in range(values.shape[1]):
            values[i, x] = (values[i, x] - values[i + 1, x]) / pivots[i]


@njit(cache=True, nogil=True)
def _evaluate(coefficients, rows, columns, limits, out, off):  # type: ignore[no-untyped-def]
    """Fill in the spline, or take it ``off`` what is there.

    Goes down column by column of the mesh: along a row, the runs are too short to be quick.
    """
    first, weights = columns
    lines = _blend_rows(coefficients, rows, first[0], first[-1] + 4)
    start = 0
    for end in np.append(np.flatnonzero(np.diff(first)) + 1, len(first)):
        w0, w1 = weights[0, start:end], weights[1, start:end]
        w2, w3 = weights[2, start:end], weights[3, start:end]
        strip = lines[:, first[start] - first[0] : first[start] - first[0] + 4]
        if off:
            _subtract_runs(strip, (w0, w1, w2, w3), limits, start, out)
        else:
            _evaluate_runs(strip, (w0, w1, w2, w3), limits, start, out)
        start = end


@njit(cache=True, nogil=True)
def _blend_rows(coefficients, rows, low, high):  # type: ignore[no-untyped-def]
    """Give, for each row of pixels, its coefficients along x: those from ``low`` to ``high``."""
    first, weights = rows
    lines = np.empty((len(first), high - low), np.float64)
    for y in range(len(first)):
        j = first[y]
        for x in range(low, high):
            lines[y, x - low] = (
                weights[0, y] * coefficients[j, x]
                + weights[1, y] * coefficients[j + 1, x]
                + weights[2, y] * coefficients[j + 2, x]
                + weights[3, y] * coefficients[j + 3, x]
            )
    return lines


@njit(cache=True, nogil=True)
def _evaluate_runs(strip, weights, limits, start, out):  # type: ignore[no-untyped-def]
    """Evaluate the pixels between two nodes, which share their four coefficients in each row."""
    w0, w1, w2, w3 = weights
    low, high = limits
    for y in range(out.shape[0]):
        a, b, c, d = strip[y, 0], strip[y, 1], strip[y, 2], strip[y, 3]
        row = out[y, start : start + len(w0)]
        for x in range(len(w0)):
            value = w0[x] * a + w1[x] * b + w2[x] * c + w3[x] * d
            value = low if value < low else value
            row[x] = high if value > high else value


@njit(cache=True, nogil=True)
def _subtract_runs(strip, weights, limits, start, out):  # type: ignore[no-untyped-def]
    """Take off what `_evaluate_runs` would fill in."""
    w0, w1, w2, w3 = weights
    low, high = limits
    for y in range(out.shape[0]):
        a, b, c, d = strip[y, 0], strip[y, 1], strip[y, 2], strip[y, 3]
        row = out[y, start : start + len(w0)]
        for x in range(len(w0)):
            value = w0[x] * a + w1[x] * b + w2[x] * c + w3[x] * d
            value = low if value < low else value
            row[x] -= np.float32(high if value > high else value)
