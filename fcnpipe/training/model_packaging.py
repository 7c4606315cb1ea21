"""Packaging of a trained network into a model file with outputs, scaling, defaults and tiling certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Defaults, Output, Scaling, Share
from fcnpipe.networks.inference.int8 import is_supported, measure_ranges
from fcnpipe.networks.models.bundle import save_model
from fcnpipe.networks.models.certified_headers import make_header
from fcnpipe.training import simulated_pairs
from fcnpipe.training.example_stream import simulate_example
from fcnpipe.training.loop import load_checkpoint, make_network
from fcnpipe.training.recipe import Recipe, make_recipe

OUTPUTS = (
    Output(name="source", role="source"),
    Output(name="heat", role="centre"),
    Output(name="relief", role="topography"),
)
ELEVATION = {"heat": Share(weight=0.4, floor=0.55), "relief": Share(weight=0.6)}
"""Shares of the outputs in the elevation, tuned together with the DEFAULTS."""
CALIBRATION_KINDS = ("ground", "crowded", "cluster", "globular", "sparse")
CALIBRATION_SEED, CALIBRATION_SIDE = 555, 640
DEFAULTS = Defaults(
    thresh=0.3,
    dynamics=0.075,
    minarea=5,
    minpeak=0.22,
    broad=17,
    extended=150,
    extended_dynamics=0.11,
)
"""Separation options of a model trained on simulated scenes, with the OUTPUTS above."""
PAIRS_ELEVATION = {"source": Share(weight=1.0)}
PAIRS_DEFAULTS = Defaults(thresh=0.1, dynamics=0.15, minarea=40)
"""Separation options of a model trained on labelled cells or other objects, tuned by
benchmarks/membrane_segmentation.py. The relief, which is learned as well, does not improve the
separation there. The low threshold assigns most pixels of the membranes to the cells."""


def pack(
    folder: Path,
    path: Path | None = None,
    scores: Mapping[str, Any] | None = None,
    elevation: Mapping[str, Share] | None = None,
    defaults: Defaults | None = None,
) -> Path:
    """Write the model file of a training and prove that the network tiles exactly.

    Parameters
    ----------
    folder
        Folder in which :func:`fcnpipe.training.loop.train` has written weights and recipe.
    path
        Model file to write, ending in ``.safetensors``. Default: NAME.safetensors in the folder.
    scores
        Measured scores, stored in the header; the last validation loss is added.
    elevation, defaults
        Shares of the outputs in the elevation, and separation options. Default: those of the task.

    Returns
    -------
    Path
        The model file.

    Raises
    ------
    ModelError
        If the network cannot be tiled exactly or the path has another ending.
    """
    facts = json.loads((folder / "best.json").read_text())
    content = facts.pop("recipe")
    recipe = make_recipe(content, str(folder / "best.json"))
    network = make_network(recipe)
    network.load_state_dict(load_checkpoint(folder / "best.pt"))
    validation, scaling = facts.pop("validation", None), facts.pop("scaling", {})
    usual, shares = _task_defaults(recipe)
    header = make_header(
        network,
        recipe.name,
        list_outputs(recipe, network),
        shares if elevation is None else elevation,
        scaling=Scaling(**scaling),
        defaults=defaults or usual,
        ranges=_measure_int8_ranges(recipe, network),
        recipe=content | facts,
        scores={"validation_loss": validation, **(scores or {})},
        licence=recipe.licence,
    )
    weights = network.half().state_dict() if recipe.half else network.state_dict()
    return save_model(path or folder / f"{recipe.name}.safetensors", weights, header)


def list_outputs(recipe: Recipe, network: nn.Module) -> tuple[Output, ...]:
    """Return the outputs of a recipe's network, with their roles."""
    if recipe.uses_simulated_pairs:
        return simulated_pairs.list_outputs(recipe.kind)
    if recipe.pairs is None:
        return OUTPUTS
    if recipe.pairs.task != "image":
        return recipe.pairs.outputs
    bands = int(recipe.network.get("bands", 1))
    with torch.no_grad():
        side = 4 * int(getattr(network, "stride", 1)) + 64
        planes = network.eval()(torch.zeros(1, bands, side, side)).shape[1]
    if planes == 1:
        return recipe.pairs.outputs
    return tuple(
        Output(name=f"restored_{n}", role="restored", band=min(n, bands - 1)) for n in range(planes)
    )


def _task_defaults(recipe: Recipe) -> tuple[Defaults, Mapping[str, Share]]:
    """Return the separation options and the elevation of a task."""
    if recipe.uses_simulated_pairs:
        return Defaults(), {}
    if recipe.pairs is None:
        return DEFAULTS, ELEVATION
    names = [output.name for output in recipe.pairs.outputs]
    return PAIRS_DEFAULTS, PAIRS_ELEVATION if "source" in names else {}


def _measure_int8_ranges(recipe: Recipe, network: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the ranges of activations for int8 arithmetic.

    They are measured on simulated skies, so models trained on other images have none.
    """
    if recipe.task or not isinstance(network, UNet) or not is_supported(network):
        return {}
    return measure_ranges(network, _calibration_inputs())


def _calibration_inputs() -> Iterator[torch.Tensor]:
    """Yield network inputs of faint and bright skies, on which the ranges are measured."""
    for number, kind in enumerate(CALIBRATION_KINDS):
        x = simulate_example(kind, CALIBRATION_SIDE, CALIBRATION_SEED, number).x.astype(np.float32)
        yield torch.from_numpy(x)[None, None]
