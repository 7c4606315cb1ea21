"""Recipes: everything that a training depends on, in a YAML file."""

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
    """Everything that a training depends on."""

    name: str = "sources"
    """Name of the model."""
    kind: str = "wide"
    """Kind of the scenes, see scenes.KINDS; or of the images, see drawn.KINDS."""
    seed: int = 1
    """Seed of the weights, the scenes and the crops."""
    architecture: str = "unet"
    """File of fcnpipe/networks/architectures that holds the network."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network."""
    begin: str = ""
    """Model whose weights to begin with, by name or file; empty: random weights."""
    pairs: PairsSpec | None = None
    """Images and labels to train on, instead of scenes."""
    augment: Augmentation = field(default_factory=Augmentation)
    """How much the crops of pairs are changed."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Weight of each loss, or its options, see losses.make_loss; empty: what suits the task."""
    device: str = "cpu"
    """Where it is trained, cpu or cuda."""
    precision: str = "fp32"
    """Arithmetic of the passes, fp32 or bf16; weights and optimiser stay float32."""
    steps: int = 8000
    """Number of steps, the cooldown included."""
    cooldown: int = 1600
    """Steps over which the rate falls to 0 at the end."""
    warmup: int = 200
    """Steps over which the rate rises at the start."""
    batch: int = 10
    """Crops of a pass."""
    accumulate: int = 1
    """Passes of each process whose gradients make a step."""
    crop: int = 160
    """Side of a crop, px, a multiple of the stride."""
    rate: float = 2e-3
    """Learning rate of AdamW."""
    decay: float = 1e-2
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Greatest norm of the gradient."""
    average: float = 0.998
    """Decay of the running average of the weights."""
    scene_side: int = 640
    """Side of a scene, px."""
    pool: int = 200
    """Scenes that crops are taken from at any time."""
    opening: int = 48
    """Scenes in the pool at the start; it grows to its size."""
    refresh: float = 0.25
    """New scenes a step."""
    validation: int = 16
    """Scenes of the validation."""
    validate_every: int = 500
    """Steps between two validations."""
    patience: int = 0
    """Validations without a better score after which the cooldown begins; 0: never early."""
    minutes_between: float = 3.0
    """Minutes between two checkpoints."""
    weights: OutputWeights = field(default_factory=OutputWeights)
    """OutputWeights of the default model's outputs in its loss."""
    half: bool = False
    """Whether the model file holds the weights in 16 bits: half its size, computed in float32."""
    licence: str = "BSD-3-Clause"
    """Licence of the model."""
    note: str = ""
    """What else its header shall say, such as where the data are from."""

    @property
    def uses_simulated_pairs(self) -> bool:
        """Whether its images are drawn for each step."""
        return self.pairs is None and self.kind in simulated_pairs.KINDS

    @property
    def task(self) -> str:
        """What is learned of pairs and drawn images; empty: the default model's maps of scenes."""
        if self.pairs is not None:
            return self.pairs.task
        return "image" if self.uses_simulated_pairs else ""

    @property
    def compares_with_image(self) -> bool:
        """Whether a term of its loss compares with an image, which stands behind the targets."""
        options = (given for given in self.loss.values() if isinstance(given, dict))
        return any(given.get("image") is not None for given in options)

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best validation are the result, not the last ones."""
        return self.pairs is not None or self.patience > 0


_MINIMA = (
    dict.fromkeys(
        ("batch", "accumulate", "crop", "steps", "warmup", "cooldown", "validate_every", "pool"), 1
    )
    | dict.fromkeys(("opening", "validation"), 1)
    | {"seed": 0, "patience": 0}
)
"""Least value of what counts something."""
_SECTIONS = {"weights": OutputWeights, "pairs": PairsSpec, "augment": Augmentation}


def load_recipe(path: Path) -> Recipe:
    """The recipe of a YAML file.

    Raises
    ------
    SpecError
        When the file cannot be read, names something that a recipe does not have, or a value cannot be.
    """
    try:
        given = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"recipe {path} cannot be read: {describe_read_error(error)}") from None
    return make_recipe(given, str(path))


def make_recipe(given: dict[str, Any], where: str) -> Recipe:
    """The recipe of a mapping that was read from a file, as `load_recipe`."""
    recipe: Recipe = _make_record(Recipe, given, where)
    _check(recipe, where)
    return recipe


def _make_record(kind: type[Any], given: Any, where: str) -> Any:
    """Make a record from a mapping; the parts that are records themselves too."""
    if not isinstance(given, dict):
        raise SpecError(
            f"{where} holds {type(given).__name__}, not a mapping: write 'name: value' lines"
        )
    known = {f.name for f in fields(kind)}
    if unknown := [str(name) for name in given if name not in known]:
        raise SpecError(
            f"{where}: {', '.join(unknown)} is unknown; "
            f"a {kind.__name__.lower()} has {', '.join(sorted(known))}"
        )
    ready = {
        name: _make_record(_SECTIONS[name], value, f"{where}: {name}")
        if name in _SECTIONS and isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in given.items()
    }
    try:
        return TypeAdapter(kind).validate_python(ready)
    except ValidationError as error:
        raise SpecError(f"{where}: {_describe_error(error)}") from None


def _describe_error(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{name} is missing: give it"
    own = first.get("ctx", {}).get("error")
    return str(own) if own else f"{name} {first['input']!r}: {first['msg']}"


def _check(recipe: Recipe, where: str) -> None:
    if Path(str(recipe.name)).name != str(recipe.name):
        raise SpecError(
            f"{where}: name {recipe.name!r}: the model file is called so: give it without folders"
        )
    choices = {"precision": ("fp32", "bf16"), "device": ("cpu", "cuda")}
    for name, possible in choices.items():
        value = getattr(recipe, name)
        if value not in possible:
            raise SpecError(f"{where}: {name} {value!r}: choose {' or '.join(possible)}")
    for name, least in _MINIMA.items():
        if getattr(recipe, name) < least:
            raise SpecError(f"{where}: {name} {getattr(recipe, name)}: give {least} or more")
    if not 0 <= recipe.rate < math.inf:
        raise SpecError(f"{where}: rate {recipe.rate}: give a number such as 0.002")
    if not 0 <= recipe.average < 1:
        raise SpecError(f"{where}: average {recipe.average}: give a number from 0 to below 1")
    if recipe.pairs is None:
        _check_scenes(recipe, where)


def _check_scenes(recipe: Recipe, where: str) -> None:
    kinds = (*scenes.KINDS, *simulated_pairs.KINDS)
    if recipe.kind not in kinds:
        raise SpecError(f"{where}: kind {recipe.kind!r}: choose one of {', '.join(kinds)}")
    if not recipe.uses_simulated_pairs and recipe.crop > recipe.scene_side:
        raise SpecError(
            f"{where}: crop {recipe.crop} is larger than scene_side {recipe.scene_side}: make it less"
        )


def learning_rate_at(recipe: Recipe, step: int, end: int) -> float:
    """Learning rate of a step: a linear rise, a plateau, a fall as 1 - sqrt(t) to 0."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    gone = (step - (end - recipe.cooldown)) / recipe.cooldown
    # A numpy number would go into the checkpoint, which then could not be read without pickle.
    return float(recipe.rate * rise * (1.0 - np.sqrt(gone) if gone > 0 else 1.0))
