"""Export of the catalogue: each format keeps the values, and the units if it supports them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import Table

from fcnpipe import export
from fcnpipe.core.errors import SpecError, StoreError
from fcnpipe.stores import ZarrStore

FORMATS = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits", "votable": "votable"}


@pytest.mark.parametrize("kind", FORMATS)
def test_astropy_reads_the_values_of_the_store(rich: ZarrStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cat.{kind}"
    export.export(rich, path, kind)
    with warnings.catch_warnings():
        # The store deliberately has a unit that astropy does not know.
        warnings.simplefilter("ignore", u.UnitsWarning)
        table = Table.read(path, format=FORMATS[kind])
    assert table.colnames == rich.columns
    for name, values in rich.read_sources().items():
        found = table[name]
        if kind == "csv" and values.dtype == bool:
            found = np.asarray(found) == "True"
        filled = np.ma.filled(found, np.nan) if values.dtype.kind == "f" else found
        np.testing.assert_array_equal(np.asarray(filled, values.dtype), values, err_msg=name)


@pytest.mark.parametrize("kind", ["ecsv", "fits", "votable"])
def test_units_are_kept(rich: ZarrStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cat.{kind}"
    export.export(rich, path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)
        table = Table.read(path, format=FORMATS[kind])
    assert table["ra"].unit == u.deg
    assert table["x_centroid"].unit == u.pix
    assert table["area"].unit == u.pix**2
    assert table["label"].unit is None


def test_ucds_are_in_fits_and_votable(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "cat.fits")
    export.export(rich, tmp_path / "cat.xml")
    assert "pos.cartesian.x" in (tmp_path / "cat.xml").read_text()
    assert b"pos.cartesian.x" in (tmp_path / "cat.fits").read_bytes()


def test_parquet_keeps_types_and_units(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "cat.parquet")
    table = pq.read_table(tmp_path / "cat.parquet")
    for name, values in rich.read_sources().items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    assert table.schema.field("kron_flux").metadata[b"units"] == b"furlong"


@pytest.mark.parametrize("kind", export.TABLES)
def test_an_empty_catalogue_is_written(tmp_path: Path, rich: ZarrStore, kind: str) -> None:
    class Empty:
        layout, cards, attrs, columns = rich.layout, rich.cards, rich.attrs, rich.columns
        column_attrs = staticmethod(rich.column_attrs)

        def read_sources(self, names=None, rows=slice(None)):  # type: ignore[no-untyped-def]
            return rich.read_sources(names, slice(0, 0))

        def source_blocks(self, names=None):  # type: ignore[no-untyped-def]
            yield self.read_sources(names)

    export.TABLES[kind](Empty(), tmp_path / "cat")  # type: ignore[arg-type]
    assert (tmp_path / "cat").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "cat.doc",
            None,
            r"cat.doc': the suffix '.doc' is not one of .csv, .ecsv.*: use one of them",
        ),
        ("cat", None, r"the suffix '' is not one of .csv, .ecsv"),
        ("cat.csv", "doc", r"kind='doc' for .*cat.csv: choose one of csv, ecsv"),
        ("p.fits", "png", r"kind='png' for .*p.fits: \.fits files have the kinds fits, labels"),
        ("l.csv", "labels", r"kind='labels' for .*l.csv: \.csv files have the kinds csv: choose"),
        ("p.dat", "png", r"the suffix '.dat' is not a picture format: use .png"),
    ],
)
def test_an_unknown_kind_is_refused(
    rich: ZarrStore, tmp_path: Path, name: str, kind: str | None, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        export.export(rich, tmp_path / name, kind)
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_refused(rich: ZarrStore) -> None:
    with pytest.raises(SpecError, match=r"s3://b/cat.csv is a URL.*local file"):
        export.export(rich, "s3://b/cat.csv")


def test_suffixes_are_case_insensitive(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "CAT.CSV")
    assert (tmp_path / "CAT.CSV").read_text().startswith("label,")


def test_a_missing_folder_is_reported(rich: ZarrStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*No such file"):
        export.export(rich, tmp_path / "no" / "cat.csv")


def test_a_failed_export_keeps_the_old_file(
    rich: ZarrStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cat.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ZarrStore, "source_blocks", fail)
    with pytest.raises(StoreError, match="No space left"):
        export.export(rich, path)
    assert [p.name for p in tmp_path.iterdir()] == ["cat.csv"]
    assert path.read_text() == "old"
