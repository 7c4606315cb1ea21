"""Boxes and tile grids: cores partition the image for any sizes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.core.errors import PlanError
from fcnpipe.core.geometry import (
    Box,
    Node,
    TileGrid,
    list_levels,
    parse_node_name,
    parse_tile_name,
    round_up,
)

sizes = st.integers(1, 70)
boxes = st.builds(Box, *[st.integers(-20, 40)] * 2, *[st.integers(41, 90)] * 2)


@given(sizes, sizes, sizes, sizes)
def test_cores_partition_the_image(height: int, width: int, rows: int, columns: int) -> None:
    grid = TileGrid((height, width), (rows, columns))
    covered = np.zeros((height, width), int)
    for tile in grid:
        covered[tile.core.slices] += 1
        assert parse_tile_name(tile.name) == (tile.row, tile.column)
    assert (covered == 1).all()
    assert len(list(grid)) == len(grid)


@given(sizes, sizes, sizes, boxes)
def test_cores_in_a_box_partition_it(height: int, width: int, edge: int, box: Box) -> None:
    grid = TileGrid((height, width), (edge, edge))
    box = box.clip(grid.frame)
    covered = np.zeros((height, width), int)
    for part in grid.cores_in(box):
        covered[part.slices] += 1
    assert covered.sum() == box.size == covered[box.slices].sum()
    assert covered.max(initial=0) <= 1


@given(boxes, boxes)
def test_clip_is_the_intersection_and_hull_contains_both(a: Box, b: Box) -> None:
    pixels = {(y, x) for y in range(a.y0, a.y1) for x in range(a.x0, a.x1)}
    others = {(y, x) for y in range(b.y0, b.y1) for x in range(b.x0, b.x1)}
    assert a.clip(b).size == len(pixels & others)
    assert a.hull(b).contains(a)
    assert a.hull(b).contains(b)


def test_within_cuts_the_same_pixels() -> None:
    image = np.arange(200).reshape(10, 20)
    outer, inner = Box(2, 3, 9, 17), Box(4, 5, 8, 11)
    cut = image[outer.slices][inner.within(outer)]
    np.testing.assert_array_equal(cut, image[inner.slices])


def test_tile_at_is_the_inverse_of_the_core() -> None:
    grid = TileGrid((30, 50), (7, 11))
    assert all(grid.tile_at(t.core.y1 - 1, t.core.x1 - 1) == t for t in grid)


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_round_up_is_the_smallest_multiple(value: int, step: int) -> None:
    assert round_up(value, step) % step == 0
    assert 0 <= round_up(value, step) - value < step


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(PlanError, match="sizes must be >= 1"):
        TileGrid((0, 5), (3, 3))


@given(st.integers(1, 20), st.integers(1, 20))
def test_the_quad_tree_contains_every_tile_once(rows: int, columns: int) -> None:
    levels = list_levels((rows, columns))
    assert len(levels[-1]) == 1
    for below, above in pairwise(levels):
        found = [child for node in above for child in node.children((rows, columns))]
        assert sorted(found) == below
    assert all(parse_node_name(node.name) == node for nodes in levels for node in nodes)
    assert isinstance(levels[0][0], Node)
