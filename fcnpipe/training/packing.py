"""From the result of a training to a model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fcnpipe.networks.base import Defaults, Output
from fcnpipe.networks.bundle import save_model
from fcnpipe.networks.certificate import describe
from fcnpipe.networks.unet import UNet
from fcnpipe.training.loop import Recipe

OUTPUTS = (
    Output(name="source", role="source"),
    Output(name="heat", role="centre"),
    Output(name="relief", role="topography"),
)
ELEVATION = {"heat": 0.25, "relief": 0.75}
"""Weights of the outputs in the elevation, tuned together with the DEFAULTS."""
DEFAULTS = Defaults(thresh=0.4, dynamics=0.04, minarea=5, minpeak=0.2)
"""Separation options of a model that is trained on the OUTPUTS' targets."""


def pack(
    recipe: Recipe,
    weights: Path,
    path: Path,
    scores: Mapping[str, Any] | None = None,
    defaults: Defaults = DEFAULTS,
) -> Path:
    """The model file of a trained network, proven to tile exactly.

    Parameters
    ----------
    recipe
        What it was trained by; goes into the header.
    weights
        State dict as :func:`fcnpipe.training.loop.train` writes it.
    path
        Model file to write, ending in ``.safetensors``.
    scores
        What was measured of it; goes into the header.
    defaults
        Separation options that suit it.

    Raises
    ------
    ModelError
        When the network cannot be tiled exactly or the path has another ending.
    """
    network = UNet(**recipe.network)
    network.load_state_dict(torch.load(weights, weights_only=True))
    header = describe(
        network,
        recipe.name,
        OUTPUTS,
        ELEVATION,
        defaults=defaults,
        recipe=asdict(recipe),
        scores=dict(scores or {}),
        licence="BSD-3-Clause",
    )
    return save_model(path, network, header)
