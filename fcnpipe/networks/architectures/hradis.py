"""Network of Hradis et al. 2015: a stack of convolutions that restores a blurred and noisy image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fcnpipe.networks.architectures.construction import (
    check_choice,
    check_sizes,
    initialise_for_relu,
    scale_channels,
)

Layers = Literal[15, 10]
Padding = Literal["same", "valid"]
_KERNELS = {
    15: (19, 1, 1, 1, 1, 3, 1, 5, 5, 3, 5, 5, 1, 7, 7),
    10: (23, 1, 1, 1, 1, 3, 1, 5, 3, 5),
}
_CHANNELS = {
    15: (128, 320, 320, 320, 128, 128, 512, 128, 128, 128, 128, 128, 256, 64),
    10: (128, 320, 320, 320, 128, 128, 512, 48, 96),
}
_GROUPS = {15: {8: 4, 9: 2, 11: 2, 12: 2, 14: 2}, 10: {}}
"""Number of groups of the convolutions that have more than one, by the number of the layer from 1."""
_MAX_GROUPS = 4


class Hradis(nn.Module):
    """Convolutions, with a ReLU after each but the last, that map an image to the restored image.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output, usually as many as of the input.
    layers
        15 (L15, a receptive field of 51 px) or 10 (L10, 35 px).
    width
        Channels of the hidden layers as a fraction of the published ones, in multiples of 4.
    padding
        ``"valid"``: no padding, as published; the output is smaller by the receptive field minus 1 px.
        ``"same"``: zeros around each convolution, the output is as large as the input.

    Raises
    ------
    SpecError
        If a size is not positive or an option is not one of the above.

    Notes
    -----
    L15 has the layers of the authors' code. The layers of L10 have not been compared with the paper:
    only its receptive field is known to be the published one.
    """

    def __init__(
        self,
        bands: int = 3,
        outputs: int = 3,
        layers: Layers = 15,
        width: float = 1.0,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        check_sizes("network of Hradis", bands=bands, outputs=outputs, width=width)
        check_choice("layers", layers, list(_KERNELS))
        check_choice("padding", padding, ["same", "valid"])
        self.arguments: dict[str, int | float | str] = {
            "bands": bands,
            "outputs": outputs,
            "layers": layers,
            "width": width,
            "padding": padding,
        }
        hidden = [scale_channels(n, width, _MAX_GROUPS) for n in _CHANNELS[layers]]
        stack: list[nn.Module] = []
        for number, (kernel, inner, outer) in enumerate(
            zip(_KERNELS[layers], [bands, *hidden], [*hidden, outputs], strict=True), start=1
        ):
            pad = kernel // 2 if padding == "same" else 0
            groups = _GROUPS[layers].get(number, 1)
            stack += [
                nn.Conv2d(inner, outer, kernel, padding=pad, groups=groups),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*stack[:-1])
        self.apply(initialise_for_relu)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the restored image.

        Parameters
        ----------
        x
            (n, bands, h, w) float; for valid padding at least as large as the receptive field.

        Returns
        -------
        Tensor
            (n, outputs, h, w) float in the units of training; smaller for valid padding.
        """
        restored: Tensor = self.layers(x)
        return restored
