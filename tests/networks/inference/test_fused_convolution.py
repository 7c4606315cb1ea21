"""Fused convolutions: the results equal those of a convolution and a ReLU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.inference.fused_convolution import ConvolutionReLU, fuse


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-5), (torch.bfloat16, 0)])
def test_a_fused_unet_returns_the_same(dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(2)
    plain = UNet(bands=2, base=8, depth=2).eval().to(dtype, memory_format=torch.channels_last)
    fused = fuse(copy.deepcopy(plain))
    assert sum(isinstance(m, ConvolutionReLU) for m in fused.modules()) == 10
    window = torch.randn(1, 2, 96, 64).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(fused(window), plain(window), rtol=0, atol=error)


def test_only_plain_convolutions_are_fused() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 1, 1),
    ).eval()
    fused = fuse(copy.deepcopy(layers))
    assert [isinstance(m, ConvolutionReLU) for m in fused] == [i == 4 for i in range(7)]
    image = torch.randn(1, 1, 33, 40)
    with torch.inference_mode():
        assert torch.equal(layers(image), fused(image))
