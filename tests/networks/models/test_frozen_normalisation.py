"""Frozen normalisation: the output on the sample is kept, and tiles are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.models.frozen_normalisation import FrozenNorm, freeze_norms
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import TOLERANCE, certify
from tests.networks import small_networks as small

NORMS = {
    "group": nn.GroupNorm(2, 4),
    "layer": nn.GroupNorm(1, 4, affine=False),
    "instance": nn.InstanceNorm2d(4),
    "instance with weights": nn.InstanceNorm2d(4, affine=True),
}


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(small.conv(3, 1, 4), norm, nn.ReLU(), small.conv(5, 4, 1)).eval()
    for name, weights in norm.named_parameters():
        nn.init.normal_(weights, 1.0 if name == "weight" else 0.5)
    return layers


@pytest.mark.parametrize("kind", NORMS)
def test_frozen_norms_keep_the_output_on_the_sample_and_tile_exactly(kind: str) -> None:
    original = network(NORMS[kind])
    sample = torch.randn(1, 1, 40, 56)
    with pytest.raises(ModelError, match=r"1 \(.*Norm.*\) normalises .* freeze its statistics"):
        analyse(original)
    frozen = freeze_norms(original, sample)
    with torch.no_grad():
        torch.testing.assert_close(frozen(sample), original(sample), rtol=0, atol=1e-5)
    proof = certify(frozen)
    assert proof.probed
    assert proof.halo == 3
    assert proof.error is not None
    assert proof.error <= TOLERANCE < proof.error_short
    assert isinstance(original[1], type(NORMS[kind]))  # type: ignore[index]


def test_statistics_of_several_images_are_averaged() -> None:
    sample = torch.stack([torch.full((1, 8, 8), 1.0), torch.full((1, 8, 8), 3.0)])
    sample[:, :, ::2] += 1
    frozen = freeze_norms(nn.Sequential(nn.InstanceNorm2d(1, eps=0)), sample)
    with torch.no_grad():
        assert frozen(torch.full((1, 1, 2, 2), 2.5)).abs().max() == 0
        assert frozen(torch.full((1, 1, 2, 2), 3.0)).allclose(torch.ones(1))


def test_a_norm_with_running_statistics_needs_no_freezing() -> None:
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    assert certify(network(norm)).probed
    with pytest.raises(ModelError, match="no GroupNorm or InstanceNorm"):
        freeze_norms(network(norm), torch.zeros(1, 1, 32, 32))


def test_a_single_norm_is_frozen() -> None:
    assert isinstance(freeze_norms(nn.GroupNorm(1, 2), torch.randn(1, 2, 8, 8)), FrozenNorm)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) * 3)


def test_a_norm_that_is_called_twice_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"norm \(GroupNorm\) is called several times"):
        freeze_norms(Twice(), torch.randn(1, 2, 8, 8))
