"""Sources of mini-batches: simulated scenes, simulated image pairs, and labelled images.

A training step accumulates the gradients of one or more micro-batches. A micro-batch depends only
on the recipe, the step and its number within the step. An interrupted training therefore continues
with the same micro-batches, and two processes see the same micro-batches as one process that
accumulates twice as many.
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
    """Input and targets of one micro-batch."""

    x: Floats
    """(n, bands, h, w) float32, input of the network."""
    targets: Floats
    """(n, outputs, h, w) float32, desired output of the network."""
    weight: Floats | None = None
    """(n, 1, h, w) float32, weight of each pixel in the loss; None: all pixels have the same
    weight."""


class BatchSource(Protocol):
    """Source of the micro-batches of a training."""

    scaling: Scaling
    """Scaling of the pixel values before the network."""
    validation: list[Batch]
    """Batches of the validation."""

    def prepare(self, step: int) -> None:
        """Prepare the data of the micro-batches of a step."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Return micro-batch ``number`` of a step; ``prepare(step)`` must have been called."""

    def discard_before(self, step: int) -> None:
        """Delete data that only steps before this one need."""

    def close(self) -> None:
        """Stop background processes."""


def open_batch_source(recipe: Recipe, folder: Path, step: int, produce: bool = True) -> BatchSource:
    """Return the batch source of a recipe.

    Parameters
    ----------
    recipe
        The recipe.
    folder
        Folder of the training, for simulated scenes that wait to be used.
    step
        The first step that will be requested.
    produce
        Whether to simulate scenes here. False: wait for another process that simulates them.
    """
    if recipe.pairs is not None:
        return LabelledImageSource(recipe, recipe.pairs)
    if recipe.uses_simulated_pairs:
        return SimulatedPairSource(recipe)
    return ScenePoolSource(recipe, folder, step, produce)


# --- simulated pairs ------------------------------------------------------------------------------


class SimulatedPairSource:
    """Image pairs that are simulated on request."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.scaling = recipe, simulated_pairs.input_scaling(recipe.kind)
        numbers = range(recipe.validation)
        self.validation = [self._draw([VALIDATION_SEED * 10_000_000 + k]) for k in numbers]

    def prepare(self, step: int) -> None:
        """Do nothing: no data are kept between steps."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Return the image pairs of a micro-batch.

        No other micro-batch contains any of them, if a step has at most 64 micro-batches.
        """
        first = self.recipe.seed * 100_000_000
        count = self.recipe.batch
        place = (step * 64 + number) * count
        return self._draw(range(first + place, first + place + count))

    def discard_before(self, step: int) -> None:
        """Do nothing: no data are kept between steps."""

    def close(self) -> None:
        """Do nothing: there are no background processes."""

    def _draw(self, seeds: Sequence[int]) -> Batch:
        drawings = [
            simulated_pairs.simulate_pair(self.recipe.kind, self.recipe.crop, seed)
            for seed in seeds
        ]
        return Batch(
            *(np.stack([getattr(d, n) for d in drawings]) for n in ("x", "targets", "weight"))
        )


# --- labelled images ------------------------------------------------------------------------------


class LabelledImageSource:
    """Random augmented crops of labelled images.

    Raises
    ------
    InputError
        If a file cannot be read.
    SpecError
        If an image is smaller than a crop.
    """

    def __init__(self, recipe: Recipe, spec: PairsSpec) -> None:
        self.recipe, self.spec = recipe, spec
        self.scaling = measure_scaling(spec)
        self.images = read_pairs(spec, spec.train, self.scaling)
        chosen = read_pairs(spec, spec.choose, self.scaling)
        self.validation = [_whole_image(pair, spec, self.scaling) for pair in chosen]
        self.geometry = CropGeometry(recipe.crop, spec.margin, spec.scaling == "asinh")
        smallest = min(min(pair.x.shape[1:]) for pair in self.images)
        if smallest < recipe.crop:
            raise SpecError(
                f"crop {recipe.crop} is larger than an image of {smallest} px: use a smaller crop"
            )

    def prepare(self, step: int) -> None:
        """Do nothing: all images are in memory from the start."""

    def batch(self, step: int, number: int = 0) -> Batch:
        """Return randomly placed and augmented crops of random images."""
        rng = np.random.default_rng([self.recipe.seed, step, 7, number])
        crops = [self._crop(rng) for _ in range(self.recipe.batch)]
        x, targets, weight = (np.stack(part) for part in zip(*crops, strict=True))
        return Batch(x, targets, weight)

    def discard_before(self, step: int) -> None:
        """Do nothing: all images stay in memory."""

    def close(self) -> None:
        """Do nothing: there are no background processes."""

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
    """Return the targets of an image and the weight of each pixel."""
    targets, known = make_targets(pair.truth, spec, scaling)
    return targets, known if pair.weight is None else known * pair.weight


# --- scenes ---------------------------------------------------------------------------------------


class ScenePoolSource:
    """Random crops of a pool of simulated scenes that is renewed gradually."""

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
        """Return randomly placed crops of random scenes, rotated and mirrored at random."""
        return Batch(*draw_batch(self.pool, self.recipe, step, number))

    def discard_before(self, step: int) -> None:
        """Delete the scenes that only earlier steps need."""
        self._stream.discard_before(_oldest_number(self.recipe, step))

    def close(self) -> None:
        """Stop the process that simulates scenes."""
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
    """Return the input (n, 1, c, c) and targets (n, 3, c, c), both float32, of a micro-batch of random crops.

    The crops are rotated and mirrored at random.
    """
    # A seed sequence ignores a trailing 0, so micro-batch 0 is that of versions without accumulation.
    rng = np.random.default_rng([recipe.seed, step, 7, number])
    crops = [_draw_crop(pool, recipe.crop, rng) for _ in range(recipe.batch)]
    x = np.stack([c[0] for c in crops]).astype(np.float32)[:, None]
    return x, np.stack([c[1] for c in crops]).astype(np.float32) / np.float32(255)


def _draw_crop(pool: list[Example], side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    # Of two random squares the one with more centres is preferred, because skies are mostly empty.
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
    """Return the number of the newest example in the pool at a step."""
    return recipe.opening - 1 + int(step * recipe.refresh)


def _oldest_number(recipe: Recipe, step: int) -> int:
    return max(0, _newest_number(recipe, step) - recipe.pool + 1)
