"""The catalogue as a parquet file next to the store: writing it, and comparing it with the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError, first_line
from fcnpipe.stores.atomic_writes import atomic_write
from fcnpipe.stores.base import CatalogueReader

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"PAR1"
"""First bytes of a parquet file."""


def write_parquet(store: CatalogueReader, path: Path) -> None:
    """Write the catalogue of a store to ``path`` in blocks of rows, atomically.

    Notes
    -----
    The attributes of a column (units, long_name, ...) become its field metadata.
    """
    import pyarrow as pa  # slow to import, and needed only once in a run
    import pyarrow.parquet as pq

    schema = _schema(store)
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, **_writer_options(schema)) as writer,
    ):
        for block in store.source_blocks():
            writer.write_table(pa.table(block, schema=schema))


def describe_difference(store: CatalogueReader, path: Path) -> str:
    """Describe how the parquet file at ``path`` differs from the catalogue; empty if it is equal."""
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as start, pq.ParquetFile(path) as file:
            if start.read(len(MAGIC)) != MAGIC:  # pyarrow looks at the end only
                return f"{path.name} does not start as a parquet file"
            if file.metadata.num_rows != store.n_sources:
                return f"{path.name} has {file.metadata.num_rows} rows, not {store.n_sources}"
            if not _has_schema(file.schema_arrow, _schema(store)):
                return f"{path.name} differs in the names, types or attributes of its columns"
            blocks = enumerate(store.source_blocks()) if store.n_sources else ()
            wrong = {
                name
                for number, block in blocks
                for name, values in block.items()
                if not _equal(file.read_row_group(number, [name])[name].to_numpy(), values)
            }
    except StoreError:
        raise
    except Exception as error:  # pyarrow raises its own and built-in errors for damaged files
        return f"{path.name} cannot be read: {first_line(error)}"
    return f"{path.name} differs in {', '.join(sorted(wrong))}" if wrong else ""


def _has_schema(found: pa.Schema, written: pa.Schema) -> bool:
    """Return whether a schema has the columns and attributes of another; pyarrow adds attributes of its own."""
    if found.names != written.names:
        return False
    pairs = [(found, written), *zip(found, written, strict=True)]
    attributes = all((w.metadata or {}).items() <= (f.metadata or {}).items() for f, w in pairs)
    return attributes and found.types == written.types


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    # Measured values seldom repeat: byte-stream splitting compresses them better than dictionaries.
    floats = [column.name for column in schema if str(column.type) in ("float", "double")]
    return {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": floats}


def _schema(store: CatalogueReader) -> pa.Schema:
    import pyarrow as pa

    fields = []
    for name, values in store.read_sources(rows=slice(0, 0)).items():
        attrs = {key: str(value) for key, value in store.column_attrs(name).items()}
        fields.append(pa.field(name, pa.from_numpy_dtype(values.dtype), metadata=attrs))
    return pa.schema(fields, metadata={"run_key": store.identity.key})
