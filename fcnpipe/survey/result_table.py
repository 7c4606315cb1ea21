"""The result table of a survey, with one row for each image, and the file that marks an unfinished survey."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import can_list, is_remote
from fcnpipe.export.base import atomic_write
from fcnpipe.remote import uploads
from fcnpipe.reporting.event_log import utc_timestamp
from fcnpipe.survey.image_list import printable_name
from fcnpipe.survey.image_table import TABLE_SUFFIXES


@dataclass(frozen=True, slots=True)
class SurveyRow:
    """Result of one image: a row of the result table.

    All texts are UTF-8 in one line, with other characters as escapes.

    Attributes
    ----------
    image, out : str
        Path or URL of the image and of its store.
    status : str
        ``done``; ``found`` if the result existed before; ``failed``; ``left`` if the survey ended before the
        image was processed.
    sources : int
        Number of sources; -1 if unknown, or for a prediction.
    tiles, failed_tiles : int
        Number of tiles, and of those that failed; -1 if unknown.
    seconds : float
        Wall time, s.
    error : str
        Reason of the failure, one line.
    catalogue : str
        Path or URL of the catalogue; empty if there is none.
    """

    image: str
    out: str
    status: str
    sources: int = -1
    tiles: int = -1
    failed_tiles: int = 0
    seconds: float = 0.0
    error: str = ""
    catalogue: str = ""

    def __post_init__(self) -> None:
        for name in ("image", "out", "error", "catalogue"):
            object.__setattr__(self, name, printable_name(getattr(self, name)))


def check_table_path(path: str) -> None:
    """Check that a result table can be written to a path or URL.

    Raises
    ------
    SpecError
        If its suffix is not that of a format, or its server does not accept files.
    """
    if not can_list(path):
        raise SpecError(f"table {path} cannot be written: choose a file on disk, s3:// or gs://")
    if Path(path).suffix not in TABLE_SUFFIXES:
        raise SpecError(f"table {path}: its suffix must be one of {', '.join(TABLE_SUFFIXES)}")


def write_table(rows: Sequence[SurveyRow], path: str) -> None:
    """Write a result table to a path or URL, atomically, in the format of its suffix."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, path.rpartition("/")[2])
            _write_table_file(rows, file)
            uploads.put(path, file.read_bytes())
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        _write_table_file(rows, temporary)


def mark_started(table: str) -> str:
    """Mark a survey as started, and return its start time; that of an unfinished survey with this table is kept.

    Returns
    -------
    str
        Time in the format of :func:`fcnpipe.reporting.event_log.utc_timestamp`.

    Notes
    -----
    The time is kept in a file next to the table, TABLE.begun.
    """
    mark, now = f"{table}.begun", utc_timestamp()
    if is_remote(table):
        found = uploads.get(mark)
        if found is None:
            uploads.put(mark, now.encode())
        return now if found is None else found.decode()
    if not Path(mark).exists():
        Path(mark).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(mark) as temporary:
            temporary.write_text(now)
    return Path(mark).read_text()


def mark_finished(table: str) -> None:
    """Remove the mark of a survey that is finished."""
    if is_remote(table):
        uploads.remove([f"{table}.begun"])
    else:
        Path(f"{table}.begun").unlink(missing_ok=True)


_TYPES = {"int": (np.int64, pa.int64()), "float": (np.float64, pa.float64())}
"""Types of numbers in astropy and in parquet tables; other columns are text."""
_COLUMNS = [(f.name, *_TYPES.get(str(f.type), (np.str_, pa.string()))) for f in fields(SurveyRow)]


def _write_table_file(rows: Sequence[SurveyRow], file: Path) -> None:
    columns = {name: [getattr(row, name) for row in rows] for name, *_ in _COLUMNS}
    if file.suffix == ".parquet":
        schema = pa.schema([(name, kind) for name, _, kind in _COLUMNS])
        pq.write_table(pa.table(columns, schema=schema), file)
    else:
        dtypes = [dtype for _, dtype, _ in _COLUMNS]
        format_name = "ascii.ecsv" if file.suffix == ".ecsv" else "ascii.csv"
        Table(columns, dtype=dtypes).write(file, format=format_name, overwrite=True)
