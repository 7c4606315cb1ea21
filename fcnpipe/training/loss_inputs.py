"""What a loss compares: predictions, targets and weights of a batch, summed over all workers.

::

    logits (n, c, h, w) --activation--> prediction --channel--> (n, 1 or c, h, w)
    targets (n, c + extra, h, w), in [0, 1] for probabilities; extra: images to compare with
    weight (n, 1 or c, h, w) >= 0; 0: ignored, whatever logits and targets hold there, NaN included

A ratio of sums is not the mean of the workers' ratios, so sums are added over the workers before a
ratio is taken. Every worker then has the loss of the whole batch, and after the averaging of
DistributedDataParallel the gradient of the whole inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, autograd, distributed

from fcnpipe.core.errors import SpecError

Activation = Literal["sigmoid", "softmax", "identity"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What a term sees of a inputs."""

    activation: str = "sigmoid"
    """What makes predictions of logits: "sigmoid", "softmax" over the channels, "identity"."""
    channel: int | None = None
    """The only channel that counts; None: all of them."""
    ignore: float | None = None
    """Target that marks pixels to ignore, NaN included; None: the weight alone does."""
    shared: bool = True
    """Whether sums run over all workers where torch.distributed is initialised."""


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """Predictions beside targets; c counts the channels seen. What is ignored is 0 in all."""

    logits: Tensor
    """(n, c, h, w) float, before the activation."""
    prediction: Tensor
    """(n, c, h, w) float, after it."""
    targets: Tensor
    """(n, c, h, w) float."""
    weight: Tensor
    """(n, c, h, w) float >= 0; 0: ignored."""
    images: Tensor
    """(n, c + extra, h, w): the targets of all channels, and the images after them."""
    options: InputOptions
    """What is seen of the whole."""

    def weighted_sums(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Weighted sum of each map over the pixels, (c,) each.

        Parameters
        ----------
        *maps
            (n, c, h, w) float each.
        """
        return self.sum_over_processes(*((self.weight * m).sum((0, 2, 3)) for m in maps))

    def weighted_mean(self, values: Tensor, factor: Tensor | None = None) -> Tensor:
        """Mean of the values over the pixels and channels, weighted by weight and factor.

        Notes
        -----
        Divided by the sum of the weights, not by the number of pixels: what is ignored does not
        dilute the rest. Nothing but ignored pixels gives 0.
        """
        factor = torch.ones_like(values) if factor is None else factor
        value, mass = self.weighted_sums(factor * values, factor)
        return value.sum() / clamp_positive(mass.sum())

    def sum_over_processes(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Sums of one shape, each added over the workers; the gradient goes back to all of them."""
        if not self._is_distributed:
            return sums
        return _all_reduce_sum(torch.stack(sums)).unbind()

    def gather_pixels(self, values: Tensor) -> Tensor:
        """Values (c, n h w) of all pixels of each channel, of all workers: equal shapes there."""
        if self._is_distributed:
            slots = values.new_zeros(_world_size(), *values.shape)
            slots[distributed.get_rank()] = values
            values = _all_reduce_sum(slots).flatten(0, 1)
        return values.transpose(0, 1).flatten(1)

    @property
    def _is_distributed(self) -> bool:
        return self.options.shared and _world_size() > 1


def prepare_inputs(
    logits: Tensor, targets: Tensor, weight: Tensor | None, options: InputOptions
) -> LossInputs:
    """The part of a batch that a options shows.

    Parameters
    ----------
    logits
        (n, c, h, w) float. Half precision is widened to float32.
    targets
        (n, c + extra, h, w).
    weight
        (n or 1, c or 1, h, w) >= 0; 0: ignored. None: all pixels count once.
    options
        What to show.

    Raises
    ------
    SpecError
        When shapes do not go together or the channel does not exist.

    Notes
    -----
    Classes of a softmax compete, so there a pixel that is ignored in one channel is ignored in all.
    """
    _check(logits, targets, options)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    images = targets.to(logits.dtype)
    targets = images[:, : logits.shape[1]]
    weight = _mask_weight(logits, targets, weight, options)
    keep = weight > 0
    # Both before and after the activation: NaN there has a NaN gradient, and 0 a value of its own.
    logits, targets = logits.where(keep, 0), targets.where(keep, 0)
    prediction = _activate(logits, options.activation).where(keep, 0)
    seen = slice(None) if options.channel is None else slice(options.channel, options.channel + 1)
    return LossInputs(
        logits[:, seen], prediction[:, seen], targets[:, seen], weight[:, seen], images, options
    )


def clamp_positive(value: Tensor) -> Tensor:
    """The value where it can divide, the smallest number that can where it is 0."""
    return value.clamp(min=torch.finfo(value.dtype).tiny)


def _mask_weight(
    logits: Tensor, targets: Tensor, weight: Tensor | None, options: InputOptions
) -> Tensor:
    shape = torch.ones_like(logits)
    weight = shape if weight is None else weight.to(logits) * shape
    keep = weight > 0
    if options.ignore is not None:
        ignored = targets.isnan() if math.isnan(options.ignore) else targets == options.ignore
        keep = keep & ~ignored
    if options.activation == "softmax":
        keep = keep.all(1, keepdim=True)
    return weight.where(keep, 0)


def _activate(logits: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return logits.softmax(1)
    return logits.sigmoid() if activation == "sigmoid" else logits


def _check(logits: Tensor, targets: Tensor, options: InputOptions) -> None:
    count = logits.shape[1]
    like = (logits.shape[0], *logits.shape[2:]) == (targets.shape[0], *targets.shape[2:])
    if not like or targets.shape[1] < count:
        raise SpecError(
            f"targets {tuple(targets.shape)} do not go with logits {tuple(logits.shape)}; give "
            "each output its target, of the same size"
        )
    if options.channel is not None and not 0 <= options.channel < count:
        raise SpecError(
            f"channel = {options.channel}: the network has {count} outputs; choose 0 to {count - 1}"
        )


def _world_size() -> int:
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def _all_reduce_sum(values: Tensor) -> Tensor:
    return cast("Tensor", _AllReduceSum.apply(values))  # type: ignore[no-untyped-call]


class _AllReduceSum(autograd.Function):
    """Sum over the workers. Each of them has a loss of it, so that gradients add up as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        added = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(added)
        return added

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradients[0])
