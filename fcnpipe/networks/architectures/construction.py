"""Construction of architectures: argument checks, channel counts and initial weights that they share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fcnpipe.core.errors import SpecError

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Number of channels, and number of 3x3 convolutions, of each stage of VGG16."""


def check_sizes(network: str, **sizes: float) -> None:
    """Check that integers are at least 1 and other numbers are positive.

    Raises
    ------
    SpecError
        If one of them is not. The message names the first such argument.
    """
    for name, value in sizes.items():
        if value < 1 if isinstance(value, int) else not value > 0:
            raise SpecError(f"{name} = {value}: the {network} needs a positive number")


def check_maximum(network: str, limit: int, **sizes: int) -> None:
    """Check that integers are at most ``limit``.

    Raises
    ------
    SpecError
        If one of them is not. The message names the first such argument.
    """
    for name, value in sizes.items():
        if value > limit:
            raise SpecError(f"{name} = {value}: the {network} takes at most {limit}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Check that an argument has one of its possible values.

    Raises
    ------
    SpecError
        If it does not. The message lists the possible values.
    """
    if value not in choices:
        raise SpecError(f"{name} = {value!r}: choose {' or '.join(repr(c) for c in choices)}")


def scale_channels(channels: int, width: float, groups: int = 1) -> int:
    """Return a number of channels scaled by ``width``, rounded to a multiple of ``groups`` above 0."""
    return groups * max(1, round(channels * width / groups))


def initialise_for_relu(module: nn.Module) -> None:
    """Initialise a convolution so that activations keep their variance through ReLUs (He et al. 2015).

    Other modules are left as they are, so `Module.apply` can be called with this function.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
