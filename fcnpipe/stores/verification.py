"""Verification of a store: labels, catalogue and ledger must agree."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box, Tile
from fcnpipe.stores.atomic_writes import convert_os_errors
from fcnpipe.stores.base import CatalogueReader, StoreReader, TileCheck, Verification
from fcnpipe.stores.catalogue import ROW_CHUNK

MAX_NAMES = 5
"""Maximum number of tiles or labels that one problem lists."""


def verify_store(store: StoreReader) -> Verification:
    """Verify a published store.

    Returns
    -------
    Verification
        The problems found: a status other than complete, tiles missing in the ledger, labels
        without a row of the catalogue, rows without pixels, areas that differ from the number of
        pixels, sources whose peak pixel has another label.
    """
    layout = store.layout
    status = store.attrs["status"]
    unfinished = [] if status == "complete" else [f"status is {status}: resume the run"]
    problems = (*unfinished, *find_problems(store))
    sources = store.n_sources if store.has_sources else 0
    return Verification(sources, len(layout.grid), layout.grid.frame.size, problems)


def find_problems(store: StoreReader) -> list[str]:
    """Return the contradictions in a store, one line each; empty if there are none.

    Notes
    -----
    Reads all maps once, tile by tile. The pixel counts (8 bytes for each source) are in a temporary
    file, so that the memory does not grow with the catalogue.
    """
    if not store.layout.maps and not store.has_sources:
        return ["the catalogue is missing: resume the run"]
    written = store.read_checksums(0)
    checks = (
        check_tile(
            store,
            tile,
            {name: int(table[tile.row, tile.column]) for name, table in written.items()},
        )
        for tile in store.layout.grid
    )
    return [*find_gaps(store), *check_sums(store, checks)]


def find_gaps(store: StoreReader) -> Iterator[str]:
    """Yield the stages that are not done for all tiles, one line each."""
    for stage in store.layout.stages:
        missing = store.pending(stage)
        if missing:
            yield f"stage {stage} is not done for {_join_names(tile.name for tile in missing)}"


def _find_disorder(store: CatalogueReader) -> Iterator[str]:
    """Yield the blocks of rows whose labels or source_id are out of order."""
    start, last = 1, -1
    for block in store.source_blocks(["label", "source_id"]):
        labels, ids = block["label"], block["source_id"].astype(np.int64)
        if not np.array_equal(labels, np.arange(start, start + len(labels))):
            yield f"labels of the catalogue are not 1, 2, ... near row {start - 1}"
        if len(ids) and np.diff(ids, prepend=last).min() <= 0:
            yield f"source_id does not increase near row {start - 1}"
        start, last = start + len(labels), int(ids[-1]) if len(ids) else last


def check_tile(store: StoreReader, tile: Tile, written: Mapping[str, int]) -> TileCheck:
    """Compare the checksums of a tile's maps on disk with those computed as they were written.

    In a store of `segment`, also count the pixels of each label, and compare the labels of the peak
    pixels with the catalogue.

    Parameters
    ----------
    store : StoreReader
        The store.
    tile : Tile
        The tile.
    written : mapping
        Checksum of each map as it was written, by name.

    Notes
    -----
    The catalogue must be complete. Of the catalogue, only the sources whose peak is in an image row of
    the tile are read.
    """
    wrong = [name for name, known in written.items() if store.checksum(name, tile.core) != known]
    if wrong:
        problem = f"{', '.join(wrong)} of {tile.name} is not what was written"
        return TileCheck(np.zeros(0, np.int32), np.zeros(0, np.int64), (problem,))
    found = _check_labels(store, tile)
    return replace(found, checksums=written)


def _check_labels(store: StoreReader, tile: Tile) -> TileCheck:
    if store.layout.maps:
        return TileCheck(np.zeros(0, np.int32), np.zeros(0, np.int64))
    labels = store.read("label", tile.core)
    names, counts = count_pixels(labels)
    known = (names > 0) & (names <= store.n_sources)
    problems = []
    if not known.all():
        problems.append(f"labels without a row in {tile.name}: {_join_names(names[~known])}")
    wrong = _find_wrong_peaks(store, tile.core, labels)
    if len(wrong):
        problems.append(f"peak pixels with another label: labels {_join_names(wrong)}")
    return TileCheck(names[known], counts[known], tuple(problems))


def check_sums(store: StoreReader, checks: Iterable[TileCheck]) -> Iterator[str]:
    """Yield the problems in the order of the catalogue, in the tiles, and in the areas of the sources.

    The area of each source is compared with the sum of its pixels over all tiles.

    Notes
    -----
    The sums (8 bytes for each source) are in a temporary file, so that the memory does not grow
    with the catalogue.
    """
    if store.layout.maps:
        for check in checks:
            yield from check.problems
        return
    yield from _find_disorder(store)
    with tempfile.TemporaryFile() as file, convert_os_errors(Path(tempfile.gettempdir())):
        # Allocate the file first: a write to a memory map that exceeds the free disk space kills the process.
        os.posix_fallocate(file.fileno(), 0, 8 * (store.n_sources + 1))
        areas = np.memmap(file, np.int64, "r+", shape=(store.n_sources + 1,))
        for check in checks:
            yield from check.problems
            areas[check.labels] += check.counts
        yield from _find_wrong_areas(store, areas)


def count_pixels(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the nonzero labels of a map, ascending, and the number of pixels of each.

    Examples
    --------
    >>> count_pixels(np.array([[0, 7, 7], [3, 7, 0]], np.int32))
    (array([3, 7], dtype=int32), array([1, 3]))
    """
    names, lengths = _list_runs(labels)
    order = np.argsort(names, kind="stable")
    names, lengths = names[order], lengths[order]
    first = np.flatnonzero(np.diff(names, prepend=0))
    counts = np.add.reduceat(lengths, first) if len(first) else lengths
    return names[first], counts


@njit(cache=True, nogil=True)
def _list_runs(labels):  # type: ignore[no-untyped-def]
    """Return label and length of each run of equal nonzero labels along a row."""
    count = 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            count += labels[y, x] != 0 and (x == 0 or labels[y, x] != labels[y, x - 1])
    names, lengths = np.empty(count, np.int32), np.zeros(count, np.int64)
    run = -1
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] != 0:
                if x == 0 or labels[y, x] != labels[y, x - 1]:
                    run += 1
                    names[run] = labels[y, x]
                lengths[run] += 1
    return names, lengths


def _find_wrong_areas(store: CatalogueReader, areas: NDArray[np.int64]) -> Iterator[str]:
    """Yield the labels whose area differs from the number of their pixels, a line or two for each block of rows."""
    start = 1
    for block in store.source_blocks(["area"]):
        counted = np.asarray(areas[start : start + len(block["area"])])
        empty = np.flatnonzero(counted == 0) + start
        wrong = np.flatnonzero((counted != block["area"]) & (counted > 0)) + start
        if len(empty):
            yield f"rows without a pixel: labels {_join_names(empty)}"
        if len(wrong):
            yield f"area is not the number of pixels: labels {_join_names(wrong)}"
        start += len(counted)


def _find_wrong_peaks(
    store: StoreReader, core: Box, labels: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return the labels of the catalogue whose peak in this core has another label in the map."""
    width = store.layout.shape[1]
    ids, expected = _read_id_range(store, core.y0 * width, core.y1 * width)
    y, x = np.divmod(ids, width)
    # `check_sums` reports rows that are out of order; here they must only not index outside the tile.
    here = (x >= core.x0) & (x < core.x1) & (y >= core.y0) & (y < core.y1)
    expected = expected[here]
    found = labels[y[here] - core.y0, x[here] - core.x0]
    wrong: NDArray[np.int32] = expected[found != expected]
    return wrong


def _read_id_range(
    store: CatalogueReader, low: int, high: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return source_id and label of the rows with ``low <= source_id < high``; reads whole blocks."""

    @cache
    def first_id(block: int) -> int:
        row = block * ROW_CHUNK
        return int(store.read_sources(["source_id"], slice(row, row + 1))["source_id"][0])

    blocks = range(-(-store.n_sources // ROW_CHUNK))
    ends = [max(bisect_left(blocks, end, key=first_id), 1) for end in (low, high)]
    rows = slice((ends[0] - 1) * ROW_CHUNK, ends[1] * ROW_CHUNK)
    found = store.read_sources(["source_id", "label"], rows)
    ids = found["source_id"].astype(np.int64)
    inside = (ids >= low) & (ids < high)
    return ids[inside], found["label"][inside]


def _join_names(names: Any) -> str:
    names = [str(name) for name in names]
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
