"""Sums do not depend on the tiling, and apertures do not depend on the region that is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.science.aperture_regions import Region
from fcnpipe.science.apertures import aperture_boxes, measure_apertures
from fcnpipe.science.moments import measure_isophotes
from fcnpipe.science.sums import (
    FLUX_LIMIT,
    VARIANCE_LIMIT,
    Pixels,
    Sums,
    accumulate,
    combine,
    int128_to_float,
)

SLOW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
UNIT = 2.0**-12
MARGINS = st.sampled_from([0, 1, 30])


def scene(shape: tuple[int, int], seed: int, sources: int) -> Pixels:
    """Return random blobs of labels over values of the whole fixed-point range."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for label in range(1, sources + 1):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        h, w = rng.integers(1, 9, 2)
        labels[max(y - h, 0) : y + h, max(x - w, 0) : x + w][
            rng.random(labels[max(y - h, 0) : y + h, max(x - w, 0) : x + w].shape) < 0.8
        ] = label
    scale = 10.0 ** rng.uniform(0, 12, shape)
    value = np.clip(np.rint(scale * rng.choice([-1, 1, 1], shape)), -FLUX_LIMIT, FLUX_LIMIT)
    value[rng.random(shape) < 0.3] = 7  # ties
    return Pixels(
        labels,
        value.astype(np.int64),
        rng.integers(0, VARIANCE_LIMIT, shape, endpoint=True),
        rng.integers(0, 256, (2, *shape)).astype(np.uint8),
        rng.integers(0, 65536, shape).astype(np.uint16),
        (rng.random(shape) < 0.05).astype(np.uint8) * rng.choice([1, 2, 4], shape).astype(np.uint8),
        Box(0, 0, *shape),
        shape,
    )


def peaks(pixels: Pixels, sources: int) -> np.ndarray:
    """Return a pixel of each label; (0, 0) for labels without pixels."""
    anchors = np.zeros((sources, 2), np.int64)
    for label in range(1, sources + 1):
        where = np.argwhere(pixels.labels == label)
        if len(where):
            anchors[label - 1] = where[len(where) // 3]
    return anchors


def cut(pixels: Pixels, core: Box) -> Pixels:
    """Return the maps that the task of one tile reads."""
    inner, around = core.slices, core.grow(1).clip(pixels.frame)
    return Pixels(
        pixels.labels[inner],
        pixels.value[inner],
        pixels.variance[inner],
        pixels.probability[:, inner[0], inner[1]],
        pixels.elevation[inner],
        pixels.flags[around.slices],
        core,
        pixels.shape,
    )


def same(a: Sums, b: Sums) -> bool:
    left, right = a.to_arrays(), b.to_arrays()
    return all(np.array_equal(left[name], right[name]) for name in left)


@SLOW
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 200)),
    edge=st.tuples(st.integers(1, 40), st.integers(1, 150)),
    sources=st.integers(0, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_and_columns_do_not_depend_on_the_tiling(shape, edge, sources, seed):
    pixels = scene(shape, seed, sources)
    anchors = peaks(pixels, sources)
    whole = accumulate(pixels, anchors)
    parts = [accumulate(cut(pixels, tile.core), anchors) for tile in TileGrid(shape, edge)]
    np.random.default_rng(seed).shuffle(parts)
    total = combine(parts)
    assert same(total, whole)
    expected = measure_isophotes(whole, UNIT, UNIT, shape[1])
    for name, column in measure_isophotes(total, UNIT, UNIT, shape[1]).items():
        np.testing.assert_array_equal(column, expected[name])


@SLOW
@given(
    cuts=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_may_be_added_in_any_grouping(cuts, seed):
    pixels = scene((40, 50), seed, 9)
    anchors = peaks(pixels, 9)
    parts = [accumulate(cut(pixels, tile.core), anchors) for tile in TileGrid((40, 50), (6, 50))]
    groups = [
        [part for k, part in enumerate(parts) if k % len(cuts) == c] for c in range(len(cuts))
    ]
    nested = combine([combine(group) for group in groups if group])
    assert same(nested, accumulate(pixels, anchors))


@SLOW
@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 90)), seed=st.integers(0, 2**32 - 1))
def test_sums_equal_those_of_unbounded_integers(shape, seed):
    pixels = scene(shape, seed, 3)
    # Products with a distant anchor exceed 64 bits.
    anchors = np.array([[0, 0], [2**20, 2**19], [-(2**20), 2**20]], np.int64)
    sums = accumulate(pixels, anchors)
    for row, label in enumerate(sums.label):
        ys, xs = np.nonzero(pixels.labels == label)
        expected = [0] * 8
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            q, dy, dx = (
                int(pixels.value[y, x]),
                y - int(anchors[label - 1, 0]),
                x - int(anchors[label - 1, 1]),
            )
            m = max(q, 0)
            terms = (
                q,
                int(pixels.variance[y, x]),
                m,
                m * dy,
                m * dx,
                m * dy * dy,
                m * dy * dx,
                m * dx * dx,
            )
            expected = [a + b for a, b in zip(expected, terms, strict=True)]
        assert [to_int(sums.exact[row, k]) for k in range(8)] == expected
        np.testing.assert_allclose(
            int128_to_float(sums.exact[row]), [float(v) for v in expected], rtol=1e-15
        )


def to_int(wide: np.ndarray) -> int:
    value = int(wide[0]) + (int(wide[1]) << 64)
    return value - (1 << 128) if value >> 127 else value


def test_sums_beyond_64_bits_are_exact():
    """A source of a million pixels of 2^40 each, far from its anchor."""
    shape = (1000, 1000)
    full = np.full(shape, FLUX_LIMIT, np.int64)
    ones = np.ones(shape, np.int32)
    pixels = Pixels(
        ones, full, full, np.zeros((1, *shape), np.uint8), np.zeros(shape, np.uint16),
        np.zeros(shape, np.uint8), Box(0, 0, *shape), shape,
    )  # fmt: skip
    sums = accumulate(pixels, np.array([[-(2**20), 2**20]], np.int64))
    ys, xs = range(2**20, 2**20 + 1000), range(-(2**20), -(2**20) + 1000)
    assert to_int(sums.exact[0, 0]) == FLUX_LIMIT * 10**6
    assert to_int(sums.exact[0, 6]) == FLUX_LIMIT * sum(ys) * sum(xs)
    assert to_int(sums.exact[0, 7]) == FLUX_LIMIT * 1000 * sum(x * x for x in xs)


@pytest.fixture(scope="module")
def field() -> tuple[dict[str, np.ndarray], Region]:
    """Return overlapping sources with noise, some at the border, some over bad pixels."""
    rng = np.random.default_rng(11)
    shape = (260, 280)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image, labels = np.zeros(shape), np.zeros(shape, np.int32)
    best = np.full(shape, 1.5)
    for label in range(1, 31):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        radii = rng.uniform(1, 6, 2)
        # Wings so wide that the Kron radius is above its minimum.
        blob = (
            rng.uniform(20, 400)
            / (1 + ((y - cy) / radii[0]) ** 2 + ((x - cx) / radii[1]) ** 2) ** 2
        )
        image += blob
        labels[blob > best] = label
        best = np.maximum(best, blob)
    image = (image + rng.standard_normal(shape)).astype(np.float32)
    flags = (rng.random(shape) < 0.01).astype(np.uint8)
    labels[flags > 0] = 0
    value = np.rint(np.where(flags, 0, image) / UNIT).astype(np.int64)
    pixels = Pixels(
        labels, value, np.full(shape, 2**20), np.zeros((1, *shape), np.uint8),
        np.zeros(shape, np.uint16), flags, Box(0, 0, *shape), shape,
    )  # fmt: skip
    columns = measure_isophotes(accumulate(pixels, peaks(pixels, 30)), UNIT, UNIT, shape[1])
    image[flags > 0] = np.nan
    noise = np.ones(shape, np.float32)
    return columns, Region(image, noise, labels, flags, Box(0, 0, *shape), shape)


@SLOW
@given(data=st.data(), row=st.integers(0, 25), cap=st.sampled_from([512.0, 12.0, 4.0]))
def test_apertures_do_not_depend_on_the_region(field, data, row, cap):
    columns, whole = field
    one = {name: values[row % len(values)][None] for name, values in columns.items()}
    box = Box(*aperture_boxes(one, whole.shape, cap)[0].tolist())
    wider = Box(
        *(low - data.draw(MARGINS) for low in (box.y0, box.x0)),
        *(high + data.draw(MARGINS) for high in (box.y1, box.x1)),
    ).clip(whole.box)
    alone = measure_apertures(one, crop(whole, wider), cap)
    together = measure_apertures(columns, whole, cap)
    for name, values in together.items():
        np.testing.assert_array_equal(alone[name][0], values[row % len(values)])


def crop(region: Region, box: Box) -> Region:
    cuts = {
        name: getattr(region, name)[box.slices] for name in ("image", "noise", "labels", "flags")
    }
    return dataclasses.replace(region, box=box, **cuts)


def test_a_region_that_is_too_small_raises(field):
    columns, whole = field
    with pytest.raises(ValueError, match="does not contain"):
        measure_apertures(columns, crop(whole, Box(0, 0, 60, 60)))
