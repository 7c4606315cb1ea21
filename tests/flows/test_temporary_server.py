"""The temporary Prefect server of flows that are started as commands."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

pytest.importorskip("prefect")

from prefect.settings import PREFECT_API_URL, temporary_settings

from fcnpipe.pipeline.memory import FLOW_BYTES, SERVER_BYTES
from flows import temporary_server, temporary_server_process

ROOT = Path(__file__).parents[2]
RUN = """
import re, os, signal, sys, time
from pathlib import Path
from flows.command_line import run_as_command
from flows.temporary_server import temporary_server
from prefect import flow
from prefect.client.orchestration import get_client
import psutil

@flow
def nothing() -> None: ...

@flow
def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def start() -> None:
    with temporary_server():
        nothing()
        with get_client(sync_client=True) as client:
            print([run.state_name for run in client.read_flow_runs()])
        print([name for name in sys.modules if name == "prefect.server.api.server"])
        (server,) = psutil.Process().children()
        (blocked,) = re.findall(r"SigBlk:\\s*(\\w+)", Path(f"/proc/{server.pid}/status").read_text())
        print(server.pid, int(blocked, 16) == 1 << signal.SIGINT - 1)
        end()

run_as_command(start, "run")
"""
CALL = """
from prefect import flow
from flows.stage_tasks import host_bytes

@flow
def call() -> int:
    return host_bytes()

print(host_bytes(), call())
"""


@pytest.mark.timeout(300)
def test_a_temporary_server_ends_with_the_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server runs in a separate process, ignores SIGINT, and receives the final state of the flow."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    *printed, server = done.stdout.splitlines()
    assert printed == ["['Completed']", "[]"], done.stderr
    number, blocks_sigint = server.split()
    assert (done.returncode, blocks_sigint) == (130, "True"), done.stderr
    assert not psutil.pid_exists(int(number))


@pytest.mark.timeout(300)
def test_the_memory_of_a_called_flow_includes_the_server_that_prefect_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", CALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    expected = f"{FLOW_BYTES} {FLOW_BYTES + SERVER_BYTES}"
    assert done.stdout.splitlines() == [expected], done.stderr


def test_prefect_starts_a_server_if_the_temporary_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(temporary_server, "APPLICATION", Path("absent.py"))
    with temporary_server.temporary_server():
        assert PREFECT_API_URL.value() is None


def test_a_server_in_the_settings_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_server, "_launch", None)
    url = "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: url}), temporary_server.temporary_server():
        assert PREFECT_API_URL.value() == url


def test_the_server_collects_garbage_after_its_start() -> None:
    """The collector is off while the application is imported and creates its database."""
    at_start = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        at_start.append(gc.isenabled())
        await send({"type": "lifespan.startup.complete"})

    async def start() -> None:
        config = uvicorn.Config(serve, port=0, lifespan="on", log_level="critical")
        config.load()
        started = temporary_server_process.Server(config)
        started.lifespan = config.lifespan_class(config)
        gc.disable()
        await started.startup()
        await started.shutdown()

    try:
        asyncio.run(start())
        assert at_start == [False]
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
