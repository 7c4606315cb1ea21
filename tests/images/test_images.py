"""Opening of images, from one file or several, and of the maps that belong to them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fcnpipe import images
from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from tests.images.telescope_files import write_telescope_file


def write(path: Path, shape: tuple[int, ...], value: float = 0.0, **cards: object) -> Path:
    hdu = fits.PrimaryHDU(np.full(shape, value, np.float32))
    hdu.header.update(cards)
    hdu.writeto(path)
    return path


# ---------------------------------------------------------------- files


def test_several_files_are_bands(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.fits", (6, 5), i) for i, n in enumerate("gri")]
    paths.append(write(tmp_path / "cube.fits", (2, 6, 5), 9))
    image = images.open_image(paths)
    assert image.info.shape == (5, 6, 5)
    assert image.info.bands == ("g", "r", "i", "cube.0", "cube.1")
    assert [image.read(Box(2, 2, 3, 3), band).item() for band in range(5)] == [0, 1, 2, 9, 9]
    assert image.digest() != images.open_image(paths[::-1]).digest()


def test_one_file_twice_has_numbered_bands(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", (6, 5))
    assert images.open_image([path, path]).info.bands == ("0", "1")


def test_hdus_of_one_file_are_bands_named_after_them(tmp_path: Path) -> None:
    planes = [fits.ImageHDU(np.zeros(shape, "f4"), name=n) for n, shape in
              (("G", (6, 5)), ("R", (6, 5)), ("ODD", (7, 5)))]  # fmt: skip
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(path)
    assert images.open_image([f"{path}[G]", f"{path}[2]"]).info.bands == ("a.G", "a.2")
    assert images.open_image([path, f"{path}[2]"]).info.bands == ("a", "a.2")
    with pytest.raises(InputError, match=r"a\.fits\[ODD\] is .* but .*a\.fits\[G\] is"):
        images.open_image([f"{path}[G]", f"{path}[ODD]"])


def test_the_minimum_saturation_level_is_used(tmp_path: Path) -> None:
    one = write(tmp_path / "a.fits", (6, 5), SATURATE=900.0, GAIN=2.0)
    two = write(tmp_path / "b.fits", (6, 5), SATURATE=500.0, GAIN=4.0)
    image = images.open_image([one, two])
    assert (image.satur_level, image.gain) == (500.0, 2.0)


def test_bands_of_different_shapes_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.fits", (6, 5)), write(tmp_path / "b.fits", (6, 4))]
    with pytest.raises(InputError, match=r"b\.fits is 6 x 4 px but .*a\.fits is 6 x 5 px"):
        images.open_image(paths)


def test_an_empty_list_of_files_is_refused() -> None:
    with pytest.raises(InputError, match="no image was given"):
        images.open_image([])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.fits does not exist"):
        images.open_image(tmp_path / "nope.fits")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8brubbish", b"\x89PN"])
def test_a_file_of_an_unknown_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.fits").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.fits is not a readable image.*use FITS, zarr"):
        images.open_image(tmp_path / "a.fits")


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is not a readable image.*a folder, without zarr metadata"
    ):
        images.open_image(tmp_path)


def test_the_format_is_recognised_by_content(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    (tmp_path / "a.npy").rename(tmp_path / "a.fits")
    assert images.open_image(tmp_path / "a.fits").info.shape == (1, 3, 4)


def test_a_relative_path_works_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.fits", (6, 5), 3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    image = images.open_image("a.fits")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert image.read(Box(0, 0, 1, 1)) == 3


@pytest.mark.parametrize("compressed", [False, True])
def test_another_process_reads_the_same(tmp_path: Path, compressed: bool) -> None:
    values = np.random.default_rng(1).integers(0, 999, (70, 60)).astype(np.int32)
    hdu = fits.CompImageHDU(values) if compressed else fits.ImageHDU(values)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    image = images.open_image(tmp_path / "a.fits")
    image.read(Box(0, 0, 70, 60))
    (tmp_path / "image.pickle").write_bytes(pickle.dumps(image))
    code = (
        "import pickle, sys; from fcnpipe.core.geometry import Box;"
        "image = pickle.load(open(sys.argv[1], 'rb')); print(image.read(Box(5, 6, 60, 50)).sum())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "image.pickle")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == values[5:60, 6:50].sum()


def test_brackets_name_an_hdu(tmp_path: Path) -> None:
    path, box = write_telescope_file(tmp_path / "a.fits"), Box(0, 0, 1, 1)
    image = images.open_image([f"{path}[SCI,1]", f"{path}[3]", str(path)], hdu="ERR")
    assert [image.read(box, band).item() for band in range(3)] == [10, 20, 22]
    assert images.open_map(f"{path}[dq]", None, (6, 5), "mask").read_integer(box) == 11
    with pytest.raises(InputError, match=r"a\.fits has no HDU 'WHT', only 0 PRIMARY"):
        images.open_image(f"{path}[WHT]")
    with pytest.raises(InputError, match=r"none\.fits does not exist"):
        images.open_image(f"{tmp_path}/none.fits[SCI]")


def test_a_file_of_tables_holds_no_image(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])
    table.writeto(tmp_path / "t.fits")
    with pytest.raises(InputError, match=r"t\.fits holds no image, only 0 PRIMARY \(no image\), 1"):
        images.open_image(tmp_path / "t.fits")


def test_a_file_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    path = write_telescope_file(tmp_path / "a[SCI]")
    assert images.open_image(path, 4).read(Box(0, 0, 1, 1)) == 22
    assert images.open_image(f"{path}[4]").read(Box(0, 0, 1, 1)) == 22


# ---------------------------------------------------------------- maps


def test_a_map_of_the_right_shape_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "w.fits", (6, 5), 2)
    assert images.open_map(path, None, (6, 5), "weight").read(Box(0, 0, 1, 1)) == 2
    assert images.open_map(path, 0, (3, 6, 5), "weight").info.shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("own", "given"), [((6, 5), (5, 6)), ((2, 6, 5), (6, 5)), ((2, 6, 5), (3, 6, 5))]
)
def test_a_map_of_another_shape_is_refused(
    tmp_path: Path, own: tuple[int, ...], given: tuple[int, ...]
) -> None:
    path = write(tmp_path / "m.fits", own)
    ours, theirs = (" x ".join(map(str, shape)) for shape in (own, given))
    message = rf"mask .*m\.fits is {ours} px but the image is {theirs} px"
    with pytest.raises(InputError, match=message):
        images.open_map(path, None, given, "mask")
