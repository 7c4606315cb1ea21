"""Network of Hradis: layers, receptive field, and valid compared with same padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcnpipe.networks.architectures.hradis import Hradis
from tests.networks.activation_scaling import standardise_activations

NARROW = {"width": 1 / 64, "bands": 1, "outputs": 1}


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_l15_has_the_published_layers() -> None:
    with torch.device("meta"):
        layers = convolutions(Hradis())
    kernels, outputs, groups = zip(
        *((layer.kernel_size[0], layer.out_channels, layer.groups) for layer in layers), strict=True
    )
    assert kernels == (19, 1, 1, 1, 1, 3, 1, 5, 5, 3, 5, 5, 1, 7, 7)
    assert outputs == (128, 320, 320, 320, 128, 128, 512, 128, 128, 128, 128, 128, 256, 64, 3)
    assert groups == (1, 1, 1, 1, 1, 1, 1, 4, 2, 1, 2, 2, 1, 2, 1)


@pytest.mark.parametrize(("layers", "field"), [(15, 51), (10, 35)])
def test_an_image_of_the_receptive_field_becomes_one_pixel(layers: int, field: int) -> None:
    network = Hradis(layers=layers, padding="valid", **NARROW)  # type: ignore[arg-type]
    assert len(convolutions(network)) == layers
    assert network(torch.zeros(1, 1, field, field + 2)).shape == (1, 1, 1, 3)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, field - 1, field))


@pytest.mark.parametrize(("layers", "reach"), [(15, 25), (10, 17)])
def test_valid_padding_equals_the_inside_of_same_padding(layers: int, reach: int) -> None:
    torch.manual_seed(0)
    same = Hradis(layers=layers, **NARROW)  # type: ignore[arg-type]
    valid = Hradis(layers=layers, padding="valid", **NARROW)  # type: ignore[arg-type]
    valid.load_state_dict(standardise_activations(same, 1).state_dict())
    x = torch.randn(1, 1, 70, 61, dtype=torch.float64)
    with torch.no_grad():
        whole, inner = same.double()(x), valid.double()(x)
    cut = whole[..., reach:-reach, reach:-reach]
    assert float(inner.std()) > 1e-3
    torch.testing.assert_close(inner, cut, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("width", [1.0, 0.3, 1 / 64])
def test_the_output_has_the_bands_of_the_input_at_any_width(bands: int, width: float) -> None:
    with torch.device("meta"):
        network = Hradis(bands, bands, width=width)
        assert network(torch.empty(2, bands, 40, 30)).shape == (2, bands, 40, 30)


def test_the_restored_image_may_be_negative() -> None:
    """The last layer has no ReLU."""
    torch.manual_seed(0)
    network = standardise_activations(Hradis(**NARROW), 1)  # type: ignore[arg-type]
    with torch.no_grad():
        out = network(torch.randn(1, 1, 40, 40))
    assert float(out.min()) < 0 < float(out.max())
