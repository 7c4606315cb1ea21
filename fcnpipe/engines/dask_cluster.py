"""Dask clusters started for a run, of any cluster class, from a description with its arguments."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from multiprocessing import spawn
from typing import Any

import distributed

from fcnpipe.core.errors import SpecError, first_line

# Distributed has incomplete type annotations.
LocalCluster: Any = distributed.LocalCluster

SELECTION_KEYS = {"resources", "wait_seconds"}
"""Keys of a description with --scheduler, where the cluster is running already."""
CLUSTER_KEYS = {"cluster_class", "cluster_kwargs", "adapt_kwargs", *SELECTION_KEYS}
"""Keys of the description of a cluster to start."""
ADAPT_KEYS = {
    *("minimum", "maximum", "minimum_jobs", "maximum_jobs", "minimum_cores", "maximum_cores"),
    *("minimum_memory", "maximum_memory", "interval", "wait_count", "target_duration"),
}
"""Arguments of adaptive scaling; Dask ignores unknown ones without a message."""
WORKER_PROCESS = "Dask Worker process"
"""Start of the names of the processes that a nanny starts."""


class ScriptGuard:
    """Prevents new worker processes from importing the main script, until :meth:`close`.

    Notes
    -----
    A spawned process imports the script that started it. A script without ``if __name__ == "__main__":`` would
    therefore run a second time in a worker. The tasks of fcnpipe do not need it. Nannies are threads of this process
    and restart workers that die, so the guard must stay active as long as they live. Other processes are not
    affected.
    """

    def __init__(self) -> None:
        self._original, self._active = spawn.get_preparation_data, True
        spawn.get_preparation_data = self._prepare

    def _prepare(self, name: str) -> dict[str, Any]:
        data = self._original(name)
        if self._active and name.startswith(WORKER_PROCESS):
            data = {key: value for key, value in data.items() if not key.startswith("init_main")}
        return data

    def close(self) -> None:
        """Let new worker processes import the script again."""
        self._active = False
        if spawn.get_preparation_data == self._prepare:
            spawn.get_preparation_data = self._original


@contextmanager
def limit_logging(description: Mapping[str, Any]) -> Iterator[None]:
    """Limit Dask's loggers to warnings, or to the level ``silence_logs`` of the cluster, within the context.

    Notes
    -----
    Dask applies ``silence_logs`` to its own log handler only. It does not install this handler if Prefect or the
    user's program has set up logging before; their handlers would show the messages of scheduler and nannies.
    """
    level = (description.get("cluster_kwargs") or {}).get("silence_logs", logging.WARNING)
    logger = logging.getLogger("distributed")
    previous = logger.level
    logger.setLevel(level.upper() if isinstance(level, str) else level or previous)
    try:
        yield
    finally:
        logger.setLevel(previous)


def check_keys(description: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    """Return a cluster description if it has known keys only.

    Raises
    ------
    SpecError
        If it has other keys.
    """
    if extra := set(description) - known:
        raise SpecError(f"cluster has unknown keys {sorted(extra)}; allowed are {sorted(known)}")
    return description


def make_cluster(description: Mapping[str, Any]) -> Any:
    """Start the cluster of a description.

    Raises
    ------
    SpecError
        If the class cannot be imported or rejects its arguments, or the cluster cannot be started.
    """
    name = str(description.get("cluster_class", "distributed.LocalCluster"))
    module, _, attribute = name.rpartition(".")
    try:
        kind = (
            LocalCluster
            if name == "distributed.LocalCluster"
            else getattr(importlib.import_module(module), attribute)
        )
        if not (isinstance(kind, type) and hasattr(kind, "close")):
            raise TypeError(f"{attribute} is not a cluster class")
        options = description.get("cluster_kwargs") or {}
        if kind is LocalCluster:
            _check_local(options)
        cluster = kind(**options)
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError, OSError) as error:
        cause = error.__cause__ or error  # the error itself may be just "Nanny failed to start."
        raise SpecError(
            f"cluster {name} cannot be started: {first_line(cause)}; check cluster_class and cluster_kwargs"
        ) from None
    if description.get("adapt_kwargs"):
        _adapt(cluster, description["adapt_kwargs"])
    return cluster


def _check_local(options: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument unknown to all parts of a local cluster, which each worker would report."""
    parts = (LocalCluster, distributed.Nanny, distributed.Worker, distributed.core.Server)
    known = {name for part in parts for name in inspect.signature(part).parameters}
    unknown = set(options) - known
    if unknown and "worker_class" not in options:
        near = {word for name in unknown for word in get_close_matches(name, known, 1)}
        hint = f" (did you mean {', '.join(sorted(near))}?)" if near else ""
        raise TypeError(f"{', '.join(sorted(unknown))} is unknown{hint}")


def _adapt(cluster: Any, options: Mapping[str, Any]) -> None:
    try:
        if unknown := set(options) - ADAPT_KEYS:
            raise TypeError(f"unknown {sorted(unknown)}, known are {sorted(ADAPT_KEYS)}")
        cluster.adapt(**options)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        cluster.close()
        raise SpecError(f"cluster cannot adapt: {first_line(error)}; check adapt_kwargs") from None


def restart_workers(cluster: Any) -> None:
    """Start all workers of a local cluster again; a nanny gives up if its worker dies while it starts."""
    count = len(cluster.worker_spec)
    cluster.scale(0)
    cluster.scale(count)
