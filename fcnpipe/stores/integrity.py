"""Integrity of the files of a store: checksums, damaged or missing files, restored metadata.

::

    checksums           attrs crc32c: {array: CRC-32C of its files} for all arrays but the maps,
                        including the tables of checksums
    checksums/0         label, probability, ... (shard_y, shard_x): CRC-32C of each shard, computed from
    checksums/1, ...    the bytes in memory as they were written; 0 = fill value only, no file

The checksums are of the stored (compressed) bytes, so they cost almost no time. They distinguish a
deleted shard, which reads as fill value, from an empty one.

A damaged table is computed again from the shards on disk: if it has the checksum of the table that was
written, it is the same table, and proves all shards. Otherwise an entry that can still be read proves the
shard that it fits. All other shards count as damaged, because nothing shows that they are what was written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Tile
from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.base import Layout, StoreReader
from fcnpipe.stores.hierarchy import SCRATCH, create_hierarchy, store_values
from fcnpipe.stores.parquet import describe_difference
from fcnpipe.stores.paths import parquet_path
from fcnpipe.stores.pyramid import create_pyramid, level_count, level_grid
from fcnpipe.stores.shard_io import extend_checksum
from fcnpipe.stores.verification import find_gaps

CHECKSUMS = "checksums"
"""Group of the checksums."""
TABLE_AXES = ("shard_y", "shard_x")
"""Names of the axes of a table of checksums."""
WITHOUT_CHECKSUM = ("ledger", "tiles/seconds")
"""Arrays without checksum: the files of the ledger are marks; the seconds differ in each run."""
UNREADABLE = -1
"""Stands for the checksum of files that the disk does not return."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a store that differs from what was written.

    Attributes
    ----------
    place : str
        Name of the array, such as ``image/0/label``, or of the file.
    why : str
        The difference.
    tile : Tile or None
        The damaged shard; None for arrays without shards.
    """

    place: str
    why: str
    tile: Tile | None = None

    def __str__(self) -> str:
        where = f" {self.tile.name}" if self.tile else ""
        return f"{self.place}{where} {self.why}"


def checksum_arrays(path: Path) -> dict[str, int]:
    """Return the CRC-32C of the files of each array that is not a map, by the name of the array."""
    return {name: _checksum_files(path / name) for name in _list_checksummed(path)}


def _list_checksummed(path: Path) -> list[str]:
    names = (file.parent.relative_to(path).as_posix() for file in path.rglob("zarr.json"))
    return sorted(name for name in names if _is_checksummed(path, name))


def _is_checksummed(path: Path, name: str) -> bool:
    if name.startswith((SCRATCH, *WITHOUT_CHECKSUM)):
        return False
    node = _read_metadata(path / name)
    return node.get("node_type") == "array" and "sharding_indexed" not in json.dumps(node)


def _read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a group or an array; empty if they are missing or truncated."""
    try:
        node = json.loads((path / "zarr.json").read_text())
    except (OSError, ValueError):
        return {}
    return node if isinstance(node, dict) else {}


def _checksum_files(path: Path) -> int:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    try:
        return reduce(extend_checksum, files, 0)
    except OSError:
        return UNREADABLE


def restore_metadata(path: Path, layout: Layout, pyramid: bool) -> None:
    """Restore missing or damaged metadata and coordinates of a partial store.

    Parameters
    ----------
    path : Path
        Folder of the store.
    layout : Layout
        Shapes and names.
    pyramid : bool
        Whether the pyramid has been created.
    """
    with tempfile.TemporaryDirectory(dir=path / SCRATCH) as folder:
        intact = Path(folder) / "fresh"
        create_hierarchy(intact, layout, {})
        if pyramid:
            create_pyramid(intact, layout, science=True)
        for file in intact.glob("*/**/*"):
            ours = path / file.relative_to(intact)
            if file.is_file() and not (ours.is_file() and ours.read_bytes() == file.read_bytes()):
                with atomic_write(ours) as temporary:
                    shutil.copyfile(file, temporary)


def find_damage(store: StoreReader) -> Iterator[Damage]:
    """Read and decode a whole store, and compare it with the checksums computed as it was written.

    Yields
    ------
    Damage
        Metadata first, then maps, other arrays, ledger and parquet file; nothing if the store is
        intact.
    """
    damaged = []
    for damage in chain(
        _find_damaged_metadata(store),
        _find_damaged_maps(store),
        _find_damaged_arrays(store),
        _find_damaged_marks(store),
    ):
        damaged.append(damage.place)
        yield damage
    if any(place.startswith("sources") for place in damaged):
        return  # the catalogue, with which the parquet file would be compared, is damaged itself
    if store.has_sources and (reason := describe_difference(store, parquet_path(store.path))):
        yield Damage("parquet", reason)


def _find_damaged_metadata(store: StoreReader) -> Iterator[Damage]:
    """Compare the metadata of each node with the copy in the root, and the run key with its parts."""
    if store.identity.key != store.attrs["run_key"]:
        yield Damage("zarr.json", "has a run key that does not fit its inputs, model and options")
    copies = _read_metadata_copies(store.path)
    if not copies:
        yield Damage("zarr.json", "has no copy of the metadata")
    for name, copy in copies.items():
        node = _read_metadata(store.path / name)
        if not node:
            yield Damage(name, "has no readable metadata")
        elif {**copy, "consolidated_metadata": None} != {**node, "consolidated_metadata": None}:
            yield Damage(name, "has metadata that differ from the copy in the root")


def _read_metadata_copies(path: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of all nodes as consolidated in the root; empty if there are none."""
    try:
        copies = _read_metadata(path)["consolidated_metadata"]["metadata"]
        return {name: dict(node) for name, node in copies.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _find_damaged_maps(store: StoreReader) -> Iterator[Damage]:
    for level in range(1 + level_count(store.layout)):
        for name in store.list_maps(level):
            yield from _find_damaged_shards(store, name, level)


def _find_damaged_shards(store: StoreReader, name: str, level: int) -> Iterator[Damage]:
    place = f"image/{level}/{name}"
    if not _read_metadata(store.path / place):
        yield Damage(place, "is missing")
        return
    try:
        table, proven = _read_table(store, name, level)
        _checksum_shard(store, name, level, level_grid(store.layout, level).tile(0, 0))
    except Exception:  # zarr may raise anything for damaged metadata
        yield Damage(place, "has metadata that cannot be used")
        return
    for tile in level_grid(store.layout, level):
        known = None if table is None else int(table[tile.row, tile.column])
        if reason := _check_shard(store, name, level, tile, known, proven):
            yield Damage(place, reason, tile)


def _read_table(
    store: StoreReader, name: str, level: int
) -> tuple[NDArray[np.uint32] | None, bool]:
    """Return the checksums of the shards of a map, and whether the table is proven to be the one written."""
    place = f"{CHECKSUMS}/{level}/{name}"
    seal = _read_array_checksums(store.path).get(place)
    grid = level_grid(store.layout, level)
    table = _read_array(store.path, place)
    if table is not None and (table.shape != grid.counts or table.dtype != np.uint32):
        table = None
    if table is not None and _checksum_files(store.path / place) == seal:
        return table, True
    found = np.zeros(grid.counts, np.uint32)
    for tile in grid:
        found[tile.row, tile.column] = max(_checksum_shard(store, name, level, tile), 0)
    return (found, True) if _checksum_table(found) == seal else (table, False)


def _checksum_table(values: NDArray[np.uint32]) -> int:
    """Return the CRC-32C of the files of a table of checksums, as a store holds them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        store_values(zarr.create_group(path, zarr_format=3), "values", values, TABLE_AXES, {})
        return _checksum_files(path / "values")


def _read_array_checksums(path: Path) -> dict[str, int]:
    """Return the result of `checksum_arrays` that was stored at publication; empty if it is lost."""
    group = _read_metadata_copies(path).get(CHECKSUMS) or _read_metadata(path / CHECKSUMS)
    try:
        return {str(name): int(known) for name, known in group["attributes"]["crc32c"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _read_array(path: Path, name: str) -> Any:
    """Return an array, opened by the root's copy of its metadata; None if it cannot be decoded."""
    try:
        array = zarr.open_group(path, mode="r")[name]
        return array[...] if isinstance(array, zarr.Array) else None
    except Exception:  # a codec may raise anything for damaged bytes
        return None


def _check_shard(
    store: StoreReader, name: str, level: int, tile: Tile, known: int | None, proven: bool
) -> str:
    """Describe the damage of a shard with the checksum ``known``; empty if it is intact."""
    found = _checksum_shard(store, name, level, tile)
    if found == UNREADABLE:
        return "cannot be read"
    if not (proven or found):
        return "is empty or missing: its checksum is lost"
    if found != known:
        if not proven:
            return "has no checksum that proves it"
        return "is not what was written" if found else "is missing"
    try:
        store.read(name, tile.core, level)
    except Exception:  # a codec may raise anything for damaged bytes
        return "cannot be decoded"
    return ""


def _checksum_shard(store: StoreReader, name: str, level: int, tile: Tile) -> int:
    try:
        return store.checksum(name, tile.core, level)
    except StoreError:
        raise
    except OSError:
        return UNREADABLE


def _find_damaged_arrays(store: StoreReader) -> Iterator[Damage]:
    known = _read_array_checksums(store.path)
    for name in sorted({*known, *_list_checksummed(store.path)}):
        if reason := _check_array(store.path, name, known.get(name)):
            yield Damage(name, reason)
    for name in WITHOUT_CHECKSUM:
        if store.has(name) and _read_array(store.path, name) is None:
            yield Damage(name, "cannot be decoded")


def _check_array(path: Path, name: str, known: int | None) -> str:
    """Describe the damage of an array with the checksum ``known``; empty if it is intact."""
    if known is not None and _checksum_files(path / name) != known:
        return "is not what was written"
    return "cannot be decoded" if _read_array(path, name) is None else ""


def _find_damaged_marks(store: StoreReader) -> Iterator[Damage]:
    """Compare the ledger with that of a finished store: each tile is marked in each stage."""
    gaps = [*find_gaps(store)]
    yield from (Damage("ledger", gap) for gap in gaps)
    marks = None if gaps else _read_array(store.path, "ledger")
    if marks is not None and (marks != 1).any():
        yield Damage("ledger", "has marks that are not what was written")
