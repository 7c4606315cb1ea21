"""Reading of zarr arrays, groups, OME-NGFF pyramids and stores of xarray."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from astropy.io import fits
from numpy.typing import NDArray

from fcnpipe import images
from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.images import Image
from fcnpipe.testing.images import ImageTests

RNG = np.random.default_rng(6)
PLANE = RNG.normal(10, 3, (90, 70)).astype(np.float32)
PLANE[5:9, 30:] = np.nan
CUBE = RNG.integers(0, 60_000, (3, 50, 40)).astype(np.uint16)
Made = tuple[str, NDArray[np.generic]]


def array(version: int, **options: object) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        made = zarr.create_array(
            str(folder / "a.zarr"), data=PLANE, chunks=(32, 32), zarr_format=version, **options
        )
        return str(made.store.root), PLANE

    return write


def cube(folder: Path) -> Made:
    zarr.create_array(str(folder / "a.zarr"), data=CUBE, chunks=(1, 32, 32))
    return f"file://{folder / 'a.zarr'}", CUBE


def single_array(folder: Path) -> Made:
    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    group.create_array("deep", data=CUBE, chunks=(3, 20, 20))
    return str(folder / "a.zarr"), CUBE


def missing_chunks(folder: Path) -> Made:
    """Write an array of which most chunks were never written, so their pixels are the fill value."""
    made = zarr.create_array(
        str(folder / "a.zarr"), shape=(64, 64), chunks=(16, 16), dtype="f4", fill_value=np.nan
    )
    made[:16, :32] = 7
    truth = np.full((64, 64), np.nan, np.float32)
    truth[:16, :32] = 7
    return str(folder / "a.zarr"), truth


def pyramid(version: str) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        group = zarr.open_group(str(folder / "a.ome.zarr"), mode="w")
        scales = [{"version": version, "datasets": [{"path": "0"}, {"path": "1"}]}]
        group.attrs.update(
            {"ome": {"multiscales": scales}} if version == "0.5" else {"multiscales": scales}
        )
        group.create_array("0", data=CUBE[None, :, None], chunks=(1, 1, 1, 32, 32))
        group.create_array("1", data=CUBE[None, :, None, ::2, ::2])
        return str(folder / "a.ome.zarr"), CUBE

    return write


def by_xarray(version: int, **encoding: object) -> Callable[[Path], Made]:
    """Return a writer of a store with two images, of which `science` is to be read."""

    def write(folder: Path) -> Made:
        path = str(folder / "x.zarr")
        values = np.round(PLANE * 4) / 4
        parts = {"science": (("y", "x"), values), "error": (("y", "x"), values), "wcs": ((), 0)}
        axes = {"y": np.arange(90), "x": np.arange(70)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = xr.Dataset(parts, coords=axes)
            data.to_zarr(
                path, zarr_format=version, encoding={"science": encoding} if encoding else {}
            )
            data.close()
        return path, values

    return write


def by_url(folder: Path) -> Made:
    url = f"memory://images/{folder.name}.zarr"
    zarr.create_array(url, data=PLANE, chunks=(32, 32))
    return url, PLANE


PACKED = {"dtype": "i2", "scale_factor": 0.25, "add_offset": 3.0, "_FillValue": -9999}
FLAVOURS: dict[str, Callable[[Path], Made]] = {
    "v2": array(2),
    "v3": array(3),
    "sharded": array(3, shards=(64, 64)),
    "cube": cube,
    "group of one": single_array,
    "missing chunks": missing_chunks,
    "ome-0.4": pyramid("0.4"),
    "ome-0.5": pyramid("0.5"),
    "xarray-v2": by_xarray(2),
    "xarray-v3": by_xarray(3),
    "packed-v2": by_xarray(2, **PACKED),
    "packed-v3": by_xarray(3, **PACKED),
    "fill-v2": by_xarray(2, _FillValue=-999.0),
    "fill-v3": by_xarray(3, _FillValue=-999.0),
    "url": by_url,
}


class TestFlavours(ImageTests):
    @pytest.fixture(scope="class", params=FLAVOURS)
    @classmethod
    def made(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
        return FLAVOURS[request.param](tmp_path_factory.mktemp("zarr"))

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, made: Made) -> Image:
        return images.open_image(made[0])

    @pytest.fixture(scope="class")
    @classmethod
    def truth(cls, made: Made) -> NDArray[np.float32]:
        values = made[1].astype(np.float32)
        return values.reshape(-1, *values.shape[-2:])


# ---------------------------------------------------------------- choice of the array


@pytest.fixture
def group(tmp_path: Path) -> zarr.Group:
    root = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    root.create_array("a", data=PLANE)
    root.create_array("sub/b", data=CUBE)
    root.create_array("sub/c", data=PLANE)
    root.create_array("line", data=np.arange(5))
    return root


def path_of(group: zarr.Group) -> str:
    return str(group.store.root)


def test_an_array_is_selected_by_path(group: zarr.Group) -> None:
    assert images.open_image(path_of(group)).info.shape == (1, 90, 70)
    assert images.open_image(path_of(group), "sub/b").info.shape == (3, 50, 40)


@pytest.mark.parametrize("hdu", ["sub", "nope", "sub/b/x", 3])
def test_an_ambiguous_choice_lists_the_arrays(group: zarr.Group, hdu: str | int) -> None:
    with pytest.raises(InputError, match=r"no single image at .*sub/b \(3, 50, 40\)") as caught:
        images.open_image(path_of(group), hdu)
    assert "\n" not in str(caught.value)


def test_a_one_dimensional_array_is_refused(group: zarr.Group) -> None:
    with pytest.raises(InputError, match=r"line has axes \(5,\)"):
        images.open_image(path_of(group), "line")


def test_an_empty_group_has_no_image(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    with pytest.raises(InputError, match="no single image, and no arrays at all: use a store that"):
        images.open_image(tmp_path / "g.zarr")


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.zeros((4, 4), np.complex64))
    with pytest.raises(InputError, match="complex64"):
        images.open_image(tmp_path / "a.zarr")


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(0, 4), chunks=(1, 4), dtype="f4")
    with pytest.raises(InputError, match="no pixels"):
        images.open_image(tmp_path / "a.zarr")


def test_a_broken_chunk_is_reported(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE, chunks=(32, 32))
    (tmp_path / "a.zarr" / "c" / "1" / "1").write_bytes(b"rubbish")
    image = images.open_image(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"a\.zarr cannot be read") as caught:
        image.read(Box(30, 30, 60, 60))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{rubbish", "[]", '{"zarr_format": 3, "node_type": "array"}'])
def test_broken_metadata_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.zarr cannot be read as zarr"):
        images.open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale_factor": "half"}, "attribute scale_factor='half' is not a number"),
        ({"add_offset": [1]}, r"attribute add_offset=\[1\] is not a number"),
        ({"_FillValue": [1]}, "must be real number"),
        ({"_FillValue": "QUJD"}, "requires a buffer of 8 bytes"),
        ({"wcs": {"CRPIX1": [2]}}, "Illegal value"),
    ],
)
def test_invalid_attributes_are_reported(
    tmp_path: Path, attributes: dict[str, object], message: str
) -> None:
    made = zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE)
    made.attrs.update(attributes)
    with pytest.raises(InputError, match=rf"a\.zarr cannot be read as zarr: .*{message}"):
        images.open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("kept", [True, False])
def test_a_result_is_an_image_if_it_contains_one(tmp_path: Path, kept: bool) -> None:
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="w", attributes={"run_key": "7"})
    root.create_array("ledger", data=np.ones((5, 1, 1), np.uint8))
    root.create_array("image/0/label", data=np.ones((50, 40), np.int32))
    if kept:
        root.create_array("image/0/science", data=CUBE)
        assert images.open_image(tmp_path / "out.zarr").info.shape == CUBE.shape
        return
    with pytest.raises(
        InputError, match=r"result that was made without --keep-image: use the image"
    ):
        images.open_image(tmp_path / "out.zarr")


def test_an_unknown_protocol_is_reported() -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        images.open_image("nosuchprotocol://bucket/a.zarr")


# ---------------------------------------------------------------- header


def header() -> fits.Header:
    return fits.Header([("CTYPE1", "RA---TAN"), ("CRVAL1", 12.5), ("SATURATE", 5e4), ("NAXIS", 2)])


@pytest.mark.parametrize("form", ["list", "text", "lines", "mapping"])
@pytest.mark.parametrize("place", ["array", "group", "sibling"])
def test_cards_are_found(tmp_path: Path, form: str, place: str) -> None:
    root = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    science = root.create_array("science", data=PLANE)
    sibling = root.create_array("wcs", data=np.zeros((), np.int32))
    cards = {
        "list": [str(card).rstrip() for card in header().cards],
        "text": header().tostring(endcard=False, padding=False),
        "lines": header().tostring(sep="\n", endcard=False, padding=False),
        "mapping": dict(header()),
    }[form]
    {"array": science, "group": root, "sibling": sibling}[place].attrs["wcs"] = cards
    science.attrs["units"] = "nJy"
    image = images.open_image(tmp_path / "g.zarr")
    assert images.header_value(image.info, "CRVAL1") == 12.5
    assert images.header_value(image.info, "NAXIS") is None
    assert (image.satur_level, image.info.unit) == (5e4, "nJy")


# ---------------------------------------------------------------- digest


def test_the_digest_depends_on_the_chunks(tmp_path: Path) -> None:
    made = zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE, chunks=(32, 32))
    image = images.open_image(tmp_path / "a.zarr")
    before = image.digest()
    made[80, 60] = 1
    assert image.digest() != before


def test_the_digest_does_not_depend_on_the_location(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=PLANE, chunks=(32, 32))
    zarr.create_array("memory://images/same.zarr", data=PLANE, chunks=(32, 32))
    system = fsspec.filesystem("memory")
    assert system.exists("/images/same.zarr/zarr.json")
    places = (tmp_path / "a.zarr", "memory://images/same.zarr")
    assert len({images.open_image(place).digest() for place in places}) == 1


def test_a_rewritten_array_is_read_again(tmp_path: Path) -> None:
    for value, chunk in ((1, 4), (2, 8)):
        values = np.full((8, 8), value, np.int16)
        zarr.create_array(str(tmp_path / "a.zarr"), data=values, chunks=(chunk, 8), overwrite=True)
        assert images.open_image(tmp_path / "a.zarr").read(Box(7, 0, 8, 1)) == value
