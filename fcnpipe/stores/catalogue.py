"""The rows of the catalogue, written in whole storage chunks."""

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
TITLE = "one row a source, in order of label"


def write_blocks(path: Path, blocks: Iterable[Columns], count: int) -> None:
    """Write ``sources`` of the store at ``path``, block of rows by block of rows."""
    blocks = iter(blocks)
    first = next(blocks)
    group = replace_group(path, "sources", {"title": TITLE, "columns": list(first)})
    arrays = {
        name: create_array(group, name, _column_spec(values, attrs, count))
        for name, (values, attrs) in first.items()
    }
    _check_rows(_write_rows(arrays, chain([first], blocks)), count)


def write_columns(path: Path, columns: Iterable[Column]) -> None:
    """Write ``sources`` of the store at ``path``, column by column."""
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
        raise StoreError(f"{rows} rows of a catalogue of {count} were given: pass all of them")


def _write_rows(arrays: Mapping[str, zarr.Array[Any]], blocks: Iterable[Columns]) -> int:
    """Write blocks one after the other in whole chunks; give the number of rows."""
    start = 0
    for columns in _whole_chunks(blocks):
        stop = start + len(next(iter(columns.values())))
        for name, array in arrays.items():
            if start < stop <= array.shape[0]:
                array[start:stop] = columns[name]
        start = stop
    return start


def _whole_chunks(blocks: Iterable[Columns]) -> Iterator[dict[str, NDArray[Any]]]:
    """Re-cut blocks of rows so that all but the last fill whole storage chunks."""
    rest: dict[str, NDArray[Any]] = {}
    for block in blocks:
        rest = {k: np.concatenate([rest[k], v]) if rest else v for k, (v, _) in block.items()}
        whole = len(next(iter(rest.values()))) // ROW_CHUNK * ROW_CHUNK
        if whole:
            yield {name: values[:whole] for name, values in rest.items()}
            rest = {name: values[whole:] for name, values in rest.items()}
    if rest:
        yield rest
