"""Geometric augmentation changes image and truth alike; changes of intensity keep the flux."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from fcnpipe.networks.base import Scaling
from fcnpipe.training.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    CropGeometry,
    apply_symmetry,
    blur,
    cut_crop,
    degrade_sky,
    draw_displacement,
    noise_after_blur,
    sample_square,
    vary_intensity,
)
from fcnpipe.training.labelled_images import LabelledImage, PairsSpec, make_targets

SPEC = PairsSpec("", "", train="0", choose="1", task="instances", reach_px=4)


@pytest.fixture
def rng():
    return np.random.default_rng(8)


@pytest.fixture
def labels(rng):
    """Return blobs that touch each other and the sky."""
    seeds = rng.uniform(0, 40, (12, 2))
    y, x = np.indices((40, 40))
    far = np.hypot(y[..., None] - seeds[:, 0], x[..., None] - seeds[:, 1])
    return np.where(far.min(-1) < 9, far.argmin(-1) + 1, 0).astype(np.int32)


@pytest.mark.parametrize("number", range(8))
def test_symmetries_commute_with_the_computation_of_targets(labels, number):
    turned, known = make_targets(apply_symmetry(labels, number), SPEC, Scaling())
    np.testing.assert_array_equal(
        turned, apply_symmetry(make_targets(labels, SPEC, Scaling())[0], number)
    )
    assert known.all()


def test_there_are_eight_symmetries(rng):
    square = rng.normal(size=(5, 5))
    seen = {apply_symmetry(square, number).tobytes() for number in range(8)}
    assert len(seen) == 8
    np.testing.assert_array_equal(apply_symmetry(square, 0), square)


def test_elastic_deformation_moves_image_and_label_alike(rng):
    y, x = np.indices((96, 96))
    smooth = (np.sin(y / 9) * np.cos(x / 7)).astype(np.float32)
    displacement = draw_displacement(64, 6.0, rng)
    image = sample_square(smooth[None], (10, 12), 64, displacement)[0]
    label = sample_square((smooth > 0).astype(np.int32), (10, 12), 64, displacement)
    clear = np.abs(image) > 0.15
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(label[clear], (image > 0)[clear])
    assert np.abs(image - smooth[10:74, 12:76]).max() > 0.3


def test_elastic_deformation_samples_at_the_displaced_positions(rng):
    image = gaussian_filter(rng.normal(size=(60, 60)), 2).astype(np.float32)
    displacement = draw_displacement(20, 2.0, rng)
    places = np.indices((20, 20)) + 20 + displacement
    wanted = map_coordinates(image, places, order=3)
    np.testing.assert_allclose(
        sample_square(image[None], (20, 20), 20, displacement)[0], wanted, atol=2e-3
    )


def test_displacements_have_the_standard_deviation_of_the_nodes_and_are_smooth(rng):
    moves = np.stack([draw_displacement(33, 10.0, rng) for _ in range(400)])
    assert moves[:, :, ::16, ::16].std() == pytest.approx(10, rel=0.05)
    assert moves.mean() == pytest.approx(0, abs=0.5)
    assert np.abs(np.diff(moves, axis=-1)).max() < 6


def test_zero_displacement_changes_nothing_and_borders_are_mirrored(labels):
    still = np.zeros((2, 50, 50), np.float32)
    wide = sample_square(labels, (-5, -5), 50)
    np.testing.assert_array_equal(wide, np.pad(labels, 5, mode="reflect"))
    np.testing.assert_array_equal(sample_square(labels, (-5, -5), 50, still), wide)
    image = labels[None].astype(np.float32)
    np.testing.assert_allclose(sample_square(image, (-5, -5), 50, still)[0], wide, atol=1e-5)


def test_blur_keeps_the_flux_and_lowers_the_peak(rng):
    sky = rng.normal(0, 1, (1, 60, 60)).astype(np.float32)
    sky[0, 30, 30] += 500
    blurred = blur(sky, 1.3)
    assert blurred.sum(dtype=float) == pytest.approx(sky.sum(dtype=float), rel=1e-4)
    assert blurred.max() < 0.2 * sky.max()


def test_noise_after_a_blur_equals_its_formula(rng):
    white = rng.normal(0, 1, (1, 400, 400)).astype(np.float32)
    for sigma in (0.5, 1.0, 2.0):
        assert noise_after_blur(sigma) == pytest.approx(blur(white, sigma).std(), rel=0.03)


def test_a_degraded_sky_is_in_units_of_its_noise_and_keeps_its_flux(rng):
    sky = rng.normal(0, 1, (1, 300, 300)).astype(np.float32)
    star = np.zeros_like(sky)
    star[0, 150, 150] = 1e5
    augment = Augmentation(blur_px=2.0, noise=1.0)
    for _ in range(4):
        x, light = degrade_sky(sky + star, star, augment, rng)
        ring = x[0, :100]
        assert ring.std() == pytest.approx(1, rel=0.03)
        wanted = light[0, 150, 150]  # the star's flux in the new unit
        found = x[0, 140:161, 140:161].sum()
        assert found == pytest.approx(wanted, abs=5 * 21)
        assert wanted <= 1e5


def test_degrading_a_sky_does_not_change_labels(labels, rng):
    sky = rng.normal(0, 1, (1, 40, 40)).astype(np.float32)
    assert degrade_sky(sky, labels, Augmentation(blur_px=1, noise=1), rng)[1] is labels


def test_intensity_variation_without_noise_is_linear(rng):
    x = rng.normal(0, 1, (1, 80, 80)).astype(np.float32)
    lit = vary_intensity(x, Augmentation(brightness=0.3, contrast=0.3, noise=0.0, blur_px=0.0), rng)
    slope, shift = np.polyfit(x.ravel(), lit.ravel(), 1)
    np.testing.assert_allclose(lit, slope * x + shift, atol=1e-5)
    assert slope > 0
    assert slope != pytest.approx(1, abs=1e-3)


def test_no_augmentation_changes_nothing(labels, rng):
    x = rng.normal(size=(1, 40, 40)).astype(np.float32)
    crop = cut_crop([LabelledImage(x, labels)], CropGeometry(40, 3), NO_AUGMENTATION, rng)
    np.testing.assert_allclose(crop.x[:, 3:-3, 3:-3], x, atol=1e-6)
    np.testing.assert_array_equal(crop.truth[3:-3, 3:-3], labels)


def test_crops_with_rare_labels_are_preferred(rng):
    rarity = np.ones((100, 100), np.float32)
    rarity[:20, :20] = 50
    pair = LabelledImage(np.zeros((1, 100, 100), np.float32), np.int32(rarity > 1), rarity)

    def part(balance):
        augment = replace(NO_AUGMENTATION, balance=balance)
        crops = [cut_crop([pair], CropGeometry(20, 0), augment, rng) for _ in range(400)]
        return np.mean([crop.truth.mean() for crop in crops])

    assert part(1.0) > 1.2 * part(0.0)
