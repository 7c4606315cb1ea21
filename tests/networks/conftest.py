"""Fixtures: a small U-Net with random weights, its header and its model file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import ModelHeader, Output
from fcnpipe.networks.models.bundle import save_model
from fcnpipe.networks.models.certified_headers import make_header

OUTPUTS = (
    Output(name="blob", role="source"),
    Output(name="heat", role="centre"),
    Output(name="star", role="class:star"),
)


def small_unet(bands: int = 1, depth: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(bands, 3, base=4, depth=depth).eval()


@pytest.fixture(scope="session")
def small_header() -> ModelHeader:
    return make_header(small_unet(), "small", OUTPUTS, {"heat": 0.75, "blob": 0.25}, licence="MIT")


@pytest.fixture(scope="session")
def small_file(small_header: ModelHeader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    return save_model(path, small_unet(), small_header)
