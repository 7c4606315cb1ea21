"""Losses from prior knowledge of shapes: border weights of the U-Net, and clDice for unbroken thin lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.training.loss_inputs import LossInputs, clamp_positive


def compute_border_weights(
    labels: NDArray[Any],
    peak: float = 10.0,
    sigma_px: float = 5.0,
    classes: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Compute the weight map of the U-Net, which is high where the background between two cells is narrow.

    Parameters
    ----------
    labels
        (h, w) integer: 0 is background, each cell has a number of its own.
    peak
        Height of the border term.
    sigma_px
        Width of the border term, px.
    classes
        Weights of background and cells; None: both classes have the same total weight, half of the
        number of pixels.

    Returns
    -------
    NDArray
        (h, w) float32: w_c + peak * exp(-(d1 + d2)^2 / (2 sigma^2)), where d1 and d2 are the
        distances to the nearest and the second nearest cell, px between pixel centres.

    Notes
    -----
    Follows Ronneberger et al. (2015), but the border term is added to the background only. Inside a
    cell it would raise the weight on both sides of the border and so blur the border.
    """
    weight = np.take(_balance_classes(labels) if classes is None else classes, labels > 0)
    first, second = _two_nearest_distances(labels, math.ceil(9 * sigma_px))
    border = peak * np.exp(-((first + second) ** 2) / (2 * sigma_px**2))
    return np.asarray(weight + np.where(labels == 0, border, 0), np.float32)


def _balance_classes(labels: NDArray[Any]) -> tuple[float, float]:
    cells = int(np.count_nonzero(labels))
    return tuple(labels.size / (2 * max(n, 1)) for n in (labels.size - cells, cells))  # type: ignore[return-value]


def _two_nearest_distances(labels: NDArray[Any], reach: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distances to the nearest and the second nearest cell, px; infinite beyond the reach."""
    first, second = np.full((2, *labels.shape), np.inf)
    _, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + int(labels.min() > 0)
    for number, place in enumerate(ndimage.find_objects(dense), 1):
        if place is None:
            continue
        box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in place)
        distance = ndimage.distance_transform_edt(dense[box] != number)
        second[box] = np.minimum(second[box], np.maximum(first[box], distance))
        first[box] = np.minimum(first[box], distance)
    return first, second


@dataclass(frozen=True, slots=True)
class CentrelineDice:
    """clDice loss (Shit et al. 2021): the skeleton of each mask must be inside the other, so that lines stay unbroken.

    The loss is 1 - 2 T S / (T + S), where T is the fraction of the prediction's skeleton inside the
    target and S the fraction of the target's skeleton inside the prediction.
    """

    iterations: int = 5
    """Number of erosions of the skeleton, at least half the width of the widest line, px."""
    smooth: float = 1.0
    """Summand of numerator and denominator of T and S, px."""

    def __post_init__(self) -> None:
        """Check the number of erosions."""
        if self.iterations < 1:
            raise SpecError(f"iterations = {self.iterations}: a skeleton needs at least 1")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        ours, theirs = (soft_skeleton(part, self.iterations) for part in (p, g))
        sums = inputs.weighted_sums(ours * g, ours, theirs * p, theirs)
        precise = (sums[0] + self.smooth) / clamp_positive(sums[1] + self.smooth)
        whole = (sums[2] + self.smooth) / clamp_positive(sums[3] + self.smooth)
        return (1 - 2 * precise * whole / clamp_positive(precise + whole)).mean()


def soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    """Return the soft skeleton: the pixels that remain after each erosion and that an opening would remove.

    Parameters
    ----------
    x
        (n, c, h, w) float in [0, 1].
    iterations
        Number of erosions.

    Returns
    -------
    Tensor
        (n, c, h, w) float in [0, 1].
    """
    skeleton = functional.relu(x - _open(x))
    for _ in range(iterations):
        x = _erode(x)
        ridge = functional.relu(x - _open(x))
        skeleton = skeleton + functional.relu(ridge - skeleton * ridge)
    return skeleton


def _open(x: Tensor) -> Tensor:
    return functional.max_pool2d(_erode(x), 3, 1, 1)


def _erode(x: Tensor) -> Tensor:
    """Return the minimum of each pixel and its four neighbours; pixels beyond the edge are not counted."""
    upright = -functional.max_pool2d(-x, (3, 1), 1, (1, 0))
    level = -functional.max_pool2d(-x, (1, 3), 1, (0, 1))
    return upright.minimum(level)
