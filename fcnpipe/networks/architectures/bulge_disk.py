"""A galaxy in, its bulge and its disk out, free of noise (after Tuccillo et al.).

A U-Net gives two numbers for each band of a pixel, from which follow the denoised total and the
part of it that is the bulge. The two images add up to the total exactly, in floating point, so no
flux is made or lost by taking a galaxy apart.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.networks.architectures.construction import check_choice
from fcnpipe.networks.architectures.unet import UNet

Units = Literal["asinh", "linear"]


class BulgeDisk(nn.Module):
    """A U-Net whose outputs are the bulge and the disk in each band.

    ::

        total = softplus(t)             units "linear"
              = sinh(softplus(t))       units "asinh"
        bulge = sigmoid(b) total        the softmax of two
        disk  = total - bulge

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output, even: the bulge in each of ``outputs / 2`` bands, then the disk.
    base, depth
        As of `UNet`.
    units
        ``"asinh"``: the input is the arcsinh of what comes out, such as of S/N. ``"linear"``: both
        have the same unit.

    Raises
    ------
    SpecError
        When a size is below 1, outputs is odd, or the units are another word.
    """

    def __init__(
        self,
        bands: int = 1,
        outputs: int = 2,
        base: int = 16,
        depth: int = 3,
        units: Units = "asinh",
    ) -> None:
        super().__init__()
        check_choice("units", units, ["asinh", "linear"])
        if outputs % 2:
            raise SpecError(f"outputs = {outputs}: each bulge needs its disk; give an even number")
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "base": base,
            "depth": depth,
            "units": units,
        }
        self.trunk = UNet(bands, outputs, base, depth)

    @property
    def stride(self) -> int:
        """Total subsampling, px: shifts by multiples of it commute with the network."""
        return self.trunk.stride

    def forward(self, x: Tensor) -> Tensor:
        """The images of the components.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride.

        Returns
        -------
        Tensor
            (n, outputs, h, w) float, none negative: bulges, then disks.
        """
        return self._split(self.trunk(x))

    def forward_crop(self, x: Tensor, keep: Box) -> Tensor:
        """The images of some of the pixels; see `UNet.inside`."""
        return self._split(self.trunk.forward_crop(x, keep))

    def denoise(self, x: Tensor) -> Tensor:
        """The total of both components.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride.

        Returns
        -------
        Tensor
            (n, outputs / 2, h, w) float, not negative: bit for bit the sum of what `forward` gives.
        """
        return self._total(self.trunk(x).chunk(2, dim=1)[0])

    def _split(self, numbers: Tensor) -> Tensor:
        size, share = numbers.chunk(2, dim=1)
        return torch.cat(split_total(self._total(size), torch.sigmoid(share)), dim=1)

    def _total(self, size: Tensor) -> Tensor:
        total = functional.softplus(size)
        return torch.sinh(total) if self.arguments["units"] == "asinh" else total


def split_total(total: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Give a fraction of the total and the rest, whose floating-point sum is the total exactly.

    Parameters
    ----------
    total
        Finite, not negative.
    fraction
        In [0, 1], same shape.

    Returns
    -------
    tuple of Tensor
        Neither is negative.

    Notes
    -----
    The rest ``total - part`` is rounded if the part is less than half of the total. The rest is then
    more than half of it, so ``total - rest`` is exact (Sterbenz): that is the part given.
    """
    rest = total - fraction * total
    return total - rest, rest
