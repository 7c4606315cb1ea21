"""Simulated pairs of network input and target: blurred text and stars, and bulge-plus-disk galaxies.

Kinds ``text`` and ``stars`` are blurred, noisy images whose target is the sharp image (see
``simulation.blurred_images``). The targets of kind ``galaxies`` are the images of bulge and disk
(see ``simulation.galaxies``).
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
"""Kinds of image pairs."""


@dataclass(frozen=True)
class SimulatedPair:
    """Network input and target of a simulated image."""

    x: Floats
    """(1, h, w) float32, input of the network."""
    targets: Floats
    """(outputs, h, w) float32."""
    weight: Floats
    """(1, h, w) float32, weight of each pixel in the loss."""


def simulate_pair(kind: str, side: int, seed: int) -> SimulatedPair:
    """Simulate an image pair of a kind; equal arguments return equal pairs.

    Parameters
    ----------
    kind
        One of KINDS.
    side
        Side of the image, px; galaxies always have the side of a stamp.
    seed
        Any non-negative integer.

    Notes
    -----
    The errors of galaxies are weighted as if both images were in asinh. Otherwise only the
    brightest pixels would be learned.
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
    """Return the scaling of the pixels of a kind before the network."""
    return Scaling() if kind == GALAXIES else Scaling(kind="linear")


def list_outputs(kind: str) -> tuple[Output, ...]:
    """Return the outputs of a network that is trained on a kind."""
    if kind != GALAXIES:
        return (Output(name="restored", role="restored"),)
    return tuple(Output(name=name, role=f"component:{name}") for name in ("bulge", "disk"))
