"""Rules of the operators: the receptive field equals what a NaN probe shows; other operators are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import certify, probe
from tests.networks import small_networks as small
from tests.networks.small_networks import symmetric_reach


class ConvolutionThen(nn.Module):
    """A convolution, and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = small.conv(3, 1, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


ALONG_A_DIMENSION: dict[str, Callable[[Tensor, int], Tensor]] = {
    "select": lambda x, dim: x.select(dim, 0).unsqueeze(1),
    "unbind": lambda x, dim: torch.stack(x.unbind(dim)[:2], 1),
    "index_select": lambda x, dim: x.index_select(dim, torch.tensor([0, 2])),
    "maximum": lambda x, dim: x.max(dim, keepdim=True)[0],
    "topk": lambda x, dim: x.topk(2, dim)[0],
    "logsumexp": lambda x, dim: x.logsumexp(dim, keepdim=True),
    "var_mean": lambda x, dim: x - torch.var_mean(x, dim, keepdim=True)[1],
    "glu": functional.glu,
}


@pytest.mark.parametrize("name", ALONG_A_DIMENSION)
def test_an_operator_adds_no_reach_along_channels_and_is_refused_along_the_image(name: str) -> None:
    torch.manual_seed(0)
    network = ConvolutionThen(lambda x: ALONG_A_DIMENSION[name](x, 1)).eval()
    assert analyse(network) == probe(network, 1, symmetric_reach(1)) == symmetric_reach(1)
    with pytest.raises(ModelError, match=r"the network \(ConvolutionThen\) (?!uses)"):
        analyse(ConvolutionThen(lambda x: ALONG_A_DIMENSION[name](x, 3)).eval())


POINTWISE = {
    "hardswish": functional.hardswish,
    "logsigmoid": functional.logsigmoid,
    "channel_shuffle": lambda x: functional.channel_shuffle(x, 2),
    "normalize": functional.normalize,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "max": lambda x: torch.max(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_functions_of_one_pixel_add_no_reach(name: str) -> None:
    torch.manual_seed(0)
    network = ConvolutionThen(POINTWISE[name]).eval()
    assert analyse(network) == probe(network, 1, symmetric_reach(1)) == symmetric_reach(1)


def test_repeating_the_image_is_refused() -> None:
    with pytest.raises(ModelError, match="repeats the image"):
        analyse(ConvolutionThen(lambda x: x.repeat(1, 1, 2, 1)).eval())


def test_layers_over_channels_add_no_reach() -> None:
    assert analyse(small.ChannelsLast()) == symmetric_reach(3)
    pointwise = nn.Sequential(
        small.conv(1, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.LocalResponseNorm(2), nn.Softmax(1)
    )
    assert analyse(pointwise.eval()) == symmetric_reach(0)


def one_level(down: nn.Module, up: nn.Module) -> nn.Module:
    return nn.Sequential(small.conv(1, 1), small.Level(down, small.conv(3), up, joined=True))


OPERATIONS = {
    "branches": small.Branches(),
    "dilation": small.conv(3, dilation=3),
    "groups": small.conv(5, groups=2),
    "strided": one_level(nn.Conv2d(2, 2, 5, stride=2, padding=2), nn.Upsample(scale_factor=2)),
    "transposed": one_level(nn.MaxPool2d(2), nn.ConvTranspose2d(2, 2, 2, stride=2)),
    "transposed, padded": one_level(
        nn.MaxPool2d(3), nn.ConvTranspose2d(2, 2, 7, stride=3, padding=3, output_padding=2)
    ),
    "transposed, dilated": one_level(
        nn.MaxPool2d(2), nn.ConvTranspose2d(2, 2, 2, stride=2, padding=1, dilation=3)
    ),
    "average": one_level(nn.AvgPool2d(3, 2, padding=1), nn.Upsample(scale_factor=2)),
    "average, ceiling": one_level(nn.AvgPool2d(2, ceil_mode=True), nn.Upsample(scale_factor=2)),
    "maximum, ceiling": one_level(nn.MaxPool2d(2, ceil_mode=True), nn.ConvTranspose2d(2, 2, 2, 2)),
    "nearest": one_level(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "nearest, exact": one_level(nn.MaxPool2d(3), nn.Upsample(scale_factor=3, mode="nearest-exact")),
    "bilinear": one_level(nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "crops": small.Cropped(),
    "shifts": small.Shift(1, 2),
    "zeros": small.Padded("constant", (1, 2, 3, 0)),
    "reflected": small.Padded("reflect", (2, 1, 0, 1)),
    "replicated": small.Padded("replicate", (0, 3, 1, 1)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_reaches_as_far_as_nans_show(operation: str) -> None:
    torch.manual_seed(0)
    network = OPERATIONS[operation]
    bands = 1 if isinstance(network, nn.Sequential) else 2
    network = network.eval()
    reach = analyse(network, bands)
    assert probe(network, bands, reach) == reach
    assert certify(network, bands, reach).probed


REFUSED = {
    "1 (GroupNorm) normalises": small.after_conv(nn.GroupNorm(1, 2)),
    "1 (InstanceNorm2d) normalises": small.after_conv(nn.InstanceNorm2d(2)),
    "1 (LayerNorm) normalises": small.after_conv(nn.LayerNorm([96, 192])),
    "1 (SqueezeExcite) applies mean": small.after_conv(small.SqueezeExcite()),
    "1 (AdaptiveAvgPool2d) pools": small.after_conv(nn.AdaptiveAvgPool2d(1)),
    "1 (Attention) reshapes": small.after_conv(small.Attention()),
    "1 (RowAttention) multiplies each pixel": small.after_conv(small.RowAttention()),
    "1 (Upsample) interpolates with align_corners=True": small.after_conv(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    ),
    "1 (BatchNorm2d) is in training mode": small.after_conv(
        nn.BatchNorm2d(2, track_running_stats=False)
    ),
    "0 (Dropout) is in training mode": nn.Sequential(nn.Dropout()),
    "1 (Conv2d) pads with the opposite side": small.after_conv(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    ),
    "1 (Softmax) applies softmax": small.after_conv(nn.Softmax(dim=3)),
    "1 (Position) uses a constant": small.after_conv(small.Position()),
    "1 (CoordinateBands) joins a constant": small.after_conv(small.CoordinateBands()),
    "1 (Flip) uses aten.flip.default, whose reach is not known": small.after_conv(small.Flip()),
    "1 (ResizeToInput) resizes": small.after_conv(small.ResizeToInput()),
    "1.0 (GroupNorm)": small.after_conv(nn.Sequential(nn.GroupNorm(1, 2))),
    "the network (DataDependent) branches on": small.DataDependent(),
    "1 (DataDependent) branches on": small.after_conv(small.DataDependent()),
    "network TwoOutputs must take one": small.TwoOutputs(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_network_that_reads_the_whole_image_is_refused_by_layer(
    reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        analyse(REFUSED[reason])
    message = str(caught.value)
    assert reason in message
    assert ": " in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
