"""Resuming and repairing: the results of an earlier run are checked, then kept or reset.

::

    resume    marks of the ledger whose files are missing or cut short are removed   check_resumed
    repair    intact maps of a damaged store are copied into a new one               adopt_predictions
    retry     tasks that were finished without the failed tiles are done again       reopen_incomplete

A task that is reset is done again, and so are all tasks that depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fcnpipe.core.errors import FcnpipeError, InputChanged, StoreError
from fcnpipe.core.geometry import Node
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.pipeline import tasks
from fcnpipe.pipeline.inputs import Command
from fcnpipe.pipeline.job import ALL, CRC, Job
from fcnpipe.pipeline.stages.publication import list_pyramid
from fcnpipe.pipeline.workflow import list_stages
from fcnpipe.stores import Damage, ZarrStore
from fcnpipe.stores.pyramid import level_grid

SKY = ("weigh_bands", "measure_cells", "fit_sky")
"""Tasks before prediction."""
AFTER_PREDICT = (
    "separate", "join", "settle", "select", "label", "measure", "write_catalogue", "create_pyramid", "build_level",
    "check_tile", "check_sums", "prepare_parquet", "tabulate"
)  # fmt: skip
"""Tasks after prediction, in order; they are done again after a missing tile has been predicted."""
WITH_MAPS = ("predict", "separate", "label")
"""Tasks that write maps, in order."""
SMALL = ("fit_sky", "write_catalogue", "tabulate", "check_tile", "check_sums", "prepare_parquet")
"""Tasks that write no maps and take little time: a resume does them again without checking their results."""
SCRATCH_RECORDS = {
    "measure_cells": ("cells", "failed-measure_cells"),
    "predict": ("facts-predict", "failed-predict"),
    "separate": ("settlement", "graph"),
    "settle": ("verdicts",),
    "select": ("labels", "selection"),
    "label": ("sums",),
    "measure": ("rows",),
    "check_tile": ("checks",),
}
"""Scratch records of each task, which are deleted before the task is done again on other input."""
SCRATCH_FORMAT = 2
"""Version of the names and contents of scratch records; records of another version are computed again."""


def reconcile(job: Job, resumed: bool, adopt: Callable[[Job], None] | None = None) -> None:
    """Decide which tasks count as done after an earlier run, and reset the others.

    Parameters
    ----------
    job : Job
        The run.
    resumed : bool
        Whether the store was created by an earlier call.
    adopt : callable, optional
        Called with the job to copy the intact maps of another store.
    """
    if resumed:
        check_resumed(job)
    if adopt is not None:
        adopt(job)
    reopen_incomplete(job)
    job.store.put_arrays("format", ALL, {"version": np.asarray(SCRATCH_FORMAT)})


def check_resumed(job: Job) -> None:
    """Reset tasks that are marked as done but whose files are missing, for example after a power failure.

    Notes
    -----
    Maps are checked by file length only. Their contents are checked before the store is published. A
    resume always does that check again, like all `SMALL` tasks. Tiles in which it finds an error are
    done again by the next resume.
    """
    pyramid = job.store.has_arrays("done-create_pyramid", ALL)
    job.store.restore_metadata(job.image.info.cards, pyramid)
    if _drop_broken_records(job) or _read_scratch_format(job) != SCRATCH_FORMAT:
        reset(job, (*SKY, *AFTER_PREDICT))
    for task in (t for t in WITH_MAPS if tasks.LEDGER[t] in job.store.layout.stages):
        if damaged := _list_damaged(job, task):
            _reset_tiles(job, task, damaged)
            reset(job, _list_dependents(task))
    if not all(_is_built(job, node) for nodes in list_pyramid(job) for node in nodes):
        reset(job, _list_dependents("measure"))
    reset(job, SMALL)


def reopen_incomplete(job: Job) -> None:
    """Reset the tasks that were finished without the failed tiles, so that they are done again with them."""
    if job.store.attrs["status"] != "incomplete":
        return
    if job.store.pending("background"):  # the sky of all tiles is one fit
        reset(job, (*SKY, "predict"))
    reset(job, AFTER_PREDICT)
    job.store.reopen()


def check_inputs(job: Job) -> None:
    """Raise an error, and reset all tasks, if tiles may have been read from different inputs.

    Raises
    ------
    InputChanged
        If an input changed during the run.
    """
    try:
        job.check_inputs(thorough=True)
    except InputChanged:
        reset(job, tasks.TASKS)
        raise


def reset(job: Job, names: Iterable[str]) -> None:
    """Reset tasks so that they are done again: remove their marks and scratch records.

    Tasks that this run does not have are ignored.
    """
    steps = [step for stage in list_stages(job) for step in stage.steps]
    known = {task for step in steps for task in (step.task, step.companion)}
    for task in (name for name in names if name in known):
        if task in tasks.LEDGER:
            job.store.unmark(tasks.LEDGER[task])
        for records in (f"done-{task}", *SCRATCH_RECORDS.get(task, ())):
            job.store.drop_arrays(records)


def _list_dependents(task: str) -> tuple[str, ...]:
    """Return the tasks that use the results of a task, directly or indirectly."""
    chain = ("predict", *AFTER_PREDICT)
    return chain[chain.index(task) + 1 :]


def _reset_tiles(job: Job, task: str, names: Iterable[str]) -> None:
    for name in names:
        job.store.unmark_tile(tasks.LEDGER[task], job.tile(name))


def _drop_broken_records(job: Job) -> bool:
    """Remove damaged scratch records; return whether there were any."""
    broken = job.store.drop_broken_arrays()
    _reset_tiles(job, "predict", [name for stage, name in broken if stage == "facts-predict"])
    return bool(broken)


def _read_scratch_format(job: Job) -> int:
    """Return the format of the scratch records; 1, the first format, did not record itself."""
    if not job.store.has_arrays("format", ALL):
        return 1
    return int(job.store.get_arrays("format", ALL)["version"])


def _list_damaged(job: Job, task: str) -> list[str]:
    """Return the tiles for which a task is marked as done but its maps are missing or damaged."""
    done = job.store.done(tasks.LEDGER[task])
    names = (tile.name for tile in job.plan.tiles if done[tile.row, tile.column])
    return [name for name in names if not _is_written(job, task, name)]


def _is_written(job: Job, task: str, name: str) -> bool:
    core, written = job.tile(name).core, job.read_checksums(task, name)
    if _has_failed_check(job, name):
        found = {what: job.store.checksum(what, core) for what in written}
        return bool(written) and found == written
    return bool(written) and all(
        job.store.is_whole(what, core, checksum) for what, checksum in written.items()
    )


def _has_failed_check(job: Job, name: str) -> bool:
    """Return whether the last check before publishing found an error in a tile."""
    if not job.store.has_arrays("checks", name):
        return False
    return job.store.get_arrays("checks", name)["problems"].size > 0


def _is_built(job: Job, node: Node) -> bool:
    """Return whether the maps of a pyramid tile are intact, if it is marked as done."""
    if not job.store.has_arrays("done-build_level", node.name):
        return True
    tile = level_grid(job.store.layout, node.level).tile(node.row, node.column)
    facts = job.store.get_arrays("done-build_level", node.name)
    return all(
        job.store.is_whole(name, tile.core, int(facts[CRC + name]), node.level)
        for name in job.store.list_maps(node.level)
        if CRC + name in facts
    )


# --- repair ---


def read_spec(store: ZarrStore, options: Mapping[str, Any]) -> tuple[RunSpec, Command]:
    """Return the spec and the command of the run that made a store, with other run-time options.

    Raises
    ------
    StoreError
        If the root attributes of the store are damaged.
    """
    try:
        attributes = store.attrs
        science = json.loads(attributes["spec"])
        command: Command = "predict" if science.pop("command") == "predict" else "segment"
        files = {
            name: attributes[name] for name in ("weight", "mask", "prior") if name in attributes
        }
        made = {
            "image": tuple(attributes["input"]),
            "out": str(store.path),
            "tile": store.layout.edge[0],
        }
        return make_spec(**science, **files, **made, **options), command
    except FcnpipeError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError):
        raise StoreError(
            f"zarr.json of {store.path} is damaged: restore it from a copy, "
            "or move the store away and segment the image again"
        ) from None


def adopt_predictions(old: ZarrStore, damage: Iterable[Damage], job: Job) -> None:
    """Copy the network's outputs of all undamaged tiles from a finished store.

    Notes
    -----
    A shard is copied only if a checksum proves it: that a shard can be decoded does not show that its
    values are those of the run. Nothing is copied if the recorded layout is not that of the run.
    """
    names = [*(o.name for o in job.plan.maps), "flags"]
    names += [] if job.plan.maps else ["probability", "elevation"]
    names += ["science"] if job.plan.maps and job.spec.keep_image else []
    places = {f"image/0/{name}" for name in names}
    damaged = [d.tile for d in damage if d.place in places]
    if None in damaged or old.layout.dump() != job.store.layout.dump():
        return
    intact = (tile.name for tile in job.plan.tiles if tile not in damaged)
    for name in tasks.list_remaining(job, "predict", intact):
        tile = job.tile(name)
        checksums = {CRC + what: float(job.store.adopt_tile(old, what, tile)) for what in names}
        tasks.mark_done(job, "predict", name, {"seconds": 0.0, **checksums})
