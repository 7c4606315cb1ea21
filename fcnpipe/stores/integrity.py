"""Whether the files of a published store are still those that were written.

::

    checksums           attrs crc32c: {array: CRC-32C of its files}, for all that is no map, tables of
                        checksums too
    checksums/0         label, probability, ... (shard_y, shard_x): CRC-32C of each shard, taken from
    checksums/1, ...    the bytes in memory as they were written; 0 = all fill value, no file

A checksum of stored bytes costs nothing (they are compressed), and tells a deleted shard, which reads
as fill value, from an empty one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import zarr

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Tile
from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.base import Layout, StoreReader
from fcnpipe.stores.hierarchy import SCRATCH, create_hierarchy
from fcnpipe.stores.parquet import find_difference
from fcnpipe.stores.paths import parquet_path
from fcnpipe.stores.pyramid import create_pyramid, level_count, level_grid
from fcnpipe.stores.shards import add_file
from fcnpipe.stores.verification import find_gaps

CHECKSUMS = "checksums"
"""Group of the checksums."""
UNSEALED = ("ledger", "tiles/seconds")
"""No checksum: one file a tile, each its own witness; another value in each run."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a store that is not as it was written.

    Attributes
    ----------
    place : str
        Array such as ``image/0/label``, or file.
    why : str
        What is wrong with it.
    tile : Tile or None
        The shard that is damaged; none where there are no shards.
    """

    place: str
    why: str
    tile: Tile | None = None

    def __str__(self) -> str:
        where = f" {self.tile.name}" if self.tile else ""
        return f"{self.place}{where} {self.why}"


def seal(path: Path) -> dict[str, int]:
    """Give the CRC-32C of the files of each array that is no map, by the array's name."""
    return {name: _checksum_array(path / name) for name in _list_sealed(path)}


def _list_sealed(path: Path) -> list[str]:
    names = (file.parent.relative_to(path).as_posix() for file in path.rglob("zarr.json"))
    return sorted(name for name in names if _is_sealed(path, name))


def _is_sealed(path: Path, name: str) -> bool:
    if name.startswith((SCRATCH, *UNSEALED)):
        return False
    node = _read_node(path / name)
    return node.get("node_type") == "array" and "sharding_indexed" not in _codecs(node)


def _read_node(path: Path) -> dict[str, Any]:
    """Give the metadata of a group or an array; empty if they are lost or cut short."""
    try:
        node = json.loads((path / "zarr.json").read_text())
    except (OSError, ValueError):
        return {}
    return node if isinstance(node, dict) else {}


def _codecs(node: dict[str, Any]) -> list[str]:
    return [codec["name"] for codec in node["codecs"]]


def _checksum_array(path: Path) -> int:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    return reduce(add_file, files, 0)


def restore_frame(path: Path, layout: Layout, pyramid: bool) -> None:
    """Put back what is lost of the metadata and coordinates with which a store begins.

    Parameters
    ----------
    path : Path
        A partial store.
    layout : Layout
        Its shapes and names.
    pyramid : bool
        Whether its pyramid has been created.
    """
    with tempfile.TemporaryDirectory(dir=path / SCRATCH) as folder:
        fresh = Path(folder) / "fresh"
        create_hierarchy(fresh, layout, {})
        if pyramid:
            create_pyramid(fresh, layout, science=True)
        for file in fresh.glob("*/**/*"):
            ours = path / file.relative_to(fresh)
            if file.is_file() and not (ours.is_file() and ours.read_bytes() == file.read_bytes()):
                with atomic_write(ours) as temporary:
                    shutil.copyfile(file, temporary)


def find_damage(store: StoreReader) -> Iterator[Damage]:
    """Read and decode all of a store, and hold it against the checksums taken when it was written.

    Yields
    ------
    Damage
        In order of place; none if the store is whole.
    """
    nodes = [*_damaged_metadata(store.path)]
    yield from nodes
    for level in range(1 + level_count(store.layout)):
        for name in store.list_maps(level):
            yield from _damaged_shards(store, name, level)
    yield from _damaged_arrays(store)
    yield from (Damage("ledger", gap) for gap in find_gaps(store))
    if any(damage.place.startswith("sources") for damage in nodes):
        return  # what there is to compare with is lost itself
    if store.has_sources and (reason := find_difference(store, parquet_path(store.path))):
        yield Damage("parquet", reason)


def _damaged_metadata(path: Path) -> Iterator[Damage]:
    """Compare the metadata of each node with the copy in the root."""
    for name, copy in _read_copies(path).items():
        node = _read_node(path / name)
        if not node:
            yield Damage(name, "has no metadata that can be read")
        elif {**copy, "consolidated_metadata": None} != {**node, "consolidated_metadata": None}:
            yield Damage(name, "has other metadata than the root says")


def _read_copies(path: Path) -> dict[str, dict[str, Any]]:
    """Give the metadata of all nodes as the root has them; nothing if it has none."""
    root = json.loads((path / "zarr.json").read_text())
    return dict(root.get("consolidated_metadata", {}).get("metadata", {}))


def _damaged_shards(store: StoreReader, name: str, level: int) -> Iterator[Damage]:
    place = f"image/{level}/{name}"
    if not _read_node(store.path / place):
        yield Damage(place, "is missing")
        return
    table = f"{CHECKSUMS}/{level}/{name}"
    seal = _read_seals(store.path).get(table)
    intact = seal is None or _checksum_array(store.path / table) == seal
    written = _read_table(store.path, table) if intact else None
    for tile in level_grid(store.layout, level):
        known = None if written is None else int(written[tile.row, tile.column])
        reason = _find_fault(store, name, level, tile, known)
        if not (reason or intact or store.checksum(name, tile.core, level)):
            reason = "is not there, and may have been: its checksum is lost"
        if reason:
            yield Damage(place, reason, tile)


def _read_seals(path: Path) -> dict[str, int]:
    """Give what `seal` gave."""
    return dict(_read_copies(path).get(CHECKSUMS, {}).get("attributes", {}).get("crc32c", {}))


def _read_table(path: Path, name: str) -> Any:
    """Give an array, by the root's copy of its metadata; none if it is not there as it was written."""
    try:
        array = zarr.open_group(path, mode="r")[name]
        return array[...] if isinstance(array, zarr.Array) else None
    except Exception:  # whatever a codec makes of what it cannot read
        return None


def _find_fault(store: StoreReader, name: str, level: int, tile: Tile, known: int | None) -> str:
    found = store.checksum(name, tile.core, level)
    if known is not None and found != known:
        return "is not what was written" if found else "is missing"
    try:
        store.read(name, tile.core, level)
    except StoreError:
        return "cannot be decoded"
    return ""


def _damaged_arrays(store: StoreReader) -> Iterator[Damage]:
    known = _read_seals(store.path)
    for name in sorted({*known, *_list_sealed(store.path)}):
        if reason := _find_fault_of_array(store.path, name, known.get(name)):
            yield Damage(name, reason)


def _find_fault_of_array(path: Path, name: str, known: int | None) -> str:
    if known is not None and _checksum_array(path / name) != known:
        return "is not what was written"
    return "cannot be decoded" if _read_table(path, name) is None else ""
