"""Tiles on Dask workers: a cluster of our own on this machine, or one that is already there.

Only names and reports pass through the scheduler. A bounded window of futures is in flight and
each is released as it finishes: ``client.map`` over 20,000 tiles took 70 s, this takes none.

Workers may come late, leave, and be replaced: what one of them had in hand is done by another. Only
where there is none at all, or none that has what tasks ask for, a run ends, and says so.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from itertools import islice
from multiprocessing import spawn
from operator import length_hint
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import dask
import distributed
from distributed.comm.core import CommClosedError

from fcnpipe.core.errors import EngineError, FcnpipeError, SpecError
from fcnpipe.core.records import TaskReport
from fcnpipe.core.timeouts import call_with_timeout
from fcnpipe.core.version import __version__
from fcnpipe.engines.base import Task, WorkerRequirements, do_nothing

# Distributed is annotated here and there only.
Client: Any = distributed.Client
LocalCluster: Any = distributed.LocalCluster
WorkerPlugin: Any = distributed.WorkerPlugin

SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.comm.timeouts.connect": "20s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.95,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.low-level-log-length": 100,
    "distributed.scheduler.active-memory-manager.start": False,
}
"""A poison tile may kill two workers, not the run.

Tiles take seconds and their workers use every core, so what looks after tasks of milliseconds (a
profiler that wakes a hundred times a second, health checks at fifty) is slowed down or off. Dask's logs
of the last thousand transitions and messages would be most of what a driver grows by with its tiles.
"""
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
"""Dask says so too, but in the very setting that takes our variables."""
DEMAND_KEYS = {"resources", "wait_seconds"}
CLUSTER_KEYS = {"cluster_class", "cluster_kwargs", "adapt_kwargs", *DEMAND_KEYS}
ADAPT_KEYS = {
    *("minimum", "maximum", "minimum_jobs", "maximum_jobs", "minimum_cores", "maximum_cores"),
    *("minimum_memory", "maximum_memory", "interval", "wait_count", "target_duration"),
}
"""What makes a cluster grow and shrink; Dask says nothing of a word that it does not know."""

LOST = "worker lost"
WORKER = "Dask Worker process"
"""How the processes that a nanny starts are called."""
WAIT_SECONDS = 120.0
"""How long a run waits for a worker, if the description of the cluster does not say."""
RESOURCE_SECONDS = 10.0
"""How long it waits, where there are workers, for one that has what tasks ask for."""
REACH_SECONDS = 20.0
"""How long a scheduler may take to accept a connection."""
ANSWER_SECONDS = 30.0
"""How long it may take to answer, in all."""
REVIVE_SECONDS = 20.0
"""Time without any worker after which those of our own are started again."""
LOOK_SECONDS = 2.0
"""Time without a report after which the workers are looked at."""
GROUP_SECONDS = 0.1
"""Tiles that take less are handed out together: a future takes the driver 4 ms, whose core a worker may need."""
COUNT_SECONDS = 1.0
"""Time after which the workers are counted anew."""


@dataclass(frozen=True, slots=True)
class WorkerSelection:
    """What tasks ask of workers, and how long they wait for it.

    Attributes
    ----------
    resources : dict or None
        What a worker must offer for each task it is given, e.g. ``{"GPU": 1}``.
    wait_seconds : float
        How long to wait for a worker where there is none.
    max_workers : int
        Workers that an adaptive cluster may grow to: it grows to what is asked of it.
    setup : str
        Name of what makes workers ready, under which those that cannot be say why.
    """

    resources: dict[str, float] | None = None
    wait_seconds: float = WAIT_SECONDS
    max_workers: int = 0
    setup: str = ""

    def accepts(self, worker: Mapping[str, Any]) -> bool:
        """Whether a worker, as the scheduler knows it, may be given a task."""
        offers = worker.get("resources", {})
        return all(offers.get(name, 0) >= n for name, n in (self.resources or {}).items())


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
        with _talking(self._client):
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
            if _has_worker(self._client, self.selection, seen):
                seen, revive = time.monotonic(), self._revive
            elif time.monotonic() - seen > REVIVE_SECONDS:
                revive()
                revive = do_nothing

    def _report(self, future: Any, group: list[str]) -> list[TaskReport]:
        if future.status == "finished":
            reports: list[TaskReport] = future.result()
            return reports
        if future.status == "cancelled":
            raise _scheduler_gone(self._client)
        reason = f"{LOST}: {future.exception()}".splitlines()[0]
        return [TaskReport("", name, error=reason) for name in group]


def _do_all(task: Task, names: list[str]) -> list[TaskReport]:
    """Do one task after the other, in a worker."""
    return [task(name) for name in names]


# --- workers --------------------------------------------------------------------------------------


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """Makes a worker ready, one that comes late as well.

    Parameters
    ----------
    requirements : WorkerRequirements
        Environment, and what is to be called.
    known : iterable of str
        Addresses of the workers that are there. What they lack is told to who asks; one that comes later
        and lacks something leaves again, since it would be given tasks all the same.

    Notes
    -----
    Variables that the C library has read when the process began change nothing any more; what is
    called sets the allocator by itself.
    """

    def __init__(self, requirements: WorkerRequirements, known: Iterable[str] = ()) -> None:
        self.name = f"fcnpipe-{uuid.uuid4().hex}"
        self.version, self.requirements, self.known = __version__, requirements, frozenset(known)

    def setup(self, worker: Any) -> None:
        """Make a worker ready, or say why it cannot be."""
        try:
            self._prepare()
        except Exception as error:
            kind = "" if isinstance(error, FcnpipeError) else f"{type(error).__name__}: "
            reason = f"Dask worker {worker.name} cannot do this run's tasks: {kind}{_line(error)}"
            if worker.address in self.known:
                raise EngineError(reason) from None
            self._turn_away(worker, reason)

    def _prepare(self) -> None:
        """Refuse another version of fcnpipe, set the environment, make the call."""
        if self.version != __version__:
            raise EngineError(
                f"it has fcnpipe {__version__}, this run is of {self.version}: "
                "install one version everywhere"
            )
        os.environ.update({**ONE_THREAD, **self.requirements.environment})
        self.requirements.prepare()

    def _turn_away(self, worker: Any, reason: str) -> None:
        logging.getLogger("distributed.worker").error(reason)
        worker.log_event(self.name, reason)
        worker.loop.add_callback(worker.close, nanny=True, reason=reason)


def _has_worker(client: Any, selection: WorkerSelection, since: float) -> bool:
    """Whether there is a worker that tasks can run on.

    Raises
    ------
    EngineError
        If there has been none since too long ago, all that came were turned away, or the scheduler
        does not answer.
    """
    workers = _list_workers(client)
    if any(map(selection.accepts, workers)):
        return True
    if selection.setup and (refusals := client.get_events(selection.setup)):
        raise EngineError(refusals[-1][1])
    limit = min(RESOURCE_SECONDS, selection.wait_seconds) if workers else selection.wait_seconds
    if time.monotonic() - since < limit:
        return False
    if not workers:
        raise EngineError(
            f"no Dask worker has come to {_address(client)} for {limit:g} s: start workers, or give "
            "the cluster longer (wait_seconds); the same command takes the run up again"
        )
    raise EngineError(
        f"none of {len(workers)} Dask worker(s) at {_address(client)} offers {selection.resources}: start them "
        "with --resources, or ask for others (resources of --cluster)"
    )


def _list_workers(client: Any) -> list[dict[str, Any]]:
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return [{**facts, "address": address} for address, facts in workers.items()]
    except (OSError, RuntimeError, AttributeError):  # a client that has lost its scheduler
        raise _scheduler_gone(client) from None


@contextmanager
def _talking(client: Any) -> Iterator[None]:
    """Turn what a client raises whose scheduler goes in the middle of a call into one clear line."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, CancelledError):
        raise _scheduler_gone(client) from None


def _scheduler_gone(client: Any) -> EngineError:
    # The client tries to reach it again, and would tell all about how that ends.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    return EngineError(
        f"the Dask scheduler at {_address(client)} is gone: start it again; "
        "the same command takes the run up again"
    )


def _address(client: Any) -> str:
    return str(getattr(client.scheduler, "address", None) or "its address")


# --- connecting -----------------------------------------------------------------------------------


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
    description = _check_keys(description or {}, DEMAND_KEYS)
    with _opening() as closing:
        client = _reach(scheduler)
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
    description = _check_keys(description or {}, DEMAND_KEYS)
    selection = _read_selection(description)
    with ExitStack() as closing:
        closing.enter_context(dask.config.set(SETTINGS))
        client = _reach(scheduler)
        closing.callback(client.close)
        told: list[Any] = []
        while not told:  # a worker that leaves meanwhile has no say
            _await_worker(client, selection)
            able = [w["address"] for w in _list_workers(client) if selection.accepts(w)]
            with _talking(client):
                answers = client.run(question, workers=able, on_error="return").values()
            told = [answer for answer in answers if not isinstance(answer, CommClosedError)]
    for answer in told:
        if isinstance(answer, FcnpipeError):
            raise EngineError(
                f"Dask workers at {scheduler} cannot do this run's tasks: {_line(answer)}"
            )
        if isinstance(answer, Exception):
            raise _unfit(scheduler, answer)
    return set(told)


def _unfit(address: str, error: Exception) -> EngineError:
    """Say that workers cannot be made ready; whatever went wrong in one comes back as it is."""
    return EngineError(
        f"Dask workers at {address} cannot be made ready: {type(error).__name__}: {_line(error)}; "
        "install fcnpipe on them"
    )


def _reach(scheduler: str) -> Any:
    where = {"address": scheduler}
    if "://" not in scheduler and (Path(scheduler).is_file() or scheduler.endswith(".json")):
        if not Path(scheduler).is_file():
            raise SpecError(f"scheduler file {scheduler} is not there: check --scheduler")
        where = {"scheduler_file": scheduler}
    client = Client.__new__(Client)  # there, too, when it cannot be started
    start = partial(client.__init__, **where, set_as_default=False, timeout=REACH_SECONDS)
    try:
        # What accepts a connection and then says nothing, or speaks HTTP, is no scheduler; Dask
        # waits for its first word without limit, and takes any for a number of bytes to come.
        call_with_timeout(ANSWER_SECONDS, start)
        return client
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        _abandon(client)
        mute = isinstance(error, TimeoutError | MemoryError)
        reason = "what listens there is none (a dashboard?)" if mute else _line(error)
        raise SpecError(
            f"no Dask scheduler answers at {scheduler}: {reason}; check --scheduler"
        ) from None


def _abandon(client: Any) -> None:
    """Close a client that has not started.

    Left to the garbage collector it closes itself wherever that comes by: within Dask's lock of its
    event loops, which a cluster takes as it starts, that is for ever.
    """
    with suppress(Exception):
        client.close(timeout=1)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    description = _check_keys(description, CLUSTER_KEYS)
    settings = {
        "distributed.nanny.pre-spawn-environ": {**ONE_THREAD, **requirements.environment},
        "distributed.worker.preload": ["fcnpipe.engines.worker_preload"],
    }
    with _opening(settings) as closing:
        closing.callback(ScriptGuard().close)
        closing.enter_context(_calmed(description))
        cluster = _make_cluster(description)
        closing.callback(cluster.close)
        client = Client(cluster, set_as_default=False)
        closing.callback(lambda: client.close())
        # A heartbeat that is under way when the scheduler leaves is no error of the run.
        closing.callback(_hush, client)
        revive = partial(_restart, cluster) if isinstance(cluster, LocalCluster) else do_nothing
        return _make_ready(client, closing, requirements, description, revive)


@contextmanager
def _opening(settings: Mapping[str, Any] | None = None) -> Iterator[ExitStack]:
    """Give a stack to close what is opened by, in Dask's settings; closed at once on an error."""
    with ExitStack() as opening:
        closing = opening.enter_context(ExitStack())
        # As long as the engine lives: an adaptive cluster makes workers, by these, at any time.
        closing.enter_context(dask.config.set({**SETTINGS, **(settings or {})}))
        yield closing
        opening.pop_all()


@contextmanager
def _calmed(description: Mapping[str, Any]) -> Iterator[None]:
    """Hold what Dask's own loggers tell to warnings, or to the ``silence_logs`` of a cluster.

    Notes
    -----
    That option quiets Dask's own handler alone, and there is none where Prefect, or the user's program,
    has set up logging before: the news of scheduler and nannies would go to that.
    """
    level = (description.get("cluster_kwargs") or {}).get("silence_logs", logging.WARNING)
    logger = logging.getLogger("distributed")
    usual = logger.level
    logger.setLevel(level.upper() if isinstance(level, str) else level or usual)
    try:
        yield
    finally:
        logger.setLevel(usual)


def _check_keys(description: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    if extra := set(description) - known:
        raise SpecError(f"cluster has unknown keys {sorted(extra)}; allowed are {sorted(known)}")
    return description


def _make_cluster(description: Mapping[str, Any]) -> Any:
    name = str(description.get("cluster_class", "distributed.LocalCluster"))
    module, _, attribute = name.rpartition(".")
    try:
        kind = (
            LocalCluster
            if name == "distributed.LocalCluster"
            else getattr(importlib.import_module(module), attribute)
        )
        if not (isinstance(kind, type) and hasattr(kind, "close")):
            raise TypeError(f"{attribute} is no class of clusters")
        options = description.get("cluster_kwargs") or {}
        if kind is LocalCluster:
            _check_local(options)
        cluster = kind(**options)
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError, OSError) as error:
        cause = error.__cause__ or error  # "Nanny failed to start." says nothing
        raise SpecError(
            f"cluster {name} cannot be started: {_line(cause)}; check cluster_class and cluster_kwargs"
        ) from None
    if description.get("adapt_kwargs"):
        _adapt(cluster, description["adapt_kwargs"])
    return cluster


def _check_local(options: Mapping[str, Any]) -> None:
    """Refuse a word that no part of a local cluster knows: the workers would each print why."""
    parts = (LocalCluster, distributed.Nanny, distributed.Worker, distributed.core.Server)
    known = {name for part in parts for name in inspect.signature(part).parameters}
    unknown = set(options) - known
    if unknown and "worker_class" not in options:
        near = {word for name in unknown for word in get_close_matches(name, known, 1)}
        meant = f", perhaps {', '.join(sorted(near))} is meant" if near else ""
        raise TypeError(f"{', '.join(sorted(unknown))} is unknown{meant}")


def _adapt(cluster: Any, options: Mapping[str, Any]) -> None:
    try:
        if unknown := set(options) - ADAPT_KEYS:
            raise TypeError(f"unknown {sorted(unknown)}, known are {sorted(ADAPT_KEYS)}")
        cluster.adapt(**options)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        cluster.close()
        raise SpecError(f"cluster cannot adapt: {_line(error)}; check adapt_kwargs") from None


def _restart(cluster: Any) -> None:
    """Start all workers anew; a nanny whose worker dies as it begins has given up."""
    count = len(cluster.worker_spec)
    cluster.scale(0)
    cluster.scale(count)


def _hush(client: Any) -> None:
    if client.status == "running":
        with suppress(OSError, TimeoutError):
            client.run(_fall_silent, on_error="ignore")


def _fall_silent() -> None:
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


def _make_ready(
    client: Any,
    closing: ExitStack,
    requirements: WorkerRequirements,
    description: Mapping[str, Any],
    revive: Callable[[], object] = do_nothing,
) -> DaskEngine:
    """Wait for a worker, prepare all that come, and see that they suffice."""
    setup = WorkerSetup(requirements, client.scheduler_info(n_workers=-1)["workers"])
    closing.callback(_unregister, client, setup.name)
    try:
        _register(client, setup)
    except EngineError:
        raise
    except Exception as error:
        raise _unfit(_address(client), error) from None
    selection = _select_workers(client, description, setup.name)
    _check_memory(_list_workers(client), requirements)
    return DaskEngine(client, closing, selection, revive)


def _register(client: Any, plugin: Any) -> None:
    """Prepare all workers; once more if one has left while it was prepared."""
    try:
        client.register_plugin(plugin)
    except CommClosedError:
        client.register_plugin(plugin)


def _unregister(client: Any, name: str) -> None:
    if client.status == "running":
        with suppress(OSError, TimeoutError, ValueError):
            client.unregister_worker_plugin(name)


def _select_workers(client: Any, description: Mapping[str, Any], setup: str) -> WorkerSelection:
    """Give what tasks ask for, once there is a worker that offers it."""
    adapt = description.get("adapt_kwargs") or {}
    selection = _read_selection(description, setup)
    if adapt and not adapt.get("minimum") and not adapt.get("minimum_jobs"):
        return selection  # the first worker comes when there are tasks
    _await_worker(client, selection)
    if selection.resources is None:
        return replace(selection, resources=_gpu_resources(_list_workers(client)))
    return selection


def _read_selection(description: Mapping[str, Any], setup: str = "") -> WorkerSelection:
    adapt = description.get("adapt_kwargs") or {}
    max_workers = int(adapt.get("maximum") or adapt.get("maximum_jobs") or 0)
    wait_seconds = float(description.get("wait_seconds", WAIT_SECONDS))
    return WorkerSelection(description.get("resources"), wait_seconds, max_workers, setup)


def _await_worker(client: Any, selection: WorkerSelection) -> None:
    begun = time.monotonic()
    while not _has_worker(client, selection, begun):
        time.sleep(0.1)


def _gpu_resources(workers: list[dict[str, Any]]) -> dict[str, float] | None:
    return {"GPU": 1} if workers and all("GPU" in w.get("resources", {}) for w in workers) else None


def _check_memory(workers: list[dict[str, Any]], requirements: WorkerRequirements) -> None:
    """Refuse workers that the plan does not fit into, before the first pixel."""
    for worker in workers:
        limit, threads = worker.get("memory_limit"), worker.get("nthreads", 1)
        if limit and limit < (needed := requirements.memory_for(threads)):
            tiles = "a tile needs" if threads == 1 else f"{threads} tiles at a time need"
            raise EngineError(
                f"Dask worker {worker.get('name')} may take {limit / 2**30:.2f} GiB, {tiles} "
                f"{needed / 2**30:.2f}: use a smaller --tile or --window, or give workers more"
            )
