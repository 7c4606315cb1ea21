from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Reach
from fcnpipe.networks.reach.analysis import analyse, make_same_size, trace_same_size
from fcnpipe.networks.reach.certificate import certify, probe
from fcnpipe.networks.reach.tracing import activation_bytes
from tests.networks import small_networks as small


def even(reach: int, stride: int = 1, cell: int | None = None) -> Reach:
    return Reach(reach, reach, reach, reach, stride, stride, reach if cell is None else cell)


@pytest.mark.parametrize(
    ("depth", "furthest", "halo", "least"),
    [(2, 23, 24, 24), (3, 51, 56, 48), (4, 107, 112, 96), (5, 219, 224, 192)],
)
def test_unets_reach_as_far_as_the_table_says(
    depth: int, furthest: int, halo: int, least: int
) -> None:
    reach = analyse(UNet(1, 3, 2, depth).eval())
    assert (reach.top, reach.bottom, reach.left, reach.right) == (furthest,) * 4
    assert (reach.furthest, reach.stride, reach.halo) == (7 * 2**depth - 5, 2**depth, halo)
    assert reach.minimum_halo == least


def test_upsampling_by_bilinear_looks_further() -> None:
    assert analyse(UNet(1, 3, 2, 3, upsampling="nearest").eval()).furthest == 51
    assert analyse(UNet(1, 3, 2, 3, upsampling="bilinear").eval()).furthest == 58


def test_a_plain_stack_reaches_the_sum_of_its_kernels() -> None:
    """Pang et al. 2010 with three hidden layers: a field of 9 px."""
    widths = [3, 8, 8, 8, 1]
    pairs = pairwise(widths)
    layers = [layer for i, o in pairs for layer in (nn.Conv2d(i, o, 3, padding=1), nn.Sigmoid())]
    assert analyse(nn.Sequential(*layers), bands=3) == even(4)


def test_a_dense_ciresan_stack_has_a_field_of_95() -> None:
    """Kernels 4 5 4 4 and 3, pools of 2 made dense: each dilates all that follow."""
    layers: list[nn.Module] = []
    for kernel, dilation in ((4, 1), (5, 2), (4, 4), (4, 8)):
        layers += [
            nn.Conv2d(1, 1, kernel, dilation=dilation),
            nn.MaxPool2d(2, 1, dilation=dilation),
        ]
    layers.append(nn.Conv2d(1, 1, 3, dilation=16))
    assert analyse(nn.Sequential(nn.ZeroPad2d(47), *layers)) == even(47)


def test_even_kernels_look_further_on_one_side() -> None:
    """Padding 'same' of a kernel of 4 puts one pixel before and two after."""
    network = nn.Sequential(
        small.conv(4, 1, 1),
        nn.MaxPool2d(2),
        small.conv(4, 1, 1, dilation=2),
        nn.Upsample(scale_factor=2),
    )
    assert analyse(network) == Reach(8, 9, 8, 9, 2, 2, cell=8)


def test_axes_are_told_apart() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), nn.AvgPool2d((1, 4)))
    wide = nn.Sequential(network, nn.Upsample(scale_factor=(1, 4)))
    assert analyse(wide) == Reach(1, 1, 5, 5, 1, 4, cell=2)


def test_unpooling_looks_where_its_indices_came_from() -> None:
    assert analyse(small.SegNetLike()) == even(11, 2)


class Along(nn.Module):
    """A convolution, and something done along the channels."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.look, self.function = small.conv(3, 1, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.look(x))


ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "select": lambda x, dim: x.select(dim, 0).unsqueeze(1),
    "unbind": lambda x, dim: torch.stack(x.unbind(dim)[:2], 1),
    "index_select": lambda x, dim: x.index_select(dim, torch.tensor([0, 2])),
    "greatest": lambda x, dim: x.max(dim, keepdim=True)[0],
    "topk": lambda x, dim: x.topk(2, dim)[0],
    "logsumexp": lambda x, dim: x.logsumexp(dim, keepdim=True),
    "standardised": lambda x, dim: x - torch.var_mean(x, dim, keepdim=True)[1],
    "gated": functional.glu,
}


@pytest.mark.parametrize("name", ALONG)
def test_what_is_done_along_the_channels_does_not_look_and_along_the_image_is_refused(
    name: str,
) -> None:
    torch.manual_seed(0)
    network = Along(lambda x: ALONG[name](x, 1)).eval()
    assert analyse(network) == probe(network, 1, even(1)) == even(1)
    with pytest.raises(ModelError, match=r"the network \(Along\) (?!uses)"):
        analyse(Along(lambda x: ALONG[name](x, 3)).eval())


QUIET = {
    "hardswish": functional.hardswish,
    "logsigmoid": functional.logsigmoid,
    "shuffled": lambda x: functional.channel_shuffle(x, 2),
    "normalised": functional.normalize,
    "repeated": lambda x: x.repeat(1, 2, 1, 1),
    "rectified": lambda x: torch.max(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", QUIET)
def test_functions_of_a_pixel_do_not_look(name: str) -> None:
    torch.manual_seed(0)
    network = Along(QUIET[name]).eval()
    assert analyse(network) == probe(network, 1, even(1)) == even(1)


def test_repeating_the_image_is_refused() -> None:
    with pytest.raises(ModelError, match="repeats the image"):
        analyse(Along(lambda x: x.repeat(1, 1, 2, 1)).eval())


def test_layers_over_channels_do_not_look() -> None:
    assert analyse(small.ChannelsLast()) == even(3)
    quiet = nn.Sequential(
        small.conv(1, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.LocalResponseNorm(2), nn.Softmax(1)
    )
    assert analyse(quiet.eval()) == even(0)


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
    "greatest, ceiling": one_level(nn.MaxPool2d(2, ceil_mode=True), nn.ConvTranspose2d(2, 2, 2, 2)),
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
def test_each_operation_looks_as_far_as_nans_show(operation: str) -> None:
    torch.manual_seed(0)
    network = OPERATIONS[operation]
    bands = 1 if isinstance(network, nn.Sequential) else 2
    network = network.eval()
    reach = analyse(network, bands)
    assert probe(network, bands, reach) == reach
    assert certify(network, bands, reach).probed


def seen_to_matter(network: nn.Module, bands: int, reach: Reach) -> tuple[int, int]:
    """How far to the left and right a pixel of another value changes the output, in many trials."""
    generator = torch.Generator().manual_seed(0)
    margin, size = 4 * reach.stride, 8 * reach.stride + 2 * reach.furthest // reach.stride * 2
    size -= size % reach.stride
    left = right = 0
    for trial in range(60):
        image = torch.randn(1, bands, margin, size, generator=generator, dtype=torch.float64)
        changed, at = image.clone(), size // 2 + trial % reach.stride
        changed[..., at] += 100 * (-1) ** trial
        with torch.no_grad():
            touched = (network(image) != network(changed)).nonzero()[:, 3]
        left, right = max(left, int(touched.max()) - at), max(right, at - int(touched.min()))
    return left, right


@pytest.mark.parametrize("size", [2, 3])
def test_unpooling_looks_as_far_as_other_values_show(size: int) -> None:
    """NaN is always the greatest and goes where it was: it cannot show what moves others."""
    torch.manual_seed(1)
    network = nn.Sequential(small.conv(3), small.Unpooled(size), small.conv(3)).eval().double()
    reach = analyse(network, 2)
    assert seen_to_matter(network, 2, reach) == (reach.left, reach.right)
    assert certify(network, 2, reach).error == 0


def shrinking(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


RESIZING = {
    "valid": (shrinking(nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 4)), "any n gives n - 7, from 8 px"),
    "grown": (shrinking(nn.Conv2d(1, 1, 3, padding=3)), "any n gives n + 4"),
    "encoder": (shrinking(nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 3)), "n = 2 m + 1 gives m - 2"),
    "finer": (shrinking(nn.ConvTranspose2d(1, 1, 4, 2, padding=1)), "any n gives 2 n"),
    "pooled": (shrinking(nn.MaxPool2d(3)), "n = 3 m gives m, from 3 px"),
    "ceiling": (shrinking(nn.MaxPool2d(2, ceil_mode=True)), "n = 2 m gives m; n = 2 m + 1 gives m"),
    "unet": (UNet(1, 1, 1, 2, padding="valid").eval(), "n = 4 m gives 4 m - 40, from 44 px"),
}


@pytest.mark.parametrize("kind", RESIZING)
def test_networks_of_another_size_are_analysed_and_proven(kind: str) -> None:
    network, said = RESIZING[kind]
    fitted, (rule, _) = make_same_size(network)
    assert said in str(rule)
    reach = analyse(network)
    assert probe(fitted, 1, reach) == reach
    assert certify(network, 1, reach).probed
    with torch.no_grad():
        for n in range(rule.least, rule.least + 2 * rule.step):
            if (expected := rule.output(n)) is not None:
                assert network(torch.zeros(1, 1, n, n)).shape[2] == expected


def test_the_published_unet_takes_572_and_gives_388() -> None:
    _, (rule, _) = make_same_size(UNet(1, 1, 1, 4, padding="valid").eval())
    assert (rule.fits, rule.least, rule.output(572)) == (((12, -172),), 188, 388)
    assert rule.output(187) is None


def test_a_valid_unet_looks_as_far_as_a_padded_one() -> None:
    valid, same = (UNet(1, 1, 1, 2, padding=p).eval() for p in ("valid", "same"))  # type: ignore[arg-type]
    assert analyse(valid).furthest == analyse(same).furthest == 23


def test_sizes_that_do_not_fit_are_tried_in_silence() -> None:
    """torch logs a traceback for each."""
    logger, said = (
        logging.getLogger("torch._subclasses.fake_tensor"),
        logging.handlers.BufferingHandler(9),
    )
    logger.addHandler(said)
    try:
        make_same_size(shrinking(nn.ReflectionPad2d(2), nn.Conv2d(1, 1, 5)))
    finally:
        logger.removeHandler(said)
    assert not said.buffer


def test_a_run_needs_the_size_kept() -> None:
    with pytest.raises(ModelError, match=r"turns \(96, 192\) px into .* pad inside it"):
        trace_same_size(UNet(1, 1, 1, 2, padding="valid").eval())


def test_in_place_work_is_followed() -> None:
    assert analyse(
        nn.Sequential(small.conv(3, 1), nn.ReLU(inplace=True), small.AddsInPlace())
    ) == even(2)


REFUSED = {
    "1 (GroupNorm) normalises": small.after_conv(nn.GroupNorm(1, 2)),
    "1 (InstanceNorm2d) normalises": small.after_conv(nn.InstanceNorm2d(2)),
    "1 (LayerNorm) normalises": small.after_conv(nn.LayerNorm([96, 192])),
    "1 (SqueezeExcite) takes mean": small.after_conv(small.SqueezeExcite()),
    "1 (AdaptiveAvgPool2d) pools": small.after_conv(nn.AdaptiveAvgPool2d(1)),
    "1 (Attention) reshapes": small.after_conv(small.Attention()),
    "1 (RowAttention) multiplies pixels": small.after_conv(small.RowAttention()),
    "1 (Upsample) interpolates with align_corners=True": small.after_conv(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    ),
    "1 (BatchNorm2d) is in training mode": small.after_conv(
        nn.BatchNorm2d(2, track_running_stats=False)
    ),
    "0 (Dropout) is in training mode": nn.Sequential(nn.Dropout()),
    "1 (Conv2d) pads with the other side": small.after_conv(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    ),
    "1 (Softmax) takes softmax": small.after_conv(nn.Softmax(dim=3)),
    "1 (Position) uses a constant": small.after_conv(small.Position()),
    "1 (CoordinateBands) joins a constant": small.after_conv(small.CoordinateBands()),
    "1 (Flip) uses aten.flip.default, whose reach is not known": small.after_conv(small.Flip()),
    "1 (OddStretch) stretches": small.after_conv(small.OddStretch()),
    "1.0 (GroupNorm)": small.after_conv(nn.Sequential(nn.GroupNorm(1, 2))),
    "the network (Brighter) chooses by": small.Brighter(),
    "1 (Brighter) chooses by": small.after_conv(small.Brighter()),
    "network TwoOutputs must take one": small.TwoOutputs(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_sees_the_whole_image_is_refused_by_name(
    reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        analyse(REFUSED[reason])
    message = str(caught.value)
    assert reason in message
    assert ": " in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_memory_is_that_of_the_widest_moment() -> None:
    """Two arrays of 8 and 1 channels, then of 8 and 8: 64 bytes for each pixel."""
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 1, 1))
    assert activation_bytes(trace_same_size(network)) == 64
    assert activation_bytes(trace_same_size(UNet(1, 3, 4, 2).eval())) == 4 * 16


def test_the_graph_is_followed_in_the_precision_of_the_network() -> None:
    assert analyse(small.conv(3, 1, 1).to(torch.float64)) == even(1)
