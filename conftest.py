"""Settings of the whole test suite: offline, in temporary folders, reproducible."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Set before Prefect, Dask, matplotlib or Hypothesis is imported.
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

# Hypothesis draws the same examples every time, so that failures are reproducible.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seed_numpy() -> None:
    """Seed the global generator of numpy, for the peer packages of comparisons; our code takes a seed."""
    np.random.seed(20261123)  # noqa: NPY002


def pytest_unconfigure() -> None:
    """Remove the temporary home folder."""
    shutil.rmtree(_HOME, ignore_errors=True)
