"""Network of Pang et al. 2010: a few 3x3 convolutions that separate cell nuclei from the background.

It is the smallest architecture: 1,465 weights, with a reach of 4 px.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from fcnpipe.networks.architectures.construction import check_choice, check_sizes

Activation = Literal["sigmoid", "tanh"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Pang(nn.Module):
    """Hidden layers of 3x3 convolutions with few channels, and a 3x3 convolution that returns logits.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the output.
    hidden
        Number of hidden layers, n.
    maps
        Channels of each hidden layer.
    activation
        ``"sigmoid"`` or ``"tanh"``.

    Raises
    ------
    SpecError
        If a size is below 1 or the activation is not one of the above.

    Notes
    -----
    The receptive field is ``1 + 2 * (n + 1)`` px wide.
    """

    def __init__(
        self,
        bands: int = 3,
        outputs: int = 1,
        hidden: int = 3,
        maps: int = 8,
        activation: Activation = "sigmoid",
    ) -> None:
        super().__init__()
        check_sizes("network of Pang", bands=bands, outputs=outputs, hidden=hidden, maps=maps)
        check_choice("activation", activation, list(_ACTIVATIONS))
        self.arguments: dict[str, int | str] = {
            "bands": bands,
            "outputs": outputs,
            "hidden": hidden,
            "maps": maps,
            "activation": activation,
        }
        layers: list[nn.Module] = []
        for inner, outer in pairwise([bands, *[maps] * hidden]):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(maps, outputs, 3, padding=1))
        self.apply(_initialise)

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
        logits: Tensor = self.layers(x)
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
