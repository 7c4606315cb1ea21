"""FCN: fixed bilinear kernels, crops that centre the scores, any image size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fcnpipe.networks.architectures.fcn import FCN, bilinear_kernel, upsample_bilinearly

NARROW = {"width": 1 / 256, "outputs": 2, "bands": 1}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 32, 64])
def test_the_kernel_is_exact_on_linear_functions(size: int) -> None:
    """Away from the border, samples of a plane are interpolated to the plane."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    plane = (2 * y - 3 * x + 5).double()
    kernel = bilinear_kernel(size).double()[None, None]
    upsampled = functional.conv_transpose2d(plane[None, None], kernel, stride=factor)[0, 0]
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) - centre) / factor for n in upsampled.shape
    )
    expected = 2 * rows[:, None] - 3 * columns + 5
    inner = (slice(size, -size),) * 2
    torch.testing.assert_close(upsampled[inner], expected[inner], rtol=0, atol=1e-5)
    assert upsampled[inner].numel()
    assert kernel.max() <= 1
    assert torch.equal(kernel, kernel.flip(2, 3))


def test_channels_are_upsampled_separately() -> None:
    x = torch.randn(1, 3, 4, 4)
    kernels = bilinear_kernel(4).repeat(3, 1, 1, 1)
    for i in range(3):
        alone = upsample_bilinearly(x[:, i : i + 1], kernels[:1])
        torch.testing.assert_close(upsample_bilinearly(x, kernels)[:, i : i + 1], alone)


@pytest.mark.parametrize("coarseness", [32, 16, 8])
def test_kernels_are_neither_trained_nor_stored(coarseness: int) -> None:
    network = FCN(coarseness=coarseness, **NARROW)  # type: ignore[arg-type]
    shapes = {name: tuple(buffer.shape) for name, buffer in network.named_buffers()}
    side = 2 * coarseness
    assert shapes == {"kernels_x2": (2, 1, 4, 4), "kernels_final": (2, 1, side, side)}
    assert not set(shapes) & set(network.state_dict())
    network(torch.randn(1, 1, 32, 32)).sum().backward()
    assert not any(buffer.requires_grad for buffer in network.buffers())


@pytest.mark.parametrize("coarseness", [32, 16, 8])
def test_the_output_has_the_size_of_the_input(coarseness: int) -> None:
    network = FCN(coarseness=coarseness, **NARROW).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for side in (1, 2, 3, 31, 32, 33, 50, 64, 97):
            image = torch.zeros(1, 1, side, 98 - side)
            assert network(image).shape == (1, 2, side, 98 - side)


@pytest.mark.parametrize(("coarseness", "scores"), [(32, 1), (16, 2), (8, 3)])
def test_the_crops_align_each_score_with_its_pixels(coarseness: int, scores: int) -> None:
    """With kernels that are 0 except in the middle, each score of a plane is a plane.

    Max-pooling selects the far corner of a cell of 32, 16 and 8 px: 15.5, 7.5 and 3.5 px from its
    middle. Wrong crops would add to these offsets.
    """
    network = FCN(1, 1, coarseness, width=1 / 4096).eval()  # type: ignore[arg-type]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            middle = layer.kernel_size[0] // 2
            layer.weight.data[..., middle, middle] = 1
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(224.0), indexing="ij")
    plane = x + 2 * y + 10
    with torch.no_grad():
        found = network.double()(plane.double()[None, None])[0, 0]
    corners = (1 + 2) * sum((15.5, 7.5, 3.5)[:scores])
    inner = (slice(64, -64),) * 2
    expected = scores * plane.double() + corners
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=1e-9)
