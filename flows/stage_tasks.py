"""The stages of a run as Prefect tasks, with retries, time limits and concurrency limits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run, task_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from fcnpipe.core.errors import FcnpipeError, SpecError, TilesFailed
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline import remote_output, run
from fcnpipe.pipeline.memory import FLOW_BYTES, SERVER_BYTES
from fcnpipe.pipeline.plan import Command
from flows.artifacts import RunSummary, StageArtifact


class Patience(BaseModel):
    """Retries and time limit of the stages of a run, and its concurrency limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: int = Field(1, ge=0, description="Number of retries of a failed stage.")
    retry_delay_seconds: float = Field(10.0, ge=0, description="Pause in seconds before a retry.")
    timeout_seconds: float | None = Field(
        None, gt=0, description="Time limit of a stage in seconds; none by default."
    )
    limit: str | None = Field(
        None,
        description="Name of a Prefect concurrency limit; the run occupies one of its slots.",
    )


def name_run() -> str:
    """Return the name of the flow run: the name of the image, without its suffix."""
    spec = flow_run.parameters["spec"]
    image = spec["image"] if isinstance(spec, Mapping) else spec.image
    return Path(image if isinstance(image, str) else image[0]).stem


def run_stages(spec: RunSpec, command: Command, patience: Patience) -> dict[str, Any]:
    """Run all stages of an image, each as a task, and create the artifacts of the run.

    Returns
    -------
    dict
        Result of the run; see `RunSummary.result`.

    Raises
    ------
    FcnpipeError
        For the reasons of :func:`fcnpipe.segment`.
    """
    summary = RunSummary(spec)
    try:
        with hold_slot(patience.limit), remote_output.local_output(spec, command) as local:
            if local is not None:
                _run_stages(local, command, patience, summary)
        summary.read_result()
    except TilesFailed as error:
        summary.failed = error.names
        raise
    finally:
        summary.publish()
    return summary.result


def _run_stages(spec: RunSpec, command: Command, patience: Patience, summary: RunSummary) -> None:
    with run.open_session(spec, command, host_bytes=host_bytes()) as session:
        if session is None:
            return
        summary.set_plan(session.job.plan)
        for stage in session.stages:
            call = _make_call(session, stage, summary, patience.retries)
            run_as_task(stage.name, call, patience)
        run_as_task("finish", lambda: run.finish(session), patience)


@contextmanager
def hold_slot(limit: str | None) -> Iterator[None]:
    """Wait for a slot of a Prefect concurrency limit and hold it; without a limit, do nothing.

    Raises
    ------
    SpecError
        If Prefect has no limit of this name, and so would not limit the runs.
    """
    with ExitStack() as held:
        if limit is not None:
            # A server that is unavailable for a while must not end a healthy run.
            slot = concurrency(limit, strict=True, raise_on_lease_renewal_failure=False)
            try:
                held.enter_context(slot)
            except ConcurrencySlotAcquisitionError:
                raise SpecError(
                    f"Prefect has no concurrency limit {limit!r}: create it with "
                    f"'prefect gcl create {limit} --limit 1', or leave patience.limit out"
                ) from None
        yield


def host_bytes() -> int:
    """Return the memory in bytes of Prefect in this process, including its server if that was imported."""
    return FLOW_BYTES + SERVER_BYTES * ("prefect.server.api.server" in sys.modules)


def run_as_task(name: str, call: Callable[[], Any], patience: Patience) -> None:
    """Run a stage as a Prefect task in this process.

    Notes
    -----
    The task has no parameters, so that Prefect has nothing to copy, hash or store.
    """
    stage_task: Task[[], Any] = task(
        call,
        name=name,
        task_run_name=name,
        retries=patience.retries,
        retry_delay_seconds=patience.retry_delay_seconds,
        retry_condition_fn=may_succeed,
        timeout_seconds=patience.timeout_seconds,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    stage_task()


def may_succeed(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry may succeed, which is not the case if an option or an input is wrong."""
    try:
        state.result()
    except TilesFailed:
        return True
    except FcnpipeError:
        return False
    except Exception:
        return True
    return False


def _make_call(
    session: run.Session, stage: run.Stage, summary: RunSummary, retries: int
) -> Callable[[], Any]:
    def call() -> State[None]:
        """Run the remaining tasks of a stage; its failed tiles are retried before the next stage."""
        artifact = StageArtifact()
        run.run_stage(session, stage, artifact)
        if artifact.failed and task_run.run_count <= retries:
            raise TilesFailed(artifact.failed)
        summary.stages.append(artifact.tally.summary(artifact.tally.seconds))
        return Completed(message=_describe_failures(artifact))

    return call


def _describe_failures(artifact: StageArtifact) -> str | None:
    """Return the message of a completed stage, which names failed tiles; None if there are none."""
    if not artifact.failed:
        return None
    return (
        f"{len(artifact.failed)} of {artifact.tally.tasks} failed: {'; '.join(artifact.failed[:5])}"
    )
