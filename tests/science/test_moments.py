"""Isophotal columns: comparison with photutils, and special cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fcnpipe.core.records import SourceFlag
from tests.science.simulated_sources import (
    SHAPE,
    label_above,
    make_gaussian,
    make_pixels,
    measure,
    measure_moments,
)


@pytest.mark.parametrize(
    "name",
    [
        "label", "x_centroid", "y_centroid", "bbox_xmin", "bbox_xmax", "bbox_ymin", "bbox_ymax",
        "area", "covariance_xx", "covariance_xy", "covariance_yy", "semimajor_axis",
        "semiminor_axis", "orientation", "eccentricity", "elongation", "ellipticity", "ellipse_cxx",
        "ellipse_cxy", "ellipse_cyy", "fwhm", "segment_flux", "segment_flux_err", "max_value",
        "min_value", "max_value_xindex", "max_value_yindex", "min_value_xindex", "min_value_yindex",
    ],
)  # fmt: skip
def test_isophotal_columns_are_those_of_photutils(scene, name):
    *_, columns, peer = scene
    np.testing.assert_allclose(columns[name], np.asarray(getattr(peer, name)), rtol=1e-6, atol=1e-7)


def test_source_without_positive_pixels_has_finite_columns():
    image, labels = label_above(make_gaussian((100, 90), (3, 2), 0.0, 2000))
    columns = measure(-image, labels)
    assert columns["segment_flux"][0] < 0
    assert abs(columns["x_centroid"][0] - 90) < 1
    assert abs(columns["y_centroid"][0] - 100) < 1
    assert all(np.isfinite(columns[name]).all() for name in ("semimajor_axis", "x_winpos", "snr"))
    assert columns["flags"][0] & SourceFlag.ISOPHOTE_INCOMPLETE


@pytest.mark.parametrize("where", [(0, 0), (299, 319), (150, 0)])
def test_single_pixel_source_is_measured(where):
    image, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int32)
    image[where], labels[where] = 50, 1
    columns = measure(image, labels)
    assert (columns["y_centroid"][0], columns["x_centroid"][0]) == where
    np.testing.assert_allclose(columns["semimajor_axis"], np.sqrt(1 / 12))
    assert columns["flags"][0] & SourceFlag.TRUNCATED


def test_saturated_pixels_are_counted_and_flagged():
    image, labels = label_above(make_gaussian((100, 90), (2, 2), 0.0, 5000))
    flags = np.zeros(SHAPE, np.uint8)
    flags[100, 89:92] = 4
    columns = measure(image, labels, flags)
    assert columns["saturated_pixels"].tolist() == [3]
    assert columns["flags"].tolist() == [int(SourceFlag.SATURATED)]


def test_class_is_the_most_probable_output_after_the_first():
    image, labels = label_above(make_gaussian((100, 90), (2, 2), 0.0, 5000))
    pixels = make_pixels(image, labels, np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.uint8))
    maps = np.zeros((3, *SHAPE), np.uint8)
    maps[0], maps[1], maps[2] = 204, 20, 180
    columns = measure_moments(dataclasses.replace(pixels, probability=maps))
    assert columns["class"].tolist() == [2]
    np.testing.assert_allclose(columns["probability"], 0.8)
