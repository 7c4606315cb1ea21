"""The catalogue as CSV, ECSV, FITS, VOTable or parquet, units and descriptions kept."""

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

from fcnpipe.export.base import Finished, written_whole


def read_table(store: Finished) -> Table:
    """Give the catalogue as an astropy table, all of it in memory.

    Notes
    -----
    Pixel coordinates are 0-based, as in the store. Unsigned integers become signed ones that
    hold them, since neither FITS nor VOTable knows the former.
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


def export_csv(store: Finished, path: str | Path) -> None:
    """Write comma-separated values with one line of names; units are lost."""
    names = ",".join(store.columns)
    with written_whole(path) as temporary, temporary.open("w") as file:
        file.write(names + "\n")
        for block in store.source_blocks():
            columns = [map(repr, values.tolist()) for values in block.values()]
            file.writelines(",".join(row) + "\n" for row in zip(*columns, strict=True))


def export_ecsv(store: Finished, path: str | Path) -> None:
    """Write enhanced CSV: text with units, types and descriptions (astropy)."""
    with written_whole(path) as temporary:
        read_table(store).write(temporary, format="ascii.ecsv", overwrite=True)


def export_fits_table(store: Finished, path: str | Path) -> None:
    """Write a FITS binary table, extension CATALOGUE; ``TUCDn`` and ``TCOMMn`` describe columns."""
    table = read_table(store)
    hdu = fits.table_to_hdu(_with_fits_units(table))
    hdu.name = "CATALOGUE"
    for number, name in enumerate(table.colnames, 1):
        hdu.header[f"TCOMM{number}"] = table[name].description or ""
        hdu.header[f"TUCD{number}"] = table[name].meta.get("ucd", "")
    with written_whole(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(temporary)


def _with_fits_units(table: Table) -> Table:
    """Drop units that FITS cannot write, and keep their names in the description."""
    for column in table.columns.values():
        column.meta.pop("__dummy__", None)
        if column.unit is not None and not _is_known(column.unit):
            column.description = f"{column.description or ''} [{column.unit}]".strip()
            column.unit = None
    return table


def _is_known(unit: units.UnitBase) -> bool:
    try:
        unit.to_string("fits")
    except ValueError:
        return False
    return not isinstance(unit, units.UnrecognizedUnit)


def export_votable(store: Finished, path: str | Path) -> None:
    """Write a VOTable 1.4 with UCDs, binary-encoded."""
    table = read_table(store)
    document = votable.from_table(_with_fits_units(table))
    for field in document.get_first_table().fields:
        field.ucd = table[field.name].meta.get("ucd") or None
    with written_whole(path) as temporary:
        document.to_xml(str(temporary), tabledata_format="binary2")


def export_parquet(store: Finished, path: str | Path) -> None:
    """Write parquet, block of rows by block of rows; column attributes are field metadata."""
    fields = [
        pa.field(name, pa.from_numpy_dtype(values.dtype), metadata=_text(store.column_attrs(name)))
        for name, values in store.read_sources(rows=slice(0, 0)).items()
    ]
    schema = pa.schema(fields, metadata={"run_key": str(store.attrs.get("run_key", ""))})
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for block in store.source_blocks():
            writer.write_table(pa.table(block, schema=schema))


def _text(attrs: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in attrs.items()}


TABLES: dict[str, Callable[[Finished, str | Path], None]] = {
    "csv": export_csv,
    "ecsv": export_ecsv,
    "fits": export_fits_table,
    "votable": export_votable,
    "parquet": export_parquet,
}
"""Writers of the catalogue by format."""
