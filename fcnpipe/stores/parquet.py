"""The catalogue as a parquet file beside the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnpipe.stores.scratch import written_whole

if TYPE_CHECKING:
    import pyarrow as pa

    from fcnpipe.stores.zarr import ZarrStore


def write_parquet(store: ZarrStore, path: Path) -> None:
    """Write the ``sources`` group to ``path``, block of rows by block of rows.

    Notes
    -----
    The attributes of a column (units, long_name, ...) are its field metadata. The file appears
    whole or not at all.
    """
    import pyarrow as pa  # slow to import, and needed once
    import pyarrow.parquet as pq

    schema = parquet_schema(store)
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, schema, **_encoding(schema)) as writer,
    ):
        for block in store.source_blocks():
            writer.write_table(pa.table(block, schema=schema))


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Measured values seldom repeat: no dictionaries, and the bytes of floats side by side."""
    floats = [column.name for column in schema if str(column.type) in ("float", "double")]
    return {"compression": "zstd", "use_dictionary": False, "use_byte_stream_split": floats}


def parquet_schema(store: ZarrStore) -> pa.Schema:
    """Give the catalogue's columns as an arrow schema."""
    import pyarrow as pa

    fields = []
    for name, values in store.read_sources(rows=slice(0, 0)).items():
        attrs = {key: str(value) for key, value in store.column_attrs(name).items()}
        fields.append(pa.field(name, pa.from_numpy_dtype(values.dtype), metadata=attrs))
    return pa.schema(fields, metadata={"run_key": store.identity.key})
