"""Exact sums over the pixels of each source: flux, variance, moments, extent and flags.

::

    tile  --accumulate-->  Sums --+
    tile  --accumulate-->  Sums --+--combine-->  Sums of complete sources
    tile  --accumulate-->  Sums --+

All sums are integers, of 128 bits where 64 could overflow, in the frame of each source's anchor, its
peak pixel. The anchor belongs to the source and not to the tile, so the sums are the same numbers for
every tiling and every order of the tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.core.records import PixelFlag

FLUX_LIMIT = 2**40
"""Maximum magnitude of a fixed-point flux; its products with squared distances fit into 128 bits."""

VARIANCE_LIMIT = 2**52
"""Maximum of a fixed-point variance."""

# NumPy scalars, because numba compiles a kernel once more for each literal argument.
FLUX, VARIANCE, MASS, MASS_Y, MASS_X, MASS_YY, MASS_XY, MASS_XX = np.arange(8)
"""Indices along the second axis of ``Sums.exact``."""

_ZERO = np.int64(0)
_MAX_RUN = 64  # px; sums of value times squared offset within a run of this length fit 64 bits
_BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
_SATURATED = int(PixelFlag.SATURATED)
_ONE = np.uint64(1)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Pixels:
    """Maps of a tile's core, over which the sums are taken.

    Attributes
    ----------
    labels : (h, w) int32
        Label of each pixel; 0 is background.
    value : (h, w) int64
        Fixed-point flux above the sky, at most ``FLUX_LIMIT`` in magnitude.
    variance : (h, w) int64
        Fixed-point variance of each pixel, in [0, ``VARIANCE_LIMIT``].
    probability : (c, h, w) uint8
        Probability of each output of the model, times 255.
    elevation : (h, w) uint16
        Elevation on which the sources were separated; 65535 stands for 1.
    flags : (h', w') uint8
        `PixelFlag` bits of the core **and a margin of 1 px**, clipped at the image. The margin holds
        the neighbours across the seams.
    core : Box
        Position in the image of all maps except ``flags``.
    shape : (int, int)
        Height and width of the image.
    """

    labels: NDArray[np.int32]
    value: NDArray[np.int64]
    variance: NDArray[np.int64]
    probability: NDArray[np.uint8]
    elevation: NDArray[np.uint16]
    flags: NDArray[np.uint8]
    core: Box
    shape: tuple[int, int]

    @property
    def frame(self) -> Box:
        """The whole image as a box."""
        return Box(0, 0, *self.shape)

    @property
    def flags_box(self) -> Box:
        """The box of ``flags``: the core and a margin of 1 px, clipped at the image."""
        return self.core.grow(1).clip(self.frame)


@dataclass(frozen=True, slots=True)
class Sums:
    """Exact sums over the pixels of sources: one row for each label, in ascending order.

    Attributes
    ----------
    label : (n,) int32
        Label, at least 1.
    anchor : (n, 2) int64
        Pixel (y, x) of the source's peak, the origin of the moments.
    area : (n,) int64
        Number of pixels.
    box : (n, 4) int64
        Bounding box y0, x0, y1, x1, half-open.
    exact : (n, 8, 2) uint64
        Sums of 8 quantities as 128-bit two's complement (low, high): flux, variance, m, m y, m x,
        m y y, m x y and m x x, where m = max(value, 0) and (y, x) is measured from the anchor.
    highest, lowest : (n, 2) int64
        Maximum and minimum value, each with its global pixel index; of equal values the lowest index.
    probability : (n, c) int64
        Sum of the uint8 probabilities of each output.
    elevation : (n,) int64
        Maximum elevation.
    flags : (n,) uint8
        Union of the pixels' `PixelFlag` bits.
    beside_bad : (n,) int64
        Number of pixels of the source that are bad or have a bad pixel among their 8 neighbours.
    saturated : (n,) int64
        Number of saturated pixels of the source.
    border : (n,) bool
        Whether the source touches the border of the image.
    """

    label: NDArray[np.int32]
    anchor: NDArray[np.int64]
    area: NDArray[np.int64]
    box: NDArray[np.int64]
    exact: NDArray[np.uint64]
    highest: NDArray[np.int64]
    lowest: NDArray[np.int64]
    probability: NDArray[np.int64]
    elevation: NDArray[np.int64]
    flags: NDArray[np.uint8]
    beside_bad: NDArray[np.int64]
    saturated: NDArray[np.int64]
    border: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the sums as a dict of arrays, for ``numpy.savez``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Sums:
        """Build sums from the arrays of ``to_arrays``, or from an open npz file that holds them."""
        return cls(
            **{field.name: np.ascontiguousarray(arrays[field.name]) for field in fields(cls)}
        )

    def take(self, rows: NDArray[Any]) -> Sums:
        """Return the rows that a boolean mask or an array of indices selects."""
        return Sums(**{name: array[rows] for name, array in self.to_arrays().items()})


def accumulate(
    pixels: Pixels, anchors: NDArray[np.int64], labels: NDArray[np.int32] | None = None
) -> Sums:
    """Sum over the pixels of each source in one tile.

    Parameters
    ----------
    pixels : Pixels
        Maps of the tile.
    anchors : (n, 2) int64
        Peak pixel (y, x) of each source; it may be in another tile.
    labels : (n,) int32, optional
        Labels of the rows of ``anchors``, in ascending order; by default 1 to n.

    Returns
    -------
    Sums
        One row for each label that has pixels in the tile.

    Raises
    ------
    ValueError
        If shapes do not agree, a label has no anchor, or a value exceeds the fixed-point range.

    Notes
    -----
    A horizontal run of one label is summed in 64 bits about its own first pixel. These sums are then
    shifted to the anchor's frame in 128 bits. Nothing is rounded, so the result does not depend on the
    tiling or on the order of the tiles.
    """
    anchors = np.ascontiguousarray(anchors, dtype=np.int64).reshape(-1, 2)
    known = (
        np.arange(1, len(anchors) + 1, dtype=np.int32)
        if labels is None
        else np.asarray(labels, dtype=np.int32)
    )
    _check_pixels(pixels, known, anchors)
    sums = _empty_sums(known, anchors, len(pixels.probability))
    error = (
        _accumulate(_pack_maps(pixels), _pack_rows(sums))
        if len(known)
        else int(pixels.labels.any())
    )
    if error:
        raise ValueError(_ERRORS[error])
    return _drop_absent(sums, pixels.shape)


_ERRORS = {
    1: "a label of the map has no anchor: pass the anchors of all labels in the tile",
    2: f"a fixed-point flux exceeds {FLUX_LIMIT} in magnitude: use quantise_flux",
    3: f"a fixed-point variance is outside [0, {VARIANCE_LIMIT}]: use quantise_variance",
}


def _check_pixels(pixels: Pixels, labels: NDArray[np.int32], anchors: NDArray[np.int64]) -> None:
    for name in ("labels", "value", "variance", "elevation"):
        if getattr(pixels, name).shape != pixels.core.shape:
            raise ValueError(
                f"{name} has shape {getattr(pixels, name).shape}, but the core has {pixels.core.shape}: "
                "pass all maps of the core"
            )
    if pixels.probability.ndim != 3 or pixels.probability.shape[1:] != pixels.core.shape:
        raise ValueError(
            f"probability has shape {pixels.probability.shape}, but the core has {pixels.core.shape}: "
            "pass (outputs, h, w) of the core"
        )
    if pixels.flags.shape != pixels.flags_box.shape:
        raise ValueError(
            f"flags has shape {pixels.flags.shape}, not {pixels.flags_box.shape}: "
            "pass the core and a margin of 1 px, clipped at the image"
        )
    if len(labels) != len(anchors) or (len(labels) > 1 and np.any(np.diff(labels) <= 0)):
        raise ValueError(
            f"{len(labels)} labels for {len(anchors)} anchors: pass one label for each anchor, in ascending order"
        )


def _empty_sums(labels: NDArray[np.int32], anchors: NDArray[np.int64], outputs: int) -> Sums:
    n, far = len(labels), np.iinfo(np.int64).max
    return Sums(
        label=labels,
        anchor=anchors,
        area=np.zeros(n, np.int64),
        box=np.tile(np.array([far, far, -1, -1], np.int64), (n, 1)),
        exact=np.zeros((n, 8, 2), np.uint64),
        highest=np.tile(np.array([-far, far], np.int64), (n, 1)),
        lowest=np.tile(np.array([far, far], np.int64), (n, 1)),
        probability=np.zeros((n, outputs), np.int64),
        elevation=np.zeros(n, np.int64),
        flags=np.zeros(n, np.uint8),
        beside_bad=np.zeros(n, np.int64),
        saturated=np.zeros(n, np.int64),
        border=np.zeros(n, np.bool_),
    )


def _drop_absent(sums: Sums, shape: tuple[int, int]) -> Sums:
    """Drop the labels without pixels, and find which sources touch the border of the image."""
    found = sums.take(sums.area > 0)
    low, high = found.box[:, :2], found.box[:, 2:]
    np.logical_or((low == 0).any(axis=1), (high == shape).any(axis=1), out=found.border)
    return found


def combine(parts: Sequence[Sums]) -> Sums:
    """Add the sums of several tiles, in any order.

    Parameters
    ----------
    parts : sequence of Sums
        Sums of disjoint tiles.

    Returns
    -------
    Sums
        One row for each label of the parts.

    Raises
    ------
    ValueError
        If there is no part, or two parts have different anchors for one label.
    """
    if not parts:
        raise ValueError("no sums to combine: pass at least one part")
    columns = [part.to_arrays() for part in parts]
    joined = Sums(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    rows = joined.take(np.argsort(joined.label, kind="stable"))
    first = np.flatnonzero(np.diff(rows.label, prepend=np.int32(-1)))
    if np.any(
        np.repeat(rows.anchor[first], np.diff(first, append=len(rows)), axis=0) != rows.anchor
    ):
        raise ValueError("two parts have different anchors for one label: pass sums of one image")
    return _sum_groups(rows, first)


def _sum_groups(rows: Sums, first: NDArray[np.intp]) -> Sums:
    """Add the rows of each label to its first row; ``first`` are the indices of these."""
    total = rows.take(first)
    if len(first) == len(rows):
        return total
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(rows)))
    _add_rows(_pack_rows(rows), group, np.isin(np.arange(len(rows)), first), _pack_rows(total))
    np.logical_or.at(total.border, group, rows.border)
    return total


class _Maps(NamedTuple):
    labels: NDArray[np.int32]
    value: NDArray[np.int64]
    variance: NDArray[np.int64]
    probability: NDArray[np.uint8]
    elevation: NDArray[np.uint16]
    flags: NDArray[np.uint8]
    y0: int
    x0: int
    width: int
    margin_y: int
    margin_x: int
    any_flag: bool


class _Rows(NamedTuple):
    label: NDArray[np.int32]
    anchor: NDArray[np.int64]
    area: NDArray[np.int64]
    box: NDArray[np.int64]
    exact: NDArray[np.uint64]
    highest: NDArray[np.int64]
    lowest: NDArray[np.int64]
    probability: NDArray[np.int64]
    elevation: NDArray[np.int64]
    flags: NDArray[np.uint8]
    beside_bad: NDArray[np.int64]
    saturated: NDArray[np.int64]


def _pack_maps(pixels: Pixels) -> _Maps:
    core, around = pixels.core, pixels.flags_box
    return _Maps(
        np.ascontiguousarray(pixels.labels),
        np.ascontiguousarray(pixels.value),
        np.ascontiguousarray(pixels.variance),
        np.ascontiguousarray(pixels.probability),
        np.ascontiguousarray(pixels.elevation),
        np.ascontiguousarray(pixels.flags),
        core.y0,
        core.x0,
        pixels.shape[1],
        core.y0 - around.y0,
        core.x0 - around.x0,
        bool(pixels.flags.any()),
    )


def _pack_rows(sums: Sums) -> _Rows:
    return _Rows(**{name: np.ascontiguousarray(getattr(sums, name)) for name in _Rows._fields})


@njit(cache=True, nogil=True)
def _accumulate(maps, rows):  # type: ignore[no-untyped-def]
    """Add all pixels of a tile; return 0 or a key of ``_ERRORS``."""
    height, width = maps.labels.shape
    # The row of the sums that each column used last is often the right one again, which saves a search.
    above = np.zeros(width, np.int64)
    for i in range(height):
        j = _ZERO
        while j < width:
            label = maps.labels[i, j]
            if label == 0:
                j += 1
                continue
            stop = j + 1
            while stop < width and stop - j < _MAX_RUN and maps.labels[i, stop] == label:
                stop += 1
            row = above[j] if rows.label[above[j]] == label else above[stop - 1]
            if rows.label[row] != label:
                row = _find_row(rows.label, label)
            if row < 0:
                return 1
            above[j:stop] = row
            error = _add_run(maps, rows, row, i, (j, stop))
            if error:
                return error
            if maps.any_flag:
                _update_flags(maps, rows, row, i, (j, stop))
            j = stop
    return 0


@njit(cache=True, nogil=True, forceinline=True)
def _find_row(labels, label):  # type: ignore[no-untyped-def]
    """Return the index of a label by binary search; -1 if it is missing."""
    low, high = 0, len(labels)
    while low < high:
        middle = (low + high) >> 1
        if labels[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low if low < len(labels) and labels[low] == label else -1


@njit(cache=True, nogil=True, forceinline=True)
def _add_run(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    """Add a run of at most ``_MAX_RUN`` pixels of one label; return 0 or a key of ``_ERRORS``."""
    start, stop = run
    flux, variance, m0, m1, m2, top = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    high, low = np.int64(-FLUX_LIMIT - 1), np.int64(FLUX_LIMIT + 1)
    high_j, low_j = start, start
    for j in range(start, stop):
        value, spread = maps.value[i, j], maps.variance[i, j]
        if spread < 0 or spread > VARIANCE_LIMIT:
            return 3
        flux += value
        variance += spread
        mass, step = max(value, 0), j - start
        m0 += mass
        m1 += mass * step
        m2 += mass * step * step
        if value > high:
            high, high_j = value, j
        if value < low:
            low, low_j = value, j
        top = max(top, np.int64(maps.elevation[i, j]))
    if high > FLUX_LIMIT or low < -FLUX_LIMIT:
        return 2
    first = (maps.y0 + i) * maps.width + maps.x0
    _update_extremes(rows, row, (high, first + high_j), (low, first + low_j))
    rows.elevation[row] = max(rows.elevation[row], top)
    _add_int64(rows.exact, row, FLUX, flux)
    _add_int64(rows.exact, row, VARIANCE, variance)
    dy, dx = maps.y0 + i - rows.anchor[row, 0], maps.x0 + start - rows.anchor[row, 1]
    _add_moments(rows.exact, row, (dy, dx), (m0, m1, m2))
    _update_extent(maps, rows, row, i, run)
    _update_probability(maps, rows, row, i, run)
    return 0


@njit(cache=True, nogil=True, forceinline=True)
def _update_extremes(rows, row, high, low):  # type: ignore[no-untyped-def]
    """Update the maximum and minimum (value, global index); of equal values keep the lowest index."""
    highest, lowest = rows.highest, rows.lowest
    if high[0] > highest[row, 0] or (high[0] == highest[row, 0] and high[1] < highest[row, 1]):
        highest[row, 0], highest[row, 1] = high
    if low[0] < lowest[row, 0] or (low[0] == lowest[row, 0] and low[1] < lowest[row, 1]):
        lowest[row, 0], lowest[row, 1] = low


@njit(cache=True, nogil=True, forceinline=True)
def _update_probability(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    for k in range(maps.probability.shape[0]):
        total = _ZERO
        for j in range(run[0], run[1]):
            total += np.int64(maps.probability[k, i, j])
        rows.probability[row, k] += total


@njit(cache=True, nogil=True, forceinline=True)
def _update_extent(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    rows.area[row] += run[1] - run[0]
    box = rows.box
    box[row, 0] = min(box[row, 0], maps.y0 + i)
    box[row, 1] = min(box[row, 1], maps.x0 + run[0])
    box[row, 2] = max(box[row, 2], maps.y0 + i + 1)
    box[row, 3] = max(box[row, 3], maps.x0 + run[1])


@njit(cache=True, nogil=True, forceinline=True)
def _union_flags(flags, rows, columns):  # type: ignore[no-untyped-def]
    """Return the union of the flags in a range of rows and columns, clipped at the array."""
    union = np.uint8(0)
    for y in range(max(rows[0], 0), min(rows[1], flags.shape[0])):
        for x in range(max(columns[0], 0), min(columns[1], flags.shape[1])):
            union |= flags[y, x]
    return union


@njit(cache=True, nogil=True, forceinline=True)
def _update_flags(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    flags, y = maps.flags, i + maps.margin_y
    start, stop = run[0] + maps.margin_x, run[1] + maps.margin_x
    if _union_flags(flags, (y - 1, y + 2), (start - 1, stop + 1)) == 0:
        return
    for x in range(start, stop):
        rows.flags[row] |= flags[y, x]
        rows.saturated[row] += (flags[y, x] & _SATURATED) != 0
        rows.beside_bad[row] += (_union_flags(flags, (y - 1, y + 2), (x - 1, x + 2)) & _BAD) != 0


@njit(cache=True, nogil=True, forceinline=True)
def _add_moments(exact, row, offset, sums):  # type: ignore[no-untyped-def]
    """Add a run's sums of m, m i and m i i, shifted to the anchor's frame.

    The run's first pixel is at ``offset`` (dy, dx) from the anchor, and its pixel i at (dy, dx + i)::

        sum m x   = dx m0 + m1
        sum m x x = dx dx m0 + 2 dx m1 + m2
    """
    dy, dx = offset
    m0, m1, m2 = sums
    _add_int64(exact, row, MASS, m0)
    _add_product(exact, row, MASS_Y, dy, m0)
    _add_product(exact, row, MASS_X, dx, m0)
    _add_int64(exact, row, MASS_X, m1)
    _add_product(exact, row, MASS_YY, dy * dy, m0)
    _add_product(exact, row, MASS_XY, dy * dx, m0)
    _add_product(exact, row, MASS_XY, dy, m1)
    _add_product(exact, row, MASS_XX, dx * dx, m0)
    _add_product(exact, row, MASS_XX, 2 * dx, m1)
    _add_int64(exact, row, MASS_XX, m2)


@njit(cache=True, nogil=True, forceinline=True)
def _add_int64(exact, row, k, value):  # type: ignore[no-untyped-def]
    """Add a signed 64-bit integer."""
    _add_int128(exact, row, k, np.uint64(value), np.uint64(value >> 63))


@njit(cache=True, nogil=True, forceinline=True)
def _add_int128(exact, row, k, low, high):  # type: ignore[no-untyped-def]
    """Add a 128-bit integer of two 64-bit limbs."""
    total = exact[row, k, 0] + low
    exact[row, k, 0] = total
    exact[row, k, 1] += high
    if total < low:
        exact[row, k, 1] += _ONE


@njit(cache=True, nogil=True, forceinline=True)
def _add_product(exact, row, k, factor, value):  # type: ignore[no-untyped-def]
    """Add ``factor * value``, with ``value`` >= 0, by long multiplication of 32-bit halves."""
    a, b = np.uint64(abs(factor)), np.uint64(value)
    a0, a1, b0, b1 = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    p00, p01, p10 = a0 * b0, a0 * b1, a1 * b0
    middle = (p00 >> _HALF) + (p01 & _LOW) + (p10 & _LOW)
    low = (p00 & _LOW) | (middle << _HALF)
    high = a1 * b1 + (p01 >> _HALF) + (p10 >> _HALF) + (middle >> _HALF)
    if factor < 0:
        low = ~low + _ONE
        high = ~high
        if low == np.uint64(0):
            high += _ONE
    _add_int128(exact, row, k, low, high)


@njit(cache=True, nogil=True)
def _add_rows(rows, group, is_first, total):  # type: ignore[no-untyped-def]
    """Add each row to the total of its group, except the first row, which the total contains."""
    for i in range(len(group)):
        if is_first[i]:
            continue
        g = group[i]
        for k in range(rows.exact.shape[1]):
            _add_int128(total.exact, g, k, rows.exact[i, k, 0], rows.exact[i, k, 1])
        high = rows.highest[i, 0], rows.highest[i, 1]
        low = rows.lowest[i, 0], rows.lowest[i, 1]
        _update_extremes(total, g, high, low)
        _add_counts(rows, i, total, g)


@njit(cache=True, nogil=True, forceinline=True)
def _add_counts(rows, i, total, g):  # type: ignore[no-untyped-def]
    total.area[g] += rows.area[i]
    total.beside_bad[g] += rows.beside_bad[i]
    total.saturated[g] += rows.saturated[i]
    total.flags[g] |= rows.flags[i]
    total.elevation[g] = max(total.elevation[g], rows.elevation[i])
    for k in range(rows.probability.shape[1]):
        total.probability[g, k] += rows.probability[i, k]
    for k in range(2):
        total.box[g, k] = min(total.box[g, k], rows.box[i, k])
        total.box[g, k + 2] = max(total.box[g, k + 2], rows.box[i, k + 2])


def int128_to_float(wide: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Convert 128-bit integers, (..., 2) uint64 as (low, high), to float64."""
    low, high = wide[..., 0], wide[..., 1]
    negative = high >> np.uint64(63) == 1
    # Negate first: the limbs of a small negative number cancel in float64 (-5 is 2^64 - 5 - 2^64).
    size_low = np.where(negative, ~low + _ONE, low)
    size_high = np.where(negative, ~high + (low == 0), high)
    size = size_high.astype(np.float64) * 2.0**64 + size_low.astype(np.float64)
    return np.where(negative, -size, size)
