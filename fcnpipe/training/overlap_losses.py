"""Losses of overlap: Dice and its kin, and the Lovasz extension of Jaccard.

All but Lovasz are ratios of three sums over the whole batch, I = sum p g, P = sum p, G = sum g,
one ratio a channel, and the mean over the channels. Over the whole batch, because on a tile without
foreground the Dice of that tile alone hardly punishes what was found there: the gradient is about
1e-9. Add cross-entropy where whole batches can be empty.

``smooth`` is the e of Dice = 1 - (2I + e) / (P + G + e); where 2I is halved, e is too, so that
these hold exactly, whatever e:

    Jaccard = 2 Dice / (1 + Dice)    Tversky(.5, .5) = Dice    Tversky(1, 1) = Jaccard
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
    """Soft Dice: 1 - (2I + e) / (P + G + e)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Refuse an e that can divide by 0."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        return Tversky(0.5, 0.5, self.smooth)(inputs)


@dataclass(frozen=True, slots=True)
class Jaccard:
    """Soft Jaccard: 1 - (I + e/2) / (P + G - I + e/2)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Refuse an e that can divide by 0."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        return Tversky(1.0, 1.0, self.smooth)(inputs)


@dataclass(frozen=True, slots=True)
class Tversky:
    """Tversky: 1 - (I + e/2) / (I + alpha (P - I) + beta (G - I) + e/2)."""

    alpha: float = 0.5
    """Weight of what is found and not there."""
    beta: float = 0.5
    """Weight of what is there and not found."""
    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Refuse weights that make no loss."""
        _check(alpha=self.alpha, beta=self.beta, smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p, g)
        half = self.smooth / 2
        whole = both + self.alpha * (found - both) + self.beta * (there - both)
        return (1 - (both + half) / clamp_positive(whole + half)).mean()


@dataclass(frozen=True, slots=True)
class VNetDice:
    """Dice with squares below (Milletari et al. 2016): 1 - (2I + e) / (sum p^2 + sum g^2 + e)."""

    smooth: float = 1.0
    """e, px."""

    def __post_init__(self) -> None:
        """Refuse an e that can divide by 0."""
        _check(smooth=self.smooth)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p * p, g * g)
        return (1 - (2 * both + self.smooth) / clamp_positive(found + there + self.smooth)).mean()


@dataclass(frozen=True, slots=True)
class GeneralisedDice:
    """Dice of all classes at once, each by 1/G^2 (Sudre et al. 2017): the rare count as much.

    Notes
    -----
    A class that is absent would weigh infinitely much; it weighs as much as the rarest one that is
    there. One channel alone makes no use of the weights: it is Dice without e.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, in [0, 1]."""
        p, g = inputs.prediction, inputs.targets
        both, found, there = inputs.weighted_sums(p * g, p, g)
        rarest = there.where(there > 0, torch.inf).amin()
        # Relative to the rarest, which leaves the ratio as it is and float32 in its range.
        weight = (rarest / there).square().where(there > 0, 1)
        return 1 - 2 * (weight * both).sum() / clamp_positive((weight * (found + there)).sum())


@dataclass(frozen=True, slots=True)
class Lovasz:
    """The Lovasz extension of the Jaccard loss (Berman et al. 2018).

    Notes
    -----
    With a sigmoid the hinge of each channel, with a softmax the mean over the classes that are
    there. Equal to the Jaccard loss where each error is 0 or 1: probabilities of 0 or 1 with a
    softmax, logits of 0 where wrong and past +-1 where right with the hinge (logits of +-1
    everywhere give twice the Jaccard loss). Targets are cut at one half. Workers exchange their
    pixels, because the errors are sorted over the whole inputs.
    """

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, at least 0."""
        hinge = inputs.options.activation == "sigmoid"
        truth = (inputs.targets >= 0.5).to(inputs.logits.dtype)
        margin = functional.relu(1 - inputs.logits * (2 * truth - 1))
        errors = margin if hinge else (truth - inputs.prediction).abs()
        # Ignored pixels come last, with no error and no step.
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
            raise SpecError(f"{name} = {value}: an overlap needs at least 0")


def _extend(errors: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Sum of errors times the steps of the Jaccard loss as they come, the greatest first, (c,)."""
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    inside, outside = inside.gather(1, order), outside.gather(1, order)
    whole = inside.sum(1, keepdim=True)
    loss = 1 - (whole - inside.cumsum(1)) / clamp_positive(whole + outside.cumsum(1))
    return (errors * loss.diff(dim=1, prepend=torch.zeros_like(whole))).sum(1)
