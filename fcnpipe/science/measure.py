"""What a source is made of: exact sums over its pixels, then moments, then apertures.

::

    tile  --accumulate-->  Sums --+
    tile  --accumulate-->  Sums --+--combine-->  Sums  --finish-->  columns
    tile  --accumulate-->  Sums --+                                    |
    image, labels around a source  -----------measure_apertures--------+-->  columns

``accumulate`` and ``combine`` use integers only (128 bits where 64 could overflow), in the frame of
each source's anchor, its peak pixel.  The anchor belongs to the source, not to the tile, so the
sums are the same numbers for every tiling and every order.  Floats appear once, in ``finish``,
source by source. ``measure_apertures`` looks at a source's own box and nothing else, in a fixed
order.

Definitions are those of photutils 3 (``SourceCatalog``), the windowed position that of SExtractor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.core.records import PROBABILITY_SCALE, PixelFlag, SourceFlag

FLUX_LIMIT = 2**40
"""Greatest magnitude of a fixed-point flux; products with squared distances then fit 128 bits."""

VARIANCE_LIMIT = 2**52
"""Greatest fixed-point variance."""

KRON_SCALE = 2.5
"""The Kron aperture is this many Kron radii (SExtractor: PHOT_AUTOPARAMS)."""

KRON_LEAST = 1.4
"""Least Kron radius, in units of the semi-axes."""

KRON_EXTENT = 6.0
"""The Kron radius is measured inside this many semi-axes; beyond it, it means nothing."""

RADIUS_CAP = 512.0
"""Largest aperture semi-axis that is measured, px."""

NEIGHBOUR_SHARE = 0.1
"""Share of an aperture that others or bad pixels may take before the source is flagged."""

Columns = dict[str, NDArray[Any]]

# NumPy scalars: numba would compile each kernel anew for each literal.
_FLUX, _VARIANCE, _MASS, _Y, _X, _YY, _XY, _XX = np.arange(8)
_NONE = np.int64(0)
_CHUNK = 64  # pixels of a run whose products with squared offsets still fit 64 bits
_BAD = int(PixelFlag.NO_DATA | PixelFlag.MASKED)
_SATURATED = int(PixelFlag.SATURATED)
_ONE = np.uint64(1)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_INSIDE, _MIRRORED, _LOST, _SPOILT = 0, 1, 2, 4
_UNUSABLE = -1
_HALF_DIAGONAL = 0.70710678118654757
_CIRCLE = (1.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pixels:
    """The maps of one tile's core that sums are taken over.

    Attributes
    ----------
    labels : (h, w) int32
        Label of each pixel; 0 is background.
    value : (h, w) int64
        Flux above the sky in fixed point, at most ``FLUX_LIMIT`` in magnitude.
    variance : (h, w) int64
        Variance of a pixel in fixed point, in [0, ``VARIANCE_LIMIT``].
    probability : (c, h, w) uint8
        Probability of each output of the model, times 255.
    elevation : (h, w) uint16
        Elevation that was separated on.
    flags : (h', w') uint8
        `PixelFlag` bits of the core **with 1 px more on each side**, clipped at the image, so that
        bad neighbours across a seam are seen.
    core : Box
        Where the maps lie in the image.
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
        """Where ``flags`` must lie: the core with 1 px more, clipped at the image."""
        return self.core.grow(1).clip(self.frame)


@dataclass(frozen=True, slots=True)
class Sums:
    """Exact sums over the pixels of sources, one row for each label, labels rising.

    Attributes
    ----------
    label : (n,) int32
        Label, 1 or more.
    anchor : (n, 2) int64
        Pixel (y, x) of the source's peak: origin of the moments.
    area : (n,) int64
        Number of pixels.
    box : (n, 4) int64
        Bounding box y0, x0, y1, x1, half-open.
    exact : (n, 8, 2) uint64
        128-bit two's complement (low, high) of: flux, variance, and with m = max(value, 0) and
        y, x from the anchor: m, m y, m x, m y y, m x y, m x x.
    highest, lowest : (n, 2) int64
        Greatest and least value and its global pixel index; of equal ones the lowest index.
    probability : (n, c) int64
        Sum of the uint8 probabilities of each output.
    elevation : (n,) int64
        Greatest elevation.
    flags : (n,) uint8
        Union of the pixels' `PixelFlag` bits.
    beside_bad, saturated : (n,) int64
        Pixels of the source that have a bad one among their 8 neighbours; that are saturated.
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

    def to_arrays(self) -> Columns:
        """Give the sums as plain arrays, for ``numpy.savez``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Sums:
        """Rebuild sums from what ``to_arrays`` gave (an open npz file will do)."""
        return cls(
            **{field.name: np.ascontiguousarray(arrays[field.name]) for field in fields(cls)}
        )

    def take(self, rows: NDArray[Any]) -> Sums:
        """Give the sums of some rows, by boolean mask or index."""
        return Sums(**{name: array[rows] for name, array in self.to_arrays().items()})


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels around sources, from which apertures are measured.

    Attributes
    ----------
    image : (h, w) float32
        Flux above the sky; NaN where there is none.
    noise : (h, w) float32
        Standard deviation of a pixel, same unit.
    labels : (h, w) int32
        Label of each pixel; 0 is background.
    flags : (h, w) uint8
        `PixelFlag` bits.
    box : Box
        Where the region lies in the image.
    shape : (int, int)
        Height and width of the image.
    """

    image: NDArray[np.float32]
    noise: NDArray[np.float32]
    labels: NDArray[np.int32]
    flags: NDArray[np.uint8]
    box: Box
    shape: tuple[int, int]

    def cut(self, box: Box) -> Region:
        """Give the part inside a box; the same memory."""
        part, place = self.box.clip(box), self.box.clip(box).within(self.box)
        maps = (self.image[place], self.noise[place], self.labels[place], self.flags[place])
        return Region(*maps, part, self.shape)


def join_regions(parts: Sequence[Region], box: Box) -> Region:
    """Put together the region of a box from parts that cover it."""
    image, noise = np.empty(box.shape, np.float32), np.empty(box.shape, np.float32)
    labels, flags = np.empty(box.shape, np.int32), np.empty(box.shape, np.uint8)
    whole = Region(image, noise, labels, flags, box, parts[0].shape)
    for part in parts:
        place = part.box.within(box)
        whole.image[place], whole.noise[place] = part.image, part.noise
        whole.labels[place], whole.flags[place] = part.labels, part.flags
    return whole


# --- fixed point ---


def quantise_flux(flux: NDArray[np.floating[Any]], unit: float) -> NDArray[np.int64]:
    """Give fluxes in fixed point: the nearest whole number of units, within ``FLUX_LIMIT``.

    Parameters
    ----------
    flux : array of float
        Flux above the sky; NaN becomes 0.
    unit : float
        Value of one count, best a power of two.

    Examples
    --------
    >>> quantise_flux(np.array([1.0, -0.5, np.nan, np.inf]), 0.25).tolist()
    [4, -2, 0, 1099511627776]
    """
    return _quantise(flux, unit, (-FLUX_LIMIT, FLUX_LIMIT))


def quantise_variance(variance: NDArray[np.floating[Any]], unit: float) -> NDArray[np.int64]:
    """Give variances in fixed point, within [0, ``VARIANCE_LIMIT``]; NaN becomes 0."""
    return _quantise(variance, unit, (0, VARIANCE_LIMIT))


def _quantise(
    values: NDArray[np.floating[Any]], unit: float, limits: tuple[int, int]
) -> NDArray[np.int64]:
    counts = np.empty(values.shape, np.int64)
    flat = np.ascontiguousarray(values).reshape(-1)
    _round(flat, 1.0 / unit, (float(limits[0]), float(limits[1])), counts.reshape(-1))
    return counts


def quantise_labelled(
    maps: tuple[NDArray[np.int32], NDArray[np.uint8]],
    flux: NDArray[np.float32],
    noise: NDArray[np.float32],
    units: tuple[float, float],
    gain: float | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give flux and variance in fixed point where there is a label, and 0 elsewhere.

    Parameters
    ----------
    maps : (h, w) int32 and (h, w) uint8
        Labels, and bits of `PixelFlag`; a bad pixel counts for nothing.
    flux, noise : (h, w) float32
        Above the sky, and the sky's, in image units.
    units : (float, float)
        Value of one count of flux and of variance.
    gain : float, optional
        Electrons per image unit: adds the sources' own noise to the variance.
    """
    labels, flags = maps
    counts = np.zeros((2, *labels.shape), np.int64)
    scales = (1.0 / units[0], 1.0 / units[1])
    limits = ((float(-FLUX_LIMIT), float(FLUX_LIMIT)), (0.0, float(VARIANCE_LIMIT)))
    _round_labelled((labels, flags), flux, noise, scales, limits, np.float64(gain or 0), counts)
    return counts[0], counts[1]


@njit(cache=True, nogil=True)
def _round_labelled(maps, flux, noise, scales, limits, gain, counts):  # type: ignore[no-untyped-def]
    labels, flags = maps
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            if labels[i, j] == 0 or (flags[i, j] & _BAD) != 0:
                continue
            value, sigma = np.float64(flux[i, j]), np.float64(noise[i, j])
            variance = sigma * sigma
            if gain > 0:
                variance += max(value, 0.0) / gain
            counts[0, i, j] = _nearest(value, scales[0], limits[0][0], limits[0][1])
            counts[1, i, j] = _nearest(variance, scales[1], limits[1][0], limits[1][1])


@njit(cache=True, nogil=True, forceinline=True)
def _nearest(value, scale, low, high):  # type: ignore[no-untyped-def]
    """Give the whole number nearest to ``value * scale``, within limits; 0 for NaN."""
    count = np.float64(value) * scale
    if np.isnan(count):
        return np.int64(0)
    return np.int64(np.rint(min(max(count, np.float64(low)), np.float64(high))))


@njit(cache=True, nogil=True)
def _round(values, scale, limits, counts):  # type: ignore[no-untyped-def]
    """Round in one pass: NumPy's five, with their float64 copies, take longer than the sums."""
    for i in range(len(values)):
        counts[i] = _nearest(values[i], scale, limits[0], limits[1])


# --- sums ---


def accumulate(
    pixels: Pixels, anchors: NDArray[np.int64], names: NDArray[np.int32] | None = None
) -> Sums:
    """Sum over the pixels that each source has in one tile.

    Parameters
    ----------
    pixels : Pixels
        Maps of the tile.
    anchors : (n, 2) int64
        Peak pixel (y, x) of each named source; it may lie in another tile.
    names : (n,) int32, optional
        Labels that the rows of ``anchors`` belong to, rising; 1 to n if not given.

    Returns
    -------
    Sums
        One row for each label that has a pixel here.

    Raises
    ------
    ValueError
        If shapes do not agree, a label has no anchor, or a value exceeds the fixed point's range.

    Notes
    -----
    A horizontal run of one label is summed in 64 bits about its own start and then moved to the
    anchor's frame in 128 bits: no rounding anywhere, so neither the tiling nor the order can show.
    """
    anchors = np.ascontiguousarray(anchors, dtype=np.int64).reshape(-1, 2)
    known = (
        np.arange(1, len(anchors) + 1, dtype=np.int32)
        if names is None
        else np.asarray(names, dtype=np.int32)
    )
    _check(pixels, known, anchors)
    sums = _blank(known, anchors, len(pixels.probability))
    fault = _accumulate(_maps(pixels), _rows(sums)) if len(known) else int(pixels.labels.any())
    if fault:
        raise ValueError(_FAULTS[fault])
    return _seen(sums, pixels.shape)


_FAULTS = {
    1: "a label of the map has no anchor: name every label that the tile holds",
    2: f"a fixed-point flux exceeds {FLUX_LIMIT} in magnitude: use quantise_flux",
    3: f"a fixed-point variance is outside [0, {VARIANCE_LIMIT}]: use quantise_variance",
}


def _check(pixels: Pixels, names: NDArray[np.int32], anchors: NDArray[np.int64]) -> None:
    for name in ("labels", "value", "variance", "elevation"):
        if getattr(pixels, name).shape != pixels.core.shape:
            raise ValueError(
                f"{name} has shape {getattr(pixels, name).shape}, the core {pixels.core.shape}"
            )
    if pixels.probability.ndim != 3 or pixels.probability.shape[1:] != pixels.core.shape:
        raise ValueError(
            f"probability has shape {pixels.probability.shape}, not (c, {pixels.core.shape})"
        )
    if pixels.flags.shape != pixels.flags_box.shape:
        raise ValueError(
            f"flags has shape {pixels.flags.shape}, not {pixels.flags_box.shape}: "
            "give the core with 1 px more, clipped at the image"
        )
    if len(names) != len(anchors) or (len(names) > 1 and np.any(np.diff(names) <= 0)):
        raise ValueError(f"{len(names)} names for {len(anchors)} anchors: give as many, rising")


def _blank(names: NDArray[np.int32], anchors: NDArray[np.int64], outputs: int) -> Sums:
    n, far = len(names), np.iinfo(np.int64).max
    return Sums(
        label=names,
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


def _seen(sums: Sums, shape: tuple[int, int]) -> Sums:
    found = sums.take(sums.area > 0)
    low, high = found.box[:, :2], found.box[:, 2:]
    np.logical_or((low == 0).any(axis=1), (high == shape).any(axis=1), out=found.border)
    return found


def combine(parts: Sequence[Sums]) -> Sums:
    """Add up the sums of several tiles; the order of ``parts`` does not matter.

    Parameters
    ----------
    parts : sequence of Sums
        Sums of tiles that share no pixel.

    Raises
    ------
    ValueError
        If there is no part, or two parts have different anchors for one label.
    """
    if not parts:
        raise ValueError("no sums to combine: give at least one part")
    columns = [part.to_arrays() for part in parts]
    joined = Sums(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    rows = joined.take(np.argsort(joined.label, kind="stable"))
    first = np.flatnonzero(np.diff(rows.label, prepend=np.int32(-1)))
    if np.any(
        np.repeat(rows.anchor[first], np.diff(first, append=len(rows)), axis=0) != rows.anchor
    ):
        raise ValueError(
            "two parts have different anchors for one label: they are of different images"
        )
    return _reduce(rows, first)


def _reduce(rows: Sums, first: NDArray[np.intp]) -> Sums:
    total = rows.take(first)
    if len(first) == len(rows):
        return total
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(rows)))
    _add_rows(_rows(rows), group, np.isin(np.arange(len(rows)), first), _rows(total))
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


def _maps(pixels: Pixels) -> _Maps:
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


def _rows(sums: Sums) -> _Rows:
    return _Rows(**{name: np.ascontiguousarray(getattr(sums, name)) for name in _Rows._fields})


@njit(cache=True, nogil=True)
def _accumulate(maps, rows):  # type: ignore[no-untyped-def]
    height, width = maps.labels.shape
    above = np.zeros(
        width, np.int64
    )  # row of the sums that was last met in a column: saves the search
    for i in range(height):
        j = _NONE
        while j < width:
            label = maps.labels[i, j]
            if label == 0:
                j += 1
                continue
            stop = j + 1
            while stop < width and stop - j < _CHUNK and maps.labels[i, stop] == label:
                stop += 1
            row = above[j] if rows.label[above[j]] == label else above[stop - 1]
            if rows.label[row] != label:
                row = _find(rows.label, label)
            if row < 0:
                return 1
            above[j:stop] = row
            fault = _add_run(maps, rows, row, i, (j, stop))
            if fault:
                return fault
            if maps.any_flag:
                _note_flags(maps, rows, row, i, (j, stop))
            j = stop
    return 0


@njit(cache=True, nogil=True, forceinline=True)
def _find(names, label):  # type: ignore[no-untyped-def]
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) >> 1
        if names[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low if low < len(names) and names[low] == label else -1


@njit(cache=True, nogil=True, forceinline=True)
def _add_run(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    """Add one run of at most ``_CHUNK`` pixels of one label; give 0 or the fault's number."""
    start, stop = run
    flux, variance, m0, m1, m2, top = _NONE, _NONE, _NONE, _NONE, _NONE, _NONE
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
    _note_extremes(rows, row, (high, first + high_j), (low, first + low_j))
    rows.elevation[row] = max(rows.elevation[row], top)
    _add_small(rows.exact, row, _FLUX, flux)
    _add_small(rows.exact, row, _VARIANCE, variance)
    dy, dx = maps.y0 + i - rows.anchor[row, 0], maps.x0 + start - rows.anchor[row, 1]
    _add_moments(rows.exact, row, (dy, dx), (m0, m1, m2))
    _note_extent(maps, rows, row, i, run)
    _note_probability(maps, rows, row, i, run)
    return 0


@njit(cache=True, nogil=True, forceinline=True)
def _note_extremes(rows, row, high, low):  # type: ignore[no-untyped-def]
    """Take over a greatest and a least (value, global index); of equal values the lowest index."""
    highest, lowest = rows.highest, rows.lowest
    if high[0] > highest[row, 0] or (high[0] == highest[row, 0] and high[1] < highest[row, 1]):
        highest[row, 0], highest[row, 1] = high
    if low[0] < lowest[row, 0] or (low[0] == lowest[row, 0] and low[1] < lowest[row, 1]):
        lowest[row, 0], lowest[row, 1] = low


@njit(cache=True, nogil=True, forceinline=True)
def _note_probability(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    for k in range(maps.probability.shape[0]):
        total = _NONE
        for j in range(run[0], run[1]):
            total += np.int64(maps.probability[k, i, j])
        rows.probability[row, k] += total


@njit(cache=True, nogil=True, forceinline=True)
def _note_extent(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    rows.area[row] += run[1] - run[0]
    box = rows.box
    box[row, 0] = min(box[row, 0], maps.y0 + i)
    box[row, 1] = min(box[row, 1], maps.x0 + run[0])
    box[row, 2] = max(box[row, 2], maps.y0 + i + 1)
    box[row, 3] = max(box[row, 3], maps.x0 + run[1])


@njit(cache=True, nogil=True, forceinline=True)
def _union(flags, rows, columns):  # type: ignore[no-untyped-def]
    """Give the union of the flags in a range of rows and columns, clipped at the array."""
    union = np.uint8(0)
    for y in range(max(rows[0], 0), min(rows[1], flags.shape[0])):
        for x in range(max(columns[0], 0), min(columns[1], flags.shape[1])):
            union |= flags[y, x]
    return union


@njit(cache=True, nogil=True, forceinline=True)
def _note_flags(maps, rows, row, i, run):  # type: ignore[no-untyped-def]
    flags, y = maps.flags, i + maps.margin_y
    start, stop = run[0] + maps.margin_x, run[1] + maps.margin_x
    if _union(flags, (y - 1, y + 2), (start - 1, stop + 1)) == 0:
        return
    for x in range(start, stop):
        rows.flags[row] |= flags[y, x]
        rows.saturated[row] += (flags[y, x] & _SATURATED) != 0
        rows.beside_bad[row] += (_union(flags, (y - 1, y + 2), (x - 1, x + 2)) & _BAD) != 0


@njit(cache=True, nogil=True, forceinline=True)
def _add_moments(exact, row, offset, sums):  # type: ignore[no-untyped-def]
    """Move the sums m, m i, m i i of a run to the anchor's frame, x = dx + i, and add them."""
    dy, dx = offset
    m0, m1, m2 = sums
    _add_small(exact, row, _MASS, m0)
    _add_product(exact, row, _Y, dy, m0)
    _add_product(exact, row, _X, dx, m0)
    _add_small(exact, row, _X, m1)
    _add_product(exact, row, _YY, dy * dy, m0)
    _add_product(exact, row, _XY, dy * dx, m0)
    _add_product(exact, row, _XY, dy, m1)
    _add_product(exact, row, _XX, dx * dx, m0)
    _add_product(exact, row, _XX, 2 * dx, m1)
    _add_small(exact, row, _XX, m2)


@njit(cache=True, nogil=True, forceinline=True)
def _add_small(exact, row, k, value):  # type: ignore[no-untyped-def]
    """Add a signed 64-bit number."""
    _add_wide(exact, row, k, np.uint64(value), np.uint64(value >> 63))


@njit(cache=True, nogil=True, forceinline=True)
def _add_wide(exact, row, k, low, high):  # type: ignore[no-untyped-def]
    """Add a 128-bit number given as two limbs."""
    total = exact[row, k, 0] + low
    exact[row, k, 0] = total
    exact[row, k, 1] += high
    if total < low:
        exact[row, k, 1] += _ONE


@njit(cache=True, nogil=True, forceinline=True)
def _add_product(exact, row, k, factor, value):  # type: ignore[no-untyped-def]
    """Add ``factor * value``, ``value`` not negative: schoolbook product of 32-bit halves."""
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
    _add_wide(exact, row, k, low, high)


@njit(cache=True, nogil=True)
def _add_rows(rows, group, leads, total):  # type: ignore[no-untyped-def]
    for i in range(len(group)):
        if leads[i]:
            continue
        g = group[i]
        for k in range(rows.exact.shape[1]):
            _add_wide(total.exact, g, k, rows.exact[i, k, 0], rows.exact[i, k, 1])
        high = rows.highest[i, 0], rows.highest[i, 1]
        low = rows.lowest[i, 0], rows.lowest[i, 1]
        _note_extremes(total, g, high, low)
        _merge_row(rows, i, total, g)


@njit(cache=True, nogil=True, forceinline=True)
def _merge_row(rows, i, total, g):  # type: ignore[no-untyped-def]
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


# --- moments ---


def finish(sums: Sums, unit: float, variance_unit: float, width: int) -> Columns:
    """Turn complete sums into the isophotal columns.

    Parameters
    ----------
    sums : Sums
        Sums over all pixels of each source.
    unit, variance_unit : float
        Value of one count of flux and of variance.
    width : int
        Width of the image in pixels, to read global indices.

    Returns
    -------
    dict of (n,) arrays
        Named as in photutils 3; positions 0-based in pixels, angles in degrees. All are finite,
        but ``snr`` is NaN where the variance is 0. ``flags`` holds `SourceFlag` bits.

    Notes
    -----
    As in photutils, negative pixels do not count in moments, and shapes thinner than a pixel are
    thickened by 1/12 px^2 at a time. Unlike photutils, a source without any positive pixel gets the
    centre and the spread of its bounding box instead of NaN, and the flag ISOPHOTE_INCOMPLETE.
    """
    mass = to_float(sums.exact[:, _MASS])
    blank = mass == 0
    centre, spread = _moments(sums, np.where(blank, 1.0, mass))
    _fill_from_box(sums, blank, centre, spread)
    columns = {"label": sums.label, **_positions(sums, centre, width)}
    columns |= _shapes(*_thicken(*spread.T))
    columns |= _fluxes(sums, unit, variance_unit)
    columns |= _verdicts(sums)
    columns["flags"] = _flags(sums, blank)
    return columns


def to_float(wide: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Give 128-bit integers, (..., 2) uint64 as (low, high), as float64."""
    low, high = wide[..., 0], wide[..., 1]
    negative = high >> np.uint64(63) == 1
    # Of a negative number the limbs alone would round to nothing (-5 is 2^64 - 5 - 2^64).
    size_low = np.where(negative, ~low + _ONE, low)
    size_high = np.where(negative, ~high + (low == 0), high)
    size = size_high.astype(np.float64) * 2.0**64 + size_low.astype(np.float64)
    return np.where(negative, -size, size)


def _moments(
    sums: Sums, mass: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x, yy, xy, xx = (to_float(sums.exact[:, k]) / mass for k in (_Y, _X, _YY, _XY, _XX))
    centre = np.stack([y, x], axis=1) + sums.anchor
    return centre, np.stack(
        [np.maximum(xx - x * x, 0), xy - x * y, np.maximum(yy - y * y, 0)], axis=1
    )


def _fill_from_box(
    sums: Sums, blank: NDArray[np.bool_], centre: NDArray[np.float64], spread: NDArray[np.float64]
) -> None:
    box = sums.box[blank].astype(np.float64)
    edge = box[:, 2:] - box[:, :2]
    centre[blank] = (box[:, :2] + box[:, 2:] - 1) / 2
    variance = (edge * edge - 1) / 12
    spread[blank] = np.stack([variance[:, 1], np.zeros(len(box)), variance[:, 0]], axis=1)


def _positions(sums: Sums, centre: NDArray[np.float64], width: int) -> Columns:
    y0, x0, y1, x1 = sums.box.T
    high_y, high_x = np.divmod(sums.highest[:, 1], width)
    low_y, low_x = np.divmod(sums.lowest[:, 1], width)
    return {
        "x_centroid": centre[:, 1],
        "y_centroid": centre[:, 0],
        "x_peak": sums.anchor[:, 1],
        "y_peak": sums.anchor[:, 0],
        "bbox_xmin": x0,
        "bbox_xmax": x1 - 1,
        "bbox_ymin": y0,
        "bbox_ymax": y1 - 1,
        "area": sums.area,
        "max_value_xindex": high_x,
        "max_value_yindex": high_y,
        "min_value_xindex": low_x,
        "min_value_yindex": low_y,
    }


def _thicken(
    xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    delta = 1.0 / 12
    xx, yy = xx.copy(), yy.copy()
    while (thin := xx * yy - xy * xy < delta**2).any():
        xx[thin] += delta
        yy[thin] += delta
    return xx, xy, yy


def _shapes(xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]) -> Columns:
    det = xx * yy - xy * xy
    half = (xx - yy) / 2
    major = (xx + yy) / 2 + np.sqrt(half * half + xy * xy)
    minor = np.minimum(det / major, major)
    a, b = np.sqrt(major), np.sqrt(minor)
    return {
        "covariance_xx": xx,
        "covariance_xy": xy,
        "covariance_yy": yy,
        "semimajor_axis": a,
        "semiminor_axis": b,
        "orientation": _orientation(xx, xy, yy),
        "eccentricity": np.sqrt(1 - minor / major),
        "elongation": a / b,
        "ellipticity": 1 - b / a,
        "ellipse_cxx": yy / det,
        "ellipse_cxy": -2 * xy / det,
        "ellipse_cyy": xx / det,
        "fwhm": 2 * np.sqrt(np.log(2.0) * (major + minor)),
    }


@njit(cache=True, nogil=True)
def _orientation(xx, xy, yy):  # type: ignore[no-untyped-def]
    """Give angles in [0, 360) degrees; in scalars, since a vector's tail may round differently."""
    angle = np.empty(len(xx))
    for i in range(len(xx)):
        angle[i] = np.degrees(0.5 * np.arctan2(2.0 * xy[i], xx[i] - yy[i])) % 360.0
    return angle


def _fluxes(sums: Sums, unit: float, variance_unit: float) -> Columns:
    flux = to_float(sums.exact[:, _FLUX]) * unit
    error = np.sqrt(to_float(sums.exact[:, _VARIANCE]) * variance_unit)
    return {
        "segment_flux": flux,
        "segment_flux_err": error,
        "snr": np.divide(flux, error, out=np.full(len(flux), np.nan), where=error > 0),
        "max_value": sums.highest[:, 0] * unit,
        "min_value": sums.lowest[:, 0] * unit,
    }


def _verdicts(sums: Sums) -> Columns:
    mean = sums.probability * PROBABILITY_SCALE / np.maximum(sums.area, 1)[:, None]
    some = mean.shape[1] > 1
    return {
        "probability": mean[:, 0] if mean.shape[1] else np.full(len(sums), np.nan),
        "class": np.argmax(mean[:, 1:], axis=1) + 1 if some else np.full(len(sums), -1),
        "elevation": sums.elevation,
        "saturated_pixels": sums.saturated,
        "beside_bad_pixels": sums.beside_bad,
    }


def _flags(sums: Sums, blank: NDArray[np.bool_]) -> NDArray[np.int32]:
    spoilt = (sums.beside_bad > 0) | (sums.flags & _BAD != 0) | blank
    flags = np.where(sums.flags & _SATURATED != 0, int(SourceFlag.SATURATED), 0)
    flags |= np.where(sums.border, int(SourceFlag.TRUNCATED), 0)
    flags |= np.where(spoilt, int(SourceFlag.ISOPHOTE_INCOMPLETE), 0)
    return flags.astype(np.int32)


# --- apertures ---


def aperture_boxes(
    columns: Mapping[str, NDArray[Any]], shape: tuple[int, int], cap: float = RADIUS_CAP
) -> NDArray[np.int64]:
    """Give what each source's apertures may look at: the region a caller must read.

    Parameters
    ----------
    columns : mapping
        Columns as ``finish`` gives them.
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
        Columns as ``finish`` gives them, of sources whose ``aperture_boxes`` lie in the region.
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
    return measure_near(columns, region, cap)[0]


def measure_near(
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
    shapes = np.stack([np.asarray(columns[name], np.float64) for name in _SHAPE], axis=1)
    values, bits = np.full((n, len(_APERTURE)), np.nan), np.zeros(n, np.int32)
    labels = np.asarray(columns["label"], np.int32)
    _measure_all(
        _field(region), _Rules(cap), _scratch(edge), (labels, shapes, boxes), (values, bits)
    )
    measured: Columns = dict(zip(_APERTURE, values.T.copy(), strict=True))
    done = bits != _TOO_SMALL
    measured["flags"] = columns["flags"] | np.where(done, bits, 0).astype(np.int32)
    return measured, done


_SHAPE = ("x_centroid", "y_centroid", "semimajor_axis", "semiminor_axis", "orientation",
          "ellipse_cxx", "ellipse_cxy", "ellipse_cyy")  # fmt: skip
_APERTURE = (
    "x_winpos",
    "y_winpos",
    "kron_radius",
    "kron_flux",
    "kron_flux_err",
    "half_light_radius",
)


class _Field(NamedTuple):
    """A region: flux, noise, and whose each pixel is (a label, 0 for nobody's, -1 if unusable)."""

    image: NDArray[np.float32]
    noise: NDArray[np.float32]
    owner: NDArray[np.int32]
    y0: int
    x0: int


class _Rules(NamedTuple):
    cap: float


class _Scratch(NamedTuple):
    """Work space as large as the largest box: repaired pixels, and their order by distance."""

    value: NDArray[np.float64]
    ring: NDArray[np.int64]
    number: NDArray[np.int64]
    disc: NDArray[np.float64]
    inside: NDArray[np.float64]
    wave: NDArray[np.float64]


class _Source(NamedTuple):
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


def _field(region: Region) -> _Field:
    image = np.ascontiguousarray(region.image, np.float32)
    noise = np.ascontiguousarray(region.noise, np.float32)
    labels = np.ascontiguousarray(region.labels, np.int32)
    owner = np.empty(labels.shape, np.int32)
    _own(labels, np.ascontiguousarray(region.flags, np.uint8), image, noise, owner)
    return _Field(image, noise, owner, region.box.y0, region.box.x0)


@njit(cache=True, nogil=True)
def _own(labels, flags, image, noise, owner):  # type: ignore[no-untyped-def]
    """Say whose each pixel is, and which cannot be used."""
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            good = np.isfinite(image[y, x]) and np.isfinite(noise[y, x])
            bad = (flags[y, x] & _BAD) != 0 or not good
            owner[y, x] = _UNUSABLE if bad else labels[y, x]


def _scratch(edge: int) -> _Scratch:
    square = (edge, edge)
    return _Scratch(
        np.empty(square),
        np.empty(2 * edge + 8, np.int64),
        np.empty(edge * edge, np.int64),
        np.empty((edge * edge, 3)),
        np.empty(2 * edge + 8),
        np.empty(edge),
    )


@njit(cache=True, nogil=True)
def _measure_all(field, rules, scratch, sources, results):  # type: ignore[no-untyped-def]
    labels, shapes, boxes = sources
    values, bits = results
    for i in range(len(labels)):
        angle = np.radians(shapes[i, 4])
        source = _Source(
            labels[i], shapes[i, 0], shapes[i, 1], shapes[i, 2], shapes[i, 3],
            np.cos(angle), np.sin(angle), shapes[i, 5], shapes[i, 6], shapes[i, 7],
        )  # fmt: skip
        box = (boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3])
        bits[i] = _measure_one(field, rules, scratch, source, box, values[i])


@njit(cache=True, nogil=True)
def _measure_one(field, rules, scratch, source, limits, out):  # type: ignore[no-untyped-def]
    """Fill one row of results; give its flag bits, or that the region is too small."""
    out[0], out[1] = source.x, source.y
    centre, wide = (source.x, source.y), min(KRON_EXTENT, rules.cap / source.a)
    box = _box_around(centre, _ellipse_extent(source, wide), limits)
    if not _holds(field, box):
        return np.int32(_TOO_SMALL)
    kron = _kron_radius(field, scratch, source, box, wide)
    out[2] = kron
    if not np.isfinite(kron):
        return np.int32(_INCOMPLETE)
    scale = min(KRON_SCALE * kron, rules.cap / source.a)
    radius = scale * source.a
    disc = _box_around(centre, (radius, radius), limits)
    if not _holds(field, disc):  # it holds the ellipse, too
        return np.int32(_TOO_SMALL)
    box = _box_around(centre, _ellipse_extent(source, scale), limits)
    out[3], out[4], bits = _ellipse_flux(field, source, box, scale)
    if scale < KRON_SCALE * kron:
        bits |= np.int32(_INCOMPLETE)
    half = _fraction_radius(field, scratch, source, disc, (radius, 0.5 * out[3]))
    out[5] = half
    if np.isfinite(half):
        room = 4 * _window_sigma(half) + source.a + 1
        box = _box_around(centre, (room, room), limits)
        if not _holds(field, box):
            return np.int32(_TOO_SMALL)
        _repair(field, scratch, source, box, box)
        out[0], out[1] = _windowed_position(scratch, source, box, _window_sigma(half))
    return bits


_INCOMPLETE = int(SourceFlag.APERTURE_INCOMPLETE)
_CROWDED = int(SourceFlag.NEIGHBOURS)
_TOO_SMALL = -1


@njit(cache=True, nogil=True, forceinline=True)
def _box_around(centre, extent, limits):  # type: ignore[no-untyped-def]
    """Give the pixels (y0, x0, y1, x1) that a figure of this half-extent (x, y) touches."""
    x0 = max(int(np.floor(centre[0] - extent[0] + 0.5)), limits[1])
    x1 = min(int(np.floor(centre[0] + extent[0] + 0.5)) + 1, limits[3])
    y0 = max(int(np.floor(centre[1] - extent[1] + 0.5)), limits[0])
    y1 = min(int(np.floor(centre[1] + extent[1] + 0.5)) + 1, limits[2])
    return y0, x0, y1, x1


@njit(cache=True, nogil=True, forceinline=True)
def _holds(field, box):  # type: ignore[no-untyped-def]
    """Say whether a box lies in the region."""
    y1, x1 = field.y0 + field.image.shape[0], field.x0 + field.image.shape[1]
    return box[0] >= field.y0 and box[1] >= field.x0 and box[2] <= y1 and box[3] <= x1


@njit(cache=True, nogil=True, forceinline=True)
def _ellipse_extent(source, scale):  # type: ignore[no-untyped-def]
    """Give the half width and half height of the source's ellipse."""
    a, b = source.a * scale, source.b * scale
    width = np.sqrt((a * source.cosine) ** 2 + (b * source.sine) ** 2)
    height = np.sqrt((a * source.sine) ** 2 + (b * source.cosine) ** 2)
    return width, height


@njit(cache=True, nogil=True, forceinline=True)
def _span(form, dy, limit, more):  # type: ignore[no-untyped-def]
    """Give the least and greatest dx (px, widened by ``more``) where a form is below a limit.

    ``form`` (xx, xy, yy) stands for xx dx^2 + xy dx dy + yy dy^2, positive definite; a row that
    it does not reach gives an empty span.
    """
    xx, xy, yy = form
    middle = -0.5 * xy * dy / xx
    room = middle * middle - (yy * dy * dy - limit) / xx
    if room < 0:
        return 1.0, 0.0
    half = np.sqrt(room) + more
    return middle - half, middle + half


@njit(cache=True, nogil=True, forceinline=True)
def _clip_span(span, x, low, high):  # type: ignore[no-untyped-def]
    """Give the pixels [first, end) of a row that a span about x touches."""
    return max(int(np.ceil(span[0] + x)), low), min(int(np.floor(span[1] + x)) + 1, high)


@njit(cache=True, nogil=True, forceinline=True)
def _state(field, label, y, x):  # type: ignore[no-untyped-def]
    """Say whether a pixel can be used as it is: 0, or why not."""
    owner = field.owner[y - field.y0, x - field.x0]
    if owner == 0 or owner == label:
        return _INSIDE
    return _SPOILT | _LOST if owner == _UNUSABLE else _LOST


@njit(cache=True, nogil=True, forceinline=True)
def _mend(field, source, place, box):  # type: ignore[no-untyped-def]
    """Give where to read a pixel, and its state.

    Neighbours' and bad pixels are read at their mirror about the centroid, or lost if it is no
    better or outside the box.
    """
    y, x = place
    state = _state(field, source.label, y, x)
    if state != _INSIDE:
        v = 2 * int(np.floor(source.y + 0.5)) - y
        u = 2 * int(np.floor(source.x + 0.5)) - x
        within = box[0] <= v < box[2] and box[1] <= u < box[3]
        if within and _state(field, source.label, v, u) == _INSIDE:
            return v - field.y0, u - field.x0, (state & _SPOILT) | _MIRRORED
    return y - field.y0, x - field.x0, state


@njit(cache=True, nogil=True)
def _repair(field, scratch, source, box, part):  # type: ignore[no-untyped-def]
    """Copy a part of a box; neighbours' and bad pixels are replaced by their mirror in the box."""
    for y in range(part[0], part[2]):
        value = scratch.value[y - box[0], part[1] - box[1] : part[3] - box[1]]
        _mend_row(field, source, (y, part[1]), box, value)


@njit(cache=True, nogil=True)
def _mend_row(field, source, place, box, value):  # type: ignore[no-untyped-def]
    """Fill ``value`` with a row of pixels from a place on, mended; 0 where one is lost.

    Most rows have no pixel to be mended: to look first, and then copy, takes half as long.
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
            i, j, state = _mend(field, source, (y, x0 + x), box)
            value[x] = field.image[i, j] if state & _LOST == 0 else 0.0


@njit(cache=True, nogil=True)
def _kron_radius(field, scratch, source, box, scale):  # type: ignore[no-untyped-def]
    """Give the first moment of the elliptical radius, in semi-axes; NaN beyond ``KRON_EXTENT``."""
    y0, x0, y1, x1 = box
    form, limit = (source.cxx, source.cxy, source.cyy), scale * scale
    moment, total = 0.0, 0.0
    for y in range(y0, y1):
        dy = y - source.y
        first, end = _clip_span(_span(form, dy, limit, 1.0), source.x, x0, x1)
        n = max(end - first, 0)
        mass, radius = scratch.wave[:n], scratch.inside[:n]
        _mend_row(field, source, (y, first), box, mass)
        for k in range(n):
            dx = first + k - source.x
            r2 = source.cxx * dx * dx + source.cxy * dx * dy + source.cyy * dy * dy
            radius[k] = np.sqrt(max(r2, 0.0))
            mass[k] = mass[k] if r2 <= limit else 0.0
        for k in range(n):
            moment += mass[k] * radius[k]
            total += mass[k]
    if moment <= 0 or total <= 0:
        return KRON_LEAST
    return np.nan if moment / total > KRON_EXTENT else max(moment / total, KRON_LEAST)


class _Ellipse(NamedTuple):
    """An ellipse about the origin, cut by rows and columns.

    A row at y cuts it at ``lean y -+ wide sqrt(1 - (y / height)**2)``, a column at x at
    ``tilt x -+ tall sqrt(1 - (x / width)**2)``.
    """

    width: float
    height: float
    lean: float
    wide: float
    tilt: float
    tall: float


@njit(cache=True, nogil=True)
def _ellipse_flux(field, source, box, scale):  # type: ignore[no-untyped-def]
    """Give flux, error and flag bits of the source's ellipse times ``scale``.

    A row of pixels cuts a strip from the ellipse; the share of a pixel is what lies in the strip to
    the left of its right side, less what lies to the left of its left side.
    """
    y0, x0, y1, x1 = box
    ellipse = _cut_ellipse(source, scale)
    flux, variance, area, foreign, spoilt = 0.0, 0.0, 0.0, 0.0, False
    for y in range(y0, y1):
        strip = _cut_strip(ellipse, y - source.y - 0.5)
        if strip[1] <= strip[0]:
            continue
        first, end, low, high = _strip_ends(ellipse, strip, source.x, x0, x1)
        left = _area_left(ellipse, strip, first - 0.5 - source.x)
        for x in range(first, end):
            if low <= x < high:
                weight = strip[1] - strip[0]
            else:
                if x == high:
                    left = _area_left(ellipse, strip, x - 0.5 - source.x)
                right = _area_left(ellipse, strip, x + 0.5 - source.x)
                weight, left = right - left, right
            if weight > _LEAST_SHARE:
                i, j, state = _mend(field, source, (y, x), box)
                if state & _LOST == 0:
                    noise = np.float64(field.noise[i, j])
                    flux += weight * np.float64(field.image[i, j])
                    variance += weight * (noise * noise)
                area += weight
                spoilt = spoilt or (state & _SPOILT) != 0
                if state != _INSIDE:
                    foreign += weight
    bits = np.int32(_CROWDED) if foreign > NEIGHBOUR_SHARE * area else np.int32(0)
    if spoilt or area < (1 - 1e-9) * np.pi * source.a * source.b * (scale * scale):
        bits |= np.int32(_INCOMPLETE)
    return flux, np.sqrt(variance), bits


_LEAST_SHARE = 1e-11
"""Share of a pixel below which it is a rounding error of a strip's areas."""


@njit(cache=True, nogil=True, forceinline=True)
def _cut_ellipse(source, scale):  # type: ignore[no-untyped-def]
    """Give the source's ellipse times ``scale``, about its centroid."""
    width, height = _ellipse_extent(source, scale)
    xx, xy, yy = source.cxx, 0.5 * source.cxy, source.cyy
    return _Ellipse(width, height, -xy / xx, scale / np.sqrt(xx), -xy / yy, scale / np.sqrt(yy))


@njit(cache=True, nogil=True, forceinline=True)
def _cut_strip(ellipse, y):  # type: ignore[no-untyped-def]
    """Give where the strip [y, y + 1) of an ellipse begins and ends, and `_half_area` there."""
    low, high = max(y, -ellipse.height), min(y + 1, ellipse.height)
    if high <= low:
        return low, low, 0.0, 0.0
    return low, high, _half_area(ellipse, low), _half_area(ellipse, high)


@njit(cache=True, nogil=True, forceinline=True)
def _half_area(ellipse, y):  # type: ignore[no-untyped-def]
    """Give half the ellipse's area between rows 0 and y; negative below 0."""
    v = y / ellipse.height
    return 0.5 * ellipse.wide * (y * np.sqrt(max(1 - v * v, 0.0)) + ellipse.height * np.arcsin(v))


@njit(cache=True, nogil=True, forceinline=True)
def _strip_ends(ellipse, strip, x, x0, x1):  # type: ignore[no-untyped-def]
    """Give the pixels [first, end) of a row that a strip touches, and those that it fills, [low, high)."""
    height, lean, wide = ellipse.height, ellipse.lean, ellipse.wide
    v, w = strip[0] / height, strip[1] / height
    half0, half1 = wide * np.sqrt(max(1 - v * v, 0.0)), wide * np.sqrt(max(1 - w * w, 0.0))
    middle0, middle1 = lean * strip[0] + x + 0.5, lean * strip[1] + x + 0.5
    least, most = min(middle0 - half0, middle1 - half1), max(middle0 + half0, middle1 + half1)
    # Where it is widest it may be between the two rows.
    extreme = lean * height * height / ellipse.width
    if strip[0] < extreme < strip[1]:
        most = x + 0.5 + ellipse.width
    if strip[0] < -extreme < strip[1]:
        least = x + 0.5 - ellipse.width
    first, end = max(int(np.floor(least)), x0), min(int(np.floor(most)) + 1, x1)
    low = max(int(np.ceil(max(middle0 - half0, middle1 - half1))), first)
    high = min(int(np.floor(min(middle0 + half0, middle1 + half1))), end)
    return first, end, low, max(high, low)


@njit(cache=True, nogil=True, forceinline=True)
def _area_left(ellipse, strip, x):  # type: ignore[no-untyped-def]
    """Give the area of a strip of an ellipse to the left of x.

    The column at x meets the ellipse between two rows. Between them the area ends at x; beyond them
    it is the whole of the ellipse or nothing, as the tip there is on the left of x or not.
    """
    low, high, at_low, at_high = strip
    u = x / ellipse.width
    if u <= -1:
        return 0.0
    if u >= 1:
        return 2 * (at_high - at_low)
    half = ellipse.tall * np.sqrt(1 - u * u)
    start = min(max(ellipse.tilt * x - half, low), high)
    stop = min(max(ellipse.tilt * x + half, low), high)
    at_start = at_low if start == low else at_high if start == high else _half_area(ellipse, start)
    at_stop = at_high if stop == high else at_low if stop == low else _half_area(ellipse, stop)
    area = (stop - start) * (x - 0.5 * ellipse.lean * (start + stop)) + at_stop - at_start
    tip = ellipse.lean * ellipse.height
    if -tip < x:
        area += 2 * (at_start - at_low)
    if tip < x:
        area += 2 * (at_high - at_stop)
    return area


@njit(cache=True, nogil=True)
def _share(ellipse, y, x):  # type: ignore[no-untyped-def]
    """Give the share inside an ellipse of the pixel whose centre is at (y, x)."""
    strip = _cut_strip(ellipse, y - 0.5)
    return _area_left(ellipse, strip, x + 0.5) - _area_left(ellipse, strip, x - 0.5)


@njit(cache=True, nogil=True)
def _fraction_radius(field, scratch, source, box, goal):  # type: ignore[no-untyped-def]
    """Give the radius of the circle that holds a flux; NaN if none below a limit does.

    Light is concentrated: most circles are found among the pixels near the centre, so these are
    tried first.
    """
    limit, target = goal
    if not np.isfinite(target) or target == 0:
        return np.nan
    near = 2.0 * source.a + 4
    while True:
        part = _box_around((source.x, source.y), (near, near), box)
        whole = part == box
        _repair(field, scratch, source, box, part)
        rings = _sort_by_ring(scratch, source, box, part, 1 << 30 if whole else int(near))
        radius, found = _find_radius(scratch, (rings, limit, target))
        if found or whole:
            return radius
        near *= 2


@njit(cache=True, nogil=True)
def _find_radius(scratch, goal):  # type: ignore[no-untyped-def]
    """Give the radius of the circle that holds a flux, and whether the rings sufficed to tell."""
    rings, limit, target = goal
    sign = 1.0 if target > 0 else -1.0
    k = 1
    while k < rings and sign * (scratch.inside[k] - target) < 0:
        k += 1
    if k < rings:
        radius = _polish_radius(scratch, goal, k)
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
    return _bisect(scratch, (rings, sign, target), (low, f_low, high, f_high)), True


@njit(cache=True, nogil=True)
def _polish_radius(scratch, goal, k):  # type: ignore[no-untyped-def]
    """Give the radius of the circle that holds a flux, near ring k, by Newton's method.

    The flux grows with the radius by what lies along the circle. Gives 0 where Newton's steps run
    away (little light, noise), the circle is small, or the rings do not suffice.
    """
    rings, limit, target = goal
    inner, outer = scratch.inside[k - 1], scratch.inside[k]
    share = (target - inner) / (outer - inner)
    start = np.sqrt((k - 1) ** 2 + share * (2 * k - 1))
    radius = start
    for _ in range(12):
        if not _LEAST_CIRCLE <= radius <= min(limit, rings - 2) or abs(radius - start) > 1:
            break
        flux, slope = _grow_circle(scratch, radius)
        if slope * target <= 0:
            break
        step = (flux - target) / slope
        radius -= step
        if abs(step) < 1e-6:
            return radius
    return 0.0


_LEAST_CIRCLE = 1.5
"""Radius, px, from which a circle crosses a pixel above that pixel's lower edge; see `_crossed`."""


@njit(cache=True, nogil=True)
def _grow_circle(scratch, radius):  # type: ignore[no-untyped-def]
    """Give the flux in a circle about the centroid, and how fast it grows with the radius."""
    first = max(int(np.floor(radius - _HALF_DIAGONAL - 1e-6)), 0)
    last = int(radius + _HALF_DIAGONAL) + 1
    flux, along, disc = scratch.inside[first], 0.0, scratch.disc
    inner, outer = (radius - _HALF_DIAGONAL) ** 2, (radius + _HALF_DIAGONAL) ** 2
    for k in range(scratch.ring[first], scratch.ring[last]):
        dy, dx = abs(disc[k, 0]), abs(disc[k, 1])
        distance2 = dx * dx + dy * dy
        if distance2 <= inner:
            flux += disc[k, 2]
        elif distance2 < outer:
            area, angle = _crossed(min(dx, dy), max(dx, dy), radius)
            flux += area * disc[k, 2]
            along += angle * disc[k, 2]
    return flux, along * radius


@njit(cache=True, nogil=True, forceinline=True)
def _crossed(dx, dy, radius):  # type: ignore[no-untyped-def]
    """Give the area of a pixel inside a circle about the origin, and the angle of its arc there.

    The pixel's centre is (dx, dy), 0 <= dx <= dy: the circle's upper half, y(x), crosses it. Below
    the circle lie the columns |x| < ``near``, where it is above the pixel, in full, and those up to
    ``far``, where it falls below, in part.
    """
    r2, low, high = radius * radius, dy - 0.5, dy + 0.5
    if radius <= low:
        return 0.0, 0.0
    left, right = dx - 0.5, dx + 0.5
    near = np.sqrt(r2 - high * high) if radius > high else 0.0
    far = np.sqrt(r2 - low * low)
    area = max(min(right, near) - max(left, -near), 0.0)
    part, angle = _below_arc(max(left, near), min(right, far), r2, low)
    if left < -near:
        more, turn = _below_arc(max(-right, near), min(-left, far), r2, low)
        part += more
        angle += turn
    return area + part, angle


@njit(cache=True, nogil=True, forceinline=True)
def _below_arc(start, end, r2, low):  # type: ignore[no-untyped-def]
    """Give the area between y = low and a circle for x in [start, end], and the angle of the arc."""
    if end <= start:
        return 0.0, 0.0
    y0, y1 = np.sqrt(max(r2 - start * start, 0.0)), np.sqrt(max(r2 - end * end, 0.0))
    angle = np.arcsin(min((end * y0 - start * y1) / r2, 1.0))
    return 0.5 * (r2 * angle + end * y1 - start * y0) - low * (end - start), angle


@njit(cache=True, nogil=True)
def _bisect(scratch, goal, bracket):  # type: ignore[no-untyped-def]
    """Narrow a bracket by false position, the stale end halved (Illinois), to 1e-7 px."""
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
def _sort_by_ring(scratch, source, box, part, most):  # type: ignore[no-untyped-def]
    """Sort the pixels of a part of a box by distance from the centroid; give the number of rings.

    ``disc[ring[k]:ring[k + 1]]`` are the pixels (dy, dx, value) with k <= distance < k + 1;
    ``inside[k]`` is the flux of those nearer. There are at most ``most`` rings.
    """
    y0, x0, y1, x1 = part
    ring, inside, disc, number = scratch.ring, scratch.inside, scratch.disc, scratch.number
    rings = min(int(np.sqrt((y1 - y0) ** 2 + (x1 - x0) ** 2)) + 2, most)
    ring[: rings + 2] = 0
    inside[: rings + 1] = 0.0
    width = x1 - x0
    for y in range(y0, y1):
        numbers = number[(y - y0) * width : (y - y0 + 1) * width]
        for j in range(width):
            numbers[j] = int(np.sqrt((x0 + j - source.x) ** 2 + (y - source.y) ** 2))
        values = scratch.value[y - box[0], x0 - box[1] : x1 - box[1]]
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
                disc[to, 2] = scratch.value[y - box[0], x - box[1]]
                ring[k + 1] = to + 1
    return rings


@njit(cache=True, nogil=True)
def _circle_flux(scratch, rings, radius):  # type: ignore[no-untyped-def]
    """Give the flux in a circle about the centroid: whole rings, then pixels its edge may cross."""
    if radius <= 0:
        return 0.0
    circle = _Ellipse(radius, radius, 0.0, radius, 0.0, radius)
    first = min(max(int(np.floor(radius - _HALF_DIAGONAL - 1e-6)), 0), rings)
    last = min(int(radius + _HALF_DIAGONAL) + 1, rings)
    flux, disc = scratch.inside[first], scratch.disc
    for k in range(scratch.ring[first], scratch.ring[last]):
        flux += _share(circle, disc[k, 0], disc[k, 1]) * disc[k, 2]
    return flux


@njit(cache=True, nogil=True, forceinline=True)
def _window_sigma(half):  # type: ignore[no-untyped-def]
    """Give sigma of the window of a source with this half-light radius."""
    return max(half, 0.5) * 2 / 2.35


@njit(cache=True, nogil=True)
def _windowed_position(scratch, source, box, sigma):  # type: ignore[no-untyped-def]
    """Give the centroid in a window that moves with it; the isophotal one if that runs away.

    SExtractor moves the window by twice the shift until it rests. Newton's step comes to rest at
    the same place in half as many; it is taken where the shift falls in every direction.
    """
    x, y = source.x, source.y
    for _ in range(16):
        dx, dy, xx, xy, yy = _window_shift(scratch, box, (x, y), 4 * sigma, sigma)
        step_x, step_y = 2 * dx, 2 * dy
        # The shift falls by 1 - (spread of the light in the window) / sigma^2 a pixel.
        xx, xy, yy = 1 - xx, -xy, 1 - yy
        det = xx * yy - xy * xy
        if xx > _LEAST_FALL and yy > _LEAST_FALL and det > _LEAST_FALL * _LEAST_FALL:
            step_x, step_y = (yy * dx - xy * dy) / det, (xx * dy - xy * dx) / det
        x += step_x
        y += step_y
        u, v = x - source.x, y - source.y
        if not source.cxx * u * u + source.cxy * u * v + source.cyy * v * v <= 1:
            return source.x, source.y
        if dx * dx + dy * dy < 1e-8:
            break
    return x, y


_LEAST_FALL = 0.2


@njit(cache=True, nogil=True)
def _window_shift(scratch, box, centre, radius, sigma):  # type: ignore[no-untyped-def]
    """Give how far the window's centroid lies from its centre, and the spread of what is in it.

    (x, y, xx, xy, yy), px and squares of sigma; NaN without flux.
    """
    y0, x0, y1, x1 = _box_around(centre, (radius, radius), box)
    x, y = centre
    wave, slope = scratch.wave, -0.5 / (sigma * sigma)
    outer, inner = radius + 0.5, max(radius - 0.5, 0.0)
    for u in range(x0, x1):
        wave[u - x0] = np.exp((u - x) * (u - x) * slope)
    total, mx, my, xx, xy, yy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(y0, y1):
        dy, pixels = v - y, scratch.value[v - box[0]]
        first, end = _clip_span(_span(_CIRCLE, dy, outer * outer, 0.0), x, x0, x1)
        low, high = _clip_span(_span(_CIRCLE, dy, inner * inner, 0.0), x, first, end)
        if low >= high:
            low, high = end, end
        row, across, wide = 0.0, 0.0, 0.0
        for u in range(low, high):
            mass, dx = wave[u - x0] * pixels[u - box[1]], u - x
            row += mass
            across += mass * dx
            wide += mass * dx * dx
        # The window is 3e-4 at its edge: a straight one is exact enough.
        for start, stop in ((first, low), (high, end)):
            for u in range(start, stop):
                dx = u - x
                mass = wave[u - x0] * pixels[u - box[1]] * (outer - np.sqrt(dx * dx + dy * dy))
                row += mass
                across += mass * dx
                wide += mass * dx * dx
        factor = np.exp(dy * dy * slope)
        total += factor * row
        mx += factor * across
        my += factor * row * dy
        xx += factor * wide
        xy += factor * across * dy
        yy += factor * row * dy * dy
    if total <= 0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    dx, dy, square = mx / total, my / total, sigma * sigma
    xx, xy, yy = xx / total - dx * dx, xy / total - dx * dy, yy / total - dy * dy
    return dx, dy, xx / square, xy / square, yy / square


LAST_KERNEL: Any = _measure_all
"""Of those of a run, the one that is called last."""
