"""Workers of a Dask cluster: which may run tasks, how they are prepared, and how long to wait for one."""

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
from fcnpipe.engines.dask_client import lost_scheduler, scheduler_address

# Distributed is annotated here and there only.
WorkerPlugin: Any = distributed.WorkerPlugin

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
"""Dask says so too, but in the very setting that takes our variables."""
"""How the processes that a nanny starts are called."""
WAIT_SECONDS = 120.0
"""How long a run waits for a worker, if the description of the cluster does not say."""
RESOURCE_SECONDS = 10.0
"""How long it waits, where there are workers, for one that has what tasks ask for."""


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
            reason = (
                f"Dask worker {worker.name} cannot do this run's tasks: {kind}{first_line(error)}"
            )
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


def register_setup(client: Any, plugin: Any) -> None:
    """Prepare all workers; once more if one has left while it was prepared."""
    try:
        client.register_plugin(plugin)
    except CommClosedError:
        client.register_plugin(plugin)


def unregister_setup(client: Any, name: str) -> None:
    if client.status == "running":
        with suppress(OSError, TimeoutError, ValueError):
            client.unregister_worker_plugin(name)


def unfit_workers(address: str, error: Exception) -> EngineError:
    """Say that workers cannot be made ready; whatever went wrong in one comes back as it is."""
    return EngineError(
        f"Dask workers at {address} cannot be made ready: {type(error).__name__}: {first_line(error)}; "
        "install fcnpipe on them"
    )


def select_workers(client: Any, description: Mapping[str, Any], setup: str) -> WorkerSelection:
    """Give what tasks ask for, once there is a worker that offers it."""
    adapt = description.get("adapt_kwargs") or {}
    selection = read_selection(description, setup)
    if adapt and not adapt.get("minimum") and not adapt.get("minimum_jobs"):
        return selection  # the first worker comes when there are tasks
    await_worker(client, selection)
    if selection.resources is None:
        return replace(selection, resources=_gpu_resources(list_workers(client)))
    return selection


def read_selection(description: Mapping[str, Any], setup: str = "") -> WorkerSelection:
    adapt = description.get("adapt_kwargs") or {}
    max_workers = int(adapt.get("maximum") or adapt.get("maximum_jobs") or 0)
    wait_seconds = float(description.get("wait_seconds", WAIT_SECONDS))
    return WorkerSelection(description.get("resources"), wait_seconds, max_workers, setup)


def await_worker(client: Any, selection: WorkerSelection) -> None:
    begun = time.monotonic()
    while not has_worker(client, selection, begun):
        time.sleep(0.1)


def has_worker(client: Any, selection: WorkerSelection, since: float) -> bool:
    """Whether there is a worker that tasks can run on.

    Raises
    ------
    EngineError
        If there has been none since too long ago, all that came were turned away, or the scheduler
        does not answer.
    """
    workers = list_workers(client)
    if any(map(selection.accepts, workers)):
        return True
    if selection.setup and (refusals := client.get_events(selection.setup)):
        raise EngineError(refusals[-1][1])
    limit = min(RESOURCE_SECONDS, selection.wait_seconds) if workers else selection.wait_seconds
    if time.monotonic() - since < limit:
        return False
    if not workers:
        raise EngineError(
            f"no Dask worker has come to {scheduler_address(client)} for {limit:g} s: start workers, or give "
            "the cluster longer (wait_seconds); the same command takes the run up again"
        )
    raise EngineError(
        f"none of {len(workers)} Dask worker(s) at {scheduler_address(client)} offers {selection.resources}: start them "
        "with --resources, or ask for others (resources of --cluster)"
    )


def list_workers(client: Any) -> list[dict[str, Any]]:
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return [{**facts, "address": address} for address, facts in workers.items()]
    except (OSError, RuntimeError, AttributeError):  # a client that has lost its scheduler
        raise lost_scheduler(client) from None


def _gpu_resources(workers: list[dict[str, Any]]) -> dict[str, float] | None:
    return {"GPU": 1} if workers and all("GPU" in w.get("resources", {}) for w in workers) else None


def check_memory(workers: list[dict[str, Any]], requirements: WorkerRequirements) -> None:
    """Refuse workers that the plan does not fit into, before the first pixel."""
    for worker in workers:
        limit, threads = worker.get("memory_limit"), worker.get("nthreads", 1)
        if limit and limit < (needed := requirements.memory_for(threads)):
            tiles = "a tile needs" if threads == 1 else f"{threads} tiles at a time need"
            raise EngineError(
                f"Dask worker {worker.get('name')} may take {limit / 2**30:.2f} GiB, {tiles} "
                f"{needed / 2**30:.2f}: use a smaller --tile or --window, or give workers more"
            )
