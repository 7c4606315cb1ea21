"""Stage background: measure mesh cells tile by tile, then fit sky and noise once for the whole image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.images.sky import Sky, pack_sky
from fcnpipe.pipeline.job import ALL, Job
from fcnpipe.science import background
from fcnpipe.science.mesh_statistics import CellStatistics

Facts = dict[str, float]
FLOAT32 = np.finfo(np.float32)


def weigh_bands(job: Job, name: str) -> Facts:
    """Compute the weights of the bands in the detection plane."""
    job.store.put_arrays("bands", ALL, {"weights": job.image.weigh_bands()})
    return {}


def measure_cells(job: Job, name: str) -> Facts:
    """Measure the mesh cells whose first pixel is in a tile."""
    core, edge = job.tile(name).core, job.plan.cell
    cells = Box(*(-(-corner // edge) for corner in core.corners))
    if cells.size == 0:
        return {}
    box = Box(*(corner * edge for corner in cells.corners)).clip(job.plan.frame)
    planes, weight = job.image.measure_cells(box, _weights(job))
    arrays = {
        what: np.stack([getattr(p, what) for p in planes]) for what in ("sky", "noise", "good")
    }
    job.store.put_arrays(
        "cells", name, {**arrays, "weight": weight, "box": np.array(cells.corners)}
    )
    return {}


def fit_sky(job: Job, name: str) -> Facts:
    """Assemble the mesh, interpolate over bad cells, and fit the splines.

    Raises
    ------
    InputError
        If no pixel of the image is usable, or all pixels are equal.
    """
    bands, planes = job.image.bands, job.image.planes
    mesh = _assemble(job, planes)
    fitted = tuple(
        background.fit_background(CellStatistics(*mesh[:3, p]), job.plan.cell, job.spec.back_filter)
        for p in range(planes)
    )
    _check(fitted[-1], job)
    scales = tuple(background.weight_scale(plane.cells.noise, mesh[3, 0]) for plane in fitted)
    job.store.put_arrays("sky", ALL, pack_sky(Sky(fitted, scales, _weights(job))))
    for what in ("sky", "noise"):
        values = np.stack([getattr(plane.cells, what) for plane in fitted[:bands]])
        job.store.write_mesh(what, values.reshape(job.store.layout.mesh_shape))
    return {}


def _weights(job: Job) -> NDArray[np.float64]:
    return job.store.get_arrays("bands", ALL)["weights"]


def _assemble(job: Job, planes: int) -> NDArray[np.float32]:
    """Return (4, planes, my, mx): sky, noise, good, weight; NaN where a tile failed."""
    mesh = np.full((4, planes, *job.plan.mesh), np.nan, np.float32)
    mesh[2] = 0
    for name in job.store.list_arrays("cells"):
        found = job.store.get_arrays("cells", name)
        place = Box(*found["box"].tolist()).slices
        for i, what in enumerate(("sky", "noise", "good", "weight")):
            mesh[(i, slice(None), *place)] = found[what]
    return mesh


def _check(plane: background.Background, job: Job) -> None:
    if not (plane.is_blank or plane.is_noiseless):
        return
    if unfit := job.image.find_unrepresentable_value():
        path, value = unfit
        raise InputError(
            f"{path} has pixels of {value:.3g}, outside the range of float32, from "
            f"{FLOAT32.smallest_subnormal:.1g} to {FLOAT32.max:.1g}: scale the image by a constant"
        )
    name = ", ".join(job.spec.image)
    if plane.is_blank:
        given = [f"--{what}" for what in ("mask", "weight") if getattr(job.spec, what)]
        raise InputError(
            f"{name} has no usable pixel: all are NaN, infinite, masked or of zero weight; "
            f"check {' and '.join(['--hdu', *given])}"
        )
    raise InputError(
        f"{name} has no noise: most of its pixels are equal, so no source can be detected; check --hdu"
    )
