"""SegNet-Basic (Badrinarayanan et al. 2017): four 7x7 convolutions down, four up, with max-unpooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcnpipe.networks.architectures.construction import (
    check_sizes,
    initialise_for_relu,
    scale_channels,
)

_LEVELS = 4
_CHANNELS = 64


class SegNetBasic(nn.Module):
    """A SegNet-Basic that returns logits.

    Local response normalisation across the bands; four levels of 7x7 convolution, batch
    normalisation, ReLU and 2x2 max-pooling; four levels of max-unpooling, 7x7 convolution and batch
    normalisation, without ReLU; a 1x1 convolution.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    width
        Channels of the hidden layers as a fraction of the published 64.

    Raises
    ------
    SpecError
        If a size is not positive.

    Notes
    -----
    The local response normalisation (5 bands, alpha 1e-4, beta 0.75) is that of the authors' Caffe:
    alpha is divided by the number of bands summed, and bands beyond the first and last count as zero.
    """

    def __init__(self, bands: int = 3, outputs: int = 11, width: float = 1.0) -> None:
        super().__init__()
        check_sizes("SegNet-Basic", bands=bands, outputs=outputs, width=width)
        self.arguments: dict[str, int | float] = {
            "bands": bands,
            "outputs": outputs,
            "width": width,
        }
        channels = scale_channels(_CHANNELS, width)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.down = nn.ModuleList(
            nn.Sequential(*_layer(channels if level else bands, channels), nn.ReLU(inplace=True))
            for level in range(_LEVELS)
        )
        self.up = nn.ModuleList(nn.Sequential(*_layer(channels, channels)) for _ in range(_LEVELS))
        self.head = nn.Conv2d(channels, outputs, 1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.apply(initialise_for_relu)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return 1 << _LEVELS

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of each output.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride.

        Returns
        -------
        Tensor
            (n, outputs, h, w) logits.
        """
        x = self.norm(x.float()).to(x.dtype) if x.dtype == torch.bfloat16 else self.norm(x)
        indices = []
        for layer in self.down:
            x, index = self.pool(layer(x))
            indices.append(index)
        for layer in self.up:
            x = layer(self.unpool(x, indices.pop()))
        logits: Tensor = self.head(x)
        return logits


def _layer(inner: int, outer: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, 7, padding=3), nn.BatchNorm2d(outer)]
