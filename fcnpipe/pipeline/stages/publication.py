"""Stage publish: the catalogue in order of label, the table of tiles, the pyramid, the final checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.geometry import Node, Tile, parse_node_name, parse_tile_name
from fcnpipe.pipeline.job import ALL, CRC, Arrays, Job
from fcnpipe.science import catalogue
from fcnpipe.stores.base import TileCheck
from fcnpipe.stores.lifecycle import raise_problems
from fcnpipe.stores.pyramid import level_count, level_grid

Facts = dict[str, float]
FACTS = ("facts-measure_cells", "facts-predict", "facts-separate", "facts-label", "facts-measure")
"""Scratch records with the facts of the tasks of each tile."""


def create_pyramid(job: Job, name: str) -> Facts:
    """Create the empty levels of the pyramid."""
    job.store.create_pyramid(science=True)
    return {}


def list_pyramid(job: Job) -> list[list[Node]]:
    """Return the tiles of each level of the pyramid, as nodes; level 1 first."""
    layout = job.store.layout
    return [
        [Node(level, tile.row, tile.column) for tile in level_grid(layout, level)]
        for level in range(1, 1 + level_count(layout))
    ]


def build_level(job: Job, name: str) -> Facts:
    """Write one tile of a level of the pyramid from the level below."""
    node = parse_node_name(name)
    tile = level_grid(job.store.layout, node.level).tile(node.row, node.column)
    checksums = job.store.build_level(
        node.level, tile, lambda box: job.image.read_bands(box, job.plan.tiles)
    )
    return {CRC + name: checksum for name, checksum in checksums.items()}


def check_tile(job: Job, name: str) -> Facts:
    """Read the maps of a tile back from disk: count the pixels of labels, compare checksums."""
    written = job.read_checksums("predict", name) | job.read_checksums("label", name)
    check = job.store.check_tile(job.tile(name), written)
    found: Arrays = {
        "labels": check.labels,
        "counts": check.counts,
        "problems": np.array(check.problems, dtype=np.str_),
        **{CRC + what: np.asarray(value) for what, value in check.checksums.items()},
    }
    job.store.put_arrays("checks", name, found)
    return {}


def check_sums(job: Job, name: str) -> Facts:
    """Compare the checks of all tiles with the catalogue.

    Raises
    ------
    VerificationError
        If labels, catalogue and checksums do not agree; the store is then not published.
    """
    tables = _make_tables(job, 0)
    raise_problems(job.store.path, job.store.check_sums(_read_checks(job, tables)))
    job.store.write_checksums(0, tables)
    for level, nodes in enumerate(list_pyramid(job), 1):
        tables = _make_tables(job, level)
        for node in nodes:
            _enter_checksums(tables, node, job.store.get_arrays("done-build_level", node.name))
        job.store.write_checksums(level, tables)
    return {}


Tables = dict[str, NDArray[np.uint32]]
"""Checksums of the shards of each map."""


def _make_tables(job: Job, level: int) -> Tables:
    counts = level_grid(job.store.layout, level).counts
    return {name: np.zeros(counts, np.uint32) for name in job.store.list_maps(level)}


def _enter_checksums(tables: Tables, place: Tile | Node, facts: Arrays) -> None:
    """Enter the checksums of a tile, which are among its facts, into the tables."""
    for name, table in tables.items():
        table[place.row, place.column] = facts.get(CRC + name, 0)


def _read_checks(job: Job, tables: Tables) -> Iterator[TileCheck]:
    """Yield the check of each tile, and enter its checksums into the tables."""
    for tile in job.plan.tiles:
        found = job.store.get_arrays("checks", tile.name)
        _enter_checksums(tables, tile, found)
        yield TileCheck(found["labels"], found["counts"], tuple(found["problems"].tolist()))


def prepare_parquet(job: Job, name: str) -> Facts:
    """Write the catalogue as a parquet file, which is renamed when the store is published."""
    job.store.prepare_parquet()
    return {}


def write_catalogue(job: Job, name: str) -> Facts:
    """Sort the rows of all tiles by label and write them, and the table of tiles."""
    count = len(job.store.get_arrays("selection", ALL)["source"])
    unit, zero_point = job.image.info.unit, job.spec.mag_zeropoint
    columns = catalogue.list_columns(unit, magnitudes=zero_point is not None)
    job.store.write_source_columns(
        (column.name, values, _describe(column))
        for column, values in catalogue.assemble(
            lambda names: _read_rows(job, names), count, columns
        )
    )
    job.store.write_tiles(_describe_tiles(job) | _count_sources(job))
    return {"sources": count}


def tabulate(job: Job, name: str) -> Facts:
    """Write the table of tiles of a run that stores outputs."""
    job.store.write_tiles(_describe_tiles(job))
    return {}


def _describe(column: catalogue.Column) -> dict[str, str]:
    attributes = {"long_name": column.description, "units": column.unit, "ucd": column.ucd}
    return {key: value for key, value in attributes.items() if value}


def _read_rows(job: Job, names: tuple[str, ...]) -> Iterator[Arrays]:
    for tile in job.store.list_arrays("rows"):
        yield job.store.get_arrays("rows", tile, names)


Table = dict[str, tuple[NDArray[Any], dict[str, Any]]]
"""Columns of the table of tiles, (tile_y, tile_x), with their attributes."""


def _describe_tiles(job: Job) -> Table:
    """Return status, time, sky and noise of each tile."""
    counts = job.plan.tiles.counts
    seconds = np.full(counts, np.nan, np.float32)
    sky, noise = np.full(counts, np.nan, np.float32), np.full(counts, np.nan, np.float32)
    plane = job.sky.planes[-1].cells
    for tile in job.plan.tiles:
        place = tile.row, tile.column
        y0, x0, y1, x1 = tile.core.corners
        cells = tuple(
            slice(a // job.plan.cell, -(-b // job.plan.cell)) for a, b in ((y0, y1), (x0, x1))
        )
        sky[place], noise[place] = np.median(plane.sky[cells]), np.median(plane.noise[cells])
        facts = [
            job.store.get_arrays(s, tile.name) for s in FACTS if job.store.has_arrays(s, tile.name)
        ]
        seconds[place] = sum(float(f["seconds"]) for f in facts)
    return {
        "status": (
            _status(job),
            {"flag_values": [0, 1, 2], "flag_meanings": "failed done beside_a_failed_tile"},
        ),
        "seconds": (seconds, {"units": "s", "long_name": "total time of the tile in all stages"}),
        "sky": (sky, {"long_name": "median sky"}),
        "noise": (noise, {"long_name": "median noise"}),
    }


def _count_sources(job: Job) -> Table:
    n_sources = np.zeros(job.plan.tiles.counts, np.int64)
    for tile in job.plan.tiles:
        facts = job.store.get_arrays("facts-measure", tile.name)
        n_sources[tile.row, tile.column] = int(facts["sources"])
    return {"n_sources": (n_sources, {"long_name": "sources whose peak is in the tile"})}


def _status(job: Job) -> NDArray[np.uint8]:
    done = job.store.done("predict")
    beside = np.zeros_like(done)
    for name in job.store.list_arrays("facts-predict"):
        beside[parse_tile_name(name)] = True
    return np.where(done, 1, np.where(beside, 2, 0)).astype(np.uint8)
