"""The U-Net: an encoder and a decoder joined level by level, without normalisation.

Normalisation layers that look at the whole window (GroupNorm, InstanceNorm, squeeze-excite) would
make the answer depend on where the window ends, so there are none: what comes out at a pixel
depends on the pixels within the network's reach and on nothing else.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box

Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "nearest", "bilinear"]


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of any depth and width that returns logits.

    Each level is two 3x3 convolutions with ReLU; levels are joined by 2x2 max-pooling on the way
    down and by 2x2 up-convolutions of stride 2 and concatenation on the way up; a 1x1 convolution
    ends it.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    base
        Channels of the finest level; they double at each level below.
    depth
        Number of poolings; the stride is ``2 ** depth``.
    padding
        ``"same"``: zeros around each convolution, the output is as large as the input.
        ``"valid"``: no padding, the output is smaller (572 gives 388 at depth 4, as published).
    upsampling
        ``"transposed"``: learned 2x2 up-convolution, as published. ``"nearest"`` and
        ``"bilinear"``: interpolation followed by a 1x1 convolution.

    Raises
    ------
    SpecError
        When a size is below 1 or a word is not one of the above.

    Notes
    -----
    Same padding at depth d reaches ``7 * 2**d - 5`` px with transposed or nearest upsampling.
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
        _check(bands, outputs, base, depth, padding, upsampling)
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
            _pair(inner, outer, pad) for inner, outer in zip([bands, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(_rise(width, upsampling) for width in widths[:0:-1])
        self.join = nn.ModuleList(_pair(2 * width, width, pad) for width in widths[-2::-1])
        self.head = nn.Conv2d(base, outputs, 1)
        self.apply(_initialise)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return 1 << int(self.arguments["depth"])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each output.

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
        for rise, join in zip(self.up, self.join, strict=True):
            x = rise(x)
            x = _join(join, _crop(skips.pop(), x), x)
        logits: Tensor = self.head(x)
        return logits

    def forward_crop(self, x: Tensor, keep: Box) -> Tensor:
        """Logits of some of the pixels: ``forward(x)`` there, computing less on the way up.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride; for same padding.
        keep
            The pixels wanted.

        Returns
        -------
        Tensor
            (n, outputs, height of keep, width of keep) logits.
        """
        skips = self._encode(x)
        x = skips.pop()
        have = bounds_of(x)
        spare = 1 if self.arguments["upsampling"] == "bilinear" else 0
        steps = list_decoder_boxes(keep, [bounds_of(skip) for skip in skips], spare)
        for rise, join, (source, read) in zip(self.up, self.join, steps, strict=True):
            x = rise(x[(..., *source.within(have))])[(..., *read.within(double(source)))]
            x = _join(join, skips.pop()[(..., *read.slices)], x)
            have = read
        logits: Tensor = self.head(x[(..., *keep.within(have))])
        return logits

    def _encode(self, x: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        for level, pair in enumerate(self.down):
            x = pair(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        return skips


def list_decoder_boxes(keep: Box, frames: list[Box], spare: int = 0) -> list[tuple[Box, Box]]:
    """Give, level by level upwards, what to take of the level below, and of this one.

    The outermost pixels of what is taken come out wrong, one for each 3x3 convolution, except at
    the frame; interpolation needs a neighbour more, ``spare``.
    """
    steps = []
    for frame in frames:
        read = keep.grow(2).clip(frame)
        keep = _halve(read).grow(spare).clip(_halve(frame))
        steps.append((keep, read))
    return steps[::-1]


def bounds_of(x: Tensor) -> Box:
    """Give all pixels of (..., h, w) as a box."""
    return Box(0, 0, *x.shape[-2:])


def double(box: Box) -> Box:
    """Give a box in the pixels of the level above."""
    return Box(*(2 * n for n in box.corners))


def _check(bands: int, outputs: int, base: int, depth: int, padding: str, upsampling: str) -> None:
    sizes = {"bands": bands, "outputs": outputs, "base": base, "depth": depth}
    for name, value in sizes.items():
        if value < 1:
            raise SpecError(f"{name} = {value}: the U-Net needs at least 1; give a positive number")
    if padding not in ("same", "valid"):
        raise SpecError(f"padding = {padding!r}: choose 'same' or 'valid'")
    if upsampling not in ("transposed", "nearest", "bilinear"):
        raise SpecError(
            f"upsampling = {upsampling!r}: choose 'transposed', 'nearest' or 'bilinear'"
        )


def _pair(inner: int, outer: int, pad: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=pad),
        nn.ReLU(inplace=True),
        nn.Conv2d(outer, outer, 3, padding=pad),
        nn.ReLU(inplace=True),
    )


def _rise(width: int, upsampling: Upsampling) -> nn.Module:
    if upsampling == "transposed":
        return nn.ConvTranspose2d(width, width // 2, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=upsampling), nn.Conv2d(width, width // 2, 1)
    )


def _join(pair: nn.Module, skip: Tensor, x: Tensor) -> Tensor:
    x = torch.cat([skip, x], dim=1)
    for layer in pair.children():  # one by one, so that what is used up is freed
        x = layer(x)
    return x


def _halve(box: Box) -> Box:
    return Box(box.y0 // 2, box.x0 // 2, -(-box.y1 // 2), -(-box.x1 // 2))


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return skip[..., top : top + height, left : left + width]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
