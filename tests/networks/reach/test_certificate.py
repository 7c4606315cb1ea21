"""The proof of a reach: NaN probe and tile-versus-whole comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import ModelHeader, Reach
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import TOLERANCE, certify, declare, probe, tiling_error
from tests.networks import small_networks as small
from tests.networks.conftest import small_unet


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_a_unet_is_proven_and_a_shorter_halo_fails(upsampling: str) -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 4, 2, upsampling=upsampling).eval()  # type: ignore[arg-type]
    certificate = certify(network)
    assert certificate.kind == "proven"
    assert certificate.probed
    assert certificate.error is not None
    assert certificate.error <= TOLERANCE
    assert certificate.error_short > 1e-6
    assert next(network.parameters()).dtype == torch.float32


def test_the_reach_of_the_graph_is_the_reach_that_nans_and_tiles_show() -> None:
    drawn: set[str] = set()

    # Examples are not shrunk, because the analysis of each graph takes long.
    @settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
    @given(small.networks())
    def check(network: nn.Module) -> None:
        drawn.add(str(network))
        reach = analyse(network)
        assert probe(network, 1, reach) == reach
        certificate = certify(network, 1, reach)
        assert certificate.probed
        assert certificate.halo == reach.minimum_halo

    check()
    assert len(drawn) >= 12


def test_a_reach_one_pixel_too_small_is_refused() -> None:
    network = small_unet()
    for short in (Reach(22, 23, 23, 23, 4, 4), Reach(23, 23, 23, 22, 4, 4)):
        with pytest.raises(ModelError, match="NaNs in the image show"):
            certify(network, 1, short)


def test_a_stride_that_is_too_small_is_refused() -> None:
    with pytest.raises((ModelError, RuntimeError)):
        certify(small_unet(), 1, Reach(30, 30, 30, 30, 2, 2))


def test_tiles_out_of_phase_differ_from_the_whole() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)).double()
    assert tiling_error(network, 1, Reach(1, 1, 1, 1, 2, 2), 2) == 0
    assert tiling_error(network, 1, Reach(1, 1, 1, 1, 1, 1), 1) > 0.1


def test_tiles_show_what_the_probe_misses() -> None:
    torch.manual_seed(0)
    network, claim = small.AlignCorners(), Reach(4, 4, 4, 4, 2, 2)
    seen = probe(network, 1, claim)
    assert seen.furthest <= claim.furthest
    with pytest.raises(ModelError, match="depends on the image's size"):
        certify(network, 1, claim)


def test_unpooling_is_proven_though_nans_show_less() -> None:
    torch.manual_seed(0)
    certificate = certify(small.SegNetLike())
    assert not certificate.probed
    assert certificate.error is not None
    assert certificate.error <= TOLERANCE < certificate.error_short


def test_tiles_along_both_axes_of_a_padded_image_equal_the_whole() -> None:
    """The certificate runs on strips; these tiles are cut along both axes at once."""
    network = small_unet().double()
    rng = np.random.default_rng(0)
    image = np.pad(rng.normal(size=(1, 1, 101, 93)), [(0, 0), (0, 0), (0, 3), (0, 3)], "edge")
    canvas, halo = torch.from_numpy(image), 24
    with torch.no_grad():
        whole = network(canvas)
        for y in range(0, 104, 32):
            for x in range(0, 96, 32):
                y0, x0 = max(y - halo, 0), max(x - halo, 0)
                part = network(canvas[..., y0 : y + 32 + halo, x0 : x + 32 + halo])
                core = whole[..., y : y + 32, x : x + 32]
                cut = part[..., y - y0 :, x - x0 :][..., : core.shape[2], : core.shape[3]]
                assert float((cut - core).abs().max()) <= TOLERANCE


def test_a_declared_reach_is_marked_unproven() -> None:
    certificate = declare(Reach(5, 5, 5, 5, 2, 2))
    assert (certificate.kind, certificate.halo, certificate.probed) == ("declared", 6, False)
    assert certificate.error is None


def test_a_declared_reach_survives_json(small_header: ModelHeader) -> None:
    black_box = small_header.model_copy(update={"certificate": declare(Reach(5, 5, 5, 5))})
    assert ModelHeader.model_validate_json(black_box.model_dump_json()) == black_box
