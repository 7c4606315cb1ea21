"""A Prefect server of its own for a run by hand, where none is named.

Prefect starts one by itself, but imports all of the server into the flow's process to do so: two
seconds of a core and 80 MiB.
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
LEAN = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "0",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
}
"""As Prefect starts its own; and without types of blocks, of which our flows use none."""
PAUSE_SECONDS = 0.05
STOP_SECONDS = 5.0


@contextmanager
def temporary_server() -> Iterator[None]:
    """Serve Prefect's API from a process of its own, if no server is named and none forbids it.

    Notes
    -----
    Where it does not come up Prefect starts its own, and says what is wrong.
    """
    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        yield
        return
    port = _find_port()
    server = _launch(port)
    try:
        url = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url} if _await(server, port) else {}):
            yield
    finally:
        _stop(server)


def _find_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _launch(port: int) -> subprocess.Popen[bytes]:
    """Start the server with Ctrl-C blocked, which a terminal sends to every process of a command.

    Without it a flow could not say that it was interrupted, and would try to for five minutes.
    """
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(APPLICATION), str(port)],
            env={**os.environ, **settings, **LEAN},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _await(server: subprocess.Popen[bytes], port: int) -> bool:
    """Give whether the server has come up, once that is known."""
    latest = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while server.poll() is None and time.monotonic() < latest:
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("GET", "/api/health")
            return asked.getresponse().status == 200
        time.sleep(PAUSE_SECONDS)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
