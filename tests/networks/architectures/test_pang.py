"""Network of Pang: receptive field, layers, and any image size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fcnpipe.networks.architectures.pang import Pang
from fcnpipe.networks.reach.analysis import analyse


@pytest.mark.parametrize("hidden", [1, 5])
def test_the_receptive_field_grows_by_two_with_each_layer(hidden: int) -> None:
    reach = analyse(Pang(hidden=hidden).eval(), bands=3)
    assert 1 + 2 * reach.furthest == 1 + 2 * (hidden + 1)


@pytest.mark.parametrize(
    ("activation", "function"), [("sigmoid", torch.sigmoid), ("tanh", torch.tanh)]
)
def test_layers_are_applied_in_order(activation: str, function: object) -> None:
    torch.manual_seed(0)
    network = Pang(bands=2, outputs=3, activation=activation).double()  # type: ignore[arg-type]
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        found = network(x)
        weights = list(network.parameters())
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = function(functional.conv2d(x, weight, bias, padding=1))  # type: ignore[operator]
        expected = functional.conv2d(x, weights[-2], weights[-1], padding=1)
    assert len(weights) == 8
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", [1, 2, 9, 20])
def test_the_output_has_the_size_of_the_input(side: int) -> None:
    assert Pang()(torch.zeros(1, 3, side, side + 1)).shape == (1, 1, side, side + 1)
