"""The separation over any tree of tiles equals the reference implementation without tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.science.basins import separate_whole
from fcnpipe.science.merge_tree import MILLION, Criterion
from fcnpipe.testing.separation import TiledSeparation, Tree, tile_tree, true_sources

EIGHT = np.ones((3, 3), bool)


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int]) -> NDArray[np.bool_]:
    kind = draw(st.sampled_from(["random", "full", "checkerboard", "spiral", "stripes"]))
    y, x = np.indices(shape)
    if kind == "random":
        seed, density = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.3, 0.6, 0.9]))
        return np.random.default_rng(seed).random(shape) < density
    if kind == "spiral":
        return spiral(shape)
    return {"full": y >= 0, "checkerboard": (y + x) % 2 == 0, "stripes": (y % 2 == 0) | (x == 3)}[
        kind
    ]


@st.composite
def elevations(draw: st.DrawFn, shape: tuple[int, int]) -> NDArray[np.uint16]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 4, 30, 65536]))
    lowest = draw(st.sampled_from([0, 65536 - levels]))
    return (lowest + rng.integers(0, levels, shape)).astype(np.uint16)


@st.composite
def criteria(draw: st.DrawFn) -> Criterion:
    return Criterion(
        draw(st.sampled_from([0, 1, 10, 20000])),
        draw(st.sampled_from([1, 3, 8, 30])),
        draw(st.sampled_from([0, 0, 1, 50_000, 200_000, MILLION])),
        extended=draw(st.sampled_from([0, 0, 1, 5, 20])),
        extended_dynamics=draw(st.sampled_from([0, 2, 30000])),
    )


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, int]) -> NDArray[np.int64]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, draw(st.sampled_from([1, 2, 10, 2**40])), shape)


@st.composite
def trees(draw: st.DrawFn, box: Box) -> Tree:
    """Divide a box at random into tiles of any size, with the children in any order."""
    y = draw(st.integers(box.y0, box.y1 - 1))
    x = draw(st.integers(box.x0, box.x1 - 1))
    parts = [
        part
        for part in (
            Box(box.y0, box.x0, y, x),
            Box(box.y0, x, y, box.x1),
            Box(y, box.x0, box.y1, x),
            Box(y, x, box.y1, box.x1),
        )
        if part.size
    ]
    if len(parts) == 1 or draw(st.integers(0, 3)) == 0:
        return box
    return [draw(trees(part)) for part in draw(st.permutations(parts))]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    criterion, flux = draw(criteria()), draw(weights(shape))
    if draw(st.booleans()):
        criterion = criterion._replace(flux_limit=int(flux.sum()))
    maps = draw(elevations(shape)), draw(masks(shape)), criterion, flux
    return maps, draw(trees(Box(0, 0, *shape)))


def spiral(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a spiral path one pixel wide that does not touch itself."""
    mask = np.zeros(shape, bool)
    mask[0] = True
    start, box = 0, Box(0, 0, shape[0] - 1, shape[1] - 1)
    while min(box.shape) > 2:
        mask[box.y0, start : box.x1 + 1] = mask[box.y0 : box.y1 + 1, box.x1] = True
        mask[box.y1, box.x0 : box.x1 + 1] = mask[box.y0 + 2 : box.y1 + 1, box.x0] = True
        start, box = box.x0, box.grow(-2)
    return mask


def smooth_noise(shape: tuple[int, int], seed: int) -> NDArray[np.uint16]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (np.clip(noise + 1, 0, 2) * 32767).astype(np.uint16)


@settings(max_examples=100)
@given(cases())
def test_any_tree_of_tiles_equals_the_reference(case: tuple[Any, ...]) -> None:
    maps, tree = case
    source, footprint = true_sources(*maps)
    run = TiledSeparation(*maps).run(tree)
    np.testing.assert_array_equal(run.paint("source"), source)
    np.testing.assert_array_equal(run.paint("footprint"), footprint)
    assert not len(run.graphs[-1].nodes.peak_key)


@settings(max_examples=25)
@given(cases(), st.integers(1, 12), st.integers(0, 60000), st.none() | st.integers(1, 20))
def test_labels_are_the_ranks_of_the_selected_sources(
    case: tuple[Any, ...], minarea: int, minpeak: int, broad: int | None
) -> None:
    maps, tree = case
    source, footprint = true_sources(*maps)
    found, areas = np.unique(source[source >= 0], return_counts=True)
    peaks = maps[0].reshape(-1)[found].astype(int)
    sure = np.zeros(len(areas), bool) if broad is None else areas >= broad
    stays = (areas >= minarea) & (sure | (peaks >= minpeak))
    labels, selection = TiledSeparation(*maps).run(tree).labels(minarea, minpeak, broad)
    np.testing.assert_array_equal(selection.source, found[stays])
    np.testing.assert_array_equal(selection.area, areas[stays])
    np.testing.assert_array_equal(selection.peak, peaks[stays])
    rank = {-1: 0} | {int(s): 0 for s in found} | {int(s): i for i, s in enumerate(found[stays], 1)}
    np.testing.assert_array_equal(labels, np.vectorize(rank.get)(source))
    homes = list(footprint.reshape(-1)[found[stays]])
    np.testing.assert_array_equal(selection.divided, [homes.count(home) > 1 for home in homes])


@settings(max_examples=6)
@given(st.integers(0, 2**32), st.tuples(st.integers(6, 50), st.integers(6, 90)), criteria())
@example(seed=1, edge=(17, 384), criterion=Criterion(2000, 5, 50_000))
@example(seed=2, edge=(1, 384), criterion=Criterion(2000, 5))
@example(seed=3, edge=(48, 1), criterion=Criterion(500, 3, 1000))
@example(seed=0, edge=(16, 50), criterion=Criterion(500, 3, extended=60, extended_dynamics=4000))
def test_strips_and_squares_equal_one_tile(
    seed: int, edge: tuple[int, int], criterion: Criterion
) -> None:
    shape = (48, 400)
    elevation = smooth_noise(shape, seed)
    mask = elevation > np.quantile(elevation, [0, 0.3, 0.5, 0.8][seed % 4])
    maps = elevation, mask, criterion, elevation.astype(np.int64)
    truth = TiledSeparation(*maps).run(Box(0, 0, *shape)).paint("source")
    for fan in ((2, 2), (3, 5), shape):
        tree = tile_tree(TileGrid(shape, edge), fan)
        np.testing.assert_array_equal(TiledSeparation(*maps).run(tree).paint("source"), truth)


def test_footprints_are_those_of_scipy() -> None:
    elevation = smooth_noise((90, 120), 8)
    mask = elevation > 33000
    labels, _ = ndimage.label(mask, EIGHT)
    run = TiledSeparation(elevation, mask, Criterion(300, 2))
    footprint = run.run(tile_tree(TileGrid(mask.shape, (17, 23)))).paint("footprint")
    for label in range(1, labels.max() + 1):
        inside = labels == label
        highest = np.flatnonzero(inside)[np.argmax(elevation[inside])]
        assert (footprint[inside] == highest).all()
    assert (footprint[~mask] == -1).all()


def test_a_spiral_is_one_footprint_over_many_tiles() -> None:
    mask = spiral((41, 37))
    assert ndimage.label(mask, EIGHT)[1] == 1
    assert mask.sum() > 400
    flat = np.zeros(mask.shape, np.uint16)  # all elevations are equal: only the index decides
    source = TiledSeparation(flat, mask, Criterion(1)).run(tile_tree(TileGrid(mask.shape, (5, 4))))
    assert set(source.paint("source")[mask]) == {int(np.flatnonzero(mask)[0])}


@pytest.mark.parametrize("ppm", [0, 2000])
def test_graphs_grow_with_the_perimeter(ppm: int) -> None:
    """In a percolating field, a box of four times the pixels passes up about twice the data."""
    elevation = smooth_noise((512, 512), 3)
    flux = elevation.astype(np.int64)
    criterion = Criterion(2000, 5, ppm, int(flux.sum()))
    run = TiledSeparation(elevation, elevation >= 0, criterion, flux)
    run.run(tile_tree(TileGrid((512, 512), (64, 64))))
    largest = {
        edge: max(
            sum(column.nbytes for column in graph.to_arrays().values())
            for graph in run.graphs
            if graph.box.shape == (edge, edge)
        )
        for edge in (64, 128, 256, 512)
    }
    assert largest[128] < 2.6 * largest[64]
    assert largest[256] < 2.6 * largest[128]
    assert largest[512] < 200


def test_separate_whole_equals_tiles() -> None:
    elevation = smooth_noise((60, 70), 4)
    mask, criterion = elevation > 30000, Criterion(900, 4)
    labels, selection = separate_whole(elevation, mask, criterion, minpeak=36000, broad=30)
    run = TiledSeparation(elevation, mask, criterion).run(tile_tree(TileGrid(mask.shape, (16, 16))))
    tiled, same = run.labels(criterion.minarea, 36000, 30)
    np.testing.assert_array_equal(labels, tiled)
    np.testing.assert_array_equal(selection.source, same.source)
