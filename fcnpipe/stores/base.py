"""What every output store does, and the records that describe one.

::

    shard = tile core          one writer each; the last row and column are clipped by the image
    +-----+-----+-----+-----+
    |chunk|chunk|chunk|chunk|  chunk = what is decompressed at a time
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
"""Stages that are done tile by tile: the ledger keeps an account of them."""

CHUNK = 512
"""Edge of a storage chunk, px, where tile and image are not smaller."""

Columns = Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]]
"""Column name -> (values, attributes such as ``units`` and ``long_name``)."""

Column = tuple[str, NDArray[Any], Mapping[str, Any]]
"""Column name, values, attributes."""

Arrays = Mapping[str, NDArray[Any]]
"""Name -> array; what a scratch record holds."""

ScienceReader = Callable[[Box], NDArray[np.float32]]
"""Box of the full-size image -> (band, h, w) float32; NaN is no data."""

State = Literal["fresh", "resume", "complete"]
"""What lies at an output path: nothing of use, a run to take up, or the finished result."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes and names that fix a store before a pixel is read.

    Attributes
    ----------
    shape : (int, int)
        Image height and width, px.
    edge : (int, int)
        Height and width of a tile core, px; it is the shard.
    mesh : (int, int)
        Rows and columns of background cells.
    cell : int
        Edge of a background cell, px.
    classes, bands, stages : tuple of str
        Names along the axes of probability, science and ledger.
    keep_image : bool
        Whether the science image is stored at full size.
    cards : tuple of str
        FITS header cards of the WCS; empty if none.
    unit : str
        Unit of a pixel value; empty if unknown.
    chunk : int
        Edge of a storage chunk, px; a smaller tile is one chunk.
    maps : tuple of OutputMap
        What a network gives, stored as it is; empty if sources are found.

    Raises
    ------
    PlanError
        If a tile core is no whole number of chunks.
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
            _check_edge(edge, min(self.chunk, edge))

    @property
    def grid(self) -> TileGrid:
        """The tile cores."""
        return TileGrid(self.shape, self.edge)

    @property
    def chunks(self) -> tuple[int, int]:
        """Height and width of a storage chunk, px."""
        height, width = (min(self.chunk, e, n) for e, n in zip(self.edge, self.shape, strict=True))
        return height, width

    @property
    def shards(self) -> tuple[int, int]:
        """Height and width of a shard, px: the core, or all of an axis shorter than it."""
        height, width = (
            e if n > e else round_up(n, c)
            for e, n, c in zip(self.edge, self.shape, self.chunks, strict=True)
        )
        return height, width

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Shape of sky and noise: the mesh, with a band axis in front if there are several."""
        return self.mesh if len(self.bands) == 1 else (len(self.bands), *self.mesh)

    def dump(self) -> str:
        """Give JSON that `load_layout` reads; the header cards are left out."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "cards"})


def load_layout(text: str, cards: Iterable[str] = ()) -> Layout:
    """Read what `Layout.dump` wrote.

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


def _check_edge(edge: int, chunk: int) -> None:
    if edge % chunk:
        low = edge // chunk * chunk
        raise PlanError(
            f"tile core of {edge} px is no whole number of {chunk}-px storage chunks: "
            f"use {low} or {low + chunk} px"
        )


@dataclass(frozen=True, slots=True)
class TileCheck:
    """What a tile's labels are when they are read back from disk.

    Attributes
    ----------
    labels : (n,) int32
        Labels that the tile has and the catalogue knows, rising.
    counts : (n,) int64
        Pixels of each.
    problems : tuple of str
        What contradicts the catalogue in this tile alone, one line each.
    checksums : dict
        CRC-32C of the shard of each map of the tile.
    """

    labels: NDArray[np.int32]
    counts: NDArray[np.int64]
    problems: tuple[str, ...] = ()
    checksums: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a store found.

    Attributes
    ----------
    sources, tiles, pixels : int
        How much was looked at.
    problems : tuple of str
        One line each; empty if labels, catalogue and ledger agree.
    """

    sources: int
    tiles: int
    pixels: int
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems


def check_core(grid: TileGrid, box: Box) -> Tile:
    """Give the tile whose core is ``box``.

    Raises
    ------
    StoreError
        If the box is anything but exactly one core: two writers in one shard lose data.

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
    """Where a run puts its maps, records and catalogue, and finds them again after a crash.

    Notes
    -----
    Stores are picklable and hold no open file. Image arrays at level 0 are ``label``
    (y, x) int32, ``probability`` (class, y, x) uint8, ``elevation`` (y, x) uint16, ``flags``
    (y, x) uint8, ``science`` (band, y, x) float32 and the scratch array ``segments`` (y, x) int32;
    where a network's outputs are stored as they are, these instead, flags and science apart.
    """

    @property
    def layout(self) -> Layout:
        """Shapes and names."""
        ...

    def write_tile(self, name: str, box: Box, data: NDArray[Any]) -> int:
        """Write one core of one array, give its checksum; anything but one core is a StoreError."""
        ...

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Give a box of an array, leading axes whole."""
        ...

    def mark(self, stage: str, tile: Tile) -> None:
        """Vouch that the tile's data of this stage has landed; call it last."""
        ...

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Give (tile_y, tile_x) bool: which tiles are marked."""
        ...

    def put_arrays(self, stage: str, name: str, arrays: Arrays) -> None:
        """Keep a scratch record, whole or not at all."""
        ...

    def get_arrays(
        self, stage: str, name: str, only: Collection[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Give a scratch record back, or ``only`` some of its arrays."""
        ...

    def drop_arrays(self, stage: str) -> None:
        """Remove all scratch records of a stage."""
        ...

    def list_arrays(self, stage: str) -> list[str]:
        """Give the sorted names of a stage's scratch records."""
        ...

    def write_mesh(self, name: str, values: NDArray[np.float32]) -> None:
        """Write ``sky`` or ``noise`` as a whole."""
        ...

    def read_mesh(self, name: str) -> NDArray[np.float32]:
        """Give ``sky`` or ``noise``, NaN where unknown."""
        ...

    def write_sources(self, blocks: Iterable[Columns], count: int) -> None:
        """Write the catalogue, block of rows by block of rows."""
        ...

    def write_source_columns(self, columns: Iterable[Column]) -> None:
        """Write the catalogue, column by column."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Give columns of the catalogue (all if not named) for a run of rows."""
        ...


class CatalogueReader(Protocol):
    """The catalogue of a store, as the parquet file and the verification read it."""

    @property
    def identity(self) -> RunIdentity:
        """What the store was made from."""
        ...

    @property
    def n_sources(self) -> int:
        """Rows of the catalogue."""
        ...

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Return columns of the catalogue (all if not named) for a run of rows."""
        ...

    def source_blocks(
        self, names: Iterable[str] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the catalogue in blocks of rows; one empty block if it has none."""
        ...

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Return the attributes of a column: units, long_name, ..."""
        ...


class StoreReader(CatalogueReader, Protocol):
    """A store as its checks read it: verification, integrity, pyramid and publication.

    Notes
    -----
    These modules depend on this protocol, not on the store that calls them.
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
        """Return a box of an array, leading axes whole."""
        ...

    def checksum(self, name: str, box: Box, level: int = 0) -> int:
        """Return the CRC-32C of the file of a core; 0 if there is none."""
        ...

    def read_checksums(self, level: int) -> dict[str, NDArray[np.uint32]]:
        """Return the CRC-32C of each shard as it was written, by map."""
        ...

    def pending(self, stage: str) -> list[Tile]:
        """Return the tiles that are not marked as done, in raster order."""
        ...
