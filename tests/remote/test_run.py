"""Runs on inputs behind URLs have the result of a run on the same local files, despite server faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from astropy.io import fits

import fcnpipe
from fcnpipe.core.errors import InputChanged, TilesFailed
from tests.conftest import Bucket
from tests.integration.scenes import read_all, write_field
from tests.remote.servers import Site, intermittent_faults

OPTIONS = {"model": "none", "window": 128, "tile": 128, "quiet": True}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fcnpipe", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def segment(root: str, out: Path, **options: object) -> dict[str, bytes]:
    fcnpipe.segment(f"{root}/field.fits", out, **(OPTIONS | options))
    return read_all(out)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, a weight map and a mask."""
    folder = tmp_path_factory.mktemp("inputs")
    image = fits.getdata(write_field(folder / "field.fits", (300, 400)))
    weight = np.where(np.arange(400) > 350, 0.25, 1) * np.ones(image.shape)
    zarr.create_array(folder / "weight.zarr", data=weight.astype("f4"), chunks=(128, 128))
    mask = np.zeros(image.shape, np.uint8)
    mask[200:210] = 4
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(mask)]).writeto(folder / "mask.fits.fz")
    return folder


def maps(root: str) -> dict[str, str]:
    return {"weight": f"{root}/weight.zarr", "mask": f"{root}/mask.fits.fz"}


@pytest.fixture(scope="module")
def reference(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out.zarr"
    return segment(str(inputs), out, **maps(str(inputs)))


def assert_same_except_names(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Compare all bytes except the root metadata, which names the inputs, and parquet, which has the run key."""
    assert found.keys() == wanted.keys()
    named = ("zarr.json", "parquet")
    assert [n for n in found if found[n] != wanted[n] and n not in named] == []


def test_server_faults_do_not_change_the_result(
    inputs: Path, reference: dict[str, bytes], bucket: Bucket, tmp_path: Path
) -> None:
    """Two worker processes read, each with its own connections."""
    bucket.put_folder(inputs, "inputs")
    bucket.traffic.fault = intermittent_faults("drop", "503", "500")
    out, place = tmp_path / "out.zarr", f"{bucket.url}/inputs"
    found = segment(place, out, **maps(place), engine="dask", workers=2)
    assert bucket.traffic.faults > 5
    assert_same_except_names(found, reference)


@pytest.mark.usefixtures("short_retry_pauses")
def test_faults_of_a_web_server_do_not_change_the_result(
    inputs: Path, reference: dict[str, bytes], web: tuple[str, Site], tmp_path: Path
) -> None:
    url, site = web
    site.folder = inputs
    site.traffic.fault = intermittent_faults("drop", "503")
    found = segment(url, tmp_path / "out.zarr", **maps(url))
    assert site.traffic.faults > 5
    assert_same_except_names(found, reference)


def test_a_change_of_an_object_ends_the_run(inputs: Path, bucket: Bucket, tmp_path: Path) -> None:
    """The object is replaced after some of its ranges have been read."""
    bucket.put_folder(inputs, "inputs")
    data = (inputs / "field.fits").read_bytes()

    def replace(method: str, path: str) -> str:
        if len(bucket.traffic.requests) == 40:
            bucket.put_behind("inputs/field.fits", data[:-1] + b"x")
        return ""

    bucket.traffic.clear()
    bucket.traffic.fault = replace
    with pytest.raises(InputChanged, match="changed while it was read"):
        segment(f"{bucket.url}/inputs", tmp_path / "out.zarr", engine="serial")
    assert len(bucket.traffic.requests) < 60
    assert not (tmp_path / "out.zarr").exists()


def test_an_outage_of_the_server_is_not_missing_data(
    inputs: Path, bucket: Bucket, tmp_path: Path
) -> None:
    """Pixels that the server does not deliver are not treated as missing: the run fails and can be resumed."""
    bucket.put_folder(inputs, "inputs")
    bucket.traffic.clear()
    bucket.traffic.fault = lambda *_: "403" if len(bucket.traffic.requests) > 60 else ""
    place, out = f"{bucket.url}/inputs", tmp_path / "out.zarr"
    with pytest.raises(TilesFailed, match="is denied"):
        segment(place, out, engine="serial")
    bucket.traffic.clear()
    found = segment(place, out)
    assert_same_except_names(found, segment(str(inputs), tmp_path / "whole.zarr"))


def test_a_missing_input_is_reported_in_one_line(bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/none.fits"
    done = run("segment", url, f"{tmp_path}/out.zarr", "--model", "none", "--quiet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{url} does not exist: check bucket, path and endpoint" in done.stderr
