"""Engines, which run the tasks of a stage: serially, in threads of this process, or on Dask workers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from types import ModuleType

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import RunSpec
from fcnpipe.engines.base import Engine, WorkerRequirements
from fcnpipe.engines.serial import SerialEngine
from fcnpipe.engines.threads import ThreadsEngine

__all__ = ["Engine", "WorkerRequirements", "count_cores", "open_engine", "query_workers"]


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_engine(spec: RunSpec, requirements: WorkerRequirements) -> Engine:
    """Start the engine of a run specification.

    Parameters
    ----------
    spec : RunSpec
        Its ``engine``, ``workers``, ``scheduler`` and ``cluster`` are used.
    requirements : WorkerRequirements
        Requirements of the tasks on a worker process.

    Raises
    ------
    SpecError
        If Dask is requested and not installed, or the cluster cannot be reached or started.
    EngineError
        If the cluster has no worker, or none that can run the tasks.
    """
    workers = spec.workers or count_cores()
    if spec.on_dask:
        return _open_dask(spec, workers, requirements)
    if spec.engine == "threads" and workers > 1:
        return ThreadsEngine(workers)
    return SerialEngine()


def query_workers(spec: RunSpec, question: Callable[[], str]) -> set[str]:
    """Call a function on all workers of the scheduler of a run that may run its tasks.

    Parameters
    ----------
    spec : RunSpec
        Its ``scheduler`` and ``cluster`` are used.
    question : callable
        Function to call on each worker; picklable.

    Returns
    -------
    set of str
        The distinct results.

    Raises
    ------
    SpecError
        If Dask is not installed, or the scheduler cannot be reached.
    EngineError
        If it has no worker, or the function raises on one of them.
    """
    answers: set[str] = _import_dask().query_workers(spec.scheduler, question, spec.cluster)
    return answers


def _open_dask(spec: RunSpec, workers: int, requirements: WorkerRequirements) -> Engine:
    dask = _import_dask()
    engine: Engine
    if spec.scheduler:
        engine = dask.connect(spec.scheduler, requirements, spec.cluster)
    elif spec.cluster:
        engine = dask.start_cluster(spec.cluster, requirements)
    else:
        engine = dask.start_local(workers, requirements)
    return engine


def _import_dask() -> ModuleType:
    if importlib.util.find_spec("distributed") is None:
        raise SpecError("engine=dask needs Dask: install fcnpipe[dask], or use --engine threads")
    from fcnpipe.engines import dask

    return dask
