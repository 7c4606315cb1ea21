"""Selection of sources by size and peak over all tiles, and the labels of the selected ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_SOURCE = -1
"""Source id of the background."""

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Flag = NDArray[np.bool_]


class SourceTable(NamedTuple):
    """Source of each segment of a tile: row i is segment i, row 0 is the background."""

    source: Int64
    """Source id: global index of the peak of the source, or `NO_SOURCE`."""
    footprint: Int64
    """Global index of the highest peak of the footprint, or `NO_SOURCE`."""
    area: Int64
    """Number of pixels of the segment in this tile."""
    peak: Int64
    """Elevation of the peak of the source if it is in this segment, else -1."""


class Selection(NamedTuple):
    """Selected sources in ascending order of id: row i has label i + 1."""

    source: Int64
    """Source id: global index of the peak."""
    area: Int64
    """Number of pixels."""
    peak: Int64
    """Elevation of the peak."""
    divided: Flag
    """Whether another selected source is in the same footprint."""


def select(
    tables: Iterable[SourceTable], minarea: int = 1, minpeak: int = 0, broad: int | None = None
) -> Selection:
    """Select the sources that have enough pixels and, unless they are large, a high enough peak.

    Parameters
    ----------
    tables : iterable of SourceTable
        One for each tile, in any order.
    minarea : int
        Minimum number of pixels of a source.
    minpeak : int
        Minimum elevation of its peak.
    broad : int, optional
        Number of pixels from which ``minpeak`` is not required: a faint source that large is not noise.

    Returns
    -------
    Selection
        The selected sources of all tiles.

    Notes
    -----
    Tables are read one at a time. Memory grows with the number of sources only.
    """
    sums, added = np.zeros((0, 4), np.int64), [np.zeros((0, 4), np.int64)]
    for table in tables:
        added.append(np.stack(table, axis=1)[table.source != NO_SOURCE])
        # Sum only when the added rows outnumber the sums: each row is then summed a few times, not once per tile.
        if sum(map(len, added)) > len(sums):
            sums, added = _sum_rows(np.concatenate([sums, *added])), []
    sums = _sum_rows(np.concatenate([sums, *added]))
    stays = (sums[:, 2] >= minarea) & (sums[:, 3] >= minpeak)
    if broad is not None:
        stays |= sums[:, 2] >= max(minarea, broad)
    source, footprint, area, peak = sums[stays].T
    _, place, count = np.unique(footprint, return_inverse=True, return_counts=True)
    return Selection(source, area, peak, count[place] > 1)


def label_segments(table: SourceTable, selection: Selection) -> Int32:
    """Return the label of each segment of a tile, (n + 1,) int32; 0 where its source is not selected."""
    place = np.searchsorted(selection.source, table.source)
    found = np.append(selection.source, NO_SOURCE - 1)[place] == table.source
    return np.where(found, place + 1, 0).astype(np.int32)


def _sum_rows(rows: Int64) -> Int64:
    """Return one row (source, footprint, area, peak) for each source, in ascending order of source."""
    source, first, place = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    sums = np.stack([source, rows[first, 1], np.zeros_like(source), rows[first, 3]], axis=1)
    np.add.at(sums[:, 2], place, rows[:, 2])
    np.maximum.at(sums[:, 3], place, rows[:, 3])
    return sums
