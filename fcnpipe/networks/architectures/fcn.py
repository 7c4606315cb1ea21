"""FCN-32s, -16s and -8s (Long et al. 2015): a dense VGG16 with bilinear upsampling of its scores.

::

    image, padded by 100 -> stages 1..3 -> 4 -> 5 -> 7x7, 1x1 -> score
                                 |         |                       |  x2
                                 |         +-- score, crop at 5 -> + (16s and 8s)
                                 |                                 |  x2
                                 +------------ score, crop at 9 -> + (8s)
                                                                   |  x32, x16 or x8, crop at 19, 27, 31
                                                                 logits

The padding of 100 px makes room for the 7x7 convolution in images of any size; the crops undo it.
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
_CROPS = {32: 19, 16: 27, 8: 31}
_SKIP_CROPS = {16: 5, 8: 9}
"""First row and column of the score of a stage that the upsampled score covers, by the stage's stride."""


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
        If a size is not positive or the coarseness is not 32, 16 or 8.

    Notes
    -----
    The kernels of the upsampling are bilinear and not trained, so they are buffers, not parameters.
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
        check_choice("coarseness", coarseness, list(_CROPS))
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
        self.crop_start = _CROPS[coarseness]
        self.kernels_x2: Tensor
        self.kernels_final: Tensor
        self.register_buffer("kernels_x2", _kernels(outputs, 2), persistent=False)
        self.register_buffer("kernels_final", _kernels(outputs, coarseness), persistent=False)
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
            (n, bands, h, w) float of any size.

        Returns
        -------
        Tensor
            (n, outputs, h, w) logits.
        """
        pools = self._pool(x)
        score = self.score(self.classify(pools[-1]))
        for skip, start, pool in zip(self.skips, _SKIP_CROPS.values(), pools[3:1:-1], strict=False):
            score = upsample_bilinearly(score, self.kernels_x2)
            score = score + _crop(skip(pool), start, score)
        return _crop(upsample_bilinearly(score, self.kernels_final), self.crop_start, x)

    def _pool(self, x: Tensor) -> list[Tensor]:
        pools = []
        for stage in self.stages:
            x = functional.max_pool2d(stage(x), 2, ceil_mode=True)
            pools.append(x)
        return pools


def bilinear_kernel(size: int) -> Tensor:
    """Return the (size, size) float32 weights of bilinear upsampling by transposed convolution.

    With a stride of ``(size + 1) // 2`` it is exact on linear functions.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.outer(ramp, ramp)


def upsample_bilinearly(x: Tensor, kernels: Tensor) -> Tensor:
    """Upsample each channel with its own kernel, by half the kernel's size, without cropping."""
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
