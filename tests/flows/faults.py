"""Faults of Prefect's processes, defined as those of `tests.integration.faults` are."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from fcnpipe.core.spec import RunSpec
from fcnpipe.stores import partial_path
from flows.segment import segment
from tests.flows import processes
from tests.integration.faults import SETTINGS, Case, Fault, Run


def server_killed(case: Case, server: processes.Server) -> str:
    """Kill the server while a flow runs, and start it again, as systemd would."""
    flags = [f for n, v in SETTINGS.items() for f in (f"--{n}", str(v))]
    command = [sys.executable, "-m", "flows.segment", str(case.field), str(case.out), *flags]
    case.out.parent.mkdir()
    environment = server.environment | case.environment("wait")
    run = Run([*command, "--quiet"], environment | {"PREFECT_API_URL": server.url})
    try:
        case.wait_for_moment(run)
        server.process.kill()
        case.let_task_continue()
        server.restart()
        code, output = run.finish()
    finally:
        run.end()
    assert (code, output) == (0, "")
    return "continues when the server has restarted, exit 0"


def worker_killed(case: Case, server: processes.Server) -> str:
    """Kill the worker that has started a flow run; the process of the flow run ends with it.

    The spec sets ``overwrite``, as the deployment `nightly` does. The same run started again resumes, and
    does not start from scratch.
    """
    deploy = ("deploy", "--prefect-file", "deploy/prefect.yaml", "--name", "nightly")
    environment = case.environment("wait")
    extra = {name: environment[name] for name in ("FCNPIPE_FAULT", "PYTHONPATH")}
    case.out.parent.mkdir()
    with processes.worker(server, "fcnpipe", "mortal", extra) as worker:
        server.prefect("--no-prompt", *deploy)
        spec = {**SETTINGS, "image": [str(case.field)], "out": str(case.out), "overwrite": True}
        parameters = json.dumps({"spec": spec})
        server.prefect("deployment", "run", "segment/nightly", "--params", parameters)
        processes.wait_until(
            (case.folder / "reached").exists, "the flow has reached the moment of the fault"
        )
        flow = int((case.folder / "reached").read_text())
        worker.kill_alone()
        case.let_task_continue()
        processes.wait_until(lambda: not is_running(flow), "the flow run has ended with its worker")
    done = list_marks(partial_path(case.out))
    segment(RunSpec(**spec, quiet=True))
    assert done.items() <= list_marks(case.out).items(), "the run has started from scratch"
    return "ends with its worker; the same run again resumes it"


def list_marks(store: Path) -> dict[str, int]:
    """Return the time at which each mark of the ledger of a store was set."""
    folder = store / "ledger" / "c"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def is_running(number: int) -> bool:
    """Return whether a process with this number is running."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


NAMES = ("SIGKILL of the Prefect server", "SIGKILL of the Prefect worker")


def list_faults(server: processes.Server) -> dict[str, Fault]:
    """Return the faults of Prefect's processes by name."""
    faults = partial(server_killed, server=server), partial(worker_killed, server=server)
    return dict(zip(NAMES, faults, strict=True))
