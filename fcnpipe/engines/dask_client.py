"""Connections to Dask schedulers: settings, connecting within a time limit, and lost schedulers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask
import distributed

from fcnpipe.core.errors import EngineError, SpecError, first_line
from fcnpipe.core.timeouts import call_with_timeout

# Distributed is annotated here and there only.
Client: Any = distributed.Client

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
CONNECT_SECONDS = 20.0
"""How long a scheduler may take to accept a connection."""
ANSWER_SECONDS = 30.0
"""How long it may take to answer, in all."""


def open_client(scheduler: str) -> Any:
    where = {"address": scheduler}
    if "://" not in scheduler and (Path(scheduler).is_file() or scheduler.endswith(".json")):
        if not Path(scheduler).is_file():
            raise SpecError(f"scheduler file {scheduler} is not there: check --scheduler")
        where = {"scheduler_file": scheduler}
    client = Client.__new__(Client)  # there, too, when it cannot be started
    start = partial(client.__init__, **where, set_as_default=False, timeout=CONNECT_SECONDS)
    try:
        # What accepts a connection and then says nothing, or speaks HTTP, is no scheduler; Dask
        # waits for its first word without limit, and takes any for a number of bytes to come.
        call_with_timeout(ANSWER_SECONDS, start)
        return client
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        _close_unstarted(client)
        mute = isinstance(error, TimeoutError | MemoryError)
        reason = "what listens there is none (a dashboard?)" if mute else first_line(error)
        raise SpecError(
            f"no Dask scheduler answers at {scheduler}: {reason}; check --scheduler"
        ) from None


def _close_unstarted(client: Any) -> None:
    """Close a client that has not started.

    Left to the garbage collector it closes itself wherever that comes by: within Dask's lock of its
    event loops, which a cluster takes as it starts, that is for ever.
    """
    with suppress(Exception):
        client.close(timeout=1)


@contextmanager
def open_stack(settings: Mapping[str, Any] | None = None) -> Iterator[ExitStack]:
    """Give a stack to close what is opened by, in Dask's settings; closed at once on an error."""
    with ExitStack() as opening:
        closing = opening.enter_context(ExitStack())
        # As long as the engine lives: an adaptive cluster makes workers, by these, at any time.
        closing.enter_context(dask.config.set({**SETTINGS, **(settings or {})}))
        yield closing
        opening.pop_all()


@contextmanager
def report_lost_scheduler(client: Any) -> Iterator[None]:
    """Turn what a client raises whose scheduler goes in the middle of a call into one clear line."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, CancelledError):
        raise lost_scheduler(client) from None


def lost_scheduler(client: Any) -> EngineError:
    # The client tries to reach it again, and would tell all about how that ends.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    return EngineError(
        f"the Dask scheduler at {scheduler_address(client)} is gone: start it again; "
        "the same command takes the run up again"
    )


def scheduler_address(client: Any) -> str:
    return str(getattr(client.scheduler, "address", None) or "its address")


def silence_workers(client: Any) -> None:
    if client.status == "running":
        with suppress(OSError, TimeoutError):
            client.run(_fall_silent, on_error="ignore")


def _fall_silent() -> None:
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
