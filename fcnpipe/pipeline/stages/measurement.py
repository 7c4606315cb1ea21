"""Stages label and measure: write the labels, sum over pixels, measure each source in the tile of its peak.

::

    label    every tile      sums over the core ---------------------+ sums/OWNER/TILE.npz
    measure  owner's tile    sums of all tiles -> moments -> apertures + rows/OWNER.npz

The owner of a source is the tile whose core contains its peak.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.core.records import SourceFlag
from fcnpipe.pipeline.job import Arrays, Job
from fcnpipe.science import catalogue
from fcnpipe.science.aperture_regions import Region, join_regions
from fcnpipe.science.apertures import (
    RADIUS_CAP,
    aperture_boxes,
    measure_apertures,
    measure_covered_apertures,
)
from fcnpipe.science.basins import apply_table
from fcnpipe.science.fixed_point import quantise_labelled
from fcnpipe.science.moments import Columns, measure_isophotes
from fcnpipe.science.sums import Pixels, Sums, accumulate, combine

Facts = dict[str, float]
VARIANCE_STEPS = 256
"""Unit of fixed-point variances, in squared flux units; the sky's variance is then at least 2**20."""
MIN_MARGIN = 64
"""Minimum margin that is read around a tile for its apertures, px."""
MARGIN_DIVISOR = 8
"""The margin is the tile edge divided by this. Reading beyond the margin for one larger source takes as long
as measuring a hundred sources."""
USUAL_REACH = 7.0
"""Extent that covers most apertures, in semi-axes. It is tried first, since the maximum is much larger."""


def label(job: Job, name: str) -> Facts:
    """Write the labels of a tile and store the sums over its pixels for the owners of the sources."""
    tile, table = job.tile(name), job.store.get_arrays("labels", name)
    segments = job.store.read("segments", tile.core)
    labels = apply_table(segments, table["label"])
    maps: Arrays = {"label": labels}
    if job.spec.keep_image:
        maps["science"] = job.image.read_bands(tile.core, job.plan.tiles)
    checksums = job.write_maps(tile.core, maps)
    sums = _accumulate_core(job, tile.core, labels, table)
    for owner, part in _split_by_owner(job, sums):
        job.store.put_arrays(f"sums/{owner}", name, part.to_arrays())
    return {"sources": len(sums), **checksums}


def measure(job: Job, name: str) -> Facts:
    """Measure the sources whose peak is in a tile."""
    sums = _read_sums(job, name)
    if sums is None:
        return {"sources": 0}
    unit = job.sky.unit
    columns = measure_isophotes(sums, unit, _variance_unit(unit), job.plan.shape[1])
    columns["flags"] |= np.where(
        _is_deblended(job, name, sums), int(SourceFlag.DEBLENDED), 0
    ).astype(np.int32)
    columns |= _measure_apertures(job, name, columns)
    width, zero_point = job.plan.shape[1], job.spec.mag_zeropoint
    rows = catalogue.complete_rows(columns, job.image.info.cards, width, zero_point)
    job.store.put_arrays("rows", name, rows)
    return {"sources": len(sums)}


def _accumulate_core(job: Job, core: Box, labels: NDArray[np.int32], table: Arrays) -> Sums:
    around = core.grow(1).clip(job.plan.frame)
    patch = job.image.read_available_patch(core, job.sky, job.plan.tiles)[0]
    inner = core.within(around)
    unit, flags = job.sky.unit, job.store.read("flags", around)
    flux, variance = quantise_labelled(
        (labels, flags[inner]),
        patch.residual[-1],
        patch.noise[-1],
        (unit, _variance_unit(unit)),
        job.image.gain,
    )
    pixels = Pixels(
        labels,
        flux,
        variance,
        job.store.read("probability", core),
        job.store.read("elevation", core),
        flags,
        core,
        job.plan.shape,
    )
    anchors = np.stack(np.divmod(table["source"], job.plan.shape[1]), axis=1)
    return accumulate(pixels, anchors, table["present"])


def _variance_unit(unit: float) -> float:
    return unit * unit * VARIANCE_STEPS


def _split_by_owner(job: Job, sums: Sums) -> Iterator[tuple[str, Sums]]:
    """Yield the name of each owner tile and the sums of its sources."""
    columns = job.plan.tiles.counts[1]
    place = sums.anchor // job.plan.tile
    owner = place[:, 0] * columns + place[:, 1]
    for number in np.unique(owner):
        tile = job.plan.tiles.tile(int(number) // columns, int(number) % columns)
        yield tile.name, sums.take(owner == number)


def _read_sums(job: Job, name: str) -> Sums | None:
    """Return the complete sums of the sources that a tile owns; None if it owns none."""
    names = job.store.list_arrays(f"sums/{name}")
    parts = [Sums.from_arrays(job.store.get_arrays(f"sums/{name}", part)) for part in names]
    return combine(parts) if parts else None


def _is_deblended(job: Job, name: str, sums: Sums) -> NDArray[np.bool_]:
    """Return whether each source was deblended, from the table of the tile that owns the sources."""
    table = job.store.get_arrays("labels", name)
    return np.asarray(table["divided"][np.searchsorted(table["present"], sums.label)])


def _measure_apertures(job: Job, name: str, columns: Columns) -> Columns:
    """Measure all sources of a tile: most from one region, larger ones one by one."""
    margin = max(job.plan.tile // MARGIN_DIVISOR, MIN_MARGIN)
    near = _read_region(job, job.tile(name).core.grow(margin).clip(job.plan.frame))
    measured, done = measure_covered_apertures(columns, near)
    for row in np.flatnonzero(~done):
        one = {what: values[row : row + 1] for what, values in columns.items()}
        for what, values in _measure_far(job, near, one).items():
            measured[what][row] = values[0]
    return measured


def _measure_far(job: Job, near: Region, one: Columns) -> Columns:
    """Measure a source whose apertures extend beyond the region of its tile."""
    usual = min(USUAL_REACH * float(one["semimajor_axis"][0]), RADIUS_CAP)
    box = _aperture_box(job, one, usual)
    measured, done = measure_covered_apertures(one, _widen(job, near, box))
    if done[0]:
        return measured
    box = _aperture_box(job, one, RADIUS_CAP)
    return measure_apertures(one, _widen(job, near, box))


def _aperture_box(job: Job, one: Columns, cap: float) -> Box:
    """Return the box of pixels that the apertures of one source may need."""
    return Box(*aperture_boxes(one, job.plan.shape, cap)[0].tolist())


def _widen(job: Job, near: Region, box: Box) -> Region:
    """Return the region of a box; only the part outside the known region is read."""
    known = box.clip(near.box)
    if not known.size:
        return _read_region(job, box)
    around = (
        Box(box.y0, box.x0, known.y0, box.x1),
        Box(known.y1, box.x0, box.y1, box.x1),
        Box(known.y0, box.x0, known.y1, known.x0),
        Box(known.y0, known.x1, known.y1, box.x1),
    )
    parts = [near.cut(box), *(_read_region(job, part) for part in around if part.size)]
    return join_regions(parts, box)


def _read_region(job: Job, box: Box) -> Region:
    patch = job.image.read_available_patch(box, job.sky, job.plan.tiles)[0]
    flags, labels = job.store.read("flags", box), job.store.read("label", box)
    return Region(patch.residual[-1], patch.noise[-1], labels, flags, box, job.plan.shape)
