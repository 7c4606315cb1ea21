"""Compiled kernels of Kron fluxes, half-light radii and windowed positions.

All kernels that call each other are in this file, with the records that they build: numba recompiles
a cached kernel when its own file changes, but not when only another file does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.records import PixelFlag, SourceFlag

KRON_SCALE = 2.5
"""Size of the Kron aperture in Kron radii (PHOT_AUTOPARAMS of SExtractor)."""

KRON_MIN_RADIUS = 1.4
"""Minimum Kron radius, in units of the semi-axes."""

KRON_EXTENT = 6.0
"""Size, in semi-axes, of the ellipse in which the Kron radius is measured; a larger radius is invalid."""

NEIGHBOUR_FRACTION = 0.1
"""The flag NEIGHBOURS is set if neighbours and bad pixels cover more than this fraction of an aperture."""

NOT_COVERED = -1
"""Returned in place of flag bits where the region does not cover an aperture."""

_INCOMPLETE = int(SourceFlag.APERTURE_INCOMPLETE)
_CROWDED = int(SourceFlag.NEIGHBOURS)
_BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
_UNUSABLE = -1  # owner of a bad pixel
_USABLE, _MIRRORED, _LOST, _DEFECTIVE = 0, 1, 2, 4  # states of a pixel in an aperture
_HALF_DIAGONAL = 0.70710678118654757  # of a pixel, px
_CIRCLE = (1.0, 0.0, 1.0)  # quadratic form


class Field(NamedTuple):
    """Maps of a region. ``owner`` is the label of each pixel, 0 for background, -1 if it is unusable."""

    image: NDArray[np.float32]
    noise: NDArray[np.float32]
    owner: NDArray[np.int32]
    y0: int
    x0: int


class Scratch(NamedTuple):
    """Work arrays for the largest box: repaired pixels, and pixels sorted by `_sort_by_ring`."""

    repaired: NDArray[np.float64]
    ring_start: NDArray[np.int64]
    ring_index: NDArray[np.int64]
    by_ring: NDArray[np.float64]
    cumulative: NDArray[np.float64]
    row: NDArray[np.float64]


class _Source(NamedTuple):
    """Label, centroid, semi-axes, orientation and quadratic form of a source's ellipse."""

    label: int
    x: float
    y: float
    a: float
    b: float
    cosine: float
    sine: float
    cxx: float
    cxy: float
    cyy: float


@njit(cache=True, nogil=True)
def fill_owners(labels, flags, image, noise, owner):  # type: ignore[no-untyped-def]
    """Fill ``owner`` with the labels, or ``_UNUSABLE`` where a pixel is flagged or not finite."""
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            good = np.isfinite(image[y, x]) and np.isfinite(noise[y, x])
            bad = (flags[y, x] & _BAD) != 0 or not good
            owner[y, x] = _UNUSABLE if bad else labels[y, x]


@njit(cache=True, nogil=True)
def measure_all_sources(field, cap, scratch, sources, results):  # type: ignore[no-untyped-def]
    """Measure all sources: fill their rows of values and their flag bits."""
    labels, shapes, boxes = sources
    values, bits = results
    for i in range(len(labels)):
        angle = np.radians(shapes[i, 4])
        source = _Source(
            labels[i], shapes[i, 0], shapes[i, 1], shapes[i, 2], shapes[i, 3],
            np.cos(angle), np.sin(angle), shapes[i, 5], shapes[i, 6], shapes[i, 7],
        )  # fmt: skip
        box = (boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3])
        bits[i] = _measure_source(field, cap, scratch, source, box, values[i])


@njit(cache=True, nogil=True)
def _measure_source(field, cap, scratch, source, limits, out):  # type: ignore[no-untyped-def]
    """Fill a row of results; return its flag bits, or ``NOT_COVERED``."""
    out[0], out[1] = source.x, source.y
    centre, scale = (source.x, source.y), min(KRON_EXTENT, cap / source.a)
    box = _box_around(centre, _ellipse_extent(source, scale), limits)
    if not _covers(field, box):
        return np.int32(NOT_COVERED)
    kron = _kron_radius(field, scratch, source, box, scale)
    out[2] = kron
    if not np.isfinite(kron):
        return np.int32(_INCOMPLETE)
    scale = min(KRON_SCALE * kron, cap / source.a)
    radius = scale * source.a
    disc = _box_around(centre, (radius, radius), limits)
    if not _covers(field, disc):  # the disc contains the ellipse
        return np.int32(NOT_COVERED)
    box = _box_around(centre, _ellipse_extent(source, scale), limits)
    out[3], out[4], bits = _ellipse_flux(field, source, box, scale)
    if scale < KRON_SCALE * kron:
        bits |= np.int32(_INCOMPLETE)
    half = _enclosing_radius(field, scratch, source, disc, (radius, 0.5 * out[3]))
    out[5] = half
    if np.isfinite(half):
        sigma = max(half, 0.5) * 2 / 2.35
        reach = 4 * sigma + source.a + 1
        box = _box_around(centre, (reach, reach), limits)
        if not _covers(field, box):
            return np.int32(NOT_COVERED)
        _copy_repaired(field, scratch, source, box, box)
        out[0], out[1] = _windowed_position(scratch, source, box, sigma)
    return bits


@njit(cache=True, nogil=True, forceinline=True)
def _box_around(centre, extent, limits):  # type: ignore[no-untyped-def]
    """Return the box (y0, x0, y1, x1) of the pixels that a shape of half-extent (x, y) touches."""
    x0 = max(int(np.floor(centre[0] - extent[0] + 0.5)), limits[1])
    x1 = min(int(np.floor(centre[0] + extent[0] + 0.5)) + 1, limits[3])
    y0 = max(int(np.floor(centre[1] - extent[1] + 0.5)), limits[0])
    y1 = min(int(np.floor(centre[1] + extent[1] + 0.5)) + 1, limits[2])
    return y0, x0, y1, x1


@njit(cache=True, nogil=True, forceinline=True)
def _covers(field, box):  # type: ignore[no-untyped-def]
    """Return whether a region contains a box."""
    y1, x1 = field.y0 + field.image.shape[0], field.x0 + field.image.shape[1]
    return box[0] >= field.y0 and box[1] >= field.x0 and box[2] <= y1 and box[3] <= x1


@njit(cache=True, nogil=True, forceinline=True)
def _ellipse_extent(source, scale):  # type: ignore[no-untyped-def]
    """Return the half-width and half-height of the source's ellipse times ``scale``."""
    a, b = source.a * scale, source.b * scale
    width = np.sqrt((a * source.cosine) ** 2 + (b * source.sine) ** 2)
    height = np.sqrt((a * source.sine) ** 2 + (b * source.cosine) ** 2)
    return width, height


@njit(cache=True, nogil=True, forceinline=True)
def _chord(form, dy, limit, margin):  # type: ignore[no-untyped-def]
    """Return the ends of the chord that a row cuts from an ellipse, widened by ``margin`` px.

    The ellipse is xx dx^2 + xy dx dy + yy dy^2 <= limit, for a positive definite ``form`` (xx, xy, yy).
    The chord is empty, (1, 0), if the row misses the ellipse.
    """
    xx, xy, yy = form
    middle = -0.5 * xy * dy / xx
    square = middle * middle - (yy * dy * dy - limit) / xx
    if square < 0:
        return 1.0, 0.0
    half = np.sqrt(square) + margin
    return middle - half, middle + half


@njit(cache=True, nogil=True, forceinline=True)
def _chord_pixels(chord, x, low, high):  # type: ignore[no-untyped-def]
    """Return the range [first, end) of the pixel centres on a chord about x, clipped to [low, high)."""
    return max(int(np.ceil(chord[0] + x)), low), min(int(np.floor(chord[1] + x)) + 1, high)


@njit(cache=True, nogil=True, forceinline=True)
def _pixel_state(field, label, y, x):  # type: ignore[no-untyped-def]
    """Return ``_USABLE``, or ``_LOST`` for a neighbour's pixel, or ``_LOST | _DEFECTIVE`` for a bad pixel."""
    owner = field.owner[y - field.y0, x - field.x0]
    if owner == 0 or owner == label:
        return _USABLE
    return _DEFECTIVE | _LOST if owner == _UNUSABLE else _LOST


@njit(cache=True, nogil=True, forceinline=True)
def _find_replacement(field, source, place, box):  # type: ignore[no-untyped-def]
    """Return the row and column at which to read a pixel, and its state.

    A neighbour's or bad pixel is replaced by its mirror image about the centroid's pixel. It is lost
    if the mirror image is not usable or is outside the box.
    """
    y, x = place
    state = _pixel_state(field, source.label, y, x)
    if state != _USABLE:
        v = 2 * int(np.floor(source.y + 0.5)) - y
        u = 2 * int(np.floor(source.x + 0.5)) - x
        within = box[0] <= v < box[2] and box[1] <= u < box[3]
        if within and _pixel_state(field, source.label, v, u) == _USABLE:
            return v - field.y0, u - field.x0, (state & _DEFECTIVE) | _MIRRORED
    return y - field.y0, x - field.x0, state


@njit(cache=True, nogil=True)
def _copy_repaired(field, scratch, source, box, part):  # type: ignore[no-untyped-def]
    """Copy a part of a box into ``scratch.repaired``, with neighbours' and bad pixels replaced."""
    for y in range(part[0], part[2]):
        value = scratch.repaired[y - box[0], part[1] - box[1] : part[3] - box[1]]
        _copy_repaired_row(field, source, (y, part[1]), box, value)


@njit(cache=True, nogil=True)
def _copy_repaired_row(field, source, place, box, value):  # type: ignore[no-untyped-def]
    """Copy the pixels of a row that start at ``place`` into ``value``, repaired; lost pixels are 0.

    Most rows need no repair, so a check before the repair halves the time.
    """
    y, x0 = place
    row, start = y - field.y0, x0 - field.x0
    owner = field.owner[row, start : start + len(value)]
    image = field.image[row, start : start + len(value)]
    foreign = 0
    for x in range(len(value)):
        foreign += (owner[x] != 0) & (owner[x] != source.label)
    for x in range(len(value)):
        value[x] = image[x]
    if foreign == 0:
        return
    for x in range(len(value)):
        if owner[x] != 0 and owner[x] != source.label:
            i, j, state = _find_replacement(field, source, (y, x0 + x), box)
            value[x] = field.image[i, j] if state & _LOST == 0 else 0.0


@njit(cache=True, nogil=True)
def _kron_radius(field, scratch, source, box, scale):  # type: ignore[no-untyped-def]
    """Return the Kron radius, in semi-axes: at least ``KRON_MIN_RADIUS``, NaN above ``KRON_EXTENT``."""
    y0, x0, y1, x1 = box
    form, limit = (source.cxx, source.cxy, source.cyy), scale * scale
    moment, total = 0.0, 0.0
    for y in range(y0, y1):
        dy = y - source.y
        first, end = _chord_pixels(_chord(form, dy, limit, 1.0), source.x, x0, x1)
        n = max(end - first, 0)
        mass, radius = scratch.row[:n], scratch.cumulative[:n]
        _copy_repaired_row(field, source, (y, first), box, mass)
        for k in range(n):
            dx = first + k - source.x
            r2 = source.cxx * dx * dx + source.cxy * dx * dy + source.cyy * dy * dy
            radius[k] = np.sqrt(max(r2, 0.0))
            mass[k] = mass[k] if r2 <= limit else 0.0
        for k in range(n):
            moment += mass[k] * radius[k]
            total += mass[k]
    if moment <= 0 or total <= 0:
        return KRON_MIN_RADIUS
    return np.nan if moment / total > KRON_EXTENT else max(moment / total, KRON_MIN_RADIUS)


class _Ellipse(NamedTuple):
    """An ellipse about the origin, by its intersections with rows and columns.

    A row at y meets it at x = row_middle y -+ row_half sqrt(1 - (y / half_height)^2), a column at x
    at y = column_middle x -+ column_half sqrt(1 - (x / half_width)^2).
    """

    half_width: float
    half_height: float
    row_middle: float
    row_half: float
    column_middle: float
    column_half: float


@njit(cache=True, nogil=True)
def _ellipse_flux(field, source, box, scale):  # type: ignore[no-untyped-def]
    """Return the flux, error and flag bits of the source's ellipse times ``scale``.

    A row of pixels cuts a strip from the ellipse. The overlap of a pixel with the ellipse is the area
    of the strip to the left of the pixel's right side minus that to the left of its left side.
    """
    y0, x0, y1, x1 = box
    ellipse = _make_ellipse(source, scale)
    flux, variance, area, foreign, defective = 0.0, 0.0, 0.0, 0.0, False
    for y in range(y0, y1):
        strip = _make_strip(ellipse, y - source.y - 0.5)
        if strip[1] <= strip[0]:
            continue
        first, end, low, high = _strip_pixels(ellipse, strip, source.x, x0, x1)
        left = _area_left(ellipse, strip, first - 0.5 - source.x)
        for x in range(first, end):
            if low <= x < high:
                weight = strip[1] - strip[0]
            else:
                if x == high:
                    left = _area_left(ellipse, strip, x - 0.5 - source.x)
                right = _area_left(ellipse, strip, x + 0.5 - source.x)
                weight, left = right - left, right
            if weight > _MIN_FRACTION:
                i, j, state = _find_replacement(field, source, (y, x), box)
                if state & _LOST == 0:
                    noise = np.float64(field.noise[i, j])
                    flux += weight * np.float64(field.image[i, j])
                    variance += weight * (noise * noise)
                area += weight
                defective = defective or (state & _DEFECTIVE) != 0
                if state != _USABLE:
                    foreign += weight
    bits = np.int32(_CROWDED) if foreign > NEIGHBOUR_FRACTION * area else np.int32(0)
    if defective or area < (1 - 1e-9) * np.pi * source.a * source.b * (scale * scale):
        bits |= np.int32(_INCOMPLETE)
    return flux, np.sqrt(variance), bits


_MIN_FRACTION = 1e-11
"""Overlap of a pixel below which it is a rounding error of the strip's areas."""


@njit(cache=True, nogil=True, forceinline=True)
def _make_ellipse(source, scale):  # type: ignore[no-untyped-def]
    """Return the source's ellipse times ``scale``, relative to the centroid."""
    width, height = _ellipse_extent(source, scale)
    xx, xy, yy = source.cxx, 0.5 * source.cxy, source.cyy
    return _Ellipse(width, height, -xy / xx, scale / np.sqrt(xx), -xy / yy, scale / np.sqrt(yy))


@njit(cache=True, nogil=True, forceinline=True)
def _make_strip(ellipse, y):  # type: ignore[no-untyped-def]
    """Return the first and last y of an ellipse in the strip [y, y + 1), and `_half_area` at both."""
    low, high = max(y, -ellipse.half_height), min(y + 1, ellipse.half_height)
    if high <= low:
        return low, low, 0.0, 0.0
    return low, high, _half_area(ellipse, low), _half_area(ellipse, high)


@njit(cache=True, nogil=True, forceinline=True)
def _half_area(ellipse, y):  # type: ignore[no-untyped-def]
    """Return half of the ellipse's area between the rows at 0 and y; negative for negative y."""
    height = ellipse.half_height
    v = y / height
    return 0.5 * ellipse.row_half * (y * np.sqrt(max(1 - v * v, 0.0)) + height * np.arcsin(v))


@njit(cache=True, nogil=True, forceinline=True)
def _strip_pixels(ellipse, strip, x, x0, x1):  # type: ignore[no-untyped-def]
    """Return the ranges of pixels that a strip about x touches, [first, end), and fills, [low, high)."""
    height, middle, half = ellipse.half_height, ellipse.row_middle, ellipse.row_half
    v, w = strip[0] / height, strip[1] / height
    half0, half1 = half * np.sqrt(max(1 - v * v, 0.0)), half * np.sqrt(max(1 - w * w, 0.0))
    middle0, middle1 = middle * strip[0] + x + 0.5, middle * strip[1] + x + 0.5
    left, right = min(middle0 - half0, middle1 - half1), max(middle0 + half0, middle1 + half1)
    # The leftmost and rightmost points of the ellipse may be between the two rows.
    extreme = middle * height * height / ellipse.half_width
    if strip[0] < extreme < strip[1]:
        right = x + 0.5 + ellipse.half_width
    if strip[0] < -extreme < strip[1]:
        left = x + 0.5 - ellipse.half_width
    first, end = max(int(np.floor(left)), x0), min(int(np.floor(right)) + 1, x1)
    low = max(int(np.ceil(max(middle0 - half0, middle1 - half1))), first)
    high = min(int(np.floor(min(middle0 + half0, middle1 + half1))), end)
    return first, end, low, max(high, low)


@njit(cache=True, nogil=True, forceinline=True)
def _area_left(ellipse, strip, x):  # type: ignore[no-untyped-def]
    """Return the area of a strip of an ellipse to the left of x.

    The column at x is inside the ellipse from ``start`` to ``stop``, where the area ends at x. Below
    and above that range, the chords of the rows count in full if the ellipse's lowest or highest point
    is to the left of x, else not at all::

        high        |  .--.      nothing
        stop       .|'    .'
                 .' |   .'       up to x
        start   (  .|.'
        low      '--|            full chords
    """
    low, high, at_low, at_high = strip
    u = x / ellipse.half_width
    if u <= -1:
        return 0.0
    if u >= 1:
        return 2 * (at_high - at_low)
    half = ellipse.column_half * np.sqrt(1 - u * u)
    start = min(max(ellipse.column_middle * x - half, low), high)
    stop = min(max(ellipse.column_middle * x + half, low), high)
    at_start = at_low if start == low else at_high if start == high else _half_area(ellipse, start)
    at_stop = at_high if stop == high else at_low if stop == low else _half_area(ellipse, stop)
    area = (stop - start) * (x - 0.5 * ellipse.row_middle * (start + stop)) + at_stop - at_start
    tip = ellipse.row_middle * ellipse.half_height
    if -tip < x:
        area += 2 * (at_start - at_low)
    if tip < x:
        area += 2 * (at_high - at_stop)
    return area


@njit(cache=True, nogil=True)
def _overlap(ellipse, y, x):  # type: ignore[no-untyped-def]
    """Return the area inside an ellipse of the pixel with its centre at (y, x)."""
    strip = _make_strip(ellipse, y - 0.5)
    return _area_left(ellipse, strip, x + 0.5) - _area_left(ellipse, strip, x - 0.5)


@njit(cache=True, nogil=True)
def _enclosing_radius(field, scratch, source, box, goal):  # type: ignore[no-untyped-def]
    """Return the radius of the circle that encloses a flux; NaN if it is above a limit.

    Light is concentrated, so most circles are found among the pixels near the centroid. The search
    starts with these pixels and doubles the searched radius until it succeeds or covers the box.
    """
    limit, target = goal
    if not np.isfinite(target) or target == 0:
        return np.nan
    near = 2.0 * source.a + 4
    while True:
        part = _box_around((source.x, source.y), (near, near), box)
        whole = part == box
        _copy_repaired(field, scratch, source, box, part)
        rings = _sort_by_ring(scratch, source, box, part, 1 << 30 if whole else int(near))
        radius, found = _search_radius(scratch, (rings, limit, target))
        if found or whole:
            return radius
        near *= 2


@njit(cache=True, nogil=True)
def _search_radius(scratch, goal):  # type: ignore[no-untyped-def]
    """Return the radius of the circle that encloses a flux, and whether the rings suffice for it."""
    rings, limit, target = goal
    sign = 1.0 if target > 0 else -1.0
    k = 1
    while k < rings and sign * (scratch.cumulative[k] - target) < 0:
        k += 1
    if k < rings:
        radius = _newton_radius(scratch, goal, k)
        if radius > 0:
            return radius, True
    high = min(float(k), limit)
    f_high = sign * (_circle_flux(scratch, rings, high) - target)
    while f_high < 0:
        if high >= limit:
            return np.nan, high + 2 <= rings
        high = min(high + 1, limit)
        f_high = sign * (_circle_flux(scratch, rings, high) - target)
    if high + 2 > rings:
        return np.nan, False
    low, f_low = max(high - 1, 0.0), -sign * target
    while low > 0:
        f_low = sign * (_circle_flux(scratch, rings, low) - target)
        if f_low < 0:
            break
        high, f_high, low, f_low = low, f_low, max(low - 1, 0.0), -sign * target
    return _false_position(scratch, (rings, sign, target), (low, f_low, high, f_high)), True


@njit(cache=True, nogil=True)
def _newton_radius(scratch, goal, k):  # type: ignore[no-untyped-def]
    """Return the radius of the circle that encloses a flux, near ring k, by Newton's method.

    The derivative is the integral of the flux along the circle. The result is 0 where the steps diverge (faint or noisy
    sources), the circle is small, or the rings do not suffice.
    """
    rings, limit, target = goal
    inner, outer = scratch.cumulative[k - 1], scratch.cumulative[k]
    fraction = (target - inner) / (outer - inner)
    start = np.sqrt((k - 1) ** 2 + fraction * (2 * k - 1))  # linear in the area within the ring
    radius = start
    for _ in range(12):
        if not _MIN_NEWTON_RADIUS <= radius <= min(limit, rings - 2) or abs(radius - start) > 1:
            break
        flux, slope = _circle_flux_and_slope(scratch, radius)
        if slope * target <= 0:
            break
        step = (flux - target) / slope
        radius -= step
        if abs(step) < 1e-6:
            return radius
    return 0.0


_MIN_NEWTON_RADIUS = 1.5
"""Radius, px, above which each crossed pixel is above y = 0 in the frame of `_circle_overlap`."""


@njit(cache=True, nogil=True)
def _circle_flux_and_slope(scratch, radius):  # type: ignore[no-untyped-def]
    """Return the flux in a circle about the centroid, and its derivative by the radius."""
    first = max(int(np.floor(radius - _HALF_DIAGONAL - 1e-6)), 0)
    last = int(radius + _HALF_DIAGONAL) + 1
    flux, along, disc = scratch.cumulative[first], 0.0, scratch.by_ring
    inner, outer = (radius - _HALF_DIAGONAL) ** 2, (radius + _HALF_DIAGONAL) ** 2
    for k in range(scratch.ring_start[first], scratch.ring_start[last]):
        dy, dx = abs(disc[k, 0]), abs(disc[k, 1])
        distance2 = dx * dx + dy * dy
        if distance2 <= inner:
            flux += disc[k, 2]
        elif distance2 < outer:
            area, angle = _circle_overlap(min(dx, dy), max(dx, dy), radius)
            flux += area * disc[k, 2]
            along += angle * disc[k, 2]
    return flux, along * radius


@njit(cache=True, nogil=True, forceinline=True)
def _circle_overlap(dx, dy, radius):  # type: ignore[no-untyped-def]
    """Return the area of a pixel inside a circle about the origin, and the angle of the arc in it.

    The pixel's centre is (dx, dy), 0 <= dx <= dy, so the upper half of the circle crosses it. Columns
    |x| < ``near`` are inside in full: there the circle is above the pixel. Those from ``near`` to
    ``far``, where the circle reaches the pixel's lower edge, are inside in part.
    """
    r2, low, high = radius * radius, dy - 0.5, dy + 0.5
    if radius <= low:
        return 0.0, 0.0
    left, right = dx - 0.5, dx + 0.5
    near = np.sqrt(r2 - high * high) if radius > high else 0.0
    far = np.sqrt(r2 - low * low)
    area = max(min(right, near) - max(left, -near), 0.0)
    part, angle = _area_below_arc(max(left, near), min(right, far), r2, low)
    if left < -near:
        part2, angle2 = _area_below_arc(max(-right, near), min(-left, far), r2, low)
        part += part2
        angle += angle2
    return area + part, angle


@njit(cache=True, nogil=True, forceinline=True)
def _area_below_arc(start, end, r2, low):  # type: ignore[no-untyped-def]
    """Return the area between y = low and a circle for x in [start, end], and the angle of the arc."""
    if end <= start:
        return 0.0, 0.0
    y0, y1 = np.sqrt(max(r2 - start * start, 0.0)), np.sqrt(max(r2 - end * end, 0.0))
    angle = np.arcsin(min((end * y0 - start * y1) / r2, 1.0))
    return 0.5 * (r2 * angle + end * y1 - start * y0) - low * (end - start), angle


@njit(cache=True, nogil=True)
def _false_position(scratch, goal, bracket):  # type: ignore[no-untyped-def]
    """Return the enclosing radius in a bracket, to 1e-7 px, by the Illinois variant of false position."""
    rings, sign, target = goal
    low, f_low, high, f_high = bracket
    last = 0
    for _ in range(60):
        radius = high - f_high * (high - low) / (f_high - f_low)
        f = sign * (_circle_flux(scratch, rings, radius) - target)
        moved = radius - low if f < 0 else high - radius
        if f < 0:
            low, f_low = radius, f
            f_high = f_high * 0.5 if last < 0 else f_high
            last = -1
        else:
            high, f_high = radius, f
            f_low = f_low * 0.5 if last > 0 else f_low
            last = 1
        if moved < 1e-7 or f == 0:
            return radius
    return 0.5 * (low + high)


@njit(cache=True, nogil=True)
def _sort_by_ring(scratch, source, box, part, max_rings):  # type: ignore[no-untyped-def]
    """Sort the pixels of a part of a box by distance from the centroid; return the number of rings.

    ``by_ring[ring_start[k]:ring_start[k + 1]]`` are the pixels (dy, dx, value) with k <= distance <
    k + 1; ``cumulative[k]`` is the flux of the pixels with distance < k. There are at most ``max_rings`` rings.
    """
    y0, x0, y1, x1 = part
    ring, inside = scratch.ring_start, scratch.cumulative
    disc, number = scratch.by_ring, scratch.ring_index
    rings = min(int(np.sqrt((y1 - y0) ** 2 + (x1 - x0) ** 2)) + 2, max_rings)
    ring[: rings + 2] = 0
    inside[: rings + 1] = 0.0
    width = x1 - x0
    for y in range(y0, y1):
        numbers = number[(y - y0) * width : (y - y0 + 1) * width]
        for j in range(width):
            numbers[j] = int(np.sqrt((x0 + j - source.x) ** 2 + (y - source.y) ** 2))
        values = scratch.repaired[y - box[0], x0 - box[1] : x1 - box[1]]
        for j in range(width):
            k = numbers[j]
            if k < rings:
                ring[k + 2] += 1
                inside[k + 1] += values[j]
    for k in range(1, rings + 1):
        ring[k + 1] += ring[k]
        inside[k] += inside[k - 1]
    place = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            k = number[place]
            place += 1
            if k < rings:
                to = ring[k + 1]
                disc[to, 0], disc[to, 1] = y - source.y, x - source.x
                disc[to, 2] = scratch.repaired[y - box[0], x - box[1]]
                ring[k + 1] = to + 1
    return rings


@njit(cache=True, nogil=True)
def _circle_flux(scratch, rings, radius):  # type: ignore[no-untyped-def]
    """Return the flux in a circle about the centroid: complete rings, and pixels that it may cross."""
    if radius <= 0:
        return 0.0
    circle = _Ellipse(radius, radius, 0.0, radius, 0.0, radius)
    first = min(max(int(np.floor(radius - _HALF_DIAGONAL - 1e-6)), 0), rings)
    last = min(int(radius + _HALF_DIAGONAL) + 1, rings)
    flux, disc = scratch.cumulative[first], scratch.by_ring
    for k in range(scratch.ring_start[first], scratch.ring_start[last]):
        flux += _overlap(circle, disc[k, 0], disc[k, 1]) * disc[k, 2]
    return flux


@njit(cache=True, nogil=True)
def _windowed_position(scratch, source, box, sigma):  # type: ignore[no-untyped-def]
    """Return the centroid in a Gaussian window centred on it, or the isophotal one if the steps diverge.

    SExtractor moves the window by twice the centroid's shift until it converges. Newton's method has
    the same limit and takes half as many steps; it is used where the shift decreases in all directions.
    """
    x, y = source.x, source.y
    for _ in range(16):
        dx, dy, xx, xy, yy = _window_shift(scratch, box, (x, y), 4 * sigma, sigma)
        step_x, step_y = 2 * dx, 2 * dy
        # The shift decreases by 1 - (covariance of the windowed light) / sigma^2 per pixel.
        xx, xy, yy = 1 - xx, -xy, 1 - yy
        det = xx * yy - xy * xy
        if xx > _MIN_SLOPE and yy > _MIN_SLOPE and det > _MIN_SLOPE * _MIN_SLOPE:
            step_x, step_y = (yy * dx - xy * dy) / det, (xx * dy - xy * dx) / det
        x += step_x
        y += step_y
        u, v = x - source.x, y - source.y
        if not source.cxx * u * u + source.cxy * u * v + source.cyy * v * v <= 1:
            return source.x, source.y
        if dx * dx + dy * dy < 1e-8:
            break
    return x, y


_MIN_SLOPE = 0.2
"""Minimum decrease of the shift per pixel for a step of Newton's method."""


@njit(cache=True, nogil=True)
def _window_shift(scratch, box, centre, radius, sigma):  # type: ignore[no-untyped-def]
    """Return the centroid of the windowed light from the window's centre, and its covariance.

    These are (x, y) in px and (xx, xy, yy) in units of sigma^2; NaN if the flux is not positive.
    """
    y0, x0, y1, x1 = _box_around(centre, (radius, radius), box)
    x, y = centre
    gauss, slope = scratch.row, -0.5 / (sigma * sigma)
    outer, inner = radius + 0.5, max(radius - 0.5, 0.0)
    for u in range(x0, x1):
        gauss[u - x0] = np.exp((u - x) * (u - x) * slope)
    total, mx, my, xx, xy, yy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(y0, y1):
        dy, pixels = v - y, scratch.repaired[v - box[0]]
        first, end = _chord_pixels(_chord(_CIRCLE, dy, outer * outer, 0.0), x, x0, x1)
        low, high = _chord_pixels(_chord(_CIRCLE, dy, inner * inner, 0.0), x, first, end)
        if low >= high:
            low, high = end, end
        m0, m1, m2 = 0.0, 0.0, 0.0
        for u in range(low, high):
            mass, dx = gauss[u - x0] * pixels[u - box[1]], u - x
            m0 += mass
            m1 += mass * dx
            m2 += mass * dx * dx
        # The window is 3e-4 at its edge, where a linear taper is as good as exact overlaps.
        for start, stop in ((first, low), (high, end)):
            for u in range(start, stop):
                dx = u - x
                mass = gauss[u - x0] * pixels[u - box[1]] * (outer - np.sqrt(dx * dx + dy * dy))
                m0 += mass
                m1 += mass * dx
                m2 += mass * dx * dx
        factor = np.exp(dy * dy * slope)
        total += factor * m0
        mx += factor * m1
        my += factor * m0 * dy
        xx += factor * m2
        xy += factor * m1 * dy
        yy += factor * m0 * dy * dy
    if total <= 0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    dx, dy, square = mx / total, my / total, sigma * sigma
    xx, xy, yy = xx / total - dx * dx, xy / total - dx * dy, yy / total - dy * dy
    return dx, dy, xx / square, xy / square, yy / square
