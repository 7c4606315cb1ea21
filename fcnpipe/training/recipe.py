"""Recipes: everything that a training depends on, read from a YAML file and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import describe_read_error
from fcnpipe.simulation import scenes
from fcnpipe.training import simulated_pairs
from fcnpipe.training.augmentation import Augmentation
from fcnpipe.training.labelled_images import PairsSpec
from fcnpipe.training.losses import OutputWeights

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "default.yaml"


@dataclass(frozen=True)
class Recipe:
    """Everything that a training depends on: the sections and fields of a recipe file."""

    name: str = "sources"
    """Name of the model."""
    kind: str = "wide"
    """Kind of the scenes, see simulation.scenes.KINDS, or of the image pairs, see
    simulated_pairs.KINDS."""
    seed: int = 1
    """Seed of the weights, the scenes and the crops."""
    architecture: str = "unet"
    """Name of a module of fcnpipe.networks.architectures."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture."""
    begin: str = ""
    """Model whose weights initialise the network, by name or file; empty: random weights."""
    pairs: PairsSpec | None = None
    """Labelled images to train on, instead of simulated scenes."""
    augment: Augmentation = field(default_factory=Augmentation)
    """Augmentation of the crops of labelled images."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Weight of each loss term, or its options, see losses.make_loss; empty: the default of the
    task."""
    device: str = "cpu"
    """Device of the training, cpu or cuda."""
    precision: str = "fp32"
    """Arithmetic of forward and backward pass, fp32 or bf16; weights and optimiser remain float32."""
    steps: int = 8000
    """Number of steps, including the cooldown."""
    cooldown: int = 1600
    """Number of steps at the end over which the learning rate decreases to 0."""
    warmup: int = 200
    """Number of steps at the start over which the learning rate increases."""
    batch: int = 10
    """Number of crops in a micro-batch."""
    accumulate: int = 1
    """Number of micro-batches of each process whose gradients are accumulated for a step."""
    crop: int = 160
    """Side of a crop, px, a multiple of the network's stride."""
    rate: float = 2e-3
    """Learning rate of AdamW."""
    decay: float = 1e-2
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    average: float = 0.998
    """Decay of the running average of the weights."""
    scene_side: int = 640
    """Side of a scene, px."""
    pool: int = 200
    """Number of scenes in the pool from which crops are cut."""
    opening: int = 48
    """Number of scenes in the pool at the start; the pool then grows to its full size."""
    refresh: float = 0.25
    """Number of new scenes per step."""
    validation: int = 16
    """Number of scenes of the validation."""
    validate_every: int = 500
    """Number of steps between two validations."""
    patience: int = 0
    """Number of validations without a new minimum after which the cooldown starts; 0: it never
    starts early."""
    minutes_between: float = 3.0
    """Minutes between two checkpoints."""
    weights: OutputWeights = field(default_factory=OutputWeights)
    """Weights of the default model's outputs in its loss."""
    half: bool = False
    """Whether the model file stores the weights in 16 bits, which halves its size; the network
    computes in float32."""
    licence: str = "BSD-3-Clause"
    """Licence of the model."""
    note: str = ""
    """Text for the model header, such as the origin of the data."""

    @property
    def uses_simulated_pairs(self) -> bool:
        """Whether the training images are pairs that are simulated for each step."""
        return self.pairs is None and self.kind in simulated_pairs.KINDS

    @property
    def task(self) -> str:
        """Task of labelled images and simulated pairs; empty: the default model's maps of simulated scenes."""
        if self.pairs is not None:
            return self.pairs.task
        return "image" if self.uses_simulated_pairs else ""

    @property
    def compares_with_image(self) -> bool:
        """Whether a loss term compares with an image, which follows the targets as a further channel."""
        options = (option for option in self.loss.values() if isinstance(option, dict))
        return any(option.get("image") is not None for option in options)

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the weights of the best validation instead of the last ones."""
        return self.pairs is not None or self.patience > 0


_MINIMA = (
    dict.fromkeys(
        ("batch", "accumulate", "crop", "steps", "warmup", "cooldown", "validate_every", "pool"), 1
    )
    | dict.fromkeys(("opening", "validation"), 1)
    | {"seed": 0, "patience": 0}
)
"""Minimum value of each count and seed."""
_SECTIONS = {"weights": OutputWeights, "pairs": PairsSpec, "augment": Augmentation}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises
    ------
    SpecError
        If the file cannot be read, or contains an unknown name or an invalid value.
    """
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"recipe {path} cannot be read: {describe_read_error(error)}") from None
    return make_recipe(content, str(path))


def make_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Return the recipe that a mapping contains.

    Parameters
    ----------
    content
        Fields of the recipe by name, as read from a file.
    where
        Name of the file, for error messages.

    Raises
    ------
    SpecError
        If a name is unknown or a value is invalid.
    """
    recipe: Recipe = _make_record(Recipe, content, where)
    _check(recipe, where)
    return recipe


def _make_record(kind: type[Any], content: Any, where: str) -> Any:
    """Return the record that a mapping contains; mappings of sections become records too."""
    if not isinstance(content, dict):
        raise SpecError(
            f"{where} holds {type(content).__name__}, not a mapping: write lines of 'name: value'"
        )
    known = {f.name for f in fields(kind)}
    if unknown := [str(name) for name in content if name not in known]:
        raise SpecError(f"{where}: {', '.join(unknown)} is unknown: use {', '.join(sorted(known))}")
    ready = {
        name: _make_record(_SECTIONS[name], value, f"{where}: {name}")
        if name in _SECTIONS and isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in content.items()
    }
    try:
        return TypeAdapter(kind).validate_python(ready)
    except ValidationError as error:
        raise SpecError(f"{where}: {_describe_error(error)}") from None


def _describe_error(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{name} is missing: add it"
    own = first.get("ctx", {}).get("error")
    return str(own) if own else f"{name} {first['input']!r}: {first['msg']}"


def _check(recipe: Recipe, where: str) -> None:
    if Path(str(recipe.name)).name != str(recipe.name):
        raise SpecError(
            f"{where}: name {recipe.name!r} is not a file name: use a name without folders"
        )
    choices = {"precision": ("fp32", "bf16"), "device": ("cpu", "cuda")}
    for name, possible in choices.items():
        value = getattr(recipe, name)
        if value not in possible:
            raise SpecError(f"{where}: {name} {value!r}: choose {' or '.join(possible)}")
    for name, minimum in _MINIMA.items():
        if getattr(recipe, name) < minimum:
            raise SpecError(f"{where}: {name} {getattr(recipe, name)}: use {minimum} or more")
    if not 0 <= recipe.rate < math.inf:
        raise SpecError(f"{where}: rate {recipe.rate}: use a number such as 0.002")
    if not 0 <= recipe.average < 1:
        raise SpecError(f"{where}: average {recipe.average}: use a number from 0 to below 1")
    if recipe.pairs is None:
        _check_scenes(recipe, where)


def _check_scenes(recipe: Recipe, where: str) -> None:
    kinds = (*scenes.KINDS, *simulated_pairs.KINDS)
    if recipe.kind not in kinds:
        raise SpecError(f"{where}: kind {recipe.kind!r}: choose one of {', '.join(kinds)}")
    if not recipe.uses_simulated_pairs and recipe.crop > recipe.scene_side:
        raise SpecError(
            f"{where}: crop {recipe.crop} is larger than scene_side {recipe.scene_side}: use a smaller crop"
        )


def learning_rate_at(recipe: Recipe, step: int, end: int) -> float:
    """Return the learning rate of a step: linear increase, constant, then a decrease as 1 - sqrt(t) to 0."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    gone = (step - (end - recipe.cooldown)) / recipe.cooldown
    # A numpy number would be stored in the checkpoint, which could then be read with pickle only.
    return float(recipe.rate * rise * (1.0 - np.sqrt(gone) if gone > 0 else 1.0))
