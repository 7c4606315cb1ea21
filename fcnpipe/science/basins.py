"""Basins and passes of one tile: from pixels to a merge tree.

A tile looks at its core and one pixel more on each side, so that the steepest neighbour of each
core pixel, and each pass whose lower pixel lies in the core, are those of the whole image::

      h h h h h h     h  halo: read, never written
      h c c c c h     c  core
      h c 7 8 c h        7 climbs to 8, 8 to the halo pixel 9: both belong to the *ghost* 9,
      h c c c 9 h        whose peak another tile knows
      h h h h h h

A pixel can only be the lower end of a pass that matters if its higher neighbours fall into two or
more groups that do not touch each other: those of one group are joined above it already. A table
of the 256 patterns finds these pixels, a few for each peak; everything after is small.

How the tree is contracted and joined over tiles: `fcnpipe.science.merge_tree`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import PlanError
from fcnpipe.core.geometry import Box
from fcnpipe.science.merge_tree import (
    NONE_RESOLVED,
    BranchGraph,
    Criterion,
    Links,
    Nodes,
    PendingBranches,
    Ring,
    contract,
    kernel,
    numbering,
    tabulate,
    take,
)
from fcnpipe.science.pixel_order import INDEX_BITS, NEIGHBOURS, pixel_key
from fcnpipe.science.source_selection import Selection, relabel, select

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SeparatedTile:
    """What one tile gives."""

    segments: Int32
    """Segment of each core pixel, 1 to n in this tile; 0 is background."""
    graph: BranchGraph
    """What is open at the tile's seams; goes up."""
    settlement: PendingBranches
    """What the tile keeps to make its table when the verdicts come down; row i is segment i + 1."""


def separate(
    elevation: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    core: Box,
    shape: tuple[int, int],
    criterion: Criterion,
    weights: Int64 | None = None,
) -> SeparatedTile:
    """Divide the foreground of a tile into segments, and give what its neighbours must know.

    Parameters
    ----------
    elevation : (h, w) uint16
        The map to climb, over ``core`` grown by 1 px on each side and clipped to the image.
    mask : (h, w) bool
        True is foreground.
    core : Box
        What the tile answers for.
    shape : (int, int)
        Height and width of the whole image.
    criterion : Criterion
        Which branches stay sources.
    weights : (h, w) int64, optional
        Flux of each pixel, >= 0; needed if ``criterion.mincont_ppm`` > 0. The sum over a footprint
        must stay below 2**62.

    Raises
    ------
    PlanError
        If the arrays do not have the shape of the grown core, or weights are needed and missing.
    """
    read = core.grow(1).clip(Box(0, 0, *shape))
    _check(elevation, mask, read, shape, criterion.mincont_ppm > 0 and weights is None)
    inner = read.within(core.grow(1))
    height = np.zeros(core.grow(1).shape, np.int32)
    _raise(elevation, mask, height[inner])
    forest, nodes, links = _survey(height, core, shape[1])
    if weights is not None:
        _add_flux(forest[1:-1, 1:-1], np.asarray(weights[core.within(read)], np.int64), nodes.flux)
    ring = _ring(height, forest, core, shape[1])
    raw = BranchGraph(core, shape[1], nodes, links, ring)
    graph, settlement = contract(raw, np.arange(len(nodes.top), dtype=np.int32), criterion)
    return _number_segments(forest, nodes.area, graph, settlement)


def separate_whole(
    elevation: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    criterion: Criterion,
    weights: Int64 | None = None,
    minpeak: int = 0,
    broad: int | None = None,
) -> tuple[Int32, Selection]:
    """Give the label image and the sources of an image that fits into memory.

    Parameters are those of `separate`, and `minpeak` and `broad` of `fcnpipe.science.source_selection.select`; the
    area filter is ``criterion.minarea``. Row i of the selection has label i + 1.
    """
    frame = Box(0, 0, *mask.shape)
    leaf = separate(elevation, mask, frame, mask.shape, criterion, weights)
    table = tabulate(leaf.settlement, NONE_RESOLVED, criterion)
    selection = select([table], criterion.minarea, minpeak, broad)
    return relabel(table, selection)[leaf.segments], selection


def _check(elevation: Any, mask: Any, read: Box, shape: tuple[int, int], bare: bool) -> None:
    if not elevation.shape == mask.shape == read.shape:
        raise PlanError(
            f"elevation {elevation.shape} and mask {mask.shape} must cover {read} {read.shape}: "
            "read the core and 1 px more on each side, clipped to the image"
        )
    if shape[0] * shape[1] >= 1 << INDEX_BITS:
        raise PlanError(f"image of {shape} has more than 2**{INDEX_BITS} pixels: cut it up")
    if bare:
        raise PlanError("mincont > 0 needs weights: give the flux of each pixel, or mincont 0")


def _survey(height: Int32, core: Box, width: int) -> tuple[Int32, Nodes, Links]:
    """Give nodes, passes, and the forest: minus the node, 1 to n, of each padded pixel."""
    most = height.size // 4 + 4 * sum(height.shape)  # peaks do not touch; ghosts lie in the halo
    forest, tops = np.zeros(height.shape, np.int32), np.empty(most, np.int32)
    saddles = np.empty(height.size, np.int32)
    area = np.zeros(most, np.int64)
    saddles = saddles[: _climb(height, forest, saddles)]
    n = _trace(height, forest, tops, area)
    n, lower, direction, low, high = _find_passes(height, forest, saddles, tops, n)
    top, ghost = _keys(tops[:n], height, core, width)
    alone, flux = np.arange(n, dtype=np.int32), np.zeros(n, np.int64)
    nodes = Nodes(top, ghost, alone, np.full(n, -1, np.int32), flux, area[:n], flux, flux)
    level = _keys(lower, height, core, width)[0] + (7 - direction).astype(np.uint64)
    nothing = np.zeros(len(low), np.int64)
    return forest, nodes, Links(level, low, high, nothing, nothing)


def _keys(
    places: Int32, height: Int32, core: Box, width: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Give the keys of flat padded places, and whether they lie in the halo."""
    y, x = np.divmod(places.astype(np.int64), height.shape[1])
    halo = (y == 0) | (x == 0) | (y == height.shape[0] - 1) | (x == height.shape[1] - 1)
    index = (y + core.y0 - 1) * width + x + core.x0 - 1
    return pixel_key(height[y, x] - 1, index), halo


def _ring(height: Int32, forest: Int32, core: Box, width: int) -> Ring:
    """Give the core's pixels with foreground neighbours in the halo."""
    rows, columns = height.shape
    y, x = np.meshgrid([1, rows - 2], np.arange(1, columns - 1))
    v, u = np.meshgrid(np.arange(2, rows - 2), [1, columns - 2])
    place = np.unique(np.append(y * columns + x, v * columns + u))
    y, x = np.divmod(place[height.reshape(-1)[place] > 0], columns)
    doors = np.zeros(len(y), np.uint8)
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        v, u = y + dy, x + dx
        halo = (v == 0) | (u == 0) | (v == rows - 1) | (u == columns - 1)
        doors |= (halo & (height[v, u] > 0)).astype(np.uint8) << np.uint8(direction)
    index = (y + core.y0 - 1) * width + x + core.x0 - 1
    return take(Ring(index, -forest[y, x] - 1, doors), doors > 0)


def _number_segments(
    forest: Int32, area: Int64, graph: BranchGraph, settlement: PendingBranches
) -> SeparatedTile:
    """Merge the basins that go the same way, and number what is left from 1."""
    seen = area > 0  # a ghost that only lies across a pass has no pixels here
    sums = np.zeros(len(settlement.fates.top), np.int64)
    np.add.at(sums, settlement.rows, area)
    rows = np.flatnonzero(sums).astype(np.int32)
    number = numbering(rows, len(sums)) + np.int32(1)
    table = np.append(np.int32(0), np.where(seen, number[settlement.rows], np.int32(0)))
    kept = PendingBranches(settlement.fates, rows, sums[rows], np.array([0, len(rows)]))
    return SeparatedTile(_paint(forest, table), graph, kept)


def _group_table() -> NDArray[np.uint8]:
    """Give, for each pattern of higher neighbours, the first direction of each one's group."""
    first = np.tile(np.arange(8, dtype=np.uint8), (256, 1))
    for pattern in range(256):
        ups = [d for d in range(8) if pattern >> d & 1]
        for _ in range(4):
            for a in ups:
                near = [b for b in ups if _touch(NEIGHBOURS[a], NEIGHBOURS[b])]
                first[pattern, a] = min(first[pattern, b] for b in near)
    return first


def _touch(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1


GROUP = _group_table()
"""(256, 8) uint8: bit pattern of higher neighbours, direction -> least direction of its group."""
DIVIDED = np.array([len({GROUP[p, d] for d in range(8) if p >> d & 1}) > 1 for p in range(256)])
"""(256,) bool: whether the higher neighbours fall into two or more groups."""


@kernel
def _raise(elevation: NDArray[np.uint16], mask: NDArray[np.bool_], height: Int32) -> None:
    """Fill in elevation + 1, or 0 outside the mask."""
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            height[y, x] = (elevation[y, x] + 1) * mask[y, x]


@kernel
def _climb(height: Int32, forest: Int32, saddles: Int32) -> int:
    """Fill in 1 + the flat place that each core pixel climbs to, and the possible saddles."""
    columns = height.shape[1]
    flat, parent = height.reshape(-1), forest.reshape(-1)
    n = 0
    for y in range(1, height.shape[0] - 1):
        for p in range(y * columns + 1, (y + 1) * columns - 1):
            here = flat[p]
            if here == 0:
                continue
            # backwards in raster order, so that the first of equals wins
            best, goal, upper = here, p, 0
            for direction, offset in (
                (7, columns + 1),
                (6, columns),
                (5, columns - 1),
                (4, 1),
            ):
                there = flat[p + offset]
                upper |= (there > here) << direction
                if there > here and there >= best:
                    best, goal = there, p + offset
            for direction, offset in (
                (3, -1),
                (2, 1 - columns),
                (1, -columns),
                (0, -columns - 1),
            ):
                there = flat[p + offset]
                upper |= (there >= here) << direction
                if there >= best:
                    best, goal = there, p + offset
            parent[p] = goal + 1
            if DIVIDED[upper]:
                saddles[n] = p
                n += 1
    return n


@kernel
def _trace(height: Int32, forest: Int32, tops: Int32, area: Int64) -> int:
    """Replace each place by minus the number of the peak or ghost where its path ends."""
    parent, n = forest.reshape(-1), 0
    columns = height.shape[1]
    for y in range(1, height.shape[0] - 1):
        for p in range(y * columns + 1, (y + 1) * columns - 1):
            if parent[p] == 0:
                continue
            last = p
            while parent[last] > 0 and parent[last] != last + 1:
                last = parent[last] - 1
            if parent[last] >= 0:
                tops[n] = last
                n += 1
                parent[last] = -n
            number, q = parent[last], p
            while parent[q] > 0:
                parent[q], q = number, parent[q] - 1
            area[-number - 1] += 1
    return n


@kernel
def _find_passes(
    height: Int32, forest: Int32, saddles: Int32, tops: Int32, n: int
) -> tuple[int, Int32, NDArray[np.uint8], Int32, Int32]:
    """Give the number of nodes, and lower place, direction up and both nodes of each pass."""
    flat, number = height.reshape(-1), forest.reshape(-1)
    columns, m = height.shape[1], 0
    lower, direction = np.empty(4 * len(saddles), np.int32), np.empty(4 * len(saddles), np.uint8)
    low, high = np.empty(4 * len(saddles), np.int32), np.empty(4 * len(saddles), np.int32)
    for p in saddles:
        upper, steepest, best = 0, 0, 0
        for d in range(8):
            there = flat[p + NEIGHBOURS[d][0] * columns + NEIGHBOURS[d][1]]
            upper |= (there > flat[p] or (d < 4 and there == flat[p])) << d
            if there > best:
                steepest, best = d, there
        for d in range(8):
            if not upper >> d & 1 or GROUP[upper, d] != d or d == GROUP[upper, steepest]:
                continue
            q = p + NEIGHBOURS[d][0] * columns + NEIGHBOURS[d][1]
            if number[q] == 0:  # a halo pixel that none of the core climbs to
                tops[n] = q
                n += 1
                number[q] = -n
            if number[p] != number[q]:
                lower[m], direction[m] = p, d
                low[m], high[m] = -number[p] - 1, -number[q] - 1
                m += 1
    return n, lower[:m], direction[:m], low[:m], high[:m]


@kernel
def _add_flux(forest: Int32, weights: Int64, flux: Int64) -> None:
    for y in range(forest.shape[0]):
        for x in range(forest.shape[1]):
            if forest[y, x] < 0:
                flux[-forest[y, x] - 1] += weights[y, x]


@kernel
def apply_table(segments: Int32, table: Int32) -> Int32:
    """Give each pixel of a tile what a table has for its segment, (h, w)."""
    painted = np.empty(segments.shape, np.int32)
    for y in range(segments.shape[0]):
        for x in range(segments.shape[1]):
            painted[y, x] = table[segments[y, x]]
    return painted


@kernel
def _paint(forest: Int32, table: Int32) -> Int32:
    """Give the core's segments."""
    segments = np.empty((forest.shape[0] - 2, forest.shape[1] - 2), np.int32)
    for y in range(segments.shape[0]):
        for x in range(segments.shape[1]):
            segments[y, x] = table[-forest[y + 1, x + 1]]
    return segments
