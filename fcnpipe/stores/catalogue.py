"""The rows of the catalogue, written in whole storage chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.stores.base import Columns
from fcnpipe.stores.hierarchy import ArraySpec

ROW_CHUNK = 131_072
"""Rows of the catalogue in one storage chunk."""


def column_spec(values: NDArray[Any], attrs: Mapping[str, Any], count: int) -> ArraySpec:
    """Return how a column of ``count`` rows is stored."""
    assert values.ndim == 1, values.shape
    assert values.dtype.kind in "biuf", values.dtype
    fill = np.nan if values.dtype.kind == "f" else 0
    chunks = (min(max(count, 1), ROW_CHUNK),)
    return ArraySpec((count,), values.dtype.name, ("source",), chunks, fill=fill, attrs=attrs)


def check_rows(rows: int, count: int) -> None:
    """Raise StoreError if the catalogue is not written as a whole."""
    if rows != count:
        raise StoreError(f"{rows} rows of a catalogue of {count} were given: pass all of them")


def write_rows(arrays: Mapping[str, zarr.Array[Any]], blocks: Iterable[Columns]) -> int:
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
