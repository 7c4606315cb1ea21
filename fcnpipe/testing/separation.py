"""Reference implementation of the separation, its tiled version over any tree of tiles, and the tests of separators.

A tree of tiles is a `Box` (a tile) or a list of trees whose boxes partition their hull.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.science.basins import SeparatedTile, separate
from fcnpipe.science.merge_tree import (
    MILLION,
    NONE_RESOLVED,
    BranchGraph,
    Criterion,
    PendingBranches,
    ResolvedBranches,
    join,
    resolve,
    tabulate,
)
from fcnpipe.science.pixel_order import NEIGHBOURS
from fcnpipe.science.source_selection import SourceTable, label_segments, select
from fcnpipe.separators import Separator

Tree: TypeAlias = "Box | list[Tree]"
Separate: TypeAlias = Callable[..., SeparatedTile]
"""`fcnpipe.science.basins.separate`, or a function to test in its place."""
Int64 = NDArray[np.int64]
_Pixel = tuple[int, int]


def true_sources(
    elevation: NDArray[np.uint16],
    mask: NDArray[np.bool_],
    criterion: Criterion,
    weights: Int64 | None = None,
) -> tuple[Int64, Int64]:
    """Compute the source and footprint of each pixel in plain Python, without tiles: the slow reference of tests.

    Parameters
    ----------
    elevation, mask, weights : (h, w) arrays
        The whole image, as for `fcnpipe.science.basins.separate`.
    criterion : Criterion
        Minimum values of a branch that stays a source.

    Returns
    -------
    source, footprint : (h, w) int64
        Global index of the peak of the source, and of the highest peak of the footprint; -1 is background.
    """
    truth = _Reference(
        elevation, mask, np.ones_like(elevation, np.int64) if weights is None else weights
    )
    basin = {p: truth.peak_of(p) for p in truth.pixels}
    deaths = truth.process_passes(basin, criterion)
    source, footprint = (np.full(mask.shape, -1, np.int64) for _ in range(2))
    for p, peak in basin.items():
        footprint[p] = truth.index(deaths.footprint[peak])
        while peak in deaths.absorber:
            peak = deaths.absorber[peak]
        source[p] = truth.index(peak)
    return source, footprint


class _Deaths:
    """Peak that absorbs each dead peak that is not a source, and highest peak of each peak's footprint."""

    def __init__(self) -> None:
        self.absorber: dict[_Pixel, _Pixel] = {}
        self.footprint: dict[_Pixel, _Pixel] = {}


class _Reference:
    """Basins, passes and merge tree of an image, computed with dictionaries of pixels."""

    def __init__(self, elevation: NDArray[Any], mask: NDArray[Any], weights: NDArray[Any]) -> None:
        self.elevation, self.weights, self.width = elevation, weights, mask.shape[1]
        self.pixels = {(int(y), int(x)) for y, x in np.argwhere(mask)}

    def index(self, p: _Pixel) -> int:
        return p[0] * int(self.width) + p[1]

    def key(self, p: _Pixel) -> tuple[int, int]:
        return int(self.elevation[p]), -self.index(p)

    def near(self, p: _Pixel) -> Iterator[_Pixel]:
        return (q for dy, dx in NEIGHBOURS if (q := (p[0] + dy, p[1] + dx)) in self.pixels)

    def peak_of(self, p: _Pixel) -> _Pixel:
        """Return the peak to which a pixel climbs."""
        while (up := max([p, *self.near(p)], key=self.key)) != p:
            p = up
        return p

    def passes(self, basin: dict[_Pixel, _Pixel]) -> list[tuple[Any, _Pixel, _Pixel]]:
        """Return level and both peaks of the highest pass between each two basins, the highest first."""
        best: dict[Any, Any] = {}
        for p in self.pixels:
            for q in self.near(p):
                if basin[p] != basin[q] and self.key(p) < self.key(q):
                    pair = tuple(sorted((basin[p], basin[q])))
                    best[pair] = max(best.get(pair, ((-1, 0), 0)), (self.key(p), -self.index(q)))
        return sorted(((level, a, b) for (a, b), level in best.items()), reverse=True)

    def process_passes(self, basin: dict[_Pixel, _Pixel], criterion: Criterion) -> _Deaths:
        """Join branches at their saddles, in descending order, and decide which ones stay sources."""
        passes, deaths = self.passes(basin), _Deaths()
        peaks = set(basin.values())
        area = {peak: sum(b == peak for b in basin.values()) for peak in peaks}
        flux = {a: sum(int(self.weights[p]) for p in basin if basin[p] == a) for a in peaks}
        whole = {peak: {peak} for peak in peaks}  # the peaks of the footprint of each peak
        for _, a, b in passes:
            whole |= dict.fromkeys(joined := whole[a] | whole[b], joined)
        branch = {peak: {peak} for peak in peaks}
        for ((saddle, _), _), a, b in passes:
            if branch[a] is branch[b]:
                continue
            if max(map(self.key, branch[a])) > max(map(self.key, branch[b])):
                a, b = b, a
            top = max(branch[a], key=self.key)
            total = sum(flux[peak] for peak in whole[a])
            size = sum(area[peak] for peak in branch[a])
            extended = 0 < criterion.extended <= size
            minimum = criterion.extended_dynamics if extended else criterion.dynamics
            stays = (
                int(self.elevation[top]) - saddle >= minimum
                and size >= criterion.minarea
                and sum(flux[peak] for peak in branch[a])
                >= Fraction(criterion.mincont_ppm, MILLION) * total
            )
            if not stays:
                deaths.absorber[top] = b
            branch |= dict.fromkeys(joined := branch[a] | branch[b], joined)
        deaths.footprint = {peak: max(whole[peak], key=self.key) for peak in peaks}
        return deaths


def tile_tree(grid: TileGrid, fan: tuple[int, int] = (2, 2)) -> Tree:
    """Return a tree over the tiles of a grid that joins ``fan`` rows and columns (>= 2) at a time."""
    rows, columns = grid.counts
    trees: list[list[Any]] = [[grid.tile(r, c).core for c in range(columns)] for r in range(rows)]
    while len(trees) > 1 or len(trees[0]) > 1:
        ys, xs = range(0, len(trees), fan[0]), range(0, len(trees[0]), fan[1])
        trees = [
            [[t for row in trees[y : y + fan[0]] for t in row[x : x + fan[1]]] for x in xs]
            for y in ys
        ]
    tree: Tree = trees[0][0]
    return tree


class TiledSeparation:
    """Separation over a tree of tiles; every record passes through flat arrays, as in a store.

    Parameters
    ----------
    elevation, mask, weights : (h, w) arrays
        The whole image.
    criterion : Criterion
        Minimum values of a branch that stays a source.
    separate : callable
        `fcnpipe.science.basins.separate`, or a function to test in its place.

    Attributes
    ----------
    tiles : list of (Box, segments, SourceTable)
        Core, segments and table of each tile, after `run`.
    graphs : list of BranchGraph
        Graph of each node of the tree, children first, after `run`.
    """

    def __init__(
        self,
        elevation: NDArray[np.uint16],
        mask: NDArray[np.bool_],
        criterion: Criterion,
        weights: Int64 | None = None,
        separate: Separate = separate,
    ) -> None:
        self.maps, self.criterion, self.separate = (elevation, mask, weights), criterion, separate
        self.frame = Box(0, 0, *mask.shape)
        self.tiles: list[tuple[Box, NDArray[np.int32], SourceTable]] = []
        self.graphs: list[BranchGraph] = []

    def run(self, tree: Tree) -> TiledSeparation:
        """Run the up-sweep and the down-sweep; return self."""
        self._descend(self._ascend(tree)[1], NONE_RESOLVED)
        return self

    def paint(self, column: str) -> Int64:
        """Return an image of a column of the tables, (h, w) int64."""
        image = np.full(self.frame.shape, -2, np.int64)
        for core, segments, table in self.tiles:
            image[core.slices] = getattr(table, column)[segments]
        return image

    def labels(
        self, minarea: int = 1, minpeak: int = 0, broad: int | None = None
    ) -> tuple[NDArray[np.int32], Any]:
        """Return the label image and the selection; parameters as in `select`."""
        selection = select((table for _, _, table in self.tiles), minarea, minpeak, broad)
        image = np.full(self.frame.shape, -1, np.int32)
        for core, segments, table in self.tiles:
            image[core.slices] = label_segments(table, selection)[segments]
        return image, selection

    def _ascend(self, tree: Tree) -> tuple[BranchGraph, Any]:
        if isinstance(tree, Box):
            elevation, mask, weights = (
                None if m is None else m[tree.grow(1).clip(self.frame).slices] for m in self.maps
            )
            tile = self.separate(elevation, mask, tree, self.frame.shape, self.criterion, weights)
            graph, pending, below = tile.graph, tile.pending, (tree, tile.segments)
        else:
            graphs, below = zip(*(self._ascend(child) for child in tree), strict=True)
            graph, pending = join(graphs, self.criterion)
        self.graphs.append(graph)
        return BranchGraph.from_arrays(graph.to_arrays()), (pending, below)

    def _descend(self, kept: Any, resolved: ResolvedBranches) -> None:
        pending = PendingBranches.from_arrays(kept[0].to_arrays())
        if isinstance(kept[1][0], Box):
            core, segments = kept[1]
            self.tiles.append((core, segments, tabulate(pending, resolved, self.criterion)))
            return
        for below, part in zip(kept[1], resolve(pending, resolved, self.criterion), strict=True):
            self._descend(below, part)


class SeparatorTests:
    """Tests that every separator must pass.

    A subclass defines a fixture ``separator`` that returns a `fcnpipe.separators.Separator`.
    """

    shape = (23, 31)

    def test_segments_cover_the_foreground(self, separator: Separator) -> None:
        """Each foreground pixel has a segment from 1 to n; all other pixels are 0."""
        elevation, mask = self._maps()
        tile = separator.separate(elevation, mask, Box(0, 0, *self.shape), self.shape)
        assert ((tile.segments > 0) == mask).all()
        assert tile.segments.dtype == np.int32
        assert len(np.unique(tile.segments[mask])) == tile.segments.max() == len(tile.pending.rows)

    def test_areas_are_those_of_the_segments(self, separator: Separator) -> None:
        """The pending branches have the number of pixels of each segment."""
        elevation, mask = self._maps()
        tile = separator.separate(elevation, mask, Box(0, 0, *self.shape), self.shape)
        assert (tile.pending.area == np.bincount(tile.segments[mask])[1:]).all()

    def test_nothing_is_open_in_a_whole_image(self, separator: Separator) -> None:
        """Without seams no node is passed up."""
        elevation, mask = self._maps()
        graph = separator.separate(elevation, mask, Box(0, 0, *self.shape), self.shape).graph
        assert not any(map(len, (*graph.nodes, *graph.links, *graph.border)))

    def test_tiling_is_invisible(self, separator: Separator) -> None:
        """Tiles of 1 px, strips and one tile have the same sources."""
        truth = self._sources(separator, (23, 31))
        for edge in ((1, 1), (3, 31), (23, 2), (8, 8), (7, 11)):
            np.testing.assert_array_equal(self._sources(separator, edge), truth)

    def test_an_empty_tile_is_no_trouble(self, separator: Separator) -> None:
        """A tile without foreground has no segments."""
        elevation, mask = self._maps()
        tile = separator.separate(elevation, mask & False, Box(0, 0, *self.shape), self.shape)
        assert not tile.segments.any()

    def _maps(self) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        rng = np.random.default_rng(5)
        elevation = rng.integers(0, 50, self.shape).astype(np.uint16)
        return elevation, rng.random(self.shape) < 0.7

    def _sources(self, separator: Separator, edge: tuple[int, int]) -> Int64:
        run = TiledSeparation(
            *self._maps(),
            separator.criterion,
            None,
            lambda e, m, core, shape, _, w: separator.separate(e, m, core, shape, w),
        )
        return run.run(tile_tree(TileGrid(self.shape, edge))).paint("source")
