"""Basins and passes of one tile: watershed by steepest ascent on its pixels.

A tile reads its core and one pixel more on each side. So the steepest neighbour of each core pixel, and
each pass whose lower pixel is in the core, are those of the whole image::

      h h h h h h      h  halo: read, not written
      h c c c c h      c  core
      h c c 7 8 h      7  climbs to 8, and 8 to the halo pixel 9: both belong to the *ghost* 9,
      h c c c c 9         whose peak is known to another tile
      h h h h h h

Only a few core pixels can be the lower pixel of a pass. A pixel can be one only if its higher neighbours
(its *upper link*) have two or more connected components; the pixels of one component are already joined
above it. A table of all 256 patterns finds these pixels::

      + + .     one component: p is on a slope       + . +     three components: p may be the lower
      + p .                                          . p .     pixel of two passes; the component of its
      . . .                                          . + .     steepest neighbour is in its own basin

There are a few passes for each peak. All later steps work on tables of branches and passes, not on
pixels; see `fcnpipe.science.merge_tree`.
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
    Border,
    BranchGraph,
    Criterion,
    Links,
    Nodes,
    PendingBranches,
    contract,
    invert_index,
    kernel,
    tabulate,
    take_rows,
)
from fcnpipe.science.pixel_order import INDEX_BITS, NEIGHBOURS, pixel_key
from fcnpipe.science.source_selection import Selection, label_segments, select

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SeparatedTile:
    """Segments of a tile, and the records that join it with other tiles."""

    segments: Int32
    """(h, w) int32, segment of each core pixel, 1 to n; 0 is background."""
    graph: BranchGraph
    """Branches that are open at the seams, for `fcnpipe.science.merge_tree.join`."""
    pending: PendingBranches
    """Record for `fcnpipe.science.merge_tree.tabulate`; item i is segment i + 1."""


def separate(
    elevation: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    core: Box,
    shape: tuple[int, int],
    criterion: Criterion,
    weights: Int64 | None = None,
) -> SeparatedTile:
    """Divide the foreground of a tile into segments.

    Parameters
    ----------
    elevation : (h, w) uint16
        Elevation over ``core`` grown by 1 px on each side and clipped to the image.
    mask : (h, w) bool
        True where a pixel is foreground; the same box.
    core : Box
        Pixels of the tile.
    shape : (int, int)
        Height and width of the whole image.
    criterion : Criterion
        Minimum values of a branch that stays a source.
    weights : (h, w) int64, optional
        Flux of each pixel, >= 0; required if ``criterion.mincont_ppm`` > 0. The sum over a footprint
        must be below 2**62.

    Returns
    -------
    SeparatedTile
        Segments, and the records for the other tiles. A segment is a set of basins that certainly belong
        to one source.

    Raises
    ------
    PlanError
        If the arrays do not have the shape of the grown core, weights are required and missing, or the
        image has too many pixels.
    """
    read = core.grow(1).clip(Box(0, 0, *shape))
    _check(elevation, mask, read, shape, criterion.mincont_ppm > 0 and weights is None)
    inner = read.within(core.grow(1))
    height = np.zeros(core.grow(1).shape, np.int32)
    _fill_height(elevation, mask, height[inner])
    forest, nodes, links = _find_basins(height, core, shape[1])
    if weights is not None:
        _add_flux(forest[1:-1, 1:-1], np.asarray(weights[core.within(read)], np.int64), nodes.flux)
    border = _find_border(height, forest, core, shape[1])
    raw = BranchGraph(core, shape[1], nodes, links, border)
    graph, pending = contract(raw, np.arange(len(nodes.peak_key), dtype=np.int32), criterion)
    return _number_segments(forest, nodes.area, graph, pending)


def separate_whole(
    elevation: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    criterion: Criterion,
    weights: Int64 | None = None,
    minpeak: int = 0,
    broad: int | None = None,
) -> tuple[Int32, Selection]:
    """Separate an image that fits into memory: one tile, without seams.

    Parameters
    ----------
    elevation : (h, w) uint16
        Elevation of the whole image.
    mask : (h, w) bool
        True where a pixel is foreground.
    criterion : Criterion
        Minimum values of a branch that stays a source; ``minarea`` applies to sources too.
    weights : (h, w) int64, optional
        Flux of each pixel, as for `separate`.
    minpeak, broad : int, optional
        As for `fcnpipe.science.source_selection.select`.

    Returns
    -------
    labels : (h, w) int32
        Label of each pixel; 0 is background.
    selection : Selection
        Sources; row i has label i + 1.
    """
    frame = Box(0, 0, *mask.shape)
    tile = separate(elevation, mask, frame, mask.shape, criterion, weights)
    table = tabulate(tile.pending, NONE_RESOLVED, criterion)
    selection = select([table], criterion.minarea, minpeak, broad)
    return label_segments(table, selection)[tile.segments], selection


def _check(
    elevation: Any, mask: Any, read: Box, shape: tuple[int, int], lacks_weights: bool
) -> None:
    if not elevation.shape == mask.shape == read.shape:
        raise PlanError(
            f"elevation {elevation.shape} and mask {mask.shape} must cover {read} {read.shape}: "
            "read the core and 1 px more on each side, clipped to the image"
        )
    if shape[0] * shape[1] >= 1 << INDEX_BITS:
        raise PlanError(f"image of {shape} has 2**{INDEX_BITS} pixels or more: divide it")
    if lacks_weights:
        raise PlanError("mincont > 0 needs weights: pass the flux of each pixel, or mincont 0")


def _find_basins(height: Int32, core: Box, width: int) -> tuple[Int32, Nodes, Links]:
    """Return the forest (minus the node, 1 to n, of each padded pixel), the nodes and the passes."""
    # Peaks are not adjacent to each other, and ghosts are in the halo.
    max_nodes = height.size // 4 + 4 * sum(height.shape)
    forest, node_places = np.zeros(height.shape, np.int32), np.empty(max_nodes, np.int32)
    saddles = np.empty(height.size, np.int32)
    area = np.zeros(max_nodes, np.int64)
    saddles = saddles[: _find_parents(height, forest, saddles)]
    n = _find_roots(height, forest, node_places, area)
    n, lower, direction, low, high = _find_passes(height, forest, saddles, node_places, n)
    peak_key, ghost = _place_keys(node_places[:n], height, core, width)
    own_row, flux = np.arange(n, dtype=np.int32), np.zeros(n, np.int64)
    nodes = Nodes(peak_key, ghost, own_row, np.full(n, -1, np.int32), flux, area[:n], flux, flux)
    level = _place_keys(lower, height, core, width)[0] + (7 - direction).astype(np.uint64)
    zeros = np.zeros(len(low), np.int64)
    return forest, nodes, Links(level, low, high, zeros, zeros)


def _place_keys(
    places: Int32, height: Int32, core: Box, width: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the keys of flat indices into the padded tile, and whether they are in the halo."""
    y, x = np.divmod(places.astype(np.int64), height.shape[1])
    halo = (y == 0) | (x == 0) | (y == height.shape[0] - 1) | (x == height.shape[1] - 1)
    index = (y + core.y0 - 1) * width + x + core.x0 - 1
    return pixel_key(height[y, x] - 1, index), halo


def _find_border(height: Int32, forest: Int32, core: Box, width: int) -> Border:
    """Return the core pixels with foreground neighbours in the halo."""
    rows, columns = height.shape
    y, x = np.meshgrid([1, rows - 2], np.arange(1, columns - 1))
    v, u = np.meshgrid(np.arange(2, rows - 2), [1, columns - 2])
    place = np.unique(np.append(y * columns + x, v * columns + u))
    y, x = np.divmod(place[height.reshape(-1)[place] > 0], columns)
    exits = np.zeros(len(y), np.uint8)
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        v, u = y + dy, x + dx
        halo = (v == 0) | (u == 0) | (v == rows - 1) | (u == columns - 1)
        exits |= (halo & (height[v, u] > 0)).astype(np.uint8) << np.uint8(direction)
    index = (y + core.y0 - 1) * width + x + core.x0 - 1
    return take_rows(Border(index, -forest[y, x] - 1, exits), exits > 0)


def _number_segments(
    forest: Int32, area: Int64, graph: BranchGraph, pending: PendingBranches
) -> SeparatedTile:
    """Merge the basins that share a row into one segment, and number the segments from 1."""
    seen = area > 0  # a ghost that is only on the other side of a pass has no pixels here
    sums = np.zeros(len(pending.branches.peak_key), np.int64)
    np.add.at(sums, pending.rows, area)
    rows = np.flatnonzero(sums).astype(np.int32)
    number = invert_index(rows, len(sums)) + np.int32(1)
    table = np.append(np.int32(0), np.where(seen, number[pending.rows], np.int32(0)))
    kept = PendingBranches(pending.branches, rows, sums[rows], np.array([0, len(rows)]))
    return SeparatedTile(_map_nodes(forest, table), graph, kept)


def _component_table() -> NDArray[np.uint8]:
    """Return, for each pattern of higher neighbours, the first direction in the component of each direction."""
    first = np.tile(np.arange(8, dtype=np.uint8), (256, 1))
    for pattern in range(256):
        higher = [d for d in range(8) if pattern >> d & 1]
        for _ in range(4):
            for a in higher:
                near = [b for b in higher if _are_adjacent(NEIGHBOURS[a], NEIGHBOURS[b])]
                first[pattern, a] = min(first[pattern, b] for b in near)
    return first


def _are_adjacent(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1


# The kernels below keep the values of these tables and of NEIGHBOURS in their cache. That is safe,
# because they never change: stored levels and exits contain directions.

UPPER_COMPONENT = _component_table()
"""(256, 8) uint8: pattern of higher neighbours, direction -> first direction in the same component."""
MAY_BE_SADDLE = np.array(
    [len({UPPER_COMPONENT[p, d] for d in range(8) if p >> d & 1}) > 1 for p in range(256)]
)
"""(256,) bool: whether the higher neighbours have two or more components."""


@kernel
def _fill_height(elevation: NDArray[np.uint16], mask: NDArray[np.bool_], height: Int32) -> None:
    """Write elevation + 1 into ``height``, or 0 outside the mask."""
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            height[y, x] = (elevation[y, x] + 1) * mask[y, x]


@kernel
def _find_parents(height: Int32, forest: Int32, saddles: Int32) -> int:
    """Write 1 + the flat index of the parent of each core pixel, and the indices of possible saddles.

    Returns the number of possible saddles. A peak is its own parent.
    """
    columns = height.shape[1]
    flat, parent = height.reshape(-1), forest.reshape(-1)
    n = 0
    for y in range(1, height.shape[0] - 1):
        for p in range(y * columns + 1, (y + 1) * columns - 1):
            here = flat[p]
            if here == 0:
                continue
            # From the last direction to the first: of equal neighbours, the first in raster order wins.
            best, target, higher = here, p, 0
            for direction, offset in (
                (7, columns + 1),
                (6, columns),
                (5, columns - 1),
                (4, 1),
            ):
                there = flat[p + offset]
                higher |= (there > here) << direction
                if there > here and there >= best:
                    best, target = there, p + offset
            for direction, offset in (
                (3, -1),
                (2, 1 - columns),
                (1, -columns),
                (0, -columns - 1),
            ):
                there = flat[p + offset]
                higher |= (there >= here) << direction
                if there >= best:
                    best, target = there, p + offset
            parent[p] = target + 1
            if MAY_BE_SADDLE[higher]:
                saddles[n] = p
                n += 1
    return n


@kernel
def _find_roots(height: Int32, forest: Int32, node_places: Int32, area: Int64) -> int:
    """Replace each parent by minus the number of the peak or ghost at the end of its path.

    Returns the number of nodes. Paths are compressed, so each pixel is visited a few times only.
    """
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
                node_places[n] = last
                n += 1
                parent[last] = -n
            number, q = parent[last], p
            while parent[q] > 0:
                parent[q], q = number, parent[q] - 1
            area[-number - 1] += 1
    return n


@kernel
def _find_passes(
    height: Int32, forest: Int32, saddles: Int32, node_places: Int32, n: int
) -> tuple[int, Int32, NDArray[np.uint8], Int32, Int32]:
    """Return the number of nodes, and the lower pixel, direction up and both nodes of each pass."""
    flat, number = height.reshape(-1), forest.reshape(-1)
    columns, m = height.shape[1], 0
    lower, direction = np.empty(4 * len(saddles), np.int32), np.empty(4 * len(saddles), np.uint8)
    low, high = np.empty(4 * len(saddles), np.int32), np.empty(4 * len(saddles), np.int32)
    for p in saddles:
        higher, steepest, best = 0, 0, 0
        for d in range(8):
            there = flat[p + NEIGHBOURS[d][0] * columns + NEIGHBOURS[d][1]]
            higher |= (there > flat[p] or (d < 4 and there == flat[p])) << d
            if there > best:
                steepest, best = d, there
        for d in range(8):
            if (
                not higher >> d & 1
                or UPPER_COMPONENT[higher, d] != d
                or d == UPPER_COMPONENT[higher, steepest]
            ):
                continue
            q = p + NEIGHBOURS[d][0] * columns + NEIGHBOURS[d][1]
            if number[q] == 0:  # a halo pixel to which no core pixel climbs
                node_places[n] = q
                n += 1
                number[q] = -n
            if number[p] != number[q]:
                lower[m], direction[m] = p, d
                low[m], high[m] = -number[p] - 1, -number[q] - 1
                m += 1
    return n, lower[:m], direction[:m], low[:m], high[:m]


@kernel
def _add_flux(forest: Int32, weights: Int64, flux: Int64) -> None:
    """Add the weight of each core pixel to the flux of its node."""
    for y in range(forest.shape[0]):
        for x in range(forest.shape[1]):
            if forest[y, x] < 0:
                flux[-forest[y, x] - 1] += weights[y, x]


@kernel
def apply_table(segments: Int32, table: Int32) -> Int32:
    """Return the table's value for the segment of each pixel, (h, w) int32."""
    mapped = np.empty(segments.shape, np.int32)
    for y in range(segments.shape[0]):
        for x in range(segments.shape[1]):
            mapped[y, x] = table[segments[y, x]]
    return mapped


@kernel
def _map_nodes(forest: Int32, table: Int32) -> Int32:
    """Return the table's value for the node of each core pixel."""
    segments = np.empty((forest.shape[0] - 2, forest.shape[1] - 2), np.int32)
    for y in range(segments.shape[0]):
        for x in range(segments.shape[1]):
            segments[y, x] = table[-forest[y + 1, x + 1]]
    return segments
