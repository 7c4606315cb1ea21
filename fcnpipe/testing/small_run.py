"""Stores of a small run with known labels and catalogue, for tests of code that reads stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Tile
from fcnpipe.stores import Layout, RunIdentity, ScienceReader, State, ZarrStore, prepare_output
from fcnpipe.stores.base import Columns

LAYOUT = Layout((150, 200), (64, 64), (3, 4), stages=("predict", "label"), cards=("A = 1",))
IDENTITY = RunIdentity("input", "model", "1", {"thresh": 0.5, "minarea": 5})
PEAKS = [(3, 4), (63, 64), (64, 10), (149, 199)]


def make_labels(shape: tuple[int, int] = LAYOUT.shape) -> NDArray[np.int32]:
    """Return squares of 11 px around the peaks, (h, w) int32; the second square is on four tiles."""
    labels = np.zeros(shape, np.int32)
    for label, (y, x) in enumerate(PEAKS, 1):
        labels[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6] = label
    return labels


def make_catalogue() -> Columns:
    """Return the catalogue of the squares: label, source_id and area."""
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
    """Create, resume or open the store of the run, as a run does; also return its state before."""
    state = prepare_output(out, identity, overwrite)
    if state == "fresh":
        return state, ZarrStore.create(out, LAYOUT, identity, {"title": "test"}, overwrite)
    return state, ZarrStore.resume(out) if state == "resume" else ZarrStore.open(out)


def do_tile(store: ZarrStore, tile: Tile, stages: tuple[str, ...] = LAYOUT.stages) -> None:
    """Write all maps of a tile and mark its stages as done."""
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
    """Write everything that is not stored by tile, publish the store, and return the published store."""
    store.write_mesh("sky", np.zeros(LAYOUT.mesh_shape, np.float32))
    store.write_tiles({"status": (np.ones(LAYOUT.grid.counts, np.uint8), {})})
    store.write_sources([make_catalogue()], 4)
    store.write_pyramid(lambda box: make_labels()[None, *box.slices].astype(np.float32))
    return store.publish()


CARDS = (
    "CTYPE1  = 'RA---TAN'",
    "CTYPE2  = 'DEC--TAN'",
    "CRVAL1  =                150.0",
    "CRVAL2  =                  2.0",
    "CRPIX1  =                100.5",
    "CRPIX2  =                 75.5",
    "CDELT1  =               -0.001",
    "CDELT2  =                0.001",
    "OBJECT  = 'test field'",
)
"""FITS cards of a tangential projection with pixels of 3.6 arcsec."""


def make_rich_catalogue() -> Columns:
    """Return the small catalogue with the columns that exports and cutouts read."""
    y, x = np.array(PEAKS, float).T
    ys, xs = zip(*(np.nonzero(make_labels() == label) for label in range(1, 5)), strict=True)
    ends = {
        f"bbox_{axis}{end}": (np.array([getattr(v, end)() for v in values], np.int32), PIXELS)
        for axis, values in (("y", ys), ("x", xs))
        for end in ("min", "max")
    }
    return {
        **make_catalogue(),
        "x_centroid": (x, {**PIXELS, "ucd": "pos.cartesian.x", "long_name": "centroid in x"}),
        "y_centroid": (y, PIXELS),
        "ra": (150 - 0.001 * (x - 99.5) / np.cos(np.radians(2)), {"units": "deg"}),
        "dec": (2 + 0.001 * (y - 74.5), {"units": "deg"}),
        **ends,
        "semimajor_axis": (np.array([3.0, 2, 2, np.nan]), PIXELS),
        "semiminor_axis": (np.array([1.0, 2, 1, np.nan]), PIXELS),
        "orientation": (np.array([30.0, 0, 90, np.nan]), {"units": "deg"}),
        "kron_flux": (np.array([1.5, -2, 0.1, np.nan]), {"units": "furlong"}),
        "elevation": (np.array([65535, 1, 2, 3], np.uint16), {}),
        "faint": (np.array([True, False, False, True]), {}),
    }


PIXELS = {"units": "pix"}


def make_rich_store(out: Path, **changes: Any) -> ZarrStore:
    """Write the store of a finished run with a WCS and `make_rich_catalogue`; ``changes`` apply to the layout."""
    layout = replace(LAYOUT, **{"cards": CARDS, "unit": "adu", **changes})
    store = ZarrStore.create(out, layout, IDENTITY)
    for tile in layout.grid:
        do_tile(store, tile)
    store.write_sources([make_rich_catalogue()], 4)
    store.write_pyramid(make_science(len(layout.bands)))
    return store.publish()


def make_science(bands: int = 1) -> ScienceReader:
    """Return a reader of a science image: the squares on noise, with one corner without data."""
    image = np.random.default_rng(2).normal(size=(bands, *LAYOUT.shape)).astype(np.float32)
    image += 20 * make_labels()
    image[:, -10:, :10] = np.nan
    return lambda box: image[(slice(None), *box.slices)]
