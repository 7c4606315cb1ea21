"""Many images, each a subflow in a process of its own, so many at a time.

A process for each image, because an image that takes the memory, or brings a library down, then
takes no other along; because what one has taken is given back; and because it can be stopped. They
are forked from one clean process that has everything imported: 0.1 s each instead of 5.
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

from fcnpipe.core.errors import FcnpipeError, TilesFailed
from fcnpipe.core.spec import RunSpec
from fcnpipe.engines import count_cores
from fcnpipe.pipeline import remote_output
from fcnpipe.pipeline.plan import Command
from fcnpipe.survey.image_list import SurveyImage, SurveyRow
from flows.predict import predict
from flows.segment import segment
from flows.stage_tasks import Patience

FLOWS = {"segment": segment, "predict": predict}
GRACE_SECONDS = 20.0
"""Between the request to stop and the end by force; whatever was done is kept either way."""

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["flows.subflows"])


@dataclass(frozen=True, slots=True)
class Order:
    """What is the same for all images.

    Attributes
    ----------
    command : str
        ``segment`` or ``predict``.
    at_once : int
        Images at the same time.
    patience : Patience
        Retries and time limit of a stage.
    since : str, optional
        What the same run has finished since then (UTC) is not begun again, even with ``overwrite``.
    """

    command: Command = "segment"
    at_once: int = 1
    patience: Patience = field(default_factory=Patience)
    since: str | None = None


def run_each(entries: Sequence[SurveyImage], order: Order) -> Iterator[SurveyRow]:
    """Run a subflow for each image; give a row for each as it ends, whatever its end.

    Notes
    -----
    Leaving the iterator early, by an exception too, stops what is running.
    """
    waiting, running = deque(entries), dict[Any, _Running]()
    context = _dump_context()
    try:
        while waiting or running:
            while waiting and len(running) < order.at_once:
                begun = _start(waiting.popleft(), order, context)
                running[begun.receiver] = begun
            for receiver in connection.wait(list(running)):
                yield running.pop(receiver).finish()
    finally:
        _stop(list(running.values()))


def share_machine(spec: RunSpec, at_once: int) -> RunSpec:
    """Give a spec its part of this machine's cores, if it runs here and does not say itself."""
    if at_once == 1 or spec.scheduler or spec.cluster or spec.workers:
        return spec
    return spec.model_copy(update={"workers": max(count_cores() // at_once, 1)})


# --- this side ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Running:
    """An image at work."""

    entry: SurveyImage
    process: Any
    receiver: Any
    begun: float

    def finish(self) -> SurveyRow:
        """Take what the process says; if it died without a word, say how."""
        try:
            row: SurveyRow | None = self.receiver.recv()
        except EOFError:
            row = None
        self.receiver.close()
        # It may not end by itself: a tile that hangs is abandoned in a thread that nothing stops.
        self.process.join(GRACE_SECONDS)
        self.process.kill()
        self.process.join()
        return row or self._lost(_say_end(self.process.exitcode))

    def _lost(self, reason: str) -> SurveyRow:
        seconds = time.monotonic() - self.begun
        return SurveyRow(self.entry.name, self.entry.out, "failed", seconds=seconds, error=reason)


def _start(entry: SurveyImage, order: Order, context: bytes) -> _Running:
    receiver, sender = _FORKING.Pipe(duplex=False)
    process = _FORKING.Process(target=_work, args=(sender, entry, order, context))
    process.start()
    sender.close()
    return _Running(entry, process, receiver, time.monotonic())


def _say_end(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    hint = "; out of memory?" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{hint}"


def _stop(running: list[_Running]) -> None:
    for one in running:
        one.process.terminate()
    end = time.monotonic() + GRACE_SECONDS
    for one in running:
        one.process.join(max(end - time.monotonic(), 0))
        one.process.kill()
        one.process.join()


def _dump_context() -> bytes:
    """Give what a process needs to run subflows of this flow run.

    Notes
    -----
    With the address of the server, which may be a temporary one that only this process knows.
    """
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url.rstrip("/")}):
        dumped: bytes = cloudpickle.dumps(serialize_context())
    return dumped


# --- the other side -------------------------------------------------------------------------------


def _work(sender: Any, entry: SurveyImage, order: Order, context: bytes) -> None:
    """Run the subflow of one image and send its row."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begun = time.monotonic()
    with hydrated_context(cloudpickle.loads(context)):
        facts = _run_flow(entry, order)
    sender.send(SurveyRow(entry.name, entry.out, seconds=time.monotonic() - begun, **facts))
    sender.close()


def _run_flow(entry: SurveyImage, order: Order) -> dict[str, Any]:
    try:
        spec = _keep_finished(share_machine(entry.spec, order.at_once), order)
    except FcnpipeError as error:
        return _explain(error)
    state: State[Any] = FLOWS[order.command](spec, order.patience, return_state=True)
    result = state.result(raise_on_failure=False)
    return _explain(result) if isinstance(result, BaseException) else _describe(result)


def _keep_finished(spec: RunSpec, order: Order) -> RunSpec:
    """Take ``overwrite`` from the spec of an image that has landed since the work was begun."""
    asked = spec.without_sources() if order.command == "predict" else spec
    if not spec.overwrite or order.since is None:
        return spec
    landed = remote_output.was_finished(asked, order.command, order.since)
    return spec.model_copy(update={"overwrite": not landed})


def _explain(error: BaseException) -> dict[str, Any]:
    failed = len(error.names) if isinstance(error, TilesFailed) else 0
    reason = (str(error) or type(error).__name__).splitlines()[0]
    known = isinstance(error, FcnpipeError)
    return {
        "status": "failed",
        "failed_tiles": failed,
        "error": reason if known else f"{type(error).__name__}: {reason}",
    }


def _describe(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "found" if facts["found"] else "done",
        "tiles": facts["tiles"],
        "sources": facts.get("sources", -1),
        "catalogue": facts.get("catalogue", ""),
    }


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
