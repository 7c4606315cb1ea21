r"""Merge tree of basins: which branches stay sources, decided tile by tile and joined over a quad-tree.

Definition
----------
The result is defined on the whole image; tiles do not occur in the definition.

1. *Order.* ``key(p) = (elevation(p), -index(p))`` is a strict total order of the pixels: there are
   neither ties nor plateaus.
2. *Basins.* Each foreground pixel climbs to its 8-neighbour with the greatest key, until it reaches
   a *peak*. The pixels that climb to one peak are its *basin* (watershed by steepest ascent).
3. *Passes.* A pass is a pair of adjacent pixels in two basins. Its level is the key of its lower
   pixel, then the position of its upper pixel, so that no two passes are equal. The highest pass
   between two branches is their *saddle*.
4. *Merge tree.* At first each basin is a *branch* of its own. Passes are processed in descending
   order, with union-find, as in Kruskal's algorithm. Where a pass joins two branches, the branch
   with the lower peak *dies*; the other one continues (the elder rule of persistent homology).
5. *Criterion.* A dead branch stays a source if it meets the `Criterion` at its saddle: its dynamics
   (persistence) peak - saddle, its area, and its flux as a part of the flux of the footprint. Else
   it is *absorbed*: the basin of its peak, and all basins that this basin has absorbed before,
   follow the basin on the other side of the pass. The highest peak of a footprint always stays.

::

    elevation   A                          A, B, C  peaks of three basins
               / \              C          s        saddle of A and B: B dies here, with dynamics B - s
              /   \    B       / \         t        saddle of C and the branch of A and B: C dies here,
             /     \  / \     /   \                 with dynamics C - t. If C is absorbed, its pixels
            /       s    \   /     \                follow the basin across t: B, or A if B was absorbed
           /              \ /       \
          /                t         \     A is the highest peak of the footprint and stays a source

Decisions in a part of the image
--------------------------------
::

        tile 1        seam        tile 2
     .--------------.  |  .--------------.        A  *closed*: none of its pixels has a foreground
     |  A ---e1-- B ===|=== b    C       |           neighbour outside the box (an *exit*)
     |  D -e2-'     |  |  |              |        B  *open*: it has an exit, or its peak is outside
     '--------------'  |  '--------------'           (a *ghost*, identified by the first pixel there)

Each box of tiles decides all that its own pixels can decide. No decision is ever revised, for these
reasons:

* All passes of a closed branch are known: a pass is found by the tile of its lower pixel, which
  reads all eight neighbours of it. When Kruskal's algorithm over the *known* passes reaches e1, then
  A is complete: its area and flux above e1 are exact, and e1 is its saddle.
* The known part of B is joined by passes above e1. The true peak of B is therefore at least as high
  as the highest peak or ghost pixel known in it. If that is higher than the peak of A, then A dies
  at e1. Otherwise nothing is decided: the pass and both nodes are passed up.
* An open branch never dies in the box, because it may be higher or larger than is known.

So the rule is: *of two branches that meet, the lower one dies if it is closed; otherwise the pass is
kept.* Three consequences for the records:

* A branch A that dies into an open branch B belongs to B below e1, but not above. It becomes a
  *deferred merge* of B at level e1, which carries the area and flux of A. Once the sums of B suffice
  for every limit of the criterion, further deferred merges are dropped.
* A pass between branches that higher known passes have joined already is in no merge tree. It is
  dropped.
* D, if it is absorbed at e2, follows the *basin* on the other side of e2, which may be A, dead
  already. A kept pass therefore names basins, and dead ones stay in the graph as long as a pass
  names them.

Sweeps over the quad-tree
-------------------------
::

             up-sweep                  kept by the box                down-sweep

       empty graph of the image                                     NONE_RESOLVED
                  ^                                                       v
            +-----------+                                           +-----------+
            |   join    |  ---------->  PendingBranches  ---------> |  resolve  |
            +-----------+                                           +-----------+
             ^         ^   BranchGraph            ResolvedBranches   v         v
    +----------+     +----------+                           +----------+     +----------+
    | separate |     | separate |  -->  PendingBranches  -> | tabulate |     | tabulate |
    +----------+     +----------+                           +----------+     +----------+
       tile 1           tile 2                                    v SourceTable    v

A box passes up the nodes with exits or ghosts (these grow with its perimeter), the few closed nodes
that are higher than all that is known of their open neighbours, and a spanning tree between them. If
``mincont`` > 0, the decision on a dead branch waits for the flux of the whole footprint, which comes
down with the resolved branches. Until then the branch is stored in the `PendingBranches` of its box
as (flux at death, basin on the other side).

All values are integers or totally ordered. The result does not depend on the tiles, the number of
children or the order of arrival.

References
----------
Watershed by steepest ascent: Meyer (1994), Signal Processing 38, 113. Dynamics: Grimaud (1992), Proc.
SPIE 1769, 292. Persistence and the elder rule: Edelsbrunner, Letscher & Zomorodian (2002), Discrete
Comput. Geom. 28, 511. Merge trees in parts: Morozov & Weber (2013), Distributed merge trees, PPoPP.
Contrast ``mincont``: DEBLEND_MINCONT of SExtractor (Bertin & Arnouts 1996), on exact instead of 32
levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import PlanError
from fcnpipe.core.geometry import Box
from fcnpipe.science.pixel_order import NEIGHBOURS, key_elevation, key_index
from fcnpipe.science.source_selection import NO_SOURCE, SourceTable

MILLION = 1_000_000
"""Denominator of fractions in parts per million."""

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Key = NDArray[np.uint64]
Flag = NDArray[np.bool_]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_Columns = TypeVar("_Columns", bound="tuple[NDArray[Any], ...]")


def kernel(function: _Function) -> _Function:
    """Compile a function of arrays; it releases the GIL and is cached on disk."""
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


class Criterion(NamedTuple):
    """Minimum values that a dead branch needs to stay a source; all integers."""

    dynamics: int = 0
    """Minimum elevation of the peak above the saddle, in units of the elevation map."""
    minarea: int = 1
    """Minimum number of pixels of the branch."""
    mincont_ppm: int = 0
    """Minimum fraction of the footprint's flux, in parts per million; 0 needs no flux."""
    flux_limit: int = 1 << 62
    """Upper limit on the flux of any footprint; a tight one saves memory in fields that percolate."""
    extended: int = 0
    """Minimum number of pixels of an extended branch; 0 if no branch counts as extended."""
    extended_dynamics: int = 0
    """``dynamics`` of an extended branch."""


# Nodes and Links are arguments of the kernels below and stay in their file: a cached kernel reads
# fields by position, and is not compiled again if another file changes.


class Nodes(NamedTuple):
    """Branches of a merge tree, one row each; a dead branch is kept only if a pass names it."""

    peak_key: Key
    """Key of the peak; of a ghost, key of the outside pixel to which it climbs."""
    ghost: Flag
    """Whether the peak is outside the box."""
    survivor: Int32
    """Row of the living node into which it died, directly or not; its own row if it lives."""
    absorber: Int32
    """Row of the basin across the pass at which it died; -1 if it lives or is certainly a source."""
    death_flux: Int64
    """Flux at death, or -1 if its dynamics or area did not suffice."""
    area: Int64
    """Number of pixels that belong to it at every level."""
    flux: Int64
    """Flux of these pixels."""
    total_flux: Int64
    """Flux of all that belongs to it at any level."""


class Links(NamedTuple):
    """Passes between nodes, and deferred merges; one row each."""

    level: Key
    """Key of the lower pixel plus 7 minus the direction of the upper pixel: unique."""
    low: Int32
    """Node of the lower pixel; of a deferred merge, the open node that the dead branch merged into."""
    high: Int32
    """Node of the upper pixel; -1 for a deferred merge."""
    area: Int64
    """Number of pixels of the dead branch of a deferred merge."""
    flux: Int64
    """Flux of the dead branch of a deferred merge."""


class Border(NamedTuple):
    """Pixels of a box with foreground neighbours outside the box, one row each."""

    pixel: Int64
    """Global index y * width + x."""
    node: Int32
    """Node that the pixel belongs to; always a living one."""
    exits: UInt8
    """Bit d is set if the neighbour in direction d is foreground outside the box."""


@dataclass(frozen=True, slots=True)
class BranchGraph:
    """Branches of a box that are still open; grows with the perimeter of the box, not with its area."""

    box: Box
    """Pixels that the graph covers."""
    width: int
    """Width of the whole image, px."""
    nodes: Nodes
    """Branches; the living ones come first."""
    links: Links
    """Passes between the branches, and deferred merges."""
    border: Border
    """Pixels at which branches continue outside the box."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return named flat arrays, for ``np.savez``."""
        place = np.array([self.box.y0, self.box.x0, self.box.y1, self.box.x1, self.width])
        return {
            "place": place,
            **_to_named_arrays("nodes", self.nodes),
            **_to_named_arrays("links", self.links),
            **_to_named_arrays("border", self.border),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> BranchGraph:
        """Return the graph from the result of `to_arrays`."""
        *corners, width = (int(value) for value in arrays["place"])
        return cls(
            Box(*corners),
            width,
            _from_named_arrays("nodes", Nodes, arrays),
            _from_named_arrays("links", Links, arrays),
            _from_named_arrays("border", Border, arrays),
        )


class ResolvedBranches(NamedTuple):
    """Final decisions on the living nodes of a graph, one row each."""

    source: Int64
    """Source that the basin of its peak belongs to: global index of the peak of that source."""
    footprint: Int64
    """Global index of the highest peak of its footprint."""
    flux: Int64
    """Flux of the whole footprint; 0 without weights."""


NONE_RESOLVED = ResolvedBranches(*(np.zeros(0, np.int64) for _ in ResolvedBranches._fields))
"""Input of the down-sweep at the root: the graph of the whole image has no open node."""


class BranchTable(NamedTuple):
    """Branches of a box that the down-sweep resolves, one row each."""

    peak_key: Key
    """As in `Nodes`."""
    survivor: Int32
    """As in `Nodes`."""
    absorber: Int32
    """As in `Nodes`."""
    death_flux: Int64
    """As in `Nodes`."""
    total_flux: Int64
    """As in `Nodes`; the flux of the footprint if the footprint is closed."""
    open_row: Int32
    """Row of the branch in the graph that was passed up; -1 if it is not a living node of it."""


@dataclass(frozen=True, slots=True)
class PendingBranches:
    """Record that a box keeps between the up-sweep and the down-sweep."""

    branches: BranchTable
    """Branches that the items belong to or may be absorbed by."""
    rows: Int32
    """Row in ``branches`` of each item to resolve: segments of a tile, or living nodes of the children."""
    area: Int64
    """Number of pixels of each item, in its own basins."""
    splits: Int64
    """Limits of the parts of ``rows`` that belong to each child; (0, len(rows)) for a tile."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return named flat arrays, for ``np.savez``."""
        return {
            "rows": self.rows,
            "area": self.area,
            "splits": self.splits,
            **_to_named_arrays("branches", self.branches),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> PendingBranches:
        """Return the record from the result of `to_arrays`."""
        plain = (arrays[name] for name in ("rows", "area", "splits"))
        return cls(_from_named_arrays("branches", BranchTable, arrays), *plain)


def join(
    graphs: Sequence[BranchGraph], criterion: Criterion
) -> tuple[BranchGraph, PendingBranches]:
    """Join the graphs of boxes that partition their hull, in any number, shape and order.

    Parameters
    ----------
    graphs : sequence of BranchGraph
        One for each child; the boxes partition their hull.
    criterion : Criterion
        The same for all boxes.

    Returns
    -------
    graph : BranchGraph
        Open branches of the hull.
    pending : PendingBranches
        Record to keep until ``graph`` is resolved; see `resolve`.

    Raises
    ------
    PlanError
        If the boxes do not fill their hull.
    """
    hull = _check_hull([graph.box for graph in graphs])
    width = graphs[0].width
    nodes, links, border, living = _concatenate_graphs(graphs)
    terminal = _resolve_ghosts(nodes, border)
    splits = np.cumsum([0, *(len(rows) for rows in living)])
    rows = np.concatenate(living)
    area = nodes.area[rows]
    nodes, number = _merge_ghosts(nodes, terminal)
    links = links._replace(low=number[links.low], high=_renumber(number, links.high))
    border = _remove_inner_exits(border._replace(node=number[border.node]), hull, width)
    graph, pending = contract(
        BranchGraph(hull, width, nodes, links, border), number[rows], criterion
    )
    return graph, PendingBranches(pending.branches, pending.rows, area, splits)


def resolve(
    pending: PendingBranches, resolved: ResolvedBranches, criterion: Criterion
) -> list[ResolvedBranches]:
    """Resolve the open branches of the children of a box, in the order in which they were joined.

    Parameters
    ----------
    pending : PendingBranches
        Record that `join` returned.
    resolved : ResolvedBranches
        Decisions on the living nodes of the graph that `join` returned; `NONE_RESOLVED` at the root.
    criterion : Criterion
        The same as in the up-sweep.

    Returns
    -------
    list of ResolvedBranches
        One for each child.
    """
    rows = _resolve_rows(pending, resolved, criterion)
    return [take_rows(rows, slice(a, b)) for a, b in pairwise(pending.splits.tolist())]


def tabulate(
    pending: PendingBranches, resolved: ResolvedBranches, criterion: Criterion
) -> SourceTable:
    """Return the source of each segment of a tile; parameters are those of `resolve`."""
    rows = _resolve_rows(pending, resolved, criterion)
    peak_key = pending.branches.peak_key[pending.rows]
    peak = np.where(key_index(peak_key) == rows.source, key_elevation(peak_key), -1)
    segments = SourceTable(rows.source, rows.footprint, pending.area, peak)
    background = SourceTable(*np.array([[NO_SOURCE], [NO_SOURCE], [0], [-1]]))
    return _concatenate([background, segments])


def contract(
    graph: BranchGraph, rows: Int32, criterion: Criterion
) -> tuple[BranchGraph, PendingBranches]:
    """Decide all that can be decided in a box, and return the branches that are still open.

    Parameters
    ----------
    graph : BranchGraph
        All nodes and known passes of the box.
    rows : (n,) int32
        Nodes whose source `resolve` or `tabulate` will return.
    criterion : Criterion
        The same for all boxes.

    Returns
    -------
    graph : BranchGraph
        The open nodes only, with the spanning tree and the deferred merges that they need.
    pending : PendingBranches
        Record from which the source of each of ``rows`` is resolved.
    """
    nodes, links = _concatenate([graph.nodes]), _concatenate([graph.links])  # copies
    is_open = nodes.ghost.copy()
    is_open[graph.border.node] = True
    kept = _process_passes(
        nodes, links, np.argsort(links.level)[::-1], is_open, _kernel_limits(criterion)
    )
    # The flux of an open footprint is not known yet. With 0 in its place only dynamics and area decide.
    flux = np.where(is_open, 0, nodes.total_flux[nodes.survivor])
    end = _follow_absorbers(nodes.absorber, nodes.death_flux, _minimum_flux(flux, criterion))
    final = ~is_open | (nodes.absorber < 0) | (criterion.mincont_ppm == 0)
    nodes = nodes._replace(absorber=np.where(final, -1, end[nodes.absorber]).astype(np.int32))
    links = take_rows(links, kept)
    links = links._replace(low=end[links.low], high=_renumber(end, links.high))
    living = is_open & (nodes.survivor == np.arange(len(end)))
    return _open_part(graph, nodes, links, living), _pending_part(nodes, end[rows], living)


def _open_part(graph: BranchGraph, nodes: Nodes, links: Links, living: Flag) -> BranchGraph:
    """Return the living nodes, and the dead ones that passes name, directly or through absorbers."""
    named = _find_reachable(
        np.concatenate([links.low, links.high[links.high >= 0]]), nodes.absorber
    )
    rows = np.concatenate([np.flatnonzero(living), np.flatnonzero(named & ~living)])
    number = invert_index(rows, len(nodes.peak_key))
    nodes = take_rows(nodes, rows)
    nodes = nodes._replace(
        survivor=number[nodes.survivor], absorber=_renumber(number, nodes.absorber)
    )
    links = links._replace(low=number[links.low], high=_renumber(number, links.high))
    border = graph.border._replace(node=number[graph.border.node])
    return BranchGraph(graph.box, graph.width, nodes, links, border)


def _pending_part(nodes: Nodes, rows: Int32, living: Flag) -> PendingBranches:
    """Return the nodes of ``rows``, the nodes that may absorb them, and the survivors of both."""
    named = _find_reachable(rows, nodes.absorber)
    named[nodes.survivor[named]] = True
    number = invert_index(np.flatnonzero(named), len(named))
    kept = take_rows(nodes, named)
    branches = BranchTable(
        kept.peak_key,
        number[kept.survivor],
        _renumber(number, kept.absorber),
        kept.death_flux,
        kept.total_flux,
        invert_index(np.flatnonzero(living), len(named))[named],
    )
    no_area, no_splits = np.zeros(len(rows), np.int64), np.array([0, len(rows)])
    return PendingBranches(branches, number[rows], no_area, no_splits)


def _resolve_rows(
    pending: PendingBranches, resolved: ResolvedBranches, criterion: Criterion
) -> ResolvedBranches:
    """Return the final decision on each of the rows of a box."""
    branches, own = pending.branches, key_index(pending.branches.peak_key)
    is_open = branches.open_row >= 0
    # The appended value is what row -1 selects; it is not used.
    source, footprint, flux = (np.append(column, 0)[branches.open_row] for column in resolved)
    source = np.where(is_open, source, own)
    footprint = np.where(is_open, footprint, own)[branches.survivor]
    flux = np.where(is_open, flux, branches.total_flux)[branches.survivor]
    end = _follow_absorbers(branches.absorber, branches.death_flux, _minimum_flux(flux, criterion))
    return take_rows(ResolvedBranches(source[end], footprint, flux), pending.rows)


def _minimum_flux(flux: Int64, criterion: Criterion) -> Int64:
    """Compute ``mincont`` of ``flux``, rounded up, without overflow."""
    whole, rest = np.divmod(flux, MILLION)
    return np.asarray(whole * criterion.mincont_ppm - (-rest * criterion.mincont_ppm // MILLION))


class _Limits(NamedTuple):
    """A criterion for the kernels; sums need not be exact above the sufficient area and flux."""

    dynamics: int
    extended_dynamics: int
    minarea: int
    extended: int
    sufficient_area: int
    sufficient_flux: int


def _kernel_limits(criterion: Criterion) -> _Limits:
    limit = np.array([criterion.flux_limit], np.int64)
    return _Limits(
        criterion.dynamics,
        criterion.extended_dynamics if criterion.extended else criterion.dynamics,
        criterion.minarea,
        criterion.extended,
        max(criterion.minarea, criterion.extended),
        int(_minimum_flux(limit, criterion)[0]),
    )


@kernel
def _find_root(parent: Int32, i: int) -> int:
    """Return the root of ``i`` in a union-find forest; halves the path."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def _process_passes(
    nodes: Nodes, links: Links, order: Int64, is_open: Flag, limits: _Limits
) -> Flag:
    """Process the passes in descending order: Kruskal's algorithm.

    Returns which links are still needed. Changes ``nodes``, ``links`` and ``is_open`` in place; at the
    end ``is_open`` holds whether the footprint of a node is open.
    """
    kept = np.zeros(len(order), np.bool_)
    branch = nodes.survivor.copy()  # union-find; the root is the highest node of the branch
    seen_area, seen_flux = nodes.area.copy(), nodes.flux.copy()
    for k in order:
        if links.high[k] >= 0:
            loser, winner = _find_root(branch, links.low[k]), _find_root(branch, links.high[k])
            if loser == winner:
                continue
            across = links.high[k]
            if nodes.peak_key[loser] > nodes.peak_key[winner]:
                loser, winner, across = winner, loser, links.low[k]
            branch[loser] = winner
            if is_open[loser]:
                is_open[winner] = kept[k] = True
                continue
            _record_death(nodes, links, k, loser, across, limits)
        into = _find_root(nodes.survivor, links.low[k])
        if is_open[_find_root(branch, into)]:
            kept[k] = (
                seen_area[into] < limits.sufficient_area or seen_flux[into] < limits.sufficient_flux
            )
        else:
            nodes.area[into] += links.area[k]
            nodes.flux[into] += links.flux[k]
        seen_area[into] += links.area[k]
        seen_flux[into] += links.flux[k]
        links.low[k] = into
    for i in range(len(branch)):
        nodes.survivor[i] = _find_root(nodes.survivor, i)
        is_open[i] = is_open[_find_root(branch, i)]
    return kept


@kernel
def _record_death(
    nodes: Nodes, links: Links, k: int, loser: int, across: int, limits: _Limits
) -> None:
    """Judge a closed branch that dies at pass k; the pass becomes a deferred merge with the node across."""
    height = np.int64(nodes.peak_key[loser] >> np.uint64(48)) - np.int64(
        links.level[k] >> np.uint64(48)
    )
    minimum = limits.dynamics if nodes.area[loser] < limits.extended else limits.extended_dynamics
    passed = height >= minimum and nodes.area[loser] >= limits.minarea
    nodes.death_flux[loser] = nodes.flux[loser] if passed else -1
    nodes.absorber[loser] = across
    into = _find_root(nodes.survivor, across)
    nodes.survivor[loser] = into
    nodes.total_flux[into] += nodes.total_flux[loser]
    links.low[k], links.high[k] = into, -1
    links.area[k], links.flux[k] = nodes.area[loser], nodes.flux[loser]


@kernel
def _follow_absorbers(absorber: Int32, death_flux: Int64, minimum: Int64) -> Int32:
    """Return, for each row, the first row on its path of absorbers that lives or has the minimum flux."""
    end = np.full(len(absorber), -1, np.int32)
    for i in range(len(absorber)):
        last = i
        while end[last] < 0 and absorber[last] >= 0 and death_flux[last] < minimum[last]:
            last = absorber[last]
        last = last if end[last] < 0 else end[last]
        end[last] = last
        j = i
        while end[j] < 0:
            end[j] = last
            j = absorber[j]
    return end


def _concatenate_graphs(
    graphs: Sequence[BranchGraph],
) -> tuple[Nodes, Links, Border, list[Int64]]:
    """Concatenate the tables of the children; also return the rows of the living nodes of each."""
    parts, living, start = [], [], 0
    for graph in graphs:
        nodes, links, border = graph.nodes, graph.links, graph.border
        shift = np.arange(start, start + len(nodes.peak_key), dtype=np.int32)
        nodes = nodes._replace(
            survivor=nodes.survivor + start, absorber=_renumber(shift, nodes.absorber)
        )
        links = links._replace(low=links.low + start, high=_renumber(shift, links.high))
        parts.append((nodes, links, border._replace(node=border.node + start)))
        living.append(start + np.flatnonzero(graph.nodes.survivor == np.arange(len(shift))))
        start += len(shift)
    nodes, links, border = (_concatenate(tables) for tables in zip(*parts, strict=True))
    return nodes, links, border, living


def _resolve_ghosts(nodes: Nodes, border: Border) -> Int64:
    """Return the node to which the pixels of each node climb, as far as is known, by pointer doubling."""
    terminal = np.arange(len(nodes.peak_key))
    ghosts = np.flatnonzero(nodes.ghost)
    keys, first, place = np.unique(nodes.peak_key[ghosts], return_index=True, return_inverse=True)
    terminal[ghosts] = ghosts[first][place]
    _, here, there = np.intersect1d(key_index(keys), border.pixel, return_indices=True)
    terminal[ghosts[first[here]]] = border.node[there]
    while (terminal[terminal] != terminal).any():
        terminal = terminal[terminal]
    return terminal


def _merge_ghosts(nodes: Nodes, terminal: Int64) -> tuple[Nodes, Int32]:
    """Add ghosts to the nodes that they stand for; also return the new row of each old node."""
    sums = [np.zeros_like(nodes.area) for _ in range(3)]
    for total, column in zip(sums, (nodes.area, nodes.flux, nodes.total_flux), strict=True):
        np.add.at(total, terminal, column)
    rows = np.flatnonzero(terminal == np.arange(len(terminal)))
    number = invert_index(rows, len(terminal))[terminal]
    nodes = nodes._replace(area=sums[0], flux=sums[1], total_flux=sums[2])
    nodes = nodes._replace(
        survivor=number[nodes.survivor], absorber=_renumber(number, nodes.absorber)
    )
    return take_rows(nodes, rows), number


def _remove_inner_exits(border: Border, hull: Box, width: int) -> Border:
    """Remove the exits that lead into the hull, and pixels without any other exit."""
    y, x = np.divmod(border.pixel, width)
    exits = border.exits.copy()
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        inside = (y + dy >= hull.y0) & (y + dy < hull.y1) & (x + dx >= hull.x0) & (x + dx < hull.x1)
        exits[inside] &= 255 ^ (1 << direction)
    return take_rows(border._replace(exits=exits), exits > 0)


def _check_hull(boxes: Sequence[Box]) -> Box:
    hull = reduce(Box.hull, boxes)
    if sum(box.size for box in boxes) != hull.size:
        raise PlanError(f"boxes {boxes} do not fill {hull}: join tiles that make up a rectangle")
    return hull


def _find_reachable(seeds: Int32, absorber: Int32) -> Flag:
    """Return which rows are seeds or on the path of absorbers of a seed."""
    reachable = np.zeros(len(absorber), np.bool_)
    while len(seeds):
        reachable[seeds] = True
        seeds = absorber[seeds]
        seeds = seeds[seeds >= 0]
        seeds = np.unique(seeds[~reachable[seeds]])
    return reachable


def invert_index(rows: NDArray[np.integer[Any]], size: int) -> Int32:
    """Return the position in ``rows`` of each of the numbers 0 to ``size`` - 1; -1 if it is not in ``rows``."""
    number = np.full(size, -1, np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    return number


def _renumber(number: Int32, rows: Int32) -> Int32:
    """Return the new numbers of rows; -1 stays -1."""
    return np.append(number, np.int32(-1))[rows]


def _concatenate(tables: Sequence[_Columns]) -> _Columns:
    return type(tables[0])(*(np.concatenate(column) for column in zip(*tables, strict=True)))


def take_rows(table: _Columns, rows: Any) -> _Columns:
    """Return some rows of a table: an index array, a slice or a mask."""
    return type(table)(*(column[rows] for column in table))


def _to_named_arrays(prefix: str, table: Any) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": column for name, column in table._asdict().items()}


def _from_named_arrays(prefix: str, kind: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    return kind(*(arrays[f"{prefix}.{name}"] for name in kind._fields))
