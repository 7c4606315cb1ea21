"""Rows of a table of images (CSV, ECSV, parquet), and the options that they may set."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import describe_read_error

Options = dict[str, Any]
TABLE_SUFFIXES = (".csv", ".ecsv", ".parquet")
TABLE_OPTIONS = frozenset(
    {
        "out", "model", "hdu", "weight", "weight_type", "mask", "mask_bits", "prior", "halo", "stride", "window",
        "thresh", "minarea", "mincont", "dynamics", "fwhm", "back_size", "back_filter", "satur_level", "gain",
        "mag_zeropoint", "precision", "keep_image",
    }
)  # fmt: skip
"""Options that a table may set: maps, the store, and what determines its contents.

A table may come from elsewhere. Options that start programs, select machines, write other files or remove results are
not among them, and neither is a new option unless it is added here.
"""
_SHELL_CHARACTERS = frozenset("$`!*?[]{}()<>|&;~#^'\"\\")
_BYTE_ORDER_MARK = "\ufeff"
_LINE_END = re.compile(r"\r\n?")
_MAX_NAMES = 10
"""Maximum number of column names in a message."""


def read_rows(path: str, data: bytes, column: str) -> Iterator[Options]:
    """Yield the image of each row of a table, and the options that the row sets.

    Parameters
    ----------
    path : str
        Path or URL of the table; its suffix is that of the format.
    data : bytes
        Content of the table.
    column : str
        Name of the column with the images.

    Raises
    ------
    SpecError
        If the table cannot be read, has no such column, or a row has no image or a store outside the folder of the
        results.
    """
    rows = _load_rows(path, data)
    if rows and column not in rows[0]:
        raise SpecError(f"{path} has no column {column!r}, only {_describe_columns(rows[0])}")
    for number, row in enumerate(rows, 1):
        image = row[column]
        if not isinstance(image, str) or not image:
            raise SpecError(f"{path}: row {number} has no image in column {column!r}")
        own = {
            name: value
            for name, value in row.items()
            if name in TABLE_OPTIONS and not _is_empty(value)
        }
        _check_store_name(str(own.get("out", "x")), f"{path}: row {number}")
        yield {"image": image, **own}


def _describe_columns(row: Options) -> str:
    names = [*list(row)[:_MAX_NAMES], *(["..."] if len(row) > _MAX_NAMES else [])]
    if len(row) == 1 and any(mark in names[0] for mark in ";\t|"):
        return f"{names[0]!r}: separate columns by commas"
    return f"{', '.join(names)}: choose one of them"


def _check_store_name(out: str, where: str) -> None:
    """Raise SpecError for a store outside the output folder, or a name that a shell may expand."""
    if "://" in out or os.path.isabs(out) or ".." in Path(out).parts:
        raise SpecError(
            f"{where}: out {out!r} leaves the output folder: use a name in it, "
            "or set the store in a YAML file"
        )
    unsafe = [letter for letter in out if letter in _SHELL_CHARACTERS or not letter.isprintable()]
    if unsafe:
        raise SpecError(
            f"{where}: out {out!r} contains {unsafe[0]!r}, which a shell may interpret: "
            "use letters, digits and . _ + -"
        )
    if not Path(out).name or any(part.startswith("-") for part in Path(out).parts):
        raise SpecError(f"{where}: out {out!r} is not the name of a store: use OUT.zarr")


def _load_rows(path: str, data: bytes) -> list[Options]:
    is_parquet = path.lower().endswith(".parquet")
    text = "" if is_parquet else _decode(path, data)
    try:
        if is_parquet:
            rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        else:
            kind = "ascii.ecsv" if path.lower().endswith(".ecsv") else "ascii.csv"
            table = Table.read(text, format=kind)
            rows = [{name: _to_python(row[name]) for name in table.colnames} for row in table]
    except Exception as error:  # astropy and pyarrow raise errors of many types for damaged tables
        raise SpecError(f"{path} cannot be read as a table: {describe_read_error(error)}") from None
    return [{name.lstrip(_BYTE_ORDER_MARK): row[name] for name in row} for row in rows]


def _decode(path: str, data: bytes) -> str:
    """Return the lines of a table without the byte-order mark that spreadsheets write.

    The text ends with a newline, since astropy takes a text of one line for the name of a file or a URL.
    """
    try:
        text = data.decode().lstrip(_BYTE_ORDER_MARK)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SpecError(f"{path} cannot be read as a table: it is not UTF-8 text: save it as UTF-8")
    return _LINE_END.sub("\n", text) + "\n"


def _to_python(value: Any) -> Any:
    if value is np.ma.masked:
        return None
    if isinstance(value, np.ndarray):
        return np.asarray(value).tolist()
    return value.item() if isinstance(value, np.generic) else value


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value)
