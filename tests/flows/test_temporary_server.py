"""The server of a run by hand."""

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
def told() -> int:
    return host_bytes()

print(host_bytes(), told())
"""


@pytest.mark.timeout(300)
def test_a_flow_has_a_server_that_ends_with_it_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not in its process, a signal for the command is none for it, and it is told how that ends."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    *told, server = done.stdout.splitlines()
    assert told == ["['Completed']", "[]"], done.stderr
    number, deaf = server.split()
    assert (done.returncode, deaf) == (130, "True"), done.stderr
    assert not psutil.pid_exists(int(number))


@pytest.mark.timeout(300)
def test_a_flow_that_is_called_counts_the_server_that_prefect_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", CALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    expected = f"{FLOW_BYTES} {FLOW_BYTES + SERVER_BYTES}"
    assert done.stdout.splitlines() == [expected], done.stderr


def test_what_does_not_come_up_is_left_to_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_server, "APPLICATION", Path("absent.py"))
    with temporary_server.temporary_server():
        assert PREFECT_API_URL.value() is None


def test_a_server_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_server, "_launch", None)
    url = "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: url}), temporary_server.temporary_server():
        assert PREFECT_API_URL.value() == url


def test_a_server_collects_garbage_again_once_it_has_started() -> None:
    """Not before: its application then imports, and makes a database."""
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
