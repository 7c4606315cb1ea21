"""Dask clusters that a run starts: any cluster class, from a description."""

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

# Distributed is annotated here and there only.
LocalCluster: Any = distributed.LocalCluster

DEMAND_KEYS = {"resources", "wait_seconds"}
CLUSTER_KEYS = {"cluster_class", "cluster_kwargs", "adapt_kwargs", *DEMAND_KEYS}
ADAPT_KEYS = {
    *("minimum", "maximum", "minimum_jobs", "maximum_jobs", "minimum_cores", "maximum_cores"),
    *("minimum_memory", "maximum_memory", "interval", "wait_count", "target_duration"),
}
"""What makes a cluster grow and shrink; Dask says nothing of a word that it does not know."""
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


@contextmanager
def limit_logging(description: Mapping[str, Any]) -> Iterator[None]:
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


def check_keys(description: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    if extra := set(description) - known:
        raise SpecError(f"cluster has unknown keys {sorted(extra)}; allowed are {sorted(known)}")
    return description


def make_cluster(description: Mapping[str, Any]) -> Any:
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
            f"cluster {name} cannot be started: {first_line(cause)}; check cluster_class and cluster_kwargs"
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
        raise SpecError(f"cluster cannot adapt: {first_line(error)}; check adapt_kwargs") from None


def restart_workers(cluster: Any) -> None:
    """Start all workers anew; a nanny whose worker dies as it begins has given up."""
    count = len(cluster.worker_spec)
    cluster.scale(0)
    cluster.scale(count)
