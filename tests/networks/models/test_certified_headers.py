"""Headers of models: construction from a network, and check of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fcnpipe.core.errors import ModelError
from fcnpipe.networks import load_model
from fcnpipe.networks.base import ModelHeader
from fcnpipe.networks.models.certified_headers import check_model, make_header
from tests.networks.conftest import OUTPUTS, small_unet


def test_a_network_in_training_mode_is_analysed_in_evaluation_mode() -> None:
    network = small_unet(bands=2, depth=1).train()
    header = make_header(network, "pair", OUTPUTS, {"heat": 1.0}, version="3")
    assert network.training
    assert (header.bands, header.version, header.reach.furthest) == (2, "3", 9)
    assert header.certificate is not None
    assert header.certificate.reach == header.reach


def test_a_model_file_is_proven_again(small_file: Path, small_header: ModelHeader) -> None:
    assert check_model(small_file).reach == small_header.reach
    assert check_model("none") == load_model("none").header.certificate


def test_a_header_with_another_reach_than_its_network_is_refused(
    small_file: Path, tmp_path: Path
) -> None:
    header = json.loads(load_model(small_file).header.model_dump_json())
    header["reach"]["left"] = 8
    path = tmp_path / "wrong.safetensors"
    save_file(load_file(small_file), path, {"fcnpipe": json.dumps(header)})
    with pytest.raises(ModelError, match="its header states"):
        check_model(path)


def test_a_network_without_its_arguments_is_refused() -> None:
    network = small_unet(bands=1, depth=1)
    del network.arguments
    with pytest.raises(ModelError, match="has no attribute 'arguments'"):
        make_header(network, "bare", OUTPUTS, {"heat": 1.0})
