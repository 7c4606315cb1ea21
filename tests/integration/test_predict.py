"""`predict` end to end: outputs of any network, in the units of the image, independent of tiles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import (
    ModelError,
    SpecError,
    StoreError,
    TilesFailed,
    VerificationError,
)
from fcnpipe.core.spec import make_spec
from fcnpipe.networks import load_model
from fcnpipe.networks.architectures.bulge_disk import BulgeDisk
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Output, Scaling
from fcnpipe.networks.models.bundle import save_model
from fcnpipe.networks.models.certified_headers import check_model, make_header
from fcnpipe.pipeline import run
from fcnpipe.pipeline.session import open_session
from fcnpipe.pipeline.stages import prediction
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.science import normalisation
from fcnpipe.stores import ZarrStore
from tests.integration.scenes import assert_same_arrays, read_arrays

SHAPE = (200, 290)
LEVEL = 1000.0
OUTPUTS = (
    Output(name="clean", role="restored"),
    Output(name="glow", role="component:glow"),
    Output(name="blob", role="source"),
    Output(name="hill", role="elevation"),
    Output(name="star", role="class:star", activation="softmax"),
    Output(name="galaxy", role="class:galaxy", activation="softmax"),
)
RAW = Scaling(kind="linear")
EXTRA = ("position_y", "position_x", "mask", "prior")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def flat(folder: Path) -> tuple[Path, np.ndarray]:
    """Noise with a gradient on a high sky level, with some stars and missing pixels."""
    rng = np.random.default_rng(5)
    image = LEVEL + rng.normal(0, 5, SHAPE) + 0.05 * np.arange(SHAPE[1])
    image[rng.random(SHAPE) > 0.995] += 3000
    image[50:53, 70:74] = np.nan
    fits.writeto(folder / "flat.fits", image.astype(np.float32))
    return folder / "flat.fits", image.astype(np.float32)


@pytest.fixture(scope="module")
def field(flat: tuple[Path, np.ndarray]) -> Path:
    return flat[0]


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Path:
    """A network with random weights and an output of each role."""
    torch.manual_seed(2)
    network = UNet(1, len(OUTPUTS), base=4, depth=2).eval()
    with torch.no_grad():
        network.head.weight *= 0.3
    return save_model(folder / "mixed.safetensors", network, make_header(network, "m", OUTPUTS, {}))


def identity(channels: int) -> UNet:
    """Return a U-Net that is the identity: each channel and its negative pass through the ReLUs."""
    network = UNet(channels, channels, base=2 * channels, depth=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for i in range(channels):
            for sign in (0, 1):
                network.down[0][0].weight[2 * i + sign, i, 1, 1] = 1 - 2 * sign
                network.head.weight[i, 2 * i + sign] = 1 - 2 * sign
        for layer in (network.down[0][2], network.join[-1][0], network.join[-1][2]):
            for i in range(2 * channels):
                layer.weight[i, i, 1, 1] = 1
    return network


def save_identity(path: Path, outputs: list[Output], **fields: Any) -> Path:
    network = identity(len(outputs))
    return save_model(path, network, make_header(network, path.stem, outputs, {}, **fields))


def predict(image: Any, out: Path, model: Path | str, **options: Any) -> xr.Dataset:
    settings = {"window": 64, "engine": "serial", "quiet": True} | options
    fcnpipe.predict(image, out, model=str(model), **settings)
    return xr.open_zarr(out, group="image/0", consolidated=False)


# --- stored arrays --------------------------------------------------------------------------------


def test_each_output_is_an_array(field: Path, mixed: Path, tmp_path: Path) -> None:
    result = fcnpipe.predict(field, tmp_path / "out.zarr", model=str(mixed), quiet=True, window=64)
    assert result.outputs == tuple(output.name for output in OUTPUTS)
    tree = xr.open_datatree(tmp_path / "out.zarr", engine="zarr", decode_cf=False)
    image = tree["image/0"].to_dataset()
    kinds = ["float32", "float32", "uint8", "uint16", "uint8", "uint8"]
    for output, kind in zip(OUTPUTS, kinds, strict=True):
        assert (image[output.name].dtype, image[output.name].dims) == (kind, ("y", "x"))
        assert image[output.name].attrs["role"] == output.role
        assert image[output.name].attrs["long_name"]
    assert set(image) == {*result.outputs, "flags", "wcs"}
    assert set(tree.children) == {"image", "background", "tiles", "checksums"}
    assert tree.attrs["status"] == "complete"
    assert not (tmp_path / "out.parquet").exists()
    total = image.star.values.astype(int) + image.galaxy.values
    assert (np.abs(total - 255) <= 1).all()
    assert len(np.unique(image.hill)) > 1000


def test_outputs_are_those_of_the_whole_image(field: Path, mixed: Path, tmp_path: Path) -> None:
    image = predict(field, tmp_path / "out.zarr", mixed)
    tree = xr.open_datatree(tmp_path / "out.zarr", engine="zarr")
    assert float(image.hill.max()) <= 1
    spec = make_spec(image=(str(field),), out="unused.zarr", model=str(mixed), window=512)
    with open_session(
        spec.model_copy(update={"out": str(tmp_path / "w.zarr")}), "predict"
    ) as session:
        for stage in session.stages[:1]:
            run.run_stage(session, stage, SilentObserver())
        masked, sky = session.job.image, session.job.sky
        patch = masked.read_patch(masked.frame, sky)
    padded = normalisation.pad_high(patch.significance(1), (200, 292))
    module = load_model(mixed).module()
    with torch.no_grad():
        values = module(torch.asinh(torch.from_numpy(padded)[None]))[0, :, :, :290].double().numpy()
    glow, clean = values[1] * patch.noise[0], np.sinh(values[0]) * patch.noise[0]
    level = sky.planes[0].sky(0, 0, SHAPE)
    np.testing.assert_allclose(image.glow, glow, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(image.clean, clean + level, rtol=1e-4, atol=1e-3)
    odds = np.exp(values[4]) / (np.exp(values[4]) + np.exp(values[5]))
    np.testing.assert_allclose(image.star, odds, atol=0.6 / 255)
    np.testing.assert_allclose(image.hill, 1 / (1 + np.exp(-values[3])), atol=2e-5)
    assert tree["background/sky"].shape == (4, 5)


def test_a_network_without_padding_is_tiled_as_well(field: Path, tmp_path: Path) -> None:
    """The network pads nothing, so its input is extended beyond the image by its reach."""
    torch.manual_seed(3)
    network = UNet(1, 1, base=4, depth=2, padding="valid").eval()
    header = make_header(network, "valid", [Output(name="glow", role="component:glow")], {})
    model = save_model(tmp_path / "valid.safetensors", network, header)
    assert check_model(model).error == pytest.approx(0, abs=1e-12)
    found = [
        predict(
            field, tmp_path / f"{window}.zarr", model, window=window, precision="fp32"
        ).glow.values
        for window in (64, 512)
    ]
    assert np.isfinite(found[0]).any()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-3)


# --- FITS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sky(folder: Path, flat: tuple[Path, np.ndarray], mixed: Path) -> Path:
    """A prediction of an image with a WCS and a unit."""
    header = fits.Header({"BUNIT": "adu", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 100.5, "CRPIX2": 75.5})
    header.update({"CD1_1": -1e-3, "CD1_2": 1e-5, "CD2_1": 1e-5, "CD2_2": 1e-3, "OBJECT": "field"})
    fits.writeto(folder / "sky.fits", flat[1], header)
    predict(folder / "sky.fits", folder / "sky.zarr", mixed)
    return folder / "sky.zarr"


def check_sky(header: fits.Header, sky: Path) -> None:
    wanted = WCS(fits.getheader(sky.with_suffix(".fits"))).pixel_to_world_values(20, 30)
    found = WCS(header).celestial.pixel_to_world_values(20, 30)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert header["OBJECT"] == "field"


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_an_output_becomes_a_fits_image(sky: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with pytest.raises(SystemExit) as leave:
        commands.main(["export", str(sky), str(path), "--what", "clean"])
    assert leave.value.code == 0
    data, header = fits.getdata(path, header=True)
    stored = xr.open_zarr(sky, group="image/0", consolidated=False)
    np.testing.assert_array_equal(data, stored.clean.values)
    assert (header["BUNIT"], header["EXTNAME"], data.ndim) == ("adu", "CLEAN", 2)
    check_sky(header, sky)


def test_several_outputs_become_a_cube(sky: Path, tmp_path: Path) -> None:
    stored = xr.open_zarr(sky, group="image/0", consolidated=False)
    found = fcnpipe.open(sky)
    found.export(tmp_path / "images.fits")
    cube, header = fits.getdata(tmp_path / "images.fits", header=True)
    np.testing.assert_array_equal(cube, np.stack([stored.clean, stored.glow]))
    assert [header[f"PLANE{n}"] for n in (1, 2)] == ["clean", "glow"]
    assert (header["BUNIT"], WCS(header).naxis) == ("adu", 3)
    assert WCS(header).wcs_pix2world([[20, 30, 1]], 0)[0, 2] == 2
    check_sky(header, sky)
    found.export(tmp_path / "mixed.fits", "star,hill,clean")
    planes, header = fits.getdata(tmp_path / "mixed.fits", header=True)
    np.testing.assert_allclose(planes[0], stored.star, rtol=1e-6)
    np.testing.assert_allclose(planes[1], stored.hill, rtol=1e-6)
    assert "BUNIT" not in header
    found.export(tmp_path / "flags.fits", "flags")
    np.testing.assert_array_equal(fits.getdata(tmp_path / "flags.fits"), stored.flags)


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("a.fits", "dust", "'dust' is not in the store: choose one of clean"),
        ("a.csv", None, "no sources"),
    ],
)
def test_missing_kinds_of_export_are_refused(
    sky: Path, tmp_path: Path, name: str, what: str | None, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        fcnpipe.open(sky).export(tmp_path / name, what)
    assert not list(tmp_path.iterdir())


# --- units ----------------------------------------------------------------------------------------


def test_the_scaling_is_undone(flat: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, truth = flat
    whole = [Output(name="clean", role="restored")]
    rest = [Output(name="rest", role="component:all", scaled=True)]
    softened = Scaling(softening=3.0)
    one = save_identity(tmp_path / "whole.safetensors", whole, scaling=softened)
    two = save_identity(tmp_path / "rest.safetensors", rest, scaling=softened)
    good = np.isfinite(truth)
    restored = predict(path, tmp_path / "whole.zarr", one, tile=64).clean.values
    np.testing.assert_allclose(restored[good], truth[good], rtol=2e-6)
    assert np.isfinite(restored).all(), "missing pixels are filled and flagged"
    excess = predict(path, tmp_path / "rest.zarr", two).rest.values
    sky = truth[good] - excess[good]
    np.testing.assert_allclose(np.median(sky), np.nanmedian(truth), atol=1)
    assert np.ptp(sky) < 30


def test_a_linear_scaling_is_undone(flat: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, truth = flat
    outputs = [Output(name="clean", role="restored"), Output(name="bad", role="restored")]
    scaling = Scaling(kind="linear", offset=900.0, scale=50.0)
    model = save_identity(tmp_path / "m.safetensors", outputs, scaling=scaling, extra=("mask",))
    found = predict(path, tmp_path / "out.zarr", model)
    good = np.isfinite(truth)
    np.testing.assert_allclose(found.clean.values[good], truth[good], rtol=1e-6)
    np.testing.assert_array_equal(found.bad.values, np.where(good, 900.0, 950.0))


def test_several_bands_are_restored(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bands = [(100 * i + 5 * i * rng.normal(size=(130, 140))).astype(np.float32) for i in (1, 2, 3)]
    for name, band in zip("gri", bands, strict=True):
        fits.writeto(tmp_path / f"{name}.fits", band)
    outputs = [Output(name=n, role="restored", band=i) for i, n in enumerate("gri")]
    model = save_identity(tmp_path / "rgb.safetensors", outputs)
    images = [tmp_path / f"{name}.fits" for name in "gri"]
    found = predict(images, tmp_path / "out.zarr", model, tile=128)
    for name, band in zip("gri", bands, strict=True):
        np.testing.assert_allclose(found[name].values, band, rtol=2e-6, atol=1e-4)
    other = predict(images, tmp_path / "again.zarr", model, tile=64)
    assert_same_arrays(read_arrays(tmp_path / "again.zarr"), read_arrays(tmp_path / "out.zarr"))
    assert other.attrs == found.attrs
    with pytest.raises(ModelError, match=r"takes 3 band\(s\) but the image has 1"):
        predict(images[0], tmp_path / "one.zarr", model)


def test_bulge_and_disk_add_up(field: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = BulgeDisk(base=4, depth=2).eval()
    outputs = [Output(name=name, role=f"component:{name}") for name in ("bulge", "disk")]
    model = save_model(
        tmp_path / "b.safetensors", network, make_header(network, "galaxy", outputs, {})
    )
    found = predict(field, tmp_path / "out.zarr", model)
    with open_session(
        make_spec(image=(str(field),), out=str(tmp_path / "w.zarr"), model="none")
    ) as session:
        run.run_stage(session, session.stages[0], SilentObserver())
        masked = session.job.image
        patch = masked.read_patch(masked.frame, session.job.sky)
    padded = normalisation.pad_high(patch.significance(1), (200, 292))
    with torch.no_grad():
        total = network.denoise(torch.asinh(torch.from_numpy(padded)[None]))[0, 0, :, :290]
    total = total.double().numpy() * patch.noise[0]
    np.testing.assert_allclose(found.bulge + found.disk, total, rtol=1e-4)
    assert float(found.bulge.min()) >= 0
    assert float(found.disk.min()) >= 0


def test_the_pyramid_is_the_mean(field: Path, mixed: Path, tmp_path: Path) -> None:
    predict(field, tmp_path / "out.zarr", mixed, keep_image=True)
    tree = xr.open_datatree(tmp_path / "out.zarr", engine="zarr", decode_cf=False)
    for name in ("clean", "hill", "star"):
        fine = tree[f"image/0/{name}"].values.astype(float).reshape(100, 2, 145, 2).mean((1, 3))
        coarse = tree[f"image/1/{name}"].values
        bound = 1e-3 if name == "clean" else 0.5
        assert np.abs(coarse - fine).max() <= bound, name
    names = {image["name"] for image in tree["image"].attrs["ome"]["multiscales"]}
    assert names == {*(output.name for output in OUTPUTS), "science"}
    assert tree["image/0/science"].shape == (1, *SHAPE)


def test_the_matched_filter_can_predict(field: Path, tmp_path: Path) -> None:
    found = predict(field, tmp_path / "out.zarr", "none")
    fcnpipe.segment(field, tmp_path / "s.zarr", model="none", window=64, quiet=True)
    sources = xr.open_zarr(tmp_path / "s.zarr", group="image/0", consolidated=False)
    np.testing.assert_array_equal(found.source, sources.probability[0])
    assert float(found.significance.max()) > 0.1


# --- independence of tiles, engines and interruptions ---------------------------------------------


@pytest.fixture(scope="module")
def reference(field: Path, mixed: Path, folder: Path) -> dict[str, np.ndarray]:
    predict(field, folder / "reference.zarr", mixed, tile=512)
    return read_arrays(folder / "reference.zarr")


@pytest.mark.parametrize(
    ("engine", "workers", "tile"),
    [("serial", 1, 64), ("threads", 2, 128), ("threads", 3, 64), ("dask", 1, 128)],
)
def test_result_does_not_depend_on_tile_and_engine(
    field: Path,
    mixed: Path,
    reference: dict[str, np.ndarray],
    tmp_path: Path,
    engine: str,
    workers: int,
    tile: int,
) -> None:
    out = tmp_path / "out.zarr"
    predict(field, out, mixed, engine=engine, workers=workers, tile=tile)
    assert_same_arrays(read_arrays(out), reference)


def test_a_killed_run_is_resumed(
    field: Path, mixed: Path, reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    options = ["--model", str(mixed), "--window", "64", "--tile", "64", "--engine", "serial"]
    command = [sys.executable, "-m", "fcnpipe", "predict", str(field), str(out), *options]
    process = subprocess.Popen([*command, "--quiet"], start_new_session=True)
    ledger = tmp_path / "out.zarr.partial" / "ledger" / "c" / "1"
    while process.poll() is None:
        if ledger.is_dir() and sum(1 for path in ledger.rglob("*") if path.is_file()) >= 3:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not out.exists()
    result = fcnpipe.predict(field, out, model=str(mixed), window=64, quiet=True, workers=2)
    assert result.resumed
    assert_same_arrays(read_arrays(out), reference)
    assert fcnpipe.predict(field, out, model=str(mixed), window=64, quiet=True).resumed


def test_a_failed_tile_is_named_and_repeated(
    field: Path,
    mixed: Path,
    reference: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict_tile, out = prediction._predict_tile, tmp_path / "out.zarr"

    def fail(job: Any, tile: Any) -> Any:
        if tile.name == "r000c001":
            raise OSError("disk on fire")
        return predict_tile(job, tile)

    monkeypatch.setattr(prediction, "_predict_tile", fail)
    with pytest.raises(TilesFailed, match=r"1 tile\(s\) failed: r000c001 .*disk on fire"):
        predict(field, out, mixed, tile=128)
    partial = xr.open_zarr(tmp_path / "out.zarr.partial", group="image/0", consolidated=False)
    assert np.isnan(partial.clean[:128, 128:256]).all()
    assert (partial.flags[:128, 128:256] == 1).all()
    np.testing.assert_array_equal(partial.clean[128:], reference["/image/0/clean"][128:])
    monkeypatch.undo()
    predict(field, out, mixed, tile=128)
    assert_same_arrays(read_arrays(out), reference)


# --- extra input channels -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extra_identity(folder: Path) -> Path:
    """An identity network with one output for each input channel."""
    outputs = [Output(name=name, role="restored") for name in ("light", *EXTRA)]
    return save_identity(folder / "extra.safetensors", outputs, scaling=RAW, extra=EXTRA)


def test_extra_channels_describe_the_whole_image(
    flat: tuple[Path, np.ndarray], extra_identity: Path, tmp_path: Path
) -> None:
    path, truth = flat
    prior = np.random.default_rng(3).random(SHAPE).astype(np.float32)
    prior[10, 20] = np.nan
    fits.writeto(tmp_path / "prior.fits", prior)
    options = {"prior": str(tmp_path / "prior.fits")}
    found = predict(path, tmp_path / "out.zarr", extra_identity, tile=64, **options)
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in SHAPE)
    np.testing.assert_array_equal(found.position_x, np.broadcast_to(x, SHAPE))
    np.testing.assert_array_equal(found.position_y, np.broadcast_to(y[:, None], SHAPE))
    np.testing.assert_array_equal(found["mask"], ~np.isfinite(truth))
    np.testing.assert_array_equal(found.prior, np.nan_to_num(prior, nan=0))
    predict(path, tmp_path / "other.zarr", extra_identity, tile=256, **options)
    assert_same_arrays(read_arrays(tmp_path / "out.zarr"), read_arrays(tmp_path / "other.zarr"))
    changed = tmp_path / "changed.fits"
    fits.writeto(changed, prior + 1)
    with pytest.raises(StoreError, match="input digest"):
        predict(path, tmp_path / "out.zarr", extra_identity, prior=str(changed))
    assert load_model(extra_identity).header.bands == 1
    assert check_model(extra_identity).error == 0


@pytest.mark.parametrize("extra", [(), ("position_x", "position_y")])
def test_only_position_channels_depend_on_the_origin_of_the_image(
    extra: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = UNet(1 + len(extra), 1, base=4, depth=1).eval()
    header = make_header(
        network, "m", [Output(name="a", role="restored")], {}, scaling=RAW, extra=extra
    )
    model = save_model(tmp_path / "m.safetensors", network, header)
    image, step = np.random.default_rng(7).normal(size=(128, 136)).astype(np.float32), 8
    found = []
    for name, cut in (("here", image[:, :-step]), ("there", image[:, step:])):
        fits.writeto(tmp_path / f"{name}.fits", cut)
        out = tmp_path / f"{name}.zarr"
        found.append(predict(tmp_path / f"{name}.fits", out, model).a.values)
    inner = slice(16, -16)
    error = np.abs(found[0][:, step:][:, inner] - found[1][:, :-step][:, inner]).max()
    assert (error == 0) if not extra else (error > 1e-2)


# --- errors ---------------------------------------------------------------------------------------


def test_changes_on_disk_are_found(
    field: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class ImageChanger(SilentObserver):
        def start(self, stage: str, tasks: int, pixels: int) -> None:
            if stage == "publish":
                change_a_tile(ZarrStore.resume(out))

    def change_a_tile(store: ZarrStore) -> None:
        core = store.layout.grid.tile(0, 1).core
        store.write_tile("clean", core, store.read("clean", core) + np.float32(1))

    out = tmp_path / "out.zarr"
    spec = make_spec(
        image=(str(field),), out=str(out), model=str(mixed), window=64, tile=64, engine="serial"
    )
    with pytest.raises(VerificationError, match="clean of r000c001 is not what was written"):
        run.predict(spec, ImageChanger())
    assert not out.exists()
    run.predict(spec.model_copy(update={"overwrite": True}))
    assert ZarrStore.open(out).verify().ok
    assert (
        commands.run_command(lambda: commands.app(["info", str(out)], standalone_mode=False)) == 0
    )
    stdout = capsys.readouterr().out
    assert all(f"{output.role}, " in stdout for output in OUTPUTS)
    change_a_tile(ZarrStore.open(out))
    assert ZarrStore.open(out).verify().problems == ("clean of r000c001 is not what was written",)


def test_a_catalogue_is_deleted_with_its_store(field: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    fcnpipe.segment(field, out, model="none", window=64, quiet=True)
    assert out.with_suffix(".parquet").exists()
    with pytest.raises(StoreError, match="option command: segment -> predict"):
        predict(field, out, "none")
    predict(field, out, mixed, overwrite=True)
    assert not out.with_suffix(".parquet").exists()
    with pytest.raises(StoreError, match="has no catalogue"):
        fcnpipe.open(out).sources  # noqa: B018
    assert "clean" in fcnpipe.open(out).image


def test_options_of_source_detection_are_ignored(field: Path, mixed: Path, tmp_path: Path) -> None:
    predict(field, tmp_path / "out.zarr", mixed)
    result = fcnpipe.predict(
        field, tmp_path / "out.zarr", model=str(mixed), window=64, thresh=7.0, quiet=True
    )
    assert result.resumed


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], field: Path, tmp_path: Path) -> Any:
    """Return a function that runs a command, checks for exit code 2, and returns the line of error."""

    def call(command: str, model: Path, *options: str) -> str:
        paths = [str(field), str(tmp_path / "out.zarr")]
        with pytest.raises(SystemExit) as leave:
            commands.main([command, *paths, "--model", str(model), "--window", "64", *options])
        captured = capsys.readouterr()
        assert (leave.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
        assert not list(tmp_path.glob("out.zarr*"))
        return captured.err

    return call


def test_segment_refers_to_predict(refused: Any, mixed: Path, tmp_path: Path) -> None:
    assert "has no elevation, so nothing can be segmented: use fcnpipe predict" in refused(
        "segment", mixed
    )
    model = save_identity(tmp_path / "m.safetensors", [Output(name="clean", role="restored")])
    assert "no output of role 'source' and no elevation" in refused("segment", model)


def test_missing_and_unsuitable_priors_are_refused(
    refused: Any, mixed: Path, extra_identity: Path, tmp_path: Path
) -> None:
    fits.writeto(tmp_path / "small.fits", np.ones((20, 30), np.float32))
    small = str(tmp_path / "small.fits")
    assert "use a prior map of the image's shape" in refused(
        "predict", extra_identity, "--prior", small
    )
    assert "needs a prior: add --prior FILE" in refused("predict", extra_identity)
    fits.writeto(tmp_path / "prior.fits", np.ones(SHAPE, np.float32))
    prior = str(tmp_path / "prior.fits")
    assert "takes no prior: leave --prior out" in refused("predict", mixed, "--prior", prior)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": []}, "outputs: Tuple should have at least 1 item"),
        ({"outputs": [{"name": "a", "role": "beauty"}]}, "outputs.0.role"),
        ({"outputs": [{"name": "a", "role": "restored", "band": 1}]}, "not among the 1"),
        ({"outputs": [{"name": "flags", "role": "restored"}]}, "cannot be stored under this name"),
        ({"outputs": [{"name": "a/b", "role": "restored"}]}, "cannot be stored under this name"),
        ({"extra": ["weather"]}, "extra.0"),
    ],
)
def test_invalid_headers_are_refused(
    refused: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = save_identity(tmp_path / "m.safetensors", [Output(name="clean", role="restored")])
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    fields = json.loads(header["__metadata__"]["fcnpipe"]) | changes
    header["__metadata__"]["fcnpipe"] = json.dumps(fields)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    assert message in refused("predict", path)
