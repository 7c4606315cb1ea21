"""Workers of a Dask cluster: which workers may run tasks, how they are prepared, and how long a run waits for them."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import distributed
from distributed.comm.core import CommClosedError

from fcnpipe.core.errors import EngineError, FcnpipeError, first_line
from fcnpipe.core.version import __version__
from fcnpipe.engines.base import WorkerRequirements
from fcnpipe.engines.dask_client import lost_scheduler_error, scheduler_address

# Distributed has incomplete type annotations.
WorkerPlugin: Any = distributed.WorkerPlugin

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
"""Environment of a worker with one thread for each numerical library.

Dask has the same default, but in the setting that fcnpipe replaces with its own variables.
"""
WAIT_SECONDS = 120.0
"""Time for which a run without workers waits for one, s, unless the cluster description sets it."""
RESOURCE_SECONDS = 10.0
"""Maximum time for which a run with workers waits for one that offers the resources of a task, s."""


@dataclass(frozen=True, slots=True)
class WorkerSelection:
    """Criteria for workers that may run tasks, and the time to wait for one.

    Attributes
    ----------
    resources : dict or None
        Resources that a worker must offer for each task assigned to it, e.g. ``{"GPU": 1}``.
    wait_seconds : float
        Time to wait for a worker if there is none, s.
    max_workers : int
        Maximum number of workers of an adaptive cluster, else 0. Such a cluster grows with the number of tasks
        in flight.
    setup_name : str
        Name of the :class:`WorkerSetup`, and of the Dask event topic for the reasons of rejected workers.
    """

    resources: dict[str, float] | None = None
    wait_seconds: float = WAIT_SECONDS
    max_workers: int = 0
    setup_name: str = ""

    def accepts(self, worker: Mapping[str, Any]) -> bool:
        """Return whether a worker, as described by the scheduler, offers the resources of a task."""
        offers = worker.get("resources", {})
        return all(offers.get(name, 0) >= n for name, n in (self.resources or {}).items())


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """Worker plugin that prepares each worker for the tasks of a run, including workers that join later.

    Parameters
    ----------
    requirements : WorkerRequirements
        Environment variables, and a function to call.
    present : iterable of str
        Addresses of the workers that are present at registration. If one of them cannot be prepared, the
        registration fails. A worker that joins later and cannot be prepared is closed; otherwise Dask would
        assign tasks to it.

    Notes
    -----
    Variables that the C library reads at the start of a process have no effect in a running one. The memory
    allocator is therefore tuned by ``requirements.prepare``.
    """

    def __init__(self, requirements: WorkerRequirements, present: Iterable[str] = ()) -> None:
        self.name = f"fcnpipe-{uuid.uuid4().hex}"
        self.version, self.requirements = __version__, requirements
        self.present = frozenset(present)

    def setup(self, worker: Any) -> None:
        """Prepare a worker; called by Dask on the worker.

        Raises
        ------
        EngineError
            If a worker that was present at registration cannot be prepared.
        """
        try:
            self._prepare()
        except Exception as error:
            kind = "" if isinstance(error, FcnpipeError) else f"{type(error).__name__}: "
            reason = f"Dask worker {worker.name} cannot run the tasks of this run: {kind}{first_line(error)}"
            if worker.address in self.present:
                raise EngineError(reason) from None
            self._reject(worker, reason)

    def _prepare(self) -> None:
        if self.version != __version__:
            raise EngineError(
                f"it has fcnpipe {__version__}, this run has {self.version}: "
                "install the same version everywhere"
            )
        os.environ.update({**ONE_THREAD, **self.requirements.environment})
        self.requirements.prepare()

    def _reject(self, worker: Any, reason: str) -> None:
        logging.getLogger("distributed.worker").error(reason)
        worker.log_event(self.name, reason)
        worker.loop.add_callback(worker.close, nanny=True, reason=reason)


def register_setup(client: Any, setup: WorkerSetup) -> None:
    """Prepare all workers, and try a second time if a worker leaves in the meantime.

    Raises
    ------
    Exception
        The error of a worker that is present and cannot be prepared.
    """
    try:
        client.register_plugin(setup)
    except CommClosedError:
        client.register_plugin(setup)


def unregister_setup(client: Any, name: str) -> None:
    """Remove a setup, if the client is connected."""
    if client.status == "running":
        with suppress(OSError, TimeoutError, ValueError):
            client.unregister_worker_plugin(name)


def preparation_error(address: str, error: Exception) -> EngineError:
    """Return the error for workers on which preparation fails with an unexpected exception."""
    return EngineError(
        f"Dask workers at {address} cannot be prepared: {type(error).__name__}: {first_line(error)}; "
        "install fcnpipe on them"
    )


def select_workers(client: Any, description: Mapping[str, Any], setup_name: str) -> WorkerSelection:
    """Wait for a worker that satisfies the criteria of a cluster description, and return the criteria.

    If all workers offer GPUs and the description names no resources, each task takes one GPU.

    Raises
    ------
    EngineError
        If no worker connects in time, or none satisfies the criteria.
    """
    adapt = description.get("adapt_kwargs") or {}
    selection = read_selection(description, setup_name)
    if adapt and not adapt.get("minimum") and not adapt.get("minimum_jobs"):
        return selection  # an adaptive cluster starts its first worker when there are tasks
    await_worker(client, selection)
    workers = list_workers(client) if selection.resources is None else []
    if workers and all("GPU" in worker.get("resources", {}) for worker in workers):
        return replace(selection, resources={"GPU": 1})
    return selection


def read_selection(description: Mapping[str, Any], setup_name: str = "") -> WorkerSelection:
    """Return the criteria of a cluster description."""
    adapt = description.get("adapt_kwargs") or {}
    max_workers = int(adapt.get("maximum") or adapt.get("maximum_jobs") or 0)
    wait_seconds = float(description.get("wait_seconds", WAIT_SECONDS))
    return WorkerSelection(description.get("resources"), wait_seconds, max_workers, setup_name)


def await_worker(client: Any, selection: WorkerSelection) -> None:
    """Wait for a worker that may run tasks.

    Raises
    ------
    EngineError
        As for :func:`has_worker`.
    """
    start = time.monotonic()
    while not has_worker(client, selection, start):
        time.sleep(0.1)


def has_worker(client: Any, selection: WorkerSelection, since: float) -> bool:
    """Return whether there is a worker that may run tasks.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    selection : WorkerSelection
        Criteria for workers.
    since : float
        Time of the monotonic clock at which a worker was last seen, or the wait started, s.

    Raises
    ------
    EngineError
        If there has been no worker for longer than the time limit, all new workers were rejected, or the
        scheduler does not answer.
    """
    workers = list_workers(client)
    if any(map(selection.accepts, workers)):
        return True
    if selection.setup_name and (rejections := client.get_events(selection.setup_name)):
        raise EngineError(rejections[-1][1])
    limit = min(RESOURCE_SECONDS, selection.wait_seconds) if workers else selection.wait_seconds
    if time.monotonic() - since < limit:
        return False
    address = scheduler_address(client)
    if not workers:
        raise EngineError(
            f"no Dask worker has connected to {address} for {limit:g} s: start workers, or raise wait_seconds "
            "of the cluster; the same command resumes the run"
        )
    raise EngineError(
        f"none of {len(workers)} Dask worker(s) at {address} offers {selection.resources}: start them "
        "with --resources, or change the resources of --cluster"
    )


def list_workers(client: Any) -> list[dict[str, Any]]:
    """Return the descriptions of all workers by the scheduler, each with its address.

    Raises
    ------
    EngineError
        If the scheduler is lost.
    """
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return [{**facts, "address": address} for address, facts in workers.items()]
    except (OSError, RuntimeError, AttributeError):
        raise lost_scheduler_error(client) from None


def check_memory(workers: list[dict[str, Any]], requirements: WorkerRequirements) -> None:
    """Check that the memory limits of the workers suffice for the plan, before any pixel is read.

    Raises
    ------
    EngineError
        If the limit of a worker is too low.
    """
    for worker in workers:
        limit, threads = worker.get("memory_limit"), worker.get("nthreads", 1)
        if limit and limit < (needed := requirements.memory_for(threads)):
            tiles = "a tile needs" if threads == 1 else f"{threads} tiles at a time need"
            raise EngineError(
                f"Dask worker {worker.get('name')} has a memory limit of {limit / 2**30:.2f} GiB, {tiles} "
                f"{needed / 2**30:.2f} GiB: use a smaller --tile or --window, or raise the limit of the workers"
            )
