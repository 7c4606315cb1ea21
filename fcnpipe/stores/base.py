"""Interface of the output stores (protocols) and the records that describe a store.

::

    shard = tile core          one writer each; the image clips the last row and the last column
    +-----+-----+-----+-----+
    |chunk|chunk|chunk|chunk|  chunk = unit of compression
    +-----+-----+-----+-----+
    |chunk|chunk|chunk|chunk|
    +-----+-----+-----+-----+
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import PlanError, StoreError
from fcnpipe.core.geometry import Box, Tile, TileGrid, round_up
from fcnpipe.core.records import OutputMap
from fcnpipe.stores.identity import RunIdentity

STAGES = ("background", "predict", "separate", "label", "measure")
"""Stages that run tile by tile; the ledger has one mark for each of them and each tile."""
CHUNK = 512
"""Edge of a storage chunk, px, unless the tile or the image is smaller."""

Columns = Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]]
"""Column name -> (values, attributes such as ``units`` and ``long_name``)."""

Column = tuple[str, NDArray[Any], Mapping[str, Any]]
"""Column name, values, attributes."""

Arrays = Mapping[str, NDArray[Any]]
"""Name -> array; the contents of a scratch record."""

ScienceReader = Callable[[Box], NDArray[np.float32]]
"""Box of the full-size image -> (band, h, w) float32; NaN means no data."""

State = Literal["fresh", "resume", "complete"]
"""State of an output path: nothing usable, an unfinished run to resume, or the finished result."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes and names of a store, fixed before the first pixel is read.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the image, px.
    edge : (int, int)
        Height and width of a tile core, px; a shard has the same size.
    mesh : (int, int)
        Rows and columns of the background mesh.
    cell : int
        Edge of a background cell, px.
    classes, bands, stages : tuple of str
        Names along the axes of probability, science and ledger.
    keep_image : bool
        Whether the science image is stored at full size.
    cards : tuple of str
        FITS header cards of the WCS; empty if there is none.
    unit : str
        Unit of the pixel values; empty if unknown.
    chunk : int
        Edge of a storage chunk, px; a smaller tile is one chunk.
    maps : tuple of OutputMap
        Network outputs that `predict` stores unchanged; empty in a store of `segment`.

    Raises
    ------
    PlanError
        If a tile core is not a whole number of chunks.
    """

    shape: tuple[int, int]
    edge: tuple[int, int]
    mesh: tuple[int, int]
    cell: int = 64
    classes: tuple[str, ...] = ("source",)
    bands: tuple[str, ...] = ("0",)
    stages: tuple[str, ...] = STAGES
    keep_image: bool = False
    cards: tuple[str, ...] = ()
    unit: str = ""
    chunk: int = CHUNK
    maps: tuple[OutputMap, ...] = ()

    def __post_init__(self) -> None:
        for edge in self.edge:
            _check_core_edge(edge, min(self.chunk, edge))

    @property
    def grid(self) -> TileGrid:
        """Grid of the tile cores."""
        return TileGrid(self.shape, self.edge)

    @property
    def chunks(self) -> tuple[int, int]:
        """Height and width of a storage chunk, px."""
        height, width = (min(self.chunk, e, n) for e, n in zip(self.edge, self.shape, strict=True))
        return height, width

    @property
    def shards(self) -> tuple[int, int]:
        """Height and width of a shard, px: the core, or the whole axis where that is shorter."""
        height, width = (
            e if n > e else round_up(n, c)
            for e, n, c in zip(self.edge, self.shape, self.chunks, strict=True)
        )
        return height, width

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Shape of sky and noise: the mesh, with a leading band axis if there are several bands."""
        return self.mesh if len(self.bands) == 1 else (len(self.bands), *self.mesh)

    def dump(self) -> str:
        """Return the layout as JSON for `load_layout`, without the header cards."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "cards"})


def load_layout(text: str, cards: Iterable[str] = ()) -> Layout:
    """Return the layout that `Layout.dump` wrote, with the given header cards.

    Examples
    --------
    >>> layout = Layout((100, 90), (64, 64), (2, 2))
    >>> load_layout(layout.dump()) == layout
    True
    """
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()
    }
    values["maps"] = tuple(OutputMap(**output) for output in values.get("maps", ()))
    return Layout(**values, cards=tuple(cards))


def _check_core_edge(edge: int, chunk: int) -> None:
    if edge % chunk:
        low = edge // chunk * chunk
        raise PlanError(
            f"tile core of {edge} px is not a whole number of {chunk}-px storage chunks: "
            f"use {low} or {low + chunk} px"
        )


@dataclass(frozen=True, slots=True)
class TileCheck:
    """Labels of one tile as read back from disk, and the problems found there.

    Attributes
    ----------
    labels : (n,) int32
        Labels in the tile that have a row in the catalogue, ascending.
    counts : (n,) int64
        Pixels of each label.
    problems : tuple of str
        Damaged maps, and contradictions between labels and catalogue, within this tile; one line each.
    checksums : dict
        CRC-32C of the shard of each map of the tile.
    """

    labels: NDArray[np.int32]
    counts: NDArray[np.int64]
    problems: tuple[str, ...] = ()
    checksums: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of the verification of a store.

    Attributes
    ----------
    sources, tiles, pixels : int
        Numbers of sources, tiles and pixels that were checked.
    problems : tuple of str
        One line each; empty if labels, catalogue and ledger agree.
    """

    sources: int
    tiles: int
    pixels: int
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def check_core(grid: TileGrid, box: Box) -> Tile:
    """Return the tile whose core is ``box``.

    Raises
    ------
    StoreError
        If the box is not exactly one core: two writers in one shard would lose data.

    Examples
    --------
    >>> check_core(TileGrid((5, 4), (3, 4)), Box(3, 0, 5, 4)).name
    'r001c000'
    """
    inside = grid.frame.contains(box) and box.size > 0
    tile = grid.tile_at(box.y0, box.x0) if inside else None
    if tile is None or tile.core != box:
        raise StoreError(
            f"{box} is not one tile core of {grid.edge} px in an image of {grid.shape} px: "
            "write exactly one core at a time, a shard has one writer"
        )
    return tile


class Store(Protocol):
    """Storage of a run: its maps, scratch records, catalogue, and the ledger of finished tiles.

    Notes
    -----
    Stores are picklable and hold no open file. Image arrays at level 0 are ``label``
    (y, x) int32, ``probability`` (class, y, x) uint8, ``elevation`` (y, x) uint16, ``flags``
    (y, x) uint8, ``science`` (band, y, x) float32 and the scratch array ``segments`` (y, x) int32.
    A store of `predict` has the network outputs of ``layout.maps`` instead, next to flags and
    science.
    """

    @property
    def layout(self) -> Layout:
        """Shapes and names."""
        ...

    def write_tile(self, name: str, box: Box, data: NDArray[Any]) -> int:
        """Write one core of one array and return its checksum.

        Raises
        ------
        StoreError
            If the box is not exactly one core.
        """
        ...

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Read a box of an array at a pyramid level; leading axes are read whole."""
        ...

    def mark(self, stage: str, tile: Tile) -> None:
        """Mark the tile as done in this stage; call it after all data of the tile are written."""
        ...

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Return a (tile_y, tile_x) bool array that is True for the marked tiles."""
        ...

    def put_arrays(self, stage: str, name: str, arrays: Arrays) -> None:
        """Write a scratch record atomically."""
        ...

    def get_arrays(
        self, stage: str, name: str, only: Collection[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Read the arrays of a scratch record that ``only`` names; all by default."""
        ...

    def drop_arrays(self, stage: str) -> None:
        """Remove all scratch records of a stage."""
        ...

    def list_arrays(self, stage: str) -> list[str]:
        """Return the sorted names of the scratch records of a stage."""
        ...

    def write_mesh(self, name: str, values: NDArray[np.float32]) -> None:
        """Write ``sky`` or ``noise`` as a whole."""
        ...

    def read_mesh(self, name: str) -> NDArray[np.float32]:
        """Read ``sky`` or ``noise``; NaN where unknown."""
        ...

    def write_sources(self, blocks: Iterable[Columns], count: int) -> None:
        """Write the catalogue in blocks of rows."""
        ...

    def write_source_columns(self, columns: Iterable[Column]) -> None:
        """Write the catalogue column by column."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Read columns of the catalogue (all if no names are given) for a range of rows."""
        ...


class CatalogueReader(Protocol):
    """Read access to the catalogue, for verification and the parquet file."""

    @property
    def identity(self) -> RunIdentity:
        """Inputs, model, version and options of the run."""
        ...

    @property
    def n_sources(self) -> int:
        """Number of rows."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Read columns (all if no names are given) for a range of rows."""
        ...

    def source_blocks(
        self, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the catalogue in blocks of rows; one empty block if it has no rows."""
        ...

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Return the attributes of a column: units, long_name, ..."""
        ...


class StoreReader(CatalogueReader, Protocol):
    """Read access to a store, for verification, integrity checks, pyramid and publication.

    Notes
    -----
    Those modules depend on this protocol and not on the store class, which calls them.
    """

    @property
    def path(self) -> Path:
        """Folder of the hierarchy."""
        ...

    @property
    def layout(self) -> Layout:
        """Shapes and names."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root group."""
        ...

    @property
    def has_sources(self) -> bool:
        """Whether there is a catalogue."""
        ...

    def has(self, name: str) -> bool:
        """Return whether an array or group such as ``image/0/science`` exists."""
        ...

    def list_maps(self, level: int) -> list[str]:
        """Return the names of the maps of a level."""
        ...

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Read a box of an array at a pyramid level; leading axes are read whole."""
        ...

    def checksum(self, name: str, box: Box, level: int = 0) -> int:
        """Return the CRC-32C of the file of a core on disk; 0 if there is none."""
        ...

    def read_checksums(self, level: int) -> dict[str, NDArray[np.uint32]]:
        """Read the checksums computed as the shards were written: (shard_y, shard_x), by map."""
        ...

    def pending(self, stage: str) -> list[Tile]:
        """Return the tiles that are not marked as done, in raster order."""
        ...
