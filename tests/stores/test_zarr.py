"""`ZarrStore`: the shared suite, and storage grid, xarray access, pyramid, ledger and errors."""

from __future__ import annotations

import errno
import json
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnpipe.core.errors import PlanError, StoreError
from fcnpipe.core.geometry import Box
from fcnpipe.stores import Layout, ZarrStore
from fcnpipe.stores.hierarchy import storage_grid
from fcnpipe.testing.small_run import IDENTITY, LAYOUT, make_catalogue, make_labels
from fcnpipe.testing.stores import StoreTests, make_columns

pytestmark = pytest.mark.filterwarnings("error")


class TestZarrStore(StoreTests):
    """The shared suite of all stores."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> ZarrStore:
        return ZarrStore.create(tmp_path / "out.zarr", self.layout, self.identity)


# -- storage grid ----------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 6).map(lambda n: 512 * n) | st.integers(1, 512))
@settings(max_examples=200, deadline=None)
def test_each_core_is_one_shard_of_whole_chunks(size: int, edge: int) -> None:
    layout = Layout((size, size), (edge, edge), (1, 1))
    chunks, shards = storage_grid(layout, layout.shape)
    assert shards[0] % chunks[0] == 0
    assert -(-size // shards[0]) == layout.grid.counts[0]
    assert shards[0] == edge or size <= shards[0] < size + chunks[0]
    assert (chunks, shards) == (layout.chunks, layout.shards)


@pytest.mark.parametrize("edge", [(768, 512), (512, 1000)])
def test_core_that_is_not_whole_chunks_is_refused_before_a_pixel_is_read(
    edge: tuple[int, int],
) -> None:
    with pytest.raises(PlanError, match=r"not a whole number of 512-px .* use 512 or 1024 px"):
        Layout((5000, 5000), edge, (1, 1))


def test_shards_and_chunks_on_disk(tmp_path: Path) -> None:
    layout = Layout((2500, 700), (1024, 1024), (40, 11), classes=("a", "b"))
    store = ZarrStore.create(tmp_path / "out.zarr", layout, IDENTITY)
    array = zarr.open_array(store.path / "image/0/probability", mode="r")
    assert (array.shards, array.chunks) == ((2, 1024, 1024), (1, 512, 512))
    tile = layout.grid.tile(2, 0)
    store.write_tile("probability", tile.core, np.ones((2, 452, 700), np.uint8))
    files = [p for p in (store.path / "image/0/probability/c").rglob("*") if p.is_file()]
    assert [str(f.relative_to(store.path)) for f in files] == ["image/0/probability/c/0/2/0"]


def test_rewriting_a_tile_gives_the_same_bytes(partial: ZarrStore) -> None:
    tile = LAYOUT.grid.tile(2, 3)
    labels = make_labels()[tile.core.slices]
    partial.write_tile("label", tile.core, labels)
    file = partial.path / "image/0/label/c/2/3"
    before = file.read_bytes()
    partial.write_tile("label", tile.core, labels * 0 + 7)
    partial.write_tile("label", tile.core, labels)
    assert file.read_bytes() == before


# -- plain xarray ----------------------------------------------------------------------


def test_plain_xarray_opens_the_tree_without_a_warning(published: ZarrStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_datatree(published.path, engine="zarr") as tree:
            assert tree.attrs["Conventions"] == "CF-1.12"
            assert tree.attrs["status"] == "complete"
            assert {"image", "background", "tiles", "sources"} <= set(tree.children)
            np.testing.assert_array_equal(tree["image/0/label"], make_labels())
            assert tree["image/0/probability"].max() == pytest.approx(240 / 255)


@pytest.mark.parametrize("group", ["sources", "image/0", "image/1", "background", "tiles"])
def test_plain_xarray_opens_each_group_without_a_warning(published: ZarrStore, group: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for consolidated in (None, True):
            with xr.open_zarr(published.path, group=group, consolidated=consolidated) as dataset:
                dataset.load()


def test_catalogue_keeps_units_and_order(published: ZarrStore) -> None:
    with xr.open_zarr(published.path, group="sources") as sources:
        assert sources.area.attrs["units"] == "pixel2"
        assert sources.source_id.dtype == np.uint64
        np.testing.assert_array_equal(sources.area, make_catalogue()["area"][0])
    assert published.columns == ["label", "source_id", "area"]


def test_coordinates_and_flags_follow_cf(published: ZarrStore) -> None:
    with xr.open_zarr(published.path, group="image/0") as image:
        np.testing.assert_array_equal(image.y, np.arange(150))
        assert image.flags.attrs["flag_meanings"] == "no_data masked saturated"
        assert image.flags.attrs["flag_masks"] == [1, 2, 4]
        assert image.wcs.attrs["fits_cards"] == ["A = 1"]
    with xr.open_zarr(published.path, group="background") as mesh:
        np.testing.assert_array_equal(mesh.mesh_y, [31.5, 95.5, 138.5])


def test_consolidated_metadata_equal_those_of_zarr(published: ZarrStore) -> None:
    ours = json.loads((published.path / "zarr.json").read_text())["consolidated_metadata"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(published.path)
    theirs = json.loads((published.path / "zarr.json").read_text())["consolidated_metadata"]
    assert ours == theirs
    assert list(ours["metadata"]) == sorted(ours["metadata"])
    assert not (published.path / ".scratch").exists()


# -- pyramid ---------------------------------------------------------------------------


def test_pyramid_equals_that_of_the_whole_image(published: ZarrStore) -> None:
    labels = make_labels()
    whole = Box(0, 0, 75, 100)
    blocks = labels.reshape(75, 2, 100, 2).swapaxes(1, 2).reshape(75, 100, 4)
    mode = [[max(set(b), key=lambda v: ((b == v).sum(), v)) for b in row] for row in blocks]
    np.testing.assert_array_equal(published.read("label", whole, 1), mode)
    np.testing.assert_allclose(published.read("science", whole, 1)[0], blocks.mean(axis=2))
    expected = np.floor((blocks * 60).mean(axis=2) + 0.5)
    np.testing.assert_array_equal(published.read("probability", whole, 1)[0], expected)


def test_pyramid_does_not_depend_on_the_tiles(tmp_path: Path) -> None:
    image = np.random.default_rng(5).normal(size=(1, 1101, 300)).astype(np.float32)
    image[:, 700:720, 10:60] = np.nan
    levels = []
    for edge in (128, 512):
        layout = Layout((1101, 300), (edge, edge), (18, 5), keep_image=True)
        store = ZarrStore.create(tmp_path / f"{edge}.zarr", layout, IDENTITY)
        for tile in layout.grid:
            store.write_tile("science", tile.core, image[(..., *tile.core.slices)])
        store.write_pyramid()
        levels.append(store.read("science", Box(0, 0, 276, 75), 2))
    np.testing.assert_array_equal(*levels)
    assert np.isnan(levels[0][0, 176:179, 4:14]).all()
    np.testing.assert_allclose(levels[0][0, 0, 0], image[0, :4, :4].mean(), atol=1e-6)


def test_ngff_metadata_name_arrays_that_exist(published: ZarrStore) -> None:
    group = zarr.open_group(published.path / "image", mode="r")
    images = group.attrs["ome"]["multiscales"]
    assert [image["name"] for image in images] == ["label", "probability", "science"]
    for image in images:
        for dataset in image["datasets"]:
            array = group[dataset["path"]]
            scale, shift = dataset["coordinateTransformations"]
            assert len(scale["scale"]) == len(shift["translation"]) == array.ndim
            assert len(image["axes"]) == array.ndim


# -- ledger, scratch, catalogue --------------------------------------------------------


def test_ledger_read_from_the_folder_equals_the_array(partial: ZarrStore) -> None:
    for tile in list(LAYOUT.grid)[::3]:
        partial.mark("label", tile)
    array = zarr.open_array(partial.path / "ledger", mode="r")
    np.testing.assert_array_equal(partial.done("label"), array[1] == 1)
    assert [t.name for t in partial.pending("label")][:2] == ["r000c001", "r000c002"]
    partial.unmark("label")
    assert not partial.done("label").any()


def test_rows_are_cut_to_whole_chunks(partial: ZarrStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcnpipe.stores.catalogue.ROW_CHUNK", 4)
    flux = np.arange(23.0)
    partial.write_sources([make_columns(b) for b in np.split(flux, [1, 10, 11, 12])], 23)
    np.testing.assert_array_equal(partial.read_sources(["flux"])["flux"], flux)
    assert zarr.open_array(partial.path / "sources/flux", mode="r").chunks == (4,)
    assert [len(b["flux"]) for b in partial.source_blocks(step=10)] == [10, 10, 3]


def test_cached_arrays_of_a_replaced_store_are_not_reused(tmp_path: Path) -> None:
    first = ZarrStore.create(tmp_path / "out.zarr", LAYOUT, IDENTITY)
    first.read("label", Box(0, 0, 5, 5))
    os.rename(first.path, tmp_path / "aside")
    other = replace(LAYOUT, shape=(30, 40), mesh=(1, 1))
    second = ZarrStore.create(tmp_path / "out.zarr", other, IDENTITY)
    assert second.read("label", other.grid.frame).shape == (30, 40)


def test_pickled_store_holds_only_the_path(partial: ZarrStore) -> None:
    assert partial.layout == LAYOUT
    assert len(pickle.dumps(partial)) < 500


# -- errors ----------------------------------------------------------------------------


def test_full_disk_is_reported_in_one_line(
    partial: ZarrStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fcnpipe.stores.shard_io.atomic_write", refuse)
    tile = LAYOUT.grid.tile(0, 0)
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device; make room"):
        partial.write_tile("label", tile.core, np.ones((64, 64), np.int32))
    monkeypatch.setattr("numpy.savez", refuse)
    with pytest.raises(StoreError, match="No space left"):
        partial.put_arrays("label", "r000c000", {})
    assert partial.list_arrays("label") == []


def test_missing_store_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not an fcnpipe store"):
        ZarrStore.open(tmp_path / "nothing.zarr")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attributes": 3}'])
def test_damaged_root_metadata_are_reported(published: ZarrStore, text: str) -> None:
    (published.path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"is not an fcnpipe store, or its zarr.json is damaged"):
        ZarrStore.open(published.path)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_damaged_metadata_are_reported(published: ZarrStore, text: str) -> None:
    for name in ("image/0/label", "sources"):
        (published.path / name / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"metadata of image/0/label in .*verify --repair"):
        published.read("label", Box(0, 0, 4, 4))
    with pytest.raises(StoreError, match=r"metadata of sources in .*verify --repair"):
        _ = published.columns


def test_missing_array_is_reported(partial: ZarrStore) -> None:
    with pytest.raises(StoreError, match="has no array image/0/science"):
        partial.read("science", Box(0, 0, 1, 1))
