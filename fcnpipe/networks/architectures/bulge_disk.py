"""Bulge and disk decomposition: a U-Net that maps a galaxy to noise-free bulge and disk images.

The task is that of Tuccillo et al. The U-Net returns two numbers for each band of a pixel, which
determine the denoised total and the bulge's fraction of it. The two images add up to the total exactly,
in floating point, so the decomposition neither creates nor loses flux.
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
        bulge = sigmoid(b) total        the same as a softmax over (b, 0)
        disk  = total - bulge

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output, even: the bulge in each of ``outputs / 2`` bands, then the disk.
    base, depth
        As in `UNet`.
    units
        ``"asinh"``: the input is the arcsinh of the output's unit, for instance of S/N.
        ``"linear"``: both have the same unit.

    Raises
    ------
    SpecError
        If a size is below 1, outputs is odd, or the units are not one of the above.
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
            raise SpecError(
                f"outputs = {outputs} is odd: each bulge needs a disk; use an even number"
            )
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
        """Compute the images of the components.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride.

        Returns
        -------
        Tensor
            (n, outputs, h, w) float, not negative: bulges, then disks.
        """
        return self._split(self.trunk(x))

    def forward_crop(self, x: Tensor, keep: Box) -> Tensor:
        """Compute the images of some of the pixels; see `UNet.forward_crop`."""
        return self._split(self.trunk.forward_crop(x, keep))

    def denoise(self, x: Tensor) -> Tensor:
        """Compute the total of both components.

        Parameters
        ----------
        x
            (n, bands, h, w) float, h and w multiples of the stride.

        Returns
        -------
        Tensor
            (n, outputs / 2, h, w) float, not negative: bit for bit the sum of the images of `forward`.
        """
        return self._total(self.trunk(x).chunk(2, dim=1)[0])

    def _split(self, outputs: Tensor) -> Tensor:
        t, b = outputs.chunk(2, dim=1)
        return torch.cat(split_total(self._total(t), torch.sigmoid(b)), dim=1)

    def _total(self, t: Tensor) -> Tensor:
        total = functional.softplus(t)
        return torch.sinh(total) if self.arguments["units"] == "asinh" else total


def split_total(total: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Split a total into two parts whose floating-point sum is exactly the total.

    Parameters
    ----------
    total
        Finite, not negative.
    fraction
        In [0, 1], of the same shape.

    Returns
    -------
    part, rest : Tensor
        ``fraction * total`` up to rounding, and the rest; neither is negative.

    Notes
    -----
    The rest ``total - part`` is rounded if the part is less than half of the total. The rest is then
    at least half of the total, so ``total - rest`` is exact (Sterbenz); it is returned as the part.
    """
    rest = total - fraction * total
    return total - rest, rest
