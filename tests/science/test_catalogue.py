"""Columns of the catalogue, and the assembly of rows in any order into one table."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.units import Unit

from fcnpipe.core.errors import VerificationError
from fcnpipe.science import catalogue
from fcnpipe.science.catalogue import COLUMNS, FLUX_UNIT, assemble, complete_rows, list_columns
from tests.science.header_cards import make_cards


def measured_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return measured columns, each filled with the label."""
    left_out = {"source_id", "ra", "dec", "half_light_radius"}
    rows = {c.name: labels.astype(np.float64) for c in COLUMNS if c.name not in left_out}
    return rows | {"label": labels.astype(np.int32)}


def test_columns_are_well_formed():
    names = [column.name for column in list_columns("adu", magnitudes=True)]
    assert len(set(names)) == len(names)
    for column in list_columns("adu", magnitudes=True):
        np.dtype(column.dtype)
        Unit(column.unit)
        assert column.description
        assert column.unit != FLUX_UNIT


def test_complete_rows_have_every_column_in_order():
    labels = np.array([3, 1])
    rows = complete_rows(measured_rows(labels), make_cards(), 1000, zero_point=25.0)
    columns = list_columns(magnitudes=True)
    assert list(rows) == [c.name for c in columns]
    assert [rows[c.name].dtype for c in columns] == [np.dtype(c.dtype) for c in columns]
    assert rows["source_id"].tolist() == [3003, 1001]
    assert np.isnan(rows["half_light_radius"]).all()
    np.testing.assert_allclose(rows["mag"], 25 - 2.5 * np.log10(labels))
    assert np.isfinite(rows["ra"]).all()


def test_assemble_orders_the_rows_of_all_parts():
    order = np.random.default_rng(0).permutation(np.arange(1, 101))
    parts = [complete_rows(measured_rows(part), (), 1000) for part in np.split(order, [7, 7, 60])]
    requests = []

    def read(names):
        requests.append(names)
        return ({name: part[name] for name in names} for part in parts)

    table = {column.name: values for column, values in assemble(read, 100)}
    assert table["label"].tolist() == list(range(1, 101))
    np.testing.assert_array_equal(table["segment_flux"], np.arange(1.0, 101.0))
    assert table["source_id"].dtype == np.uint64
    assert requests[0] == ("label",)
    assert len(requests) == 2  # 100 rows of all columns fit into one group


def test_assemble_holds_few_columns_of_a_large_catalogue(monkeypatch):
    monkeypatch.setattr(catalogue, "GROUP_BYTES", 3 * 8 * 5)
    requests = []

    def read(names):
        requests.append(names)
        part = complete_rows(measured_rows(np.arange(1, 6)), (), 1000)
        return [{name: part[name] for name in names}]

    names = [column.name for column, _ in assemble(read, 5)]
    assert names == [column.name for column in catalogue.COLUMNS]
    assert max(map(len, requests)) == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], [4]], "no row for label 3 of 4"),
        ([[1, 2], [2, 3, 4]], "two rows for label 2"),
        ([[1, 2, 3, 4, 4]], "two rows for label 4"),
        ([[1, 2, 3, 4, 5]], "label 5, outside 1 to 4"),
        ([[0, 1, 2, 3]], "label 0, outside"),
    ],
)
def test_missing_repeated_and_foreign_labels_are_named(labels, message):
    def read(names):
        return ({"label": np.array(part)} for part in labels)

    with pytest.raises(VerificationError, match=message):
        list(assemble(read, 4))


def test_no_sources_make_an_empty_table():
    table = {column.name: values for column, values in assemble(lambda names: [], 0)}
    assert all(len(values) == 0 for values in table.values())
