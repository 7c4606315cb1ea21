"""One image through the pipeline as a Prefect flow.

::

    background  predict  separate  merge  select  label  measure  publish  finish
    '-------------- one task run each, whatever the size of the image --------------'

Prefect schedules, retries and records stages; the tiles run on the engine that the spec names. What
is done is known from the store's ledger, never from Prefect's cache: a retry, or the same flow
started again, does what is left.

Run it by hand, with or without a server::

    python -m flows.segment field.fits field.zarr --engine dask --workers 8
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import State, Task, flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from fcnpipe import run
from fcnpipe.cli import run_command
from fcnpipe.errors import FcnpipeError, TilesFailed
from fcnpipe.options import complete_spec, with_run_options
from fcnpipe.progress import Tally, describe_failure
from fcnpipe.records import TaskReport
from fcnpipe.spec import RunSpec
from fcnpipe.stores import ZarrStore, parquet_path

UPDATE_EVERY_SECONDS = 2.0
"""Least time between two updates of a progress artifact: each is a call to the server."""


class Patience(BaseModel):
    """How often, and for how long, a stage is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: int = Field(1, ge=0, description="Times that a stage is tried again.")
    retry_delay_seconds: float = Field(10.0, ge=0, description="Pause before it is tried again.")
    timeout_seconds: float | None = Field(None, gt=0, description="Longest time for a stage.")


class StageArtifact:
    """Shows one stage as a progress artifact and logs the tiles that fail.

    It is an observer of :mod:`fcnpipe.run`. ``failed`` holds one line for each task that failed.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.tally = Tally("", 0, 0)
        self._artifact: Any = None
        self._updated = 0.0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Create the artifact."""
        self.tally = Tally(stage, tasks, pixels)
        self._artifact = create_progress_artifact(
            0.0, key=f"stage-{stage}", description=f"{stage}: {tasks} tasks, {pixels} px"
        )

    def report(self, report: TaskReport) -> None:
        """Count a task, and now and then tell the server."""
        self.tally.add(report)
        if report.error:
            self.failed.append(f"{report.name} ({report.stage}: {report.error})")
            get_run_logger().warning(describe_failure(report))
        if time.monotonic() - self._updated >= UPDATE_EVERY_SECONDS:
            self._update(100.0 * self.tally.done / max(self.tally.tasks, 1))

    def end(self, stage: str, seconds: float) -> None:
        """Complete the artifact and log the stage's summary."""
        self._update(100.0)
        get_run_logger().info(self.tally.summary(seconds))

    def _update(self, percent: float) -> None:
        self._updated = time.monotonic()
        update_progress_artifact(self._artifact, min(percent, 100.0))


def name_run() -> str:
    """Give a flow run the name of its image."""
    spec = flow_run.parameters["spec"]
    image = spec["image"] if isinstance(spec, Mapping) else spec.image
    return Path(image if isinstance(image, str) else image[0]).stem


@flow(name="segment", flow_run_name=name_run, retries=0, persist_result=False)
def segment(spec: RunSpec, patience: Patience = Patience()) -> dict[str, Any]:  # noqa: B008  frozen
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    spec : RunSpec
        The run: image, output and options, as on the command line.
    patience : Patience
        Retries and time limit of a stage.

    Returns
    -------
    dict
        What the run gave: ``path``, ``catalogue``, ``sources``, ...

    Raises
    ------
    TilesFailed
        If tiles have failed; the run is then Failed, its message names them, and the same flow
        again re-does only these.
    FcnpipeError
        If what was given is wrong; no stage is then tried twice.
    """
    account = Account(spec)
    try:
        with run.open_session(spec) as session:
            if session is not None:
                account.tiles = len(session.job.plan.tiles)
                for stage in session.stages:
                    call = _stage_call(session, stage, account, patience.retries)
                    perform(stage.name, call, patience)
                perform("finish", lambda: run.finish(session), patience)
        account.finish()
    except TilesFailed as error:
        account.failed = error.names
        raise
    finally:
        create_markdown_artifact(account.markdown(), key="result", description=spec.out)
    return account.facts


@dataclass
class Account:
    """What is told at the end of a flow run."""

    spec: RunSpec
    tiles: int = 0
    stages: list[str] = field(default_factory=list)
    failed: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def finish(self) -> None:
        """Take down what the finished store holds."""
        store = ZarrStore.open(self.spec.out)
        self.tiles = len(store.layout.grid)
        self.facts = {
            "path": self.spec.out,
            "catalogue": str(parquet_path(self.spec.out)),
            "sources": store.n_sources,
            "tiles": self.tiles,
        }

    def markdown(self) -> str:
        """Give a table of sources, tiles and paths, the failed tiles, and a line for each stage."""
        facts: dict[str, Any] = {
            "path": f"{self.spec.out}.partial",
            "tiles": self.tiles,
            **self.facts,
        }
        facts |= {
            "failed tiles": len(self.failed),
            "seconds": f"{time.monotonic() - self.begun:.1f}",
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items()]
        names = [f"- {name}" for name in self.failed]
        return "\n".join(["| | |", "|---|---|", *rows, "", *names, "", "```", *self.stages, "```"])


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


# --- by hand --------------------------------------------------------------------------------------


@with_run_options
def start(
    options: dict[str, Any],
    retries: Annotated[int, typer.Option(min=0, help="Times that a stage is tried again.")] = 1,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a stage may take.")] = None,
) -> None:
    """Run the flow in this process, with the server of PREFECT_API_URL or a temporary one."""
    spec = complete_spec(options, "python -m flows.segment IMAGE... OUT.zarr")
    facts = segment(spec, Patience(retries=retries, timeout_seconds=timeout))
    if not spec.quiet:
        typer.echo(f"{facts['path']}: {facts['sources']} sources, catalogue {facts['catalogue']}")


def main() -> None:
    """Run the command and leave with the exit code of ``fcnpipe segment``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(start)
    sys.exit(run_command(lambda: app(prog_name="python -m flows.segment", standalone_mode=False)))


if __name__ == "__main__":
    main()
