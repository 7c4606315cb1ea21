"""Tests that every output store must pass.

A test module subclasses `StoreTests` and defines a fixture ``store``::

    class TestMyStore(StoreTests):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore.create(tmp_path / "out", self.layout, self.identity)
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box
from fcnpipe.stores.base import Columns, Layout, Store
from fcnpipe.stores.identity import RunIdentity

MAPS = {"label": "int32", "segments": "int32", "elevation": "uint16", "flags": "uint8"}
"""Dtypes of the maps without a leading axis, by name."""


class StoreTests:
    """Tests of the contract of `fcnpipe.stores.base.Store`.

    A subclass defines a fixture ``store`` that returns an empty store with this layout and identity.
    """

    layout = Layout(
        shape=(150, 200),
        edge=(64, 64),
        mesh=(3, 4),
        bands=("g", "r"),
        classes=("source", "artefact"),
        stages=("predict", "label"),
        keep_image=True,
    )
    identity = RunIdentity("input", "model", "1", {"thresh": 0.5})

    def test_each_map_comes_back_as_it_was_written(self, store: Store) -> None:
        """Maps written core by core are read back as one image."""
        for name, dtype in MAPS.items():
            image = random_image(self.layout.shape, dtype)
            write_image(store, name, image)
            np.testing.assert_array_equal(store.read(name, self.layout.grid.frame), image)

    def test_leading_axes_are_written_and_read_whole(self, store: Store) -> None:
        """Maps with a class axis or a band axis are read and written with the whole axis."""
        probability = random_image((2, *self.layout.shape), "uint8")
        write_image(store, "probability", probability)
        box = Box(60, 3, 70, 199)
        np.testing.assert_array_equal(
            store.read("probability", box), probability[(..., *box.slices)]
        )

    def test_what_was_not_written_is_background(self, store: Store) -> None:
        """Pixels that were not written are 0 in integer maps and NaN in the science image."""
        assert not store.read("label", self.layout.grid.frame).any()
        assert np.isnan(store.read("science", Box(0, 0, 5, 5))).all()

    @pytest.mark.parametrize(
        "box",
        [
            Box(0, 0, 32, 64),
            Box(0, 32, 64, 96),
            Box(0, 0, 64, 128),
            Box(128, 192, 192, 256),
            Box(0, 0, 0, 0),
            Box(-64, 0, 0, 64),
        ],
        ids=["half", "shifted", "two", "not clipped", "empty", "outside"],
    )
    def test_anything_but_one_core_is_refused(self, store: Store, box: Box) -> None:
        """A box other than one core is refused, because each shard has one writer."""
        with pytest.raises(StoreError, match="exactly one core"):
            store.write_tile("label", box, np.ones(box.shape, np.int32))
        assert not store.read("label", self.layout.grid.frame).any()

    def test_writing_a_tile_leaves_its_neighbours_alone(self, store: Store) -> None:
        """Writing a tile does not change the pixels around its core."""
        image = random_image(self.layout.shape, "int32")
        write_image(store, "label", image)
        core = self.layout.grid.tile(1, 1).core
        store.write_tile("label", core, np.zeros(core.shape, np.int32))
        image[core.slices] = 0
        np.testing.assert_array_equal(store.read("label", self.layout.grid.frame), image)

    def test_ledger_holds_what_was_marked(self, store: Store) -> None:
        """Tiles are marked by stage; marking twice is the same as marking once."""
        tile = self.layout.grid.tile(2, 3)
        for _ in range(2):
            store.mark("label", tile)
        assert np.argwhere(store.done("label")).tolist() == [[2, 3]]
        assert not store.done("predict").any()

    def test_scratch_records_come_back(self, store: Store) -> None:
        """Arrays of any dtype and shape, also empty ones, are read back; the last writer wins."""
        arrays = {"a": np.arange(6.0).reshape(2, 3), "n": np.int64(7), "e": np.zeros((0, 2), bool)}
        store.put_arrays("separate", "r000c001", {"a": np.zeros(1)})
        store.put_arrays("separate", "r000c001", {k: np.asarray(v) for k, v in arrays.items()})
        store.put_arrays("separate", "r000c000", {})
        found = store.get_arrays("separate", "r000c001")
        assert found.keys() == arrays.keys()
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values)
        assert store.list_arrays("separate") == ["r000c000", "r000c001"]
        assert list(store.get_arrays("separate", "r000c001", ["n"])) == ["n"]
        assert store.list_arrays("merge") == []
        store.drop_arrays("separate")
        assert store.list_arrays("separate") == []

    def test_missing_scratch_record_is_a_key_error(self, store: Store) -> None:
        """A missing record raises KeyError; it is not read as empty."""
        with pytest.raises(KeyError):
            store.get_arrays("separate", "r009c009")

    def test_mesh_comes_back(self, store: Store) -> None:
        """Sky and noise are read back as float32, including NaN."""
        sky = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        sky[0, 0, 0] = np.nan
        store.write_mesh("sky", sky)
        np.testing.assert_array_equal(store.read_mesh("sky"), sky)
        assert np.isnan(store.read_mesh("noise")).all()

    @pytest.mark.parametrize("cuts", [(), (0,), (3,), (3, 3, 10)])
    def test_catalogue_does_not_depend_on_its_blocks(
        self, store: Store, cuts: tuple[int, ...]
    ) -> None:
        """Rows in one block or in several blocks, also empty ones, are the same catalogue."""
        flux = np.linspace(-1, 1, 11)
        blocks = [make_columns(part) for part in np.split(flux, cuts)]
        store.write_sources(blocks, 11)
        np.testing.assert_array_equal(store.read_sources(["flux"])["flux"], flux)
        rows = store.read_sources(rows=slice(2, 5))
        np.testing.assert_array_equal(rows["faint"], flux[2:5] < 0)

    def test_catalogue_written_by_columns_is_the_same(self, store: Store) -> None:
        """A catalogue written by columns is equal to one written by rows."""
        flux = np.linspace(-1, 1, 11)
        columns = [(name, *column) for name, column in make_columns(flux).items()]
        store.write_source_columns(iter(columns))
        found = store.read_sources()
        assert list(found) == ["flux", "faint"]
        np.testing.assert_array_equal(found["faint"], flux < 0)
        store.write_source_columns([("flux", flux[:0], {})])
        assert store.read_sources()["flux"].shape == (0,)
        with pytest.raises(StoreError, match="10 rows of a catalogue of 11"):
            store.write_source_columns([columns[0], ("short", flux[1:], {})])

    def test_catalogue_may_be_empty_or_be_replaced(self, store: Store) -> None:
        """A second catalogue replaces the first one."""
        store.write_sources([make_columns(np.arange(5.0))], 5)
        store.write_sources([make_columns(np.zeros(0))], 0)
        assert store.read_sources()["flux"].shape == (0,)

    def test_catalogue_with_rows_missing_is_refused(self, store: Store) -> None:
        """A catalogue with fewer rows than announced is refused."""
        with pytest.raises(StoreError, match="5 rows of a catalogue of 6"):
            store.write_sources([make_columns(np.arange(5.0))], 6)

    def test_survives_pickling(self, store: Store) -> None:
        """A pickled copy of a store reads and writes the same store."""
        other = pickle.loads(pickle.dumps(store))
        core = self.layout.grid.tile(0, 0).core
        other.write_tile("label", core, np.full(core.shape, 3, np.int32))
        assert (store.read("label", core) == 3).all()
        assert other.layout == store.layout == self.layout


def random_image(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return an image of random integers with a fixed seed."""
    return np.random.default_rng(1).integers(0, 250, shape).astype(dtype)


def write_image(store: Store, name: str, image: NDArray[Any]) -> None:
    """Write a whole image core by core."""
    for tile in store.layout.grid:
        store.write_tile(name, tile.core, image[(..., *tile.core.slices)])


def make_columns(flux: NDArray[np.float64]) -> Columns:
    """Return a block of a small catalogue."""
    return {"flux": (flux, {"units": "adu"}), "faint": (flux < 0, {"long_name": "below 0"})}
