"""Image sizes that networks accept, and networks whose output differs in size from the input."""

from __future__ import annotations

import logging
import logging.handlers

import pytest
import torch
from torch import nn

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.reach.analysis import analyse, make_same_size
from fcnpipe.networks.reach.certificate import certify, probe


def stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


RESIZING = {
    "valid": (stack(nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 4)), "any n gives n - 7, from 8 px"),
    "enlarged": (stack(nn.Conv2d(1, 1, 3, padding=3)), "any n gives n + 4"),
    "encoder": (stack(nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 3)), "n = 2 m + 1 gives m - 2"),
    "finer": (stack(nn.ConvTranspose2d(1, 1, 4, 2, padding=1)), "any n gives 2 n"),
    "pooled": (stack(nn.MaxPool2d(3)), "n = 3 m gives m, from 3 px"),
    "ceiling": (stack(nn.MaxPool2d(2, ceil_mode=True)), "n = 2 m gives m; n = 2 m + 1 gives m"),
    "unet": (UNet(1, 1, 1, 2, padding="valid").eval(), "n = 4 m gives 4 m - 40, from 44 px"),
}


@pytest.mark.parametrize("kind", RESIZING)
def test_networks_that_change_the_size_are_analysed_and_proven(kind: str) -> None:
    network, text = RESIZING[kind]
    same_size, (rule, _) = make_same_size(network)
    assert text in str(rule)
    reach = analyse(network)
    assert probe(same_size, 1, reach) == reach
    assert certify(network, 1, reach).probed
    with torch.no_grad():
        for n in range(rule.minimum, rule.minimum + 2 * rule.step):
            if (expected := rule.output(n)) is not None:
                assert network(torch.zeros(1, 1, n, n)).shape[2] == expected


def test_the_published_unet_maps_572_to_388_px() -> None:
    _, (rule, _) = make_same_size(UNet(1, 1, 1, 4, padding="valid").eval())
    assert (rule.complete, rule.minimum, rule.output(572)) == (((12, -172),), 188, 388)
    assert rule.output(187) is None


def test_refused_sizes_leave_no_traceback_in_the_log() -> None:
    """torch itself logs a traceback for each of them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    handler = logging.handlers.BufferingHandler(9)
    logger.addHandler(handler)
    try:
        make_same_size(stack(nn.ReflectionPad2d(2), nn.Conv2d(1, 1, 5)))
    finally:
        logger.removeHandler(handler)
    assert not handler.buffer
