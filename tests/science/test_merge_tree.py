"""Merge tree: minimum flux, records, joins, and the rule by which branches are absorbed."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.core.errors import PlanError
from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.science import merge_tree
from fcnpipe.science.basins import separate
from fcnpipe.science.merge_tree import (
    MILLION,
    BranchGraph,
    Criterion,
    PendingBranches,
    join,
)
from fcnpipe.testing.separation import TiledSeparation, tile_tree, true_sources


def leaf_graphs(edge: tuple[int, int] = (6, 7)) -> list[BranchGraph]:
    rng = np.random.default_rng(2)
    elevation = rng.integers(0, 9, (12, 14)).astype(np.uint16)
    mask = rng.random((12, 14)) < 0.8
    grid = TileGrid((12, 14), edge)
    reads = [(tile.core, tile.core.grow(1).clip(grid.frame).slices) for tile in grid]
    return [
        separate(elevation[s], mask[s], core, (12, 14), Criterion(2, 3)).graph for core, s in reads
    ]


@given(st.integers(0, 2**62), st.integers(0, MILLION))
def test_minimum_flux_is_exact_without_overflow(flux: int, ppm: int) -> None:
    minimum = int(merge_tree._minimum_flux(np.array([flux]), Criterion(mincont_ppm=ppm))[0])
    assert minimum >= Fraction(ppm, MILLION) * flux > minimum - 1


def test_records_survive_a_file() -> None:
    graphs = leaf_graphs()
    graph, pending = join(graphs[:2], Criterion(2, 3))
    for record, kind in ((graph, BranchGraph), (pending, PendingBranches)):
        file = io.BytesIO()
        np.savez(file, **record.to_arrays())
        file.seek(0)
        arrays = dict(np.load(file))
        again = kind.from_arrays(arrays).to_arrays()
        assert all(again[name].dtype == column.dtype for name, column in record.to_arrays().items())
        assert all((again[name] == column).all() for name, column in record.to_arrays().items())


def test_boxes_that_leave_a_gap_are_refused() -> None:
    graphs = leaf_graphs()
    with pytest.raises(PlanError, match="do not fill"):
        join([graphs[0], graphs[3]], Criterion(2, 3))


def test_the_order_of_children_changes_no_source() -> None:
    rng = np.random.default_rng(4)
    elevation = rng.integers(0, 5, (12, 14)).astype(np.uint16)
    tree = tile_tree(TileGrid((12, 14), (3, 4)), (4, 4))
    assert isinstance(tree, list)
    images = []
    for _ in range(5):
        rng.shuffle(tree)  # type: ignore[arg-type]
        run = TiledSeparation(elevation, elevation > 0, Criterion(1, 4)).run(tree)
        images.append(run.paint("source"))
    assert all((image == images[0]).all() for image in images)


def test_a_footprint_inside_a_tile_is_not_passed_up() -> None:
    elevation = np.zeros((8, 8), np.uint16)
    elevation[1:3, 1:3] = 5
    leaf = separate(elevation[:5, :5], elevation[:5, :5] > 0, Box(0, 0, 4, 4), (8, 8), Criterion())
    assert not any(map(len, (*leaf.graph.nodes, *leaf.graph.links, *leaf.graph.border)))


def test_the_adjacent_source_absorbs_pixels_not_the_highest() -> None:
    """The peak of 5 dies at 1 but stays a source; the peak of 3 touches only 5 and is absorbed by it, not by 9."""
    elevation = np.array([[9, 1, 5, 2, 3]], np.uint16)
    for edge in (1, 2, 3, 5):
        run = TiledSeparation(elevation, elevation > 0, Criterion(2))
        source = run.run(tile_tree(TileGrid((1, 5), (1, edge)))).paint("source")
        assert source.tolist() == [[0, 0, 2, 2, 2]]


def test_a_basin_follows_the_branch_that_absorbed_it() -> None:
    """The peak of 6 absorbs that of 4 across 3. It is itself too low above 5, so 9 absorbs both."""
    elevation = np.array([[9, 5, 6, 3, 4]], np.uint16)
    for edge in (1, 2, 5):
        run = TiledSeparation(elevation, elevation > 0, Criterion(2))
        source = run.run(tile_tree(TileGrid((1, 5), (1, edge)))).paint("source")
        assert source.tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize("edge", [(1, 1), (1, 5), (3, 1), (2, 2), (3, 5)])
def test_of_two_passes_at_one_pixel_the_first_in_raster_order_comes_first(
    edge: tuple[int, int],
) -> None:
    """The peak of 5 is too low above the pixel of 1, which touches the slopes of 9 and of 8."""
    elevation = np.array([[9, 3, 0, 4, 8], [0, 0, 1, 0, 0], [0, 0, 5, 0, 0]], np.uint16)
    for image in (elevation, elevation[:, ::-1]):
        run = TiledSeparation(image, image > 0, Criterion(5))
        paint = run.run(tile_tree(TileGrid((3, 5), edge))).paint("source")
        assert set(paint[1:][image[1:] > 0]) == {0}
        np.testing.assert_array_equal(paint, true_sources(image, image > 0, Criterion(5))[0])


def test_contrast_counts_the_whole_footprint() -> None:
    """A branch with flux 10 of 100 is a source at 10 % but not at 11 %, also if tiles cut the footprint."""
    elevation = np.array([[9, 8, 8, 8, 1, 5]], np.uint16)
    flux = np.array([[40, 30, 10, 9, 1, 10]])
    for ppm, sources in ((100_000, {0, 5}), (110_000, {0})):
        for edge in (1, 2, 3, 6):
            run = TiledSeparation(elevation, elevation > 0, Criterion(0, 1, ppm), flux)
            source = run.run(tile_tree(TileGrid((1, 6), (1, edge)))).paint("source")
            assert set(source.flat) == sources


def test_a_pending_branch_follows_another_pending_branch() -> None:
    """The peak of 3 is too faint and 5, which is bright enough, absorbs it; both decisions need the flux of 9."""
    elevation = np.array([[3, 2, 5, 1, 6, 8, 9]], np.uint16)
    flux = np.array([[1, 0, 50, 0, 10, 10, 100]])
    for edge in (1, 2, 3, 5, 7):
        run = TiledSeparation(elevation, elevation > 0, Criterion(0, 1, 100_000), flux)
        source = run.run(tile_tree(TileGrid((1, 7), (1, edge)))).paint("source")
        assert source.tolist() == [[2, 2, 2, 6, 6, 6, 6]]
