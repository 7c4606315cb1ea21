"""Batches of images that are drawn for each step anew, with the images that shall come out.

Kinds: ``text`` and ``stars``, blurred and noisy (see blurred_images), whose sharp image is wanted; ``galaxies``
(see galaxies), whose bulge and disk are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnpipe.networks.base import Output, Scaling
from fcnpipe.simulation import blurred_images, galaxies

Floats = NDArray[np.float32]

GALAXIES = "galaxies"
KINDS = (*blurred_images.KINDS, GALAXIES)
"""What can be drawn."""


@dataclass(frozen=True)
class SimulatedPair:
    """An image as the network sees it, and what shall come out."""

    x: Floats
    """(1, h, w) float32."""
    targets: Floats
    """(outputs, h, w) float32."""
    weight: Floats
    """(1, h, w) float32, what an error counts."""


def simulate_pair(kind: str, side: int, seed: int) -> SimulatedPair:
    """Give an image of a kind; the same for the same arguments.

    Notes
    -----
    Galaxies have the side of a stamp. Their errors count as if both images were in asinh: else the
    brightest pixels were all that is learned.
    """
    if kind != GALAXIES:
        pair = blurred_images.draw_pair(kind, (side, side), seed)
        return SimulatedPair(pair.observed[None], pair.truth[None], np.ones_like(pair.truth)[None])
    stamp = galaxies.draw_galaxy(seed)
    weight = 1 / (1 + np.square(stamp.bulge + stamp.disk))
    return SimulatedPair(
        np.arcsinh(stamp.image)[None], np.stack([stamp.bulge, stamp.disk]), weight[None]
    )


def input_scaling(kind: str) -> Scaling:
    """Give what is done to the pixels of such images before a network sees them."""
    return Scaling() if kind == GALAXIES else Scaling(kind="linear")


def list_outputs(kind: str) -> tuple[Output, ...]:
    """Give the outputs of a network that learns a kind."""
    if kind != GALAXIES:
        return (Output(name="restored", role="restored"),)
    return tuple(Output(name=name, role=f"component:{name}") for name in ("bulge", "disk"))
