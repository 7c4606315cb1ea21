"""The tasks that an engine runs, by name, and the ledger of the tasks that are done.

A task takes a job and a name, reads its input from the image and the store, writes its result to the
store, marks itself as done and returns a small report. It can run twice or be killed half-way without
harm: a result is written whole or not at all, and is the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from fcnpipe.core import resource_usage
from fcnpipe.core.errors import ShardDamaged
from fcnpipe.core.geometry import parse_tile_name
from fcnpipe.core.records import TaskReport
from fcnpipe.core.timeouts import call_with_timeout
from fcnpipe.pipeline.job import ALL, Job
from fcnpipe.pipeline.stages import measurement, prediction, publication, separation, sky

Task = Callable[[Job, str], dict[str, float]]

TASKS: dict[str, Task] = {
    task.__name__: task
    for task in (
        sky.weigh_bands,
        sky.measure_cells,
        sky.fit_sky,
        prediction.predict,
        separation.separate,
        separation.join,
        separation.settle,
        separation.select,
        measurement.label,
        measurement.measure,
        publication.write_catalogue,
        publication.create_pyramid,
        publication.build_level,
        publication.check_tile,
        publication.check_sums,
        publication.prepare_parquet,
        publication.tabulate,
    )
}
"""All tasks by name."""
LEDGER = {
    "measure_cells": "background",
    "predict": "predict",
    "separate": "separate",
    "label": "label",
    "measure": "measure",
}
"""Tasks that run once per tile, and the stage under which the ledger records them."""
TOLERANT = frozenset({"measure_cells", "predict"})
"""Tasks that may fail for some tiles while the rest of the image is finished."""
FATAL = frozenset({"StoreError", "ShardDamaged", "InputChanged"})
"""Names of errors that end the run, because no other tile can succeed either."""


def perform(job: Job, task: str, name: str) -> TaskReport:
    """Run one task; an error is reported and not raised.

    Parameters
    ----------
    job : Job
        The run.
    task : str
        A key of ``TASKS``.
    name : str
        Tile, node or ``"all"``.

    Returns
    -------
    TaskReport
        With the reason in ``error`` if the task failed.
    """
    start, size = time.perf_counter(), count_pixels(job, task, (name,))
    try:
        facts = _run_in_time(job, task, name)
    except Exception as error:  # a failed tile must not stop the others
        seconds, reason = time.perf_counter() - start, _record_failure(job, task, name, error)
        report = TaskReport(task, name, seconds, size, _explain(reason), type(reason).__name__)
    else:
        report = TaskReport(task, name, time.perf_counter() - start, size, facts=facts)
    return replace(report, **asdict(resource_usage.measure_usage()))


def perform_either(job: Job, task: str, companion: str, name: str) -> TaskReport:
    """Run ``task`` for a tile or node, or ``companion`` if the name is that of the whole image."""
    return perform(job, companion if name == ALL else task, name)


def _run_in_time(job: Job, task: str, name: str) -> dict[str, float]:
    limit = job.spec.tile_timeout
    if limit is None or name == ALL:
        return _run(job, task, name)
    return call_with_timeout(limit, partial(_run, job, task, name))


def _run(job: Job, task: str, name: str) -> dict[str, float]:
    start = time.perf_counter()
    try:
        facts = TASKS[task](job, name)
    except ShardDamaged as error:
        if error.path:  # a missing shard is written again when the run is resumed
            error.path.unlink(missing_ok=True)
        raise
    job.check_inputs()
    mark_done(job, task, name, facts | {"seconds": time.perf_counter() - start})
    return facts


def _record_failure(job: Job, task: str, name: str, error: Exception) -> Exception:
    """Store the reason why a tile is left out, if the run can go on; return the error, or that of storing it."""
    try:
        if task == "predict":
            prediction.leave_out(job, name)
        if task in TOLERANT:
            job.store.put_arrays(f"failed-{task}", name, {"reason": np.asarray(_explain(error))})
    except Exception as storing_error:
        return storing_error
    return error


def _explain(error: Exception) -> str:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return reason if isinstance(error, OSError) else f"{type(error).__name__}: {reason}"


# --- the ledger ---


def mark_done(job: Job, task: str, name: str, facts: dict[str, float]) -> None:
    """Record a task as done; a task does this last.

    Notes
    -----
    The facts of a tile with gaps (an unreadable neighbour) are stored, but the tile is not marked: its
    maps are provisional.
    """
    arrays = {k: np.asarray(v) for k, v in facts.items()}
    if task not in LEDGER:
        job.store.put_arrays(f"done-{task}", name, arrays)
        return
    job.store.put_arrays(f"facts-{task}", name, arrays)
    if not facts.get("gaps"):
        job.store.mark(LEDGER[task], job.tile(name))


def list_remaining(job: Job, task: str, names: Iterable[str]) -> list[str]:
    """Return the names for which a task is not marked as done."""
    if task in LEDGER:
        marks = job.store.done(LEDGER[task])
        return [name for name in names if not marks[parse_tile_name(name)]]
    done = set(job.store.list_arrays(f"done-{task}"))
    return [name for name in names if name not in done]


def count_pixels(job: Job, task: str, names: Iterable[str]) -> int:
    """Return the number of pixels in the cores of some tiles; 0 for tasks that do not run per tile."""
    return sum(job.tile(name).core.size for name in names) if task in LEDGER else 0


def is_complete(job: Job) -> bool:
    """Return whether every tile has been predicted, with all its neighbours."""
    return not job.store.pending("background") and not job.store.pending("predict")


def list_failures(job: Job) -> list[str]:
    """Return the tiles that failed, with the reason; their neighbours are not included."""
    failed: dict[str, str] = {}
    for task in ("predict", "measure_cells"):
        done = set(job.store.list_arrays(f"facts-{task}"))
        pending = (tile.name for tile in job.store.pending(LEDGER[task]))
        failed |= {name: _read_reason(job, task, name) for name in pending if name not in done}
    return [f"{name} ({reason})" for name, reason in sorted(failed.items())]


def _read_reason(job: Job, task: str, name: str) -> str:
    if not job.store.has_arrays(f"failed-{task}", name):
        return "lost with its worker"
    return str(job.store.get_arrays(f"failed-{task}", name)["reason"])
