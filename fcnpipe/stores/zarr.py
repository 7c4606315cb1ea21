"""The output store: one zarr v3 hierarchy that any xarray user can open."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box, Tile
from fcnpipe.stores.atomic_writes import atomic_write, convert_os_errors
from fcnpipe.stores.base import (
    Arrays,
    Column,
    Columns,
    Layout,
    ScienceReader,
    TileCheck,
    Verification,
    check_core,
    load_layout,
)
from fcnpipe.stores.catalogue import ROW_CHUNK, write_blocks, write_columns
from fcnpipe.stores.hierarchy import (
    SCRATCH,
    create_hierarchy,
    image_specs,
    replace_group,
    store_values,
)
from fcnpipe.stores.identity import RunIdentity, load_identity
from fcnpipe.stores.integrity import CHECKSUMS, Damage, find_damage, restore_frame
from fcnpipe.stores.lifecycle import (
    FAILED,
    OVERWRITE_MARK,
    consolidate,
    prepare_parquet,
    publish_store,
    read_attributes,
    set_attributes,
)
from fcnpipe.stores.paths import partial_path
from fcnpipe.stores.pyramid import create_pyramid, level_count, level_grid, shrink_maps
from fcnpipe.stores.scratch_records import (
    drop_broken_records,
    get_record,
    list_records,
    put_record,
)
from fcnpipe.stores.shards import ShardedMap
from fcnpipe.stores.verification import check_sums, check_tile, verify_store

CONVENTIONS = "CF-1.12"
WCS = "image/0/wcs"


@dataclass(frozen=True)
class ZarrStore:
    """A store on the local file system; picklable, holds no open file.

    Parameters
    ----------
    path : Path
        Folder of the hierarchy: OUT.zarr.partial while a run lasts, OUT.zarr afterwards.

    Examples
    --------
    >>> import tempfile
    >>> layout = Layout((96, 64), (64, 64), (2, 1))
    >>> store = ZarrStore.create(
    ...     Path(tempfile.mkdtemp()) / "out.zarr", layout, RunIdentity("i", "m", "1"))
    >>> tile = layout.grid.tile(1, 0)
    >>> checksum = store.write_tile("label", tile.core, np.ones(tile.core.shape, np.int32))
    >>> store.mark("label", tile)
    >>> store.done("label").ravel()
    array([False,  True])
    """

    path: Path

    # -- life ----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        out: str | Path,
        layout: Layout,
        identity: RunIdentity,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> ZarrStore:
        """Create OUT.zarr.partial and give it.

        Parameters
        ----------
        out : str or Path
            Where the finished store will lie.
        layout, identity
            What is stored and what it comes from.
        attrs : dict, optional
            More root attributes: title, history, versions, names of the inputs, ...
        overwrite : bool
            Remembers the user's consent to replace OUT.zarr, so that a resume needs no second one.

        Raises
        ------
        StoreError
            If the place cannot be written or something is there already.
        """
        partial = partial_path(out)
        building = partial.with_name(f"{partial.name}.{uuid.uuid4().hex}.new")
        everything = {
            "Conventions": CONVENTIONS,
            **(attrs or {}),
            **identity.attributes(),
            "status": "partial",
            "layout": layout.dump(),
        }
        with convert_os_errors(partial):
            for begun in partial.parent.glob(f"{partial.name}.*.new"):
                shutil.rmtree(begun, ignore_errors=True)
            building.parent.mkdir(parents=True, exist_ok=True)
            create_hierarchy(building, layout, everything)
            if overwrite:
                (building / SCRATCH / OVERWRITE_MARK).touch()
            # A crash before this line leaves nothing that a resume could mistake for a run.
            os.rename(building, partial)
        return cls(partial)

    @classmethod
    def resume(cls, out: str | Path) -> ZarrStore:
        """Open OUT.zarr.partial."""
        return cls.open(partial_path(out))

    @classmethod
    def open(cls, path: str | Path) -> ZarrStore:
        """Open a finished store, or a partial one by its full name.

        Raises
        ------
        StoreError
            If there is none.
        """
        path = Path(path)
        if "run_key" not in read_attributes(path):
            damaged = ", or its zarr.json is damaged" if (path / "zarr.json").is_file() else ""
            raise StoreError(
                f"{path} is no fcnpipe store{damaged}: give the OUT.zarr of 'fcnpipe segment'"
            )
        return cls(path)

    def publish(self, overwrite: bool = False, checked: bool = False) -> ZarrStore:
        """Verify, consolidate, flush and rename to OUT.zarr, with OUT.parquet beside it.

        Parameters
        ----------
        overwrite : bool
            Whether an OUT.zarr may be replaced; consent given at `create` counts too.
        checked : bool
            Whether labels and catalogue have been verified already, with `check_tile` and
            `check_sums`, and the parquet file prepared.

        Raises
        ------
        StoreError
            If there is an OUT.zarr and no consent to replace it.
        VerificationError
            If labels, catalogue and ledger contradict each other; the partial store stays.
        """
        with convert_os_errors(self.path):
            return replace(self, path=publish_store(self, overwrite, checked))

    def close_incomplete(self, failed: Sequence[str]) -> None:
        """Name what failed and make the rest readable; the status is then ``incomplete``."""
        with convert_os_errors(self.path):
            consolidate(self.path, {"status": "incomplete", FAILED: list(failed)})

    def reopen(self) -> None:
        """Set the status back to ``partial``, nothing having failed yet."""
        with convert_os_errors(self.path):
            set_attributes(self.path, {"status": "partial", FAILED: []})

    def check_tile(self, tile: Tile, written: Mapping[str, int] | None = None) -> TileCheck:
        """Read a tile's maps back and hold them against what is known; see `check_sums`.

        Parameters
        ----------
        tile : Tile
            The tile.
        written : dict, optional
            Checksum of each map as it was written.
        """
        return check_tile(self, tile, written or {})

    def check_sums(self, checks: Iterable[TileCheck]) -> list[str]:
        """Give the contradictions of all tiles, and between them and the catalogue, one line each."""
        return list(check_sums(self, checks))

    def prepare_parquet(self) -> None:
        """Write the catalogue as parquet, under a name that `publish` changes to OUT.parquet."""
        with convert_os_errors(self.path):
            prepare_parquet(self)

    def verify(self) -> Verification:
        """Check that labels, catalogue and ledger agree, tile by tile."""
        return verify_store(self)

    def find_damage(self) -> Iterator[Damage]:
        """Read and decode everything, and give what is not as it was written."""
        return find_damage(self)

    def restore_frame(self, cards: Sequence[str], pyramid: bool) -> None:
        """Put back what is lost of metadata and coordinates, those of the pyramid if it is there."""
        with convert_os_errors(self.path):
            restore_frame(self.path, replace(self.layout, cards=tuple(cards)), pyramid)

    @property
    def location(self) -> Any:
        """What zarr and xarray open to read it."""
        return self.path

    # -- what it is ----------------------------------------------------------------------

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root group, as they are on disk now."""
        attributes: dict[str, Any] = json.loads((self.path / "zarr.json").read_text())["attributes"]
        return attributes

    @cached_property
    def layout(self) -> Layout:
        """Shapes and names."""
        return load_layout(self.attrs["layout"], self._read_cards())

    def _read_cards(self) -> list[str]:
        """Give the header cards from the root's copy, or from their place; none if both are lost."""
        root = json.loads((self.path / "zarr.json").read_text())
        copies = root.get("consolidated_metadata", {}).get("metadata", {})
        try:
            node = copies.get(WCS) or json.loads((self.path / WCS / "zarr.json").read_text())
            return [str(card) for card in node["attributes"]["fits_cards"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @property
    def identity(self) -> RunIdentity:
        """What the store was made from."""
        return load_identity(self.attrs)

    @property
    def cards(self) -> tuple[str, ...]:
        """FITS header cards of the WCS; empty if none."""
        return self.layout.cards

    def has(self, name: str) -> bool:
        """Whether an array or group such as ``image/0/science`` is there."""
        return (self.path / name / "zarr.json").is_file()

    # -- images --------------------------------------------------------------------------

    def write_tile(self, name: str, box: Box, data: NDArray[Any]) -> int:
        """Write one core of one array at full size.

        Parameters
        ----------
        name : str
            ``label``, ``probability``, ``elevation``, ``flags``, ``science``, ``segments``, or an
            output of the layout's.
        box : Box
            Exactly one core of the layout's grid.
        data : (h, w) or (n, h, w) ndarray
            Of the array's dtype.

        Returns
        -------
        int
            CRC-32C of the file; 0 if all is fill value, then there is none.

        Raises
        ------
        StoreError
            If the box is not one core, or the disk refuses.
        """
        check_core(self.layout.grid, box)
        return self._write_core(self._place(name), box, data)

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Give a box of an array, leading axes whole, as it is stored (no scaling)."""
        return self._map(self._place(name, level)).read(box)

    def checksum(self, name: str, box: Box, level: int = 0) -> int:
        """Give the CRC-32C of the file of a core as it lies on disk now, 0 if there is none."""
        return self._map(self._place(name, level)).checksum(box)

    def is_whole(self, name: str, box: Box, written: int, level: int = 0) -> bool:
        """Whether the file of a core is there, if there should be one, and as long as it says."""
        return not written or self._map(self._place(name, level)).is_whole(box)

    def list_maps(self, level: int) -> list[str]:
        """Give the names of the maps of a level."""
        specs = image_specs(self.layout, level)
        kept = level > 0 or self.layout.keep_image
        return [name for name in specs if name != "science" or kept]

    def adopt_tile(self, other: ZarrStore, name: str, tile: Tile) -> int:
        """Take a map of a tile from another store of the same layout; give its checksum."""
        there, here = (s._map(s._place(name)).file(tile.core) for s in (other, self))
        with convert_os_errors(self.path):
            if there.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                _link(there, here)
        return self.checksum(name, tile.core)

    def _write_core(self, place: str, box: Box, data: NDArray[Any]) -> int:
        target = self._map(place)
        assert data.dtype == target.dtype, (place, data.dtype, target.dtype)
        assert data.shape == (*target.lead, *box.shape), (place, data.shape, box)
        with convert_os_errors(self.path):
            return target.write(box, data)

    # -- ledger --------------------------------------------------------------------------

    def mark(self, stage: str, tile: Tile) -> None:
        """Vouch that the tile's data of this stage has landed; call it last."""
        with convert_os_errors(self.path):
            self._array("ledger")[self._stage(stage), tile.row, tile.column] = 1

    def unmark(self, stage: str) -> None:
        """Forget what is done of a stage, so that it is done again."""
        shutil.rmtree(self._ledger_folder(stage), ignore_errors=True)

    def unmark_tile(self, stage: str, tile: Tile) -> None:
        """Forget that a stage is done for a tile."""
        mark = self._ledger_folder(stage) / str(tile.row) / str(tile.column)
        mark.unlink(missing_ok=True)

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Give (tile_y, tile_x) bool: which tiles are marked.

        Notes
        -----
        Reads the folder instead of the array: an unmarked tile has no file (0 is the fill
        value) and files appear by rename, so that presence is the mark. 10,000 tiles take
        0.05 s, through zarr 3 s. In a copy of a store that lay behind a URL it is one chunk.
        """
        whole = self._read_whole_ledger()
        if whole is not None:
            return np.asarray(whole[self._stage(stage)], bool)
        marks = np.zeros(self.layout.grid.counts, bool)
        for row, column in _scan_ledger(self._ledger_folder(stage)):
            marks[row, column] = True
        return marks

    def pending(self, stage: str) -> list[Tile]:
        """Give the tiles that are not marked, in raster order."""
        marks = self.done(stage)
        return [tile for tile in self.layout.grid if not marks[tile.row, tile.column]]

    def _read_whole_ledger(self) -> NDArray[np.uint8] | None:
        """Give (stage, tile_y, tile_x) if that is one chunk; none if it is not, or lost."""
        try:
            array = self._array("ledger")
            return np.asarray(array[...]) if array.chunks == array.shape else None
        except Exception:  # whatever zarr makes of metadata or a chunk that is damaged
            return None

    def _stage(self, stage: str) -> int:
        return self.layout.stages.index(stage)

    def _ledger_folder(self, stage: str) -> Path:
        return self.path / "ledger" / "c" / str(self._stage(stage))

    # -- scratch -------------------------------------------------------------------------

    def put_arrays(self, stage: str, name: str, arrays: Arrays) -> None:
        """Keep a scratch record, whole or not at all; it goes when the store is published."""
        with convert_os_errors(self.path):
            put_record(self.path / SCRATCH / stage, name, arrays)

    def get_arrays(
        self, stage: str, name: str, only: Collection[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Give a scratch record back, or ``only`` some of its arrays.

        Raises
        ------
        KeyError
            If there is none.
        """
        return get_record(self.path / SCRATCH / stage, name, only)

    def has_arrays(self, stage: str, name: str) -> bool:
        """Whether a scratch record is there."""
        return (self.path / SCRATCH / stage / f"{name}.npz").is_file()

    def drop_arrays(self, stage: str) -> None:
        """Remove all scratch records of a stage."""
        shutil.rmtree(self.path / SCRATCH / stage, ignore_errors=True)

    def drop_broken_arrays(self) -> list[tuple[str, str]]:
        """Remove scratch records that were not written to their end; give stage and name of each."""
        return drop_broken_records(self.path / SCRATCH)

    def list_arrays(self, stage: str) -> list[str]:
        """Give the sorted names of a stage's scratch records."""
        return list_records(self.path / SCRATCH / stage)

    # -- background, tiles, sources ------------------------------------------------------

    def write_mesh(self, name: str, values: NDArray[np.float32]) -> None:
        """Write ``sky`` or ``noise`` as a whole: `Layout.mesh_shape` float32, NaN unknown."""
        array = self._array(f"background/{name}")
        assert values.shape == array.shape, (name, values.shape, array.shape)
        with convert_os_errors(self.path):
            array[...] = values.astype(np.float32)

    def read_mesh(self, name: str) -> NDArray[np.float32]:
        """Give ``sky`` or ``noise``, `Layout.mesh_shape` float32, NaN unknown."""
        return np.asarray(self._array(f"background/{name}")[...], np.float32)

    def write_tiles(self, columns: Columns) -> None:
        """Write the table of tiles: (tile_y, tile_x) arrays such as status and n_sources."""
        with convert_os_errors(self.path):
            group = replace_group(self.path, "tiles", {"title": "one row a tile"})
            for name, (values, attrs) in columns.items():
                assert values.shape == self.layout.grid.counts, (name, values.shape)
                store_values(group, name, values, ("tile_y", "tile_x"), attrs)

    def read_tiles(self, name: str) -> NDArray[Any]:
        """Give a column of the table of tiles, (tile_y, tile_x)."""
        return np.asarray(self._array(f"tiles/{name}")[...])

    def write_checksums(self, level: int, tables: Mapping[str, NDArray[np.uint32]]) -> None:
        """Write the CRC-32C of the shards of each map of a level, (shard_y, shard_x)."""
        with convert_os_errors(self.path):
            if not self.has(CHECKSUMS):
                zarr.create_group(self.path / CHECKSUMS, zarr_format=3)
            group = replace_group(
                self.path,
                f"{CHECKSUMS}/{level}",
                {"title": f"CRC-32C of each shard of image/{level}"},
            )
            for name, values in tables.items():
                store_values(group, name, values, ("shard_y", "shard_x"), {})

    def read_checksums(self, level: int) -> dict[str, NDArray[np.uint32]]:
        """Give what `write_checksums` wrote; nothing if that was never done."""
        names = [n for n in self.list_maps(level) if self.has(f"{CHECKSUMS}/{level}/{n}")]
        return {n: np.asarray(self._array(f"{CHECKSUMS}/{level}/{n}")[...]) for n in names}

    def write_sources(self, blocks: Iterable[Columns], count: int) -> None:
        """Write the catalogue, block of rows by block of rows, in order of label.

        Parameters
        ----------
        blocks : iterable of {name: (values, attrs)}
            All with the same columns; at least one, which may have no rows.
        count : int
            Rows in all.

        Raises
        ------
        StoreError
            If the blocks do not add up to ``count``.
        """
        with convert_os_errors(self.path):
            write_blocks(self.path, blocks, count)

    def write_source_columns(self, columns: Iterable[Column]) -> None:
        """Write the catalogue, column by column, rows in order of label.

        Parameters
        ----------
        columns : iterable of (name, values, attributes)
            One is held at a time.

        Raises
        ------
        StoreError
            If a column has another length than the first.
        """
        with convert_os_errors(self.path):
            write_columns(self.path, columns)

    @property
    def has_sources(self) -> bool:
        """Whether there is a catalogue."""
        return self.has("sources")

    @property
    def columns(self) -> list[str]:
        """Names of the catalogue's columns, in their order.

        Raises
        ------
        StoreError
            If there is no catalogue.
        """
        if not self.has_sources:
            raise StoreError(f"{self.path} has no catalogue: only 'fcnpipe segment' makes one")
        with self._understood("sources"):
            return [str(name) for name in self._group("sources").attrs["columns"]]  # type: ignore[union-attr]

    @property
    def n_sources(self) -> int:
        """Rows of the catalogue."""
        return int(self._array(f"sources/{self.columns[0]}").shape[0])

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Give attributes of a column: units, long_name, ..."""
        return dict(self._array(f"sources/{name}").attrs)

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Give columns of the catalogue (all if not named) for a run of rows."""
        wanted = self.columns if names is None else names
        return {name: np.asarray(self._array(f"sources/{name}")[rows]) for name in wanted}

    def source_blocks(
        self, names: Iterable[str] | None = None, step: int = ROW_CHUNK
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Give the catalogue in blocks of rows; one empty block if it has none."""
        wanted = self.columns if names is None else list(names)
        for start in range(0, max(self.n_sources, 1), step):
            yield self.read_sources(wanted, slice(start, start + step))

    # -- pyramid -------------------------------------------------------------------------

    @property
    def level_count(self) -> int:
        """Levels of the pyramid above the full image."""
        return level_count(self.layout)

    def create_pyramid(self, science: bool) -> None:
        """Create the empty pyramid, with or without science image, and its OME-NGFF metadata."""
        with convert_os_errors(self.path):
            create_pyramid(self.path, self.layout, science or self.layout.keep_image)

    def pyramid_tiles(self, level: int) -> list[Tile]:
        """Give the shards of a level, each to be built by one `build_level` call."""
        return list(level_grid(self.layout, level))

    def build_level(
        self, level: int, tile: Tile, science: ScienceReader | None = None
    ) -> dict[str, int]:
        """Write one shard of each map of a level from the level below; give their checksums.

        Parameters
        ----------
        level : int
            1, 2, ...
        tile : Tile
            One of `pyramid_tiles`.
        science : callable, optional
            Reads the full-size image, for level 1 of a store that does not keep it.
        """
        with convert_os_errors(self.path):
            return {
                name: self.write_level_tile(name, level, tile.core, data)
                for name, data in shrink_maps(self, level, tile, science)
            }

    def write_level_tile(self, name: str, level: int, box: Box, data: NDArray[Any]) -> int:
        """Write one shard of one map of a level; anything but exactly one is a StoreError."""
        check_core(level_grid(self.layout, level), box)
        return self._write_core(self._place(name, level), box, data)

    def write_pyramid(self, science: ScienceReader | None = None) -> None:
        """Build the whole pyramid, level by level, in bounded memory."""
        self.create_pyramid(science is not None)
        for level in range(1, 1 + self.level_count):
            for tile in self.pyramid_tiles(level):
                self.build_level(level, tile, science)

    # -- zarr ----------------------------------------------------------------------------

    def _place(self, name: str, level: int = 0) -> str:
        return f"{SCRATCH}/{name}" if name == "segments" else f"image/{level}/{name}"

    def _map(self, name: str) -> ShardedMap:
        array = self._array(name)
        assert array.shards is not None, name
        lead, fill = array.shards[:-2], float(array.fill_value)
        (height, width), (chunk_height, chunk_width) = array.shards[-2:], array.chunks[-2:]
        shard, chunk = (height, width), (chunk_height, chunk_width)
        return ShardedMap(self.path / name, lead, shard, chunk, array.dtype, fill)

    def _array(self, name: str) -> zarr.Array[Any]:
        path = self.path / name
        try:
            status = (path / "zarr.json").stat()
        except FileNotFoundError:
            raise StoreError(f"{self.path} has no array {name}") from None
        with self._understood(name):
            return _open_array(path, (status.st_ino, status.st_mtime_ns))

    def _group(self, name: str) -> zarr.Group:
        with self._understood(name):
            return zarr.open_group(self.path / name, mode="r+", use_consolidated=False)

    @contextmanager
    def _understood(self, name: str) -> Iterator[None]:
        """Turn what zarr makes of broken metadata into one clear line."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StoreError(
                f"{self.path} has metadata of {name} that cannot be read: "
                f"'fcnpipe verify --repair {self.path}' mends them"
            ) from None

    def __reduce__(self) -> tuple[type[ZarrStore], tuple[Path]]:
        return type(self), (self.path,)


@lru_cache(maxsize=256)
def _open_array(path: Path, stamp: tuple[int, int]) -> zarr.Array[Any]:
    # The stamp tells an array from another that was later made at the same place.
    return zarr.open_array(path, mode="r+", zarr_format=3)


def _link(there: Path, here: Path) -> None:
    """Give a file a second name, or a copy where there are no such names."""
    with atomic_write(here) as temporary:
        try:
            os.link(there, temporary)
        except OSError:
            shutil.copyfile(there, temporary)


def _scan_ledger(folder: Path) -> Iterator[tuple[int, int]]:
    if folder.is_dir():
        for row in os.scandir(folder):
            for column in os.scandir(row.path):
                if column.name.isdecimal():
                    yield int(row.name), int(column.name)
