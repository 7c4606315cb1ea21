"""Fixtures: one Prefect server for all tests of the flows, because its start takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("prefect")

from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.flows import processes


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Server]:
    """A server on PostgreSQL if this machine has it, else on SQLite."""
    folder: Path = tmp_path_factory.mktemp("prefect")
    with ExitStack() as stack:
        uses_postgres = processes.has_postgres()
        database = stack.enter_context(processes.postgres()) if uses_postgres else None
        yield stack.enter_context(processes.server(folder, database))


@pytest.fixture(autouse=True)
def _connect_to_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set PREFECT_API_URL in the tests that use the server."""
    with ExitStack() as stack:
        if "server" in request.fixturenames:
            url = request.getfixturevalue("server").url
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        yield
