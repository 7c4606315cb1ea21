"""Network of Ciresan: the dense form equals the patch classifier at each pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fcnpipe.networks.architectures.ciresan import PATCH_SIDE, Ciresan, CiresanPatch

EXACT = 1e-12


def patches_of(image: Tensor) -> Tensor:
    """Return the patch around each pixel of (bands, h, w), zero outside, in raster order."""
    edge, (height, width) = PATCH_SIDE // 2, image.shape[1:]
    wide = functional.pad(image, (edge,) * 4)
    corners = [(y, x) for y in range(height) for x in range(width)]
    return torch.stack([wide[:, y : y + PATCH_SIDE, x : x + PATCH_SIDE] for y, x in corners])


def patch_by_patch(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(patches_of(image)).T.unflatten(1, image.shape[1:])


def at_once(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image[None])[0]


def patch_network(seed: int = 0, **arguments: object) -> CiresanPatch:
    torch.manual_seed(seed)
    network = CiresanPatch(**arguments).double()  # type: ignore[arg-type]
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("bands", [1, 2])
def test_the_dense_form_equals_the_classifier_at_every_pixel(activation: str, bands: int) -> None:
    patch = patch_network(bands=bands, maps=4, hidden=6, activation=activation)
    image = torch.randn(bands, 7, 8, dtype=torch.float64)
    expected, found = patch_by_patch(patch, image), at_once(Ciresan.from_patch(patch), image)
    assert float(expected.std(dim=(1, 2)).min()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_the_dense_form_equals_the_classifier_at_the_published_size() -> None:
    patch = patch_network()
    image = torch.randn(1, 2, 3, dtype=torch.float64)
    expected, found = patch_by_patch(patch, image), at_once(Ciresan.from_patch(patch), image)
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_valid_padding_leaves_the_border_out() -> None:
    patch = patch_network(maps=4, hidden=6)
    dense = Ciresan.from_patch(patch, padding="valid")
    image = torch.randn(1, 100, 96, dtype=torch.float64)
    found = at_once(dense, image)
    assert found.shape == (2, 6, 2)
    inner = patches_of(image).unflatten(0, image.shape[1:])[47:-47, 47:-47].flatten(0, 1)
    with torch.no_grad():
        expected = patch(inner).T.unflatten(1, (6, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("outputs", [2, 3])
def test_an_ensemble_averages_the_probabilities(outputs: int) -> None:
    members = [patch_network(seed, outputs=outputs, maps=3, hidden=4) for seed in range(3)]
    image = torch.randn(1, 6, 5, dtype=torch.float64)
    expected = torch.stack([patch_by_patch(m, image).softmax(dim=0) for m in members]).mean(dim=0)
    found = at_once(Ciresan.from_patch(*members), image)
    torch.testing.assert_close(found.exp(), expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(found.softmax(dim=0), expected, rtol=0, atol=EXACT)


def test_an_ensemble_with_one_output_averages_its_sigmoids() -> None:
    members = [patch_network(seed, outputs=1, maps=3, hidden=4) for seed in range(4)]
    image = torch.randn(1, 6, 5, dtype=torch.float64)
    expected = torch.stack([patch_by_patch(m, image).sigmoid() for m in members]).mean(dim=0)
    found = at_once(Ciresan.from_patch(*members), image)
    torch.testing.assert_close(found.sigmoid(), expected, rtol=0, atol=EXACT)


def test_the_dense_form_has_the_arguments_and_a_copy_of_the_weights() -> None:
    patch = patch_network(bands=2, maps=3, hidden=4, activation="relu").eval()
    dense = Ciresan.from_patch(patch, patch)
    assert dense.arguments == {**patch.arguments, "members": 2, "padding": "same"}
    assert {p.dtype for p in dense.parameters()} == {torch.float64}
    assert not dense.training
    shared = {p.data_ptr() for p in patch.parameters()} & {p.data_ptr() for p in dense.parameters()}
    assert not shared


def test_the_dense_form_takes_555_times_fewer_operations() -> None:
    """A pixel takes 121.5 million multiplications in its patch, and 218,896 in the dense form."""
    with torch.device("meta"):
        patch, dense = CiresanPatch(), Ciresan(padding="valid")
        inputs = [
            torch.empty(1, 1, PATCH_SIDE + more, PATCH_SIDE + more) for more in (0, 1000, 2000)
        ]
    counts = []
    for network, image in zip([patch, dense, dense], inputs, strict=True):
        with FlopCounterMode(display=False) as counter:
            network(image)
        counts.append(counter.get_total_flops() // 2)
    # The term linear in n is the border; the term in n^2 is the cost of each pixel.
    border = (4 * counts[1] - counts[2]) / 2 / 1000
    each = (counts[2] - 2 * border * 1000) / 2000**2
    assert counts[0] == pytest.approx(121.5e6, rel=1e-3)
    assert each == pytest.approx(218_896, rel=2e-2)
    assert counts[0] / 218_896 == pytest.approx(555, abs=0.5)
