"""Stamps of bulge-plus-disk galaxies: components, noise and signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest

from fcnpipe.simulation.galaxies import SIDE, draw_galaxy


def test_image_minus_components_is_white_noise() -> None:
    rest = [
        stamp.image - stamp.bulge - stamp.disk
        for stamp in (draw_galaxy(seed) for seed in range(20))
    ]
    assert np.std(rest) == pytest.approx(1, abs=0.02)
    assert np.mean(rest) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_a_stamp_has_the_signal_to_noise_that_it_states(seed: int) -> None:
    stamp = draw_galaxy(seed)
    light = stamp.bulge + stamp.disk
    assert np.sqrt((light.astype(float) ** 2).sum()) == pytest.approx(stamp.snr, rel=1e-3)
    assert stamp.bulge.shape == (SIDE, SIDE)


def test_most_bulges_are_more_peaked_than_their_disks() -> None:
    stamps = [draw_galaxy(seed) for seed in range(20)]
    crest = [[part.max() / part.sum() for part in (s.bulge, s.disk)] for s in stamps]
    assert np.mean([bulge > disk for bulge, disk in crest]) > 0.8
    parts = np.array([stamp.bulge_to_total for stamp in stamps])
    assert 0 < parts.min() < 0.3
    assert 0.7 < parts.max() < 1
