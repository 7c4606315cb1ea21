"""Reading of TIFF, PNG, JPEG and npy."""

from __future__ import annotations

import logging
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow

from fcnpipe import images
from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.images import Image
from fcnpipe.images.formats import raster
from fcnpipe.testing.images import ImageTests

DATA = Path(__file__).parents[4] / "shared" / "data"
RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 60_000, (60, 45)).astype(np.uint16)
FLOATS = RNG.normal(0, 9, (60, 45)).astype(np.float32)
COLOURS = RNG.integers(0, 250, (60, 45, 3)).astype(np.uint8)
Made = tuple[Path, NDArray[np.generic]]


def tiff(
    values: NDArray[np.generic], truth: NDArray[np.generic], **options: object
) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        tifffile.imwrite(folder / "a.tif", values, **options)
        return folder / "a.tif", truth

    return write


def picture(
    values: NDArray[np.generic], truth: NDArray[np.generic], suffix: str = "png"
) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        Pillow.fromarray(values).save(folder / f"a.{suffix}")
        return folder / f"a.{suffix}", truth

    return write


def npy(values: NDArray[np.generic], truth: NDArray[np.generic]) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        np.save(folder / "a.npy", values)
        return folder / "a.npy", truth

    return write


def jpeg(folder: Path) -> Made:
    Pillow.fromarray(COLOURS).save(folder / "a.jpg")
    with Pillow.open(folder / "a.jpg") as image:
        return folder / "a.jpg", np.moveaxis(np.asarray(image), 2, 0)


def palette(folder: Path) -> Made:
    indices = RNG.integers(0, 4, (20, 30)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [9, 8, 7], [50, 60, 70], [255, 0, 1]], np.uint8)
    image = Pillow.fromarray(indices)
    image.putpalette(colours.ravel().tolist())
    image.save(folder / "a.png")
    return folder / "a.png", np.moveaxis(colours[indices], 2, 0)


ALPHA = np.concatenate([COLOURS, COLOURS[..., :1]], axis=2)
PLANES = np.moveaxis(COLOURS, 2, 0)
FLAVOURS: dict[str, Callable[[Path], Made]] = {
    "tiff-plain": tiff(FLOATS, FLOATS),
    "tiff-big-endian": tiff(GREY, GREY, byteorder=">"),
    "tiff-tiled": tiff(FLOATS, FLOATS, tile=(16, 32)),
    "tiff-zip": tiff(GREY, GREY, tile=(32, 16), compression="zlib"),
    "tiff-strips": tiff(FLOATS.astype(np.float64), FLOATS, rowsperstrip=8, compression="zlib"),
    "tiff-colour": tiff(COLOURS, PLANES, photometric="rgb"),
    "tiff-colour-tiled": tiff(COLOURS, PLANES, photometric="rgb", tile=(16, 16)),
    "tiff-alpha": tiff(
        ALPHA, PLANES, photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16)
    ),
    "tiff-pages": tiff(
        np.stack([GREY, GREY + 1]), np.stack([GREY, GREY + 1]), photometric="minisblack"
    ),
    "tiff-planar": tiff(PLANES, PLANES, photometric="rgb", planarconfig="separate"),
    "png-8": picture(COLOURS[..., 0], COLOURS[..., 0]),
    "png-16": picture(GREY, GREY),
    "png-colour": picture(COLOURS, PLANES),
    "png-alpha": picture(ALPHA, PLANES),
    "png-mask": picture(COLOURS[..., 0] > 99, COLOURS[..., 0] > 99),
    "png-palette": palette,
    "jpeg": jpeg,
    "npy": npy(FLOATS, FLOATS),
    "npy-big-endian": npy(GREY.astype(">u2"), GREY),
    "npy-fortran": npy(np.asfortranarray(FLOATS), FLOATS),
    "npy-cube": npy(PLANES[None], PLANES),
    "npy-mask": npy(FLOATS > 0, FLOATS > 0),
}


class TestFlavours(ImageTests):
    @pytest.fixture(scope="class", params=FLAVOURS)
    @classmethod
    def made(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
        return FLAVOURS[request.param](tmp_path_factory.mktemp("raster"))

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, made: Made) -> Image:
        return images.open_image(made[0])

    @pytest.fixture(scope="class")
    @classmethod
    def truth(cls, made: Made) -> NDArray[np.float32]:
        values = made[1].astype(np.float32)
        return values.reshape(-1, *values.shape[-2:])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real images")
def test_a_real_micrograph() -> None:
    image = images.open_image(DATA / "isbi2012" / "image" / "0.png")
    assert image.info.shape == (1, 512, 512)
    assert 50 < image.read(Box(0, 0, 512, 512)).mean() < 200


def test_colours_have_names(tmp_path: Path) -> None:
    path, _ = FLAVOURS["png-colour"](tmp_path)
    assert images.open_image(path).info.bands == ("red", "green", "blue")


def test_series_are_selected_by_number(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY)
        writer.write(FLOATS[:20, :20], tile=(16, 16))
    assert images.open_image(tmp_path / "a.tif").info.shape == (1, 60, 45)
    assert images.open_image(tmp_path / "a.tif", "1").info.shape == (1, 20, 20)
    with pytest.raises(InputError, match="no series 2: --hdu is a number from 0 to 1"):
        images.open_image(tmp_path / "a.tif", 2)


def test_no_data_of_gdal_becomes_nan(tmp_path: Path) -> None:
    values = GREY.copy()
    values[3, 4] = 77
    tag = (42113, "s", 0, "77", True)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[tag])
    found = images.open_image(tmp_path / "a.tif").read(Box(0, 0, 60, 45))
    np.testing.assert_array_equal(np.isnan(found), values == 77)


def test_an_hdu_of_a_png_is_refused(tmp_path: Path) -> None:
    path, _ = FLAVOURS["png-8"](tmp_path)
    with pytest.raises(InputError, match=r"hdu=1 was given but .*leave it out"):
        images.open_image(path, 1)


def test_16_bit_colour_png_is_refused(tmp_path: Path) -> None:
    path, _ = FLAVOURS["png-colour"](tmp_path)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)
    with pytest.raises(InputError, match="16-bit PNG"):
        images.open_image(path)


def test_a_picture_too_large_to_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "MAX_WHOLE_PIXELS", 1000)
    path, _ = FLAVOURS["png-8"](tmp_path)
    with pytest.raises(InputError, match=r"60 x 45 px.*1000 px at most.*tiled TIFF"):
        images.open_image(path)


def test_the_limit_of_pillow_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 10)
    path, values = FLAVOURS["png-8"](tmp_path)
    np.testing.assert_array_equal(images.open_image(path).read(Box(0, 0, 60, 45)), values)
    assert Pillow.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"II*\0", "requires a buffer"),
        (b"II*\0" + b"\xff" * 9, "it holds no image"),
        (b"\x89PNG\r\n\x1a\n", "cannot identify"),
        (b"\x93NUMPY\x09\0", "npy of version 9.0 is not supported"),
    ],
)
def test_incomplete_headers_are_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.img").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.img cannot be read: .*{message}"):
        images.open_image(tmp_path / "a.img")


def test_a_missing_codec_is_named(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(InputError, match=r"LZW.*'imagecodecs' package; install it, or write"):
        images.open_image(tmp_path / "a.tif")


def test_tifffile_does_not_write_to_the_terminal() -> None:
    assert logging.getLogger(
        "tifffile"
    ).handlers  # otherwise the handler of last resort writes to it


@pytest.mark.parametrize("flavour", ["tiff-plain", "npy", "npy-fortran"])
def test_truncation_after_opening_is_reported(tmp_path: Path, flavour: str) -> None:
    path, _ = FLAVOURS[flavour](tmp_path)
    image = images.open_image(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="it ends before byte"):
        image.read(Box(0, 0, *image.info.shape[1:]))


@pytest.mark.parametrize("flavour", ["tiff-plain", "tiff-zip", "png-8", "jpeg", "npy"])
def test_truncation_is_detected_on_opening(tmp_path: Path, flavour: str) -> None:
    path, _ = FLAVOURS[flavour](tmp_path)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size // 3)
    with pytest.raises(InputError, match="truncated") as caught:
        images.open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4), np.complex64), "complex64"),
        (np.zeros((2, 3, 4, 5), np.uint8), "has axes"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros(7, np.uint8), "has axes"),
        (np.array([[None]]), "object"),
    ],
)
def test_arrays_that_are_not_images_are_refused(
    tmp_path: Path, values: NDArray[np.generic], message: str
) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        images.open_image(tmp_path / "a.npy")


def test_a_tiled_tiff_is_not_loaded(tmp_path: Path) -> None:
    values = np.zeros((4096, 4096), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(256, 256), compression="zlib")
    image = images.open_image(tmp_path / "a.tif")
    tracemalloc.start()
    try:
        found = image.read(Box(3000, 3000, 3500, 3500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * found.nbytes + image.overhead_bytes < values.nbytes / 4


# ---------------------------------------------------------------- headers that state absurd sizes


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tag", ["ImageLength", "ImageWidth", "RowsPerStrip and ImageLength"])
def test_a_tiff_header_beyond_its_file_is_refused(
    tmp_path: Path, compression: str | None, tag: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY.astype(np.uint32), compression=compression, rowsperstrip=10)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in tag.split(" and "):
            tiff.pages[0].tags[name].overwrite(50_000_000 if name == "ImageLength" else 2**31)
    with pytest.raises(InputError, match=r"a\.tif (needs|states|has) .*copy it again") as caught:
        images.open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", ["(-6, -4)", "(4294967296, 4294967296)", "(9" + "9" * 40 + ", 1)"]
)
def test_an_npy_header_beyond_its_file_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (tmp_path / "a.npy").write_bytes(start + header.encode() + bytes(96))
    with pytest.raises(InputError, match=r"a\.npy has axes"):
        images.open_image(tmp_path / "a.npy")
