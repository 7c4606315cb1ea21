"""Predictor of torch networks: maps, activations, scaling, devices and arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fcnpipe.core.errors import ModelError, SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.networks import Bundle, Model, load_model
from fcnpipe.networks.base import ModelHeader, Output, Scaling, Share
from fcnpipe.networks.inference.predictor import (
    TorchPredictor,
    activate,
    choose_device,
    choose_precision,
    scale_input,
)
from fcnpipe.testing.networks import NetworkTests, predict_in_windows, starry
from tests.networks.conftest import small_unet


class TestUNet(NetworkTests):
    @pytest.fixture
    def model(self, small_file: Path) -> Model:
        return load_model(small_file)


@pytest.fixture
def model(small_file: Path) -> Model:
    return load_model(small_file)


def test_maps_equal_the_outputs_of_the_network(model: Model) -> None:
    snr = starry(1, (32, 48))
    with torch.no_grad():
        logits = small_unet()(torch.asinh(torch.from_numpy(snr))[None])[0]
    outputs = torch.sigmoid(logits).numpy()
    maps = model.predictor("cpu")(snr)
    np.testing.assert_allclose(maps.probability, outputs[[0, 2]], atol=2e-6)
    np.testing.assert_allclose(maps.elevation, 0.25 * outputs[0] + 0.75 * outputs[1], atol=2e-6)


def test_an_output_below_its_floor_adds_no_elevation(small_file: Path) -> None:
    bundle = load_model(small_file)
    assert isinstance(bundle, Bundle)
    names = [output.name for output in bundle.header.outputs]
    shares = {names[0]: Share(weight=0.4, floor=0.5), names[1]: Share(weight=0.6)}
    model = replace(bundle, header=bundle.header.model_copy(update={"elevation": shares}))
    snr = starry(1, (32, 48))
    with torch.no_grad():
        first, second, *_ = torch.sigmoid(
            small_unet()(torch.asinh(torch.from_numpy(snr))[None])[0]
        ).numpy()
    assert (first < 0.5).any()
    assert (first > 0.5).any()
    expected = 0.4 * np.where(first > 0.5, 2 * first - 1, 0) + 0.6 * second
    np.testing.assert_allclose(model.predictor("cpu")(snr).elevation, expected, atol=2e-6)


def test_each_output_has_its_activation(small_header: ModelHeader) -> None:
    outputs = (
        Output(name="a", role="source"),
        Output(name="b", role="class:b", activation="softmax"),
        Output(name="c", role="restored"),
        Output(name="d", role="class:d", activation="softmax"),
        Output(name="e", role="topography", activation="linear"),
        Output(name="f", role="component:f", activation="sigmoid"),
    )
    header = small_header.model_copy(update={"outputs": outputs})
    logits = torch.from_numpy(starry(5, (4, 6))).transpose(0, 2)  # arbitrary numbers
    with pytest.raises(ModelError, match="returns 5 channels but its header names 6"):
        activate(logits, header)
    logits = torch.cat([logits, logits[..., :1] + 1], dim=-1)
    a, b, c, d, e, f = logits.double().numpy().transpose(2, 0, 1)
    odds = 1 / (1 + np.exp(d - b))
    expected = [1 / (1 + np.exp(-a)), odds, c, 1 - odds, e.clip(0, 1), 1 / (1 + np.exp(-f))]
    found = activate(logits, header).numpy().transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_maps_are_made_of_the_outputs(model: Model) -> None:
    snr, keep = starry(1, (32, 48)), Box(4, 8, 20, 40)
    predictor = model.predictor("cpu")
    outputs, maps = predictor.outputs(snr, keep), predictor(snr, keep)
    assert outputs.dtype == np.float32
    assert outputs.shape == (3, 16, 32)
    np.testing.assert_array_equal(outputs[[0, 2]], maps.probability)


def test_extra_channels_are_not_scaled(small_header: ModelHeader) -> None:
    header = small_header.model_copy(update={"extra": ("mask", "prior")})
    inputs = []

    class Recorder(torch.nn.Module):
        def forward(self, window: torch.Tensor) -> torch.Tensor:
            inputs.append(window.numpy()[0])
            return window

    snr = starry(3, (8, 8))
    TorchPredictor(Recorder(), header)(snr)
    np.testing.assert_allclose(inputs[0][0], np.arcsinh(snr[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(inputs[0][1:], snr[1:])
    with pytest.raises(ModelError, match=r"1 band\(s\) and mask, prior, the window has 1"):
        TorchPredictor(Recorder(), header)(snr[:1])


def test_auto_precision_of_an_image_is_fp32(
    small_header: ModelHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    outputs = (Output(name="clean", role="restored"), *small_header.outputs)
    header = small_header.model_copy(update={"outputs": outputs})
    assert choose_precision("auto", "cpu", small_header) == "bf16"
    assert choose_precision("auto", "cpu", header) == "fp32"
    assert choose_precision("bf16", "cpu", header) == "bf16"


def test_a_halo_too_short_changes_the_maps(model: Model) -> None:
    predictor, snr = model.predictor("cpu"), starry(1, (96, 96))
    whole = predictor(snr).elevation
    halo = model.header.reach.minimum_halo
    exact = predict_in_windows(predictor, snr, 32, halo).elevation
    short = predict_in_windows(predictor, snr, 32, halo - model.stride).elevation
    assert np.abs(exact - whole).max() < 2e-5
    assert np.abs(short - whole).max() > 2e-5


def test_bf16_is_close(model: Model) -> None:
    snr = starry(1, (32, 32))
    full, half = (model.predictor("cpu", precision)(snr) for precision in ("fp32", "bf16"))
    assert half.elevation.dtype == np.float32
    assert 0 < np.abs(half.elevation - full.elevation).max() < 0.1


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_follows_the_hardware(
    model: Model, monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert model.precision("auto", "cpu") == expected
    assert model.precision("fp32", "cpu") == "fp32"
    assert model.predictor("cpu", "auto").precision == expected


def test_the_number_of_threads_is_set(model: Model) -> None:
    before = torch.get_num_threads()
    try:
        model.predictor("cpu", threads=2)(starry(1, (8, 8)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wide", [True, False])
def test_scaling_is_asinh(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    monkeypatch.setattr("fcnpipe.networks.inference.predictor._arcsinh_has_avx512", lambda: wide)
    snr = np.float32([[[-3e38, -5, -0.0, 0, 1e-3, 2, 1e6]]])
    np.testing.assert_allclose(
        scale_input(snr, Scaling()), np.arcsinh(snr.astype(float)), rtol=1e-6
    )
    column_major = np.asfortranarray(starry(2, (5, 7)))
    np.testing.assert_allclose(
        scale_input(column_major, Scaling()), np.arcsinh(column_major), atol=1e-6
    )
    soft = scale_input(snr, Scaling(softening=3.0))
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, np.arcsinh(snr.astype(float) / 3), rtol=1e-6)


def test_unknown_options_and_other_bands_are_refused(model: Model) -> None:
    with pytest.raises(SpecError, match="auto, fp32, bf16 or int8"):
        model.predictor("cpu", precision="fp8")
    with pytest.raises(SpecError, match="auto, cpu or cuda"):
        model.predictor("tpu")
    with pytest.raises(ModelError, match=r"takes 1 band\(s\), the window has 2"):
        model.predictor("cpu")(starry(2, (8, 8)))


def test_cuda_is_refused_on_a_machine_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(SpecError, match="no CUDA device"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu_and_with_itself(model: Model) -> None:
    snr = starry(1, (64, 64))
    predictor = model.predictor("cuda")
    first, again, cpu = predictor(snr), predictor(snr), model.predictor("cpu")(snr)
    np.testing.assert_array_equal(first.elevation, again.elevation)
    np.testing.assert_allclose(first.elevation, cpu.elevation, atol=2e-5)
    np.testing.assert_allclose(first.probability, cpu.probability, atol=2e-5)
