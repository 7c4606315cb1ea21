"""The tasks that an engine may be asked for, each known by its name.

A task takes a job and a name, reads what it needs from the image and the store, writes what it
found to the store, vouches for it, and gives a small report. It can be run twice, or die half-way,
and nothing changes: what it writes is written whole, and is the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from fcnpipe.deadline import call_within
from fcnpipe.geometry import parse_tile_name
from fcnpipe.job import ALL, Job
from fcnpipe.records import TaskReport
from fcnpipe.stages import measurement, prediction, publication, separation, sky

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
LEDGER = {
    "measure_cells": "background",
    "predict": "predict",
    "separate": "separate",
    "label": "label",
    "measure": "measure",
}
"""Tasks that are done tile by tile, and the stage under which the ledger keeps them."""
TOLERANT = frozenset({"measure_cells", "predict"})
"""Tasks without which, for some tiles, the rest of the image can still be finished."""
AFTER_PREDICT = (
    "separate", "join", "settle", "select", "label", "measure", "write_catalogue", "create_pyramid", "build_level",
    "check_tile", "check_sums", "prepare_parquet", "tabulate"
)  # fmt: skip
"""Tasks that are done again when a missing tile has come in."""
FATAL = frozenset({"StoreError", "InputChanged"})
"""Errors that are not a tile's own: no other tile can be done either."""
TRACES = {
    "measure_cells": ("cells",),
    "predict": ("facts-predict", "failed-predict", "checksum"),
    "separate": ("settlement", "graph"),
    "settle": ("verdicts",),
    "select": ("labels", "selection"),
    "label": ("sums",),
    "measure": ("rows",),
    "check_tile": ("checks",),
}
"""Scratch of a task that must go before it is done again on other input."""


def perform(job: Job, task: str, name: str) -> TaskReport:
    """Do one task; never raises.

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
        With the reason in ``error`` if it failed.
    """
    begun, size = time.perf_counter(), count_pixels(job, task, (name,))
    try:
        facts = _do_in_time(job, task, name)
    except Exception as error:  # one bad tile never takes the rest down
        seconds, found = time.perf_counter() - begun, _go_without(job, task, name, error)
        return TaskReport(task, name, seconds, size, _explain(found), type(found).__name__)
    return TaskReport(task, name, time.perf_counter() - begun, size, facts=facts)


def perform_either(job: Job, task: str, beside: str, name: str) -> TaskReport:
    """Do the one task for a tile or node, the other for all of them."""
    return perform(job, beside if name == ALL else task, name)


def _do_in_time(job: Job, task: str, name: str) -> dict[str, float]:
    limit = job.spec.tile_timeout
    if limit is None or name == ALL:
        return _do(job, task, name)
    return call_within(limit, partial(_do, job, task, name))


def _do(job: Job, task: str, name: str) -> dict[str, float]:
    begun = time.perf_counter()
    facts = TASKS[task](job, name)
    job.check_inputs()
    _vouch(job, task, name, facts | {"seconds": time.perf_counter() - begun})
    return facts


def _go_without(job: Job, task: str, name: str, error: Exception) -> Exception:
    """Leave a tile out that cannot be predicted; give the error, or one that came on top."""
    try:
        if task == "predict":
            prediction.leave_out(job, name, _explain(error))
    except Exception as worse:
        return worse
    return error


def remaining(job: Job, task: str, names: Iterable[str]) -> list[str]:
    """Give the names of a step that nobody has vouched for yet."""
    if task in LEDGER:
        marks = job.store.done(LEDGER[task])
        return [name for name in names if not marks[parse_tile_name(name)]]
    done = set(job.store.list_arrays(f"done-{task}"))
    return [name for name in names if name not in done]


def count_pixels(job: Job, task: str, names: Iterable[str]) -> int:
    """Give the pixels of the cores behind some names; 0 for tasks that are not done by tile."""
    return sum(job.tile(name).core.size for name in names) if task in LEDGER else 0


def list_failures(job: Job) -> list[str]:
    """Give the tiles that could not be predicted, with the reason; not those beside them."""
    done = set(job.store.list_arrays("facts-predict"))
    failed = [tile.name for tile in job.store.pending("predict") if tile.name not in done]
    return [f"{name} ({_reason(job, name)})" for name in failed]


def is_whole(job: Job) -> bool:
    """Whether every tile has been predicted, with all its neighbours."""
    return not job.store.pending("background") and not job.store.pending("predict")


def _reason(job: Job, name: str) -> str:
    if not job.store.has_arrays("failed-predict", name):
        return "lost with its worker"
    return str(job.store.get_arrays("failed-predict", name)["reason"])


def forget(job: Job, task: str) -> None:
    """Undo a task: it is done again, and leaves no trace of what it was done on before."""
    if task in LEDGER:
        job.store.unmark(LEDGER[task])
    for stage in (f"done-{task}", *TRACES.get(task, ())):
        job.store.drop_arrays(stage)


def _vouch(job: Job, task: str, name: str, facts: dict[str, float]) -> None:
    if task not in LEDGER:
        job.store.put_arrays(f"done-{task}", name, {})
        return
    job.store.put_arrays(f"facts-{task}", name, {k: np.asarray(v) for k, v in facts.items()})
    if not facts.get("gaps"):
        job.store.mark(LEDGER[task], job.tile(name))


def _explain(error: Exception) -> str:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return reason if isinstance(error, OSError) else f"{type(error).__name__}: {reason}"
