"""Separation of one tile: basins, upper links, border pixels, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from fcnpipe.core.errors import PlanError
from fcnpipe.core.geometry import Box
from fcnpipe.science.basins import MAY_BE_SADDLE, UPPER_COMPONENT, separate, separate_whole
from fcnpipe.science.merge_tree import Criterion
from fcnpipe.science.pixel_order import NEIGHBOURS, key_index
from fcnpipe.testing.separation import true_sources


@given(st.integers(0, 255))
def test_components_of_higher_neighbours_are_those_of_scipy(pattern: int) -> None:
    square = np.zeros((3, 3), bool)
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        square[1 + dy, 1 + dx] = pattern >> direction & 1
    labels, count = ndimage.label(square, np.ones((3, 3)))
    assert MAY_BE_SADDLE[pattern] == (count > 1)
    for direction, (dy, dx) in enumerate(NEIGHBOURS):
        if label := labels[1 + dy, 1 + dx]:
            members = [d for d, (y, x) in enumerate(NEIGHBOURS) if labels[1 + y, 1 + x] == label]
            assert UPPER_COMPONENT[pattern, direction] == min(members)


def test_every_basin_is_a_source_without_a_criterion() -> None:
    elevation = np.random.default_rng(1).integers(0, 4, (30, 40)).astype(np.uint16)
    labels, selection = separate_whole(elevation, elevation > 0, Criterion())
    source, _ = true_sources(elevation, elevation > 0, Criterion())
    np.testing.assert_array_equal(np.append(-1, selection.source)[labels], source)


def test_a_plateau_is_one_basin() -> None:
    labels, selection = separate_whole(
        np.full((6, 9), 7, np.uint16), np.ones((6, 9), bool), Criterion()
    )
    assert (labels == 1).all()
    assert selection.source.tolist() == [0]


def test_corners_connect() -> None:
    mask = np.eye(5, dtype=bool)
    labels, _ = separate_whole(np.eye(5, dtype=np.uint16), mask, Criterion(1))
    assert (labels == mask).all()


@pytest.mark.parametrize("value", [0, 65535])
def test_the_ends_of_the_scale_are_elevations_like_others(value: int) -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    labels, selection = separate_whole(np.full((3, 4), value, np.uint16), mask, Criterion())
    assert (labels == mask).all()
    assert selection.peak.tolist() == [value]


def test_pixels_outside_the_mask_are_ignored() -> None:
    elevation = np.full((4, 5), 65535, np.uint16)
    mask = np.zeros((4, 5), bool)
    mask[1, 1] = mask[1, 3] = True
    elevation[mask] = 1
    labels, _ = separate_whole(elevation, mask, Criterion())
    assert labels[1].tolist() == [0, 1, 0, 2, 0]


def test_border_has_the_pixels_with_foreground_beyond_the_core() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 1:4] = mask[3, 1] = True
    graph = separate(
        mask[:3, :4].astype(np.uint16), mask[:3, :4], Box(0, 0, 2, 3), (4, 5), Criterion()
    ).graph
    assert graph.border.pixel.tolist() == [1 * 5 + 2]
    assert graph.border.exits.tolist() == [1 << 4]


def test_a_path_that_leaves_the_tile_ends_in_a_ghost() -> None:
    ramp = np.arange(1, 6, dtype=np.uint16)[None]
    graph = separate(ramp[:, :4], ramp[:, :4] > 0, Box(0, 0, 1, 3), (1, 5), Criterion()).graph
    assert graph.nodes.ghost.tolist() == [True]
    assert key_index(graph.nodes.peak_key).tolist() == [3]
    assert graph.nodes.area.tolist() == [3]


def test_arrays_without_the_halo_are_refused() -> None:
    with pytest.raises(PlanError, match="1 px more on each side"):
        separate(
            np.zeros((2, 2), np.uint16), np.ones((2, 2), bool), Box(0, 0, 2, 2), (4, 5), Criterion()
        )


def test_contrast_without_weights_is_refused() -> None:
    with pytest.raises(PlanError, match="needs weights"):
        separate_whole(np.zeros((4, 5), np.uint16), np.ones((4, 5), bool), Criterion(0, 1, 5))


def test_more_pixels_than_a_key_can_hold_are_refused() -> None:
    small = np.zeros((4, 5), np.uint16)
    with pytest.raises(PlanError, match=r"2\*\*45"):
        separate(small, small > 0, Box(0, 0, 3, 4), (2**23, 2**23), Criterion())
