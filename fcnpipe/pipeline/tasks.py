"""The tasks that an engine may be asked for, each known by its name.

A task takes a job and a name, reads what it needs from the image and the store, writes what it
found to the store, vouches for it, and gives a small report. It can be run twice, or die half-way,
and nothing changes: what it writes is written whole, and is the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from fcnpipe.core import resource_usage
from fcnpipe.core.errors import ShardDamaged
from fcnpipe.core.geometry import Node, parse_tile_name
from fcnpipe.core.records import TaskReport
from fcnpipe.core.timeouts import call_with_timeout
from fcnpipe.pipeline.job import ALL, CRC, Job
from fcnpipe.pipeline.stages import measurement, prediction, publication, separation, sky
from fcnpipe.stores import ZarrStore
from fcnpipe.stores.pyramid import level_grid

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
SKY = ("weigh_bands", "measure_cells", "fit_sky")
"""Tasks before that."""
SMALL = ("fit_sky", "write_catalogue", "tabulate", "check_tile", "check_sums", "prepare_parquet")
"""Tasks that write no maps and take little time."""
WITH_MAPS = ("predict", "separate", "label")
"""Tasks that write maps, in their order."""
AFTER_PREDICT = (
    "separate", "join", "settle", "select", "label", "measure", "write_catalogue", "create_pyramid", "build_level",
    "check_tile", "check_sums", "prepare_parquet", "tabulate"
)  # fmt: skip
"""Tasks that are done again when a missing tile has come in."""
FATAL = frozenset({"StoreError", "ShardDamaged", "InputChanged"})
"""Errors that are not a tile's own: no other tile can be done either."""
TRACES = {
    "measure_cells": ("cells", "failed-measure_cells"),
    "predict": ("facts-predict", "failed-predict"),
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
        report = TaskReport(task, name, seconds, size, _explain(found), type(found).__name__)
    else:
        report = TaskReport(task, name, time.perf_counter() - begun, size, facts=facts)
    return replace(report, **asdict(resource_usage.measure_usage()))


def perform_either(job: Job, task: str, beside: str, name: str) -> TaskReport:
    """Do the one task for a tile or node, the other for all of them."""
    return perform(job, beside if name == ALL else task, name)


def _do_in_time(job: Job, task: str, name: str) -> dict[str, float]:
    limit = job.spec.tile_timeout
    if limit is None or name == ALL:
        return _do(job, task, name)
    return call_with_timeout(limit, partial(_do, job, task, name))


def _do(job: Job, task: str, name: str) -> dict[str, float]:
    begun = time.perf_counter()
    try:
        facts = TASKS[task](job, name)
    except ShardDamaged as error:
        if error.path:  # what is not there is made anew when the run is taken up
            error.path.unlink(missing_ok=True)
        raise
    job.check_inputs()
    _vouch(job, task, name, facts | {"seconds": time.perf_counter() - begun})
    return facts


def _go_without(job: Job, task: str, name: str, error: Exception) -> Exception:
    """Note why a tile is left out, where it can be; give the error, or one that came on top."""
    try:
        if task == "predict":
            prediction.leave_out(job, name)
        if task in TOLERANT:
            job.store.put_arrays(f"failed-{task}", name, {"reason": np.asarray(_explain(error))})
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
    """Give the tiles that could not be done, with the reason; not those beside them."""
    failed: dict[str, str] = {}
    for task in ("predict", "measure_cells"):
        done = set(job.store.list_arrays(f"facts-{task}"))
        pending = (tile.name for tile in job.store.pending(LEDGER[task]))
        failed |= {name: _reason(job, task, name) for name in pending if name not in done}
    return [f"{name} ({reason})" for name, reason in sorted(failed.items())]


def is_whole(job: Job) -> bool:
    """Whether every tile has been predicted, with all its neighbours."""
    return not job.store.pending("background") and not job.store.pending("predict")


def _reason(job: Job, task: str, name: str) -> str:
    if not job.store.has_arrays(f"failed-{task}", name):
        return "lost with its worker"
    return str(job.store.get_arrays(f"failed-{task}", name)["reason"])


def list_with_maps(job: Job) -> list[str]:
    """Give the tasks of a run that write maps, in their order."""
    return [task for task in WITH_MAPS if LEDGER[task] in job.store.layout.stages]


def adopt_prediction(job: Job, old: ZarrStore, name: str, maps: Iterable[str]) -> None:
    """Take over what another store of this run has of a tile, and vouch for it."""
    tile = job.tile(name)
    facts = {CRC + what: float(job.store.adopt_tile(old, what, tile)) for what in maps}
    _vouch(job, "predict", name, {"seconds": 0.0, **facts})


def list_damaged(job: Job, task: str) -> list[str]:
    """Give the tiles for which a task is done, and its maps are not there or not whole."""
    done = job.store.done(LEDGER[task])
    names = (tile.name for tile in job.plan.tiles if done[tile.row, tile.column])
    return [name for name in names if not _has_landed(job, task, name)]


def _has_landed(job: Job, task: str, name: str) -> bool:
    core, written = job.tile(name).core, job.read_checksums(task, name)
    if _was_spoilt(job, name):
        found = {what: job.store.checksum(what, core) for what in written}
        return bool(written) and found == written
    return bool(written) and all(
        job.store.is_whole(what, core, checksum) for what, checksum in written.items()
    )


def _was_spoilt(job: Job, name: str) -> bool:
    """Whether the last check found something wrong with a tile, maps that are not what was written."""
    if not job.store.has_arrays("checks", name):
        return False
    return job.store.get_arrays("checks", name)["problems"].size > 0


def is_built(job: Job, node: Node) -> bool:
    """Whether the maps of a tile of the pyramid are whole, if it is said to be done."""
    if not job.store.has_arrays("done-build_level", node.name):
        return True
    tile = level_grid(job.store.layout, node.level).tile(node.row, node.column)
    facts = job.store.get_arrays("done-build_level", node.name)
    return all(
        job.store.is_whole(name, tile.core, int(facts[CRC + name]), node.level)
        for name in job.store.list_maps(node.level)
        if CRC + name in facts
    )


def list_followers(task: str) -> tuple[str, ...]:
    """Give the tasks that are done after one, and on what it gives."""
    chain = ("predict", *AFTER_PREDICT)
    return chain[chain.index(task) + 1 :]


def drop_broken_records(job: Job) -> bool:
    """Remove scratch records that were not written to their end; give whether there were any."""
    broken = job.store.drop_broken_arrays()
    forget_tiles(job, "predict", [name for stage, name in broken if stage == "facts-predict"])
    return bool(broken)


def forget_tiles(job: Job, task: str, names: Iterable[str]) -> None:
    """Undo a task for some tiles."""
    for name in names:
        job.store.unmark_tile(LEDGER[task], job.tile(name))


def forget(job: Job, task: str) -> None:
    """Undo a task: it is done again, and leaves no trace of what it was done on before."""
    if task in LEDGER:
        job.store.unmark(LEDGER[task])
    for stage in (f"done-{task}", *TRACES.get(task, ())):
        job.store.drop_arrays(stage)


def _vouch(job: Job, task: str, name: str, facts: dict[str, float]) -> None:
    arrays = {k: np.asarray(v) for k, v in facts.items()}
    if task not in LEDGER:
        job.store.put_arrays(f"done-{task}", name, arrays)
        return
    job.store.put_arrays(f"facts-{task}", name, arrays)
    if not facts.get("gaps"):
        job.store.mark(LEDGER[task], job.tile(name))


def _explain(error: Exception) -> str:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return reason if isinstance(error, OSError) else f"{type(error).__name__}: {reason}"
