"""The truth of scenes equals the sources that were drawn."""

from dataclasses import replace

import numpy as np
import pytest

from fcnpipe.core.errors import SpecError
from fcnpipe.simulation.profiles import SersicComponent
from fcnpipe.simulation.psfs import PsfShape, bin_psf
from fcnpipe.simulation.scenes import GALAXY, KINDS, STAR, Source, compose, detectable, draw
from fcnpipe.simulation.skies import SkySpec, asinh_stretch

PLAIN = SkySpec(0, 0, 0, 0, 0, 0, 0, 0)
SHAPE = (96, 80)


@pytest.fixture(scope="module")
def psf():
    return bin_psf(PsfShape(fwhm_px=3.0, beta=3.0))


def _sources(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        y, x, flux = rng.uniform(-5, 90), rng.uniform(-5, 85), rng.uniform(20, 4000)
        if rng.random() < 0.5:
            yield Source(y, x, flux, STAR)
        else:
            yield Source(
                y, x, flux, GALAXY, (SersicComponent(flux, 1.0, rng.uniform(1, 8), 0.6, 1.0),)
            )


def _scene(sources, psf, seed=0):
    return compose(list(sources), psf, SHAPE, PLAIN, np.random.default_rng(seed))


def test_owner_and_two_strongest_sources_equal_a_slow_version(psf):
    sources = list(_sources(25, 1))
    scene = _scene(sources, psf)
    unit = scene.noise[0, 0]
    alone = np.stack([_scene([s], psf).light / _scene([s], psf).noise for s in sources])
    ranked = np.sort(alone, axis=0)
    np.testing.assert_allclose(scene.light / unit, alone.sum(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scene.strongest / unit, ranked[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scene.second_strongest / unit, ranked[-2], rtol=1e-4, atol=1e-4)
    owner = np.where(ranked[-1] > 0.7, alone.argmax(0) + 1, 0)
    clear = (np.abs(ranked[-1] - 0.7) > 1e-3) & (ranked[-1] - ranked[-2] > 1e-3)
    np.testing.assert_array_equal(scene.label[clear], owner[clear])


def test_the_table_describes_a_star(psf):
    scene = _scene([Source(40.25, 30.5, 1000.0, STAR)], psf)
    row = scene.table[0]
    assert (row["y"], row["x"], row["flux"]) == (40.25, 30.5, 1000.0)
    assert row["snr"] == pytest.approx(1000 / np.sqrt(psf.area_px), rel=0.01)
    assert (row["peak_y"], row["area"]) == (40, np.count_nonzero(scene.label))
    assert row["peak"] == pytest.approx(float(scene.strongest.max() / scene.noise[0, 0]), rel=1e-4)
    assert 1.2 < row["r50"] < 2.8


def test_the_noise_has_the_stated_rms(psf):
    scene = _scene([], psf)
    ratio = (scene.image - np.median(scene.image)) / scene.noise
    assert ratio.std() == pytest.approx(1.0, abs=0.03)
    assert not scene.label.any()


def test_a_published_picture_is_rounded_and_keeps_the_order_of_light(psf):
    picture = replace(PLAIN, picture=1)
    sources, seen = list(_sources(25, 1)), set()
    plain = _scene(sources, psf)
    for seed in range(12):
        shown = compose(sources, psf, SHAPE, picture, np.random.default_rng(seed))
        light, unit = shown.light / shown.noise[0, 0], plain.noise[0, 0]
        softened = light.max() < 0.9 * (plain.light / unit).max()
        seen.add(softened)
        assert len(np.unique(shown.image)) < 0.6 * shown.image.size
        np.testing.assert_array_equal(shown.label, plain.label)
        order = np.argsort(plain.light, axis=None)
        assert (np.diff(light.ravel()[order]) > -1e-3).all()
        faint = plain.light / unit < 0.5
        np.testing.assert_allclose(light[faint], (plain.light / unit)[faint], rtol=0.03)
    assert seen == {True, False}


def test_the_asinh_stretch_is_linear_below_and_logarithmic_above():
    light = np.float32([0.01, 1e3, 1e4])
    found = asinh_stretch(light, 5.0)
    assert found[0] == pytest.approx(0.01, rel=1e-4)
    assert found[2] - found[1] == pytest.approx(5.0 * np.log(10), rel=1e-3)
    assert asinh_stretch(light, np.inf) is light


def test_equal_seeds_draw_equal_scenes():
    first, again, other = (draw("crowded", (64, 64), seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.table, again.table)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_consistent(kind):
    scene = draw(kind, (128, 96), 5)
    assert scene.image.shape == (128, 96)
    assert scene.image.dtype == np.float32
    assert (~np.isfinite(scene.image) <= scene.bad).all()
    assert (scene.noise > 0).all()
    assert (scene.strongest >= scene.second_strongest).all()
    assert scene.label.max() <= len(scene.table)
    np.testing.assert_array_equal(
        np.bincount(scene.label.ravel(), minlength=len(scene.table) + 1)[1:], scene.table["area"]
    )


def test_empty_is_empty_and_crowded_is_not():
    assert np.mean([detectable(draw("empty", (96, 96), s).table).sum() for s in range(3)]) < 1
    assert detectable(draw("crowded", (96, 96), 1).table).sum() > 5


def test_an_unknown_kind_is_refused():
    with pytest.raises(SpecError, match="'dusty': choose one of ground"):
        draw("dusty", (32, 32), 0)
