"""Connections to Dask schedulers: Dask settings, time limits, and errors for a lost scheduler."""

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

# Distributed has incomplete type annotations.
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
"""Dask settings of a run.

A tile that kills its worker is tried on at most two workers and does not end the run. Tiles take seconds and
their workers use every core, so monitoring made for tasks of milliseconds (a profiler at 100 Hz, health checks
at 50 Hz) is slowed down or switched off. Dask's logs of the last thousand transitions and messages would account
for most of the growth of the driver's memory with the number of tiles, so they are shortened.
"""
CONNECT_SECONDS = 20.0
"""Time limit for a scheduler to accept a connection, s."""
ANSWER_SECONDS = 30.0
"""Time limit for the whole start of a client, s."""


def open_client(scheduler: str) -> Any:
    """Connect a client to a scheduler.

    Parameters
    ----------
    scheduler : str
        Its address, or the path of its scheduler file.

    Raises
    ------
    SpecError
        If there is no such file, or no scheduler answers in time.
    """
    where = {"address": scheduler}
    if "://" not in scheduler and (Path(scheduler).is_file() or scheduler.endswith(".json")):
        if not Path(scheduler).is_file():
            raise SpecError(f"scheduler file {scheduler} does not exist: check --scheduler")
        where = {"scheduler_file": scheduler}
    client = Client.__new__(Client)  # created here, so that it can be closed if it fails to start
    start = partial(client.__init__, **where, set_as_default=False, timeout=CONNECT_SECONDS)
    try:
        # A server that accepts the connection and sends nothing, or speaks HTTP, is not a scheduler. Dask waits
        # for its first message without limit, and reads any message as the number of bytes that follow.
        call_with_timeout(ANSWER_SECONDS, start)
        return client
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        _close_unstarted(client)
        foreign = isinstance(error, TimeoutError | MemoryError)
        reason = (
            "the server there is not a scheduler (a dashboard?)" if foreign else first_line(error)
        )
        raise SpecError(
            f"no Dask scheduler answers at {scheduler}: {reason}; check --scheduler"
        ) from None


def _close_unstarted(client: Any) -> None:
    """Close a client that has not started.

    The garbage collector would close it at any later time. If this happens within Dask's lock of its event
    loops, which a starting cluster takes, it blocks forever.
    """
    with suppress(Exception):
        client.close(timeout=1)


@contextmanager
def resource_stack(settings: Mapping[str, Any] | None = None) -> Iterator[ExitStack]:
    """Yield a stack for the resources of an engine, with the Dask settings of a run; close it on an error.

    Without an error the stack and the settings stay active, because an adaptive cluster may start workers as
    long as the engine lives.
    """
    with ExitStack() as on_error:
        closing = on_error.enter_context(ExitStack())
        closing.enter_context(dask.config.set({**SETTINGS, **(settings or {})}))
        yield closing
        on_error.pop_all()


@contextmanager
def report_lost_scheduler(client: Any) -> Iterator[None]:
    """Raise EngineError if the scheduler of a client is lost within the context."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, CancelledError):
        raise lost_scheduler_error(client) from None


def lost_scheduler_error(client: Any) -> EngineError:
    """Return the error for a client whose scheduler is lost, and silence the client.

    The client tries to reconnect, and would log each attempt.
    """
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    return EngineError(
        f"the Dask scheduler at {scheduler_address(client)} is gone: start it again; "
        "the same command resumes the run"
    )


def scheduler_address(client: Any) -> str:
    """Return the address of the scheduler of a client, for messages."""
    return str(getattr(client.scheduler, "address", None) or "its address")


def silence_workers(client: Any) -> None:
    """Set the loggers of all workers to critical messages, if the client is connected."""
    if client.status == "running":
        with suppress(OSError, TimeoutError):
            client.run(_silence_logger, on_error="ignore")


def _silence_logger() -> None:
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
