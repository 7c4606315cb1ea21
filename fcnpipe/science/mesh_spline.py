"""Natural bicubic spline through the background mesh, evaluated on any box of pixels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Coefficients = NDArray[np.float64]

PADDING = 2
"""Spline coefficients beyond the mesh on each side."""


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
