"""U-Net (Ronneberger et al. 2015): encoder and decoder with skip connections, without normalisation.

Layers that read the whole window (GroupNorm, InstanceNorm, squeeze-excite) would make the output
depend on where the window ends. There are none here, so an output pixel depends only on the pixels
within the network's reach.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.core.geometry import Box
from fcnpipe.networks.architectures.construction import (
    check_choice,
    check_maximum,
    check_sizes,
    initialise_for_relu,
)

Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "nearest", "bilinear"]

MAX_DEPTH = 16
"""Largest number of poolings; at 16, one pixel of the coarsest level is 65,536 px wide."""


class UNet(nn.Module):
    """A U-Net of any depth and width that returns logits.

    Each level has two 3x3 convolutions with ReLU. Between two levels, the encoder has a 2x2
    max-pooling; the decoder has a 2x2 transposed convolution of stride 2, or another upsampling, and
    a concatenation with the skip connection. The last layer is a 1x1 convolution.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    base
        Channels of the finest level; they double at each coarser level.
    depth
        Number of poolings; the stride is ``2 ** depth``.
    padding
        ``"same"``: zeros around each convolution, the output has the size of the input.
        ``"valid"``: no padding, the output is smaller (572 px become 388 px at depth 4, as published).
    upsampling
        ``"transposed"``: learned 2x2 transposed convolution, as published. ``"nearest"`` and
        ``"bilinear"``: interpolation followed by a 1x1 convolution.

    Raises
    ------
    SpecError
        If a size is below 1, the depth is above 16, or an option is not one of the above.

    Notes
    -----
    With same padding and transposed or nearest upsampling, the reach is ``7 * 2**depth - 5`` px.
    """

    def __init__(
        self,
        bands: int = 1,
        outputs: int = 3,
        base: int = 16,
        depth: int = 3,
        padding: Padding = "same",
        upsampling: Upsampling = "transposed",
    ) -> None:
        super().__init__()
        check_sizes("U-Net", bands=bands, outputs=outputs, base=base, depth=depth)
        check_maximum("U-Net", MAX_DEPTH, depth=depth)
        check_choice("padding", padding, ["same", "valid"])
        check_choice("upsampling", upsampling, ["transposed", "nearest", "bilinear"])
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "base": base,
            "depth": depth,
            "padding": padding,
            "upsampling": upsampling,
        }
        widths = [base * 2**level for level in range(depth + 1)]
        pad = 1 if padding == "same" else 0
        self.down = nn.ModuleList(
            _double_convolution(inner, outer, pad)
            for inner, outer in zip([bands, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(_make_up_layer(width, upsampling) for width in widths[:0:-1])
        self.join = nn.ModuleList(
            _double_convolution(2 * width, width, pad) for width in widths[-2::-1]
        )
        self.head = nn.Conv2d(base, outputs, 1)
        self.apply(initialise_for_relu)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return 1 << int(self.arguments["depth"])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of each output.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride for same padding.

        Returns
        -------
        Tensor
            (n, outputs, h, w) logits; smaller in h and w for valid padding.
        """
        skips = self._encode(x)
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = up(x)
            x = _join_levels(join, _crop(skips.pop(), x), x)
        logits: Tensor = self.head(x)
        return logits

    def forward_crop(self, x: Tensor, keep: Box) -> Tensor:
        """Compute the logits of some of the pixels: ``forward(x)`` there, with a smaller decoder.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride. The padding must be "same".
        keep
            The pixels to return.

        Returns
        -------
        Tensor
            (n, outputs, height of keep, width of keep) logits.
        """
        skips = self._encode(x)
        x = skips.pop()
        have = bounds_of(x)
        margin = 1 if self.arguments["upsampling"] == "bilinear" else 0
        boxes = list_decoder_boxes(keep, [bounds_of(skip) for skip in skips], margin)
        for up, join, (source, read) in zip(self.up, self.join, boxes, strict=True):
            x = up(x[(..., *source.within(have))])[(..., *read.within(double_box(source)))]
            x = _join_levels(join, skips.pop()[(..., *read.slices)], x)
            have = read
        logits: Tensor = self.head(x[(..., *keep.within(have))])
        return logits

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Return the output of each level of the encoder, the finest first."""
        skips: list[Tensor] = []
        for level, pair in enumerate(self.down):
            x = pair(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        return skips


def list_decoder_boxes(keep: Box, bounds: list[Box], margin: int = 0) -> list[tuple[Box, Box]]:
    """Return the pixels of each level of the decoder that the output pixels ``keep`` need.

    Parameters
    ----------
    keep
        The output pixels.
    bounds
        All pixels of each level, the finest first.
    margin
        Neighbours that the upsampling reads: 1 for bilinear, else 0.

    Returns
    -------
    list of (Box, Box)
        For each level, the coarsest first: the pixels to upsample from the coarser level, and the
        pixels of this level to convolve.

    Notes
    -----
    Each of the two 3x3 convolutions of a level makes the outermost pixels of a box invalid, except
    at the bounds, so each box is grown by 2 px and clipped to the bounds.
    """
    boxes = []
    for bound in bounds:
        read = keep.grow(2).clip(bound)
        keep = _halve(read).grow(margin).clip(_halve(bound))
        boxes.append((keep, read))
    return boxes[::-1]


def bounds_of(x: Tensor) -> Box:
    """Return the box of all pixels of a (..., h, w) tensor."""
    return Box(0, 0, *x.shape[-2:])


def double_box(box: Box) -> Box:
    """Return a box in the pixels of the next finer level."""
    return Box(*(2 * n for n in box.corners))


def _double_convolution(inner: int, outer: int, pad: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=pad),
        nn.ReLU(inplace=True),
        nn.Conv2d(outer, outer, 3, padding=pad),
        nn.ReLU(inplace=True),
    )


def _make_up_layer(width: int, upsampling: Upsampling) -> nn.Module:
    if upsampling == "transposed":
        return nn.ConvTranspose2d(width, width // 2, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=upsampling), nn.Conv2d(width, width // 2, 1)
    )


def _join_levels(pair: nn.Module, skip: Tensor, x: Tensor) -> Tensor:
    x = torch.cat([skip, x], dim=1)
    for layer in pair.children():  # one by one, so that each input is freed after its use
        x = layer(x)
    return x


def _halve(box: Box) -> Box:
    return Box(box.y0 // 2, box.x0 // 2, -(-box.y1 // 2), -(-box.x1 // 2))


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return skip[..., top : top + height, left : left + width]
