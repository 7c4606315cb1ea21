"""For an aperture that extends beyond its tile's region, only the missing part is read."""

from __future__ import annotations

import numpy as np
import pytest

from fcnpipe.core.geometry import Box
from fcnpipe.pipeline.stages import measurement
from fcnpipe.science.aperture_regions import Region

FRAME = Box(0, 0, 90, 110)
NEAR = Box(20, 30, 60, 80)


@pytest.fixture
def whole():
    rng = np.random.default_rng(3)
    image, noise = rng.normal(size=(2, *FRAME.shape)).astype(np.float32)
    labels = rng.integers(0, 9, FRAME.shape, dtype=np.int32)
    flags = rng.integers(0, 3, FRAME.shape, dtype=np.uint8)
    return Region(image, noise, labels, flags, FRAME, FRAME.shape)


@pytest.mark.parametrize(
    "box",
    [
        FRAME,
        Box(25, 35, 50, 70),
        Box(0, 40, 90, 50),
        Box(10, 10, 40, 40),
        Box(50, 70, 90, 110),
        Box(0, 0, 10, 10),
    ],
)
def test_a_region_is_extended_by_reading_only_the_outside(monkeypatch, whole, box):
    read = np.zeros(FRAME.shape, int)

    def read_region(job, part):
        read[part.slices] += 1
        return whole.cut(part)

    monkeypatch.setattr(measurement, "_read_region", read_region)
    found = measurement._widen(None, whole.cut(NEAR), box)
    expected = whole.cut(box)
    assert (found.box, found.shape) == (box, FRAME.shape)
    for name in ("image", "noise", "labels", "flags"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    wanted = np.zeros(FRAME.shape, int)
    wanted[box.slices] = 1
    wanted[box.clip(NEAR).slices] = 0
    np.testing.assert_array_equal(read, wanted)
