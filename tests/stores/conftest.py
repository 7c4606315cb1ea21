"""A small run, begun and finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import IDENTITY, LAYOUT, do_tile, end_run


@pytest.fixture
def partial(tmp_path: Path) -> ZarrStore:
    """A fresh store of the small run."""
    return ZarrStore.create(tmp_path / "out.zarr", LAYOUT, IDENTITY, {"title": "test"})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small run, finished once: not to be written."""
    folder = tmp_path_factory.mktemp("finished")
    store = ZarrStore.create(folder / "out.zarr", LAYOUT, IDENTITY, {"title": "test"})
    for tile in LAYOUT.grid:
        do_tile(store, tile)
    end_run(store)
    return folder


@pytest.fixture
def published(finished: Path, tmp_path: Path) -> ZarrStore:
    """A copy of the small run, finished."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return ZarrStore.open(tmp_path / "out.zarr")
