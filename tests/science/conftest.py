"""Fixture of a crowded scene and its columns, measured by fcnpipe and by photutils."""

from __future__ import annotations

import numpy as np
import pytest
from photutils.segmentation import SegmentationImage, SourceCatalog

from fcnpipe.science.apertures import measure_apertures
from fcnpipe.science.moments import Columns
from tests.science.simulated_sources import (
    SHAPE,
    make_crowd,
    make_pixels,
    make_region,
    measure_moments,
)


@pytest.fixture(scope="session")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, Columns, SourceCatalog]:
    image, labels = make_crowd()
    noise = np.random.default_rng(1).uniform(0.8, 1.2, SHAPE).astype(np.float32)
    flags = np.zeros(SHAPE, np.uint8)
    columns = measure_moments(make_pixels(image, labels, noise, flags))
    columns |= measure_apertures(columns, make_region(image, labels, noise, flags))
    peer = SourceCatalog(image.astype(float), SegmentationImage(labels), error=noise.astype(float))
    return image, labels, noise, columns, peer
