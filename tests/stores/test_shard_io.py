"""`ShardedMap` writes what zarr reads, and reads what zarr writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnpipe.core.errors import StoreError
from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.stores.hierarchy import ArraySpec, create_array
from fcnpipe.stores.shard_io import ShardedMap


def create(
    folder: Path, shape: tuple[int, ...], dtype: str = "int32", fill: float = 0
) -> tuple[zarr.Array, ShardedMap]:
    lead = shape[:-2]
    chunks, shards = (*(1 for _ in lead), 8, 16), (*lead, 16, 32)
    dims = ("n", "y", "x")[-len(shape) :]
    spec = ArraySpec(shape, dtype, dims, chunks, shards, fill=fill)
    array = create_array(zarr.create_group(folder), "map", spec)
    return array, ShardedMap(folder / "map", lead, (16, 32), (8, 16), array.dtype, fill)


def make_patchy_values(shape: tuple[int, ...], dtype: str, fill: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.integers(1, 99, shape).astype(dtype)
    values[rng.random(shape) < 0.2] = fill
    values[..., :16, :32] = fill
    values[..., 20:30, 5:40] = fill
    return values


@pytest.mark.parametrize("shape", [(48, 64), (41, 50), (2, 33, 70), (5, 7)])
@pytest.mark.parametrize(("dtype", "fill"), [("int32", 0), ("float32", np.nan), ("uint8", 0)])
def test_zarr_and_sharded_map_read_each_other(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, fill: float
) -> None:
    array, mapped = create(tmp_path / "ours", shape, dtype, fill)
    values = make_patchy_values(shape, dtype, fill)
    for tile in TileGrid(shape[-2:], (16, 32)):
        mapped.write(tile.core, values[(..., *tile.core.slices)])
    np.testing.assert_array_equal(array[...], values)
    peer, read_back = create(tmp_path / "zarr", shape, dtype, fill)
    peer[...] = values
    np.testing.assert_array_equal(read_back.read(Box(0, 0, *shape[-2:])), values)
    files = [
        sorted(f.relative_to(tmp_path / folder) for f in (tmp_path / folder / "map/c").rglob("*"))
        for folder in ("ours", "zarr")
    ]
    assert files[0] == files[1]


@settings(max_examples=60, deadline=None)
@given(st.tuples(*(st.integers(0, 40) for _ in range(4))))
def test_any_box_equals_the_slice_of_zarr(
    tmp_path_factory: pytest.TempPathFactory, corners
) -> None:
    y0, y1 = sorted(corners[:2])
    x0, x1 = sorted(corners[2:])
    array, mapped = create(tmp_path_factory.mktemp("box") / "g", (40, 40))
    array[...] = make_patchy_values((40, 40), "int32", 0)
    found = mapped.read(Box(y0, x0, y1, x1))
    np.testing.assert_array_equal(found, array[y0:y1, x0:x1])


def test_a_shard_of_fill_value_only_has_no_file(tmp_path: Path) -> None:
    array, mapped = create(tmp_path / "g", (32, 64))
    core = Box(0, 0, 16, 32)
    mapped.write(core, np.ones((16, 32), np.int32))
    mapped.write(core, np.zeros((16, 32), np.int32))
    assert not array[...].any()
    assert not [f for f in (tmp_path / "g/map").rglob("*") if f.is_file() and f.name != "zarr.json"]


@pytest.mark.parametrize("damage", ["index", "chunk", "short"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    _, mapped = create(tmp_path / "g", (16, 32))
    core = Box(0, 0, 16, 32)
    mapped.write(core, np.arange(512, dtype=np.int32).reshape(16, 32))
    path = tmp_path / "g/map/c/0/0"
    content = bytearray(path.read_bytes())
    if damage == "short":
        content = content[:10]
    else:
        content[2 if damage == "chunk" else -10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"shard .*c/0/0 is damaged"):
        mapped.read(core)
