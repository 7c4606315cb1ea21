"""`segment` end to end: results do not depend on tile size, engine or number of workers."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import fcnpipe
from fcnpipe.core.errors import FcnpipeError
from fcnpipe.pipeline.run import Result
from tests.integration.scenes import assert_same_arrays, read_arrays, write_field

SHAPE = (700, 900)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", SHAPE)


def run(field: Path, out: Path, **options: object) -> Result:
    settings = {"model": "none", "window": 256, "engine": "serial", "quiet": True} | options
    return fcnpipe.segment(field, out, **settings)


@pytest.fixture(scope="module")
def reference(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("reference") / "out.zarr"
    run(field, out, tile=1024)
    return read_arrays(out)


def test_the_reference_has_sources_on_seams(reference: dict[str, np.ndarray]) -> None:
    labels = reference["/image/0/label"]
    assert labels.shape == SHAPE
    assert labels.max() == len(reference["/sources/label"]) > 100
    crossing = set(np.unique(labels[255])) & set(np.unique(labels[256])) - {0}
    assert len(crossing) > 5
    assert np.isfinite(reference["/sources/kron_flux"]).mean() > 0.95
    assert np.isfinite(reference["/sources/ra"]).all()


@pytest.mark.parametrize(
    ("engine", "workers", "tile"),
    [
        ("serial", 1, 256),
        ("threads", 2, 512),
        ("threads", 3, 256),
        ("dask", 1, 512),
        ("dask", 2, 256),
    ],
)
def test_result_does_not_depend_on_tile_and_engine(
    field: Path,
    reference: dict[str, np.ndarray],
    tmp_path: Path,
    engine: str,
    workers: int,
    tile: int,
) -> None:
    out = tmp_path / "out.zarr"
    run(field, out, tile=tile, engine=engine, workers=workers)
    assert_same_arrays(read_arrays(out), reference)


def test_the_same_command_again_changes_nothing(field: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    first = run(field, out)
    again = run(field, out)
    assert (first.sources, again.sources) == (first.sources, first.sources)
    assert again.resumed
    assert not first.resumed


def test_another_run_is_refused_and_overwrite_replaces_it(field: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    run(field, out)
    with pytest.raises(FcnpipeError, match="thresh"):
        run(field, out, thresh=5.0)
    assert run(field, out, thresh=5.0, overwrite=True).sources > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "default", "thresh": 2.0}, "thresh=2.0 is outside"),
        ({"mask": "everything"}, "has no usable pixel"),
        ({"scheduler": "nowhere"}, "no Dask scheduler answers"),
    ],
)
def test_a_refused_run_leaves_no_files(
    field: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    if "mask" in options:
        options = {"mask": tmp_path / "mask.fits"}
        fits.writeto(options["mask"], np.ones(SHAPE, np.uint8))
    out, kept = tmp_path / "out.zarr", set(tmp_path.iterdir())
    with pytest.raises(FcnpipeError, match=message):
        run(field, out, **{name: str(value) for name, value in options.items()})
    assert set(tmp_path.iterdir()) == kept


def test_hdus_of_one_file_are_bands_noise_and_flags(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=(2, 96, 96)).astype("f4")
    noise[:, 40, 50] += 1000
    hdus = [fits.ImageHDU(noise[0], name="SCI"), fits.ImageHDU(noise[1], name="SCI", ver=2)]
    hdus += [fits.ImageHDU(np.ones((96, 96), "f4"), name="ERR")]
    hdus += [fits.ImageHDU(np.eye(96, dtype="u1"), name="DQ")]
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    out, bands = tmp_path / "out.zarr", (f"{path}[SCI,1]", f"{path}[SCI,2]")
    settings = {"model": "none", "engine": "serial", "weight_type": "rms", "quiet": True}
    done = fcnpipe.segment(bands, out, weight=f"{path}[ERR]", mask=f"{path}[DQ]", **settings)
    assert done.sources > 0
    np.testing.assert_array_equal(read_arrays(out)["/image/0/flags"], 2 * np.eye(96))
