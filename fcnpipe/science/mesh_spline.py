r"""Natural bicubic spline through the background mesh, evaluated on any box of pixels.

::

    pixels   0        cell      2 cell    3 cell
             |---------|---------|---------|----
             |    o    |    o    |    o    |    o     o  node: the centre of a whole cell
                  \_______ spline _______/
             <--->                                    straight lines outside the outermost nodes

The value of a pixel depends only on its global position and on the coefficients, and is always
computed in the same order of operations. It has the same bits in any tile, in any strip and in the
whole image.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Coefficients = NDArray[np.float64]

PADDING = 2
"""Number of spline coefficients beyond the mesh on each side."""


def fit_spline(mesh: NDArray[np.floating]) -> Coefficients:
    """Fit the natural bicubic spline that passes through the mesh.

    Parameters
    ----------
    mesh : (my, mx) float32 or float64
        Values at the centres of the cells. The spline of a mesh of one cell is constant; that of
        one row or one column varies along this axis only.

    Returns
    -------
    (my + 4, mx + 4) float64
        B-spline coefficients, two more on each side than the mesh has cells, which continue the
        spline as a straight line. All are NaN if the mesh has a NaN.

    Notes
    -----
    The ends are natural (second derivative 0), not mirrored as in most image libraries: a mirror
    flattens a sky gradient in the outermost half cell. The spline depends on the whole mesh, so fit
    it once per image.
    """
    columns = _fit_axis(np.ascontiguousarray(mesh, dtype=np.float64))
    return np.ascontiguousarray(_fit_axis(np.ascontiguousarray(columns.T)).T)


def _fit_axis(values: Coefficients) -> Coefficients:
    n = len(values)
    coefficients = np.empty((n + 2 * PADDING, values.shape[1]))
    coefficients[PADDING:-PADDING] = values
    _solve_natural(coefficients[PADDING:-PADDING])
    slope_low, slope_high = _end_slopes(coefficients, n)
    for i in range(1, PADDING + 1):
        coefficients[PADDING - i] = coefficients[PADDING] - i * slope_low
        coefficients[PADDING + n - 1 + i] = coefficients[PADDING + n - 1] + i * slope_high
    return coefficients


def _end_slopes(coefficients: Coefficients, n: int) -> tuple[Coefficients, Coefficients]:
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
        Result of :func:`fit_spline`.
    cell : int
        Edge of a mesh cell in pixels.
    y0, x0 : int
        Global position of the first pixel of the box; the box may extend beyond the mesh.
    shape : (int, int)
        Height and width of the box.
    limits : (float, float)
        Values are clipped to these limits. A noise map needs them, because a spline can overshoot.

    Returns
    -------
    (h, w) float32
        Values at the pixel centres; constant from half a cell beyond the mesh outwards.

    Notes
    -----
    The bits of a pixel depend on its global (y, x), never on the box.
    """
    out = np.empty(shape, np.float32)
    rows = _spline_weights(y0, shape[0], cell, coefficients.shape[0])
    columns = _spline_weights(x0, shape[1], cell, coefficients.shape[1])
    _evaluate_box(coefficients, rows, columns, limits, out, False)
    return out


def subtract_spline(values: Plane, coefficients: Coefficients, cell: int, y0: int, x0: int) -> None:
    """Subtract a spline from a box of pixels, in place; parameters are those of :func:`evaluate_spline`."""
    rows = _spline_weights(y0, values.shape[0], cell, coefficients.shape[0])
    columns = _spline_weights(x0, values.shape[1], cell, coefficients.shape[1])
    _evaluate_box(coefficients, rows, columns, (-np.inf, np.inf), values, True)


def _spline_weights(
    start: int, length: int, cell: int, n: int
) -> tuple[NDArray[np.int64], Coefficients]:
    """Return the first coefficient and the four B-spline weights of each pixel along one axis."""
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


@njit(cache=True, nogil=True)
def _solve_natural(values):  # type: ignore[no-untyped-def]
    """Convert values to natural spline coefficients along axis 0, in place.

    With natural ends the outer coefficients are equal to the values. Between them
    c[i - 1] + 4 c[i] + c[i + 1] = 6 v[i], a tridiagonal system solved by the Thomas algorithm.
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
def _evaluate_box(coefficients, rows, columns, limits, out, subtract):  # type: ignore[no-untyped-def]
    """Write the spline into ``out``, or ``subtract`` it from ``out``.

    The outer loop is over columns of the mesh: along a whole row of pixels, the runs that share
    their coefficients are too short to be fast.
    """
    first, weights = columns
    lines = _blend_rows(coefficients, rows, first[0], first[-1] + 4)
    start = 0
    for end in np.append(np.flatnonzero(np.diff(first)) + 1, len(first)):
        w0, w1 = weights[0, start:end], weights[1, start:end]
        w2, w3 = weights[2, start:end], weights[3, start:end]
        strip = lines[:, first[start] - first[0] : first[start] - first[0] + 4]
        if subtract:
            _subtract_runs(strip, (w0, w1, w2, w3), limits, start, out)
        else:
            _evaluate_runs(strip, (w0, w1, w2, w3), limits, start, out)
        start = end


@njit(cache=True, nogil=True)
def _blend_rows(coefficients, rows, low, high):  # type: ignore[no-untyped-def]
    """Return the coefficients along x, from ``low`` to ``high``, of each row of pixels."""
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
    """Write the pixels between two nodes; in each row they share four coefficients."""
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
    """Subtract what `_evaluate_runs` would write."""
    w0, w1, w2, w3 = weights
    low, high = limits
    for y in range(out.shape[0]):
        a, b, c, d = strip[y, 0], strip[y, 1], strip[y, 2], strip[y, 3]
        row = out[y, start : start + len(w0)]
        for x in range(len(w0)):
            value = w0[x] * a + w1[x] * b + w2[x] * c + w3[x] * d
            value = low if value < low else value
            row[x] -= np.float32(high if value > high else value)
