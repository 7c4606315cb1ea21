"""A tile that cannot be read is named with exit code 3, and the other tiles are finished."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

import fcnpipe
from fcnpipe.core.errors import TilesFailed
from fcnpipe.core.geometry import Tile
from fcnpipe.pipeline.job import Job
from fcnpipe.pipeline.stages import prediction
from fcnpipe.simulation.scenes import draw
from tests.integration.scenes import list_differences, read_all

EDGE = 256
BAD = slice(EDGE, 2 * EDGE), slice(EDGE, 2 * EDGE)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    image = draw("ground", (3 * EDGE, 3 * EDGE), 4).image
    return np.nan_to_num(image, nan=float(np.nanmedian(image)))


def write_compressed(path: Path, image: np.ndarray, broken: int | None) -> Path:
    """Write 3 x 3 compression tiles, and overwrite the bytes of tile number ``broken`` with zeros."""
    hdu = fits.CompImageHDU(
        image, compression_type="GZIP_1", tile_shape=(EDGE, EDGE), quantize_level=0
    )
    hdu.writeto(path)
    if broken is not None:
        with fits.open(path, disable_image_compression=True) as file:
            rows = np.asarray(file[1].data)["COMPRESSED_DATA"]
            heap = file[1].fileinfo()["datLoc"] + 8 * len(rows)
        with path.open("r+b") as raw:
            raw.seek(heap + int(rows[broken][1]))
            raw.write(b"\0" * int(rows[broken][0]))
    return path


def run(image: Path, out: Path, engine: str) -> subprocess.CompletedProcess[str]:
    settings = ["--model", "none", "--window", str(EDGE), "--tile", str(EDGE), "--engine", engine]
    command = [
        sys.executable,
        "-m",
        "fcnpipe",
        "segment",
        str(image),
        str(out),
        *settings,
        "--quiet",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("engine", ["serial", "dask"])
def test_a_tile_that_cannot_be_read_is_named_and_all_others_are_finished(
    image: np.ndarray, tmp_path: Path, engine: str
) -> None:
    good = run(
        write_compressed(tmp_path / "good.fits", image, None), tmp_path / "good.zarr", engine
    )
    assert (good.returncode, good.stderr) == (0, "")
    bad = run(write_compressed(tmp_path / "bad.fits", image, 4), tmp_path / "bad.zarr", engine)
    assert bad.returncode == 3
    assert "1 tile(s) failed: r001c001" in bad.stderr
    assert "r000c000" not in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
    assert not (tmp_path / "bad.zarr").exists()
    compare(tmp_path)


def compare(folder: Path) -> None:
    """Compare both stores; far from the bad tile, labels differ only by the sky, which is fitted globally."""
    whole = xr.open_datatree(folder / "good.zarr", engine="zarr")
    rest = xr.open_datatree(folder / "bad.zarr.partial", engine="zarr")
    assert rest.attrs["status"] == "incomplete"
    assert whole.attrs["status"] == "complete"
    a, b = (tree["image/0"].label.values for tree in (whole, rest))
    assert (b[BAD] == 0).all()
    corner = slice(0, EDGE - 64), slice(0, EDGE - 64)
    assert a[corner].any()
    assert ((a[corner] > 0) != (b[corner] > 0)).mean() < 0.01
    assert (rest["image/0"].flags.values[BAD] == 1).all()
    assert len(rest["sources"].label) == b.max() > 20
    assert (rest["tiles"].status.values == [[2, 2, 2], [2, 0, 2], [2, 2, 2]]).all()


def test_a_run_resumed_after_a_failure_writes_the_same_bytes(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, predict_tile = tmp_path / "field.fits", prediction._predict_tile
    fits.writeto(field, image)
    settings = {"model": "none", "window": EDGE, "tile": EDGE, "engine": "serial", "quiet": True}
    fcnpipe.segment(field, tmp_path / "good.zarr", **settings)

    def fail(job: Job, tile: Tile) -> object:
        if tile.name == "r002c001":
            raise MemoryError("the device is full")
        return predict_tile(job, tile)

    monkeypatch.setattr(prediction, "_predict_tile", fail)
    with pytest.raises(TilesFailed, match=r"r002c001.*the device is full"):
        fcnpipe.segment(field, tmp_path / "bad.zarr", **settings)
    monkeypatch.undo()
    fcnpipe.segment(field, tmp_path / "bad.zarr", **settings)
    good, bad = (read_all(tmp_path / name) for name in ("good.zarr", "bad.zarr"))
    assert list_differences(good, bad) == []
