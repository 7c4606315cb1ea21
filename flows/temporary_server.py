"""A temporary Prefect server in a separate process, for flows started as a command.

Prefect would start a temporary server itself, but imports the whole server into the flow's process for
that, which takes 2 s of CPU time and 80 MiB.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)

APPLICATION = Path(__file__).with_name("temporary_server_process.py")
SERVER_SETTINGS = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "0",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
}
"""Settings of Prefect's own temporary server, without the block types, which these flows do not use."""
POLL_SECONDS = 0.05
STOP_SECONDS = 5.0


@contextmanager
def temporary_server() -> Iterator[None]:
    """Run a Prefect server in a separate process, unless PREFECT_API_URL names one.

    Notes
    -----
    No server is started where the settings of Prefect forbid temporary servers. If the server does not
    start, Prefect starts its own and reports errors.
    """
    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        yield
        return
    port = _find_port()
    server = _launch(port)
    try:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url} if _wait_until_ready(server, port) else {}):
            yield
    finally:
        _stop(server)


def _find_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _launch(port: int) -> subprocess.Popen[bytes]:
    """Start the server with SIGINT blocked, because a terminal sends Ctrl-C to every process of a command.

    If the server ended at Ctrl-C, the flow could not report its interruption, and would try to do so for
    five minutes.
    """
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(APPLICATION), str(port)],
            env={**os.environ, **settings, **SERVER_SETTINGS},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers, and return whether it does."""
    deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while server.poll() is None and time.monotonic() < deadline:
        with (
            suppress(OSError, HTTPException),
            closing(HTTPConnection("127.0.0.1", port)) as connection,
        ):
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        time.sleep(POLL_SECONDS)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
