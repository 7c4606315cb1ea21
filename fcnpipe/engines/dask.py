"""The Dask engine: tasks run as futures, on a cluster started for the run or on an existing scheduler.

Only tile names and task reports pass through the scheduler. A bounded number of futures is in flight, and each is
released when it finishes. This avoids the 70 s that ``client.map`` took for 20,000 tiles.

Workers may join late, leave, and be replaced: other workers run the tasks of a lost one. A run ends with an error
only if there is no worker for a given time, or none that offers the resources of a task.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from operator import length_hint
from queue import Empty, SimpleQueue
from typing import Any

import dask
from distributed.comm.core import CommClosedError

from fcnpipe.core.errors import EngineError, FcnpipeError, first_line
from fcnpipe.core.records import TaskReport
from fcnpipe.engines.base import Task, WorkerRequirements, do_nothing
from fcnpipe.engines.dask_client import (
    SETTINGS,
    Client,
    lost_scheduler_error,
    open_client,
    report_lost_scheduler,
    resource_stack,
    scheduler_address,
    silence_workers,
)
from fcnpipe.engines.dask_cluster import (
    CLUSTER_KEYS,
    SELECTION_KEYS,
    LocalCluster,
    ScriptGuard,
    check_keys,
    limit_logging,
    make_cluster,
    restart_workers,
)
from fcnpipe.engines.dask_workers import (
    ONE_THREAD,
    WorkerSelection,
    WorkerSetup,
    await_worker,
    check_memory,
    has_worker,
    list_workers,
    preparation_error,
    read_selection,
    register_setup,
    select_workers,
    unregister_setup,
)

WORKER_LOST = "worker lost"
"""Start of the error message of a task whose worker has died."""
RESTART_SECONDS = 20.0
"""Time without any worker after which the workers of a local cluster are started again, s."""
CHECK_SECONDS = 2.0
"""Time without a finished future after which the workers are checked, s."""
GROUP_SECONDS = 0.1
"""Duration of tasks up to which several are submitted as one future, s.

A future takes 4 ms of the driver's CPU time, on a core that a worker may need.
"""
THREAD_COUNT_SECONDS = 1.0
"""Time after which the threads of the workers are counted again, s."""


class DaskEngine:
    """Engine that runs tasks as Dask futures.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    closing : ExitStack
        Resources to release by :meth:`close`: the client, the settings, and the cluster if it was started for
        this engine.
    selection : WorkerSelection
        Criteria for workers that may run tasks.
    restart : callable
        Function that restarts the workers, since nannies may have given up. It is called once when there has been
        no worker for `RESTART_SECONDS`.
    """

    def __init__(
        self,
        client: Any,
        closing: ExitStack,
        selection: WorkerSelection,
        restart: Callable[[], object] = do_nothing,
    ) -> None:
        self._client, self._closing = client, closing
        self.selection, self._restart = selection, restart
        self._counted, self._threads = float("-inf"), 1

    @property
    def workers(self) -> int:
        """Number of threads of all workers, at least 1; it is counted at most once a second."""
        if time.monotonic() - self._counted > THREAD_COUNT_SECONDS:
            self._threads = max(sum(map(int, self._client.nthreads().values())), 1)
            self._counted = time.monotonic()
        return self._threads

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Yield one report for each name, in the order in which the tasks finish.

        Raises
        ------
        EngineError
            If no worker is left, none may run tasks, or the scheduler is lost.

        Notes
        -----
        A worker that dies loses all tasks queued on it, and only one of them may be the cause. Lost tasks are
        therefore tried once more, one at a time, so that only the task that kills its worker is reported as failed.
        """
        lost: list[str] = []
        with report_lost_scheduler(self._client):
            for report in self._stream(task, names):
                if report.error.startswith(WORKER_LOST):
                    lost.append(report.name)
                else:
                    yield report
            yield from self._stream(task, lost, alone=True)

    def close(self) -> None:
        """Disconnect, and stop the cluster if it was started for this engine."""
        self._closing.close()

    def _max_in_flight(self) -> int:
        """Return the maximum number of futures in flight: enough for all workers and for a cluster to grow."""
        return 2 * max(self.workers, self.selection.max_workers) + 2

    def _group_size(self, reports: list[TaskReport], left: int) -> int:
        """Return the number of tasks for the next future, from the reports of the last one.

        It is smaller near the end, where workers would wait for each other, and 1 if ``left``, the number of
        remaining names, is 0 (unknown).
        """
        seconds = sum(report.seconds for report in reports) or GROUP_SECONDS
        share = left // (4 * max(self.workers, self.selection.max_workers))
        return max(min(int(GROUP_SECONDS / seconds * len(reports)), share), 1)

    def _stream(
        self, task: Task, names: Iterable[str], alone: bool = False
    ) -> Iterator[TaskReport]:
        # All keys have one prefix, so that Dask treats the tasks as a group and queues them on the scheduler until
        # a worker is free. Otherwise it assigns tiles early, and one worker got nine while another got seven.
        waiting, prefix, size = iter(names), f"tiles-{uuid.uuid4().hex}", 1
        running: dict[Any, list[str]] = {}
        finished: SimpleQueue[Any] = SimpleQueue()
        while True:
            limit = 1 if alone else self._max_in_flight()
            while len(running) < limit and (group := list(islice(waiting, size))):
                future = self._submit(task, group, prefix)
                running[future.key] = group
                future.add_done_callback(finished.put)
            if not running:
                return
            future = self._await(finished)
            reports = self._read_reports(future, running.pop(future.key))
            if not alone and future.status == "finished":
                size = self._group_size(reports, length_hint(waiting))
            future.release()
            yield from reports

    def _submit(self, task: Task, group: list[str], prefix: str) -> Any:
        return self._client.submit(
            _run_group,
            task,
            group,
            key=(prefix, group[0]),
            pure=False,
            resources=self.selection.resources,
        )

    def _await(self, finished: SimpleQueue[Any]) -> Any:
        """Return the next finished future; check the workers while waiting."""
        seen, restart = time.monotonic(), self._restart
        while True:
            with suppress(Empty):
                return finished.get(timeout=CHECK_SECONDS)
            if has_worker(self._client, self.selection, seen):
                seen, restart = time.monotonic(), self._restart
            elif time.monotonic() - seen > RESTART_SECONDS:
                restart()
                restart = do_nothing

    def _read_reports(self, future: Any, group: list[str]) -> list[TaskReport]:
        if future.status == "finished":
            reports: list[TaskReport] = future.result()
            return reports
        if future.status == "cancelled":
            raise lost_scheduler_error(self._client)
        reason = f"{WORKER_LOST}: {future.exception()}".splitlines()[0]
        return [TaskReport("", name, error=reason) for name in group]


def _run_group(task: Task, names: list[str]) -> list[TaskReport]:
    """Run a group of tasks one after the other; called on a worker."""
    return [task(name) for name in names]


def connect(
    scheduler: str, requirements: WorkerRequirements, description: Mapping[str, Any] | None = None
) -> DaskEngine:
    """Return an engine on the workers of a running scheduler.

    Parameters
    ----------
    scheduler : str
        Its address (``tcp://``, ``tls://`` with the certificates of Dask's configuration, ...), or
        the path of its scheduler file (``dask scheduler --scheduler-file``).
    requirements : WorkerRequirements
        Requirements of the tasks on a worker process.
    description : mapping, optional
        ``resources`` of a task, and ``wait_seconds``.

    Raises
    ------
    SpecError
        If no scheduler answers at the address.
    EngineError
        If there is no worker, or none that can run the tasks.
    """
    description = check_keys(description or {}, SELECTION_KEYS)
    with resource_stack() as closing:
        client = open_client(scheduler)
        closing.callback(client.close)
        return _prepare_engine(client, closing, requirements, description)


def query_workers(
    scheduler: str, question: Callable[[], Any], description: Mapping[str, Any] | None = None
) -> set[Any]:
    """Call a function on all workers of a scheduler that may run tasks, and return the set of its results.

    Parameters
    ----------
    scheduler, description
        As for `connect`.
    question : callable
        Function to call on each worker; picklable.

    Returns
    -------
    set
        The distinct results.

    Raises
    ------
    SpecError
        If no scheduler answers at the address.
    EngineError
        If there is no worker, or the function raises on one of them.
    """
    description = check_keys(description or {}, SELECTION_KEYS)
    selection = read_selection(description)
    with ExitStack() as closing:
        closing.enter_context(dask.config.set(SETTINGS))
        client = open_client(scheduler)
        closing.callback(client.close)
        results: list[Any] = []
        while not results:  # workers that leave during the call have no result
            await_worker(client, selection)
            able = [w["address"] for w in list_workers(client) if selection.accepts(w)]
            with report_lost_scheduler(client):
                answers = client.run(question, workers=able, on_error="return").values()
            results = [answer for answer in answers if not isinstance(answer, CommClosedError)]
    for result in results:
        if isinstance(result, FcnpipeError):
            raise EngineError(
                f"Dask workers at {scheduler} cannot run the tasks of this run: {first_line(result)}"
            )
        if isinstance(result, Exception):
            raise preparation_error(scheduler, result)
    return set(results)


def start_local(workers: int, requirements: WorkerRequirements) -> DaskEngine:
    """Start worker processes of one thread each on this machine.

    Parameters
    ----------
    workers : int
        Number of processes.
    requirements : WorkerRequirements
        Requirements of the tasks on a worker process; its variables are set before any import.
    """
    return start_cluster(
        {
            "cluster_class": "distributed.LocalCluster",
            "cluster_kwargs": {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "memory_limit": None,
                "silence_logs": logging.CRITICAL,
                "env": dict(requirements.environment),
            },
        },
        requirements,
    )


def start_cluster(description: Mapping[str, Any], requirements: WorkerRequirements) -> DaskEngine:
    """Start a cluster of any class, and return an engine on its workers.

    Parameters
    ----------
    description : mapping
        ``cluster_class`` (dotted name), ``cluster_kwargs``, ``adapt_kwargs``, the ``resources`` of a task, and
        ``wait_seconds``, the time to wait for a worker.
    requirements : WorkerRequirements
        Requirements of the tasks on a worker process. Its variables are set before workers on this machine
        start, because a nanny sets its ``env`` in a running worker, too late for the memory allocator of the
        C library.

    Raises
    ------
    SpecError
        If the class cannot be imported or rejects its arguments.
    EngineError
        If no worker connects, or none can run the tasks.
    """
    description = check_keys(description, CLUSTER_KEYS)
    settings = {
        "distributed.nanny.pre-spawn-environ": {**ONE_THREAD, **requirements.environment},
        "distributed.worker.preload": ["fcnpipe.engines.worker_preload"],
    }
    with resource_stack(settings) as closing:
        closing.callback(ScriptGuard().close)
        closing.enter_context(limit_logging(description))
        cluster = make_cluster(description)
        closing.callback(cluster.close)
        client = Client(cluster, set_as_default=False)
        closing.callback(lambda: client.close())
        # Workers would log an error for a heartbeat that is under way when the scheduler stops.
        closing.callback(silence_workers, client)
        restart = (
            partial(restart_workers, cluster) if isinstance(cluster, LocalCluster) else do_nothing
        )
        return _prepare_engine(client, closing, requirements, description, restart)


def _prepare_engine(
    client: Any,
    closing: ExitStack,
    requirements: WorkerRequirements,
    description: Mapping[str, Any],
    restart: Callable[[], object] = do_nothing,
) -> DaskEngine:
    """Prepare all workers, wait for one that may run tasks, and check the memory of all."""
    setup = WorkerSetup(requirements, client.scheduler_info(n_workers=-1)["workers"])
    closing.callback(unregister_setup, client, setup.name)
    try:
        register_setup(client, setup)
    except EngineError:
        raise
    except Exception as error:
        raise preparation_error(scheduler_address(client), error) from None
    selection = select_workers(client, description, setup.name)
    check_memory(list_workers(client), requirements)
    return DaskEngine(client, closing, selection, restart)
