"""SegNet (Badrinarayanan et al. 2017): a VGG16 encoder and its mirror image, joined by pooling indices.

Max-pooling records the position of each maximum; max-unpooling in the decoder puts the value back at
that position, with zeros around it. Boundaries stay in place without the skip connections of a U-Net.
Of equal values the first in raster order is the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fcnpipe.networks.architectures.construction import (
    VGG16,
    check_sizes,
    initialise_for_relu,
    scale_channels,
)


class SegNet(nn.Module):
    """A SegNet on VGG16 that returns logits.

    Five stages of 3x3 convolutions, each with batch normalisation and ReLU, and 2x2 max-pooling;
    then five stages that mirror them. The last convolution has neither normalisation nor ReLU.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    width
        Channels of the hidden layers as a fraction of the published ones.

    Raises
    ------
    SpecError
        If a size is not positive.

    Notes
    -----
    Batch normalisation can be tiled only in evaluation mode, where it uses the statistics of training.
    """

    def __init__(self, bands: int = 3, outputs: int = 11, width: float = 1.0) -> None:
        super().__init__()
        check_sizes("SegNet", bands=bands, outputs=outputs, width=width)
        self.arguments: dict[str, int | float] = {
            "bands": bands,
            "outputs": outputs,
            "width": width,
        }
        widths = [scale_channels(channels, width) for channels, _ in VGG16]
        counts = [count for _, count in VGG16]
        inners = [bands, *widths[:-1]]
        self.down = nn.ModuleList(
            _stage([inner, *[outer] * count])
            for inner, outer, count in zip(inners, widths, counts, strict=True)
        )
        outers = [outputs, *widths[:-1]]
        self.up = nn.ModuleList(
            _stage([*[inner] * count, outer])
            for inner, outer, count in reversed(list(zip(widths, outers, counts, strict=True)))
        )
        # The last convolution returns the logits.
        self.up[-1] = self.up[-1][:-2]  # type: ignore[index]
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.apply(initialise_for_relu)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return 1 << len(VGG16)

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
        indices = []
        for stage in self.down:
            x, index = self.pool(stage(x))
            indices.append(index)
        for stage in self.up:
            x = stage(self.unpool(x, indices.pop()))
        return x


def _stage(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(channels):
        convolution = nn.Conv2d(inner, outer, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
