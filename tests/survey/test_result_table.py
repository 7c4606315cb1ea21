"""The result table of a survey: written and read back, and refused suffixes."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from fcnpipe.core.errors import SpecError
from fcnpipe.survey.result_table import SurveyRow, check_table_path, write_table


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".parquet"])
@pytest.mark.parametrize(
    "rows",
    [[], [SurveyRow("a, b", "o", "failed", error='said "no"'), SurveyRow("c", "d", "done", 5)]],
)
def test_the_table_comes_back_as_it_was(tmp_path: Path, suffix: str, rows: list[SurveyRow]) -> None:
    path = tmp_path / f"new/table{suffix}"
    write_table(rows, str(path))
    if suffix == ".parquet":
        assert pq.read_table(path).to_pylist() == [
            {name: getattr(row, name) for name in SurveyRow.__slots__} for row in rows
        ]
    else:
        found = Table.read(path, format=f"ascii{suffix}")
        assert found.colnames == list(SurveyRow.__slots__)
        assert [[_text(cell) for cell in row] for row in found] == [
            [_text(cell) for cell in astuple(row)] for row in rows
        ]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def _text(cell: object) -> str:
    return "" if cell is np.ma.masked else str(cell)


def test_a_table_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SpecError, match="suffix"):
        check_table_path("out/survey.xlsx")
    with pytest.raises(SpecError, match="cannot be written: give a file on disk, s3:// or gs://"):
        check_table_path("https://host/survey.ecsv")
