"""Losses from physics: flux conservation of components, and consistency with the PSF."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.images import open_image
from fcnpipe.training.loss_inputs import LossInputs, clamp_positive


@dataclass(frozen=True, slots=True)
class Flux:
    """Flux conservation: mean over the examples of the squared relative flux error (F_predicted - F) / (|F| + floor).

    F is the flux of the pixels that are not ignored, summed over the components.
    """

    image: int | None = None
    """Channel of the targets that holds the image; None: the sum of the target components."""
    floor: float = 1.0
    """Flux of an example below which errors are absolute, in the unit of the image."""

    def __post_init__(self) -> None:
        """Check that the floor is above 0."""
        if not self.floor > 0:
            raise SpecError(f"floor = {self.floor}: the floor must be above 0")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, at least 0."""
        predicted, expected, weight = _pair(inputs, self.image)
        keep = weight > 0
        found = predicted.where(keep, 0).sum((1, 2, 3))
        flux = expected.where(keep, 0).sum((1, 2, 3))
        error = ((found - flux) / (flux.abs() + self.floor)).square()
        count = keep.flatten(1).any(1).to(error.dtype)
        total, examples = inputs.sum_over_processes((error * count).sum(), count.sum())
        return total / clamp_positive(examples)


@dataclass(frozen=True, slots=True)
class PsfConsistency:
    """PSF consistency: mean squared difference of the prediction, convolved with the PSF, and the image.

    Notes
    -----
    Only pixels whose whole PSF is inside the crop and outside ignored areas are compared, because
    the prediction elsewhere is unknown.
    """

    psf: ArrayLike | str = field(repr=False)
    """(odd, odd) float, normally of sum 1; or the image file that holds it."""
    image: int | None = None
    """Channel of the targets that holds the image of the summed components; None: each component
    has an image of its own."""
    _kernel: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read and check the PSF."""
        kernel = _read_psf(self.psf) if isinstance(self.psf, str) else self.psf
        kernel = np.asarray(kernel, np.float64)
        if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
            raise SpecError(
                f"psf of shape {kernel.shape}: both sides must be odd, with the centre in the middle"
            )
        if not np.isfinite(kernel).all():
            raise SpecError("psf contains values that are not finite: repair or replace it")
        object.__setattr__(self, "_kernel", kernel)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, at least 0."""
        predicted, expected, weight = _pair(inputs, self.image)
        height, width = self._kernel.shape
        if predicted.shape[2] < height or predicted.shape[3] < width:
            raise SpecError(
                f"a crop of {tuple(predicted.shape[2:])} px is smaller than the PSF of "
                f"{self._kernel.shape} px: use larger crops or trim the PSF"
            )
        inner = (..., _middle(predicted.shape[2], height), _middle(predicted.shape[3], width))
        keep = -functional.max_pool2d(-(weight > 0).to(weight.dtype), self._kernel.shape, 1)
        weight = weight[inner] * keep
        error = (_convolve(predicted, self._kernel) - expected[inner]).square()
        total, mass = inputs.sum_over_processes((weight * error).sum(), weight.sum())
        return total / clamp_positive(mass)


def _read_psf(path: str) -> NDArray[np.float32]:
    image = open_image(path)
    return image.read(Box(0, 0, *image.info.shape[1:]), 0)


def _pair(inputs: LossInputs, image: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prediction, the image to match, and the weight: for each component, or summed over components."""
    if image is None:
        return inputs.prediction, inputs.targets, inputs.weight
    if not 0 <= image < inputs.images.shape[1]:
        raise SpecError(
            f"image = {image}: the targets have {inputs.images.shape[1]} channels: append the image "
            "as a further channel"
        )
    weight = inputs.weight.amin(1, keepdim=True)
    keep = weight > 0
    expected = inputs.images[:, image : image + 1].where(keep, 0)
    return inputs.prediction.sum(1, keepdim=True).where(keep, 0), expected, weight


def _middle(size: int, side: int) -> slice:
    return slice(side // 2, size - side // 2)


def _convolve(x: Tensor, kernel: NDArray[Any]) -> Tensor:
    weight = torch.from_numpy(kernel[::-1, ::-1].copy()).to(x)[None, None]
    planes = functional.conv2d(x.flatten(0, 1)[:, None], weight)
    return planes.view(*x.shape[:2], *planes.shape[2:])
