"""Checks of the sizes in FITS headers: nonsense is one line, quickly, and harmless oddities are accepted."""

from __future__ import annotations

import io
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fcnpipe import images
from fcnpipe.core.errors import InputError
from fcnpipe.images import hdu_sizes

HUGE = "9" * 60
PRIMARY = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "2", "NAXIS1": "60", "NAXIS2": "48"}
EXTENSION = {"XTENSION": "'IMAGE   '"} | {k: v for k, v in PRIMARY.items() if k != "SIMPLE"}
DATA = bytes(2880)


def write_header(cards: dict[str, str], end: str = "END") -> bytes:
    text = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + end
    return text.ljust(math.ceil(len(text) / 2880) * 2880).encode("latin-1")


def open_in_process(path: Path, hdu: int | str | None, answer: io.BytesIO) -> None:
    try:
        images.open_image(path, hdu)
        answer.send("opened")
    except InputError as error:
        answer.send(str(error))


def open_within_a_limit(path: Path, hdu: int | str | None = None) -> str:
    """Open an image in another process, which is ended after 20 s; return the error, or 'opened'."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=open_in_process, args=(path, hdu, theirs)
    )
    process.start()
    found = ours.recv() if ours.poll(20) else "it did not end"
    process.kill()
    process.join()
    return found


NONSENSE = {
    "negative": {"NAXIS1": "-60"},
    "both negative": {"NAXIS1": "-60", "NAXIS2": "-48"},
    "one block back": {"NAXIS": "1", "NAXIS1": "-2880"},
    "lower case": {"NAXIS": "1", "naxis1": "-2880"},
    "huge": {"NAXIS1": HUGE},
    "product wraps": {"NAXIS1": str(2**32), "NAXIS2": str(2**32)},
    "many axes": {"NAXIS": "1000000000"},
    "negative axes": {"NAXIS": "-1"},
    "text": {"NAXIS1": "'60      '"},
    "negative PCOUNT": {"PCOUNT": "-5760"},
    "huge PCOUNT": {"PCOUNT": HUGE},
    "negative GCOUNT": {"GCOUNT": "-1"},
    "huge GCOUNT": {"GCOUNT": HUGE},
    "BITPIX 0": {"BITPIX": "0"},
    "BITPIX 7": {"BITPIX": "7"},
    "many columns": {"XTENSION": "'BINTABLE'", "TFIELDS": "1000000000"},
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("first", [True, False])
def test_nonsense_is_one_line(tmp_path: Path, name: str, first: bool) -> None:
    header = write_header((PRIMARY if first else EXTENSION) | NONSENSE[name])
    empty = b"" if first else write_header({"SIMPLE": "T", "BITPIX": "8", "NAXIS": "0"})
    (tmp_path / "a.fits").write_bytes(empty + header + DATA)
    for hdu in (None, 1, 7, "SCI"):
        found = open_within_a_limit(tmp_path / "a.fits", hdu)
        assert "a.fits" in found, hdu
        assert "\n" not in found


@pytest.mark.parametrize("hdu", [None, 0])
def test_an_image_in_front_of_a_damaged_hdu_is_read(tmp_path: Path, hdu: int | None) -> None:
    bad = write_header(EXTENSION | {"NAXIS1": "-2880"})
    (tmp_path / "a.fits").write_bytes(write_header(PRIMARY) + DATA + bad + DATA)
    assert open_within_a_limit(tmp_path / "a.fits", hdu) == "opened"
    assert "NAXIS1=-2880" in open_within_a_limit(tmp_path / "a.fits", 1)


def test_the_end_of_a_header_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdu_sizes, "MAX_HEADER_BLOCKS", 3)
    file = io.BytesIO(write_header(PRIMARY, end="") + b" " * 9999)
    with pytest.raises(ValueError, match="HDU 0 has no END card within 8640 bytes"):
        hdu_sizes.check_sizes(file, 0, "HDU 0")


@pytest.mark.parametrize(
    "cards",
    [
        {"PCOUNT": "0."},
        {"GCOUNT": "0"},
        {"NAXIS3": "-1"},  # beyond the last axis
        {"ZNAXIS1": "-1", "ZTILE1": "0"},  # left from a compressed image
        {"NAXIS1": "+60 / [px] width"},
    ],
)
def test_harmless_oddities_are_accepted(cards: dict[str, str]) -> None:
    hdu_sizes.check_sizes(io.BytesIO(write_header(PRIMARY | cards)), 0, "HDU 0")


def test_bytes_behind_the_last_hdu_are_accepted() -> None:
    hdu_sizes.check_sizes(io.BytesIO(b"NAXIS1  = -5".ljust(2880)), 0, "HDU 1")


def write_compressed(path: Path, cards: dict[str, int | None]) -> Path:
    """Write a tile-compressed image with changed cards in the header of its table."""
    rng = np.random.default_rng(0)
    hdu = fits.CompImageHDU(rng.integers(0, 99, (96, 120)).astype(np.int32), tile_shape=(96, 120))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    content = path.read_bytes()
    for key, value in cards.items():
        place = content.index(f"{key:8}=".encode(), 2880)
        content = (
            content[:place] + f"{key:8}= {value:>20}".ljust(80).encode() + content[place + 80 :]
        )
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "cards",
    [
        {"ZNAXIS1": -120},
        {"ZNAXIS1": 2**31 - 1},
        {"ZNAXIS": 1_000_000_000},
        {"ZNAXIS1": 2**31 - 1, "ZTILE1": 2**31 - 1},
        {"ZTILE1": 0},
        {"ZTILE2": -5},
        {"ZTILE1": 1, "ZTILE2": 1},
        {"ZBITPIX": 7},
        {"TFIELDS": 1_000_000_000},
        {"PCOUNT": -100_000},
        {"ZVAL1": -5},
    ],
)
def test_nonsense_of_compressed_images_is_one_line(tmp_path: Path, cards: dict[str, int]) -> None:
    found = open_within_a_limit(write_compressed(tmp_path / "a.fits", cards), 1)
    assert "a.fits" in found
    assert "\n" not in found


def test_a_name_with_a_control_character_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones((9, 9), np.float32), name="SCI")]
    fits.HDUList(hdus).writeto(path)
    content = path.read_bytes().replace(b"EXTNAME = 'SCI     '", b"EXTNAME = '\x1b]0;PWN\x07'")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"no HDU 7, only .*1 unnamed \(9 x 9\)") as caught:
        images.open_image(path, 7)
    assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="cannot be read as FITS") as caught:
        images.open_image(path, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\x1b[2J.fits", "a\n.fits", "a\x9b.fits", "a\udcff.fits"])
def test_a_file_name_is_escaped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"SIMPLE  = rubbish")
    for file in (tmp_path / name, tmp_path / f"no {name}"):
        with pytest.raises(InputError) as caught:
            images.open_image(file)
        assert str(caught.value).isprintable()
