"""Merge trees of tiles: what a tile can decide alone, how tiles join, how verdicts come down.

What is computed is defined on the whole image, without tiles. ``key(p) = (elevation, -index)`` is a
strict total order of the pixels. A pixel climbs to its neighbour with the greatest key; all that
climb to one peak are its *basin*. A *pass* is a pair of adjacent pixels of two basins; its level is
the key of its lower pixel (then the place of the upper one), so no two passes tie. Passes are taken
in descending order (Kruskal): at each one that joins two branches, the branch with the lower peak
*dies*. It stays a source if peak - saddle >= dynamics (an extended branch, of area >= extended, has
dynamics of its own), its area >= minarea and its flux >= mincont of the footprint's flux; else the
pixels of its top basin, and all it took before, go where the basin across the pass goes. A
footprint's highest peak always stays.

What a part of the image may decide, and why that is never taken back::

        tile 1        seam        tile 2             A  closed: no pixel of it has a foreground
     .--------------.  |  .--------------.              neighbour outside the box (no *door*)
     |  A ---e1-- B ===|=== b    C       |           B  open: it has doors, or its peak is outside
     |  D -e2-'     |  |  |              |              (a *ghost*, named by the first pixel there)
     '--------------'  |  '--------------'

* All passes of a closed branch are known, for a pass is found by the tile of its lower pixel, which
  sees all its eight neighbours. So when Kruskal over the *known* passes reaches e1, A is complete:
  its area and flux at that level are exact, and e1 is truly its highest way out.
* What is known of B is joined by true passes above e1, so B's true peak is at least the highest
  peak, or ghost pixel, known in it. If even that bound is above A's peak, A dies at e1, for good.
  Else nothing is decided: the pass and both nodes go up.
* An open branch never dies: it may be higher or larger than is known.
  So the rule is: *of the two that meet, the lower one dies if it is closed, else the pass is kept.*
* A that dies into an open B must still be counted with B below e1, but not above: it becomes a
  *tributary* of B with level e1. Sums matter only until they suffice (minarea, extended, mincont),
  so tributaries that come after that are dropped.
* A pass whose ends are joined by higher known passes is on no merge tree: dropped for good.
* Where D goes if it dies at e2 depends on the *basin* across e2, perhaps A, dead already; a kept
  pass therefore names basins, dead ones too, as long as it needs them.

A box therefore passes up: the nodes with doors or ghosts (its perimeter), the few closed ones that
are higher than all that is known of their open neighbours, and a spanning tree between them.
If mincont > 0 a verdict waits for the flux of the whole footprint, which comes down with the
verdicts; meanwhile a death is (flux at death, basin across) in the `PendingBranches` of its box.

All is integer or totally ordered: the result does not depend on tiles, fan-in or order of arrival.
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

Int8 = NDArray[np.uint8]
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
    """What a dying branch must have to stay a source; all whole numbers."""

    dynamics: int = 0
    """Least elevation of the peak above the saddle, in units of the elevation map."""
    minarea: int = 1
    """Least pixels of the branch."""
    mincont_ppm: int = 0
    """Least part of the footprint's flux, in parts per million; 0 needs no flux."""
    flux_limit: int = 1 << 62
    """No footprint's flux is above this; a tight bound saves memory in fields that percolate."""
    extended: int = 0
    """Pixels from which a branch is extended; 0 if none is."""
    extended_dynamics: int = 0
    """Dynamics of an extended branch."""


class Nodes(NamedTuple):
    """Branches of a merge tree, one row each; a dead one is there only if a pass names it."""

    top: Key
    """Key of the peak; of a ghost, key of the outside pixel that it climbs to."""
    ghost: Flag
    """Whether the peak lies outside the box."""
    cluster: Int32
    """Row of the living node that it died into, directly or not; its own if it lives."""
    goal: Int32
    """Row of the basin across the pass at which it died; -1 if it lives or is surely a source."""
    strength: Int64
    """Flux at death, or -1 if it failed in dynamics or area."""
    area: Int64
    """Pixels that are part of it at every level."""
    flux: Int64
    """Flux of these."""
    total: Int64
    """Flux of all that is part of it at some level."""


class Links(NamedTuple):
    """Passes between nodes, and tributaries; one row each."""

    level: Key
    """Key of the lower pixel plus 7 minus the direction of the upper one: unique."""
    low: Int32
    """Node of the lower pixel; of a tributary, the node that it runs into."""
    high: Int32
    """Node of the upper pixel; -1 of a tributary."""
    area: Int64
    """Pixels of a tributary."""
    flux: Int64
    """Flux of a tributary."""


class Ring(NamedTuple):
    """Pixels of a box with foreground neighbours outside of it."""

    pixel: Int64
    """Global index y * width + x."""
    node: Int32
    """Node that the pixel belongs to; always a living one."""
    doors: Int8
    """Bit d is set if the neighbour in direction d is foreground outside the box."""


@dataclass(frozen=True, slots=True)
class BranchGraph:
    """What is still open in a box; grows with its perimeter, never with its pixels."""

    box: Box
    """Pixels that it speaks for."""
    width: int
    """Width of the whole image, px."""
    nodes: Nodes
    """Branches; the living ones come first."""
    links: Links
    """Passes between them, and tributaries."""
    ring: Ring
    """Pixels where the outside may touch."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give named flat arrays, for ``np.savez``."""
        place = np.array([self.box.y0, self.box.x0, self.box.y1, self.box.x1, self.width])
        return {
            "place": place,
            **_named("nodes", self.nodes),
            **_named("links", self.links),
            **_named("ring", self.ring),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> BranchGraph:
        """Give the graph back from what `to_arrays` gave."""
        *corners, width = (int(value) for value in arrays["place"])
        return cls(
            Box(*corners),
            width,
            _unnamed("nodes", Nodes, arrays),
            _unnamed("links", Links, arrays),
            _unnamed("ring", Ring, arrays),
        )


class ResolvedBranches(NamedTuple):
    """What became of each living node of a graph."""

    source: Int64
    """Source that its top basin went to: global index of that source's peak."""
    footprint: Int64
    """Global index of the highest peak of its footprint."""
    flux: Int64
    """Flux of the whole footprint; 0 without weights."""


NONE_RESOLVED = ResolvedBranches(*(np.zeros(0, np.int64) for _ in ResolvedBranches._fields))
"""What is above the root: the graph of the whole image has no open node."""


class BranchTable(NamedTuple):
    """What is known in a box about the branches that it must answer for."""

    top: Key
    """As in `Nodes`."""
    cluster: Int32
    """As in `Nodes`."""
    goal: Int32
    """As in `Nodes`."""
    strength: Int64
    """As in `Nodes`."""
    total: Int64
    """As in `Nodes`; the footprint's flux if nothing above has a say."""
    above: Int32
    """Its row in the graph that went up; -1 if it is no living node of it."""


@dataclass(frozen=True, slots=True)
class PendingBranches:
    """What a box keeps for the way down."""

    fates: BranchTable
    """Branches."""
    rows: Int32
    """Row of ``fates`` for each thing asked about: segments of a tile, nodes of the children."""
    area: Int64
    """Pixels of each thing asked about (of its own basins)."""
    splits: Int64
    """Where the children's parts of ``rows`` begin and end; (0, len(rows)) for a tile."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give named flat arrays, for ``np.savez``."""
        return {
            "rows": self.rows,
            "area": self.area,
            "splits": self.splits,
            **_named("fates", self.fates),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> PendingBranches:
        """Give the settlement back from what `to_arrays` gave."""
        plain = (arrays[name] for name in ("rows", "area", "splits"))
        return cls(_unnamed("fates", BranchTable, arrays), *plain)


def join(
    graphs: Sequence[BranchGraph], criterion: Criterion
) -> tuple[BranchGraph, PendingBranches]:
    """Join the graphs of boxes that fill their hull, in any number, shape and order.

    Parameters
    ----------
    graphs : sequence of BranchGraph
        One for each child; the boxes partition their hull.
    criterion : Criterion
        The same for all.

    Returns
    -------
    graph : BranchGraph
        What is still open in the hull.
    settlement : PendingBranches
        To be kept until the verdicts on ``graph`` come down; see `resolve`.

    Raises
    ------
    PlanError
        If the boxes do not fill their hull.
    """
    hull = _check_hull([graph.box for graph in graphs])
    width = graphs[0].width
    nodes, links, ring, living = _stack(graphs)
    terminal = _resolve_ghosts(nodes, ring)
    splits = np.cumsum([0, *(len(rows) for rows in living)])
    rows = np.concatenate(living)
    area = nodes.area[rows]
    nodes, number = _unite(nodes, terminal)
    links = links._replace(low=number[links.low], high=_renumber(number, links.high))
    ring = _shut_doors(ring._replace(node=number[ring.node]), hull, width)
    graph, settlement = contract(
        BranchGraph(hull, width, nodes, links, ring), number[rows], criterion
    )
    return graph, PendingBranches(settlement.fates, settlement.rows, area, splits)


def resolve(
    settlement: PendingBranches, verdicts: ResolvedBranches, criterion: Criterion
) -> list[ResolvedBranches]:
    """Pass verdicts down: give those for each child, in the order they were joined.

    Parameters
    ----------
    settlement : PendingBranches
        What `join` (or the tile) kept.
    verdicts : ResolvedBranches
        On the living nodes of the graph that went up; `NONE_RESOLVED` at the root.
    criterion : Criterion
        The same as on the way up.
    """
    answers = _answer(settlement, verdicts, criterion)
    return [take(answers, slice(a, b)) for a, b in pairwise(settlement.splits.tolist())]


def tabulate(
    settlement: PendingBranches, verdicts: ResolvedBranches, criterion: Criterion
) -> SourceTable:
    """Give the table from a tile's segments to sources; parameters as in `resolve`."""
    answer = _answer(settlement, verdicts, criterion)
    top = settlement.fates.top[settlement.rows]
    peak = np.where(key_index(top) == answer.source, key_elevation(top), -1)
    rows = SourceTable(answer.source, answer.footprint, settlement.area, peak)
    background = SourceTable(*np.array([[NO_SOURCE], [NO_SOURCE], [0], [-1]]))
    return _pile([background, rows])


def contract(
    graph: BranchGraph, rows: Int32, criterion: Criterion
) -> tuple[BranchGraph, PendingBranches]:
    """Decide all that can be decided in a box, and give what is left open.

    Parameters
    ----------
    graph : BranchGraph
        All nodes and known passes of the box.
    rows : (n,) int32
        Nodes about which `resolve` will be asked.
    criterion : Criterion

    Returns
    -------
    graph : BranchGraph
        Only what is open, with the spanning tree and tributaries that it needs.
    settlement : PendingBranches
        Where each of ``rows`` goes, as far as is known.
    """
    nodes, links = _pile([graph.nodes]), _pile([graph.links])  # copies
    undecided = nodes.ghost.copy()
    undecided[graph.ring.node] = True
    kept = _meet(nodes, links, np.argsort(links.level)[::-1], undecided, _enough(criterion))
    flux = np.where(undecided, 0, nodes.total[nodes.cluster])
    end = _follow(nodes.goal, nodes.strength, _threshold(flux, criterion))
    final = ~undecided | (nodes.goal < 0) | (criterion.mincont_ppm == 0)
    nodes = nodes._replace(goal=np.where(final, -1, end[nodes.goal]).astype(np.int32))
    links = take(links, kept)
    links = links._replace(low=end[links.low], high=_renumber(end, links.high))
    living = undecided & (nodes.cluster == np.arange(len(end)))
    return _open_part(graph, nodes, links, living), _closed_part(nodes, end[rows], living)


def _open_part(graph: BranchGraph, nodes: Nodes, links: Links, living: Flag) -> BranchGraph:
    """Give the living nodes, and of the dead those that passes, or they, name."""
    named = _reach(np.concatenate([links.low, links.high[links.high >= 0]]), nodes.goal)
    rows = np.concatenate([np.flatnonzero(living), np.flatnonzero(named & ~living)])
    number = numbering(rows, len(nodes.top))
    nodes = take(nodes, rows)
    nodes = nodes._replace(cluster=number[nodes.cluster], goal=_renumber(number, nodes.goal))
    links = links._replace(low=number[links.low], high=_renumber(number, links.high))
    ring = graph.ring._replace(node=number[graph.ring.node])
    return BranchGraph(graph.box, graph.width, nodes, links, ring)


def _closed_part(nodes: Nodes, rows: Int32, living: Flag) -> PendingBranches:
    """Give the nodes that rows name, those that they may yet go to, and their clusters."""
    named = _reach(rows, nodes.goal)
    named[nodes.cluster[named]] = True
    number = numbering(np.flatnonzero(named), len(named))
    kept = take(nodes, named)
    above = numbering(np.flatnonzero(living), len(named))[named]
    goal = _renumber(number, kept.goal)
    fates = BranchTable(kept.top, number[kept.cluster], goal, kept.strength, kept.total, above)
    return PendingBranches(
        fates, number[rows], np.zeros(len(rows), np.int64), np.array([0, len(rows)])
    )


def _answer(
    settlement: PendingBranches, verdicts: ResolvedBranches, criterion: Criterion
) -> ResolvedBranches:
    fates, own = settlement.fates, key_index(settlement.fates.top)
    ruled = fates.above >= 0
    # the appended value is what index -1 meets where nothing above has a say
    source, footprint, flux = (np.append(column, 0)[fates.above] for column in verdicts)
    source = np.where(ruled, source, own)
    footprint = np.where(ruled, footprint, own)[fates.cluster]
    flux = np.where(ruled, flux, fates.total)[fates.cluster]
    end = _follow(fates.goal, fates.strength, _threshold(flux, criterion))
    return take(ResolvedBranches(source[end], footprint, flux), settlement.rows)


def _threshold(flux: Int64, criterion: Criterion) -> Int64:
    """Give the least flux that is mincont of ``flux``, rounded up without overflow."""
    whole, rest = np.divmod(flux, MILLION)
    return np.asarray(whole * criterion.mincont_ppm - (-rest * criterion.mincont_ppm // MILLION))


class _Enough(NamedTuple):
    """A criterion for the kernels; beyond this area and flux a sum need not be exact."""

    dynamics: int
    extended_dynamics: int
    minarea: int
    extended: int
    area: int
    flux: int


def _enough(criterion: Criterion) -> _Enough:
    limit = np.array([criterion.flux_limit], np.int64)
    return _Enough(
        criterion.dynamics,
        criterion.extended_dynamics if criterion.extended else criterion.dynamics,
        criterion.minarea,
        criterion.extended,
        max(criterion.minarea, criterion.extended),
        int(_threshold(limit, criterion)[0]),
    )


@kernel
def _find(parent: Int32, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def _meet(nodes: Nodes, links: Links, order: Int64, is_open: Flag, enough: _Enough) -> Flag:
    """Take the passes in descending order; nodes, links and is_open change in place.

    Gives which links are still needed; is_open becomes whether the footprint is open.
    """
    kept = np.zeros(len(order), np.bool_)
    branch = nodes.cluster.copy()  # union-find; the root is the highest node of the branch
    seen_area, seen_flux = nodes.area.copy(), nodes.flux.copy()
    for k in order:
        if links.high[k] >= 0:
            loser, winner = _find(branch, links.low[k]), _find(branch, links.high[k])
            if loser == winner:
                continue
            across = links.high[k]
            if nodes.top[loser] > nodes.top[winner]:
                loser, winner, across = winner, loser, links.low[k]
            branch[loser] = winner
            if is_open[loser]:
                is_open[winner] = kept[k] = True
                continue
            _die(nodes, links, k, loser, across, enough)
        into = _find(nodes.cluster, links.low[k])
        if is_open[_find(branch, into)]:
            kept[k] = seen_area[into] < enough.area or seen_flux[into] < enough.flux
        else:
            nodes.area[into] += links.area[k]
            nodes.flux[into] += links.flux[k]
        seen_area[into] += links.area[k]
        seen_flux[into] += links.flux[k]
        links.low[k] = into
    for i in range(len(branch)):
        nodes.cluster[i] = _find(nodes.cluster, i)
        is_open[i] = is_open[_find(branch, i)]
    return kept


@kernel
def _die(nodes: Nodes, links: Links, k: int, loser: int, across: int, enough: _Enough) -> None:
    """Judge a closed branch at pass k, which becomes a tributary of the node across."""
    height = np.int64(nodes.top[loser] >> np.uint64(48)) - np.int64(links.level[k] >> np.uint64(48))
    least = enough.dynamics if nodes.area[loser] < enough.extended else enough.extended_dynamics
    passed = height >= least and nodes.area[loser] >= enough.minarea
    nodes.strength[loser] = nodes.flux[loser] if passed else -1
    nodes.goal[loser] = across
    into = _find(nodes.cluster, across)
    nodes.cluster[loser] = into
    nodes.total[into] += nodes.total[loser]
    links.low[k], links.high[k] = into, -1
    links.area[k], links.flux[k] = nodes.area[loser], nodes.flux[loser]


@kernel
def _follow(goal: Int32, strength: Int64, threshold: Int64) -> Int32:
    """Give the row where each row ends: the first on its way that is alive or strong enough."""
    end = np.full(len(goal), -1, np.int32)
    for i in range(len(goal)):
        last = i
        while end[last] < 0 and goal[last] >= 0 and strength[last] < threshold[last]:
            last = goal[last]
        last = last if end[last] < 0 else end[last]
        end[last] = last
        j = i
        while end[j] < 0:
            end[j] = last
            j = goal[j]
    return end


def _stack(graphs: Sequence[BranchGraph]) -> tuple[Nodes, Links, Ring, list[Int64]]:
    """Put the tables of the children one below the other; also the rows of their living nodes."""
    parts, living, start = [], [], 0
    for graph in graphs:
        nodes, links, ring = graph.nodes, graph.links, graph.ring
        shift = np.arange(start, start + len(nodes.top), dtype=np.int32)
        nodes = nodes._replace(cluster=nodes.cluster + start, goal=_renumber(shift, nodes.goal))
        links = links._replace(low=links.low + start, high=_renumber(shift, links.high))
        parts.append((nodes, links, ring._replace(node=ring.node + start)))
        living.append(start + np.flatnonzero(graph.nodes.cluster == np.arange(len(shift))))
        start += len(shift)
    nodes, links, ring = (_pile(tables) for tables in zip(*parts, strict=True))
    return nodes, links, ring, living


def _resolve_ghosts(nodes: Nodes, ring: Ring) -> Int64:
    """Give the node that each node's pixels climb to, as far as is known: pointer doubling."""
    terminal = np.arange(len(nodes.top))
    ghosts = np.flatnonzero(nodes.ghost)
    tops, first, place = np.unique(nodes.top[ghosts], return_index=True, return_inverse=True)
    terminal[ghosts] = ghosts[first][place]
    _, here, there = np.intersect1d(key_index(tops), ring.pixel, return_indices=True)
    terminal[ghosts[first[here]]] = ring.node[there]
    while (terminal[terminal] != terminal).any():
        terminal = terminal[terminal]
    return terminal


def _unite(nodes: Nodes, terminal: Int64) -> tuple[Nodes, Int32]:
    """Add ghosts to the nodes that they stand for; also the new row of each old one."""
    sums = [np.zeros_like(nodes.area) for _ in range(3)]
    for total, column in zip(sums, (nodes.area, nodes.flux, nodes.total), strict=True):
        np.add.at(total, terminal, column)
    rows = np.flatnonzero(terminal == np.arange(len(terminal)))
    number = numbering(rows, len(terminal))[terminal]
    nodes = nodes._replace(area=sums[0], flux=sums[1], total=sums[2])
    nodes = nodes._replace(cluster=number[nodes.cluster], goal=_renumber(number, nodes.goal))
    return take(nodes, rows), number


def _shut_doors(ring: Ring, hull: Box, width: int) -> Ring:
    """Shut the doors that lead into the hull, and drop pixels that have none left."""
    y, x = np.divmod(ring.pixel, width)
    doors = ring.doors.copy()
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        inside = (y + dy >= hull.y0) & (y + dy < hull.y1) & (x + dx >= hull.x0) & (x + dx < hull.x1)
        doors[inside] &= 255 ^ (1 << direction)
    return take(ring._replace(doors=doors), doors > 0)


def _check_hull(boxes: Sequence[Box]) -> Box:
    hull = reduce(Box.hull, boxes)
    if sum(box.size for box in boxes) != hull.size:
        raise PlanError(f"boxes {boxes} do not fill {hull}: join tiles that make up a rectangle")
    return hull


def _reach(seeds: Int32, goal: Int32) -> Flag:
    """Mark the rows that are seeds or can be reached from them."""
    reached = np.zeros(len(goal), np.bool_)
    while len(seeds):
        reached[seeds] = True
        seeds = goal[seeds]
        seeds = seeds[seeds >= 0]
        seeds = np.unique(seeds[~reached[seeds]])
    return reached


def numbering(rows: NDArray[np.integer[Any]], size: int) -> Int32:
    """Give the place of each of ``size`` rows among ``rows``; -1 if it is not there."""
    number = np.full(size, -1, np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    return number


def _renumber(number: Int32, rows: Int32) -> Int32:
    """Give the new numbers of rows, where -1 stays -1."""
    return np.append(number, np.int32(-1))[rows]


def _pile(tables: Sequence[_Columns]) -> _Columns:
    return type(tables[0])(*(np.concatenate(column) for column in zip(*tables, strict=True)))


def take(table: _Columns, rows: Any) -> _Columns:
    """Give some rows of a table: an index array, a slice or a mask."""
    return type(table)(*(column[rows] for column in table))


def _named(prefix: str, table: Any) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": column for name, column in table._asdict().items()}


def _unnamed(prefix: str, kind: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    return kind(*(arrays[f"{prefix}.{name}"] for name in kind._fields))
