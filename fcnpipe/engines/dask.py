"""Tiles on Dask workers: a cluster of our own on this machine, or one that is already there.

Only names and reports pass through the scheduler. A bounded window of futures is in flight and
each is released as it finishes: ``client.map`` over 20,000 tiles took 70 s, this takes none.

Workers may come late, leave, and be replaced: what one of them had in hand is done by another. Only
where there is none at all, or none that has what tasks ask for, a run ends, and says so.
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
    lost_scheduler,
    open_client,
    open_stack,
    report_lost_scheduler,
    scheduler_address,
    silence_workers,
)
from fcnpipe.engines.dask_cluster import (
    CLUSTER_KEYS,
    DEMAND_KEYS,
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
    read_selection,
    register_setup,
    select_workers,
    unfit_workers,
    unregister_setup,
)

LOST = "worker lost"
REVIVE_SECONDS = 20.0
"""Time without any worker after which those of our own are started again."""
LOOK_SECONDS = 2.0
"""Time without a report after which the workers are looked at."""
GROUP_SECONDS = 0.1
"""Tiles that take less are handed out together: a future takes the driver 4 ms, whose core a worker may need."""
COUNT_SECONDS = 1.0
"""Time after which the workers are counted anew."""


class DaskEngine:
    """Tasks as Dask futures.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    closing : ExitStack
        What is undone by :meth:`close`: the client, the cluster if it is ours, the settings.
    selection : WorkerSelection
        What tasks ask of workers.
    revive : callable
        Is called where all workers have been gone for long: their nannies may have given up.
    """

    def __init__(
        self,
        client: Any,
        closing: ExitStack,
        selection: WorkerSelection,
        revive: Callable[[], object] = do_nothing,
    ) -> None:
        self._client, self._closing = client, closing
        self.selection, self._revive = selection, revive
        self._counted, self._threads = float("-inf"), 1

    @property
    def workers(self) -> int:
        """Threads of all workers, as of a second ago, at least 1."""
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self._threads = max(sum(map(int, self._client.nthreads().values())), 1)
            self._counted = time.monotonic()
        return self._threads

    def run(self, task: Task, names: Iterable[str]) -> Iterator[TaskReport]:
        """Give one report for each name, in the order in which they finish.

        Raises
        ------
        EngineError
            If there is no worker left, none that tasks can run on, or no scheduler.

        Notes
        -----
        A dying worker takes the tasks queued on it along, innocent ones too, so those that were
        lost are tried once more, each alone: only the one that kills is reported.
        """
        lost: list[str] = []
        with report_lost_scheduler(self._client):
            for report in self._stream(task, names):
                if report.error.startswith(LOST):
                    lost.append(report.name)
                else:
                    yield report
            yield from self._stream(task, lost, alone=True)

    def close(self) -> None:
        """Disconnect, and stop the cluster if it is ours."""
        self._closing.close()

    def _width(self) -> int:
        """Give how many tasks to have in flight: enough for all workers, and for more to be asked for."""
        return 2 * max(self.workers, self.selection.max_workers) + 2

    def _choose_size(self, reports: list[TaskReport], left: int) -> int:
        """Give how many names to hand out together: fewer towards the end, where workers would wait.

        One, where it is not known how many are left.
        """
        seconds = sum(report.seconds for report in reports) or GROUP_SECONDS
        plenty = left // (4 * max(self.workers, self.selection.max_workers))
        return max(min(int(GROUP_SECONDS / seconds * len(reports)), plenty), 1)

    def _stream(
        self, task: Task, names: Iterable[str], alone: bool = False
    ) -> Iterator[TaskReport]:
        # One group of keys, so that Dask knows the tasks for a kind, and holds them back until a
        # worker is free: of tiles handed out early, one worker got nine while the other got seven.
        waiting, token, size = iter(names), f"tiles-{uuid.uuid4().hex}", 1
        running: dict[Any, list[str]] = {}
        ended: SimpleQueue[Any] = SimpleQueue()
        while True:
            width = 1 if alone else self._width()
            while len(running) < width and (group := list(islice(waiting, size))):
                future = self._submit(task, group, token)
                running[future.key] = group
                future.add_done_callback(ended.put)
            if not running:
                return
            future = self._await(ended)
            reports = self._report(future, running.pop(future.key))
            if not alone and future.status == "finished":
                size = self._choose_size(reports, length_hint(waiting))
            future.release()
            yield from reports

    def _submit(self, task: Task, group: list[str], token: str) -> Any:
        return self._client.submit(
            _do_all,
            task,
            group,
            key=(token, group[0]),
            pure=False,
            resources=self.selection.resources,
        )

    def _await(self, ended: SimpleQueue[Any]) -> Any:
        """Give the next future that ends; look after the workers if that takes long."""
        seen, revive = time.monotonic(), self._revive
        while True:
            with suppress(Empty):
                return ended.get(timeout=LOOK_SECONDS)
            if has_worker(self._client, self.selection, seen):
                seen, revive = time.monotonic(), self._revive
            elif time.monotonic() - seen > REVIVE_SECONDS:
                revive()
                revive = do_nothing

    def _report(self, future: Any, group: list[str]) -> list[TaskReport]:
        if future.status == "finished":
            reports: list[TaskReport] = future.result()
            return reports
        if future.status == "cancelled":
            raise lost_scheduler(self._client)
        reason = f"{LOST}: {future.exception()}".splitlines()[0]
        return [TaskReport("", name, error=reason) for name in group]


def _do_all(task: Task, names: list[str]) -> list[TaskReport]:
    """Do one task after the other, in a worker."""
    return [task(name) for name in names]


def connect(
    scheduler: str, requirements: WorkerRequirements, description: Mapping[str, Any] | None = None
) -> DaskEngine:
    """Use a scheduler that runs already.

    Parameters
    ----------
    scheduler : str
        Its address (``tcp://``, ``tls://`` with the certificates of Dask's configuration, ...), or
        the file that it wrote (``dask scheduler --scheduler-file``).
    requirements : WorkerRequirements
        What a worker must have.
    description : mapping, optional
        ``resources`` and ``wait_seconds``.

    Raises
    ------
    SpecError
        If nobody answers at the address.
    EngineError
        If there is no worker, or none that can do the tasks.
    """
    description = check_keys(description or {}, DEMAND_KEYS)
    with open_stack() as closing:
        client = open_client(scheduler)
        closing.callback(client.close)
        return _make_ready(client, closing, requirements, description)


def query_workers(
    scheduler: str, question: Callable[[], Any], description: Mapping[str, Any] | None = None
) -> set[Any]:
    """Put a question to the workers of a scheduler that tasks may go to, and give their different answers.

    Parameters
    ----------
    scheduler, description
        As for `connect`.
    question : callable
        Is called by each worker.

    Raises
    ------
    SpecError
        If nobody answers at the address.
    EngineError
        If there is no worker, or one cannot answer.
    """
    description = check_keys(description or {}, DEMAND_KEYS)
    selection = read_selection(description)
    with ExitStack() as closing:
        closing.enter_context(dask.config.set(SETTINGS))
        client = open_client(scheduler)
        closing.callback(client.close)
        told: list[Any] = []
        while not told:  # a worker that leaves meanwhile has no say
            await_worker(client, selection)
            able = [w["address"] for w in list_workers(client) if selection.accepts(w)]
            with report_lost_scheduler(client):
                answers = client.run(question, workers=able, on_error="return").values()
            told = [answer for answer in answers if not isinstance(answer, CommClosedError)]
    for answer in told:
        if isinstance(answer, FcnpipeError):
            raise EngineError(
                f"Dask workers at {scheduler} cannot do this run's tasks: {first_line(answer)}"
            )
        if isinstance(answer, Exception):
            raise unfit_workers(scheduler, answer)
    return set(told)


def start_local(workers: int, requirements: WorkerRequirements) -> DaskEngine:
    """Start one process of one thread for each worker on this machine.

    Parameters
    ----------
    workers : int
        Number of processes.
    requirements : WorkerRequirements
        What a worker must have; its variables are set before it imports anything.
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
    """Start a cluster of any class.

    Parameters
    ----------
    description : mapping
        ``cluster_class`` (dotted name), ``cluster_kwargs``, ``adapt_kwargs``, ``resources`` that a task
        asks for, and ``wait_seconds``, the time to wait for a worker.
    requirements : WorkerRequirements
        What a worker must have. Those on this machine have its variables from their first instruction
        on: a nanny sets its ``env`` in a worker that runs already, too late for the C library's allocator.

    Raises
    ------
    SpecError
        If the class cannot be imported or refuses its arguments.
    EngineError
        If no worker comes.
    """
    description = check_keys(description, CLUSTER_KEYS)
    settings = {
        "distributed.nanny.pre-spawn-environ": {**ONE_THREAD, **requirements.environment},
        "distributed.worker.preload": ["fcnpipe.engines.worker_preload"],
    }
    with open_stack(settings) as closing:
        closing.callback(ScriptGuard().close)
        closing.enter_context(limit_logging(description))
        cluster = make_cluster(description)
        closing.callback(cluster.close)
        client = Client(cluster, set_as_default=False)
        closing.callback(lambda: client.close())
        # A heartbeat that is under way when the scheduler leaves is no error of the run.
        closing.callback(silence_workers, client)
        revive = (
            partial(restart_workers, cluster) if isinstance(cluster, LocalCluster) else do_nothing
        )
        return _make_ready(client, closing, requirements, description, revive)


def _make_ready(
    client: Any,
    closing: ExitStack,
    requirements: WorkerRequirements,
    description: Mapping[str, Any],
    revive: Callable[[], object] = do_nothing,
) -> DaskEngine:
    """Wait for a worker, prepare all that come, and see that they suffice."""
    setup = WorkerSetup(requirements, client.scheduler_info(n_workers=-1)["workers"])
    closing.callback(unregister_setup, client, setup.name)
    try:
        register_setup(client, setup)
    except EngineError:
        raise
    except Exception as error:
        raise unfit_workers(scheduler_address(client), error) from None
    selection = select_workers(client, description, setup.name)
    check_memory(list_workers(client), requirements)
    return DaskEngine(client, closing, selection, revive)
