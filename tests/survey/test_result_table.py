"""The result table of a survey: reading back of what was written, and refused paths."""

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
def test_a_table_is_read_back_unchanged(tmp_path: Path, suffix: str, rows: list[SurveyRow]) -> None:
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


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".parquet"])
def test_texts_that_are_not_one_line_of_utf8_are_escaped(tmp_path: Path, suffix: str) -> None:
    row = SurveyRow("b\udcff.fits", "a\nb", "failed", error="x\0\x85y\u2028 Größe")
    assert row == SurveyRow(r"b\udcff.fits", r"a\nb", "failed", error=r"x\x00\x85y\u2028 Größe")
    write_table([row], str(tmp_path / f"t{suffix}"))
    assert rb"b\udcff.fits" in (tmp_path / f"t{suffix}").read_bytes()


def test_a_table_of_an_unknown_format_or_on_a_web_server_is_refused() -> None:
    with pytest.raises(SpecError, match="suffix"):
        check_table_path("out/survey.xlsx")
    with pytest.raises(SpecError, match="cannot be written: choose a file on disk, s3:// or gs://"):
        check_table_path("https://host/survey.ecsv")
