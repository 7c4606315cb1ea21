"""Ciresan et al. 2012 (N4): membranes by the class of the patch around each pixel, made dense.

A patch of 95 x 95 px passes four convolutions with pooling and two fully connected layers. To label
an image so costs a forward pass for each pixel. The dense form gives the same numbers in one pass::

    fully connected, O x (C h w)      ->  convolution of h x w
    pooling of 2, stride 2            ->  pooling of 2, stride 1, and all that follows dilated by 2

because where a patch's pooling skips a position, another pixel's patch needs it.
"""

from __future__ import annotations

from functools import reduce
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.networks.architectures.construction import check_choice, check_sizes

Activation = Literal["tanh", "relu"]
Padding = Literal["same", "valid"]
PATCH_SIDE = 95
"""Side of the patch, px."""
_KERNELS = (4, 5, 4, 4)
_LAST_SIDE = 3
"""What is left of the patch after the last pooling, px."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class CiresanPatch(nn.Module):
    """The classifier of patches, as published: 95-92-46-42-21-18-9-6-3-1.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Classes.
    maps
        Channels of each convolution.
    hidden
        Units of the fully connected layer.
    activation
        ``"tanh"`` or ``"relu"``; with either, pooling before it or after it is the same.

    Raises
    ------
    SpecError
        When a size is below 1 or the activation is another word.
    """

    def __init__(
        self,
        bands: int = 1,
        outputs: int = 2,
        maps: int = 48,
        hidden: int = 200,
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        _check(bands, outputs, maps, hidden, activation)
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "maps": maps,
            "hidden": hidden,
            "activation": activation,
        }
        bend = _ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        for level, kernel in enumerate(_KERNELS):
            inner = maps if level else bands
            layers += [nn.Conv2d(inner, maps, kernel), bend(), nn.MaxPool2d(2)]
        first, last = nn.Linear(maps * _LAST_SIDE**2, hidden), nn.Linear(hidden, outputs)
        self.layers = nn.Sequential(*layers, nn.Flatten(), first, bend(), last)
        _initialise(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the pixel in the middle.

        Parameters
        ----------
        x
            (n, bands, 95, 95) float.

        Returns
        -------
        Tensor
            (n, outputs) logits.
        """
        logits: Tensor = self.layers(x)
        return logits


class Ciresan(nn.Module):
    """The same classifier at every pixel of an image, or the average of several.

    Parameters
    ----------
    bands, outputs, maps, hidden, activation
        As of `CiresanPatch`.
    members
        Networks whose probabilities are averaged (four, as published, or one).
    padding
        ``"same"``: zeros around the image. ``"valid"``: none, the output is 94 px smaller; mirror
        the image by 47 px to have what is there continue outside.

    Raises
    ------
    SpecError
        When a size is below 1 or a word is not one of the above.

    Notes
    -----
    The average is that of the softmax, or of the sigmoid if there is one output; what comes out are
    its logits. Each output costs 1/555 of what the patch of a pixel costs.
    """

    def __init__(
        self,
        bands: int = 1,
        outputs: int = 2,
        maps: int = 48,
        hidden: int = 200,
        activation: Activation = "tanh",
        members: int = 1,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        _check(bands, outputs, maps, hidden, activation)
        check_sizes("ensemble", members=members)
        check_choice("padding", padding, ["same", "valid"])
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "maps": maps,
            "hidden": hidden,
            "activation": activation,
            "members": members,
            "padding": padding,
        }
        self.members = nn.ModuleList(
            _dense(bands, outputs, maps, hidden, _ACTIVATIONS[activation]) for _ in range(members)
        )
        _initialise(self, activation)

    @classmethod
    def from_patch(cls, *patches: CiresanPatch, padding: Padding = "same") -> Ciresan:
        """Make the dense form of trained classifiers of patches; their weights are copied.

        Parameters
        ----------
        *patches
            One, or several of the same shape to be averaged.
        padding
            As of the class.
        """
        first = patches[0]
        weight = next(first.parameters())
        dense = cls(**first.arguments, members=len(patches), padding=padding)  # type: ignore[arg-type]
        dense.to(weight.device, weight.dtype).train(first.training)
        for member, patch in zip(dense.members, patches, strict=True):
            _copy(patch, member)
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each output.

        Parameters
        ----------
        x
            (n, bands, h, w) float; at least 95 x 95 px for valid padding.

        Returns
        -------
        Tensor
            (n, outputs, h, w) logits; 94 px less in h and w for valid padding.
        """
        if self.arguments["padding"] == "same":
            x = functional.pad(x, (PATCH_SIDE // 2,) * 4)
        return average([member(x) for member in self.members])


def average(logits: list[Tensor]) -> Tensor:
    """Give the logits of the mean probability: the log of softmax's mean, or the logit of sigmoid's.

    Parameters
    ----------
    logits
        (n, outputs, ...) of each member; the sigmoid where outputs is 1.
    """
    if len(logits) == 1:
        return logits[0]
    if logits[0].shape[1] == 1:
        yes = _log_mean([functional.logsigmoid(x) for x in logits])
        return yes - _log_mean([functional.logsigmoid(-x) for x in logits])
    return _log_mean([functional.log_softmax(x, dim=1) for x in logits])


def _log_mean(logs: list[Tensor]) -> Tensor:
    return reduce(torch.logaddexp, logs) - log(len(logs))


def _check(bands: int, outputs: int, maps: int, hidden: int, activation: str) -> None:
    check_sizes("network of Ciresan", bands=bands, outputs=outputs, maps=maps, hidden=hidden)
    check_choice("activation", activation, list(_ACTIVATIONS))


def _initialise(network: nn.Module, activation: Activation) -> None:
    gain = nn.init.calculate_gain(activation)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.is_meta:
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _dense(
    bands: int, outputs: int, maps: int, hidden: int, bend: type[nn.Module]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for level, kernel in enumerate(_KERNELS):
        inner, step = maps if level else bands, 2**level
        pool = nn.MaxPool2d(2, stride=1, dilation=step)
        layers += [nn.Conv2d(inner, maps, kernel, dilation=step), bend(), pool]
    first = nn.Conv2d(maps, hidden, _LAST_SIDE, dilation=2 ** len(_KERNELS))
    return nn.Sequential(*layers, first, bend(), nn.Conv2d(hidden, outputs, 1))


def _copy(patch: CiresanPatch, member: nn.Module) -> None:
    sources = [layer for layer in patch.layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    targets = [layer for layer in member.children() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.weight.copy_(source.weight.reshape(target.weight.shape))
            if target.bias is not None and source.bias is not None:
                target.bias.copy_(source.bias)
