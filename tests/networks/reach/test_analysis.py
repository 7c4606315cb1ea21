"""Reach and stride computed from the graph, compared with published values and with measurements."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Reach
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import certify
from tests.networks import small_networks as small
from tests.networks.small_networks import symmetric_reach


@pytest.mark.parametrize(
    ("depth", "furthest", "halo", "minimum"),
    [(2, 23, 24, 24), (3, 51, 56, 48), (4, 107, 112, 96), (5, 219, 224, 192)],
)
def test_unets_have_the_reach_of_the_table(
    depth: int, furthest: int, halo: int, minimum: int
) -> None:
    reach = analyse(UNet(1, 3, 2, depth).eval())
    assert (reach.top, reach.bottom, reach.left, reach.right) == (furthest,) * 4
    assert (reach.furthest, reach.stride, reach.halo) == (7 * 2**depth - 5, 2**depth, halo)
    assert reach.minimum_halo == minimum


def test_bilinear_upsampling_has_a_larger_reach() -> None:
    assert analyse(UNet(1, 3, 2, 3, upsampling="nearest").eval()).furthest == 51
    assert analyse(UNet(1, 3, 2, 3, upsampling="bilinear").eval()).furthest == 58


def test_a_plain_stack_reaches_the_sum_of_its_kernels() -> None:
    """Pang et al. 2010 with three hidden layers: a receptive field of 9 px."""
    widths = [3, 8, 8, 8, 1]
    pairs = pairwise(widths)
    layers = [layer for i, o in pairs for layer in (nn.Conv2d(i, o, 3, padding=1), nn.Sigmoid())]
    assert analyse(nn.Sequential(*layers), bands=3) == symmetric_reach(4)


def test_a_dense_ciresan_stack_has_a_receptive_field_of_95() -> None:
    """Kernels 4, 5, 4, 4 and 3; each dense pooling of 2 dilates all layers after it."""
    layers: list[nn.Module] = []
    for kernel, dilation in ((4, 1), (5, 2), (4, 4), (4, 8)):
        layers += [
            nn.Conv2d(1, 1, kernel, dilation=dilation),
            nn.MaxPool2d(2, 1, dilation=dilation),
        ]
    layers.append(nn.Conv2d(1, 1, 3, dilation=16))
    assert analyse(nn.Sequential(nn.ZeroPad2d(47), *layers)) == symmetric_reach(47)


def test_even_kernels_reach_further_on_one_side() -> None:
    """Padding 'same' of a kernel of 4 adds one pixel before and two after."""
    network = nn.Sequential(
        small.conv(4, 1, 1),
        nn.MaxPool2d(2),
        small.conv(4, 1, 1, dilation=2),
        nn.Upsample(scale_factor=2),
    )
    assert analyse(network) == Reach(8, 9, 8, 9, 2, 2, cell=8)


def test_each_axis_has_its_own_reach_and_stride() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), nn.AvgPool2d((1, 4)))
    wide = nn.Sequential(network, nn.Upsample(scale_factor=(1, 4)))
    assert analyse(wide) == Reach(1, 1, 5, 5, 1, 4, cell=2)


def test_unpooling_reads_the_windows_of_its_pooling() -> None:
    assert analyse(small.SegNetLike()) == symmetric_reach(11, 2)


def measured_influence(network: nn.Module, bands: int, reach: Reach) -> tuple[int, int]:
    """Return the reach to the left and right that changes of a pixel show in 60 trials."""
    generator = torch.Generator().manual_seed(0)
    margin, size = 4 * reach.stride, 8 * reach.stride + 2 * reach.furthest // reach.stride * 2
    size -= size % reach.stride
    left = right = 0
    for trial in range(60):
        image = torch.randn(1, bands, margin, size, generator=generator, dtype=torch.float64)
        changed, column = image.clone(), size // 2 + trial % reach.stride
        changed[..., column] += 100 * (-1) ** trial
        with torch.no_grad():
            touched = (network(image) != network(changed)).nonzero()[:, 3]
        left, right = (
            max(left, int(touched.max()) - column),
            max(right, column - int(touched.min())),
        )
    return left, right


@pytest.mark.parametrize("size", [2, 3])
def test_unpooling_reaches_as_far_as_other_values_show(size: int) -> None:
    """A NaN is always the maximum of its window, so it cannot show how other values move maxima."""
    torch.manual_seed(1)
    network = nn.Sequential(small.conv(3), small.Unpooled(size), small.conv(3)).eval().double()
    reach = analyse(network, 2)
    assert measured_influence(network, 2, reach) == (reach.left, reach.right)
    assert certify(network, 2, reach).error == 0


def test_a_valid_unet_has_the_reach_of_a_padded_one() -> None:
    valid, same = (UNet(1, 1, 1, 2, padding=p).eval() for p in ("valid", "same"))  # type: ignore[arg-type]
    assert analyse(valid).furthest == analyse(same).furthest == 23


def test_in_place_operations_are_followed() -> None:
    network = nn.Sequential(small.conv(3, 1), nn.ReLU(inplace=True), small.AddsInPlace())
    assert analyse(network) == symmetric_reach(2)


def test_a_network_in_float64_is_analysed() -> None:
    assert analyse(small.conv(3, 1, 1).to(torch.float64)) == symmetric_reach(1)
