"""Pang's network: its size, its field, and what it computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fcnpipe.networks.architectures.pang import Pang
from fcnpipe.networks.reach.analysis import analyse


@pytest.mark.parametrize("hidden", [1, 5])
def test_the_field_grows_by_two_with_each_layer(hidden: int) -> None:
    reach = analyse(Pang(hidden=hidden).eval(), bands=3)
    assert 1 + 2 * reach.furthest == 1 + 2 * (hidden + 1)


@pytest.mark.parametrize(("activation", "bend"), [("sigmoid", torch.sigmoid), ("tanh", torch.tanh)])
def test_it_is_a_stack_that_ends_in_logits(activation: str, bend: object) -> None:
    torch.manual_seed(0)
    network = Pang(bands=2, outputs=3, activation=activation).double()  # type: ignore[arg-type]
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        given = network(x)
        weights = list(network.parameters())
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = bend(functional.conv2d(x, weight, bias, padding=1))  # type: ignore[operator]
        wanted = functional.conv2d(x, weights[-2], weights[-1], padding=1)
    assert len(weights) == 8
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", [1, 2, 9, 20])
def test_any_size_keeps_its_shape(side: int) -> None:
    assert Pang()(torch.zeros(1, 3, side, side + 1)).shape == (1, 1, side, side + 1)
