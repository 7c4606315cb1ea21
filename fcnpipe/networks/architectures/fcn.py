"""FCN-32s, -16s and -8s (Long et al. 2015): VGG16 made dense, its scores raised by fixed kernels.

::

    image, padded by 100 -> stages 1..3 -> 4 -> 5 -> 7x7, 1x1 -> score
                                 |         |                       |  x2
                                 |         +-- score, cut at 5 --> + (16s and 8s)
                                 |                                 |  x2
                                 +------------ score, cut at 9 --> + (8s)
                                                                   |  x32, x16 or x8, cut at 19, 27, 31
                                                                 logits

The padding of 100 px makes the 7x7 convolution fit images of any size; the cuts undo it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.networks.architectures.construction import (
    VGG16,
    check_choice,
    check_sizes,
    initialise_for_relu,
    scale_channels,
)

Coarseness = Literal[32, 16, 8]
_PADDING = 100
_HIDDEN = 4096
_CUTS = {32: 19, 16: 27, 8: 31}
_SKIP_CUTS = {16: 5, 8: 9}
"""Where the score of the stage of this stride lies under the raised score of the next."""


class FCN(nn.Module):
    """A fully convolutional VGG16 that returns logits.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    coarseness
        Subsampling of the finest scores that are used: 32, 16 or 8.
    width
        Channels of the hidden layers as a fraction of the published ones.

    Raises
    ------
    SpecError
        When a size is not positive or the coarseness is another.

    Notes
    -----
    The kernels that raise the scores are bilinear and not trained, so they are no parameters.
    """

    def __init__(
        self,
        bands: int = 3,
        outputs: int = 21,
        coarseness: Coarseness = 8,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes("FCN", bands=bands, outputs=outputs, width=width)
        check_choice("coarseness", coarseness, list(_CUTS))
        self.arguments: dict[str, int | float] = {
            "bands": bands,
            "outputs": outputs,
            "coarseness": coarseness,
            "width": width,
        }
        widths = [scale_channels(channels, width) for channels, _ in VGG16]
        self.stages = nn.ModuleList(
            _stage(inner, outer, count, 1 if level else _PADDING)
            for level, (inner, outer, (_, count)) in enumerate(
                zip([bands, *widths], widths, VGG16, strict=False)
            )
        )
        hidden = scale_channels(_HIDDEN, width)
        self.classify = nn.Sequential(
            *_with_dropout(widths[-1], hidden, 7), *_with_dropout(hidden, hidden, 1)
        )
        self.score = nn.Conv2d(hidden, outputs, 1)
        skips = [(16, widths[3]), (8, widths[2])]
        self.skips = nn.ModuleList(
            nn.Conv2d(inner, outputs, 1) for stride, inner in skips if stride >= coarseness
        )
        self.cut = _CUTS[coarseness]
        self.twice: Tensor
        self.rest: Tensor
        self.register_buffer("twice", _kernels(outputs, 2), persistent=False)
        self.register_buffer("rest", _kernels(outputs, coarseness), persistent=False)
        self.apply(initialise_for_relu)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return 1 << len(VGG16)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each output.

        Parameters
        ----------
        x
            (n, bands, h, w) float of any size.

        Returns
        -------
        Tensor
            (n, outputs, h, w) logits.
        """
        pools = self._pool(x)
        score = self.score(self.classify(pools[-1]))
        for skip, cut, pool in zip(self.skips, _SKIP_CUTS.values(), pools[3:1:-1], strict=False):
            score = upsample_bilinearly(score, self.twice)
            score = score + _crop(skip(pool), cut, score)
        return _crop(upsample_bilinearly(score, self.rest), self.cut, x)

    def _pool(self, x: Tensor) -> list[Tensor]:
        pools = []
        for stage in self.stages:
            x = functional.max_pool2d(stage(x), 2, ceil_mode=True)
            pools.append(x)
        return pools


def bilinear_kernel(size: int) -> Tensor:
    """Give (size, size) float32 weights that interpolate linearly between samples.

    A transposed convolution with it, of stride ``(size + 1) // 2``, is exact on linear functions.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(ramp, ramp)


def upsample_bilinearly(x: Tensor, kernels: Tensor) -> Tensor:
    """Enlarge each channel with its own kernel of two strides, uncropped."""
    return functional.conv_transpose2d(
        x, kernels, stride=kernels.shape[-1] // 2, groups=kernels.shape[0]
    )


def _kernels(channels: int, factor: int) -> Tensor:
    return bilinear_kernel(2 * factor).repeat(channels, 1, 1, 1)


def _stage(inner: int, outer: int, count: int, first_padding: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        padding = 1 if i else first_padding
        convolution = nn.Conv2d(outer if i else inner, outer, 3, padding=padding)
        layers += [convolution, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _with_dropout(inner: int, outer: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, kernel), nn.ReLU(inplace=True), nn.Dropout(0.5)]


def _crop(x: Tensor, start: int, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return x[..., start : start + height, start : start + width]
