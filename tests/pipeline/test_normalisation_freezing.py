"""A network frozen on an image has the same output in tiles as the original on the whole image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from astropy.io import fits
from torch import Tensor, nn

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import ModelError, StoreError
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.networks import load_model
from fcnpipe.networks.base import Scaling
from fcnpipe.pipeline.normalisation_freezing import freeze, read_sample

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # from torch, on saving
SHAPE = (181, 230)
LINEAR = {"kind": "linear", "offset": 100.0, "scale": 5.0}


class Normed(nn.Module):
    """A network of two levels with a normalisation of a different kind on each."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.fine = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.deep, self.coarse = nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.relu(self.fine(self.look(x)))
        far = self.up(torch.relu(self.coarse(self.deep(self.down(near)))))
        return self.head(torch.cat([near, far], 1))


def save(network: nn.Module, path: Path, step: int) -> Path:
    sizes = {2 + i: step * torch.export.Dim(name, min=8) for i, name in enumerate("yx")}
    example = (torch.zeros(1, 1, 64, 64),)
    torch.export.save(torch.export.export(network, example, dynamic_shapes=(sizes,)), path)
    return path


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Normed().eval()


@pytest.fixture(scope="module")
def program(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network, tmp_path_factory.mktemp("normed") / "net.pt2", 2)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.fits"
    pixels = np.random.default_rng(0).normal(100, 5, SHAPE)
    pixels[50:60, 60:90] += 200
    fits.writeto(path, pixels.astype(np.float32))
    return path


def spec_of(image: Path) -> RunSpec:
    return make_spec(image=(str(image),), out="sample.zarr")


@pytest.mark.parametrize("scaling", [{}, LINEAR])
def test_tiles_of_the_frozen_network_equal_the_whole_image(
    network: nn.Module, program: Path, image: Path, tmp_path: Path, scaling: dict[str, Any]
) -> None:
    given = tmp_path / "net.pt2"
    given.write_bytes(program.read_bytes())
    outputs = [{"name": "out", "role": "component:out"}]
    given.with_suffix(".json").write_text(json.dumps({"scaling": scaling, "outputs": outputs}))
    with pytest.raises(ModelError, match=r"fine \(GroupNorm\) .*fcnpipe models freeze"):
        load_model(given)
    out = tmp_path / "frozen.pt2"
    with pytest.raises(SystemExit) as leave:
        commands.main(["models", "freeze", str(given), str(image), str(out)])
    assert leave.value.code == 0
    model = load_model(out)
    assert model.header.certificate is not None
    assert (model.header.certificate.kind, model.halo) == ("proven", 4)
    settings = {"window": 64, "engine": "serial", "quiet": True, "precision": "fp32"}
    fcnpipe.predict(image, tmp_path / "out.zarr", model=str(out), **settings)
    found = xr.open_zarr(tmp_path / "out.zarr", group="image/0", consolidated=False).out.values
    sample = read_sample(spec_of(image), 1, Scaling(**scaling), (2048, 2))
    assert sample.shape == (1, 1, 182, 230)
    with torch.no_grad():
        wanted = network(sample)[0, 0, : SHAPE[0], : SHAPE[1]].numpy()
    if scaling:
        noise = np.float32(5)
    else:
        stored = xr.open_zarr(tmp_path / "out.zarr", group="background", consolidated=False)
        noise = float(stored.noise.mean())
        assert stored.noise.std() < 0.1 * noise
    np.testing.assert_allclose(found / noise, wanted, atol=2e-5 if scaling else 0.3)
    assert np.abs(found / noise - wanted).mean() < (1e-5 if scaling else 0.03)


def test_the_sample_of_a_large_image_is_its_middle(
    program: Path, image: Path, tmp_path: Path
) -> None:
    sample = read_sample(spec_of(image), 1, Scaling(**LINEAR), (64, 2))
    pixels = fits.getdata(image)[58:122, 82:146]
    np.testing.assert_allclose(sample[0, 0], (pixels - 100) / 5, rtol=1e-6)
    assert freeze(program, tmp_path / "a.pt2", spec_of(image), 64).halo == 4


def test_unsuitable_networks_are_refused(program: Path, image: Path, tmp_path: Path) -> None:
    spec, out = spec_of(image), tmp_path / "out.pt2"
    plain = save(nn.Conv2d(1, 1, 3, padding=1).eval(), tmp_path / "plain.pt2", 1)
    with pytest.raises(ModelError, match="calls no GroupNorm"):
        freeze(plain, out, spec)
    with pytest.raises(ModelError, match=r"only exported programs \(.pt2\) can be frozen"):
        freeze("default", out, spec)
    pooled = nn.Sequential(nn.GroupNorm(1, 1), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.raises(ModelError, match=r"1 \(AdaptiveAvgPool2d\) pools"):
        freeze(save(pooled, tmp_path / "pooled.pt2", 1), out, spec)
    with pytest.raises(StoreError, match="cannot write"):
        freeze(program, tmp_path / "absent" / "out.pt2", spec)
    assert not out.exists()
