"""Targets and input of the network for simulated scenes."""

import numpy as np
import pytest

from fcnpipe.simulation.profiles import DiskStructure, SersicComponent
from fcnpipe.simulation.psfs import PsfShape, bin_psf
from fcnpipe.simulation.scenes import GALAXY, STAR, Source, compose, draw
from fcnpipe.simulation.skies import SkySpec
from fcnpipe.training.targets import make_example, make_input, make_targets, make_truth, quantise

PLAIN = SkySpec(0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def pair():
    psf = bin_psf(PsfShape(fwhm_px=3.0, beta=3.0))
    sources = [Source(30, 30, 2000.0, STAR), Source(30, 34, 1000.0, STAR)]
    return compose(sources, psf, (64, 64), PLAIN, np.random.default_rng(0))


def test_heat_is_one_at_each_centre(pair):
    _, heat, _ = make_targets(pair)
    assert heat[30, 30] == heat[30, 34] == 1
    assert heat[30, 32] < 0.3
    assert heat[:20].max() == 0


def test_the_relief_is_high_at_the_centres_and_low_at_the_border(pair):
    _, _, relief = make_targets(pair)
    row = relief[30]
    assert row[30] > 0.3
    assert row[34] > 0.2
    assert row[31:34].min() < 0.6 * row[34]
    assert (relief[pair.label == 0] == 0).all()


def test_source_is_the_footprint_of_the_detectable_sources(pair):
    source, _, _ = make_targets(pair)
    np.testing.assert_array_equal(source == 1, pair.label > 0)


def test_sources_that_are_too_faint_are_in_no_target():
    psf = bin_psf(PsfShape(fwhm_px=3.0, beta=3.0))
    faint = Source(20, 20, 2.0 * np.sqrt(psf.area_px), STAR)
    scene = compose([faint], psf, (40, 40), PLAIN, np.random.default_rng(0))
    assert not make_targets(scene).any()


def test_the_relief_of_a_spiral_has_one_maximum():
    psf = bin_psf(PsfShape(fwhm_px=2.5, beta=3.0))
    parts = (SersicComponent(2e5, 1.0, 12.0, 0.8, 0.3),)
    galaxy = Source(64, 64, 2e5, GALAXY, parts, DiskStructure(count=2, strength=0.6, clumps=0.4))
    scene = compose([galaxy], psf, (128, 128), PLAIN, np.random.default_rng(0))
    relief = make_targets(scene)[2]
    inner = relief[1:-1, 1:-1]
    neighbours = [
        np.roll(relief, s, (0, 1))[1:-1, 1:-1] for s in ((0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    peaks = (inner > np.max(neighbours, axis=0)) & (inner > 0.2)
    assert np.count_nonzero(peaks) == 1


def test_the_input_is_the_asinh_and_finite():
    image = np.full((20, 20), 110.0, np.float32)
    image[5, 5] = np.nan
    bad = np.zeros(image.shape, bool)
    sky, noise = np.full_like(image, 100.0), np.full_like(image, 2.0)
    x = make_input(image, bad, sky, noise)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.arcsinh(5.0), rtol=1e-5)


def test_an_example_is_stored_in_16_and_8_bits():
    scene = draw("wide", (128, 128), 4)
    example = make_example(scene)
    assert (example.x.dtype, example.targets.dtype) == (np.float16, np.uint8)
    assert np.isfinite(example.x).all()
    np.testing.assert_allclose(example.targets / 255, make_targets(scene), atol=0.5 / 255 + 1e-6)


def test_quantise_rounds_and_clips():
    assert quantise(np.array([-1, 0, 0.5, 1, 2], np.float32)).tolist() == [0, 0, 128, 255, 255]


def test_the_truth_contains_only_sources_that_own_a_pixel():
    scene = draw("ground", (128, 128), 6)
    truth = make_truth(scene)
    assert len(truth) == np.count_nonzero(scene.table["area"])
    assert truth.label.max() == len(truth)
    assert not (truth.unclear & (truth.label > 0)).any()
    np.testing.assert_array_equal(truth.label > 0, scene.label > 0)
