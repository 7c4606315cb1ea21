"""Normalisation with frozen statistics: a network that saw the whole image no longer does.

GroupNorm and InstanceNorm take mean and variance over the image at hand, so a tile is normalised
otherwise than the whole. With the statistics of one sample image kept, they are a factor and a summand
for each channel, exact in tiles of any size. How much the answer changes depends on how typical the
sample is; on the sample itself it stays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fcnpipe.errors import ModelError

_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.LazyInstanceNorm2d)


class FrozenNorm(nn.Module):
    """A normalisation with the statistics of a sample: ``x * factor + summand`` for each channel.

    Parameters
    ----------
    factor, summand : Tensor
        (channels,).
    """

    def __init__(self, factor: Tensor, summand: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor.detach()[:, None, None].clone())
        self.summand = nn.Parameter(summand.detach()[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Give the normalised (n, channels, h, w)."""
        return x * self.factor + self.summand


def freeze_norms(module: nn.Module, sample: Tensor) -> nn.Module:
    """Give the network with its GroupNorm and InstanceNorm frozen to the statistics of a sample.

    Parameters
    ----------
    module : Module
        The network; it is not changed.
    sample : Tensor
        (n, bands, h, w), scaled as the network will see images, as large and as typical as can be;
        of several images the statistics are averaged.

    Returns
    -------
    Module
        In evaluation mode. It is no class of fcnpipe/networks any more: save it with
        `torch.export.save`.

    Raises
    ------
    ModelError
        If it has no such layer, or one that is called several times and has no statistics of its
        own.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4))
    >>> freeze_norms(network, torch.randn(1, 1, 64, 64))[1]
    FrozenNorm()
    """
    frozen = copy.deepcopy(module).eval()
    names = list(_list_norms(frozen))
    if not names:
        raise ModelError(
            f"network {type(module).__name__} has no GroupNorm or InstanceNorm layer to freeze: "
            "use it as it is, or give its normalisation a layer"
        )
    for name, norm in _measure(frozen, names, sample).items():
        if not name:
            return norm
        parent, _, child = name.rpartition(".")
        setattr(frozen.get_submodule(parent), child, norm)
    return frozen


def _list_norms(module: nn.Module) -> Iterator[str]:
    """Give the names of the layers that take statistics of the image."""
    for name, layer in module.named_modules():
        own = isinstance(layer, _INSTANCE_NORMS) and not layer.track_running_stats
        if own or isinstance(layer, nn.GroupNorm):
            yield name


def _measure(module: nn.Module, names: list[str], sample: Tensor) -> dict[str, FrozenNorm]:
    """Run the sample through the network and give what takes the place of each layer."""
    found: dict[str, FrozenNorm] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name in found:
                raise ModelError(
                    f"{name} ({type(layer).__name__}) is called several times, with statistics of its "
                    "own each time: give each call its own layer"
                )
            found[name] = _freeze(layer, inputs[0])

        return hook

    hooks = [module.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _freeze(layer: Any, x: Tensor) -> FrozenNorm:
    """Give the layer with the mean and variance of each group of channels of (n, c, h, w)."""
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
    values = x.reshape(len(x), groups, -1)
    each = x.shape[1] // groups
    mean = values.mean(dim=2).mean(dim=0).repeat_interleave(each)
    variance = values.var(dim=2, correction=0).mean(dim=0).repeat_interleave(each)
    factor = torch.rsqrt(variance + layer.eps)
    if layer.weight is not None:
        factor = factor * layer.weight
    summand = -mean * factor
    return FrozenNorm(factor, summand if layer.bias is None else summand + layer.bias)
