"""Tables from segments to sources, and the selection of the sources that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_SOURCE = -1
"""In a table of source ids: background, or a source that was dropped."""

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Flag = NDArray[np.bool_]


class SourceTable(NamedTuple):
    """Where each segment of a tile went; row i is segment i, row 0 is background."""

    source: Int64
    """Source id, or `NO_SOURCE`."""
    footprint: Int64
    """Global index of the highest peak of the footprint, or `NO_SOURCE`."""
    area: Int64
    """Pixels of the segment in this tile."""
    peak: Int64
    """Elevation of the source's peak if it lies in this segment, else -1."""


class Selection(NamedTuple):
    """The sources that stay, in order of id: row i has label i + 1."""

    source: Int64
    """Source id: global index of the peak."""
    area: Int64
    """Pixels."""
    peak: Int64
    """Elevation of the peak."""
    divided: Flag
    """Whether its footprint holds another source that stays."""


def select(
    tables: Iterable[SourceTable], minarea: int = 1, minpeak: int = 0, broad: int | None = None
) -> Selection:
    """Give the sources with enough pixels, and a high enough peak if they are small, over all tiles.

    Tables are read one at a time; memory grows with the number of sources only.

    Parameters
    ----------
    tables : iterable of SourceTable
        One for each tile, in any order.
    minarea : int
        Least pixels of a source.
    minpeak : int
        Least elevation of its peak.
    broad : int, optional
        Pixels from which a source needs no ``minpeak``: what is that large and faint is no noise.
    """
    sums, fresh = np.zeros((0, 4), np.int64), [np.zeros((0, 4), np.int64)]
    for table in tables:
        fresh.append(np.stack(table, axis=1)[table.source != NO_SOURCE])
        if sum(map(len, fresh)) > len(sums):  # so each row is summed a few times, not once a tile
            sums, fresh = _sum_rows(np.concatenate([sums, *fresh])), []
    sums = _sum_rows(np.concatenate([sums, *fresh]))
    stays = (sums[:, 2] >= minarea) & (sums[:, 3] >= minpeak)
    if broad is not None:
        stays |= sums[:, 2] >= max(minarea, broad)
    source, footprint, area, peak = sums[stays].T
    _, place, count = np.unique(footprint, return_inverse=True, return_counts=True)
    return Selection(source, area, peak, count[place] > 1)


def relabel(table: SourceTable, selection: Selection) -> Int32:
    """Give the label of each segment of a tile: (n + 1,) int32; 0 where no source stays."""
    place = np.searchsorted(selection.source, table.source)
    found = np.append(selection.source, NO_SOURCE - 1)[place] == table.source
    return np.where(found, place + 1, 0).astype(np.int32)


def _sum_rows(rows: Int64) -> Int64:
    """Give one row (source, footprint, area, peak) for each source, in order of source."""
    source, first, place = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    sums = np.stack([source, rows[first, 1], np.zeros_like(source), rows[first, 3]], axis=1)
    np.add.at(sums[:, 2], place, rows[:, 2])
    np.maximum.at(sums[:, 3], place, rows[:, 3])
    return sums
