"""Selection of sources over tiles, and their labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.science.source_selection import NO_SOURCE, SourceTable, label_segments, select


def table(*rows: tuple[int, int, int, int]) -> SourceTable:
    return SourceTable(*np.array([(NO_SOURCE, NO_SOURCE, 0, -1), *rows]).T)


def test_select_sums_over_tiles_and_ranks_by_source() -> None:
    tables = [
        table((70, 70, 3, 9), (12, 70, 2, -1)),
        table((12, 70, 2, 6), (5, 5, 1, 8)),
        table((90, 90, 9, 2)),
    ]
    selection = select(iter(tables), minarea=2, minpeak=3)
    assert selection.source.tolist() == [12, 70]
    assert selection.area.tolist() == [4, 3]
    assert selection.peak.tolist() == [6, 9]
    assert selection.divided.tolist() == [True, True]
    assert [label_segments(t, selection).tolist() for t in tables] == [[0, 2, 1], [0, 1, 0], [0, 0]]


def test_a_footprint_whose_other_sources_were_dropped_is_not_divided() -> None:
    selection = select([table((3, 3, 8, 9), (4, 3, 1, 9))], minarea=2)
    assert selection.divided.tolist() == [False]


def test_select_of_nothing_is_empty() -> None:
    selection = select([])
    assert [len(column) for column in selection] == [0, 0, 0, 0]
    assert label_segments(table((3, 3, 8, 9)), selection).tolist() == [0, 0]


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8))
def test_select_reads_tables_one_at_a_time(parts: list[list[int]]) -> None:
    tables = [table(*((s, s, s + 1, s) for s in part)) for part in parts]
    every = [s for part in parts for s in part]
    selection = select(iter(tables))
    assert selection.source.tolist() == sorted(set(every))
    assert selection.area.tolist() == [(s + 1) * every.count(s) for s in sorted(set(every))]
