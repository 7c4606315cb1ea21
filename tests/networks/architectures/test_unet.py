"""U-Net: published geometry, number of weights, and symmetries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnpipe.core.errors import SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.networks.architectures.unet import UNet

SHIFT = 8


def _count(**arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**arguments).parameters())


@pytest.mark.parametrize(
    ("base", "depth", "parameters"),
    [(16, 3, 481_800), (8, 3, 121_000), (16, 4, 1_942_000), (64, 4, 31_030_000)],
)
def test_numbers_of_weights_are_those_of_the_table(base, depth, parameters):
    assert _count(base=base, depth=depth, outputs=3) == pytest.approx(parameters, rel=3e-3)


def test_valid_padding_has_the_published_geometry():
    network = UNet(base=2, depth=4, outputs=2, padding="valid")
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear"])
def test_same_padding_keeps_the_shape(upsampling):
    network = UNet(bands=2, base=3, depth=2, upsampling=upsampling)
    with torch.no_grad():
        assert network(torch.zeros(2, 2, 20, 36)).shape == (2, 3, 20, 36)


def test_shifts_by_the_stride_commute_beyond_the_reach():
    torch.manual_seed(0)
    network = UNet(base=4, depth=3).double()
    x = torch.randn(1, 1, 160, 160, dtype=torch.float64)
    with torch.no_grad():
        here, there = network(x), network(torch.roll(x, SHIFT, -1))
    reach = 7 * 2**3 - 5 + SHIFT
    inner = slice(reach, 160 - reach)
    assert network.stride == SHIFT
    torch.testing.assert_close(
        torch.roll(here, SHIFT, -1)[..., inner, inner], there[..., inner, inner], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear"])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_crop_of_the_forward_pass_equals_the_whole(upsampling, data):
    depth, cells = data.draw(st.integers(1, 3)), st.integers(1, 9)
    height, width = (data.draw(cells) << depth for _ in range(2))
    y = sorted(data.draw(st.sets(st.integers(0, height), min_size=2, max_size=2)))
    x = sorted(data.draw(st.sets(st.integers(0, width), min_size=2, max_size=2)))
    keep = Box(y[0], x[0], y[1], x[1])
    torch.manual_seed(data.draw(st.integers(0, 99)))
    network = UNet(base=2, depth=depth, upsampling=upsampling).double()
    image = torch.randn(1, 1, height, width, dtype=torch.float64)
    with torch.no_grad():
        part, whole = network.forward_crop(image, keep), network(image)[(..., *keep.slices)]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)


def test_valid_padding_equals_the_inside_of_same_padding():
    torch.manual_seed(0)
    same, valid = UNet(base=2, depth=2).double(), UNet(base=2, depth=2, padding="valid").double()
    valid.load_state_dict(same.state_dict())
    x = torch.randn(1, 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        # Cropped by 2 px, so that the poolings of both have the same windows.
        small, whole = valid(x[..., 2:-2, 2:-2]), same(x)
    edge = (96 - small.shape[-1]) // 2
    # Pixels within the reach of the zeros of same padding differ.
    inner = slice(8, -8)
    torch.testing.assert_close(
        whole[..., edge:-edge, edge:-edge][..., inner, inner],
        small[..., inner, inner],
        rtol=0,
        atol=1e-12,
    )


def test_arguments_build_the_same_network():
    network = UNet(base=3, depth=2, upsampling="nearest")
    again = UNet(**network.arguments)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"base": 0}, {"depth": -1}, {"padding": "reflect"}, {"upsampling": "cubic"}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(SpecError, match=str(next(iter(wrong)))):
        UNet(**wrong)
