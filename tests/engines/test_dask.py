"""The Dask engine on real schedulers, with workers that join late, leave, or cannot run the tasks."""

from __future__ import annotations

import atexit
import datetime
import gc
import ipaddress
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed.utils import LoopRunner

from fcnpipe.core.errors import EngineError, SpecError
from fcnpipe.core.records import TaskReport
from fcnpipe.engines import worker_preload
from fcnpipe.engines.base import WorkerRequirements
from fcnpipe.engines.dask import DaskEngine, connect, query_workers, start_cluster
from fcnpipe.engines.gpu import GpuCluster, list_devices
from tests.engines import processes


def mark_process() -> None:
    """Set an environment variable to the id of the process."""
    os.environ["FCNPIPE_PREPARED"] = f"{os.getpid()}"


NEEDS = WorkerRequirements({"FCNPIPE_TEST": "1"}, mark_process)
LOCAL = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "dashboard_address": "127.0.0.1:0",
    "memory_limit": None,
}
VARIABLES = ("FCNPIPE_PREPARED", "FCNPIPE_TEST", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def describe_worker(name: str) -> TaskReport:
    """Report the process id and the environment variables of the worker."""
    time.sleep(0.05)
    facts = {name: os.environ.get(name) for name in VARIABLES}
    return TaskReport("describe", name, facts={**facts, "pid": str(os.getpid())})


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with processes.scheduler(tmp_path_factory.mktemp("scheduler")) as file:
        yield file


@pytest.fixture(scope="module")
def worker(scheduler: Path) -> Iterator[Path]:
    """The scheduler with one permanent worker, which offers a GPU and has 1 GiB of memory."""
    with processes.workers(scheduler, 1, "--resources", "GPU=1", "--memory-limit", "1GiB"):
        yield scheduler


def names(count: int) -> list[str]:
    return [f"r000c{i:03d}" for i in range(count)]


def pids(reports: list[TaskReport]) -> set[str]:
    return {report.facts["pid"] for report in reports}


# --- workers that join and leave ------------------------------------------------------------------


def test_without_any_worker_the_error_is_one_line(scheduler: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no Dask worker has connected .* for 1 s: start workers"
    ):
        connect(str(scheduler), NEEDS, {"wait_seconds": 1})


def test_workers_whose_lifetime_ends_lose_nothing(scheduler: Path) -> None:
    options = ("--lifetime", "4s", "--lifetime-stagger", "1s", "--lifetime-restart")
    with processes.workers(scheduler, 2, *options):
        engine = connect(processes.address_in(scheduler), NEEDS)
        reports = []
        for report in engine.run(describe_worker, names(5000)):
            reports.append(report)
            if len(pids(reports)) > 3:
                break
        engine.close()
    assert len(pids(reports)) > 3, "no worker was replaced"
    assert not [report.error for report in reports if report.error]
    assert len({report.name for report in reports}) == len(reports)


def test_a_run_whose_workers_have_all_left_ends(scheduler: Path) -> None:
    with processes.workers(scheduler, 1) as (process,):
        engine = connect(str(scheduler), NEEDS)
        engine.selection = replace(engine.selection, wait_seconds=1)
        reports = engine.run(describe_worker, names(2000))
        next(reports)
        processes.stop(process)
        with pytest.raises(EngineError, match=r"no Dask worker has connected .* for 1 s"):
            list(reports)
        engine.close()


def test_a_worker_that_joins_late_is_prepared_and_runs_tasks(worker: Path) -> None:
    engine = connect(str(worker), NEEDS)
    assert engine.selection.resources == {"GPU": 1}
    reports = engine.run(describe_worker, names(5000))
    done = [next(reports) for _ in range(5)]
    assert len(pids(done)) == 1
    with processes.workers(worker, 1, "--resources", "GPU=1"):
        for report in reports:
            done.append(report)
            if len(pids(done)) == 2:
                break
        engine.close()
    assert len(pids(done)) == 2
    for report in done:
        assert report.facts["FCNPIPE_PREPARED"] == report.facts["pid"]
        assert report.facts["FCNPIPE_TEST"] == report.facts["OMP_NUM_THREADS"] == "1"


def fail() -> None:
    raise ModuleNotFoundError("No module named 'fcnpipe'")


def test_workers_that_cannot_run_the_tasks_are_refused_in_seconds(worker: Path) -> None:
    connect(str(worker), NEEDS).close()
    with pytest.raises(EngineError, match=r"none of 1 Dask worker.* offers {'TAPE': 1}"):
        connect(str(worker), NEEDS, {"resources": {"TAPE": 1}, "wait_seconds": 1})
    with pytest.raises(EngineError, match=r"memory limit of 1\.00 GiB, a tile needs 2\.00 GiB"):
        connect(str(worker), WorkerRequirements(memory_bytes=2 * 2**30))
    with pytest.raises(EngineError, match="ModuleNotFoundError: No module named 'fcnpipe'"):
        connect(str(worker), WorkerRequirements(prepare=fail))


def read_kind() -> str:
    return os.environ["FCNPIPE_KIND"]


def no_gpu() -> None:
    raise SpecError("device='cuda' but no CUDA device is visible: use device cpu or auto")


def test_only_workers_that_may_run_tasks_are_queried(worker: Path) -> None:
    """An exception on one of them is reported in one line."""
    assert query_workers(str(worker), os.getpid).isdisjoint({os.getpid()})
    with (
        processes.workers(worker, 1, "--resources", "TAPE=1", environment={"FCNPIPE_KIND": "a"}),
        processes.workers(worker, 2, "--resources", "TAPE=1", environment={"FCNPIPE_KIND": "b"}),
    ):
        wanted = {"resources": {"TAPE": 1}}
        end = time.monotonic() + 60
        while query_workers(str(worker), read_kind, wanted) != {"a", "b"}:
            assert time.monotonic() < end
        with pytest.raises(EngineError, match="cannot be prepared: KeyError: 'FCNPIPE_KIND'"):
            query_workers(str(worker), read_kind)
    with pytest.raises(
        EngineError, match="cannot run the tasks of this run: device='cuda' but no CUDA"
    ):
        query_workers(str(worker), no_gpu)
    with pytest.raises(SpecError, match="no Dask scheduler answers"):
        query_workers("tcp://127.0.0.1:9", os.getpid)


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "nonsense", "no.json"])
def test_for_a_wrong_scheduler_the_error_is_one_line(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcnpipe.engines.dask_client.CONNECT_SECONDS", 1)
    with pytest.raises(SpecError, match="check --scheduler") as caught:
        connect(where, NEEDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_for_another_server_the_error_is_one_line(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends nothing, or speaks HTTP like the dashboard of a scheduler."""
    monkeypatch.setattr("fcnpipe.engines.dask_client.ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        accepted: list[socket.socket] = []

        def greet() -> None:
            accepted.append(server.accept()[0])
            accepted[0].sendall(answer)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(
            SpecError, match=rf"answers at {address}: the server there is not a scheduler"
        ):
            connect(address, NEEDS)
        accepted[0].close()


def test_a_client_that_fails_to_start_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the garbage collector closes it, possibly within this lock, for which the client then waits."""
    monkeypatch.setattr("fcnpipe.engines.dask_client.CONNECT_SECONDS", 1)
    gc.disable()
    try:
        with suppress(SpecError):
            connect("nonsense", NEEDS)
        collecting = threading.Thread(target=gc.collect, daemon=True)
        with LoopRunner._lock:
            collecting.start()
            collecting.join(5)
            assert not collecting.is_alive()
    finally:
        gc.enable()


# --- clusters started for a run -------------------------------------------------------------------


def test_closing_does_not_wait_for_a_worker_that_runs_a_tile(tmp_path: Path) -> None:
    """The worker still runs its exit functions, which remove decompressed copies of images."""
    engine = start_cluster({"cluster_kwargs": LOCAL}, NEEDS)
    (nanny,) = engine._client.cluster.workers.values()
    worker, mark = nanny.process.process, tmp_path / "mark"
    engine._client.run(atexit.register, mark.touch)
    hanging = engine._client.submit(time.sleep, 600)
    while not any(engine._client.run(count_tasks).values()):
        time.sleep(0.05)
    engine.close()
    assert (worker.exitcode, mark.exists()) == (0, True)
    assert hanging.cancelled()


def test_a_worker_in_this_process_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(worker_preload, "atexit", SimpleNamespace(_run_exitfuncs=int))
    monkeypatch.setattr(os, "_exit", ended.append)
    engine = start_cluster({"cluster_kwargs": {**LOCAL, "processes": False}}, NEEDS)
    engine._client.submit(time.sleep, 1)
    while not any(engine._client.run(count_tasks).values()):
        time.sleep(0.05)
    engine.close()
    assert ended == []


def count_tasks(dask_worker: Any) -> int:
    return len(dask_worker.active_threads)


def test_an_adaptive_cluster_grows_from_nothing() -> None:
    engine = start_cluster(
        {
            "cluster_kwargs": {**LOCAL, "n_workers": 0},
            "adapt_kwargs": {"maximum": 2, "interval": "200ms", "target_duration": "100ms"},
        },
        NEEDS,
    )
    reports = []
    try:
        for report in engine.run(describe_worker, names(5000)):
            reports.append(report)
            if len(pids(reports)) == 2:
                break
    finally:
        engine.close()
    assert len(pids(reports)) == 2
    assert {report.facts["FCNPIPE_TEST"] for report in reports} == {"1"}


def test_each_gpu_has_a_process_that_sees_it_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask_logger = logging.getLogger("distributed")
    monkeypatch.setattr(dask_logger, "propagate", True)
    usual = dask_logger.level
    engine = start_cluster(
        {
            "cluster_class": "fcnpipe.engines.gpu.GpuCluster",
            "cluster_kwargs": {"devices": [3, "GPU-5ebe"], "threads_per_worker": 1},
        },
        NEEDS,
    )
    try:
        assert engine.selection.resources == {"GPU": 1}
        seen = [
            (r.facts["pid"], r.facts["CUDA_VISIBLE_DEVICES"])
            for r in engine.run(describe_worker, names(40))
        ]
    finally:
        engine.close()
    assert {device for _, device in seen} == {"3", "GPU-5ebe"}
    assert not [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert dask_logger.level == usual
    assert len(set(seen)) == 2


def test_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-5ebe")
    assert list_devices() == ["1", "GPU-5ebe"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SpecError, match="no GPU is visible"):
        GpuCluster()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"cluster_class": "no.such.Cluster"}, "cannot be started: No module named 'no'"),
        ({"cluster_class": "dask_kubernetes.operator.KubeCluster"}, "cannot be started: No module"),
        ({"cluster_class": "distributed.SpecCluster", "cluster_kwargs": {"x": 1}}, "argument 'x'"),
        ({"cluster_class": "os.getcwd"}, "getcwd is not a cluster class"),
        ({"cluster_class": "pathlib.Path"}, "Path is not a cluster class"),
        (
            {"cluster_kwargs": {**LOCAL, "dashbord": None}},
            r"dashbord is unknown \(did you mean dashboard",
        ),
        ({"cluster_kwargs": {**LOCAL, "qqqqq": None}}, "qqqqq is unknown; check"),
        ({"cluster_klass": "x"}, "unknown keys"),
        ({"cluster_kwargs": {**LOCAL, "n_workers": 0}, "adapt_kwargs": {"m": 2}}, "cannot adapt"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnhandledThreadExceptionWarning")
def test_for_a_wrong_cluster_the_error_is_one_line(
    description: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        start_cluster(description, NEEDS)
    assert "\n" not in str(caught.value)


# --- encrypted ------------------------------------------------------------------------------------


def write_authority(folder: Path) -> tuple[str, str]:
    """Write a self-signed certificate for the loopback address, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fcnpipe test")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "ca.pem").write_bytes(pem)
    (folder / "own.pem").write_bytes(secret + pem)
    return str(folder / "ca.pem"), str(folder / "own.pem")


def refuse(address: str, ca: str, own: str) -> str:
    """Return the error of connecting to a scheduler with the wrong certificates."""
    settings = {"distributed.comm.tls.ca-file": ca, "distributed.comm.tls.client.cert": own}
    with dask.config.set(settings), pytest.raises(SpecError) as caught:
        connect(address, NEEDS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tls_uses_the_certificates_of_dasks_configuration(tmp_path: Path) -> None:
    ca, own = write_authority(tmp_path)
    (tmp_path / "foreign").mkdir()
    foreign_ca, foreign = write_authority(tmp_path / "foreign")
    settings = {
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": ca,
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT": own,
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": own,
    }
    encrypted = ("--protocol", "tls")
    with (
        processes.scheduler(tmp_path, *encrypted, environment=settings) as file,
        processes.workers(file, 1, *encrypted, environment=settings),
    ):
        address = processes.address_in(file)
        assert address.startswith("tls://")
        with pytest.raises(SpecError, match="TLS"):
            connect(address, NEEDS)
        # A scheduler with the certificate of another authority is not trusted, nor is such a client. The
        # scheduler checks the client after the handshake, and may just close the connection.
        refusals = {
            (foreign_ca, own): "certificate",
            (ca, foreign): "UNKNOWN_CA|EOF|[Cc]losed|reset",
        }
        for certificates, reason in refusals.items():
            message = refuse(address, *certificates)
            assert message.startswith(f"no Dask scheduler answers at {address}: ")
            assert re.search(reason, message), message
        with dask.config.set(
            {"distributed.comm.tls.ca-file": ca, "distributed.comm.tls.client.cert": own}
        ):
            engine: DaskEngine = connect(address, NEEDS)
            assert len(list(engine.run(describe_worker, names(5)))) == 5
            engine.close()
