"""What is known of shapes before training: narrow borders count, thin lines stay whole."""

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
    """Weight map of the U-Net: high where the background between two cells is narrow.

    Parameters
    ----------
    labels
        (h, w) integer, 0 is background, each cell a number of its own.
    peak
        Height of the border term.
    sigma_px
        Width of the border term, px.
    classes
        Weight of background and of cells; None: such that both weigh half of the pixels.

    Returns
    -------
    NDArray
        (h, w) float32: w_c + peak * exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 the distances to the
        nearest cell and to the one after it, px between pixel centres.

    Notes
    -----
    Follows Ronneberger et al. (2015), with the border term on the background alone: in a cell it
    would blur which side of the border is asked for.
    """
    weight = np.take(_balance_classes(labels) if classes is None else classes, labels > 0)
    first, second = _two_nearest_distances(labels, math.ceil(9 * sigma_px))
    border = peak * np.exp(-((first + second) ** 2) / (2 * sigma_px**2))
    return np.asarray(weight + np.where(labels == 0, border, 0), np.float32)


def _balance_classes(labels: NDArray[Any]) -> tuple[float, float]:
    cells = int(np.count_nonzero(labels))
    return tuple(labels.size / (2 * max(n, 1)) for n in (labels.size - cells, cells))  # type: ignore[return-value]


def _two_nearest_distances(labels: NDArray[Any], reach: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distances to the nearest cell and to the second one; infinite beyond the reach."""
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
    """clDice (Shit et al. 2021): each skeleton inside the other's lines, so that lines stay whole.

    1 - 2 T S / (T + S), T the part of the prediction's skeleton in the target, S the part of the
    target's skeleton in the prediction.
    """

    iterations: int = 5
    """Erosions of the skeleton, at least half the width of the widest line, px."""
    smooth: float = 1.0
    """Added above and below in T and S, px."""

    def __post_init__(self) -> None:
        """Refuse a skeleton that is none."""
        if self.iterations < 1:
            raise SpecError(f"iterations = {self.iterations}: a skeleton needs at least 1")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        ours, theirs = (soft_skeleton(part, self.iterations) for part in (p, g))
        sums = inputs.weighted_sums(ours * g, ours, theirs * p, theirs)
        precise = (sums[0] + self.smooth) / clamp_positive(sums[1] + self.smooth)
        whole = (sums[2] + self.smooth) / clamp_positive(sums[3] + self.smooth)
        return (1 - 2 * precise * whole / clamp_positive(precise + whole)).mean()


def soft_skeleton(x: Tensor, iterations: int) -> Tensor:
    """Soft skeleton: what each erosion leaves and an opening would take away.

    Parameters
    ----------
    x
        (n, c, h, w) float in [0, 1].
    iterations
        Number of erosions.
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
    """Least of the pixel and its four neighbours; there is nothing beyond the edge."""
    upright = -functional.max_pool2d(-x, (3, 1), 1, (1, 0))
    level = -functional.max_pool2d(-x, (1, 3), 1, (0, 1))
    return upright.minimum(level)
