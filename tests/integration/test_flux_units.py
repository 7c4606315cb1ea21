"""Units: if an image is multiplied by a power of two, so are its fluxes, and all other columns are equal."""

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

import fcnpipe
from fcnpipe.core.errors import InputError
from fcnpipe.simulation.scenes import draw

FLUXES = ("segment_flux", "segment_flux_err", "kron_flux", "kron_flux_err", "max_value")
SETTINGS = {"model": "none", "engine": "serial", "quiet": True, "overwrite": True}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw("ground", (96, 96), 3).image.astype(np.float64)


def measure(folder: Path, values: np.ndarray, **options: object) -> xr.Dataset:
    fits.writeto(folder / "a.fits", values, overwrite=True)
    fcnpipe.segment(folder / "a.fits", folder / "a.zarr", **SETTINGS, **options)
    return xr.open_zarr(folder / "a.zarr", group="sources").load()


@pytest.mark.parametrize(("exponent", "gain"), [(-90, 4.0), (90, None)])
def test_the_unit_of_the_image_scales_fluxes_and_errors(
    image: np.ndarray, tmp_path: Path, exponent: int, gain: float | None
) -> None:
    scale = math.ldexp(1, exponent)
    plain = measure(tmp_path, image, gain=gain)
    scaled = measure(tmp_path, image * scale, gain=gain and gain / scale)
    assert plain.sizes["source"] > 5
    assert (plain.segment_flux_err > 0).all()
    for name in plain:
        factor = scale if name in FLUXES or name == "min_value" else 1
        if np.issubdtype(plain[name].dtype, np.number):
            np.testing.assert_allclose(scaled[name], plain[name] * factor, 1e-6, err_msg=name)


def test_variance_and_rms_maps_are_equivalent(image: np.ndarray, tmp_path: Path) -> None:
    exponent = -80
    noise = np.linspace(1, 2, image.size).reshape(image.shape) * math.ldexp(4, exponent)
    found = []
    for kind, power in (("rms", 1), ("variance", 2)):
        fits.writeto(tmp_path / "map.fits", noise**power, overwrite=True)
        options = {"weight": str(tmp_path / "map.fits"), "weight_type": kind}
        found.append(measure(tmp_path, image * math.ldexp(1, exponent), **options))
    rms, variance = found
    assert rms.sizes == variance.sizes
    for name in ("source_id", *FLUXES):
        np.testing.assert_allclose(variance[name], rms[name], 1e-6, err_msg=name)


@pytest.mark.parametrize("scale", [1e60, 1e-60])
def test_pixels_that_float32_cannot_hold_are_refused_and_their_value_is_named(
    image: np.ndarray, tmp_path: Path, scale: float
) -> None:
    with pytest.raises(
        InputError, match=r"a\.fits has pixels of .*e[+-]\d\d, outside the range of float32"
    ):
        measure(tmp_path, image * scale)
