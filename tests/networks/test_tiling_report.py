"""Reports of ``fcnpipe.reach`` and ``fcnpipe models check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Reach
from tests.networks import small_networks as small
from tests.networks.conftest import small_unet


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[[object], tuple[object, str, str]]:
    def call(model: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as leave:
            commands.main(["models", "check", str(model)])
        return leave.value.code, *capsys.readouterr()

    return call


def test_a_network_is_reported_with_reach_overhead_and_proof() -> None:
    network = small_unet().train()
    found = fcnpipe.reach(network)
    assert network.training
    assert (found.name, found.exactness, found.reason) == ("UNet", "exact", "")
    assert found.reach == Reach(23, 23, 23, 23, 4, 4, cell=22)
    assert found.halo == 24
    assert found.keeps_size
    assert found.overhead[256] == pytest.approx((304 / 256) ** 2)
    assert list(found.overhead) == [256, 512, 1024, 2048]
    assert found.certificate is not None
    assert found.certificate.kind == "proven"


def test_a_network_without_padding_is_exact_but_does_not_keep_the_size() -> None:
    found = fcnpipe.reach(UNet(3, 1, 1, 1, padding="valid"), bands=3)
    assert (found.exactness, found.keeps_size) == ("exact", False)
    assert found.sizes is not None
    assert str(found.sizes[0]) == "n = 2 m gives 2 m - 16, from 18 px"
    assert any("pad inside the network" in value for _, value in found.facts())


def test_each_axis_has_its_own_sizes() -> None:
    found = fcnpipe.reach(nn.Sequential(nn.Conv2d(1, 1, (3, 1)), nn.Conv2d(1, 1, (1, 5))))
    assert found.sizes is not None
    assert [rule.output(20) for rule in found.sizes] == [18, 16]
    assert found.reach == Reach(1, 1, 2, 2, cell=2)


def test_circular_padding_is_exact_away_from_the_border() -> None:
    found = fcnpipe.reach(small.after_conv(nn.Conv2d(2, 1, 5, padding=2, padding_mode="circular")))
    assert (found.exactness, found.certificate) == ("inside", None)
    assert "1 (Conv2d) pads with the opposite side of the image" in found.reason
    assert found.reach == Reach(2, 2, 2, 2, cell=2)


NEVER = {
    "1 (GroupNorm) normalises": ("freeze its statistics", nn.GroupNorm(1, 2)),
    "1 (AdaptiveAvgPool2d) pools over the whole image": (
        "pool over a fixed window",
        nn.AdaptiveAvgPool2d(1),
    ),
    "1 (Upsample) interpolates with align_corners=True": (
        "use align_corners=False",
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    ),
    "1 (DataDependent) branches on the values": ("torch.where", small.DataDependent()),
}


@pytest.mark.parametrize("reason", NEVER)
def test_a_network_that_cannot_be_tiled_is_reported_with_layer_and_fix(reason: str) -> None:
    fix, layer = NEVER[reason]
    found = fcnpipe.reach(small.after_conv(layer))
    assert (found.exactness, found.reach, found.halo, found.overhead) == ("never", None, None, {})
    assert reason in found.reason
    assert fix in found.reason.rpartition(": ")[2]


def test_the_check_of_a_model_prints_a_table(
    check: Callable[[object], tuple[object, str, str]], small_file: Path
) -> None:
    code, out, err = check(small_file)
    assert (code, err) == (0, "")
    assert "left 23, right 23, top 23, bottom 23 px" in out
    assert "n = 4 m gives 4 m" in out
    assert "1.41 at window 256" in out
    assert "proven: tiles differ from the whole by" in out
    assert check("none")[0] == 0


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_the_check_of_a_program_prints_a_table_or_one_line(
    check: Callable[[object], tuple[object, str, str]], tmp_path: Path
) -> None:
    sizes = {2: torch.export.Dim("y", min=8), 3: torch.export.Dim("x", min=8)}
    networks = {"valid": nn.Conv2d(1, 1, 5), "norm": small.after_conv(nn.GroupNorm(1, 2))}
    for name, network in networks.items():
        program = torch.export.export(
            network.eval(), (torch.zeros(1, 1, 64, 64),), dynamic_shapes=(sizes,)
        )
        torch.export.save(program, tmp_path / f"{name}.pt2")
    code, out, err = check(tmp_path / "valid.pt2")
    assert (code, err) == (0, "")
    assert "any n gives n - 4" in out
    code, out, err = check(tmp_path / "norm.pt2")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "1 (GroupNorm) normalises" in err
