"""From the result of a training to a model file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcnpipe.networks.base import Defaults, Output, Share
from fcnpipe.networks.bundle import save_model
from fcnpipe.networks.certificate import describe
from fcnpipe.networks.integers import fits, measure_ranges
from fcnpipe.networks.unet import UNet
from fcnpipe.training.stream import simulate_example

OUTPUTS = (
    Output(name="source", role="source"),
    Output(name="heat", role="centre"),
    Output(name="relief", role="topography"),
)
ELEVATION = {"heat": Share(weight=0.4, floor=0.55), "relief": Share(weight=0.6)}
"""Shares of the outputs in the elevation, tuned together with the DEFAULTS."""
RANGE_KINDS = ("ground", "crowded", "cluster", "globular", "sparse")
RANGE_SEED, RANGE_SIDE = 555, 640
DEFAULTS = Defaults(thresh=0.3, dynamics=0.075, minarea=4, minpeak=0.15)
"""Separation options of a model that is trained on the OUTPUTS' targets."""


def pack(
    folder: Path,
    path: Path | None = None,
    scores: Mapping[str, Any] | None = None,
    elevation: Mapping[str, Share] = ELEVATION,
    defaults: Defaults = DEFAULTS,
) -> Path:
    """Make the model file of a training, proven to tile exactly.

    Parameters
    ----------
    folder
        Where :func:`fcnpipe.training.loop.train` left weights and recipe.
    path
        Model file to write, ending in ``.safetensors``; NAME.safetensors in the folder if not
        given.
    scores
        What was measured of it; goes into the header. The last validation is added.
    elevation, defaults
        How its outputs make the elevation, and separation options that suit it.

    Raises
    ------
    ModelError
        When the network cannot be tiled exactly or the path has another ending.
    """
    facts = json.loads((folder / "best.json").read_text())
    recipe = facts.pop("recipe")
    network = UNet(**recipe["network"])
    network.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    validation = facts.pop("validation", None)
    header = describe(
        network,
        recipe["name"],
        OUTPUTS,
        elevation,
        defaults=defaults,
        ranges=measure_ranges(network, _list_inputs()) if fits(network) else {},
        recipe=recipe | facts,
        scores={"validation_loss": validation, **(scores or {})},
        licence="BSD-3-Clause",
    )
    return save_model(path or folder / f"{recipe['name']}.safetensors", network, header)


def _list_inputs() -> Iterator[torch.Tensor]:
    """Give skies as the network sees them, faint and bright, from which ranges are measured."""
    for number, kind in enumerate(RANGE_KINDS):
        x = simulate_example(kind, RANGE_SIDE, RANGE_SEED, number).x.astype(np.float32)
        yield torch.from_numpy(x)[None, None]
