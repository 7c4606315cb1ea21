"""Scaling of random weights so that every layer of a network contributes to its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def standardise_activations(module: nn.Module, bands: int, side: int = 64) -> nn.Module:
    """Scale and shift each convolution so that its outputs have mean 0 and standard deviation 1.

    The effect of random weights dies out in many narrow layers with ReLU. A test of the output could
    then not fail.
    """

    def standardise(layer: nn.Conv2d, _: object, y: Tensor) -> Tensor:
        mean, deviation = y.mean((0, 2, 3)), y.std()
        layer.weight.data /= deviation
        layer.bias.data = (layer.bias.data - mean) / deviation
        return (y - mean[:, None, None]) / deviation

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(standardise) for layer in layers]
    with torch.no_grad():
        module(torch.randn(1, bands, side, side, generator=torch.Generator().manual_seed(1)))
    for hook in hooks:
        hook.remove()
    return module
