"""The loss of the default model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight of each output in the loss."""

    source: float = 1.0
    """Of the source probability."""
    heat: float = 4.0
    """Of the centre heat, before the boost."""
    boost: float = 4.0
    """The heat's cross-entropy is weighted by 1 + boost * heat: centres are a small part of a
    sky."""
    relief: float = 4.0
    """Of the relief."""


def measure_loss(logits: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Weighted sum of the mean cross-entropies of the three outputs.

    Parameters
    ----------
    logits
        (n, 3, h, w) float.
    targets
        (n, 3, h, w) float in [0, 1]: source, heat, relief.
    weights
        Weight of each.

    Returns
    -------
    Tensor
        Scalar. Soft targets leave the mean as the optimum and an entropy that no network removes.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    heat = targets[:, 1]
    return (
        weights.source * entropy[:, 0].mean()
        + weights.heat * torch.mean((1 + weights.boost * heat) * entropy[:, 1])
        + weights.relief * entropy[:, 2].mean()
    )
