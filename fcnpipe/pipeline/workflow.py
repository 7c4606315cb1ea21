r"""The stages of a run and the steps of each stage, in order.

::

    image -> background -> predict -> separate -> merge -> select -> label -> measure -> publish
                               \----- predict only: outputs are stored as they are -----/
"""

from __future__ import annotations

from dataclasses import dataclass

from fcnpipe.core.geometry import list_levels
from fcnpipe.pipeline.job import ALL, Job
from fcnpipe.pipeline.stages.publication import list_pyramid


@dataclass(frozen=True, slots=True)
class Step:
    """One function of :mod:`fcnpipe.pipeline.tasks` and the names to call it with.

    Attributes
    ----------
    task : str
        Name of the function.
    names : tuple of str
        Names of tiles or nodes, or ``("all",)``.
    companion : str
        Name of a function that is called once for the whole image at the same time; empty if none.
    """

    task: str
    names: tuple[str, ...]
    companion: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that are reported as one."""

    name: str
    steps: tuple[Step, ...]


ONCE = (ALL,)
"""Names of a step that is one task for the whole image."""


def list_stages(job: Job) -> tuple[Stage, ...]:
    """Return the stages of a run, in order."""
    tiles = tuple(tile.name for tile in job.plan.tiles)
    background = (Step("weigh_bands", ONCE), Step("measure_cells", tiles), Step("fit_sky", ONCE))
    return (
        Stage("background", background),
        Stage("predict", (Step("predict", tiles),)),
        *(_output_stages(job, tiles) if job.plan.maps else _source_stages(job, tiles)),
    )


def _source_stages(job: Job, tiles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages that turn the maps into sources."""
    publish = (
        *_pyramid_steps(job, companion="write_catalogue"),
        Step("check_tile", tiles, companion="prepare_parquet"),
        Step("check_sums", ONCE),
    )
    return (
        Stage("separate", (Step("separate", tiles),)),
        Stage("merge", _merge_steps(job)),
        Stage("select", (Step("select", ONCE),)),
        Stage("label", (Step("label", tiles),)),
        Stage("measure", (Step("measure", tiles),)),
        Stage("publish", publish),
    )


def _output_stages(job: Job, tiles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages after prediction where the network's outputs are the result."""
    steps = (
        *_pyramid_steps(job, companion="tabulate"),
        Step("check_tile", tiles),
        Step("check_sums", ONCE),
    )
    return (Stage("publish", steps),)


def _merge_steps(job: Job) -> tuple[Step, ...]:
    """Return the steps that join nodes up to the root and pass the decisions down to the tiles."""
    levels = [tuple(node.name for node in level) for level in list_levels(job.plan.tiles.counts)]
    return (
        *(Step("join", names) for names in levels[1:]),
        *(Step("settle", names) for names in reversed(levels[1:])),
    )


def _pyramid_steps(job: Job, companion: str) -> tuple[Step, ...]:
    levels = [tuple(node.name for node in nodes) for nodes in list_pyramid(job)]
    if not levels:
        return (Step("create_pyramid", ONCE), Step(companion, ONCE))
    first, *others = levels
    return (
        Step("create_pyramid", ONCE),
        Step("build_level", first, companion),
        *(Step("build_level", names) for names in others),
    )
