"""Tiles on Dask workers: a cluster of our own on this machine, or one that is already there.

Only names and reports pass through the scheduler. A bounded window of futures is in flight and
each is released as it finishes: ``client.map`` over 20,000 tiles took 70 s, this takes none.
"""

from __future__ import annotations

import importlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from multiprocessing import spawn
from typing import Any

import dask
import distributed

from fcnpipe.engines.base import Task
from fcnpipe.errors import SpecError
from fcnpipe.records import TaskReport

# Distributed is annotated here and there only.
Client: Any = distributed.Client
LocalCluster: Any = distributed.LocalCluster
as_completed: Any = distributed.as_completed

SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.no-workers-timeout": "120s",
    "distributed.comm.timeouts.connect": "20s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.95,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.scheduler.active-memory-manager.start": False,
}
"""A poison tile may kill two workers, not the run; a missing worker is an error, not a hang.

Tiles take seconds and their workers use every core, so what looks after tasks of milliseconds (a
profiler that wakes a hundred times a second, health checks at fifty) is slowed down or off.
"""

LOST = "worker lost"
WORKER = "Dask Worker process"
"""How the processes that a nanny starts are called."""


class ScriptGuard:
    """Keeps the script that is running out of the workers that start until :meth:`close`.

    Notes
    -----
    A new process imports the script that started it, so one that lacks ``if __name__ ==
    "__main__":`` would run a second time, in a worker. Our tasks need nothing of it. The nannies
    are threads of this process and start a worker again when it dies, so this holds for as long as
    they live; other processes are told what they always are.
    """

    def __init__(self) -> None:
        self._tell, self._active = spawn.get_preparation_data, True
        spawn.get_preparation_data = self._prepare

    def _prepare(self, name: str) -> dict[str, Any]:
        told = self._tell(name)
        if self._active and name.startswith(WORKER):
            told = {key: value for key, value in told.items() if not key.startswith("init_main")}
        return told

    def close(self) -> None:
        """Let new processes import the script again."""
        self._active = False
        if spawn.get_preparation_data == self._prepare:
            spawn.get_preparation_data = self._tell


class DaskEngine:
    """Tasks as Dask futures.

    Parameters
    ----------
    client : distributed.Client
        Connected client; closed by :meth:`close`.
    cluster : object, optional
        Cluster that was started for this engine; closed by :meth:`close`.
    resources : dict, optional
        Worker resources that a task asks for, e.g. ``{"GPU": 1}``.
    guard : ScriptGuard, optional
        Closed with the cluster.
    """

    def __init__(
        self,
        client: Any,
        cluster: Any = None,
        resources: dict[str, float] | None = None,
        guard: ScriptGuard | None = None,
    ) -> None:
        self._client, self._cluster, self._resources = client, cluster, resources
        self._guard = guard

    @property
    def workers(self) -> int:
        """Threads of all workers now, at least 1."""
        return max(sum(map(int, self._client.nthreads().values())), 1)

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Give one report for each name, in the order in which they finish.

        Notes
        -----
        A dying worker takes the tasks queued on it along, innocent ones too, so those that were
        lost are tried once more, each alone: only the one that kills is reported.
        """
        lost: list[str] = []
        for report in self._stream(task, names, 2 * self.workers + 2):
            if report.error.startswith(LOST):
                lost.append(report.name)
            else:
                yield report
        yield from self._stream(task, lost, 1)

    def _stream(self, task: Task, names: Iterable[str], width: int) -> Iterator[TaskReport]:
        # One group of keys, so that Dask knows the tasks for a kind, and holds them back until a
        # worker is free: of tiles handed out early, one worker got nine while the other got seven.
        waiting, token = iter(names), f"tiles-{uuid.uuid4().hex}"
        first = [self._submit(task, name, token) for name in islice(waiting, width)]
        queue = as_completed(first, loop=self._client.loop)
        for future in queue:
            yield self._report(future)
            future.release()
            for name in islice(waiting, 1):
                queue.add(self._submit(task, name, token))

    def close(self) -> None:
        """Disconnect, and stop the cluster if it is ours."""
        if self._cluster is not None and self._client.status == "running":
            # A heartbeat that is under way when the scheduler leaves is no error of the run.
            self._client.run(_fall_silent, on_error="ignore")
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
        if self._guard is not None:
            self._guard.close()

    def _submit(self, task: Task, name: str, token: str) -> Any:
        return self._client.submit(
            task, name, key=(token, name), pure=False, resources=self._resources
        )

    @staticmethod
    def _report(future: Any) -> TaskReport:
        if future.status == "finished":
            report: TaskReport = future.result()
            return report
        name = future.key[1]
        return TaskReport("", name, error=f"{LOST}: {future.exception()}".splitlines()[0])


def _fall_silent() -> None:
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


def connect(address: str) -> DaskEngine:
    """Use a scheduler that runs already.

    Raises
    ------
    SpecError
        If nobody answers at the address.
    """
    try:
        with dask.config.set(SETTINGS):
            client = Client(address, set_as_default=False, timeout="20s")
    except (OSError, ValueError) as error:
        raise SpecError(
            f"no Dask scheduler answers at {address}: {error}; check --scheduler"
        ) from None
    return DaskEngine(client, resources=_gpu_resources(client))


def start_local(workers: int, environment: Mapping[str, str]) -> DaskEngine:
    """Start one process of one thread for each worker on this machine.

    Parameters
    ----------
    workers : int
        Number of processes.
    environment : mapping
        Variables for the workers, set before they import anything (the allocator's, for one).
    """
    return start_cluster(
        {
            "cluster_class": "distributed.LocalCluster",
            "cluster_kwargs": {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "memory_limit": None,
                "silence_logs": 40,
                "env": dict(environment),
            },
        },
        environment,
    )


def start_cluster(
    description: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> DaskEngine:
    """Start a cluster of any class.

    Parameters
    ----------
    description : mapping
        ``cluster_class`` (dotted name), ``cluster_kwargs`` and ``adapt_kwargs``.
    environment : mapping, optional
        Variables that workers on this machine have from their first instruction on: a nanny sets its
        ``env`` in a worker that runs already, too late for the C library's allocator.

    Raises
    ------
    SpecError
        If the class cannot be imported or refuses its arguments.
    """
    known = {"cluster_class", "cluster_kwargs", "adapt_kwargs"}
    if extra := set(description) - known:
        raise SpecError(f"cluster has unknown keys {sorted(extra)}; allowed are {sorted(known)}")
    early = {"distributed.nanny.pre-spawn-environ": dict(environment or {})}
    with ExitStack() as undo, dask.config.set({**SETTINGS, **early}):
        guard = ScriptGuard()
        undo.callback(guard.close)
        cluster = _make_cluster(description)
        if adapt := description.get("adapt_kwargs"):
            cluster.adapt(**adapt)
        client = Client(cluster, set_as_default=False)
        undo.pop_all()
    client.wait_for_workers(1, timeout=300)
    return DaskEngine(client, cluster, _gpu_resources(client), guard)


def _make_cluster(description: Mapping[str, Any]) -> Any:
    name = str(description.get("cluster_class", "distributed.LocalCluster"))
    module, _, attribute = name.rpartition(".")
    try:
        kind = (
            LocalCluster
            if name == "distributed.LocalCluster"
            else getattr(importlib.import_module(module), attribute)
        )
        return kind(**description.get("cluster_kwargs", {}))
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise SpecError(
            f"cluster {name} cannot be started: {error}; check cluster_class and cluster_kwargs"
        ) from None


def _gpu_resources(client: Any) -> dict[str, float] | None:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {"GPU": 1} if workers and all("GPU" in w.get("resources", {}) for w in workers) else None
