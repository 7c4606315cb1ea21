"""The demonstration: its scores count only detectable sources, and its table of sources is readable."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from fcnpipe.cli import demo, tables
from fcnpipe.core.errors import StoreError
from fcnpipe.simulation import fits_fields


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field") / "field.fits"
    fits_fields.simulate("ground", (160, 200), 5, path)
    return path


def score(label: Any, field: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the scores that the demo prints for a store with these labels."""
    layout = SimpleNamespace(grid=SimpleNamespace(frame=None))
    store = SimpleNamespace(layout=layout, read=lambda name, box: label)
    monkeypatch.setattr(demo, "ZarrStore", SimpleNamespace(open=lambda path: store))
    return dict(demo.list_scores(Path("out.zarr"), field))


@pytest.mark.parametrize("faint_found", [False, True])
def test_faint_sources_count_neither_as_true_nor_as_false(
    field: Path, monkeypatch: pytest.MonkeyPatch, faint_found: bool
) -> None:
    truth, _ = fits_fields.read_truth(field)
    bright = np.flatnonzero(truth.snr >= 5)
    assert 3 < len(bright) < len(truth) - 3
    label = (
        truth.label if faint_found else np.where(np.isin(truth.label, bright + 1), truth.label, 0)
    )
    scores = score(label, field, monkeypatch)
    faint = len(truth) - len(bright)
    assert scores["truth"] == f"{len(bright)} sources with S/N >= 5; {faint} fainter are ignored"
    assert scores["F score"] == "1.000"
    assert scores["purity"].startswith("1.000:")


def test_missed_and_false_sources_lower_the_scores(
    field: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, _ = fits_fields.read_truth(field)
    count = int(np.count_nonzero(truth.snr >= 5))
    missed = int(np.argmax(truth.snr)) + 1
    label = np.where(truth.label == missed, 0, truth.label)
    scores = score(label, field, monkeypatch)
    assert scores["completeness"].startswith(f"{(count - 1) / count:.3f}:")
    assert scores["F score"] == f"{2 * (count - 1) / (2 * count - 1):.3f}"
    y, x = np.argwhere(truth.label == 0)[0]
    label[y, x] = len(truth) + 1
    assert score(label, field, monkeypatch)["purity"].startswith(f"{(count - 1) / count:.3f}:")


def test_completeness_by_signal_to_noise_covers_the_counted_sources(
    field: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, _ = fits_fields.read_truth(field)
    scores = score(truth.label, field, monkeypatch)
    bins = [value.split() for name, value in scores.items() if name.startswith("at S/N")]
    assert sum(int(number) for _, _, number, _ in bins) == np.count_nonzero(truth.snr >= 5)


def tabulate(monkeypatch: pytest.MonkeyPatch, sky: bool) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the table of a catalogue of twelve sources, the brightest of which has no flux error."""
    flux = np.array([3e5, *np.arange(10) + 0.25, np.nan])
    columns = {
        "label": (np.arange(1, 13), ""),
        "x_centroid": (np.linspace(0, 12345.678, 12), "pix"),
        "y_centroid": (np.zeros(12), "pix"),
        "ra": (np.full(12, 359.99999 if sky else np.nan), "deg"),
        "dec": (np.full(12, -89.99999 if sky else np.nan), "deg"),
        "kron_flux": (flux, "adu" if sky else ""),
        "kron_flux_err": (np.array([np.nan, *np.full(11, 0.5)]), "adu"),
        "area": (np.arange(12, dtype=np.int32) * 10000, "pix2"),
        "flags": (np.zeros(12, np.int32), ""),
    }
    sources = xr.Dataset({n: ("source", v, {"units": u}) for n, (v, u) in columns.items()})
    monkeypatch.setattr(demo.results, "open", lambda path: SimpleNamespace(sources=sources))
    return demo.tabulate_brightest(Path("out.zarr"))


def test_the_table_has_one_line_for_each_source_and_units_in_its_head(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    heads, rows = tabulate(monkeypatch, sky=True)
    assert heads == [
        "label", "x (px)", "y (px)", "ra (deg)", "dec (deg)", "flux (adu)", "S/N", "area (px)",
    ]  # fmt: skip
    tables.print_columns(heads, rows)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == " ".join(heads).split()
    assert len(lines) == demo.BRIGHTEST
    assert {len(line) for line in lines} == {len(head)}
    assert len(head) <= 80


def test_the_table_lists_the_brightest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, rows = tabulate(monkeypatch, sky=False)
    assert heads == ["label", "x (px)", "y (px)", "flux", "S/N", "area (px)"]
    assert [int(row[0]) for row in rows] == [1, *range(11, 2, -1)]
    assert rows[0][3:5] == ("300000.0", "nan")
    assert rows[1][3:5] == ("9.2", "18")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/out cannot be created"):
        demo.run_demo(tmp_path / "file" / "out", "none", None)  # type: ignore[arg-type]
