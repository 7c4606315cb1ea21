"""The training loop: exact resume, learning rate schedule, and refused recipes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fcnpipe.core.errors import ModelError, SpecError
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.training import loop
from fcnpipe.training.batches import Batch
from fcnpipe.training.example_stream import simulate_example
from fcnpipe.training.loop import Recipe, draw_batch, learning_rate_at, load_recipe, train

TINY = Recipe(
    kind="crowded",
    network={"base": 2, "depth": 1},
    steps=8,
    cooldown=3,
    warmup=2,
    batch=2,
    crop=16,
    scene_side=64,
    pool=3,
    opening=2,
    refresh=0.5,
    minutes_between=60.0,
    validation=1,
)


def test_a_killed_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = torch.load(train(TINY, tmp_path / "whole"), weights_only=True)

    def die_at_five(recipe, state, *rest, train_step=loop.train_step):
        if state.step == 5:
            raise KeyboardInterrupt
        return train_step(recipe, state, *rest)

    careful = replace(TINY, minutes_between=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", die_at_five)
        with pytest.raises(KeyboardInterrupt):
            train(careful, tmp_path / "parts")
    parts = torch.load(train(careful, tmp_path / "parts"), weights_only=True)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def pool():
    return [simulate_example("crowded", 64, 1, n) for n in range(2)]


def test_batches_depend_on_the_step_only(pool):
    first, again, other = (draw_batch(pool, TINY, step) for step in (4, 4, 5))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == (2, 1, 16, 16)
    assert first[1].shape == (2, 3, 16, 16)
    assert 0 <= first[1].min() <= first[1].max() <= 1


def test_input_and_targets_are_rotated_alike(pool):
    same = [
        replace(e, targets=np.repeat(np.uint8(20 * np.clip(e.x, 0, 12))[None], 3, 0)) for e in pool
    ]
    x, targets = draw_batch(same, TINY, 9)
    np.testing.assert_allclose(
        targets[:, 0] * 255, np.floor(20 * np.clip(x[:, 0], 0, 12)), atol=1.01
    )


def test_the_learning_rate_increases_is_constant_and_decreases():
    recipe = replace(TINY, rate=1.0, warmup=4, cooldown=4)
    rates = [learning_rate_at(recipe, step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:9] == [1.0] * 5
    assert rates[9:] == pytest.approx([0.5, 1 - np.sqrt(0.5), 1 - np.sqrt(0.75)])


def test_a_cooldown_can_be_requested_at_any_time(tmp_path):
    (tmp_path / "cooldown").touch()
    train(replace(TINY, steps=100, cooldown=2), tmp_path)
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert stored["step"] == stored["end"] == 3


class Pool:
    """Batch source whose pool is the same in all steps."""

    def __init__(self, pool, recipe):
        self.pool, self.recipe = pool, recipe

    def batch(self, step, number=0):
        return Batch(*draw_batch(self.pool, self.recipe, step, number))


def test_training_lowers_the_loss(pool):
    recipe = replace(TINY, steps=60, rate=1e-2, warmup=1)
    state = loop.initialise(recipe)
    losses = [loop.train_step(recipe, state, Pool(pool, recipe)) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_the_default_recipe_describes_the_default_network():
    recipe = load_recipe(loop.DEFAULT_RECIPE)
    assert sum(p.numel() for p in UNet(**recipe.network).parameters()) == 481_779


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 5", "stpes is unknown"),
        ("1: 2", "1 is unknown"),
        ("just text", "holds str, not a mapping"),
        ("a: [", "line 2: expected the node content"),
        ("steps: many", "steps 'many': Input should be a valid integer"),
        ("name: 5", "name 5: Input should be a valid string"),
        ("loss: [dice]", "loss .*dictionary"),
        (
            "pairs: {images: a, labels: b, train: '0', choose: '1', task: cells}",
            "choose one of mem",
        ),
        ("steps: 0", "steps 0: use 1 or more"),
        ("seed: -1", "seed -1: use 0 or more"),
        ("rate: .nan", "rate nan: use a number such as"),
        ("average: 1", "average 1.0: use a number"),
        ("kind: dusty", "kind 'dusty': choose one of ground"),
        ("scene_side: 32", "crop 160 is larger than scene_side 32"),
    ],
)
def test_an_invalid_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(SpecError, match=rf"r\.yaml.*{message}"):
        load_recipe(path)


def test_numbers_can_be_written_without_a_decimal_point(tmp_path):
    """YAML parses 1e-3 as a string, which the recipe converts."""
    path = tmp_path / "r.yaml"
    path.write_text("rate: 1e-3\n")
    assert load_recipe(path).rate == 1e-3


@pytest.mark.parametrize(
    "change", [{"begin": "unheard"}, {"device": "cuda"}, {"loss": {"unheard": 1.0}}]
)
def test_a_refused_training_leaves_no_folder(tmp_path, monkeypatch, change):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((SpecError, ModelError)):
        train(replace(TINY, **change), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
