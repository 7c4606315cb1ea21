"""The output store: a zarr v3 hierarchy on a local disk, readable with plain xarray.

`ZarrStore` is the interface that the pipeline uses. The modules next to this one do the work: hierarchy
(groups and arrays), shards, catalogue, pyramid, lifecycle, verification, integrity, scratch_records.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box, Tile
from fcnpipe.stores.array_access import (
    convert_data_errors,
    convert_metadata_errors,
    open_array,
)
from fcnpipe.stores.atomic_writes import convert_os_errors, link_or_copy
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
from fcnpipe.stores.integrity import CHECKSUMS, TABLE_AXES, Damage, find_damage, restore_metadata
from fcnpipe.stores.lifecycle import (
    FAILED_TILES,
    OVERWRITE_MARK,
    consolidate,
    prepare_parquet,
    publish_store,
    read_attributes,
    set_attributes,
)
from fcnpipe.stores.paths import final_path, partial_path
from fcnpipe.stores.pyramid import create_pyramid, level_count, level_grid, shrink_maps
from fcnpipe.stores.scratch_records import (
    list_records,
    read_record,
    remove_damaged_records,
    write_record,
)
from fcnpipe.stores.shard_io import ShardedMap
from fcnpipe.stores.verification import check_sums, check_tile, verify_store

CONVENTIONS = "CF-1.12"
WCS = "image/0/wcs"


@dataclass(frozen=True)
class ZarrStore:
    """A store on the local file system, which is picklable and holds no open file.

    Parameters
    ----------
    path : Path
        Folder of the hierarchy: OUT.zarr.partial during the run, OUT.zarr afterwards.

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

    # -- life cycle ----------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        out: str | Path,
        layout: Layout,
        identity: RunIdentity,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> ZarrStore:
        """Create OUT.zarr.partial.

        Parameters
        ----------
        out : str or Path
            Path of the finished store.
        layout : Layout
            Shapes and names.
        identity : RunIdentity
            Inputs, model, version and options of the run.
        attrs : dict, optional
            Additional root attributes: title, history, versions, names of the inputs, ...
        overwrite : bool
            Whether OUT.zarr may be replaced; recorded, so that a resumed run does not need the option.

        Returns
        -------
        ZarrStore
            The partial store.

        Raises
        ------
        StoreError
            If the path cannot be written or exists already.
        """
        partial = partial_path(out)
        building = partial.with_name(f"{partial.name}.{uuid.uuid4().hex}.new")
        attributes = {
            "Conventions": CONVENTIONS,
            **(attrs or {}),
            **identity.attributes(),
            "status": "partial",
            "layout": layout.dump(),
        }
        with convert_os_errors(partial):
            for unfinished in partial.parent.glob(f"{partial.name}.*.new"):
                shutil.rmtree(unfinished, ignore_errors=True)
            building.parent.mkdir(parents=True, exist_ok=True)
            create_hierarchy(building, layout, attributes)
            if overwrite:
                (building / SCRATCH / OVERWRITE_MARK).touch()
            # After a crash before this line there is no partial store, and the next run starts fresh.
            os.rename(building, partial)
        return cls(partial)

    @classmethod
    def resume(cls, out: str | Path) -> ZarrStore:
        """Open OUT.zarr.partial."""
        return cls.open(partial_path(out))

    @classmethod
    def open(cls, path: str | Path) -> ZarrStore:
        """Open a finished store, or a partial store by its path OUT.zarr.partial.

        Raises
        ------
        StoreError
            If the path is not a store, or its root attributes are damaged.
        """
        path = Path(path)
        if "run_key" not in read_attributes(path):
            damaged = ", or its zarr.json is damaged" if (path / "zarr.json").is_file() else ""
            raise StoreError(
                f"{path} is not an fcnpipe store{damaged}: pass the OUT.zarr of 'fcnpipe segment'"
            )
        store = cls(path)
        store._check_root()
        return store

    def _check_root(self) -> None:
        """Raise StoreError unless the root attributes can be read."""
        try:
            _ = self.layout, self.identity, self.attrs["status"]
        except Exception:  # a changed byte of the text may raise anything
            raise StoreError(
                f"zarr.json of {self.path} is damaged: restore it from a copy, "
                "or move the store away and segment the image again"
            ) from None

    def publish(self, overwrite: bool = False, checked: bool = False) -> ZarrStore:
        """Verify the store, consolidate, flush and rename it to OUT.zarr, with OUT.parquet next to it.

        Parameters
        ----------
        overwrite : bool
            Whether an existing OUT.zarr may be replaced; ``overwrite`` at `create` has the same effect.
        checked : bool
            Whether labels and catalogue have been verified already, with `check_tile` and
            `check_sums`, and the parquet file has been written by `prepare_parquet`.

        Returns
        -------
        ZarrStore
            The finished store.

        Raises
        ------
        StoreError
            If OUT.zarr exists and may not be replaced.
        VerificationError
            If labels, catalogue and ledger contradict each other; the partial store is kept.
        """
        with convert_os_errors(self.path):
            return replace(self, path=publish_store(self, overwrite, checked))

    def close_incomplete(self, failed: Sequence[str]) -> None:
        """Make the store readable with status ``incomplete`` and the names of the failed tiles."""
        with convert_os_errors(self.path):
            consolidate(self.path, {"status": "incomplete", FAILED_TILES: list(failed)})

    def reopen(self) -> None:
        """Set the status back to ``partial`` and clear the names of failed tiles."""
        with convert_os_errors(self.path):
            set_attributes(self.path, {"status": "partial", FAILED_TILES: []})

    def check_tile(self, tile: Tile, written: Mapping[str, int] | None = None) -> TileCheck:
        """Read the maps of a tile back and compare them with the catalogue, for `check_sums`.

        Parameters
        ----------
        tile : Tile
            The tile.
        written : dict, optional
            Checksum of each map as it was written, by name.
        """
        return check_tile(self, tile, written or {})

    def check_sums(self, checks: Iterable[TileCheck]) -> list[str]:
        """Return the contradictions within the tiles and with the catalogue, one line each."""
        return list(check_sums(self, checks))

    def prepare_parquet(self) -> None:
        """Write the parquet catalogue under a temporary name, which `publish` changes to OUT.parquet."""
        with convert_os_errors(self.path):
            prepare_parquet(self)

    def verify(self) -> Verification:
        """Check tile by tile that labels, catalogue and ledger agree."""
        return verify_store(self)

    def find_damage(self) -> Iterator[Damage]:
        """Read and decode the whole store, and yield everything that differs from what was written."""
        return find_damage(self)

    def restore_metadata(self, cards: Sequence[str], pyramid: bool) -> None:
        """Restore missing or damaged metadata and coordinates, with ``pyramid`` also those of the pyramid."""
        with convert_os_errors(self.path):
            restore_metadata(self.path, replace(self.layout, cards=tuple(cards)), pyramid)

    @property
    def location(self) -> Any:
        """Store argument for zarr and xarray, with which they open the store."""
        return self.path

    # -- attributes ----------------------------------------------------------------------

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root group, read from disk at each access."""
        attributes: dict[str, Any] = json.loads((self.path / "zarr.json").read_text())["attributes"]
        return attributes

    @cached_property
    def layout(self) -> Layout:
        """Shapes and names."""
        return load_layout(self.attrs["layout"], self._read_cards())

    def _read_cards(self) -> list[str]:
        """Return the header cards from the consolidated metadata, or else from the WCS variable."""
        root = json.loads((self.path / "zarr.json").read_text())
        copies = root.get("consolidated_metadata", {}).get("metadata", {})
        try:
            node = copies.get(WCS) or json.loads((self.path / WCS / "zarr.json").read_text())
            return [str(card) for card in node["attributes"]["fits_cards"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @property
    def identity(self) -> RunIdentity:
        """Inputs, model, version and options of the run."""
        return load_identity(self.attrs)

    @property
    def cards(self) -> tuple[str, ...]:
        """FITS header cards of the WCS; empty if there is none."""
        return self.layout.cards

    def has(self, name: str) -> bool:
        """Return whether an array or group such as ``image/0/science`` exists."""
        return (self.path / name / "zarr.json").is_file()

    # -- images --------------------------------------------------------------------------

    def write_tile(self, name: str, box: Box, data: NDArray[Any]) -> int:
        """Write one core of one array at full size.

        Parameters
        ----------
        name : str
            ``label``, ``probability``, ``elevation``, ``flags``, ``science``, ``segments``, or a
            network output of ``layout.maps``.
        box : Box
            Exactly one core of ``layout.grid``.
        data : (h, w) or (n, h, w) ndarray
            Values, with the dtype of the array.

        Returns
        -------
        int
            CRC-32C of the file; 0 if all values are the fill value, in which case there is no file.

        Raises
        ------
        StoreError
            If the box is not exactly one core, or the disk cannot be written.
        """
        check_core(self.layout.grid, box)
        return self._write_core(self._array_name(name), box, data)

    def read(self, name: str, box: Box, level: int = 0) -> NDArray[Any]:
        """Read a box of an array as stored, without applying scale_factor.

        Parameters
        ----------
        name : str
            As for `write_tile`.
        box : Box
            Inside the level, in pixels of that level.
        level : int
            Pyramid level; 0 is the full size.

        Returns
        -------
        (h, w) or (n, h, w) ndarray
            Values with the dtype of the array; all entries of a leading axis are read.

        Raises
        ------
        StoreError
            If there is no such array, or a shard is damaged.
        """
        return self._open_map(self._array_name(name, level)).read(box)

    def checksum(self, name: str, box: Box, level: int = 0) -> int:
        """Return the CRC-32C of the file of a core on disk; 0 if there is none."""
        return self._open_map(self._array_name(name, level)).checksum(box)

    def is_whole(self, name: str, box: Box, written: int, level: int = 0) -> bool:
        """Return whether the file of a core has the length that its index states.

        A core whose checksum ``written`` is 0 needs no file and is always whole.
        """
        return not written or self._open_map(self._array_name(name, level)).is_whole(box)

    def list_maps(self, level: int) -> list[str]:
        """Return the names of the maps of a level."""
        specs = image_specs(self.layout, level)
        kept = level > 0 or self.layout.keep_image
        return [name for name in specs if name != "science" or kept]

    def adopt_tile(self, other: ZarrStore, name: str, tile: Tile) -> int:
        """Link or copy a map of a tile from another store of the same layout, and return its checksum."""
        source, target = (s._open_map(s._array_name(name)).file(tile.core) for s in (other, self))
        with convert_os_errors(self.path):
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)
        return self.checksum(name, tile.core)

    def _write_core(self, name: str, box: Box, data: NDArray[Any]) -> int:
        target = self._open_map(name)
        assert data.dtype == target.dtype, (name, data.dtype, target.dtype)
        assert data.shape == (*target.lead, *box.shape), (name, data.shape, box)
        with convert_os_errors(self.path):
            return target.write(box, data)

    # -- ledger --------------------------------------------------------------------------

    def mark(self, stage: str, tile: Tile) -> None:
        """Mark the tile as done in this stage; call it after all data of the tile are written."""
        with convert_os_errors(self.path):
            self._open_array("ledger")[self._stage_index(stage), tile.row, tile.column] = 1

    def unmark(self, stage: str) -> None:
        """Remove all marks of a stage, so that it runs again."""
        shutil.rmtree(self._ledger_folder(stage), ignore_errors=True)

    def unmark_tile(self, stage: str, tile: Tile) -> None:
        """Remove the mark of a tile in a stage."""
        mark = self._ledger_folder(stage) / str(tile.row) / str(tile.column)
        mark.unlink(missing_ok=True)

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Return a (tile_y, tile_x) bool array that is True for the marked tiles.

        Notes
        -----
        The folder is listed instead of reading the array: an unmarked tile has no file (0 is the fill
        value) and files appear by rename, so a tile is marked if its file exists. For 10,000 tiles this
        takes 0.05 s, and 3 s through zarr. In a store that was uploaded to a URL the ledger is one chunk.
        """
        whole = self._read_single_chunk_ledger()
        if whole is not None:
            return np.asarray(whole[self._stage_index(stage)], bool)
        marks = np.zeros(self.layout.grid.counts, bool)
        for row, column in _scan_marks(self._ledger_folder(stage)):
            if row < marks.shape[0] and column < marks.shape[1]:
                marks[row, column] = True
        return marks

    def pending(self, stage: str) -> list[Tile]:
        """Return the tiles that are not marked, in raster order."""
        marks = self.done(stage)
        return [tile for tile in self.layout.grid if not marks[tile.row, tile.column]]

    def _read_single_chunk_ledger(self) -> NDArray[np.uint8] | None:
        """Return the (stage, tile_y, tile_x) ledger; None if it has several chunks or is damaged."""
        try:
            array = self._open_array("ledger")
            return np.asarray(array[...]) if array.chunks == array.shape else None
        except Exception:  # zarr may raise anything for damaged metadata or a damaged chunk
            return None

    def _stage_index(self, stage: str) -> int:
        return self.layout.stages.index(stage)

    def _ledger_folder(self, stage: str) -> Path:
        return self.path / "ledger" / "c" / str(self._stage_index(stage))

    # -- scratch -------------------------------------------------------------------------

    def put_arrays(self, stage: str, name: str, arrays: Arrays) -> None:
        """Write a scratch record atomically; publication removes it."""
        with convert_os_errors(self.path):
            write_record(self.path / SCRATCH / stage, name, arrays)

    def get_arrays(
        self, stage: str, name: str, only: Collection[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Read the arrays of a scratch record that ``only`` names; all by default.

        Raises
        ------
        KeyError
            If there is no such record, or no such array in it.
        StoreError
            If the record is damaged.
        """
        return read_record(self.path / SCRATCH / stage, name, only)

    def has_arrays(self, stage: str, name: str) -> bool:
        """Return whether a scratch record exists."""
        return (self.path / SCRATCH / stage / f"{name}.npz").is_file()

    def drop_arrays(self, stage: str) -> None:
        """Remove all scratch records of a stage."""
        shutil.rmtree(self.path / SCRATCH / stage, ignore_errors=True)

    def drop_broken_arrays(self) -> list[tuple[str, str]]:
        """Remove damaged scratch records, and return stage and name of each."""
        return remove_damaged_records(self.path / SCRATCH)

    def list_arrays(self, stage: str) -> list[str]:
        """Return the sorted names of the scratch records of a stage."""
        return list_records(self.path / SCRATCH / stage)

    # -- background, tiles, sources ------------------------------------------------------

    def write_mesh(self, name: str, values: NDArray[np.float32]) -> None:
        """Write ``sky`` or ``noise`` as a whole: ``layout.mesh_shape`` float32, NaN where unknown."""
        array = self._open_array(f"background/{name}")
        assert values.shape == array.shape, (name, values.shape, array.shape)
        with convert_os_errors(self.path):
            array[...] = values.astype(np.float32)

    def read_mesh(self, name: str) -> NDArray[np.float32]:
        """Read ``sky`` or ``noise``: ``layout.mesh_shape`` float32, NaN where unknown."""
        return np.asarray(self._read_values(f"background/{name}"), np.float32)

    def write_tiles(self, columns: Columns) -> None:
        """Write the table of tiles: (tile_y, tile_x) arrays such as status and n_sources."""
        with convert_os_errors(self.path):
            group = replace_group(self.path, "tiles", {"title": "one row per tile"})
            for name, (values, attrs) in columns.items():
                assert values.shape == self.layout.grid.counts, (name, values.shape)
                store_values(group, name, values, ("tile_y", "tile_x"), attrs)

    def read_tiles(self, name: str) -> NDArray[Any]:
        """Read a column of the table of tiles, (tile_y, tile_x)."""
        return self._read_values(f"tiles/{name}")

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
                store_values(group, name, values, TABLE_AXES, {})

    def read_checksums(self, level: int) -> dict[str, NDArray[np.uint32]]:
        """Read the tables of `write_checksums` by map; empty if there are none."""
        names = [n for n in self.list_maps(level) if self.has(f"{CHECKSUMS}/{level}/{n}")]
        return {n: self._read_values(f"{CHECKSUMS}/{level}/{n}") for n in names}

    def write_sources(self, blocks: Iterable[Columns], count: int) -> None:
        """Write the catalogue in blocks of rows, in order of label.

        Parameters
        ----------
        blocks : iterable of {name: (values, attrs)}
            All with the same columns; at least one, which may have no rows.
        count : int
            Total number of rows.

        Raises
        ------
        StoreError
            If the blocks do not add up to ``count`` rows.
        """
        with convert_os_errors(self.path):
            write_blocks(self.path, blocks, count)

    def write_source_columns(self, columns: Iterable[Column]) -> None:
        """Write the catalogue column by column, rows in order of label.

        Parameters
        ----------
        columns : iterable of (name, values, attributes)
            Only one of them is in memory at a time.

        Raises
        ------
        StoreError
            If the columns have different lengths.
        """
        with convert_os_errors(self.path):
            write_columns(self.path, columns)

    @property
    def has_sources(self) -> bool:
        """Whether there is a catalogue."""
        return self.has("sources")

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the catalogue, in order.

        Raises
        ------
        StoreError
            If there is no catalogue.
        """
        if not self.has_sources:
            raise StoreError(f"{self.path} has no catalogue: only 'fcnpipe segment' creates one")
        with convert_metadata_errors(self.path, "sources"):
            return [str(name) for name in self._open_group("sources").attrs["columns"]]  # type: ignore[union-attr]

    @property
    def n_sources(self) -> int:
        """Number of rows of the catalogue."""
        return int(self._open_array(f"sources/{self.columns[0]}").shape[0])

    def column_attrs(self, name: str) -> dict[str, Any]:
        """Return the attributes of a column: units, long_name, ..."""
        return dict(self._open_array(f"sources/{name}").attrs)

    def read_sources(
        self, names: Iterable[str] | None = None, rows: slice = slice(None)
    ) -> dict[str, NDArray[Any]]:
        """Read columns of the catalogue (all if no names are given) for a range of rows."""
        wanted = self.columns if names is None else names
        return {name: self._read_values(f"sources/{name}", rows) for name in wanted}

    def source_blocks(
        self, names: Iterable[str] | None = None, step: int = ROW_CHUNK
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the catalogue in blocks of ``step`` rows; one empty block if it has no rows."""
        wanted = self.columns if names is None else list(names)
        for start in range(0, max(self.n_sources, 1), step):
            yield self.read_sources(wanted, slice(start, start + step))

    # -- pyramid -------------------------------------------------------------------------

    @property
    def level_count(self) -> int:
        """Number of pyramid levels above the full image."""
        return level_count(self.layout)

    def create_pyramid(self, science: bool) -> None:
        """Create the empty pyramid, with or without the science image, and its OME-NGFF metadata."""
        with convert_os_errors(self.path):
            create_pyramid(self.path, self.layout, science or self.layout.keep_image)

    def pyramid_tiles(self, level: int) -> list[Tile]:
        """Return the shards of a level; `build_level` writes one of them."""
        return list(level_grid(self.layout, level))

    def build_level(
        self, level: int, tile: Tile, science: ScienceReader | None = None
    ) -> dict[str, int]:
        """Write one shard of each map of a level, computed from the level below.

        Parameters
        ----------
        level : int
            1, 2, ...
        tile : Tile
            One of `pyramid_tiles`.
        science : callable, optional
            Reads the full-size image, for level 1 of a store that does not keep it.

        Returns
        -------
        dict
            CRC-32C of each shard, by map.
        """
        with convert_os_errors(self.path):
            return {
                name: self.write_level_tile(name, level, tile.core, data)
                for name, data in shrink_maps(self, level, tile, science)
            }

    def write_level_tile(self, name: str, level: int, box: Box, data: NDArray[Any]) -> int:
        """Write one shard of one map of a level and return its checksum.

        Raises
        ------
        StoreError
            If the box is not exactly one shard.
        """
        check_core(level_grid(self.layout, level), box)
        return self._write_core(self._array_name(name, level), box, data)

    def write_pyramid(self, science: ScienceReader | None = None) -> None:
        """Write the whole pyramid, level by level, in bounded memory."""
        self.create_pyramid(science is not None)
        for level in range(1, 1 + self.level_count):
            for tile in self.pyramid_tiles(level):
                self.build_level(level, tile, science)

    # -- access to arrays and groups -----------------------------------------------------

    def _array_name(self, name: str, level: int = 0) -> str:
        return f"{SCRATCH}/{name}" if name == "segments" else f"image/{level}/{name}"

    def _open_map(self, name: str) -> ShardedMap:
        array = self._open_array(name)
        assert array.shards is not None, name
        lead, fill = array.shards[:-2], float(array.fill_value)
        (height, width), (chunk_height, chunk_width) = array.shards[-2:], array.chunks[-2:]
        shard, chunk = (height, width), (chunk_height, chunk_width)
        return ShardedMap(self.path / name, lead, shard, chunk, array.dtype, fill)

    def _read_values(self, name: str, rows: Any = ...) -> NDArray[Any]:
        array = self._open_array(name)
        with self.convert_errors(name):
            return np.asarray(array[rows])

    def convert_errors(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which damaged data of an array raise a StoreError that states the fix."""
        fix = f"restore it with 'fcnpipe verify --repair {self.path}'"
        if final_path(self.path) != self.path:
            fix = "resume the run with the same command"
        return convert_data_errors(self.path, name, fix)

    def _open_array(self, name: str) -> zarr.Array[Any]:
        return open_array(self.path, name)

    def _open_group(self, name: str) -> zarr.Group:
        with convert_metadata_errors(self.path, name):
            return zarr.open_group(self.path / name, mode="r+", use_consolidated=False)

    def __reduce__(self) -> tuple[type[ZarrStore], tuple[Path]]:
        return type(self), (self.path,)


def _scan_marks(folder: Path) -> Iterator[tuple[int, int]]:
    if folder.is_dir():
        for row in os.scandir(folder):
            for column in os.scandir(row.path):
                if column.name.isdecimal():
                    yield int(row.name), int(column.name)
