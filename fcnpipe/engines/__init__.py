"""Engines: where the tiles run. Serial, threads of this process, or Dask."""

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
    """Give the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_engine(spec: RunSpec, requirements: WorkerRequirements) -> Engine:
    """Start the engine that the spec names.

    Parameters
    ----------
    spec : RunSpec
        Its ``engine``, ``workers``, ``scheduler`` and ``cluster`` count.
    requirements : WorkerRequirements
        What worker processes must have.

    Raises
    ------
    SpecError
        If Dask is asked for and not installed, or the cluster cannot be reached or started.
    EngineError
        If it has no worker, or none that can do the tasks.
    """
    workers = spec.workers or count_cores()
    if spec.on_dask:
        return _open_dask(spec, workers, requirements)
    if spec.engine == "threads" and workers > 1:
        return ThreadsEngine(workers)
    return SerialEngine()


def query_workers(spec: RunSpec, question: Callable[[], str]) -> set[str]:
    """Put a question to the workers of the spec's scheduler, and give their different answers.

    Parameters
    ----------
    spec : RunSpec
        Its ``scheduler`` and ``cluster`` count.
    question : callable
        What can be sent to a worker.

    Raises
    ------
    SpecError
        If Dask is not installed, or the scheduler cannot be reached.
    EngineError
        If it has no worker, or one that cannot answer.
    """
    answers: set[str] = _dask().query_workers(spec.scheduler, question, spec.cluster)
    return answers


def _open_dask(spec: RunSpec, workers: int, requirements: WorkerRequirements) -> Engine:
    dask = _dask()
    engine: Engine
    if spec.scheduler:
        engine = dask.connect(spec.scheduler, requirements, spec.cluster)
    elif spec.cluster:
        engine = dask.start_cluster(spec.cluster, requirements)
    else:
        engine = dask.start_local(workers, requirements)
    return engine


def _dask() -> ModuleType:
    if importlib.util.find_spec("distributed") is None:
        raise SpecError("engine=dask needs Dask: install fcnpipe[dask], or use --engine threads")
    from fcnpipe.engines import dask

    return dask
