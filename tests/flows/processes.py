"""A Prefect server, its database and its workers as real processes on free ports.

::

    with processes.server(folder) as prefect:          # SQLite in the folder
        with processes.worker(prefect, "fcnpipe"):     # a process worker, online when the block starts
            ...

    started = processes.start_server(folder)           # or step by step, for tests that kill processes
    started.process.kill()                             # SIGKILL, with all of its children
    started.restart()                                  # same port, same database

Each process leads its own process group and writes to ``FOLDER/NAME.log``. `StartedProcess.stop` ends it
with all of its children, in any state.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

import flows

ROOT = Path(__file__).parents[2]
READY_SECONDS = 300.0
"""Time limit for a process to be ready; on an idle machine it takes 3 to 15 s."""

FAST_POLLING = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}
"""Settings that make servers and workers poll often and log their work."""


@dataclass
class StartedProcess:
    """A process that leads its own process group.

    Attributes
    ----------
    name : str
        Name of the log.
    command : list of str
        Command line.
    environment : mapping
        Complete environment.
    log : Path
        File with standard output and error.
    popen : subprocess.Popen
        The process.
    user : str, optional
        User that runs it; the current one if None.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    user: str | None = None
    popen: subprocess.Popen[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the process; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
            )

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        with suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)

    def kill(self) -> None:
        """Kill the process and all of its children."""
        _kill_all(self._descendants())
        self.popen.wait(60)

    def kill_alone(self) -> None:
        """Kill the process alone; its children are not signalled."""
        self.signal(signal.SIGKILL)
        self.popen.wait(60)

    def stop(self, seconds: float = 20.0) -> None:
        """Send SIGTERM, wait, and kill the process and its children if they are still running."""
        descendants = self._descendants()
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        _kill_all(descendants)
        self.popen.wait(60)

    def wait_until(self, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Wait for a condition; raise an error with the end of the log if the process ends first."""
        wait_until(lambda: self._ended() or ready(), f"{self.name} is ready", seconds)
        if self._ended():
            raise RuntimeError(f"{self.name} has ended:\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _ended(self) -> bool:
        return self.popen.poll() is not None

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.popen.pid)
            return [process, *process.children(recursive=True)]
        return []


@dataclass
class Server:
    """A Prefect server.

    Attributes
    ----------
    process : StartedProcess
        The process of the server.
    port : int
        Port on 127.0.0.1.
    folder : Path
        Folder of the logs and of PREFECT_HOME, for the server, its workers and flows.
    database : str
        URL of the database.
    """

    process: StartedProcess
    port: int
    folder: Path
    database: str

    @property
    def url(self) -> str:
        """Value of PREFECT_API_URL."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of workers, flows and the ``prefect`` command."""
        return _environment(self.folder) | {"PREFECT_API_URL": self.url}

    def wait(self) -> None:
        """Wait until the server answers."""
        self.process.wait_until(lambda: self.call("GET", "/health") is True)

    def restart(self) -> None:
        """Start the server again after it has ended, with the same port and database."""
        self.process.start()
        self.wait()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer of the API to a request; None if there is no answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or "null")
        except (URLError, OSError):
            return None

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a ``prefect`` command against the server, from the root of the checkout."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done


def start_server(folder: Path, database: str | None = None, port: int | None = None) -> Server:
    """Start a Prefect server and wait until it answers.

    Parameters
    ----------
    folder : Path
        Folder of PREFECT_HOME, of the log and of an SQLite database.
    database : str, optional
        URL of the database; SQLite by default.
    port : int, optional
        Port; a free one by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    database = database or f"sqlite+aiosqlite:///{folder}/prefect.db"
    environment = _environment(folder) | {"PREFECT_API_DATABASE_CONNECTION_URL": database}
    command = ["server", "start", "--port", str(port), "--no-ui"]
    process = _start_prefect("server", command, environment, folder)
    made = Server(process, port, folder, database)
    with _stopped_on_error(process):
        made.wait()
    return made


def start_worker(
    server: Server, pool: str, name: str = "worker", extra: Mapping[str, str] | None = None
) -> StartedProcess:
    """Start a worker for a process pool, which is created if necessary, and wait until it is online.

    Parameters
    ----------
    server : Server
        Server whose flow runs the worker executes.
    pool : str
        Name of the pool.
    name : str
        Name of the worker and of its log.
    extra : mapping, optional
        Additional environment variables, for the worker and its flow runs.
    """
    command = ["worker", "start", "--pool", pool, "--type", "process", "--name", name]
    environment = server.environment | dict(extra or {})
    process = _start_prefect(name, command, environment, server.folder)
    with _stopped_on_error(process):
        process.wait_until(lambda: name in online_workers(server, pool))
    return process


def online_workers(server: Server, pool: str) -> set[str]:
    """Return the names of the workers of a pool that the server lists as online."""
    found = server.call("POST", f"/work_pools/{pool}/workers/filter", {}) or []
    return {worker["name"] for worker in found if worker["status"] == "ONLINE"}


def kill_leftovers(folder: Path) -> None:
    """Kill processes with the PREFECT_HOME of a folder, which killed parents may have left."""
    home = str(folder / "home")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == home:
                process.kill()


@contextmanager
def server(folder: Path, database: str | None = None) -> Iterator[Server]:
    """Run a Prefect server while the block runs."""
    made = start_server(folder, database)
    try:
        yield made
    finally:
        made.process.stop()
        kill_leftovers(folder)


@contextmanager
def worker(
    server: Server, pool: str, name: str = "worker", extra: Mapping[str, str] | None = None
) -> Iterator[StartedProcess]:
    """Run a worker while the block runs."""
    made = start_worker(server, pool, name, extra)
    try:
        yield made
    finally:
        made.stop()


# --- PostgreSQL -----------------------------------------------------------------------------------


def has_postgres() -> bool:
    """Return whether this machine has the programs of a PostgreSQL server."""
    return bool(shutil.which("initdb") and shutil.which("postgres"))


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server in a temporary folder while the block runs, and yield its URL.

    Notes
    -----
    PostgreSQL refuses to run as root, so the user nobody runs it in that case.
    """
    user = "nobody" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="fcnpipe-postgres-", dir="/tmp")), free_port()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        _init_database(folder, user)
        command = [
            shutil.which("postgres") or "postgres",
            *("-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", ""),
            *("-c", "fsync=off", "-c", "max_connections=200"),
        ]
        process = StartedProcess("postgres", command, os.environ, folder / "postgres.log", user)
        stack.callback(process.stop)
        process.wait_until(lambda: "ready to accept connections" in process.tail())
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"


def _init_database(folder: Path, user: str | None) -> None:
    command = ["initdb", "-D", str(folder / "data"), "-U", "prefect", "-A", "trust", "-N"]
    done = subprocess.run(
        command, user=user, cwd=folder, capture_output=True, text=True, timeout=READY_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"initdb: {done.stdout}{done.stderr}")


# --- processes and ports --------------------------------------------------------------------------


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    ready: Callable[[], Any], what: str, seconds: float = READY_SECONDS, every: float = 0.2
) -> None:
    """Wait for a condition.

    Raises
    ------
    TimeoutError
        If the condition is not met in time; the message names ``what``.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"not fulfilled after {seconds:.0f} s: {what}")
        time.sleep(every)


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ours = {"PREFECT_HOME": str(folder / "home"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return kept | flows.QUIET | FAST_POLLING | ours


def _start_prefect(
    name: str, command: list[str], environment: Mapping[str, str], folder: Path
) -> StartedProcess:
    return StartedProcess(
        name, [sys.executable, "-m", "prefect", *command], environment, folder / f"{name}.log"
    )


@contextmanager
def _stopped_on_error(process: StartedProcess) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.stop()
        raise


def _kill_all(found: list[psutil.Process]) -> None:
    """Kill processes and their current children."""
    for process in found:
        with suppress(psutil.NoSuchProcess):
            found = [*found, *process.children(recursive=True)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
