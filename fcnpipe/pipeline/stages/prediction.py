"""Stage predict: read core + halo, run the network window by window, quantise, write the tile's maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box, Tile
from fcnpipe.core.records import PixelFlag
from fcnpipe.images.masked_image import Patch
from fcnpipe.images.sky import FixedScale, Sky
from fcnpipe.networks.base import Output
from fcnpipe.pipeline.job import Arrays, Job
from fcnpipe.pipeline.plan import Plan
from fcnpipe.science import normalisation, quantisation

Facts = dict[str, float]


def predict(job: Job, name: str) -> Facts:
    """Run the network over a tile and write its quantised maps.

    Notes
    -----
    An unreadable neighbour counts as missing data and is reported as a gap: the maps are then
    provisional, and the tile is done again when the neighbour can be read.
    """
    core = job.tile(name).core
    flags, maps, gaps = _predict_tile(job, job.tile(name))
    bad = int(np.count_nonzero(flags & normalisation.BAD))
    return {"bad_pixels": bad, "gaps": gaps, **job.write_maps(core, maps | {"flags": flags})}


def leave_out(job: Job, name: str) -> None:
    """Flag all pixels of a tile that cannot be read or computed as missing data.

    Notes
    -----
    The rest of the image can then be finished without the tile.
    """
    core = job.tile(name).core
    job.store.write_tile("flags", core, np.full(core.shape, int(PixelFlag.NO_DATA), np.uint8))


def list_windows(plan: Plan, tile: Tile) -> Iterator[Box]:
    """Yield the cores of a tile's windows; those at the high border extend into the padded canvas."""
    for y in range(tile.core.y0, tile.core.y1, plan.window):
        for x in range(tile.core.x0, tile.core.x1, plan.window):
            yield plan.windows.tile_at(y, x).core


def _predict_tile(job: Job, tile: Tile) -> tuple[NDArray[np.uint8], Arrays, int]:
    """Return flags and maps of a tile, and the number of missing neighbours."""
    patch, wide, gaps = _read_patch(job, tile.core)
    views = _cut_windows(job, tile, patch, wide)
    inner = patch.crop(tile.core.within(wide))
    if job.plan.maps:
        return inner.flags, _compute_outputs(job, tile.core, views, inner), gaps
    return inner.flags, _compute_elevation(job, tile.core, views), gaps


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Input of the network for one window, and the part of its output that is kept.

    Attributes
    ----------
    seen : (channels, h, w) float32
        Input of the network: core and halo.
    kept : Box
        The part of the output that is kept, in pixels of the window.
    place : (slice, slice)
        Position of that part in the tile.
    """

    seen: NDArray[np.float32]
    kept: Box
    place: tuple[slice, slice]


def _cut_windows(job: Job, tile: Tile, patch: Patch, wide: Box) -> Iterator[View]:
    canvas, box = _to_canvas(job, tile.core, patch, wide)
    for window in list_windows(job.plan, tile):
        read = window.grow(job.plan.halo).clip(job.plan.canvas)
        kept = window.clip(tile.core)
        seen = np.ascontiguousarray(canvas[(..., *read.within(box))])
        yield View(seen, kept.relative_to(read), kept.within(tile.core))


def _compute_elevation(job: Job, core: Box, views: Iterator[View]) -> Arrays:
    """Return the quantised probability and elevation of a tile, in which sources are found."""
    probability = np.empty((len(job.model.classes), *core.shape), np.uint8)
    elevation = np.empty(core.shape, np.uint16)
    for view in views:
        maps = job.predictor(view.seen, view.kept)
        probability[(..., *view.place)] = quantisation.quantise_probability(maps.probability)
        elevation[view.place] = quantisation.quantise_elevation(maps.elevation)
    if not job.criteria.on_elevation:
        quantisation.zero_sky_elevation(elevation, probability[0], job.criteria.level)
    return {"probability": probability, "elevation": elevation}


def _compute_outputs(job: Job, core: Box, views: Iterator[View], patch: Patch) -> Arrays:
    """Return the outputs of the network as they are stored, and the image if it is kept."""
    outputs = np.empty((len(job.plan.maps), *core.shape), np.float32)
    for view in views:
        outputs[(..., *view.place)] = job.predictor.outputs(view.seen, view.kept)
    maps = {
        output.name: _to_stored(job, core, patch, output, values)
        for output, values in zip(job.model.header.outputs, outputs, strict=True)
    }
    if job.spec.keep_image:
        maps["science"] = job.image.read_bands(core, job.plan.tiles)
    return maps


def _to_stored(
    job: Job, core: Box, patch: Patch, output: Output, values: NDArray[np.float32]
) -> NDArray[Any]:
    if output.is_image:
        return _to_image(job, core, patch, output, values)
    if output.is_16_bit:
        return quantisation.quantise_elevation(values)
    return quantisation.quantise_probability(values)


def _to_image(
    job: Job, core: Box, patch: Patch, output: Output, values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return an output in image units: a restored image with the sky, a component without it."""
    scaling, zero = job.model.header.scaling, _zero_point(job)
    plane = output.band if job.model.header.bands > 1 else -1
    if output.role != "restored":
        level = np.zeros(core.shape, np.float32)
    elif isinstance(zero, FixedScale):
        level = np.full(core.shape, zero.offset, np.float32)
    else:
        level = zero.planes[plane].sky(core.y0, core.x0, core.shape)
    unit = scaling.softening if scaling.kind == "asinh" else 1.0
    stretched = output.scaled and scaling.kind == "asinh"
    return normalisation.to_image_units(values, patch.noise[plane], level, unit, stretched)


def _read_patch(job: Job, core: Box) -> tuple[Patch, Box, int]:
    """Return the pixels of core + halo + fill margin, their box, and the number of missing neighbours."""
    wide = core.grow(job.plan.halo + normalisation.FILL_REACH).clip(job.plan.frame)
    zero = _zero_point(job)
    patch, missing = job.image.read_available_patch(wide, zero, job.plan.tiles)
    if any(part.clip(core).size for part in missing):
        job.image.read_patch(core, zero)  # raises the error with its reason
    return patch, wide, len(missing)


def _zero_point(job: Job) -> Sky | FixedScale:
    """Return zero level and unit of the network's input: sky and noise, or the constants of a linear scaling."""
    scaling = job.model.header.scaling
    if scaling.kind == "linear":
        return FixedScale(scaling.offset, scaling.scale, job.sky.band_weights)
    return job.sky


def _to_canvas(job: Job, core: Box, patch: Patch, wide: Box) -> tuple[NDArray[np.float32], Box]:
    """Return the S/N of core + halo on the canvas followed by the extra channels, and its box."""
    plan = job.plan
    read = core.grow(plan.halo).clip(plan.frame)
    seen = patch.significance(job.model.header.bands)[(..., *read.within(wide))]
    if job.model.header.extra:
        flags = patch.flags[read.within(wide)]
        seen = np.concatenate([seen, _extra_channels(job, read, flags)])
    box = _canvas_box(core, plan)
    return normalisation.pad_high(seen, box.shape), box


def _extra_channels(job: Job, read: Box, flags: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the extra input channels of the network, (channels, h, w).

    Notes
    -----
    The values of a pixel depend on its position in the image, never on the tile.
    """
    height, width = job.plan.shape
    makers: dict[str, Callable[[], NDArray[Any]]] = {
        "position_y": lambda: normalisation.relative_position(read.y0, read.y1, height)[
            :, np.newaxis
        ],
        "position_x": lambda: normalisation.relative_position(read.x0, read.x1, width),
        "mask": lambda: (flags & normalisation.BAD) != 0,
        "prior": lambda: job.image.read_prior(read),
    }
    channels = np.empty((len(job.model.header.extra), *read.shape), np.float32)
    for channel, name in zip(channels, job.model.header.extra, strict=True):
        channel[...] = makers[name]()
    return channels


def _canvas_box(core: Box, plan: Plan) -> Box:
    """Return the box of core + halo on the canvas; at the image's high border it ends at the canvas's border."""
    frame, canvas = plan.frame, plan.canvas
    reach = core.grow(plan.halo)
    end_y = canvas.y1 if reach.y1 >= frame.y1 else reach.y1
    end_x = canvas.x1 if reach.x1 >= frame.x1 else reach.x1
    return Box(max(reach.y0, 0), max(reach.x0, 0), end_y, end_x)
