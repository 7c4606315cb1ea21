"""A small finished run made by hand, for the tests of whatever reads a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnpipe.geometry import Tile
from fcnpipe.stores import Layout, RunIdentity, State, ZarrStore, prepare
from fcnpipe.stores.base import Columns

LAYOUT = Layout((150, 200), (64, 64), (3, 4), stages=("predict", "label"), cards=("A = 1",))
IDENTITY = RunIdentity("input", "model", "1", {"thresh": 0.5, "minarea": 5})
PEAKS = [(3, 4), (63, 64), (64, 10), (149, 199)]


def make_labels(shape: tuple[int, int] = LAYOUT.shape) -> NDArray[np.int32]:
    """Squares of 11 px around the peaks; the second one lies on four tiles."""
    labels = np.zeros(shape, np.int32)
    for label, (y, x) in enumerate(PEAKS, 1):
        labels[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6] = label
    return labels


def make_catalogue() -> Columns:
    """Label, source_id and area of the squares."""
    ids = np.array([y * LAYOUT.shape[1] + x for y, x in PEAKS], np.uint64)
    area = np.bincount(make_labels().ravel())[1:]
    return {
        "label": (np.arange(1, 5, dtype=np.int32), {"long_name": "number in the label image"}),
        "source_id": (ids, {}),
        "area": (area, {"units": "pixel2"}),
    }


def take_up(
    out: Path, identity: RunIdentity = IDENTITY, overwrite: bool = False
) -> tuple[State, ZarrStore]:
    """Create, resume or find the store of the run, as a run does."""
    state = prepare(out, identity, overwrite)
    if state == "fresh":
        return state, ZarrStore.create(out, LAYOUT, identity, {"title": "test"}, overwrite)
    return state, ZarrStore.resume(out) if state == "resume" else ZarrStore.open(out)


def do_tile(store: ZarrStore, tile: Tile, stages: tuple[str, ...] = LAYOUT.stages) -> None:
    """Write all maps of one tile and mark its stages."""
    labels = make_labels()[tile.core.slices]
    if "predict" in stages:
        store.write_tile("probability", tile.core, (labels[None] * 60).astype(np.uint8))
        store.write_tile("elevation", tile.core, (labels * 16000).astype(np.uint16))
        store.mark("predict", tile)
    if "label" in stages:
        store.put_arrays("label", tile.name, {"labels": np.unique(labels)})
        store.write_tile("segments", tile.core, labels)
        store.write_tile("label", tile.core, labels)
        store.mark("label", tile)


def end_run(store: ZarrStore) -> ZarrStore:
    """Write what is not by tile, and publish."""
    store.write_mesh("sky", np.zeros(LAYOUT.mesh_shape, np.float32))
    store.write_tiles({"status": (np.ones(LAYOUT.grid.counts, np.uint8), {})})
    store.write_sources([make_catalogue()], 4)
    store.write_pyramid(lambda box: make_labels()[None, *box.slices].astype(np.float32))
    return store.publish()
