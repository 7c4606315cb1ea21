"""The losses: that of the default model, and combinations by name and weight.

A combination takes logits (n, c, h, w), targets of the same shape and a weight map, or None. What
it shares among all of its terms:

* Pixels of weight 0 are ignored: they change no loss, their gradient is exactly 0, and neither
  logits nor targets matter there, NaN included. ``ignore`` names a value of the targets that sets
  the weight to 0; it is no target, so whichever term names it, all terms ignore it.
* Means are divided by the sum of the weights.
* Sums run over all workers where torch.distributed is initialised, so all workers must call it.
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


def compute_default_loss(logits: Tensor, targets: Tensor, weights: OutputWeights) -> Tensor:
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


class Term(Protocol):
    """One loss. Its fields are its options, checked when it is made."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Mean square of prediction minus target."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, at least 0."""
        return inputs.weighted_mean((inputs.prediction - inputs.targets).square())


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy: binary for each channel with a sigmoid, of the classes with a softmax.

    Notes
    -----
    The mean is weighted by pixel and by class. Soft targets leave the mean as the optimum and an
    entropy that no network removes.
    """

    classes: tuple[float, ...] | None = None
    """Weight of each channel; None: all count the same."""
    positive: float = 1.0
    """Weight of target 1 relative to target 0, for a sigmoid; in between for targets between."""

    def __post_init__(self) -> None:
        """Refuse weights that are none."""
        if not self.positive > 0:
            raise SpecError(f"positive = {self.positive}: target 1 needs a weight above 0")
        if self.classes is not None and not all(weight >= 0 for weight in self.classes):
            raise SpecError(f"classes = {self.classes}: each class needs a weight of at least 0")

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss, at least 0."""
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
                f"classes has {len(self.classes)} weights for {logits.shape[1]} channels; give one "
                "for each"
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
_PROBABILITY_TERMS = ("cross_entropy", "lovasz")


@dataclass(frozen=True, slots=True)
class WeightedTerm:
    """One term of a combination."""

    name: str
    """Its name, see TERMS."""
    weight: float
    """Its weight in the sum."""
    term: Term
    """What it computes."""
    options: InputOptions
    """What it computes it on."""


@dataclass(frozen=True, slots=True)
class CombinedLoss:
    """Weighted sum of terms: the loss of a training."""

    parts: tuple[WeightedTerm, ...]
    """Its terms."""

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss, a scalar.

        Parameters
        ----------
        logits
            (n, c, h, w) float, before the activation.
        targets
            (n, c, h, w) float, in [0, 1] for probabilities; images that a term compares with, in
            its option ``image``, as further channels.
        weight
            (n or 1, c or 1, h, w) >= 0; 0: ignored. None: all pixels count once.

        Raises
        ------
        SpecError
            When shapes do not go together.
        """
        losses = self.compute_terms(logits, targets, weight)
        return torch.stack([part.weight * losses[part.name] for part in self.parts]).sum()

    def compute_terms(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Each term by name, before its weight: for the log."""
        self._check(logits, targets)
        return {
            p.name: p.term(prepare_inputs(logits, targets, weight, p.options)) for p in self.parts
        }

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        compared = any(getattr(part.term, "image", None) is not None for part in self.parts)
        if targets.shape[1] > logits.shape[1] and not compared:
            raise SpecError(
                f"targets have {targets.shape[1]} channels, the network {logits.shape[1]} outputs, "
                "and no term compares with the rest; give each output its target"
            )


def make_loss(
    terms: Mapping[str, float | Mapping[str, Any]],
    activation: str = "sigmoid",
    shared: bool = True,
) -> CombinedLoss:
    """The loss that a training spec names.

    Parameters
    ----------
    terms
        Weight of each term, by the names in TERMS; or a mapping of ``weight`` (1), ``channel`` (all
        of them), ``ignore`` (a value of the targets), ``activation`` (as below), and the term's own
        options, its fields. A term that is wanted twice gets a suffix, "dice.0" and "dice.1".
    activation
        What makes predictions of logits: "sigmoid", "softmax" over the channels, "identity" for
        what is no probability.
    shared
        Take sums over all workers where torch.distributed is initialised: all of them must then
        call it. False for a loss that one worker measures alone.

    Raises
    ------
    SpecError
        When a term or an option is unknown or has a value that cannot be.

    Examples
    --------
    >>> loss = make_loss({"dice": 1.0, "cross_entropy": {"weight": 0.5, "ignore": 255}})
    >>> logits = torch.tensor([[[[40.0, -40.0, 3.0]]]])
    >>> targets = torch.tensor([[[[1.0, 0.0, 255.0]]]])
    >>> round(float(loss(logits, targets)), 6)
    0.0
    """
    if not terms:
        raise SpecError(f"the loss has no terms; give some of {', '.join(TERMS)}")
    shared_options = {
        "activation": activation,
        "shared": shared,
        "ignore": _find_ignore_value(terms),
    }
    return CombinedLoss(
        tuple(_make_weighted_term(name, given, shared_options) for name, given in terms.items())
    )


def _find_ignore_value(terms: Mapping[str, float | Mapping[str, Any]]) -> float | None:
    options = (given for given in terms.values() if isinstance(given, Mapping))
    values = [given["ignore"] for given in options if given.get("ignore") is not None]
    if not all(isinstance(value, int | float) for value in values):
        raise SpecError(f"ignore = {values}: give a number, a value of the targets")
    if len({str(float(value)) for value in values}) > 1:
        raise SpecError(f"ignore = {values}: give all terms the same value")
    return float(values[0]) if values else None


def _make_weighted_term(
    name: str, given: float | Mapping[str, Any], shared_options: dict[str, Any]
) -> WeightedTerm:
    kind = name.partition(".")[0]
    if kind not in TERMS:
        raise SpecError(f"loss {name!r} is unknown; choose of {', '.join(TERMS)}")
    options = dict(given) if isinstance(given, Mapping) else {"weight": given}
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
            f"{name}: {', '.join(unknown)} is unknown; it has {', '.join([*shared, *known])}"
        )
    try:
        return kind(**options)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name}: {options} cannot be read ({error}); give numbers") from error


def _read_weight(name: str, weight: Any) -> float:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= weight < float("inf"):
        raise SpecError(f"{name}: weight = {weight!r}: give a finite number of at least 0")
    return float(weight)


def _check_options(name: str, kind: str, options: InputOptions) -> None:
    if options.activation not in ACTIVATIONS:
        raise SpecError(
            f"{name}: activation = {options.activation!r}: choose of {', '.join(ACTIVATIONS)}"
        )
    if options.channel is not None and (
        not isinstance(options.channel, int) or options.channel < 0
    ):
        raise SpecError(
            f"{name}: channel = {options.channel!r}: give the number of an output, from 0"
        )
    if kind in _PROBABILITY_TERMS and options.activation == "identity":
        raise SpecError(f"{name}: activation = 'identity': choose sigmoid or softmax")
    if kind == "cross_entropy" and options.activation == "softmax" and options.channel is not None:
        raise SpecError(
            f"{name}: channel = {options.channel}: the classes of a softmax have one cross-entropy; "
            "leave the channel out, or weigh the classes"
        )
