"""Verification in steps: `check_tile` for each tile, then `check_sums`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnpipe.core.errors import VerificationError
from fcnpipe.stores import ZarrStore
from fcnpipe.stores.verification import count_pixels
from fcnpipe.testing.small_run import LAYOUT, do_tile, make_catalogue


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_pixels_are_counted_as_numpy_does(seed: int, height: int, width: int, kinds: int) -> None:
    labels = np.random.default_rng(seed).integers(0, kinds, (height, width), np.int32)
    names, counts = np.unique(labels[labels > 0], return_counts=True)
    found = count_pixels(labels)
    np.testing.assert_array_equal(found[0], names)
    np.testing.assert_array_equal(found[1], counts)
    assert (found[0].dtype, found[1].dtype) == (np.int32, np.int64)


@pytest.fixture
def written(partial: ZarrStore) -> ZarrStore:
    """Partial store of the small run with all tiles and the catalogue, not yet verified."""
    for tile in LAYOUT.grid:
        do_tile(partial, tile)
    partial.write_sources([make_catalogue()], 4)
    return partial


def verify_in_steps(store: ZarrStore) -> list[str]:
    return store.check_sums(store.check_tile(tile) for tile in LAYOUT.grid)


def test_a_good_store_has_no_problems(written: ZarrStore) -> None:
    assert verify_in_steps(written) == []


def test_a_source_on_four_tiles_is_added_up(written: ZarrStore) -> None:
    checks = [written.check_tile(tile) for tile in LAYOUT.grid]
    pixels = sum(int(c.counts[c.labels == 2].sum()) for c in checks)
    assert sum(2 in c.labels for c in checks) == 4
    assert pixels == make_catalogue()["area"][0][1]


def clear_a_pixel(store: ZarrStore) -> None:
    core = LAYOUT.grid.tile(0, 0).core
    labels = store.read("label", core)
    labels[0, 0] = 0
    store.write_tile("label", core, labels)


def delete_a_shard(store: ZarrStore) -> None:
    (store.path / "image/0/label/c/0/0").unlink()


def write_an_unknown_label(store: ZarrStore) -> None:
    core = LAYOUT.grid.tile(1, 2).core
    store.write_tile("label", core, np.full(core.shape, 9, np.int32))


def reverse_the_catalogue(store: ZarrStore) -> None:
    columns = make_catalogue()
    columns = {name: (values[::-1].copy(), attrs) for name, (values, attrs) in columns.items()}
    store.write_sources([columns], 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (clear_a_pixel, "area is not the number of pixels: labels 1"),
        (delete_a_shard, "peak pixels with another label: labels 1"),
        (delete_a_shard, "rows without a pixel: labels 1"),
        (write_an_unknown_label, "labels without a row in r001c002: 9"),
        (reverse_the_catalogue, "labels of the catalogue are not 1, 2, ..."),
        (reverse_the_catalogue, "source_id does not increase"),
    ],
)
def test_the_steps_find_the_problems_that_verify_finds(
    written: ZarrStore, damage: Callable[[ZarrStore], None], message: str
) -> None:
    damage(written)
    problems = verify_in_steps(written)
    assert any(message in problem for problem in problems)
    assert set(problems) <= set(written.verify().problems)


def test_a_store_with_an_unmarked_tile_is_not_published_even_if_checked(written: ZarrStore) -> None:
    assert verify_in_steps(written) == []
    (written.path / "ledger/c/1/2/1").unlink()
    with pytest.raises(VerificationError, match="stage label is not done for r002c001"):
        written.publish(checked=True)
    assert written.attrs["status"] == "partial"
