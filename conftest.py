"""The whole suite runs offline, in folders of its own, the same way every time."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Before anything imports Prefect, Dask, matplotlib or Hypothesis.
_HOME = Path(tempfile.mkdtemp(prefix="fcnpipe-tests-"))
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_HOME": str(_HOME / "prefect"),
        "DASK_DISTRIBUTED__DASHBOARD__LINK": "",
        "MPLBACKEND": "Agg",
    }
)
os.environ.pop("PREFECT_API_URL", None)

from hypothesis import settings  # noqa: E402

# The same examples every time: what is found here is found everywhere.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Fix the global generators, for the peers that we compare with; our own take a seed."""
    np.random.seed(20261123)  # noqa: NPY002


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_HOME, ignore_errors=True)
