"""Reading of FITS images: the values of astropy, headers, HDUs, damage, caches and memory."""

from __future__ import annotations

import bz2
import gzip
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnpipe import images
from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.images import Image, file_access
from fcnpipe.images.formats import fits as reader
from fcnpipe.images.headers import header_number
from fcnpipe.testing.images import ImageTests, draw_boxes

DATA = Path(__file__).parents[4] / "shared" / "data"
SHAPE = (150, 97)
RNG = np.random.default_rng(5)
FLOATS = RNG.normal(100, 30, SHAPE).astype(np.float32)
WHOLE = RNG.integers(-300, 300, SHAPE)


def write_hdu(path: Path, hdu: fits.ImageHDU | fits.PrimaryHDU | fits.CompImageHDU) -> Path:
    first = [] if isinstance(hdu, fits.PrimaryHDU) else [fits.PrimaryHDU()]
    fits.HDUList([*first, hdu]).writeto(path)
    return path


def plain(dtype: str) -> Callable[[Path], Path]:
    values = (FLOATS if np.dtype(dtype).kind == "f" else WHOLE % 250).astype(dtype)
    return lambda folder: write_hdu(folder / "a.fits", fits.PrimaryHDU(values))


def with_nan(folder: Path) -> Path:
    values = FLOATS.copy()
    values[3:9, 40:] = np.nan
    return write_hdu(folder / "a.fits", fits.ImageHDU(values, name="SCI"))


def blank(folder: Path) -> Path:
    hdu = fits.PrimaryHDU(WHOLE.astype(np.int16))
    hdu.header["BLANK"] = -32768
    hdu.data[5:20, :7] = -32768
    return write_hdu(folder / "a.fits", hdu)


def scaled(dtype: str) -> Callable[[Path], Path]:
    """Return a writer of scaled integers whose factor and offset are exact in float32, as astropy uses."""

    def write(folder: Path) -> Path:
        hdu = fits.PrimaryHDU(WHOLE.astype(dtype))
        path = write_hdu(folder / "a.fits", hdu)
        with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
            hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 0.25, 10.0
        return path

    return write


def compressed(dtype: str, **options: object) -> Callable[[Path], Path]:
    values = (FLOATS if np.dtype(dtype).kind == "f" else WHOLE % 250).astype(dtype)

    def write(folder: Path) -> Path:
        data = values.copy()
        if data.dtype.kind == "f" and options.get("compression_type") != "HCOMPRESS_1":
            data[60:66, 10:30] = np.nan
        return write_hdu(folder / "a.fits.fz", fits.CompImageHDU(data, name="SCI", **options))

    return write


def gzip_or_bzip2(opener: Callable[..., object], suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = with_nan(folder)
        target = folder / f"a.fits{suffix}"
        with opener(target, "wb") as sink:
            sink.write(source.read_bytes())
        source.unlink()
        return target

    return write


def cube(folder: Path) -> Path:
    return write_hdu(folder / "a.fits", fits.PrimaryHDU(RNG.normal(0, 1, (3, 41, 23))))


def radio(folder: Path) -> Path:
    values = RNG.normal(0, 1, (1, 2, 41, 23)).astype(np.float32)
    return write_hdu(folder / "a.fits", fits.PrimaryHDU(values))


def compressed_cube(folder: Path) -> Path:
    values = RNG.integers(0, 999, (3, 41, 23)).astype(np.int32)
    return write_hdu(folder / "a.fits", fits.CompImageHDU(values, tile_shape=(2, 8, 23)))


FLAVOURS: dict[str, Callable[[Path], Path]] = {
    **{f"plain-{t}": plain(t) for t in ("uint8", "int16", "int32", "int64", "float32", "float64")},
    "plain-uint16": plain("uint16"),
    "plain-uint32": plain("uint32"),
    "nan": with_nan,
    "blank": blank,
    "scaled-int16": scaled("int16"),
    "scaled-float32": scaled("float32"),
    "rice-rows": compressed("int32", compression_type="RICE_1"),
    "rice-uint16": compressed("uint16", compression_type="RICE_1", tile_shape=(32, 48)),
    "rice-float": compressed("float32", compression_type="RICE_1", quantize_method=2),
    "gzip-rows": compressed("float32", compression_type="GZIP_1", quantize_level=0),
    "gzip2-cells": compressed("float64", compression_type="GZIP_2", tile_shape=(50, 20)),
    "hcompress": compressed("float32", compression_type="HCOMPRESS_1", tile_shape=(40, 50)),
    "plio": compressed("int32", compression_type="PLIO_1"),
    "gz": gzip_or_bzip2(gzip.open, ".gz"),
    "bz2": gzip_or_bzip2(bz2.open, ".bz2"),
    "cube": cube,
    "radio": radio,
    "compressed-cube": compressed_cube,
}


def read_truth(path: Path) -> NDArray[np.float32]:
    """Return the whole image as astropy reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=False) as hdus:
            hdu = next(h for h in hdus if getattr(h, "is_image", False) and len(h.shape) >= 2)
            values = hdu.data.astype(np.float32)
    return values.reshape(-1, *values.shape[-2:])


class TestFlavours(ImageTests):
    @pytest.fixture(scope="class", params=FLAVOURS)
    @classmethod
    def path(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return FLAVOURS[request.param](tmp_path_factory.mktemp("fits"))

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, path: Path) -> Image:
        return images.open_image(path)

    @pytest.fixture(scope="class")
    @classmethod
    def truth(cls, path: Path) -> NDArray[np.float32]:
        return read_truth(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real images")
class TestRealImages(ImageTests):
    NAMES = ("kids_g", "m13_blue_0001", "decam_ooi_z", "decam_ood_z", "ctio_tpv", "horsehead")

    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def path(cls, request: pytest.FixtureRequest) -> Path:
        return DATA / f"{request.param}.fits"

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls, path: Path) -> Image:
        return images.open_image(path)

    @pytest.fixture(scope="class")
    @classmethod
    def truth(cls, path: Path) -> NDArray[np.float32]:
        return read_truth(path)


@given(
    values=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=6, max_size=6),
    scale=st.floats(1e-6, 1e6),
    zero=st.floats(-1e6, 1e6),
)
@settings(max_examples=30, deadline=None)
def test_scaling_is_rounded_once(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], scale: float, zero: float
) -> None:
    stored = np.array(values, np.int16).reshape(2, 3)
    path = write_hdu(tmp_path_factory.mktemp("s") / "a.fits", fits.PrimaryHDU(stored))
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = scale, zero
    with fits.open(path) as hdus:
        header = hdus[0].header
        expected = stored * np.float64(header["BSCALE"]) + np.float64(header["BZERO"])
    values_read = images.open_image(path).read(Box(0, 0, 2, 3))
    np.testing.assert_array_equal(values_read, expected.astype(np.float32))


def test_plain_and_compressed_readers_agree(tmp_path: Path) -> None:
    """The same values are stored plain and losslessly compressed."""
    write_hdu(tmp_path / "a.fits", fits.PrimaryHDU(FLOATS))
    write_hdu(
        tmp_path / "b.fits",
        fits.CompImageHDU(FLOATS, compression_type="GZIP_2", quantize_level=0, tile_shape=(31, 17)),
    )
    plain, compressed = (images.open_image(tmp_path / name) for name in ("a.fits", "b.fits"))
    assert isinstance(plain.readers[0], reader.PlainReader)
    assert isinstance(compressed.readers[0], reader.CompressedReader)
    for box in draw_boxes(SHAPE, 30):
        np.testing.assert_array_equal(plain.read(box), compressed.read(box))


def test_masks_keep_every_bit(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2**32, (9, 8)).astype(np.uint32)
    path = write_hdu(tmp_path / "m.fits", fits.ImageHDU(bits))
    np.testing.assert_array_equal(images.open_image(path).read_integer(Box(0, 0, 9, 8)), bits)


def test_64_bit_masks_keep_every_bit(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2**64, (9, 8), np.uint64, endpoint=False)
    path = write_hdu(tmp_path / "m.fits", fits.ImageHDU(bits))
    values = images.open_image(path).read_integer(Box(0, 0, 9, 8))
    np.testing.assert_array_equal(values.view(np.uint64), bits)


def test_fractions_in_a_mask_stay_non_zero(tmp_path: Path) -> None:
    path = write_hdu(tmp_path / "m.fits", fits.ImageHDU(np.array([[0, 0.25, -0.5, np.nan]], "f4")))
    values = images.open_image(path).read_integer(Box(0, 0, 1, 4))
    assert values.tolist() == [[0, 1, -1, -1]]


# ---------------------------------------------------------------- header


def test_cards_describe_the_wcs_but_not_the_storage(tmp_path: Path) -> None:
    hdu = fits.CompImageHDU(WHOLE.astype(np.int16), name="SCI")
    hdu.header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0, CRVAL2=-5.0, BUNIT="adu")
    hdu.header.update(CRPIX1=1.0, CRPIX2=2.0, CDELT1=-1e-4, CDELT2=1e-4, GAIN=2.5, SATURATE=6e4)
    hdu.header["LONGNAME"] = "x" * 150
    image = images.open_image(write_hdu(tmp_path / "a.fits", hdu))
    header = fits.Header.fromstring("".join(image.info.cards))
    assert not {"BITPIX", "NAXIS", "NAXIS1", "ZIMAGE", "ZCMPTYPE", "TFIELDS"} & set(header)
    assert WCS(header).wcs_pix2world([[0, 1]], 0)[0] == pytest.approx([10, -5])
    assert header["LONGNAME"] == "x" * 150
    assert (image.info.unit, image.gain, image.satur_level) == ("adu", 2.5, 6e4)
    assert images.header_value(image.info, "crpix2") == 2.0
    assert images.header_value(image.info, "NOPE", "none") == "none"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real images")
def test_distortion_keywords_are_kept() -> None:
    image = images.open_image(DATA / "ctio_tpv.fits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = WCS(fits.Header.fromstring("".join(image.info.cards)))
        theirs = WCS(fits.getheader(DATA / "ctio_tpv.fits"))
    assert any(card.startswith("PV1_10") for card in image.info.cards)
    pixels = [[5.0, 400.0], [300.0, 20.0]]
    np.testing.assert_array_equal(ours.all_pix2world(pixels, 0), theirs.all_pix2world(pixels, 0))


def test_gain_of_the_primary_header_is_inherited(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header.update(GAIN=3.0, CRPIX1=9.0, EXPTIME=7.0, TELESCOP="T")
    one = fits.ImageHDU(WHOLE, name="A")
    one.header.update(INHERIT=True, EXPTIME=1.0)
    two = fits.ImageHDU(WHOLE, name="B")
    fits.HDUList([primary, one, two]).writeto(tmp_path / "a.fits")
    inherits, alone = (images.open_image(tmp_path / "a.fits", name) for name in "AB")
    assert (inherits.gain, alone.gain) == (3.0, None)
    assert images.header_value(inherits.info, "EXPTIME") == 1.0
    assert images.header_value(inherits.info, "CRPIX1") is None


@pytest.mark.parametrize("value", [None, "high", True, 0.0, -1.0])
def test_an_invalid_gain_is_ignored(tmp_path: Path, value: object) -> None:
    hdu = fits.PrimaryHDU(WHOLE)
    hdu.header["GAIN"] = value
    assert images.open_image(write_hdu(tmp_path / "a.fits", hdu)).gain is None


def test_a_broken_card_does_not_affect_others(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.writeto(path, np.ones((4, 4), np.float32), fits.Header({"LONG": "y" * 150, "GAIN": 2.5}))
    content = path.read_bytes()
    place = content.index(b"CONTINUE")
    path.write_bytes(content[:place] + b"CONTINUE  1e400".ljust(80) + content[place + 80 :])
    assert images.open_image(path).gain == 2.5


def test_the_first_card_with_a_number_is_used(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(WHOLE)
    hdu.header["GAIN"], hdu.header["EGAIN"] = "?", 4
    info = images.open_image(write_hdu(tmp_path / "a.fits", hdu)).info
    assert header_number(info, ("GAIN", "EGAIN")) == 4.0


# ---------------------------------------------------------------- choice of the HDU


@pytest.fixture
def several(tmp_path: Path) -> Path:
    second = fits.CompImageHDU(np.full((4, 5), 4, np.int16), name="SCI")
    second.ver = 2
    parts = [
        fits.PrimaryHDU(),
        fits.BinTableHDU.from_columns([fits.Column("x", "J", array=[1, 2])], name="TAB"),
        fits.ImageHDU(np.arange(3.0), name="LINE"),
        fits.ImageHDU(np.full((4, 5), 3.0), name="SCI", ver=1),
        second,
    ]
    fits.HDUList(parts).writeto(tmp_path / "mef.fits")
    return tmp_path / "mef.fits"


@pytest.mark.parametrize(
    ("hdu", "value"),
    [(None, 3), (3, 3), (4, 4), ("4", 4), ("sci", 3), ("SCI,2", 4), (" Sci , 2", 4)],
)
def test_hdu_is_found(several: Path, hdu: int | str | None, value: int) -> None:
    assert images.open_image(several, hdu).read(Box(0, 0, 1, 1)) == value


@pytest.mark.parametrize("hdu", [5, -1, "ERR", "SCI,3"])
def test_a_missing_hdu_error_lists_the_hdus(several: Path, hdu: int | str) -> None:
    with pytest.raises(
        InputError, match=r"no HDU .*0 PRIMARY \(no image\).*3 SCI \(4 x 5\)"
    ) as caught:
        images.open_image(several, hdu)
    assert "\n" not in str(caught.value)


def test_a_table_is_refused(several: Path) -> None:
    with pytest.raises(InputError, match="'TAB' holds no image"):
        images.open_image(several, "TAB")


def test_a_spectrum_is_refused(several: Path) -> None:
    with pytest.raises(InputError, match=r"has axes \(3,\)"):
        images.open_image(several, "LINE")


def test_a_file_without_image_is_refused(tmp_path: Path) -> None:
    fits.PrimaryHDU().writeto(tmp_path / "a.fits")
    with pytest.raises(InputError, match="holds no image, only 0 PRIMARY"):
        images.open_image(tmp_path / "a.fits")


def test_too_many_axes_are_refused(tmp_path: Path) -> None:
    path = write_hdu(tmp_path / "a.fits", fits.PrimaryHDU(np.zeros((2, 3, 4, 5), np.int16)))
    with pytest.raises(InputError, match=r"axes \(2, 3, 4, 5\)"):
        images.open_image(path)


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(np.zeros((1, 1), np.int16))
    path = write_hdu(tmp_path / "a.fits", hdu)
    text = path.read_bytes().replace(
        b"NAXIS2  =                    1", b"NAXIS2  =                    0"
    )
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"\(0, 1\).*no pixels"):
        images.open_image(path)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("flavour", ["plain-float32", "rice-rows", "hcompress", "gz"])
def test_truncation_is_detected_on_opening(tmp_path: Path, flavour: str) -> None:
    path = FLAVOURS[flavour](tmp_path)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"truncated|complete") as caught:
        images.open_image(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_missing_padding_is_accepted(tmp_path: Path) -> None:
    path = FLAVOURS["plain-float32"](tmp_path)
    truth = read_truth(path)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - (-4 * FLOATS.size % 2880))
    np.testing.assert_array_equal(images.open_image(path).read(Box(0, 0, *SHAPE)), truth[0])


def test_one_missing_byte_is_truncation(tmp_path: Path) -> None:
    path = FLAVOURS["plain-float32"](tmp_path)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - (-4 * FLOATS.size % 2880) - 1)
    with pytest.raises(InputError, match=r"needs \d+ bytes but the file ends at \d+"):
        images.open_image(path)


def test_truncation_after_opening_is_reported(tmp_path: Path) -> None:
    path = FLAVOURS["plain-float32"](tmp_path)
    image = images.open_image(path)
    with path.open("r+b") as handle:
        handle.truncate(4000)
    with pytest.raises(
        InputError, match=r"a\.fits cannot be read as FITS: it ends before byte \d+"
    ):
        image.read(Box(100, 0, 150, 97))


def test_damaged_cells_are_reported(tmp_path: Path) -> None:
    path = FLAVOURS["gzip-rows"](tmp_path)
    content = bytearray(path.read_bytes())
    content[-6000:-2880] = b"\0" * (6000 - 2880)
    path.write_bytes(content)
    image = images.open_image(path)
    with pytest.raises(InputError, match=r"a\.fits\.fz cannot be read"):
        image.read(Box(0, 0, *SHAPE))


def test_damage_affects_only_its_own_compression_tiles(tmp_path: Path) -> None:
    """Rows that share a decoded cell with a damaged tile are still read."""
    path = FLAVOURS["gzip-rows"](tmp_path)
    truth = read_truth(path)
    content = bytearray(path.read_bytes())
    content[-6000:-2880] = b"\0" * (6000 - 2880)
    path.write_bytes(content)
    image = images.open_image(path)
    np.testing.assert_array_equal(image.read(Box(128, 0, 130, 97)), truth[0][128:130])
    with pytest.raises(InputError, match="cannot be read"):
        image.read(Box(128, 0, 150, 97))


def test_garbage_after_a_valid_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  = rubbish" * 9)
    with pytest.raises(InputError) as caught:
        images.open_image(tmp_path / "a.fits")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- gzip and bzip2 files


def test_a_missing_decompressed_copy_is_made_again(tmp_path: Path) -> None:
    image = images.open_image(gzip_or_bzip2(gzip.open, ".gz")(tmp_path))
    before = image.read(Box(0, 0, *SHAPE))
    os.unlink(image.readers[0].file.copy)
    np.testing.assert_array_equal(image.read(Box(0, 0, *SHAPE)), before)


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    path = gzip_or_bzip2(gzip.open, ".gz")(tmp_path)
    folder = tmp_path / "tmp"
    folder.mkdir()
    code = (
        "import sys, os; from fcnpipe import images; images.open_image(sys.argv[1]);"
        "print(len(os.listdir(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(path), str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert not list(folder.iterdir())


def test_compression_does_not_change_the_digest(tmp_path: Path) -> None:
    (tmp_path / "gz").mkdir()
    one, two = with_nan(tmp_path), gzip_or_bzip2(gzip.open, ".gz")(tmp_path / "gz")
    assert images.open_image(one).digest() == images.open_image(two).digest()


def test_the_digest_depends_on_hdu_and_pixels(several: Path) -> None:
    digests = {images.open_image(several, hdu).digest() for hdu in (3, 4)}
    with fits.open(several, mode="update") as hdus:
        hdus[3].data[1, 1] += 1
    assert len(digests | {images.open_image(several, 3).digest()}) == 3


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    for value in (1, 2):
        hdu = fits.CompImageHDU(np.full((9, 9), value, np.int16))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits", overwrite=True)
        os.utime(tmp_path / "a.fits", (value, value))
        assert images.open_image(tmp_path / "a.fits").read(Box(0, 0, 1, 1)) == value


# ---------------------------------------------------------------- memory and order of reading


def write_sparse(path: Path, height: int, width: int) -> None:
    """Write a float32 image of zeros as a sparse file."""
    header = fits.PrimaryHDU(np.zeros((1, 1), np.float32)).header
    header["NAXIS1"], header["NAXIS2"] = width, height
    with path.open("wb") as handle:
        handle.write(header.tostring().encode())
        handle.truncate(handle.tell() + 4 * height * width)


def test_a_large_image_is_not_loaded(tmp_path: Path) -> None:
    write_sparse(tmp_path / "a.fits", 60_000, 50_000)
    images.open_image(tmp_path / "a.fits").read(Box(0, 0, 2, 2))  # loads the compiled function
    tracemalloc.start()
    try:
        image = images.open_image(tmp_path / "a.fits")
        values = image.read(Box(59_000, 48_900, 60_000, 49_900))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not values.any()
    assert peak < 1.2 * values.nbytes


@pytest.mark.parametrize("gap", [0, 1 << 20])
@pytest.mark.parametrize("interrupted", [False, True])
def test_rows_come_in_strips_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: int, interrupted: bool
) -> None:
    """Rows are read alone or with the gaps, in several strips, and despite short reads of the system."""
    if interrupted:
        monkeypatch.setattr(file_access, "_pread_rows", lambda *_: 0)
    monkeypatch.setattr(file_access, "STRIP_BYTES", 1500)
    monkeypatch.setattr(file_access, "GAP_BYTES", gap)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, start: read(file, [parts[0][:97]], start))
    image = images.open_image(FLAVOURS["plain-float32"](tmp_path))
    for box in [Box(0, 0, *SHAPE), *draw_boxes(SHAPE, 10)]:
        np.testing.assert_array_equal(image.read(box), FLOATS[box.slices])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Record every cell that is decoded."""
    seen: list[Box] = []
    decode = reader._OpenHdu.decode

    def count(self: reader._OpenHdu, band: int, core: Box) -> NDArray[np.generic]:
        seen.append(core)
        return decode(self, band, core)

    monkeypatch.setattr(reader._OpenHdu, "decode", count)
    return seen


def test_neighbouring_boxes_decode_each_cell_once(tmp_path: Path, decoded: list[Box]) -> None:
    values = RNG.integers(0, 99, (300, 500)).astype(np.int16)
    path = write_hdu(tmp_path / "a.fits", fits.CompImageHDU(values))
    image = images.open_image(path)
    for x in range(0, 500, 100):
        image.read(Box(10, x, 290, x + 100))
    assert len(decoded) == len(set(decoded)) == 5


def test_the_cache_of_decoded_cells_is_limited(
    tmp_path: Path, decoded: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CACHE_BYTES", 300 * 500 * 2 // 2)
    values = RNG.integers(0, 99, (300, 500)).astype(np.int16)
    image = images.open_image(write_hdu(tmp_path / "a.fits", fits.CompImageHDU(values)))
    for _ in range(2):
        np.testing.assert_array_equal(image.read(Box(0, 0, 300, 500)), values)
    held = sum(cell.nbytes for cell in reader._DECODED_CELLS.values())
    assert held <= reader.CACHE_BYTES < image.overhead_bytes
    assert len(decoded) > 5


def test_hcompress_is_decoded_by_one_thread_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HCOMPRESS decoder keeps its state in static variables and releases the GIL."""
    monkeypatch.setattr(reader, "CACHE_BYTES", 1)
    values = RNG.integers(0, 9999, (1024, 1024)).astype(np.int32)
    hdu = fits.CompImageHDU(values, compression_type="HCOMPRESS_1", tile_shape=(128, 128))
    image = images.open_image(write_hdu(tmp_path / "a.fits", hdu))
    boxes = [Box(y, x, y + 512, x + 512) for y in (0, 512) for x in (0, 512)] * 3
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(image.read, boxes), strict=True):
            np.testing.assert_array_equal(found, values[box.slices])


def test_compressed_reading_stays_within_its_overhead(tmp_path: Path) -> None:
    values = RNG.integers(0, 9999, (3000, 2000)).astype(np.int16)
    hdu = fits.CompImageHDU(values, tile_shape=(250, 250))
    image = images.open_image(write_hdu(tmp_path / "a.fits", hdu))
    reader._DECODED_CELLS.clear()
    tracemalloc.start()
    try:
        found = image.read(Box(2500, 1500, 3000, 2000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, values[2500:, 1500:])
    assert peak < values.nbytes / 2
    assert peak < 2 * found.nbytes + image.overhead_bytes


def test_an_image_behind_a_url_is_read() -> None:
    import fsspec

    with fsspec.open("memory://fcnpipe/a.fits", "wb") as sink:
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(FLOATS, name="SCI")]).writeto(sink)
    image = images.open_image("memory://fcnpipe/a.fits", "SCI")
    for box in draw_boxes(SHAPE, 10):
        np.testing.assert_array_equal(image.read(box), FLOATS[box.slices])
    assert len(image.digest()) == 64
