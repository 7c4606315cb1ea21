"""Inputs of the loss terms: predictions, targets and weights, and their sums over all processes.

::

    logits (n, c, h, w) --activation--> prediction --channel--> (n, 1 or c, h, w)
    targets (n, c + extra, h, w), in [0, 1] for probabilities; extra: images to compare with
    weight (n, 1 or c, h, w) >= 0; 0: ignored; logits and targets have no effect there, NaN included

A ratio of sums is not the mean of the ratios of the processes. Sums are therefore added over all
processes before a ratio is computed. Every process then has the loss of the whole batch and, after
the gradient averaging of DistributedDataParallel, the gradient of the whole batch.
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
    """Options that select and convert the inputs of a loss term."""

    activation: str = "sigmoid"
    """Activation of the logits: "sigmoid", "softmax" over the channels, or "identity"."""
    channel: int | None = None
    """The only channel to use; None: all channels."""
    ignore: float | None = None
    """Target value of pixels to ignore, which may be NaN; None: only the weight decides."""
    shared: bool = True
    """Whether sums are taken over all processes where torch.distributed is initialised."""


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """Inputs of a loss term. Ignored pixels are 0 in all arrays; c is the number of channels used."""

    logits: Tensor
    """(n, c, h, w) float, before the activation."""
    prediction: Tensor
    """(n, c, h, w) float, after the activation."""
    targets: Tensor
    """(n, c, h, w) float."""
    weight: Tensor
    """(n, c, h, w) float >= 0; 0: ignored."""
    images: Tensor
    """(n, c + extra, h, w): the targets of all channels, followed by the images to compare with."""
    options: InputOptions
    """Options that these inputs were made with."""

    def weighted_sums(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Return the weighted sum of each map over the pixels of the batch, (c,) each.

        Parameters
        ----------
        *maps
            (n, c, h, w) float each.
        """
        return self.sum_over_processes(*((self.weight * m).sum((0, 2, 3)) for m in maps))

    def weighted_mean(self, values: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return the mean of the values over pixels and channels, weighted by weight times factor.

        Notes
        -----
        The sum is divided by the sum of the weights, not by the number of pixels, so ignored pixels
        do not dilute the rest. The mean is 0 if all pixels are ignored.
        """
        factor = torch.ones_like(values) if factor is None else factor
        value, mass = self.weighted_sums(factor * values, factor)
        return value.sum() / clamp_positive(mass.sum())

    def sum_over_processes(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Return sums of one shape, each added over the processes; gradients flow back to all processes."""
        if not self._is_distributed:
            return sums
        return _all_reduce_sum(torch.stack(sums)).unbind()

    def gather_pixels(self, values: Tensor) -> Tensor:
        """Return the values (c, n h w) of all pixels of each channel, of all processes.

        All processes must have arrays of the same shape.
        """
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
    """Return the inputs of a loss term.

    Parameters
    ----------
    logits
        (n, c, h, w) float. Half precision is converted to float32.
    targets
        (n, c + extra, h, w).
    weight
        (n or 1, c or 1, h, w) >= 0; 0: ignored. None: all pixels have weight 1.
    options
        Options of the term.

    Raises
    ------
    SpecError
        If the shapes do not match or the channel does not exist.

    Notes
    -----
    The classes of a softmax compete. With a softmax a pixel that is ignored in one channel is
    therefore ignored in all channels.
    """
    _check(logits, targets, options)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    images = targets.to(logits.dtype)
    targets = images[:, : logits.shape[1]]
    weight = _mask_weight(logits, targets, weight, options)
    keep = weight > 0
    # Mask before and after the activation: NaN logits have NaN gradients, and sigmoid(0) is not 0.
    logits, targets = logits.where(keep, 0), targets.where(keep, 0)
    prediction = _activate(logits, options.activation).where(keep, 0)
    seen = slice(None) if options.channel is None else slice(options.channel, options.channel + 1)
    return LossInputs(
        logits[:, seen], prediction[:, seen], targets[:, seen], weight[:, seen], images, options
    )


def clamp_positive(value: Tensor) -> Tensor:
    """Return the value, at least the smallest normal number of its dtype, so that it can be a divisor."""
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
            f"targets {tuple(targets.shape)} do not match logits {tuple(logits.shape)}: provide "
            "one target of the same size for each output"
        )
    if options.channel is not None and not 0 <= options.channel < count:
        raise SpecError(
            f"channel = {options.channel}: the network has {count} outputs: choose 0 to {count - 1}"
        )


def _world_size() -> int:
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def _all_reduce_sum(values: Tensor) -> Tensor:
    return cast("Tensor", _AllReduceSum.apply(values))  # type: ignore[no-untyped-call]


class _AllReduceSum(autograd.Function):
    """Differentiable sum over the processes.

    Each process computes a loss from the sum, so the gradients are summed as well.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        added = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(added)
        return added

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradients[0])
