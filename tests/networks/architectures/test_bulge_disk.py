"""Bulge and disk: their sum equals the denoised total, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fcnpipe.core.geometry import Box
from fcnpipe.networks.architectures.bulge_disk import BulgeDisk, split_total
from tests.networks.activation_scaling import standardise_activations

PRECISIONS = [torch.float64, torch.float32, torch.bfloat16]


def make_network(units: str = "asinh", **arguments: int) -> BulgeDisk:
    torch.manual_seed(0)
    network = BulgeDisk(base=4, depth=2, units=units, **arguments)  # type: ignore[arg-type]
    standardise_activations(network.trunk, network.arguments["bands"])  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize("units", ["asinh", "linear"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_bulge_and_disk_add_up_to_the_total_exactly(units: str, dtype: torch.dtype) -> None:
    network = make_network(units, bands=2, outputs=4).to(dtype)
    x = 4 * torch.randn(2, 2, 64, 64, dtype=dtype)
    with torch.no_grad():
        bulge, disk = network(x).chunk(2, dim=1)
        total = network.denoise(x)
    assert bulge.dtype == dtype
    assert torch.equal(bulge + disk, total)
    assert min(float(bulge.min()), float(disk.min())) >= 0
    assert float(bulge.std()) > 0.1
    assert float(disk.std()) > 0.1


@given(st.floats(0, 1e300), st.floats(0, 1), st.sampled_from(PRECISIONS))
@settings(max_examples=300, deadline=None)
def test_the_sum_is_exact_for_any_number(total: float, fraction: float, dtype: torch.dtype) -> None:
    """Zeros and subnormal numbers are included."""
    whole = torch.tensor(total, dtype=torch.float64).clamp(max=torch.finfo(dtype).max).to(dtype)
    whole = torch.where(whole.isinf(), torch.finfo(dtype).max, whole)
    share = torch.tensor(fraction, dtype=dtype)
    part, rest = split_total(whole, share)
    assert torch.equal(part + rest, whole)
    assert part >= 0
    assert rest >= 0
    near = torch.finfo(dtype).eps * float(whole) + torch.finfo(dtype).smallest_normal
    assert math.isclose(float(part), float(share) * float(whole), rel_tol=0, abs_tol=near)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_simpler_formulas_are_not_exact(dtype: torch.dtype) -> None:
    """The obvious formulas differ from the total in the last bit of some pixels."""
    generator = torch.Generator().manual_seed(0)
    total, fraction = torch.rand(2, 100_000, generator=generator, dtype=torch.float64).to(dtype)
    for naive in (fraction * total, total - (1 - fraction) * total):
        assert bool((naive + (1 - fraction) * total != total).any())
    assert bool((fraction * total + (total - fraction * total) != total).any())
    part, rest = split_total(total, fraction)
    assert torch.equal(part + rest, total)


def test_fractions_are_those_of_a_softmax() -> None:
    network = make_network("linear").double()
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        size, share = network.trunk(x).chunk(2, dim=1)
        images = network(x)
    fractions = torch.cat([share, torch.zeros_like(share)], dim=1).softmax(dim=1)
    expected = fractions * functional.softplus(size)
    torch.testing.assert_close(images, expected, rtol=1e-12, atol=1e-14)


def test_asinh_units_undo_the_scaling_of_the_input() -> None:
    x = torch.randn(1, 1, 16, 16)
    linear, asinh = make_network("linear"), make_network("asinh")
    with torch.no_grad():
        torch.testing.assert_close(torch.asinh(asinh.denoise(x)), linear.denoise(x))


def test_gradients_reach_total_and_fraction() -> None:
    total = torch.rand(5, dtype=torch.float64).requires_grad_()
    fraction = torch.rand(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(split_total, (total, fraction))


def test_a_crop_of_the_forward_pass_equals_the_whole() -> None:
    network = make_network().double()
    x, keep = torch.randn(1, 1, 24, 32, dtype=torch.float64), Box(5, 3, 17, 30)
    with torch.no_grad():
        part, whole = network.forward_crop(x, keep), network(x)[(..., *keep.slices)]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
