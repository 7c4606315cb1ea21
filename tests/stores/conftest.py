"""Fixtures: the store of a small run, partial and published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import IDENTITY, LAYOUT, do_tile, end_run


@pytest.fixture
def partial(tmp_path: Path) -> ZarrStore:
    """An empty partial store of the small run."""
    return ZarrStore.create(tmp_path / "out.zarr", LAYOUT, IDENTITY, {"title": "test"})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the published store of the small run; read-only, created once."""
    folder = tmp_path_factory.mktemp("finished")
    store = ZarrStore.create(folder / "out.zarr", LAYOUT, IDENTITY, {"title": "test"})
    for tile in LAYOUT.grid:
        do_tile(store, tile)
    end_run(store)
    return folder


@pytest.fixture
def published(finished: Path, tmp_path: Path) -> ZarrStore:
    """A copy of the published store of the small run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return ZarrStore.open(tmp_path / "out.zarr")
