"""The server of a run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prefect")

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import server

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from flows.server import temporary_server
from prefect import flow
from prefect.client.orchestration import get_client
import psutil

@flow
def nothing() -> None: ...

with temporary_server():
    nothing()
    with get_client(sync_client=True) as client:
        print([run.state_name for run in client.read_flow_runs()])
print([name for name in sys.modules if name == "prefect.server.api.server"])
print(psutil.Process().children())
"""


@pytest.mark.timeout(300)
def test_a_flow_has_a_server_that_is_not_in_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["['Completed']", "[]", "[]"], done.stderr


def test_what_does_not_come_up_is_left_to_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "APPLICATION", ("absent:app",))
    with server.temporary_server():
        assert PREFECT_API_URL.value() is None


def test_a_server_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_launch", None)
    url = "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: url}), server.temporary_server():
        assert PREFECT_API_URL.value() == url
