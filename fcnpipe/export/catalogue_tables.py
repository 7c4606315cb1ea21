"""Export of the catalogue as CSV, ECSV, FITS table, VOTable or parquet, with units and descriptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units
from astropy.io import fits, votable
from astropy.table import Column, Table
from numpy.typing import NDArray

from fcnpipe.export.base import FinishedStore, atomic_write


def read_table(store: FinishedStore) -> Table:
    """Return the whole catalogue as an astropy table in memory.

    Notes
    -----
    Pixel coordinates are 0-based, as in the store. Unsigned integers become wider signed ones, since
    neither FITS nor VOTable has unsigned types (uint64 becomes int64).
    """
    table = Table(
        [
            Column(_signed(values), name, **_describe(store.column_attrs(name)))
            for name, values in store.read_sources().items()
        ]
    )
    table.meta = {"RUN_KEY": str(store.attrs.get("run_key", "")), "PIXELS": "0-based"}
    return table


def _signed(values: NDArray[Any]) -> NDArray[Any]:
    wider = {1: np.int16, 2: np.int32, 4: np.int64, 8: np.int64}
    return values.astype(wider[values.itemsize]) if values.dtype.kind == "u" else values


def _describe(attrs: dict[str, Any]) -> dict[str, Any]:
    unit = attrs.get("units") or None
    ucd = {"ucd": attrs["ucd"]} if attrs.get("ucd") else {}
    return {
        "unit": None if unit is None else units.Unit(unit, parse_strict="silent"),
        "description": attrs.get("long_name"),
        "meta": ucd,
    }


def export_csv(store: FinishedStore, path: str | Path) -> None:
    """Write comma-separated values with a header line of names, without units."""
    names = ",".join(store.columns)
    with atomic_write(path) as temporary, temporary.open("w") as file:
        file.write(names + "\n")
        for block in store.source_blocks():
            columns = [map(repr, values.tolist()) for values in block.values()]
            file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))


def export_ecsv(store: FinishedStore, path: str | Path) -> None:
    """Write enhanced CSV: text with units, types and descriptions (astropy)."""
    with atomic_write(path) as temporary:
        read_table(store).write(temporary, format="ascii.ecsv", overwrite=True)


def export_fits_table(store: FinishedStore, path: str | Path) -> None:
    """Write a FITS binary table, extension CATALOGUE, with ``TUCDn`` and ``TCOMMn`` for each column."""
    table = read_table(store)
    hdu = fits.table_to_hdu(_with_fits_units(table))
    hdu.name = "CATALOGUE"
    for number, name in enumerate(table.colnames, 1):
        hdu.header[f"TCOMM{number}"] = table[name].description or ""
        hdu.header[f"TUCD{number}"] = table[name].meta.get("ucd", "")
    with atomic_write(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(temporary)


def _with_fits_units(table: Table) -> Table:
    """Move units that FITS cannot represent to the description of their column."""
    for column in table.columns.values():
        column.meta.pop("__dummy__", None)
        if column.unit is not None and not _is_fits_unit(column.unit):
            column.description = f"{column.description or ''} [{column.unit}]".strip()
            column.unit = None
    return table


def _is_fits_unit(unit: units.UnitBase) -> bool:
    try:
        unit.to_string("fits")
    except ValueError:
        return False
    return not isinstance(unit, units.UnrecognizedUnit)


def export_votable(store: FinishedStore, path: str | Path) -> None:
    """Write a VOTable 1.4 with UCDs, binary-encoded."""
    table = read_table(store)
    document = votable.from_table(_with_fits_units(table))
    for field in document.get_first_table().fields:
        field.ucd = table[field.name].meta.get("ucd") or None
    with atomic_write(path) as temporary:
        document.to_xml(str(temporary), tabledata_format="binary2")


def export_parquet(store: FinishedStore, path: str | Path) -> None:
    """Write parquet in blocks of rows; column attributes become metadata of the fields."""
    fields = []
    for name, values in store.read_sources(rows=slice(0, 0)).items():
        metadata = {key: str(value) for key, value in store.column_attrs(name).items()}
        fields.append(pa.field(name, pa.from_numpy_dtype(values.dtype), metadata=metadata))
    schema = pa.schema(fields, metadata={"run_key": str(store.attrs.get("run_key", ""))})
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for block in store.source_blocks():
            writer.write_table(pa.table(block, schema=schema))


TABLES: dict[str, Callable[[FinishedStore, str | Path], None]] = {
    "csv": export_csv,
    "ecsv": export_ecsv,
    "fits": export_fits_table,
    "votable": export_votable,
    "parquet": export_parquet,
}
"""Format of the catalogue -> function that writes it."""
