"""Overlap losses: Dice and its variants, Tversky, and the Lovasz extension of the Jaccard loss.

All except Lovasz are ratios of three sums over the whole batch, I = sum p g, P = sum p, G = sum g,
with one ratio for each channel; the loss is the mean over the channels. The sums run over the whole
batch because the Dice loss of a single tile without foreground hardly penalises false detections:
its gradient is about 1e-9. Add cross-entropy where whole batches can be empty.

``smooth`` is the e of Dice = 1 - (2I + e) / (P + G + e). Where 2I is halved, e is halved too, so
the following identities hold exactly for any e::

    Jaccard = 2 Dice / (1 + Dice)    Tversky(0.5, 0.5) = Dice    Tversky(1, 1) = Jaccard
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.training.loss_inputs import LossInputs, clamp_positive


@dataclass(frozen=True, slots=True)
class Dice:
    """Soft Dice loss: 1 - (2I + e) / (P + G + e)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Check that e is not negative."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        return Tversky(0.5, 0.5, self.smooth)(inputs)


@dataclass(frozen=True, slots=True)
class Jaccard:
    """Soft Jaccard loss: 1 - (I + e/2) / (P + G - I + e/2)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Check that e is not negative."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        return Tversky(1.0, 1.0, self.smooth)(inputs)


@dataclass(frozen=True, slots=True)
class Tversky:
    """Tversky loss: 1 - (I + e/2) / (I + alpha (P - I) + beta (G - I) + e/2)."""

    alpha: float = 0.5
    """Weight of false positives."""
    beta: float = 0.5
    """Weight of false negatives."""
    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Check that no weight is negative."""
        _check(alpha=self.alpha, beta=self.beta, smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p, g)
        half = self.smooth / 2
        whole = both + self.alpha * (found - both) + self.beta * (there - both)
        return (1 - (both + half) / clamp_positive(whole + half)).mean()


@dataclass(frozen=True, slots=True)
class VNetDice:
    """Dice loss with squared denominator (Milletari et al. 2016): 1 - (2I + e) / (sum p^2 + sum g^2 + e)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Check that e is not negative."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p * p, g * g)
        return (1 - (2 * both + self.smooth) / clamp_positive(found + there + self.smooth)).mean()


@dataclass(frozen=True, slots=True)
class GeneralisedDice:
    """Dice loss over all classes, each weighted by 1/G^2 (Sudre et al. 2017), to count rare classes fully.

    Notes
    -----
    The weight of an absent class would be infinite; it is set to the weight of the rarest class
    that is present. With a single channel the weights have no effect: the loss is Dice with e = 0.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p, g)
        rarest = there.where(there > 0, torch.inf).amin()
        # Weights relative to the rarest class leave the ratio unchanged and stay in float32's range.
        weight = (rarest / there).square().where(there > 0, 1)
        return 1 - 2 * (weight * both).sum() / clamp_positive((weight * (found + there)).sum())


@dataclass(frozen=True, slots=True)
class Lovasz:
    """Lovasz extension of the Jaccard loss (Berman et al. 2018).

    Notes
    -----
    With a sigmoid the loss is the mean of the Lovasz hinge over the channels; with a softmax it is
    the mean over the classes that are present. It equals the Jaccard loss where every error is 0 or
    1: for probabilities of 0 or 1 with a softmax, and for logits that are 0 where wrong and beyond
    +-1 where right with the hinge. (Logits of +-1 everywhere give twice the Jaccard loss.) Targets
    are thresholded at 0.5. Processes exchange all their pixels, because the errors are sorted over
    the whole batch.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, at least 0."""
        hinge = inputs.options.activation == "sigmoid"
        truth = (inputs.targets >= 0.5).to(inputs.logits.dtype)
        margin = functional.relu(1 - inputs.logits * (2 * truth - 1))
        errors = margin if hinge else (truth - inputs.prediction).abs()
        # Ignored pixels are sorted last: they have no error and no increment.
        errors = errors.where(inputs.weight > 0, 0)
        errors, truth, weight = (
            inputs.gather_pixels(part) for part in (errors, truth, inputs.weight)
        )
        losses = _extend(errors, weight * truth, weight * (1 - truth))
        if hinge:
            return losses.mean()
        there = (weight * truth).sum(1) > 0
        return (losses * there).sum() / there.sum().clamp(min=1)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise SpecError(f"{name} = {value}: use a number of at least 0")


def _extend(errors: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Return the sum over pixels of error times increment of the Jaccard loss, in descending order of errors, (c,)."""
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    inside, outside = inside.gather(1, order), outside.gather(1, order)
    whole = inside.sum(1, keepdim=True)
    loss = 1 - (whole - inside.cumsum(1)) / clamp_positive(whole + outside.cumsum(1))
    return (errors * loss.diff(dim=1, prepend=torch.zeros_like(whole))).sum(1)
