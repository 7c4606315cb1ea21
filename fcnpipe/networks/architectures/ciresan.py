"""Network of Ciresan et al. 2012 (N4): a patch classifier for membranes, and its dense form.

The classifier labels one pixel from the patch of 95 x 95 px around it, with four convolutions with
pooling and two fully connected layers. An image takes a forward pass for each pixel. The dense form
returns the same numbers in one pass::

    fully connected, O x (C h w)      ->  convolution of h x w
    pooling of 2, stride 2            ->  pooling of 2, stride 1; all layers after it dilated by 2

because a position that the pooling of one patch skips is needed by the patch of another pixel.
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
"""Side of the patch after the last pooling, px."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class CiresanPatch(nn.Module):
    """The patch classifier, as published: sides of 95-92-46-42-21-18-9-6-3-1 px.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Number of classes.
    maps
        Channels of each convolution.
    hidden
        Units of the fully connected layer.
    activation
        ``"tanh"`` or ``"relu"``. Both are monotonic, so they commute with max-pooling.

    Raises
    ------
    SpecError
        If a size is below 1 or the activation is not one of the above.
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
        _check_arguments(bands, outputs, maps, hidden, activation)
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "maps": maps,
            "hidden": hidden,
            "activation": activation,
        }
        activate = _ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        for level, kernel in enumerate(_KERNELS):
            inner = maps if level else bands
            layers += [nn.Conv2d(inner, maps, kernel), activate(), nn.MaxPool2d(2)]
        first, last = nn.Linear(maps * _LAST_SIDE**2, hidden), nn.Linear(hidden, outputs)
        self.layers = nn.Sequential(*layers, nn.Flatten(), first, activate(), last)
        _initialise(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of the pixel in the middle.

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
    """The same classifier at every pixel of an image, or the average of several (an ensemble).

    Parameters
    ----------
    bands, outputs, maps, hidden, activation
        As in `CiresanPatch`.
    members
        Number of networks whose probabilities are averaged; 4 in the paper.
    padding
        ``"same"``: zeros around the image. ``"valid"``: no padding, the output is 94 px smaller. To
        get an output of the size of an image, pad it by reflection, 47 px on each side.

    Raises
    ------
    SpecError
        If a size is below 1 or an option is not one of the above.

    Notes
    -----
    Softmax probabilities are averaged, or sigmoids if there is one output, and returned as logits. The
    dense form takes 1/555 of the multiplications of the patch classifier for each pixel.
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
        _check_arguments(bands, outputs, maps, hidden, activation)
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
        """Return the dense form of trained patch classifiers; their weights are copied.

        Parameters
        ----------
        *patches
            One classifier, or several with the same arguments, whose probabilities are averaged.
        padding
            As in the class.
        """
        first = patches[0]
        weight = next(first.parameters())
        dense = cls(**first.arguments, members=len(patches), padding=padding)  # type: ignore[arg-type]
        dense.to(weight.device, weight.dtype).train(first.training)
        for member, patch in zip(dense.members, patches, strict=True):
            _copy_weights(patch, member)
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of each output.

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
    """Return the logits of the mean probability: log of the mean softmax, or logit of the mean sigmoid.

    Parameters
    ----------
    logits
        (n, outputs, ...) of each member; the sigmoid is used if outputs is 1.
    """
    if len(logits) == 1:
        return logits[0]
    if logits[0].shape[1] == 1:
        log_probability = _log_mean([functional.logsigmoid(x) for x in logits])
        return log_probability - _log_mean([functional.logsigmoid(-x) for x in logits])
    return _log_mean([functional.log_softmax(x, dim=1) for x in logits])


def _log_mean(logs: list[Tensor]) -> Tensor:
    return reduce(torch.logaddexp, logs) - log(len(logs))


def _check_arguments(bands: int, outputs: int, maps: int, hidden: int, activation: str) -> None:
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
    bands: int, outputs: int, maps: int, hidden: int, activate: type[nn.Module]
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for level, kernel in enumerate(_KERNELS):
        inner, dilation = maps if level else bands, 2**level
        pool = nn.MaxPool2d(2, stride=1, dilation=dilation)
        layers += [nn.Conv2d(inner, maps, kernel, dilation=dilation), activate(), pool]
    first = nn.Conv2d(maps, hidden, _LAST_SIDE, dilation=2 ** len(_KERNELS))
    return nn.Sequential(*layers, first, activate(), nn.Conv2d(hidden, outputs, 1))


def _copy_weights(patch: CiresanPatch, member: nn.Module) -> None:
    sources = [layer for layer in patch.layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    targets = [layer for layer in member.children() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.weight.copy_(source.weight.reshape(target.weight.shape))
            if target.bias is not None and source.bias is not None:
                target.bias.copy_(source.bias)
