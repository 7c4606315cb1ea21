"""Writing of the catalogue (group ``sources``), in blocks of rows or column by column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.stores.base import Column, Columns
from fcnpipe.stores.hierarchy import ArraySpec, create_array, fill_array, replace_group

ROW_CHUNK = 131_072
"""Rows of the catalogue in one storage chunk."""
TITLE = "one row per source, in order of label"


def write_blocks(path: Path, blocks: Iterable[Columns], count: int) -> None:
    """Write the catalogue of the store at ``path`` in blocks of rows.

    Parameters
    ----------
    path : Path
        Folder of the store.
    blocks : iterable of {name: (values, attributes)}
        All with the same columns; at least one, which may have no rows.
    count : int
        Total number of rows.

    Raises
    ------
    StoreError
        If the blocks do not add up to ``count`` rows.
    """
    blocks = iter(blocks)
    first = next(blocks)
    group = replace_group(path, "sources", {"title": TITLE, "columns": list(first)})
    arrays = {
        name: create_array(group, name, _column_spec(values, attrs, count))
        for name, (values, attrs) in first.items()
    }
    _check_rows(_write_rows(arrays, chain([first], blocks)), count)


def write_columns(path: Path, columns: Iterable[Column]) -> None:
    """Write the catalogue of the store at ``path`` column by column.

    Parameters
    ----------
    path : Path
        Folder of the store.
    columns : iterable of (name, values, attributes)
        Only one of them is in memory at a time.

    Raises
    ------
    StoreError
        If the columns have different lengths.
    """
    group = replace_group(path, "sources", {"title": TITLE})
    lengths: dict[str, int] = {}
    for name, values, attrs in columns:
        lengths[name] = len(values)
        _check_rows(len(values), next(iter(lengths.values())))
        fill_array(group, name, _column_spec(values, attrs, len(values)), values)
    group.attrs["columns"] = list(lengths)


def _column_spec(values: NDArray[Any], attrs: Mapping[str, Any], count: int) -> ArraySpec:
    assert values.ndim == 1, values.shape
    assert values.dtype.kind in "biuf", values.dtype
    fill = np.nan if values.dtype.kind == "f" else 0
    chunks = (min(max(count, 1), ROW_CHUNK),)
    return ArraySpec((count,), values.dtype.name, ("source",), chunks, fill=fill, attrs=attrs)


def _check_rows(rows: int, count: int) -> None:
    if rows != count:
        raise StoreError(f"{rows} rows of a catalogue of {count} were passed: pass all rows")


def _write_rows(arrays: Mapping[str, zarr.Array[Any]], blocks: Iterable[Columns]) -> int:
    """Write consecutive blocks in whole storage chunks, and return the number of rows."""
    start = 0
    for columns in _cut_at_chunks(blocks):
        stop = start + len(next(iter(columns.values())))
        for name, array in arrays.items():
            if start < stop <= array.shape[0]:
                array[start:stop] = columns[name]
        start = stop
    return start


def _cut_at_chunks(blocks: Iterable[Columns]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the rows of the blocks in whole storage chunks; only the last may be shorter."""
    rest: dict[str, NDArray[Any]] = {}
    for block in blocks:
        rest = {k: np.concatenate([rest[k], v]) if rest else v for k, (v, _) in block.items()}
        whole = len(next(iter(rest.values()))) // ROW_CHUNK * ROW_CHUNK
        if whole:
            yield {name: values[:whole] for name, values in rest.items()}
            rest = {name: values[whole:] for name, values in rest.items()}
    if rest:
        yield rest
