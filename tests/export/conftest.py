"""A finished store with a full catalogue and a WCS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import make_rich_store


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    """Not to be written."""
    return make_rich_store(tmp_path_factory.mktemp("rich") / "out.zarr")


@pytest.fixture
def make_rich(tmp_path: Path) -> Callable[..., ZarrStore]:
    """Make one of other bands or cards."""
    return lambda **changes: make_rich_store(tmp_path / "other.zarr", **changes)
