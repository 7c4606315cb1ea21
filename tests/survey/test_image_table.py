"""Rows of a table of images: the options that they may set, encodings, and tables that cannot be read."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import RUNTIME_OPTIONS, RunSpec
from fcnpipe.survey.image_table import TABLE_OPTIONS, read_rows

ECSV = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: image, datatype: string}\n"
MARK = b"\xef\xbb\xbf"


def rows(text: str | bytes, name: str = "t.csv") -> list[dict[str, object]]:
    return list(read_rows(name, text.encode() if isinstance(text, str) else text, "image"))


def parquet(**columns: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def test_a_table_sets_what_determines_a_result_and_the_name_of_its_store() -> None:
    assert {"image", *TABLE_OPTIONS} <= RunSpec.model_fields.keys()
    assert TABLE_OPTIONS.intersection(RUNTIME_OPTIONS) == {"out"}
    others = sorted(RunSpec.model_fields.keys() - TABLE_OPTIONS - {"image"})
    assert {"log_file", "device"} <= set(others)
    text = f"image,gain,{','.join(others)}\na.fits,2.5,{','.join('7' for _ in others)}\n"
    assert rows(text) == [{"image": "a.fits", "gain": 2.5}]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", MARK, MARK * 2])
@pytest.mark.parametrize("quote", ["", '"'])
def test_tables_of_spreadsheets_are_read(newline: str, mark: bytes, quote: str) -> None:
    name = f"{quote}image{quote}"
    text = newline.join([f"{name},thresh", "a.fits,0.4", "b.fits,", ""])
    assert rows(mark + text.encode()) == [{"image": "a.fits", "thresh": 0.4}, {"image": "b.fits"}]


def test_a_mark_is_left_out_of_other_formats() -> None:
    assert rows(MARK + f"{ECSV}image\na.fits\n".encode(), "t.ecsv") == [{"image": "a.fits"}]
    assert rows(parquet(**{"\ufeffimage": ["a.fits"]}), "t.parquet") == [{"image": "a.fits"}]


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp037"]
)
def test_tables_in_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(SpecError, match=r"t\.csv cannot be .* not UTF-8 text: save it as UTF-8"):
        rows("image,name\na.fits,Größe\n".encode(encoding))


def test_a_header_alone_has_no_rows() -> None:
    assert rows("image") == rows("") == rows(MARK) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("image,x\na.fits,1,2\n", "t.csv"),
        ("image;thresh\na.fits;0,4\n", "t.csv"),
        (f"{ECSV}wrong\na.fits\n", "t.ecsv"),
        ("# %ECSV 1.0\n# ---\n# datatype: 3\nimage\na.fits\n", "t.ecsv"),
        ("# %ECSV 1.0\n# ---\n# - 3\nimage\na.fits\n", "t.ecsv"),
        ("no header", "t.ecsv"),
        ("", "t.parquet"),
        (b"PAR1" + bytes(99) + b"PAR1", "t.parquet"),
        (random.Random(0).randbytes(999), "t.csv"),
    ],
)
def test_a_damaged_table_is_an_error_of_one_line(text: str | bytes, name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name} cannot be read as a table: ") as caught:
        rows(text, name)
    assert "\n" not in str(caught.value)


def test_a_message_names_a_few_columns() -> None:
    with pytest.raises(SpecError, match="no column 'image', only x0, x1") as caught:
        rows(",".join(f"x{i}" for i in range(500)) + "\n" + ",".join(["1"] * 500))
    assert len(str(caught.value)) < 120
    with pytest.raises(SpecError, match="separate columns by commas"):
        rows("image;thresh\na.fits;4\n")


def test_a_cell_with_an_array_is_kept_for_the_check_of_its_image() -> None:
    header = ECSV + '# - {name: gain, datatype: string, subtype: "float64[2]"}\n'
    assert rows(f"{header}image gain\na.fits [1,2]\n", "t.ecsv") == [
        {"image": "a.fits", "gain": [1.0, 2.0]}
    ]


@pytest.mark.parametrize("out", ["a.zarr", "night 1/a_b+c-d.zarr", "Größe.zarr", "7"])
def test_a_store_may_have_an_ordinary_name(out: str) -> None:
    assert str(rows(f"image,out\na.fits,{out}\n")[0]["out"]) == out


@pytest.mark.parametrize(
    "out", [*"$`!*?[]{}()<>|&;~#^'\\", "./", ".", "-x", "a/-x", "a\tb", "a\x1b", "a\0"]
)
def test_a_store_has_no_name_that_a_shell_interprets(out: str) -> None:
    data = parquet(image=["a.fits"], out=[out])
    with pytest.raises(SpecError, match=r"^t\.parquet: row 1: out ") as caught:
        rows(data, "t.parquet")
    assert str(caught.value).isprintable()
