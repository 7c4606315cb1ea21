"""Whether a store's labels, catalogue and ledger tell one story."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.geometry import Box, Tile
from fcnpipe.stores.base import Verification

if TYPE_CHECKING:
    from fcnpipe.stores.zarr import ZarrStore

SHOWN = 5
"""Names that a problem lists."""


def verify_store(store: ZarrStore) -> Verification:
    """Check a published store.

    Returns
    -------
    Verification
        Its problems: status not complete, tiles missing from the ledger, labels and catalogue
        rows without each other, areas that are not the number of pixels, a source whose own
        peak pixel carries another label.
    """
    layout = store.layout
    status = store.attrs["status"]
    unfinished = [] if status == "complete" else [f"status is {status}: resume the run"]
    problems = (*unfinished, *find_problems(store))
    sources = store.n_sources if store.has("sources") else 0
    return Verification(sources, len(layout.grid), layout.grid.frame.size, problems)


def find_problems(store: ZarrStore) -> list[str]:
    """Give the contradictions in a store, one line each; empty if there is none.

    Notes
    -----
    One sweep over the labels, tile by tile. The counts of pixels (8 bytes a source) lie in a
    temporary file, so that memory does not grow with the catalogue.
    """
    if not store.has("sources"):
        return ["the catalogue is missing: resume the run"]
    return [*_ledger_gaps(store), *_rows_out_of_order(store), *_label_problems(store)]


def _ledger_gaps(store: ZarrStore) -> Iterator[str]:
    for stage in store.layout.stages:
        missing = store.pending(stage)
        if missing:
            yield f"stage {stage} has not landed for {_shown(tile.name for tile in missing)}"


def _rows_out_of_order(store: ZarrStore) -> Iterator[str]:
    start, last = 1, -1
    for block in store.source_blocks(["label", "source_id"]):
        labels, ids = block["label"], block["source_id"].astype(np.int64)
        if not np.array_equal(labels, np.arange(start, start + len(labels))):
            yield f"labels of the catalogue are not 1, 2, ... near row {start - 1}"
        if len(ids) and np.diff(ids, prepend=last).min() <= 0:
            yield f"source_id does not rise near row {start - 1}"
        start, last = start + len(labels), int(ids[-1]) if len(ids) else last


def _label_problems(store: ZarrStore) -> Iterator[str]:
    count = store.n_sources
    with tempfile.TemporaryFile() as file:
        file.truncate(8 * (count + 1))
        areas = np.memmap(file, np.int64, "r+", shape=(count + 1,))
        peaks = _PeakRows(store)
        for tile in store.layout.grid:
            labels = store.read("label", tile.core)
            yield from _count(labels, areas, tile)
            yield from peaks.problems(tile, labels)
        yield from _wrong_areas(store, areas)


def _count(labels: NDArray[np.int32], areas: NDArray[np.int64], tile: Tile) -> Iterator[str]:
    found = labels[labels != 0]
    known = (found > 0) & (found < len(areas))
    if not known.all():
        yield f"labels without a row in {tile.name}: {_shown(np.unique(found[~known]))}"
    np.add.at(areas, found[known], 1)


def _wrong_areas(store: ZarrStore, areas: NDArray[np.int64]) -> Iterator[str]:
    start = 1
    for block in store.source_blocks(["area"]):
        counted = np.asarray(areas[start : start + len(block["area"])])
        empty = np.flatnonzero(counted == 0) + start
        wrong = np.flatnonzero((counted != block["area"]) & (counted > 0)) + start
        if len(empty):
            yield f"rows without a pixel: labels {_shown(empty)}"
        if len(wrong):
            yield f"area is not the number of pixels: labels {_shown(wrong)}"
        start += len(counted)


class _PeakRows:
    """Finds the catalogue rows whose peak lies in a tile, by the order of source_id."""

    def __init__(self, store: ZarrStore) -> None:
        self.store = store
        self.width = store.layout.shape[1]
        self.band = -1
        self.rows: dict[str, NDArray[Any]] = {}

    def problems(self, tile: Tile, labels: NDArray[np.int32]) -> Iterator[str]:
        """Give a line if a peak pixel of this tile does not carry its own label."""
        if tile.row != self.band:
            self.band, self.rows = tile.row, self._read_rows(tile.core)
        y, x = np.divmod(self.rows["source_id"].astype(np.int64), self.width)
        # Rows out of order are told elsewhere; here they must only not lead out of the tile.
        here = (x >= tile.core.x0) & (x < tile.core.x1)
        here &= (y >= tile.core.y0) & (y < tile.core.y1)
        expected = self.rows["label"][here]
        wrong = labels[y[here] - tile.core.y0, x[here] - tile.core.x0] != expected
        if wrong.any():
            yield f"peak pixels with another label: labels {_shown(expected[wrong])}"

    def _read_rows(self, core: Box) -> dict[str, NDArray[Any]]:
        start, stop = (self._find(y * self.width) for y in (core.y0, core.y1))
        return self.store.read_sources(["source_id", "label"], slice(start, stop))

    def _find(self, source_id: int) -> int:
        return bisect_left(range(self.store.n_sources), source_id, key=self._source_id)

    def _source_id(self, row: int) -> int:
        return int(self.store.read_sources(["source_id"], slice(row, row + 1))["source_id"][0])


def _shown(names: Any) -> str:
    names = [str(name) for name in names]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
