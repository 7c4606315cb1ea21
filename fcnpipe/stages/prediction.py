"""predict: read core + halo, network window by window, quantise, write the tile's maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fcnpipe import pixels
from fcnpipe.exposure import Patch, Ruler, Sky
from fcnpipe.geometry import Box, Tile
from fcnpipe.job import Job
from fcnpipe.plan import Plan
from fcnpipe.records import PixelFlag

Facts = dict[str, float]


def predict(job: Job, name: str) -> Facts:
    """Run the network over a tile and write its quantised maps.

    Notes
    -----
    If the tile cannot be read or computed its pixels are stored as no data before the error goes
    on, so that the rest of the image can be finished without it. A neighbour that cannot be read
    is no data too, and reported as a gap: the maps then serve until it can.
    """
    core = job.tile(name).core
    try:
        flags, maps, gaps = _look(job, job.tile(name))
    except Exception:
        job.store.write_tile("flags", core, np.full(core.shape, int(PixelFlag.NO_DATA), np.uint8))
        raise
    job.store.write_tile("probability", core, maps[0])
    job.store.write_tile("elevation", core, maps[1])
    job.store.write_tile("flags", core, flags)
    return {"bad_pixels": int(np.count_nonzero(flags & pixels.BAD)), "gaps": gaps}


def list_windows(plan: Plan, tile: Tile) -> Iterator[Box]:
    """Give the cores of the windows of a tile; those at the high border reach into the canvas."""
    for y in range(tile.core.y0, tile.core.y1, plan.window):
        for x in range(tile.core.x0, tile.core.x1, plan.window):
            yield plan.windows.tile_at(y, x).core


def _look(
    job: Job, tile: Tile
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.uint8], NDArray[np.uint16]], int]:
    model, plan, core = job.model, job.plan, tile.core
    patch, wide, gaps = _read(job, core)
    significance, box = _to_canvas(job, core, patch, wide)
    probability = np.empty((len(model.classes), *core.shape), np.uint8)
    elevation = np.empty(core.shape, np.uint16)
    for window in list_windows(plan, tile):
        read = window.grow(plan.halo).clip(plan.canvas)
        kept = window.clip(core)
        seen = np.ascontiguousarray(significance[(..., *read.within(box))])
        answer = job.predictor(seen, kept.seen_from(read))
        place = kept.within(core)
        probability[(..., *place)] = pixels.quantise_probability(answer.probability)
        elevation[place] = pixels.quantise_elevation(answer.elevation)
    if not job.criteria.on_elevation:
        pixels.flatten_sky(elevation, probability[0], job.criteria.level)
    return patch.flags[core.within(wide)], (probability, elevation), gaps


def _read(job: Job, core: Box) -> tuple[Patch, Box, int]:
    """Give the pixels of core + halo + repair, their box, and how many neighbours are missing."""
    wide = core.grow(job.plan.halo + pixels.FILL_REACH).clip(job.plan.frame)
    zero = _zero(job)
    patch, missing = job.exposure.read_patches(wide, zero, job.plan.tiles)
    if any(part.clip(core).size for part in missing):
        job.exposure.read_patch(core, zero)  # says why
    return patch, wide, len(missing)


def _zero(job: Job) -> Sky | Ruler:
    """Give what the network's input is counted from: the sky, or what a linear scaling says."""
    scaling = job.model.header.scaling
    if scaling.kind == "linear":
        return Ruler(scaling.offset, scaling.scale, job.sky.weights)
    return job.sky


def _to_canvas(job: Job, core: Box, patch: Patch, wide: Box) -> tuple[NDArray[np.float32], Box]:
    """Give S/N of core + halo on the canvas, and its box."""
    plan = job.plan
    read = core.grow(plan.halo).clip(plan.frame)
    significance = patch.significance(job.model.header.bands)[(..., *read.within(wide))]
    box = _stretch(core, plan)
    return pixels.pad_high(significance, box.shape), box


def _stretch(core: Box, plan: Plan) -> Box:
    """Core + halo on the canvas, where the image ends with pixels repeated up to the stride."""
    frame, canvas = plan.frame, plan.canvas
    reach = core.grow(plan.halo)
    end_y = canvas.y1 if reach.y1 >= frame.y1 else reach.y1
    end_x = canvas.x1 if reach.x1 >= frame.x1 else reach.x1
    return Box(max(reach.y0, 0), max(reach.x0, 0), end_y, end_x)
