"""Stages separate, merge and select: basins per tile, one merge tree over all tiles, numbered sources."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box, parse_node_name
from fcnpipe.pipeline.job import ALL, Arrays, Job
from fcnpipe.science import merge_tree, source_selection
from fcnpipe.science.fixed_point import quantise_flux
from fcnpipe.science.merge_tree import NONE_RESOLVED, BranchGraph, PendingBranches, ResolvedBranches
from fcnpipe.science.source_selection import Selection, SourceTable
from fcnpipe.separators import Watershed

Facts = dict[str, float]
FLUX_STEPS = 1024
"""Fluxes, which --mincont compares, are integers in units of noise / FLUX_STEPS."""


def separate(job: Job, name: str) -> Facts:
    """Divide a tile into segments and store the graph of the branches that are open at its seams.

    Notes
    -----
    One pixel of the neighbours' maps is read on each side, so their predictions must exist.
    """
    core = job.tile(name).core
    read = core.grow(1).clip(job.plan.frame)
    elevation = job.store.read("elevation", read)
    foreground = _find_foreground(job, read, elevation)
    weights = _read_weights(job, read) if job.criteria.branch.mincont_ppm else None
    found = Watershed(job.criteria.branch).separate(
        elevation, foreground, core, job.plan.shape, weights
    )
    checksums = job.write_maps(core, {"segments": found.segments})
    job.store.put_arrays("settlement", name, found.pending.to_arrays())
    job.store.put_arrays("graph", name, found.graph.to_arrays())
    return {"segments": int(found.segments.max(initial=0)), **checksums}


def join(job: Job, name: str) -> Facts:
    """Join the graphs of up to four child nodes into the graph of their parent."""
    children = _children(job, name)
    graphs = [BranchGraph.from_arrays(job.store.get_arrays("graph", child)) for child in children]
    graph, pending = merge_tree.join(graphs, job.criteria.branch)
    job.store.put_arrays("settlement", name, pending.to_arrays())
    job.store.put_arrays("graph", name, graph.to_arrays())
    return {}


def settle(job: Job, name: str) -> Facts:
    """Pass the resolved branches of a node down to its children."""
    pending = PendingBranches.from_arrays(job.store.get_arrays("settlement", name))
    resolved = merge_tree.resolve(pending, _read_resolved(job, name), job.criteria.branch)
    for child, answer in zip(_children(job, name), resolved, strict=True):
        job.store.put_arrays("verdicts", child, answer._asdict())
    return {}


def select(job: Job, name: str) -> Facts:
    """Number the sources that remain, and write each tile's table from segment to label.

    Notes
    -----
    This is the only task that holds a record of all sources in memory, about 100 bytes for each.
    """
    names = [tile.name for tile in job.plan.tiles]
    needs = job.criteria
    selection = source_selection.select(
        (_tabulate(job, n) for n in names), needs.minarea, needs.minpeak, needs.broad
    )
    for tile_name in names:
        job.store.put_arrays(
            "labels", tile_name, _label_table(_tabulate(job, tile_name), selection)
        )
    job.store.put_arrays("selection", ALL, selection._asdict())
    return {"sources": len(selection.source)}


def _find_foreground(job: Job, box: Box, elevation: NDArray[np.uint16]) -> NDArray[np.bool_]:
    if job.criteria.on_elevation:
        return elevation >= job.criteria.level
    return np.asarray(job.store.read("probability", box)[0] >= job.criteria.level)


def _read_weights(job: Job, box: Box) -> NDArray[np.int64]:
    """Return the S/N of each pixel, at least 0, as an integer multiple of 1 / FLUX_STEPS."""
    patch = job.image.read_available_patch(box, job.sky, job.plan.tiles)[0]
    flux = np.maximum(patch.significance(1)[0], 0)
    return quantise_flux(flux, 1 / FLUX_STEPS)


def _children(job: Job, name: str) -> list[str]:
    return [child.name for child in parse_node_name(name).children(job.plan.tiles.counts)]


def _read_resolved(job: Job, name: str) -> ResolvedBranches:
    """Return the resolved branches that were passed down to a node; the root has none."""
    if not job.store.has_arrays("verdicts", name):
        return NONE_RESOLVED
    return ResolvedBranches(**job.store.get_arrays("verdicts", name))


def _tabulate(job: Job, name: str) -> SourceTable:
    pending = PendingBranches.from_arrays(job.store.get_arrays("settlement", name))
    return merge_tree.tabulate(pending, _read_resolved(job, name), job.criteria.branch)


def _label_table(table: SourceTable, selection: Selection) -> Arrays:
    """Return the label of each segment, and for each label its source and whether it was deblended."""
    label = source_selection.label_segments(table, selection)
    present = np.unique(label[label > 0])
    rows = present - 1
    return {
        "label": label,
        "present": present,
        "source": selection.source[rows],
        "divided": selection.divided[rows],
    }
