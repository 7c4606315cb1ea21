"""Every architecture: published geometry, NaN probe, tile versus whole, and model files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcnpipe.core.errors import SpecError
from fcnpipe.networks.architectures.registry import (
    architecture,
    architecture_name,
    list_architectures,
)
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import ModelHeader, Output, Reach
from fcnpipe.networks.models.bundle import save_model
from fcnpipe.networks.models.loading import load_model
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import TOLERANCE, declare, probe, tiling_error
from tests.networks.activation_scaling import standardise_activations

VISIBLE = 1e-6
"""Minimum difference of two outputs, of order 1, that counts as different."""


@dataclass(frozen=True, eq=False)
class Row:
    """An architecture: its published geometry, and the arguments of a narrow network of the same geometry."""

    name: str
    arguments: dict[str, Any]
    parameters: int
    stride: int
    furthest: int
    halo: int
    small: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.arguments.values())])

    def build(self) -> nn.Module:
        """Build the published size, without memory for its weights."""
        with torch.device("meta"):
            return architecture(self.name)(**self.arguments)


NARROW = {"width": 1 / 64}
NARROW_FCN = {"width": 1 / 256, "outputs": 2}
TABLE = [
    Row("pang", {}, 1_465, 1, 4, 4, {}),
    Row("ciresan", {}, 219_290, 1, 47, 47, {"maps": 2, "hidden": 3}),
    Row("ciresan", {"members": 2}, 2 * 219_290, 1, 47, 47, {"maps": 2, "hidden": 3}),
    Row("hradis", {"layers": 15}, 2_256_195, 1, 25, 25, NARROW),
    Row("hradis", {"layers": 10}, 1_367_923, 1, 17, 17, NARROW),
    Row("fcn", {"coarseness": 32}, 134_346_581, 32, 233, 256, NARROW_FCN),
    Row("fcn", {"coarseness": 16}, 134_357_354, 32, 241, 256, NARROW_FCN),
    Row("fcn", {"coarseness": 8}, 134_362_751, 32, 245, 256, NARROW_FCN),
    Row("unet", {"depth": 2, "base": 16}, 116_787, 4, 23, 24, {"base": 2}),
    Row("unet", {"depth": 3, "base": 16}, 481_779, 8, 51, 56, {"base": 2}),
    Row("unet", {"depth": 4, "base": 64}, 31_030_723, 16, 107, 112, {"base": 2}),
    Row("unet", {"depth": 5, "base": 16}, 7_775_347, 32, 219, 224, {"base": 2}),
    Row("segnet", {}, 29_449_355, 32, 211, 224, {"width": 1 / 32}),
    Row("segnet_basic", {}, 1_416_587, 16, 105, 112, {"width": 1 / 16}),
    Row("bulge_disk", {}, 481_762, 8, 51, 56, {"base": 2}),
]
UNPOOLING = ("segnet", "segnet_basic")
"""Networks with max-unpooling: a NaN is always the maximum, so it shows less than the reach."""
every_row = pytest.mark.parametrize("row", TABLE, ids=str)


@cache
def published(row: Row) -> Reach:
    """Analyse the graph of the network of published size, without running it."""
    module = row.build().to_empty(device="cpu").eval()
    return analyse(module, module.arguments["bands"])


@cache
def small(row: Row, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a narrow network of the same geometry, whose logits are of order 1."""
    torch.manual_seed(0)
    module = architecture(row.name)(**{**row.arguments, **row.small})
    return standardise_activations(module, module.arguments["bands"]).eval().to(dtype)


@every_row
def test_the_number_of_weights_is_the_published_one(row: Row) -> None:
    assert sum(p.numel() for p in row.build().parameters()) == row.parameters


@every_row
def test_the_published_size_has_the_reach_of_the_table(row: Row) -> None:
    reach = published(row)
    assert (reach.top, reach.bottom, reach.left, reach.right) == (row.furthest,) * 4
    assert (reach.stride_y, reach.stride_x, reach.halo) == (row.stride, row.stride, row.halo)
    assert getattr(row.build(), "stride", 1) == row.stride


@every_row
def test_nans_show_the_reach(row: Row) -> None:
    module, reach = small(row, torch.float32), published(row)
    seen = probe(module, module.arguments["bands"], reach)
    if row.name in UNPOOLING:
        assert seen.cell == reach.cell
        assert reach.furthest - row.stride < seen.furthest <= reach.furthest
    else:
        assert seen == reach


@every_row
def test_tiles_equal_the_whole_and_differ_with_a_shorter_halo(row: Row) -> None:
    module, reach = small(row), published(row)
    bands, halo = module.arguments["bands"], reach.minimum_halo
    assert tiling_error(module, bands, reach, halo) <= TOLERANCE
    assert tiling_error(module, bands, reach, row.halo) <= TOLERANCE
    assert tiling_error(module, bands, reach, halo - row.stride) > VISIBLE


@every_row
def test_shifts_by_the_stride_commute_and_others_do_not(row: Row) -> None:
    """A window whose origin is off by one pixel is a shift by one."""
    module = small(row)
    reach, stride = row.furthest, row.stride
    length = 2 * row.halo + 4 * stride
    strip = torch.randn(1, module.arguments["bands"], stride, length, dtype=torch.float64)
    whole, origins = run(module, strip), (stride, 2 * stride, 1)
    errors = [difference(module, strip, whole, origin, reach) for origin in origins]
    assert max(errors[:2]) <= TOLERANCE
    assert errors[2] > VISIBLE if stride > 1 else errors[2] <= TOLERANCE


def difference(module: nn.Module, strip: Tensor, whole: Tensor, origin: int, reach: int) -> float:
    """Compare a window that starts at ``origin`` with the whole, beyond the reach of its edges."""
    length = strip.shape[-1] - 2 * getattr(module, "stride", 1)
    part = run(module, strip[..., origin : origin + length])
    inner = slice(reach, length - reach)
    return float((part[..., inner] - whole[..., origin : origin + length][..., inner]).abs().max())


@every_row
def test_the_border_has_an_effect_within_the_reach_only(row: Row) -> None:
    module = small(row)
    before = 2 * row.stride
    length = before + 2 * row.halo
    strip = torch.randn(1, module.arguments["bands"], row.stride, length, dtype=torch.float64)
    whole, cut = run(module, strip)[..., before:], run(module, strip[..., before:])
    effect = (whole - cut).abs().amax((0, 1, 2))
    assert effect[0] > 1e-3
    assert effect[row.furthest :].max() <= TOLERANCE


def run(module: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(image)
    return out


@every_row
def test_arguments_and_a_file_restore_the_network(row: Row, tmp_path: Any) -> None:
    module, reach = small(row, torch.float32), published(row)
    arguments = module.arguments
    assert type(module)(**arguments).arguments == arguments
    names = tuple(f"out{i}" for i in range(arguments["outputs"]))
    header = ModelHeader(
        name=str(row),
        architecture=architecture_name(module),
        arguments=arguments,
        bands=arguments["bands"],
        outputs=tuple(
            Output(name=n, role="centre" if i else "source") for i, n in enumerate(names)
        ),
        elevation={names[0]: 1.0},
        reach=reach,
        certificate=declare(reach),
    )
    restored = load_model(save_model(tmp_path / "model.safetensors", module, header)).module()
    image = torch.randn(1, arguments["bands"], row.stride, 2 * row.stride)
    assert torch.equal(run(restored, image), run(module, image))


def test_a_published_width_is_checked_by_the_benchmark() -> None:
    assert check_published("pang")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("FCNPIPE_SLOW" not in os.environ, reason="ten minutes and 3 GB: FCNPIPE_SLOW=1")
def test_fcn_8s_at_its_published_width_tiles_exactly() -> None:
    assert check_published("fcn")


def check_published(name: str) -> bool:
    command = [sys.executable, "-m", "benchmarks.full_width_networks", name]
    root = Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, check=False).returncode == 0


def test_every_architecture_is_in_the_table() -> None:
    assert {row.name for row in TABLE} == set(list_architectures())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, {"bands": 0}) for name in list_architectures()),
        *((name, {"outputs": 0}) for name in list_architectures()),
        *((name, {"width": 0.0}) for name in ("fcn", "hradis", "segnet", "segnet_basic")),
        ("pang", {"activation": "relu"}),
        ("pang", {"hidden": 0}),
        ("ciresan", {"activation": "sigmoid"}),
        ("ciresan", {"members": 0}),
        ("ciresan", {"padding": "reflect"}),
        ("fcn", {"coarseness": 4}),
        ("hradis", {"layers": 12}),
        ("hradis", {"padding": "mirror"}),
        ("bulge_disk", {"outputs": 3}),
        ("bulge_disk", {"units": "mag"}),
    ],
)
def test_wrong_arguments_are_refused_by_name(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"{next(iter(wrong))} = "), torch.device("meta"):
        architecture(name)(**wrong)


def test_the_published_overlap_tiles_of_the_unet_are_out_of_phase() -> None:
    """Windows of 572 px at steps of 388 px, as published: 388 is not a multiple of 16, 384 is."""
    torch.manual_seed(0)
    network = standardise_activations(UNet(1, 2, 2, 4, padding="valid"), 1, 188).double()
    strip = torch.randn(1, 1, 188, 972, dtype=torch.float64)
    whole = run(network, strip)
    assert whole.shape[-1] == 972 - 184

    def error(step: int) -> float:
        second = run(network, strip[..., step : step + 572])
        assert second.shape[-1] == 388
        return float((second - whole[..., step : step + 388]).abs().max())

    assert error(384) <= TOLERANCE
    assert error(388) > 0.1
