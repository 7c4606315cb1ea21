from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from safetensors.torch import load_file, save_file
from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks import load_model
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import ModelHeader, Reach
from fcnpipe.networks.models.headers import check_model, make_header
from fcnpipe.networks.reach.analysis import analyse
from fcnpipe.networks.reach.certificate import (
    TOLERANCE,
    certify,
    declare,
    probe,
    tiling_error,
)
from tests.networks import small_networks as small
from tests.networks.conftest import OUTPUTS, small_unet


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_a_unet_is_proven_and_a_shorter_halo_is_seen_to_fail(upsampling: str) -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, 4, 2, upsampling=upsampling).eval()  # type: ignore[arg-type]
    certificate = certify(network)
    assert certificate.kind == "proven"
    assert certificate.probed
    assert certificate.error is not None
    assert certificate.error <= TOLERANCE
    assert certificate.error_short > 1e-6
    assert next(network.parameters()).dtype == torch.float32


def test_what_is_read_off_the_graph_is_what_nans_and_tiles_show() -> None:
    drawn: set[str] = set()

    # Not shrunk: following a graph takes a while.
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


def test_one_pixel_less_is_refused() -> None:
    network = small_unet()
    for short in (Reach(22, 23, 23, 23, 4, 4), Reach(23, 23, 23, 22, 4, 4)):
        with pytest.raises(ModelError, match="NaNs in the image show"):
            certify(network, 1, short)


def test_a_stride_that_is_too_small_is_refused() -> None:
    with pytest.raises((ModelError, RuntimeError)):
        certify(small_unet(), 1, Reach(30, 30, 30, 30, 2, 2))


def test_a_window_step_out_of_phase_is_as_bad_as_no_halo() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)).double()
    assert tiling_error(network, 1, Reach(1, 1, 1, 1, 2, 2), 2) == 0
    assert tiling_error(network, 1, Reach(1, 1, 1, 1, 1, 1), 1) > 0.1


def test_tiles_show_what_the_probe_misses() -> None:
    torch.manual_seed(0)
    network, claim = small.StretchedCorners(), Reach(4, 4, 4, 4, 2, 2)
    seen = probe(network, 1, claim)
    assert seen.furthest <= claim.furthest
    with pytest.raises(ModelError, match="depends on the image's size"):
        certify(network, 1, claim)


def test_unpooling_is_proven_though_nans_show_less() -> None:
    torch.manual_seed(0)
    certificate = certify(small.SegNetLike())
    assert not certificate.probed
    assert certificate.error <= TOLERANCE < certificate.error_short


def test_two_dimensions_at_once_and_any_size() -> None:
    """The certificate runs on strips; here are windows in both axes, of an image padded."""
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


def test_a_declared_reach_survives_the_file(small_header: ModelHeader) -> None:
    black_box = small_header.model_copy(update={"certificate": declare(Reach(5, 5, 5, 5))})
    assert ModelHeader.model_validate_json(black_box.model_dump_json()) == black_box


def test_a_network_in_training_is_described_as_it_will_run() -> None:
    network = small_unet(bands=2, depth=1).train()
    header = make_header(network, "pair", OUTPUTS, {"heat": 1.0}, version="3")
    assert network.training
    assert (header.bands, header.version, header.reach.furthest) == (2, "3", 9)
    assert header.certificate is not None
    assert header.certificate.reach == header.reach


def test_models_are_checked_anew(small_file: Path, small_header: ModelHeader) -> None:
    assert check_model(small_file).reach == small_header.reach
    assert check_model("none") == load_model("none").header.certificate


def test_a_header_that_lies_is_found_out(small_file: Path, tmp_path: Path) -> None:
    header = json.loads(load_model(small_file).header.model_dump_json())
    header["reach"]["left"] = 8
    path = tmp_path / "liar.safetensors"
    save_file(load_file(small_file), path, {"fcnpipe": json.dumps(header)})
    with pytest.raises(ModelError, match="its header says"):
        check_model(path)
