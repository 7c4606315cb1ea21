"""Simulated image pairs, and trainings on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcnpipe.networks import Bundle, load_model
from fcnpipe.training.batches import open_batch_source
from fcnpipe.training.loop import train
from fcnpipe.training.model_packaging import pack
from fcnpipe.training.recipe import Recipe
from fcnpipe.training.simulated_pairs import GALAXIES, KINDS, simulate_pair

RECIPES = {
    "stars": Recipe(
        kind="stars", architecture="hradis", network={"bands": 1, "outputs": 1, "width": 0.03}
    ),
    GALAXIES: Recipe(kind=GALAXIES, architecture="bulge_disk", network={"base": 4, "depth": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_return_equal_images(kind: str) -> None:
    first, again, other = (simulate_pair(kind, 64, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert (first.x != other.x).any()
    assert first.weight.shape == first.x.shape


def test_errors_of_galaxies_are_weighted_as_errors_of_their_asinh() -> None:
    drawing = simulate_pair(GALAXIES, 64, 3)
    total, small = drawing.targets.sum(axis=0), 1e-3
    changed = np.arcsinh(total + small) - np.arcsinh(total)
    np.testing.assert_allclose(small**2 * drawing.weight[0], changed**2, rtol=0.05)


def test_no_image_is_drawn_twice(tmp_path: Path) -> None:
    source = open_batch_source(Recipe(kind="text", batch=2, crop=64, validation=1), tmp_path, 0)
    places = [(step, number) for step in range(3) for number in range(2)]
    images = [image.tobytes() for place in places for image in source.batch(*place).x]
    assert len(set(images)) == 12


@pytest.mark.parametrize("kind", RECIPES)
def test_training_ends_in_a_model_whose_outputs_are_images(kind: str, tmp_path: Path) -> None:
    few = {"steps": 2, "cooldown": 1, "warmup": 1, "batch": 1, "crop": 64, "validation": 1}
    recipe = Recipe(**{**vars(RECIPES[kind]), **few})
    train(recipe, tmp_path)
    model = load_model(pack(tmp_path))
    assert isinstance(model, Bundle)
    assert all(output.is_image for output in model.header.outputs)
    assert model.header.scaling.kind == ("asinh" if kind == GALAXIES else "linear")
    assert model.header.recipe["architecture"] == recipe.architecture
