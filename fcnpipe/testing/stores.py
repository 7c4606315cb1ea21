"""The suite that every output store must pass.

Subclass it in a test module and give a ``store`` fixture::

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
"""Maps without a leading axis, by name, and their dtype."""


class StoreTests:
    """Contract of `fcnpipe.stores.base.Store`; needs a ``store`` fixture of an empty store."""

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
        """Whole image by cores, read back in one piece."""
        for name, dtype in MAPS.items():
            image = random_image(self.layout.shape, dtype)
            write_image(store, name, image)
            np.testing.assert_array_equal(store.read(name, self.layout.grid.frame), image)

    def test_leading_axes_are_written_and_read_whole(self, store: Store) -> None:
        """Probability has a class axis, science a band axis."""
        probability = random_image((2, *self.layout.shape), "uint8")
        write_image(store, "probability", probability)
        box = Box(60, 3, 70, 199)
        np.testing.assert_array_equal(
            store.read("probability", box), probability[(..., *box.slices)]
        )

    def test_what_was_not_written_is_background(self, store: Store) -> None:
        """0 in integer maps, NaN in the science image."""
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
        """One shard, one writer."""
        with pytest.raises(StoreError, match="exactly one core"):
            store.write_tile("label", box, np.ones(box.shape, np.int32))
        assert not store.read("label", self.layout.grid.frame).any()

    def test_writing_a_tile_leaves_its_neighbours_alone(self, store: Store) -> None:
        """The pixels around a core stay as they were."""
        image = random_image(self.layout.shape, "int32")
        write_image(store, "label", image)
        core = self.layout.grid.tile(1, 1).core
        store.write_tile("label", core, np.zeros(core.shape, np.int32))
        image[core.slices] = 0
        np.testing.assert_array_equal(store.read("label", self.layout.grid.frame), image)

    def test_ledger_holds_what_was_marked(self, store: Store) -> None:
        """By stage and tile; marking twice changes nothing."""
        tile = self.layout.grid.tile(2, 3)
        for _ in range(2):
            store.mark("label", tile)
        assert np.argwhere(store.done("label")).tolist() == [[2, 3]]
        assert not store.done("predict").any()

    def test_scratch_records_come_back(self, store: Store) -> None:
        """Any dtype and shape, empty ones too; the last writer wins."""
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
        """Not an empty record."""
        with pytest.raises(KeyError):
            store.get_arrays("separate", "r009c009")

    def test_mesh_comes_back(self, store: Store) -> None:
        """Sky and noise as float32, NaN kept."""
        sky = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        sky[0, 0, 0] = np.nan
        store.write_mesh("sky", sky)
        np.testing.assert_array_equal(store.read_mesh("sky"), sky)
        assert np.isnan(store.read_mesh("noise")).all()

    @pytest.mark.parametrize("cuts", [(), (0,), (3,), (3, 3, 10)])
    def test_catalogue_does_not_depend_on_its_blocks(
        self, store: Store, cuts: tuple[int, ...]
    ) -> None:
        """Rows in one block or in several, empty ones among them."""
        flux = np.linspace(-1, 1, 11)
        blocks = [make_columns(part) for part in np.split(flux, cuts)]
        store.write_sources(blocks, 11)
        np.testing.assert_array_equal(store.read_sources(["flux"])["flux"], flux)
        rows = store.read_sources(rows=slice(2, 5))
        np.testing.assert_array_equal(rows["faint"], flux[2:5] < 0)

    def test_catalogue_written_by_columns_is_the_same(self, store: Store) -> None:
        """By columns or by rows."""
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
        """A second writer of the catalogue replaces the first one's."""
        store.write_sources([make_columns(np.arange(5.0))], 5)
        store.write_sources([make_columns(np.zeros(0))], 0)
        assert store.read_sources()["flux"].shape == (0,)

    def test_catalogue_with_rows_missing_is_refused(self, store: Store) -> None:
        """Rows never get lost in silence."""
        with pytest.raises(StoreError, match="5 rows of a catalogue of 6"):
            store.write_sources([make_columns(np.arange(5.0))], 6)

    def test_survives_pickling(self, store: Store) -> None:
        """What another process opens sees what this one writes afterwards."""
        other = pickle.loads(pickle.dumps(store))
        core = self.layout.grid.tile(0, 0).core
        other.write_tile("label", core, np.full(core.shape, 3, np.int32))
        assert (store.read("label", core) == 3).all()
        assert other.layout == store.layout == self.layout


def random_image(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Give an image of random integers, the same every time."""
    return np.random.default_rng(1).integers(0, 250, shape).astype(dtype)


def write_image(store: Store, name: str, image: NDArray[Any]) -> None:
    """Write a whole image core by core."""
    for tile in store.layout.grid:
        store.write_tile(name, tile.core, image[(..., *tile.core.slices)])


def make_columns(flux: NDArray[np.float64]) -> Columns:
    """Give a block of a small catalogue."""
    return {"flux": (flux, {"units": "adu"}), "faint": (flux < 0, {"long_name": "below 0"})}
