"""Tile geometry: boxes, tiles, the tile grid and the quad-tree of tiles.

::

    image   0        T        2T       W            T  tile core edge, a multiple of the window
            +--------+--------+-----+               w  window core edge: one global grid
            | core   |        |     |               h  halo, a multiple of the stride
            |  +--+--|        |     |
            |  |w |w |        |     |               read = core grown by h, clipped to the canvas
            +--+--+--+--------+-----+               canvas = image padded at the high side to a
            |        |        |     |                        multiple of the stride

Axes are (y, x), boxes are half-open, and pixel centres are at integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fcnpipe.core.errors import PlanError


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open rectangle of pixels, ``[y0, y1) x [x0, x1)``.

    Examples
    --------
    >>> Box(0, 0, 4, 6).grow(2).clip(Box(0, 0, 5, 7))
    Box(y0=0, x0=0, y1=5, x1=7)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def size(self) -> int:
        """Number of pixels; 0 for an empty box."""
        return max(self.y1 - self.y0, 0) * max(self.x1 - self.x0, 0)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """The four coordinates: y0, x0, y1, x1."""
        return self.y0, self.x0, self.y1, self.x1

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices that cut this box out of an array of the whole image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def grow(self, margin: int) -> Box:
        """Return the box extended by ``margin`` pixels on each side, not clipped."""
        return Box(self.y0 - margin, self.x0 - margin, self.y1 + margin, self.x1 + margin)

    def clip(self, other: Box) -> Box:
        """Return the intersection with ``other``, a box of size 0 if they do not overlap."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def hull(self, other: Box) -> Box:
        """Return the smallest box that contains both boxes."""
        return Box(
            min(self.y0, other.y0),
            min(self.x0, other.x0),
            max(self.y1, other.y1),
            max(self.x1, other.x1),
        )

    def within(self, other: Box) -> tuple[slice, slice]:
        """Return the slices that cut this box out of an array of the pixels of ``other``."""
        return self.relative_to(other).slices

    def relative_to(self, other: Box) -> Box:
        """Return this box in coordinates relative to the origin of ``other``."""
        return Box(self.y0 - other.y0, self.x0 - other.x0, self.y1 - other.y0, self.x1 - other.x0)

    def contains(self, other: Box) -> bool:
        """Return whether every pixel of ``other`` is in this box."""
        return self.clip(other) == other


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A unit of work at a row and column of the tile grid; it writes the pixels of its ``core``."""

    row: int
    column: int
    core: Box

    @property
    def name(self) -> str:
        """Short name for messages and file names, for example ``r003c012``."""
        return f"r{self.row:03d}c{self.column:03d}"


def parse_tile_name(name: str) -> tuple[int, int]:
    """Return the row and the column of a tile name such as ``r003c012``.

    Examples
    --------
    >>> parse_tile_name("r003c012")
    (3, 12)
    """
    row, column = name[1:].split("c")
    return int(row), int(column)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A grid of tile cores of one size that partition an image.

    Parameters
    ----------
    shape : (int, int)
        Image height and width, px.
    edge : (int, int)
        Core height and width, px; the last row and column are clipped at the image border.

    Raises
    ------
    PlanError
        If a size is not positive.

    Examples
    --------
    >>> [t.core.shape for t in TileGrid((5, 4), (3, 4))]
    [(3, 4), (2, 4)]
    """

    shape: tuple[int, int]
    edge: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.shape, *self.edge) < 1:
            raise PlanError(
                f"tiles of {self.edge} cannot cover an image of {self.shape}: sizes must be >= 1"
            )

    @property
    def frame(self) -> Box:
        """The whole image as a box."""
        return Box(0, 0, *self.shape)

    @property
    def counts(self) -> tuple[int, int]:
        """Number of tile rows and columns."""
        return -(-self.shape[0] // self.edge[0]), -(-self.shape[1] // self.edge[1])

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def __iter__(self) -> Iterator[Tile]:
        rows, columns = self.counts
        return (self.tile(row, column) for row in range(rows) for column in range(columns))

    def tile(self, row: int, column: int) -> Tile:
        """Return the tile in a row and column of the grid."""
        y0, x0 = row * self.edge[0], column * self.edge[1]
        core = Box(y0, x0, y0 + self.edge[0], x0 + self.edge[1]).clip(self.frame)
        return Tile(row, column, core)

    def tile_at(self, y: int, x: int) -> Tile:
        """Return the tile whose core contains pixel (y, x)."""
        return self.tile(y // self.edge[0], x // self.edge[1])

    def cores_in(self, box: Box) -> Iterator[Box]:
        """Yield the intersections of the tile cores with ``box``, a box inside the image, in raster order."""
        rows = range(box.y0 // self.edge[0], -(-box.y1 // self.edge[0]))
        columns = range(box.x0 // self.edge[1], -(-box.x1 // self.edge[1]))
        return (self.tile(r, c).core.clip(box) for r in rows for c in columns)


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A node of the quad-tree over a tile grid: a square group of tiles; a node of level 0 is one tile.

    ::

        level 2          level 1          level 0
        +-------+        +---+---+        +-+-+-+-+
        |       |        |   |   |        | | | | |
        |       |        +---+---+        +-+-+-+-+
        |       |        |   |   |        | | | | |
        +-------+        +---+---+        +-+-+-+-+
    """

    level: int
    row: int
    column: int

    @property
    def name(self) -> str:
        """Short name: ``r003c012`` for a tile, ``n2r000c001`` for a node of level 2."""
        place = Tile(self.row, self.column, Box(0, 0, 0, 0)).name
        return f"n{self.level}{place}" if self.level else place

    def children(self, counts: tuple[int, int]) -> list[Node]:
        """Return the child nodes that contain tiles of a grid of ``counts`` rows and columns."""
        edge = 2 ** (self.level - 1)
        rows, columns = (-(-count // edge) for count in counts)
        return [
            Node(self.level - 1, row, column)
            for row in range(2 * self.row, min(2 * self.row + 2, rows))
            for column in range(2 * self.column, min(2 * self.column + 2, columns))
        ]


def parse_node_name(name: str) -> Node:
    """Return the node with a name such as ``n2r000c001`` or, for a tile, ``r003c012``.

    Examples
    --------
    >>> parse_node_name("n2r000c001"), parse_node_name("r003c012")
    (Node(level=2, row=0, column=1), Node(level=0, row=3, column=12))
    """
    level, _, place = name.rpartition("r")
    return Node(int(level[1:] or 0), *parse_tile_name("r" + place))


def list_levels(counts: tuple[int, int]) -> list[list[Node]]:
    """Return the nodes of each level of the quad-tree over a grid, from the tiles to the root.

    Examples
    --------
    >>> [len(nodes) for nodes in list_levels((3, 5))]
    [15, 6, 2, 1]
    """
    levels, level = [], 0
    rows, columns = counts
    while True:
        levels.append(
            [Node(level, row, column) for row in range(rows) for column in range(columns)]
        )
        if rows == columns == 1:
            return levels
        rows, columns, level = -(-rows // 2), -(-columns // 2), level + 1


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``.

    Examples
    --------
    >>> round_up(51, 8), round_up(56, 8)
    (56, 56)
    """
    return -(-value // step) * step
