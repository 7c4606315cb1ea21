"""Quantised thresholds, flux units and the elevation of the sky."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.science import quantisation


@given(st.floats(0, 1), st.integers(0, 65535))
def test_quantised_threshold_selects_the_same_pixels(fraction: float, value: int) -> None:
    passes = value >= quantisation.quantise_threshold(fraction, 65535)
    if abs(value / 65535 - fraction) > 1e-9:
        assert passes == (value / 65535 >= fraction)


@given(st.floats(1e-12, 1e12))
def test_the_unit_resolves_the_noise(noise: float) -> None:
    steps = noise / quantisation.flux_unit(noise)
    assert 2**14 <= steps < 2**15


@given(seed=st.integers(0, 99), foreground=st.integers(4, 255))
def test_the_sky_has_no_elevation_and_the_foreground_keeps_its_own(
    seed: int, foreground: int
) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.integers(0, 256, (9, 11), np.uint8)
    before = rng.integers(1, 65536, (9, 11)).astype(np.uint16)
    after = before.copy()
    quantisation.zero_sky_elevation(after, probability, foreground)
    kept = after == before
    assert kept[probability >= foreground].all()
    assert kept[4 * probability.astype(int) >= foreground].all()
    assert (after[~kept] == 0).all()
    assert not kept[4 * (probability.astype(int) + 1) <= foreground].any()
