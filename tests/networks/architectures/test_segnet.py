"""SegNet and SegNet-Basic: unpooling, layers and reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fcnpipe.networks.architectures.segnet import SegNet
from fcnpipe.networks.architectures.segnet_basic import SegNetBasic
from fcnpipe.networks.reach.analysis import analyse
from tests.networks.activation_scaling import standardise_activations

NETWORKS = {"segnet": SegNet(width=1 / 64), "basic": SegNetBasic(width=1 / 64)}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_pooling_inverts_unpooling(data: st.DataObject) -> None:
    """The values are not negative, as after a ReLU, and only a few differ, so that there are ties."""
    shape = [data.draw(st.integers(1, 2)) for _ in range(2)]
    shape += [2 * data.draw(st.integers(1, 5)) for _ in range(2)]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(0, data.draw(st.integers(1, 9)) + 1, shape).double()
    for network in NETWORKS.values():
        pooled, indices = network.pool(x)
        spread = network.unpool(pooled, indices)
        assert spread.shape == x.shape
        assert torch.equal(network.pool(spread)[0], pooled)
        cells = spread.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        assert int((cells != 0).sum(dim=4).max()) <= 1
        assert bool(((spread == 0) | (spread == x)).all())


def test_of_equal_values_the_first_in_raster_order_is_the_maximum(network: nn.Module) -> None:
    for value in (0.0, 3.0):
        for memory in (torch.contiguous_format, torch.channels_last):
            x = torch.full((1, 2, 4, 6), value).to(memory_format=memory)
            indices = network.pool(x)[1]
            assert indices[0, 0].tolist() == [[0, 2, 4], [12, 14, 16]]


def test_channels_last_has_the_same_indices(network: nn.Module) -> None:
    x = torch.randint(0, 3, (2, 3, 16, 16)).float()
    wide = x.to(memory_format=torch.channels_last)
    assert torch.equal(network.pool(x)[1], network.pool(wide)[1])


def test_layers_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        full, basic = SegNet(), SegNetBasic()
    kinds = {
        kind: [sum(isinstance(m, kind) for m in net.modules()) for net in (full, basic)]
        for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
    }
    # The last convolution of SegNet has no normalisation or ReLU, the decoder of SegNet-Basic no ReLU.
    assert kinds == {nn.Conv2d: [26, 9], nn.BatchNorm2d: [25, 8], nn.ReLU: [25, 4]}
    widths = [m.out_channels for m in full.up.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [512] * 5 + [256] * 3 + [128] * 2 + [64] * 2 + [11]
    assert {m.kernel_size for m in basic.up.modules() if isinstance(m, nn.Conv2d)} == {(7, 7)}


def test_bands_are_normalised_across_each_other() -> None:
    x = torch.randn(1, 7, 3, 4, dtype=torch.float64) * 30
    wanted = torch.empty_like(x)
    for band in range(7):
        near = x[:, max(0, band - 2) : band + 3]
        wanted[:, band] = x[:, band] / (1 + 1e-4 / 5 * (near**2).sum(dim=1)) ** 0.75
    torch.testing.assert_close(SegNetBasic(bands=7).norm(x), wanted, rtol=1e-12, atol=0)


def test_moved_maxima_show_the_whole_reach() -> None:
    """A NaN is a maximum wherever it is; bright and faint pixels move the maxima and show more."""
    torch.manual_seed(0)
    network = standardise_activations(SegNetBasic(width=1 / 16), 3).eval().double()
    claim = analyse(network, 3)
    assert claim.furthest == 105
    assert max(spread_of_a_column(network, claim.stride, 128) for _ in range(4)) == claim.furthest


def spread_of_a_column(network: nn.Module, stride: int, margin: int) -> int:
    """Return the largest distance, px, at which outputs change with one column, over all phases."""
    phases = torch.arange(stride)
    image = torch.randn(1, 3, stride, 2 * margin + stride, dtype=torch.float64)
    changed = image.repeat(stride + 1, 1, 1, 1)
    changed[phases, :, :, margin + phases] = 10 * torch.randn(stride, 3, stride).double()
    with torch.no_grad():
        out: Tensor = network(changed)
    phase, column = torch.nonzero((out[:-1] != out[-1]).any(2).any(1), as_tuple=True)
    return int((column - margin - phase).abs().max())


def test_segnet_basic_runs_in_bfloat16() -> None:
    network, x = SegNetBasic(bands=1, outputs=2, width=0.1).eval(), torch.rand(1, 1, 32, 48)
    with torch.no_grad():
        whole, half = network(x), network.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    # Rounded numbers have ties, whose maxima are at other positions, so a few pixels differ by much.
    assert (half.float() - whole).abs().median() < 0.2 * whole.std()
