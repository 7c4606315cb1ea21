"""Loss functions: the loss of the default model, and weighted combinations of named terms.

A combined loss takes logits (n, c, h, w), targets of the same shape, and a weight map or None. All
of its terms share these rules:

* Pixels of weight 0 are ignored: they do not change the loss, their gradient is exactly 0, and
  their logits and targets have no effect, NaN included. ``ignore`` names a value of the targets
  that sets the weight to 0. It is not a valid target, so all terms ignore it, whichever term names
  it.
* Means are divided by the sum of the weights.
* Sums are taken over all processes where torch.distributed is initialised, so all processes must
  call the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.training.loss_inputs import ACTIVATIONS, InputOptions, LossInputs, prepare_inputs
from fcnpipe.training.overlap_losses import (
    Dice,
    GeneralisedDice,
    Jaccard,
    Lovasz,
    Tversky,
    VNetDice,
)
from fcnpipe.training.physics_losses import Flux, PsfConsistency
from fcnpipe.training.shape_losses import CentrelineDice


@dataclass(frozen=True, slots=True)
class OutputWeights:
    """Weights of the default model's outputs in its loss: section ``weights`` of a recipe."""

    source: float = 1.0
    """Weight of the source probability."""
    heat: float = 4.0
    """Weight of the centre heat map, before the boost."""
    boost: float = 4.0
    """The cross-entropy of the heat map is multiplied by 1 + boost * heat, because centres cover a
    small part of a sky."""
    relief: float = 4.0
    """Weight of the relief."""


def compute_default_loss(logits: Tensor, targets: Tensor, weights: OutputWeights) -> Tensor:
    """Compute the loss of the default model: the weighted sum of the mean cross-entropies of its three outputs.

    Parameters
    ----------
    logits
        (n, 3, h, w) float.
    targets
        (n, 3, h, w) float in [0, 1]: source, heat, relief.
    weights
        Weight of each output.

    Returns
    -------
    Tensor
        Scalar. With soft targets the optimum is their mean, and the loss keeps an entropy that no
        network can remove.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    heat = targets[:, 1]
    return (
        weights.source * entropy[:, 0].mean()
        + weights.heat * torch.mean((1 + weights.boost * heat) * entropy[:, 1])
        + weights.relief * entropy[:, 2].mean()
    )


class Term(Protocol):
    """Loss term. Its fields are its options, which are checked at construction."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Mean squared difference of prediction and target."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, at least 0."""
        return inputs.weighted_mean((inputs.prediction - inputs.targets).square())


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy: binary for each channel with a sigmoid, categorical with a softmax.

    Notes
    -----
    The mean is weighted by pixel and by class. With soft targets the optimum is their mean, and the
    loss keeps an entropy that no network can remove.
    """

    classes: tuple[float, ...] | None = None
    """Weight of each channel; None: all channels have the same weight."""
    positive: float = 1.0
    """Weight of target 1 relative to target 0, for a sigmoid; interpolated for targets in between."""

    def __post_init__(self) -> None:
        """Check the weights."""
        if not self.positive > 0:
            raise SpecError(f"positive = {self.positive}: the weight must be above 0")
        if self.classes is not None and not all(weight >= 0 for weight in self.classes):
            raise SpecError(f"classes = {self.classes}: each weight must be at least 0")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, at least 0."""
        logits, targets = inputs.logits, inputs.targets
        weight = self._class_weights(logits)
        if inputs.options.activation == "softmax":
            return inputs.weighted_mean(-logits.log_softmax(1), weight * targets)
        entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return inputs.weighted_mean(entropy, weight * (1 + (self.positive - 1) * targets))

    def _class_weights(self, logits: Tensor) -> Tensor:
        if self.classes is None:
            return logits.new_ones(1, 1, 1, 1)
        if len(self.classes) != logits.shape[1]:
            raise SpecError(
                f"classes has {len(self.classes)} weights for {logits.shape[1]} channels: name one "
                "weight for each"
            )
        return logits.new_tensor(self.classes)[:, None, None]


TERMS: dict[str, type[Term]] = {
    "mse": SquaredError,
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "vnet_dice": VNetDice,
    "jaccard": Jaccard,
    "generalised_dice": GeneralisedDice,
    "tversky": Tversky,
    "lovasz": Lovasz,
    "cldice": CentrelineDice,
    "flux": Flux,
    "psf": PsfConsistency,
}
"""Loss terms by the name that a recipe uses."""
_PROBABILITY_TERMS = ("cross_entropy", "lovasz")


@dataclass(frozen=True, slots=True)
class WeightedTerm:
    """One term of a combined loss."""

    name: str
    """Name in TERMS, with its suffix."""
    weight: float
    """Weight in the sum."""
    term: Term
    """The loss term."""
    options: InputOptions
    """Options of its inputs."""


@dataclass(frozen=True, slots=True)
class CombinedLoss:
    """Weighted sum of loss terms."""

    parts: tuple[WeightedTerm, ...]
    """The terms."""

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the loss, a scalar.

        Parameters
        ----------
        logits
            (n, c, h, w) float, before the activation.
        targets
            (n, c, h, w) float, in [0, 1] for probabilities. Images that a term compares with (its
            option ``image``) follow as further channels.
        weight
            (n or 1, c or 1, h, w) >= 0; 0: ignored. None: all pixels have weight 1.

        Raises
        ------
        SpecError
            If the shapes do not match.
        """
        losses = self.compute_terms(logits, targets, weight)
        return torch.stack([part.weight * losses[part.name] for part in self.parts]).sum()

    def compute_terms(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute each term, a scalar by its name, without its weight in the sum."""
        self._check(logits, targets)
        return {
            p.name: p.term(prepare_inputs(logits, targets, weight, p.options)) for p in self.parts
        }

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        compared = any(getattr(part.term, "image", None) is not None for part in self.parts)
        if targets.shape[1] > logits.shape[1] and not compared:
            raise SpecError(
                f"targets have {targets.shape[1]} channels, the network {logits.shape[1]} outputs, "
                "and no term compares with the rest: provide one target for each output"
            )


def make_loss(
    terms: Mapping[str, float | Mapping[str, Any]],
    activation: str = "sigmoid",
    shared: bool = True,
) -> CombinedLoss:
    """Return the combined loss that a recipe describes.

    Parameters
    ----------
    terms
        Weight of each term, by the names in TERMS; or a mapping with ``weight`` (default 1),
        ``channel`` (default: all), ``ignore`` (a value of the targets), ``activation`` (as below),
        and the term's own options, which are its fields. A term that occurs twice gets a suffix:
        "dice.0" and "dice.1".
    activation
        Default activation of the logits: "sigmoid", "softmax" over the channels, or "identity" for
        outputs that are not probabilities.
    shared
        Whether to take sums over all processes where torch.distributed is initialised; all
        processes must then call the loss. False for a loss that one process computes alone.

    Raises
    ------
    SpecError
        If a term or an option is unknown or has an invalid value.

    Examples
    --------
    >>> loss = make_loss({"dice": 1.0, "cross_entropy": {"weight": 0.5, "ignore": 255}})
    >>> logits = torch.tensor([[[[40.0, -40.0, 3.0]]]])
    >>> targets = torch.tensor([[[[1.0, 0.0, 255.0]]]])
    >>> round(float(loss(logits, targets)), 6)
    0.0
    """
    if not terms:
        raise SpecError(f"the loss has no terms: name some of {', '.join(TERMS)}")
    shared_options = {
        "activation": activation,
        "shared": shared,
        "ignore": _find_ignore_value(terms),
    }
    return CombinedLoss(
        tuple(_make_weighted_term(name, setting, shared_options) for name, setting in terms.items())
    )


def _find_ignore_value(terms: Mapping[str, float | Mapping[str, Any]]) -> float | None:
    options = (setting for setting in terms.values() if isinstance(setting, Mapping))
    values = [setting["ignore"] for setting in options if setting.get("ignore") is not None]
    if not all(isinstance(value, int | float) for value in values):
        raise SpecError(f"ignore = {values}: use a number, which is a value of the targets")
    if len({str(float(value)) for value in values}) > 1:
        raise SpecError(f"ignore = {values}: use the same value in all terms")
    return float(values[0]) if values else None


def _make_weighted_term(
    name: str, setting: float | Mapping[str, Any], shared_options: dict[str, Any]
) -> WeightedTerm:
    kind = name.partition(".")[0]
    if kind not in TERMS:
        raise SpecError(f"loss {name!r} is unknown: choose one of {', '.join(TERMS)}")
    options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
    weight = _read_weight(name, options.pop("weight", 1.0))
    options.pop("ignore", None)
    chosen = {key: options.pop(key) for key in ("activation", "channel") if key in options}
    seen = InputOptions(**(shared_options | chosen))
    _check_options(name, kind, seen)
    return WeightedTerm(name, weight, _make_term(name, TERMS[kind], options), seen)


def _make_term(name: str, kind: type[Term], options: dict[str, Any]) -> Term:
    known = [f.name for f in fields(cast("Any", kind)) if f.init]
    unknown = sorted(set(options) - set(known))
    if unknown:
        shared = ("weight", "channel", "ignore", "activation")
        raise SpecError(
            f"{name}: {', '.join(unknown)} is unknown: use {', '.join([*shared, *known])}"
        )
    try:
        return kind(**options)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name}: {options} cannot be read ({error}): use numbers") from error


def _read_weight(name: str, weight: Any) -> float:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= weight < float("inf"):
        raise SpecError(f"{name}: weight = {weight!r}: use a finite number of at least 0")
    return float(weight)


def _check_options(name: str, kind: str, options: InputOptions) -> None:
    if options.activation not in ACTIVATIONS:
        raise SpecError(
            f"{name}: activation = {options.activation!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    if options.channel is not None and (
        not isinstance(options.channel, int) or options.channel < 0
    ):
        raise SpecError(
            f"{name}: channel = {options.channel!r}: use the number of an output, from 0"
        )
    if kind in _PROBABILITY_TERMS and options.activation == "identity":
        raise SpecError(f"{name}: activation = 'identity': choose sigmoid or softmax")
    if kind == "cross_entropy" and options.activation == "softmax" and options.channel is not None:
        raise SpecError(
            f"{name}: channel = {options.channel}: the classes of a softmax have one cross-entropy: "
            "leave the channel out, or set weights with classes"
        )
