"""What the architectures share: how wide, how many, how they begin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fcnpipe.core.errors import SpecError

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels of the 3x3 convolutions of each stage of VGG16, and how many there are."""


def check_sizes(network: str, **sizes: float) -> None:
    """Refuse whole numbers below 1 and fractions that are not positive.

    Raises
    ------
    SpecError
        Names the first of them.
    """
    for name, value in sizes.items():
        if value < 1 if isinstance(value, int) else not value > 0:
            raise SpecError(f"{name} = {value}: the {network} needs more; give a positive number")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse what is none of the choices.

    Raises
    ------
    SpecError
        Names them all.
    """
    if value not in choices:
        raise SpecError(f"{name} = {value!r}: choose {' or '.join(repr(c) for c in choices)}")


def scale_channels(channels: int, width: float, groups: int = 1) -> int:
    """Give a fraction of a number of channels, at least one for each group, in whole groups."""
    return groups * max(1, round(channels * width / groups))


def initialise_for_relu(module: nn.Module) -> None:
    """Draw the weights of a convolution so that ReLUs keep the size of what passes (He 2015)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
