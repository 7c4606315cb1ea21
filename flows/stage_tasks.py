"""A run of :mod:`fcnpipe.pipeline.run` as Prefect tasks, one for each stage, and what is told of it."""

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
from flows.artifacts import Account, StageArtifact


class Patience(BaseModel):
    """How often, and for how long, a stage is tried, and what a run waits for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: int = Field(1, ge=0, description="Times that a stage is tried again.")
    retry_delay_seconds: float = Field(10.0, ge=0, description="Pause before it is tried again.")
    timeout_seconds: float | None = Field(None, gt=0, description="Longest time for a stage.")
    limit: str | None = Field(
        None,
        description="Concurrency limit of Prefect; a run holds one of its slots while it works.",
    )


def name_run() -> str:
    """Give a flow run the name of its image."""
    spec = flow_run.parameters["spec"]
    image = spec["image"] if isinstance(spec, Mapping) else spec.image
    return Path(image if isinstance(image, str) else image[0]).stem


def carry_out(spec: RunSpec, command: Command, patience: Patience) -> dict[str, Any]:
    """Run all stages, each as a task, and tell of it in artifacts.

    Returns
    -------
    dict
        What the run gave; see `Account.facts`.

    Raises
    ------
    FcnpipeError
        As :func:`fcnpipe.run.segment`.
    """
    account = Account(spec)
    try:
        with slot(patience.limit), remote_output.delivered(spec, command) as local:
            if local is not None:
                _carry_out(local, command, patience, account)
        account.finish()
    except TilesFailed as error:
        account.failed = error.names
        raise
    finally:
        account.publish()
    return account.facts


def _carry_out(spec: RunSpec, command: Command, patience: Patience, account: Account) -> None:
    with run.open_session(spec, command, host_bytes=host_bytes()) as session:
        if session is None:
            return
        account.begin(session.job.plan)
        for stage in session.stages:
            call = _stage_call(session, stage, account, patience.retries)
            perform(stage.name, call, patience)
        perform("finish", lambda: run.finish(session), patience)


@contextmanager
def slot(limit: str | None) -> Iterator[None]:
    """Wait for a slot of a concurrency limit of Prefect, and hold it; without a limit, go on.

    Raises
    ------
    SpecError
        If there is no such limit: Prefect would let any number of runs pass.
    """
    with ExitStack() as held:
        if limit is not None:
            # A server that is away for a while is no reason to give up what works.
            taken = concurrency(limit, strict=True, raise_on_lease_renewal_failure=False)
            try:
                held.enter_context(taken)
            except ConcurrencySlotAcquisitionError:
                raise SpecError(
                    f"Prefect has no concurrency limit {limit!r}: make it with "
                    f"'prefect gcl create {limit} --limit 1', or leave patience.limit out"
                ) from None
        yield


def host_bytes() -> int:
    """Give what Prefect takes in this process, its server with it if that was imported."""
    return FLOW_BYTES + SERVER_BYTES * ("prefect.server.api.server" in sys.modules)


def perform(name: str, call: Callable[[], Any], patience: Patience) -> None:
    """Run a stage as a Prefect task in this process.

    Notes
    -----
    The task takes no parameters, so Prefect has nothing to copy, hash or store.
    """
    made: Task[[], Any] = task(
        call,
        name=name,
        task_run_name=name,
        retries=patience.retries,
        retry_delay_seconds=patience.retry_delay_seconds,
        retry_condition_fn=may_help,
        timeout_seconds=patience.timeout_seconds,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    made()


def may_help(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: not where what was given is wrong."""
    try:
        state.result()
    except TilesFailed:
        return True
    except FcnpipeError:
        return False
    except Exception:
        return True
    return False


def _stage_call(
    session: run.Session, stage: run.Stage, account: Account, retries: int
) -> Callable[[], Any]:
    def call() -> State[None]:
        """Run what is left of a stage; failed tiles are tried again before the run goes on."""
        artifact = StageArtifact()
        run.run_stage(session, stage, artifact)
        if artifact.failed and task_run.run_count <= retries:
            raise TilesFailed(artifact.failed)
        account.stages.append(artifact.tally.summary(artifact.tally.seconds))
        return Completed(message=_say(artifact))

    return call


def _say(artifact: StageArtifact) -> str | None:
    """Give the message of a stage that went on without some tiles."""
    if not artifact.failed:
        return None
    return (
        f"{len(artifact.failed)} of {artifact.tally.tasks} failed: {'; '.join(artifact.failed[:5])}"
    )
