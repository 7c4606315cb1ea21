"""A U-Net in int8: equal to float64 arithmetic on the rounded values, and close to the network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcnpipe.core.errors import ModelError, SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.networks import load_model
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.inference import int8
from fcnpipe.networks.inference.int8 import Int8UNet, measure_ranges
from fcnpipe.networks.inference.predictor import choose_precision
from fcnpipe.testing.networks import starry

pytestmark = pytest.mark.skipif(not int8.is_available(), reason="this CPU has no VNNI")


def make_network(
    seed: int = 0, depth: int = 2, base: int = 8
) -> tuple[UNet, dict[str, tuple[float, float]]]:
    torch.manual_seed(seed)
    network = UNet(base=base, depth=depth).eval().requires_grad_(False)
    for layer in network.modules():  # biases are 0 initially, which would hide missing ones
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.normal_(layer.bias, std=0.1)
    return network, measure_ranges(network, [make_input(seed, 64, 64)])


def make_input(seed: int, height: int, width: int) -> Tensor:
    sky = torch.from_numpy(np.arcsinh(starry(1, (height, width), seed)))[None]
    return sky.contiguous(memory_format=torch.channels_last)


def simulate(network: UNet, ranges: dict[str, tuple[float, float]], x: Tensor) -> Tensor:
    """Run the network in float64, with values and weights rounded where int8 arithmetic rounds them."""

    def rounded(name: str, values: Tensor) -> Tensor:
        low, high = ranges[name]
        scale = (high - low) / 255
        zero = round(-low / scale)
        return (torch.clamp(torch.round(values / scale) + zero, 0, 255) - zero) * scale

    def convolve(layer, parts, padding=1):  # type: ignore[no-untyped-def]
        values = torch.cat([v for v, _ in parts], 1)
        scale = torch.cat([torch.full((v.shape[1],), s, dtype=v.dtype) for v, s in parts])
        weight = layer.weight.double() * scale[:, None, None]
        unit = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        whole = torch.round(weight / unit) * unit / scale[:, None, None]
        return torch.nn.functional.conv2d(values, whole, layer.bias.double(), padding=padding)

    def scale_of(name: str) -> float:
        low, high = ranges[name]
        return (high - low) / 255

    skips, x = [], x.double()
    for level, pair in enumerate(network.down):
        x = x if level == 0 else torch.nn.functional.max_pool2d(x, 2)
        if level == 0:
            first = pair[0]
            x = torch.nn.functional.conv2d(x, first.weight.double(), first.bias.double(), padding=1)
        else:
            x = convolve(pair[0], [(x, scale_of(f"down.{level - 1}.3"))])
        x = rounded(f"down.{level}.1", x.relu())
        x = convolve(pair[2], [(x, scale_of(f"down.{level}.1"))])
        x = rounded(f"down.{level}.3", x.relu())
        skips.append(x)
    x, below = skips.pop(), f"down.{len(network.down) - 1}.3"
    for i, (up, join) in enumerate(zip(network.up, network.join, strict=True)):
        flat = up.weight.double() * scale_of(below)
        unit = flat.abs().amax(0, keepdim=True) / 127
        whole = torch.round(flat / unit) * unit / scale_of(below)
        x = torch.nn.functional.conv_transpose2d(x, whole, up.bias.double(), stride=2)
        x = rounded(f"up.{i}", x)
        level = len(network.up) - 1 - i
        halves = [(skips.pop(), scale_of(f"down.{level}.3")), (x, scale_of(f"up.{i}"))]
        x = rounded(f"join.{i}.1", convolve(join[0], halves).relu())
        x = convolve(join[2], [(x, scale_of(f"join.{i}.1"))])
        x, below = rounded(f"join.{i}.3", x.relu()), f"join.{i}.3"
    return convolve(network.head, [(x, scale_of(below))], padding=0)


@pytest.mark.parametrize(("depth", "base"), [(1, 8), (2, 16), (3, 4)])
def test_int8_equals_arithmetic_on_rounded_values(depth: int, base: int) -> None:
    network, ranges = make_network(3, depth, base)
    x = make_input(4, 40, 56)
    found, expected = Int8UNet(network, ranges)(x).double(), simulate(network, ranges, x)
    # A sum halfway between two quantised values may be rounded to either. This is rare, and one step.
    away = (found - expected).abs()
    step = float((network(x).double() - expected).abs().mean())
    assert float(away.median()) < 1e-4
    assert float(away.mean()) < 0.1 * step
    assert found.shape == (1, 3, 40, 56)


def test_int8_is_close_to_the_network() -> None:
    network, ranges = make_network()
    x = make_input(5, 64, 64)
    off = (Int8UNet(network, ranges)(x) - network(x)).abs()
    assert float(off.mean()) < 0.05 * float(network(x).std())


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_crop_of_the_forward_pass_equals_the_whole(data: st.DataObject) -> None:
    depth, cells = data.draw(st.integers(1, 3)), st.integers(1, 9)
    network, ranges = make_network(
        data.draw(st.integers(0, 9)), depth, data.draw(st.sampled_from((2, 4, 8)))
    )
    height, width = (data.draw(cells) << depth for _ in range(2))
    y = sorted(data.draw(st.sets(st.integers(0, height), min_size=2, max_size=2)))
    x = sorted(data.draw(st.sets(st.integers(0, width), min_size=2, max_size=2)))
    keep, image, int8_unet = (
        Box(y[0], x[0], y[1], x[1]),
        make_input(1, height, width),
        Int8UNet(network, ranges),
    )
    part, whole = int8_unet.forward_crop(image, keep), int8_unet(image)[(..., *keep.slices)]
    torch.testing.assert_close(part, whole, rtol=0, atol=0)


def test_the_default_model_predicts_nearly_the_same() -> None:
    model, snr = load_model("default"), 3 * starry(1, (256, 256), 7)
    full, quantised = (model.predictor("cpu", p)(snr) for p in ("fp32", "int8"))
    level = model.header.defaults.thresh
    flips = (full.probability[0] > level) != (quantised.probability[0] > level)
    assert flips.mean() < 5e-3
    assert 0 < np.abs(full.elevation - quantised.elevation).mean() < 5e-3
    assert model.precision("auto", "cpu") == "int8"


def test_networks_ranges_and_machines_without_int8_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, ranges = make_network()
    header = load_model("default").header
    with pytest.raises(ModelError, match=r"layer 'up.1' has no range"):
        Int8UNet(network, {name: ends for name, ends in ranges.items() if name != "up.1"})
    with pytest.raises(ModelError, match="same padding and transposed"):
        Int8UNet(UNet(upsampling="nearest"), ranges)
    with pytest.raises(ModelError, match="without the ranges"):
        choose_precision("int8", "cpu", header.model_copy(update={"ranges": {}}))
    monkeypatch.setattr(int8, "is_available", lambda: False)
    with pytest.raises(SpecError, match="VNNI"):
        choose_precision("int8", "cpu", header)
    assert choose_precision("auto", "cpu", header) in ("bf16", "fp32")
