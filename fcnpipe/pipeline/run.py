"""Run the pipeline: from a run specification to a finished store.

The course of a run::

    segment / predict (here)
      open_session    session.py    check, plan, identify, open the store, start the engine
      run_stage       (here)        for each stage of workflow.py: hand its remaining tasks to the engine
        perform       tasks.py      on a worker: one function of stages/, then a mark in the ledger
      finish          (here)        rename the store to its final name

Steps communicate through the store alone, so a run can be killed at any moment: the next one reads from
the ledger which tasks are done, and runs the others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fcnpipe.core import errors
from fcnpipe.core.errors import TilesFailed
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline import recovery, tasks
from fcnpipe.pipeline.inputs import Command
from fcnpipe.pipeline.job import ALL, Job
from fcnpipe.pipeline.session import Adoption, Session, open_session
from fcnpipe.pipeline.workflow import ONCE, Stage, Step
from fcnpipe.reporting.observers import Observer, ObserverGroup, SilentObserver
from fcnpipe.science.wcs import describe_wcs_error
from fcnpipe.stores import Damage, ZarrStore, open_store, parquet_path


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a run that finds sources.

    Attributes
    ----------
    path : str
        The finished store.
    catalogue : str
        The catalogue as a parquet file next to the store.
    sources : int
        Number of sources.
    seconds : float
        Wall time of this call.
    resumed : bool
        Whether an earlier run was resumed, or its finished result found.
    no_sky : str
        Why there are no sky positions although the header has celestial axes; empty otherwise.
    """

    path: str
    catalogue: str
    sources: int
    seconds: float
    resumed: bool
    no_sky: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Result of a run that stores the outputs of a network as they are.

    Attributes
    ----------
    path : str
        The finished store.
    outputs : tuple of str
        Names of the network's outputs, which are arrays of ``image/0``.
    seconds : float
        Wall time of this call.
    resumed : bool
        Whether an earlier run was resumed, or its finished result found.
    """

    path: str
    outputs: tuple[str, ...]
    seconds: float
    resumed: bool


def segment(spec: RunSpec, observer: Observer | None = None) -> Result:
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    spec : RunSpec
        The run.
    observer : Observer, optional
        Receives the progress.

    Returns
    -------
    Result

    Raises
    ------
    FcnpipeError
        With a message of one line: the value, the limit and the fix. ``TilesFailed`` names the tiles
        that failed; all other tiles are stored.
    """
    start = time.perf_counter()
    resumed = _run_all(spec, "segment", observer)
    store, seconds = ZarrStore.open(spec.out), time.perf_counter() - start
    catalogue, no_sky = str(parquet_path(spec.out)), describe_wcs_error(store.cards)
    return Result(spec.out, catalogue, store.n_sources, seconds, resumed, no_sky)


def predict(spec: RunSpec, observer: Observer | None = None) -> Prediction:
    """Store the outputs of a network: restored images, components, probabilities.

    Parameters
    ----------
    spec : RunSpec
        The run; its options for sources are ignored.
    observer : Observer, optional
        Receives the progress.

    Returns
    -------
    Prediction

    Raises
    ------
    FcnpipeError
        As in `segment`.
    """
    start = time.perf_counter()
    resumed = _run_all(spec.without_sources(), "predict", observer)
    outputs = tuple(output.name for output in ZarrStore.open(spec.out).layout.maps)
    return Prediction(spec.out, outputs, time.perf_counter() - start, resumed)


def repair(out: str, observer: Observer | None = None, **options: Any) -> tuple[Damage, ...]:
    """Restore a damaged finished store, byte for byte, from its image and its undamaged parts.

    Parameters
    ----------
    out : str
        OUT.zarr.
    observer : Observer, optional
        Receives the progress.
    **options
        Run-time options as on the command line: ``engine``, ``workers``, ...

    Returns
    -------
    tuple of Damage
        The damage that was found and repaired.

    Raises
    ------
    FcnpipeError
        If the image or the model is missing or has changed.

    Notes
    -----
    The run starts again in OUT.zarr.partial with the maps of all undamaged tiles; the network runs on
    the damaged ones alone, and all later stages are computed again. OUT.zarr stays in place until it is
    replaced at the end.
    """
    old = open_store(out)
    damage = tuple(old.find_damage())
    if damage:
        spec, command = recovery.read_spec(old, options)
        _run_all(spec, command, observer, partial(recovery.adopt_predictions, old, damage))
    return damage


def _run_all(
    spec: RunSpec, command: Command, observer: Observer | None, adopt: Adoption | None = None
) -> bool:
    """Run all stages; return whether an earlier run was resumed, or its finished result found."""
    with open_session(spec, command, adopt) as session:
        if session is None:
            return True
        for stage in session.stages:
            run_stage(session, stage, observer or SilentObserver())
        finish(session)
        return session.resumed


def run_stage(session: Session, stage: Stage, observer: Observer) -> None:
    """Run the remaining tasks of one stage.

    Raises
    ------
    TilesFailed
        If a step on which all later ones depend failed for some tiles.
    FcnpipeError
        If an input turns out to be unusable.
    """
    start, job = time.perf_counter(), session.job
    remaining = {step: _list_remaining(job, step) for step in stage.steps}
    size = sum(tasks.count_pixels(job, step.task, names) for step, names in remaining.items())
    observers = ObserverGroup((session.recorder, observer))
    observers.start(stage.name, sum(map(len, remaining.values())), size)
    for step, names in remaining.items():
        _run_step(session, step, names, observers)
    observers.end(stage.name, time.perf_counter() - start)


def _list_remaining(job: Job, step: Step) -> list[str]:
    companion = tasks.list_remaining(job, step.companion, ONCE) if step.companion else []
    return [*companion, *tasks.list_remaining(job, step.task, step.names)]


def _run_step(session: Session, step: Step, names: list[str], observer: Observer) -> None:
    failed = []
    call = partial(tasks.perform_either, session.job, step.task, step.companion or step.task)
    for returned in session.engine.run(call, names):
        # The report on a task that was lost with its worker does not name the stage.
        report = replace(returned, stage=returned.stage or step.task)
        if _ends_the_run(report):
            session.recorder.report(report)
            raise getattr(errors, report.kind)(report.error)
        observer.report(report)
        if report.error:
            failed.append(report)
    if failed and step.task not in tasks.TOLERANT:
        raise TilesFailed([f"{r.name} ({r.stage}: {r.error})" for r in failed])


def _ends_the_run(report: TaskReport) -> bool:
    """Return whether the error of a task ends the whole run instead of leaving out one tile."""
    return report.kind in tasks.FATAL or (report.name == ALL and hasattr(errors, report.kind))


def finish(session: Session) -> None:
    """Rename the verified store to its final name.

    Raises
    ------
    TilesFailed
        If tiles failed: the store keeps its name OUT.zarr.partial and holds everything else.
    InputChanged
        If an input changed during the run; everything computed from it is reset.
    """
    job = session.job
    recovery.check_inputs(job)
    if not tasks.is_complete(job):
        failed = tasks.list_failures(job)
        job.store.close_incomplete(failed)
        raise TilesFailed(failed)
    session.recorder.complete(job.store.publish(job.spec.overwrite, checked=True))
