"""The commands of deploy/ as real processes: services of compose, TLS of the guide, script of SLURM."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import distributed
import psutil
import pytest

from tests.deploy.commands import DEPLOY, ROOT, load, shell_blocks
from tests.deploy.test_commands import read_environment
from tests.flows.processes import StartedProcess, free_port, wait_until
from tests.integration.scenes import read_all, write_field

BIN = Path(sys.executable).parent
COMPOSE = load("compose.yaml")["services"]
SECRETS = {"POSTGRES_PASSWORD": "unused", "PREFECT_AUTH": "astronomer:sesame"}
SMALL = ("--model", "none", "--window", "128", "--tile", "128", "--quiet")
OURS = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
}


class Ports(dict[str, int]):
    """A free port of the loopback interface for each port in the files."""

    def __missing__(self, port: str) -> int:
        return self.setdefault(port, free_port())

    def replace(self, text: str) -> str:
        """Replace the hosts and ports of compose by loopback and free ports."""
        text = re.sub(r"\b(dask-scheduler|prefect-server|0\.0\.0\.0)\b", "127.0.0.1", text)
        return re.sub(r"\b(4200|8080|878[678])\b", lambda found: str(self[found[0]]), text)


def environment_of(service: str, ports: Ports) -> dict[str, str]:
    given = COMPOSE[service].get("environment", {})
    filled = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], value)
        for name, value in given.items()
    }
    files = [read_environment(name) for name in COMPOSE[service].get("env_file", [])]
    variables = {name: value for file in [*files, filled] for name, value in file.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return kept | OURS | {name: ports.replace(value) for name, value in variables.items()}


@contextmanager
def started(service: str, ports: Ports, folder: Path, **more: str) -> Iterator[StartedProcess]:
    """Start a service of compose, wait for its health check, and stop it at the end of the block."""
    command = [ports.replace(word) for word in COMPOSE[service]["command"]]
    process = StartedProcess(
        service,
        [str(BIN / command[0]), *command[1:]],
        environment_of(service, ports) | {"PREFECT_HOME": str(folder / service)} | more,
        folder / f"{service}.log",
    )
    try:
        process.wait_until(lambda: is_healthy(service, ports))
        yield process
    finally:
        process.stop()


def is_healthy(service: str, ports: Ports) -> bool:
    _, *check = [ports.replace(word) for word in COMPOSE[service]["healthcheck"]["test"]]
    done = subprocess.run(
        [sys.executable, *check[1:]], capture_output=True, timeout=60, check=False
    )
    return done.returncode == 0


def segment(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fcnpipe", "segment", *arguments, *SMALL],
        env=os.environ | OURS | dict(environment or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (260, 530))


@pytest.fixture(scope="module")
def undisturbed(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out.zarr"
    segment(str(field), str(out), "--engine", "serial")
    return read_all(out)


# --- compose --------------------------------------------------------------------------------------


def test_the_dask_cluster_of_compose_segments(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    ports, out = Ports(), tmp_path / "out.zarr"
    with (
        started("dask-scheduler", ports, tmp_path),
        started("dask-worker", ports, tmp_path),
    ):
        address = ports.replace("tcp://dask-scheduler:8786")
        config = tmp_path / "run.yaml"
        config.write_text(ports.replace((DEPLOY / "run-scheduler.yaml").read_text()))
        segment(str(field), str(out), "--config", str(config))
        with distributed.Client(address, set_as_default=False) as client:
            found = {
                name: set(client.run(os.getenv, name).values())
                for name in read_environment("worker.env")
            }
    assert read_all(out) == undisturbed
    # The nanny of Dask has other values for some of these.
    assert found == {name: {value} for name, value in read_environment("worker.env").items()}


def test_the_prefect_server_and_worker_of_compose_listen_on_loopback(tmp_path: Path) -> None:
    ports = Ports()
    database = f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    with started(
        "prefect-server", ports, tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=database
    ) as server:
        with pytest.raises(HTTPError, match="401"):
            ask(ports, "deployments/filter", "")
        deploy(ports, tmp_path)
        assert b'"segment"' in ask(ports, "deployments/filter", SECRETS["PREFECT_AUTH"])
        with started("prefect-worker", ports, tmp_path) as worker:
            wait_until(
                lambda: (
                    b"ONLINE"
                    in ask(ports, "work_pools/fcnpipe/workers/filter", SECRETS["PREFECT_AUTH"])
                ),
                "the worker is online",
            )
            assert hosts_of(worker) == {"127.0.0.1"}
        assert hosts_of(server) == {"127.0.0.1"}


def deploy(ports: Ports, folder: Path) -> None:
    environment = environment_of("prefect-deploy", ports) | {"PREFECT_HOME": str(folder / "deploy")}
    done = subprocess.run(
        COMPOSE["prefect-deploy"]["command"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ask(ports: Ports, route: str, who: str) -> bytes:
    headers = {"Content-Type": "application/json"}
    if who:
        headers["Authorization"] = f"Basic {base64.b64encode(who.encode()).decode()}"
    url = ports.replace(f"http://127.0.0.1:4200/api/{route}")
    with urlopen(Request(url, b"{}", headers), timeout=60) as answer:
        content: bytes = answer.read()
        return content


def hosts_of(process: StartedProcess) -> set[str]:
    """Return the addresses on which a process and its children listen."""
    found = psutil.Process(process.popen.pid)
    return {
        connection.laddr.ip
        for one in [found, *found.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def certified(tmp_path: Path) -> dict[str, str]:
    """Variables of deploy/tls.env, with the certificates of the guide in a temporary folder."""
    (block,) = (text for text in shell_blocks("docs/operations.md") if "openssl req" in text)
    script = block.replace("sudo ", "").replace("/etc/fcnpipe/tls", str(tmp_path))
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, check=True)
    return {
        name: value.replace("/etc/fcnpipe/tls", str(tmp_path))
        for name, value in read_environment("tls.env").items()
    }


def test_a_dask_cluster_with_tls_segments_and_refuses_plain_connections(
    field: Path, undisturbed: dict[str, bytes], certified: dict[str, str], tmp_path: Path
) -> None:
    assert not (tmp_path / "dask.key").stat().st_mode & 0o077
    ports, environment = Ports(), os.environ | OURS | certified
    address, out = ports.replace("tls://127.0.0.1:8786"), tmp_path / "out.zarr"
    scheduler = [
        "scheduler",
        "--host",
        "tls://127.0.0.1",
        "--port",
        str(ports["8786"]),
        "--no-dashboard",
    ]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
    running = [
        StartedProcess(
            words[0], [str(BIN / "dask"), *words], environment, tmp_path / f"{words[0]}.log"
        )
        for words in (scheduler, worker)
    ]
    try:
        running[1].wait_until(lambda: "Registered to" in running[1].tail())
        segment(str(field), str(out), "--scheduler", address, environment=certified)
        with pytest.raises(OSError, match=r"(?i)timed out|tls|ssl|connect"):
            distributed.Client(address.replace("tls", "tcp"), timeout="5s", set_as_default=False)
    finally:
        for process in reversed(running):
            process.stop()
    assert read_all(out) == undisturbed


# --- SLURM ----------------------------------------------------------------------------------------


def test_a_job_at_its_time_limit_is_requeued_and_resumes(
    field: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, requests = tmp_path / "out.zarr", tmp_path / "scontrol.txt"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {requests}\n')
    (tmp_path / "scontrol").chmod(0o755)
    environment = os.environ | OURS | {"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "42"}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"

    def submit() -> subprocess.Popen[bytes]:
        script = str(DEPLOY / "slurm/segment.sbatch")
        command = ["bash", script, str(field), str(out), *SMALL]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True)

    job = submit()
    wait_until((tmp_path / "out.zarr.partial/ledger/c/1").exists, "tiles are being predicted", 120)
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 0
    assert requests.read_text() == "requeue 42\n"
    assert not out.exists()
    assert submit().wait(300) == 0
    assert requests.read_text() == "requeue 42\n"
    assert read_all(out) == undisturbed


def test_a_job_with_a_wrong_input_ends_with_the_exit_code_of_the_command(tmp_path: Path) -> None:
    environment = os.environ | OURS | {"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "42"}
    command = ["bash", str(DEPLOY / "slurm/segment.sbatch"), "absent.fits", "out.zarr"]
    start = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert time.monotonic() - start < 120
