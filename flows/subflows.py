"""Several images at the same time, each as a subflow in a separate process.

An image that exhausts the memory or crashes a library then does not affect the others, its memory is
returned to the system, and it can be stopped. The processes are forked from one process that has imported
all modules, so each starts in 0.1 s instead of 5 s.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

import cloudpickle
from prefect import State
from prefect.client.orchestration import get_client
from prefect.context import hydrated_context, serialize_context
from prefect.settings import PREFECT_API_URL, temporary_settings

from fcnpipe.core.errors import FcnpipeError, TilesFailed, first_line
from fcnpipe.core.spec import RunSpec
from fcnpipe.engines import count_cores
from fcnpipe.pipeline import remote_output
from fcnpipe.pipeline.plan import Command
from fcnpipe.survey.image_list import SurveyImage
from fcnpipe.survey.result_table import SurveyRow
from flows.predict import predict
from flows.segment import segment
from flows.stage_tasks import Patience

FLOWS = {"segment": segment, "predict": predict}
GRACE_SECONDS = 20.0
"""Time between SIGTERM and SIGKILL; completed tiles are kept in either case."""

_FORK_SERVER = multiprocessing.get_context("forkserver")
_FORK_SERVER.set_forkserver_preload(["flows.subflows"])


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Options that all images share.

    Attributes
    ----------
    command : str
        ``segment`` or ``predict``.
    at_once : int
        Number of images processed at the same time.
    patience : Patience
        Retries and time limit of each stage, and the concurrency limit.
    since : str, optional
        Time (UTC) of the start of the batch. An image that was finished after it is not processed again,
        even with ``overwrite``.
    """

    command: Command = "segment"
    at_once: int = 1
    patience: Patience = field(default_factory=Patience)
    since: str | None = None


def run_subflows(entries: Sequence[SurveyImage], batch: BatchOptions) -> Iterator[SurveyRow]:
    """Run a subflow for each image, and yield a row for each as it ends, successful or not.

    Notes
    -----
    Closing the iterator early, also by an exception, stops the running subflows.
    """
    waiting, running = deque(entries), dict[Any, _RunningImage]()
    context = _dump_context()
    try:
        while waiting or running:
            while waiting and len(running) < batch.at_once:
                started = _start(waiting.popleft(), batch, context)
                running[started.receiver] = started
            for receiver in connection.wait(list(running)):
                yield running.pop(receiver).finish()
    finally:
        _stop(list(running.values()))


def divide_cores(spec: RunSpec, at_once: int) -> RunSpec:
    """Return a spec with its share of this machine's cores, unless it names workers or a cluster."""
    if at_once == 1 or spec.scheduler or spec.cluster or spec.workers:
        return spec
    return spec.model_copy(update={"workers": max(count_cores() // at_once, 1)})


# --- the flow's process ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RunningImage:
    """An image that is being processed."""

    entry: SurveyImage
    process: Any
    receiver: Any
    started: float

    def finish(self) -> SurveyRow:
        """Return the row that the process has sent, or a row that states how it ended without sending one."""
        try:
            row: SurveyRow | None = self.receiver.recv()
        except (EOFError, OSError):  # the process ended before or while it sent its row
            row = None
        self.receiver.close()
        # The process may not end by itself: a task that hangs stays in a thread that cannot be stopped.
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()
        if row is not None:
            return row
        seconds, reason = time.monotonic() - self.started, _describe_exit(self.process.exitcode)
        return SurveyRow(self.entry.name, self.entry.out, "failed", seconds=seconds, error=reason)


def _start(entry: SurveyImage, batch: BatchOptions, context: bytes) -> _RunningImage:
    receiver, sender = _FORK_SERVER.Pipe(duplex=False)
    process = _FORK_SERVER.Process(target=_process_image, args=(sender, entry, batch, context))
    process.start()
    sender.close()
    return _RunningImage(entry, process, receiver, time.monotonic())


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    hint = ", possibly because it ran out of memory" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"


def _stop(running: list[_RunningImage]) -> None:
    for one in running:
        one.process.terminate()
    end = time.monotonic() + GRACE_SECONDS
    for one in running:
        one.process.join(max(end - time.monotonic(), 0))
        one.process.kill()
        one.process.join()


def _dump_context() -> bytes:
    """Return the context that a process needs to run subflows of this flow run.

    Notes
    -----
    It contains the address of the server, which may be a temporary one of this process.
    """
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url.rstrip("/")}):
        dumped: bytes = cloudpickle.dumps(serialize_context())
    return dumped


# --- the image's process --------------------------------------------------------------------------


def _process_image(sender: Any, entry: SurveyImage, batch: BatchOptions, context: bytes) -> None:
    """Run the subflow of one image and send its row."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    started = time.monotonic()
    with hydrated_context(cloudpickle.loads(context)):
        try:
            outcome = _run_flow(entry, batch)
        except Exception as error:  # of this image alone, whatever it is
            outcome = _describe_error(error)
    sender.send(SurveyRow(entry.name, entry.out, seconds=time.monotonic() - started, **outcome))
    sender.close()


def _run_flow(entry: SurveyImage, batch: BatchOptions) -> dict[str, Any]:
    spec = _keep_finished(divide_cores(entry.spec, batch.at_once), batch)
    state: State[Any] = FLOWS[batch.command](spec, batch.patience, return_state=True)
    result = state.result(raise_on_failure=False)
    return (
        _describe_error(result) if isinstance(result, BaseException) else _describe_result(result)
    )


def _keep_finished(spec: RunSpec, batch: BatchOptions) -> RunSpec:
    """Return a spec without ``overwrite`` if its image was finished since the start of the batch."""
    wanted = spec.without_sources() if batch.command == "predict" else spec
    if not spec.overwrite or batch.since is None:
        return spec
    finished = remote_output.was_finished(wanted, batch.command, batch.since)
    return spec.model_copy(update={"overwrite": not finished})


def describe_failure(error: BaseException) -> str:
    """Return the reason of a failure in one line, with the type of an error that fcnpipe does not know."""
    reason = first_line(error)
    return reason if isinstance(error, FcnpipeError) else f"{type(error).__name__}: {reason}"


def _describe_error(error: BaseException) -> dict[str, Any]:
    failed = len(error.names) if isinstance(error, TilesFailed) else 0
    return {"status": "failed", "failed_tiles": failed, "error": describe_failure(error)}


def _describe_result(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "found" if result["found"] else "done",
        "tiles": result["tiles"],
        "sources": result.get("sources", -1),
        "catalogue": result.get("catalogue", ""),
    }


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
