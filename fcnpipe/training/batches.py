"""Where a training's batches come from: simulated scenes, or pairs of image and label.

A batch depends on the recipe, the step and the number of the pass alone, so an interrupted training
goes on with the same ones, and two processes see what one that takes twice the passes sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import SpecError
from fcnpipe.networks.base import Scaling
from fcnpipe.training import simulated_pairs
from fcnpipe.training.augmentation import CropGeometry, cut_crop
from fcnpipe.training.example_stream import ExampleStream, simulate_example
from fcnpipe.training.labelled_images import (
    LabelledImage,
    PairsSpec,
    compress_input,
    make_targets,
    measure_scaling,
    read_pairs,
)
from fcnpipe.training.recipe import Recipe
from fcnpipe.training.targets import Example

Floats = NDArray[np.float32]
VALIDATION_SEED = 977


@dataclass(frozen=True)
class Batch:
    """What one pass of the network sees and shall say."""

    x: Floats
    """(n, bands, h, w) float32, as the network sees it."""
    targets: Floats
    """(n, outputs, h, w) float32."""
    weight: Floats | None = None
    """(n, 1, h, w) float32, what each pixel counts; None: all alike."""


class BatchSource(Protocol):
    """Gives batches by number."""

    scaling: Scaling
    """What was done to the pixels before the network sees them."""
    validation: list[Batch]
    """What the weights are judged by."""

    def prepare(self, step: int) -> None:
        """Have ready what the batches of a step are cut from."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Give the batch of a pass of a step; after ``prepare(step)``."""

    def discard_before(self, step: int) -> None:
        """Throw away what only steps before this one need."""

    def close(self) -> None:
        """End what runs beside the training."""


def open_batch_source(recipe: Recipe, folder: Path, step: int, produce: bool = True) -> BatchSource:
    """The source of a recipe's batches.

    Parameters
    ----------
    recipe
        The recipe.
    folder
        Where scenes wait.
    step
        The first step that will be asked for.
    produce
        Whether to simulate, and not to wait for another process that does.
    """
    if recipe.pairs is not None:
        return LabelledImageSource(recipe, recipe.pairs)
    if recipe.uses_simulated_pairs:
        return SimulatedPairSource(recipe)
    return ScenePoolSource(recipe, folder, step, produce)


# --- drawn images ---------------------------------------------------------------------------------


class SimulatedPairSource:
    """Images that are drawn when they are asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.scaling = recipe, simulated_pairs.input_scaling(recipe.kind)
        numbers = range(recipe.validation)
        self.validation = [self._draw([VALIDATION_SEED * 10_000_000 + k]) for k in numbers]

    def prepare(self, step: int) -> None:
        """Nothing is kept from step to step."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Images of a pass, none of which any other pass has."""
        first = self.recipe.seed * 100_000_000
        count = self.recipe.batch
        place = (step * 64 + number) * count
        return self._draw(range(first + place, first + place + count))

    def discard_before(self, step: int) -> None:
        """Nothing is kept for a step."""

    def close(self) -> None:
        """Nothing runs beside it."""

    def _draw(self, seeds: Sequence[int]) -> Batch:
        drawings = [
            simulated_pairs.simulate_pair(self.recipe.kind, self.recipe.crop, seed)
            for seed in seeds
        ]
        return Batch(
            *(np.stack([getattr(d, n) for d in drawings]) for n in ("x", "targets", "weight"))
        )


# --- pairs ----------------------------------------------------------------------------------------


class LabelledImageSource:
    """Crops of images with labels.

    Raises
    ------
    InputError, SpecError
        When a file cannot be read, or is smaller than a crop.
    """

    def __init__(self, recipe: Recipe, spec: PairsSpec) -> None:
        self.recipe, self.spec = recipe, spec
        self.scaling = measure_scaling(spec)
        self.images = read_pairs(spec, spec.train, self.scaling)
        chosen = read_pairs(spec, spec.choose, self.scaling)
        self.validation = [_whole_image(pair, spec, self.scaling) for pair in chosen]
        self.geometry = CropGeometry(recipe.crop, spec.margin, spec.scaling == "asinh")
        least = min(min(pair.x.shape[1:]) for pair in self.images)
        if least < recipe.crop:
            raise SpecError(
                f"crop {recipe.crop} is larger than an image of {least} px: give a smaller crop"
            )

    def prepare(self, step: int) -> None:
        """Everything is there from the start."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Crops of images at random, changed at random."""
        rng = np.random.default_rng([self.recipe.seed, step, 7, number])
        crops = [self._crop(rng) for _ in range(self.recipe.batch)]
        x, targets, weight = (np.stack(part) for part in zip(*crops, strict=True))
        return Batch(x, targets, weight)

    def discard_before(self, step: int) -> None:
        """Nothing is kept for a step."""

    def close(self) -> None:
        """Nothing runs beside it."""

    def _crop(self, rng: np.random.Generator) -> tuple[Any, ...]:
        crop = cut_crop(self.images, self.geometry, self.recipe.augment, rng)
        inner = slice(self.geometry.margin, self.geometry.margin + self.geometry.side)
        parts = (
            compress_input(crop.x, self.scaling),
            *_weighted_targets(crop, self.spec, self.scaling),
        )
        return tuple(part[:, inner, inner] for part in parts)


def _whole_image(pair: LabelledImage, spec: PairsSpec, scaling: Scaling) -> Batch:
    targets, weight = _weighted_targets(pair, spec, scaling)
    return Batch(compress_input(pair.x, scaling)[None], targets[None], weight[None])


def _weighted_targets(
    pair: LabelledImage, spec: PairsSpec, scaling: Scaling
) -> tuple[Floats, Floats]:
    """Give what the network shall say of a pair, and what each pixel of it counts."""
    targets, known = make_targets(pair.truth, spec, scaling)
    return targets, known if pair.weight is None else known * pair.weight


# --- scenes ---------------------------------------------------------------------------------------


class ScenePoolSource:
    """Crops of a pool of simulated scenes that is renewed bit by bit."""

    scaling = Scaling()

    def __init__(self, recipe: Recipe, folder: Path, step: int, produce: bool = True) -> None:
        self.recipe, self._step = recipe, step
        first, newest = _oldest_number(recipe, step), _newest_number(recipe, step)
        arguments = (recipe.kind, recipe.scene_side, recipe.seed)
        self._stream = ExampleStream(folder / "pool", arguments, first, produce=produce)
        taken = {n % recipe.pool: self._stream.wait_for(n) for n in range(first, newest + 1)}
        self.pool = [taken[slot] for slot in range(len(taken))]
        self.validation = list(_list_validation(recipe))

    def prepare(self, step: int) -> None:
        """Renew the pool up to a step."""
        for number in range(
            _newest_number(self.recipe, self._step) + 1, _newest_number(self.recipe, step) + 1
        ):
            self._renew(number)
        self._step = step

    def batch(self, step: int, number: int = 0) -> Batch:
        """Crops of scenes at random, turned and mirrored at random."""
        return Batch(*draw_batch(self.pool, self.recipe, step, number))

    def discard_before(self, step: int) -> None:
        """Delete the scenes that only earlier steps need."""
        self._stream.discard_before(_oldest_number(self.recipe, step))

    def close(self) -> None:
        """End the process that simulates."""
        self._stream.close()

    def _renew(self, number: int) -> None:
        example = self._stream.wait_for(number)
        if len(self.pool) < self.recipe.pool:
            self.pool.append(example)
        else:
            self.pool[number % self.recipe.pool] = example


def _list_validation(recipe: Recipe) -> Iterator[Batch]:
    side = min(256, recipe.scene_side)
    for number in range(recipe.validation):
        example = simulate_example(recipe.kind, side, VALIDATION_SEED, number)
        targets = example.targets.astype(np.float32) / np.float32(255)
        yield Batch(example.x.astype(np.float32)[None, None], targets[None])


def draw_batch(
    pool: list[Example], recipe: Recipe, step: int, number: int = 0
) -> tuple[Floats, Floats]:
    """Input (n, 1, c, c) and targets (n, 3, c, c) of a pass, turned and mirrored at random."""
    # A seed sequence does not see a 0 at its end: the first pass of a step is what it always was.
    rng = np.random.default_rng([recipe.seed, step, 7, number])
    crops = [_draw_crop(pool, recipe.crop, rng) for _ in range(recipe.batch)]
    x = np.stack([c[0] for c in crops]).astype(np.float32)[:, None]
    return x, np.stack([c[1] for c in crops]).astype(np.float32) / np.float32(255)


def _draw_crop(pool: list[Example], side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    # Of two places the one with more centres is taken more often: skies are mostly empty.
    options = [_cut_random_square(pool, side, rng) for _ in range(2)]
    if rng.random() < 0.6:
        options.sort(key=lambda o: int(o[1][1, ::4, ::4].sum(dtype=np.int64)), reverse=True)
    x, targets = options[0]
    turns = int(rng.integers(4))
    x, targets = np.rot90(x, turns), np.rot90(targets, turns, (1, 2))
    return (x[:, ::-1], targets[:, :, ::-1]) if rng.random() < 0.5 else (x, targets)


def _cut_random_square(pool: list[Example], side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    example = pool[int(rng.integers(len(pool)))]
    y, x = rng.integers(0, np.array(example.x.shape) - side + 1)
    box = (slice(y, y + side), slice(x, x + side))
    return example.x[box], example.targets[:, box[0], box[1]]


def _newest_number(recipe: Recipe, step: int) -> int:
    """Number of the newest example in the pool at a step."""
    return recipe.opening - 1 + int(step * recipe.refresh)


def _oldest_number(recipe: Recipe, step: int) -> int:
    return max(0, _newest_number(recipe, step) - recipe.pool + 1)
