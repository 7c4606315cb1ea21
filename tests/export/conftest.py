"""Finished stores with a catalogue of all column types and a WCS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import make_rich_store


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    """A finished store that all tests share and only read."""
    return make_rich_store(tmp_path_factory.mktemp("rich") / "out.zarr")


@pytest.fixture
def make_rich(tmp_path: Path) -> Callable[..., ZarrStore]:
    """Return a function that makes a store with other bands or header cards."""
    return lambda **changes: make_rich_store(tmp_path / "other.zarr", **changes)
