"""Images behind URLs: same pixels as local files, few bytes transferred, retries and error messages."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
import zarr
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image as Pillow

from fcnpipe import images
from fcnpipe.core.errors import InputError, SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.images import Image
from fcnpipe.images.formats import fits as fits_images
from fcnpipe.remote import file_object, file_systems
from fcnpipe.testing.images import ImageTests
from tests.conftest import Bucket
from tests.remote.servers import Site, intermittent_faults

RNG = np.random.default_rng(4)
PLANE = RNG.normal(100, 5, (230, 310)).astype(np.float32)
COUNTS = RNG.integers(0, 60_000, (230, 310)).astype(np.uint16)
COLOURS = RNG.integers(0, 255, (90, 70, 3)).astype(np.uint8)


def fits_bytes(*hdus: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) -> bytes:
    file = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(file)
    return file.getvalue()


def plain() -> tuple[bytes, NDArray[np.float32]]:
    return fits_bytes(fits.PrimaryHDU(PLANE)), PLANE[None]


def cube() -> tuple[bytes, NDArray[np.float32]]:
    values = np.stack([COUNTS, COUNTS[::-1]])
    return fits_bytes(fits.PrimaryHDU(), fits.ImageHDU(values)), values.astype(np.float32)


def compressed() -> tuple[bytes, NDArray[np.float32]]:
    hdu = fits.CompImageHDU(COUNTS.astype(np.int32), tile_shape=(64, 64))
    return fits_bytes(fits.PrimaryHDU(), hdu), COUNTS[None].astype(np.float32)


def gzipped() -> tuple[bytes, NDArray[np.float32]]:
    return gzip.compress(plain()[0]), PLANE[None]


def tiff(**options: object) -> Callable[[], tuple[bytes, NDArray[np.float32]]]:
    def make() -> tuple[bytes, NDArray[np.float32]]:
        file = io.BytesIO()
        tifffile.imwrite(file, COUNTS, **options)  # type: ignore[arg-type]
        return file.getvalue(), COUNTS[None].astype(np.float32)

    return make


def colour_tiff() -> tuple[bytes, NDArray[np.float32]]:
    file = io.BytesIO()
    tifffile.imwrite(file, COLOURS, photometric="rgb")
    return file.getvalue(), np.moveaxis(COLOURS, 2, 0).astype(np.float32)


def png() -> tuple[bytes, NDArray[np.float32]]:
    file = io.BytesIO()
    Pillow.fromarray(COLOURS).save(file, "png")
    return file.getvalue(), np.moveaxis(COLOURS, 2, 0).astype(np.float32)


def npy() -> tuple[bytes, NDArray[np.float32]]:
    file = io.BytesIO()
    np.save(file, np.stack([COUNTS, COUNTS // 2]))
    return file.getvalue(), np.stack([COUNTS, COUNTS // 2]).astype(np.float32)


FORMATS = {
    "plain.fits": plain,
    "cube.fits": cube,
    "compressed.fits.fz": compressed,
    "packed.fits.gz": gzipped,
    "tiled.tif": tiff(tile=(64, 64), compression="zlib"),
    "mapped.tif": tiff(),
    "colour.tif": colour_tiff,
    "colour.png": png,
    "cube.npy": npy,
}


class TestObjects(ImageTests):
    """Files in a bucket."""

    @pytest.fixture(params=["plain.fits", "compressed.fits.fz", "tiled.tif", "cube.npy"])
    def made(
        self, request: pytest.FixtureRequest, bucket: Bucket
    ) -> tuple[str, NDArray[np.float32]]:
        data, truth = FORMATS[request.param]()
        return bucket.put(request.param, data), truth

    @pytest.fixture
    def image(self, made: tuple[str, NDArray[np.float32]]) -> Image:
        return images.open_image(made[0])

    @pytest.fixture
    def truth(self, made: tuple[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        return made[1]


def put_zarr(url: str, **options: object) -> str:
    zarr.create_array(url, data=PLANE, **{"chunks": (128, 128), "overwrite": True} | options)  # type: ignore[arg-type]
    return url


class TestChunks(ImageTests):
    """zarr arrays in a bucket, sharded and not."""

    @pytest.fixture(params=[None, (256, 256)], ids=["chunks", "shards"])
    def image(self, request: pytest.FixtureRequest, bucket: Bucket) -> Image:
        name = f"{bucket.url}/made-{request.param is None}.zarr"
        return images.open_image(put_zarr(name, shards=request.param))

    @pytest.fixture
    def truth(self) -> NDArray[np.float32]:
        return PLANE[None]


@pytest.mark.parametrize("name", FORMATS)
def test_a_web_server_serves_the_same_pixels(name: str, web: tuple[str, Site]) -> None:
    data, truth = FORMATS[name]()
    (web[1].folder / name).write_bytes(data)
    image = images.open_image(f"{web[0]}/{name}")
    np.testing.assert_array_equal(image.read(Box(20, 10, 90, 70)), truth[0, 20:90, 10:70])


@pytest.mark.parametrize("name", ["plain.fits", "tiled.tif", "a.zarr"])
@pytest.mark.usefixtures("short_retry_pauses")
def test_google_cloud_storage_serves_the_same_pixels(name: str, cloud: tuple[str, Site]) -> None:
    url, site = cloud
    path, truth = site.folder / "sky" / name, PLANE
    if name == "a.zarr":
        put_zarr(str(path), shards=(256, 256))
    else:
        data, (truth, *_) = FORMATS[name]()
        path.write_bytes(data)
    site.traffic.fault = lambda *_: "503" if len(site.traffic.requests) == 2 else ""
    image = images.open_image(f"{url}/{name}")
    np.testing.assert_array_equal(image.read(Box(20, 10, 90, 70)), truth[20:90, 10:70])
    assert image.digest() == images.open_image(f"{url}/{name}").digest()
    assert site.traffic.faults > 0
    with pytest.raises(InputError, match=r"none\.fits does not exist"):
        images.open_image(f"{url}/none.fits")


# ---------------------------------------------------------------- transferred bytes

WIDE = RNG.integers(-9999, 9999, (400, 20_000)).astype(np.int32)


def wide_fits() -> bytes:
    return fits_bytes(fits.PrimaryHDU(WIDE))


def wide_compressed() -> bytes:
    return fits_bytes(fits.PrimaryHDU(), fits.CompImageHDU(WIDE, tile_shape=(256, 256)))


def wide_tiff() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, WIDE, tile=(256, 256))
    return file.getvalue()


WIDE_FORMS = {
    "a.fits": (wide_fits, 2),
    "a.fits.fz": (wide_compressed, 12),
    "a.tif": (wide_tiff, 12),
}
"""Image -> function that returns its bytes, and maximum transfer for one box, in box sizes."""


@pytest.mark.parametrize("name", WIDE_FORMS)
def test_a_box_transfers_about_its_own_bytes(name: str, web: tuple[str, Site]) -> None:
    """The image has 32 MB, the box 0.5 MB; whole compression tiles and cache blocks that overlap it are read."""
    make, boxes = WIDE_FORMS[name]
    (web[1].folder / name).write_bytes(make())
    box = Box(100, 9000, 356, 9512)
    image = images.open_image(f"{web[0]}/{name}")
    np.testing.assert_array_equal(image.read(box), WIDE[box.slices])
    assert web[1].traffic.body_bytes < boxes * 4 * box.size


def test_a_box_of_shards_transfers_about_its_own_bytes(bucket: Bucket) -> None:
    url, box = f"{bucket.url}/wide.zarr", Box(100, 9000, 356, 9512)
    zarr.create_array(url, data=WIDE, chunks=(200, 256), shards=(400, 2560))
    bucket.traffic.clear()
    image = images.open_image(url)
    np.testing.assert_array_equal(image.read(box), WIDE[box.slices])
    assert bucket.traffic.body_bytes < 4 * 4 * box.size


# ---------------------------------------------------------------- digests and versions


def test_a_digest_reads_nothing_and_depends_on_the_version(bucket: Bucket) -> None:
    url = bucket.put("a.fits", plain()[0])
    image = images.open_image(url)
    bucket.traffic.clear()
    before = image.digest()
    assert bucket.traffic.body_bytes == 0
    assert images.open_image(url).digest() == before
    bucket.put("a.fits", fits_bytes(fits.PrimaryHDU(PLANE + 1)))
    assert images.open_image(url).digest() != before


def test_without_an_etag_the_digest_is_that_of_the_content(web: tuple[str, Site]) -> None:
    web[1].etags = False
    path = web[1].folder / "a.fits"
    path.write_bytes(plain()[0])
    assert images.open_image(f"{web[0]}/a.fits").digest() == images.open_image(path).digest()


def test_the_digest_depends_on_every_chunk(bucket: Bucket) -> None:
    url = put_zarr(f"{bucket.url}/follow.zarr")
    before = images.open_image(url).digest()
    assert images.open_image(url).digest() == before
    zarr.open_array(url, mode="r+")[100, 100] = 1
    assert images.open_image(url).digest() != before


def test_chunks_of_a_web_server_are_requested_one_by_one(web: tuple[str, Site]) -> None:
    put_zarr(str(web[1].folder / "a.zarr"), shards=(256, 256))
    url = f"{web[0]}/a.zarr"
    image = images.open_image(url)
    np.testing.assert_array_equal(image.read(Box(0, 0, 230, 310)), PLANE)
    before = image.digest()
    web[1].traffic.clear()
    assert images.open_image(url).digest() == before
    zarr.open_array(str(web[1].folder / "a.zarr"), mode="r+")[100, 100] = 1
    assert images.open_image(url).digest() != before


@pytest.mark.parametrize("name", ["plain.fits", "compressed.fits.fz", "tiled.tif"])
def test_a_change_of_an_object_is_detected(name: str, bucket: Bucket) -> None:
    data, _ = FORMATS[name]()
    image = images.open_image(bucket.put(f"changing-{name}", data))
    bucket.put(f"changing-{name}", data[:-1] + b"x")
    _clear_caches()
    with pytest.raises(InputError, match="changed while it was read"):
        image.read(Box(0, 0, 230, 310))


def test_a_change_on_a_web_server_is_detected(web: tuple[str, Site]) -> None:
    web[1].etags = False
    path = web[1].folder / "a.fits"
    path.write_bytes(plain()[0])
    image = images.open_image(f"{web[0]}/a.fits")
    os.utime(path, (1e9, 1e9))
    with pytest.raises(InputError, match="changed while it was read"):
        image.read(Box(0, 0, 9, 9))


def _clear_caches() -> None:
    """Clear the caches, which hold bytes of the old version."""
    file_object._BLOCKS.clear()
    fits_images._DECODED_CELLS.clear()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["drop", "503", "500"])
@pytest.mark.parametrize("name", ["plain.fits", "compressed.fits.fz", "a.zarr"])
@pytest.mark.usefixtures("short_retry_pauses")
def test_transient_errors_are_retried(name: str, fault: str, bucket: Bucket) -> None:
    if name == "a.zarr":
        url, truth = put_zarr(f"{bucket.url}/faulty-{fault}.zarr", shards=(256, 256)), PLANE[None]
    else:
        data, truth = FORMATS[name]()
        url = bucket.put(f"faulty-{fault}-{name}", data)
    bucket.traffic.fault = intermittent_faults(fault)
    image = images.open_image(url)
    np.testing.assert_array_equal(image.read(Box(0, 0, 230, 310)), truth[0])
    assert bucket.traffic.faults > 0


@pytest.mark.parametrize("fault", ["drop", "503"])
@pytest.mark.usefixtures("short_retry_pauses")
def test_transient_errors_of_a_web_server_are_retried(fault: str, web: tuple[str, Site]) -> None:
    (web[1].folder / "a.fits").write_bytes(plain()[0])
    web[1].traffic.fault = intermittent_faults(fault)
    image = images.open_image(f"{web[0]}/a.fits")
    np.testing.assert_array_equal(image.read(Box(0, 0, 230, 310)), PLANE)
    assert web[1].traffic.faults > 0


@pytest.mark.usefixtures("short_retry_pauses")
def test_an_unreachable_server_is_reported(bucket: Bucket) -> None:
    image = images.open_image(bucket.put("down.fits", plain()[0]))
    bucket.traffic.fault = lambda *_: "503"
    with pytest.raises(
        InputError, match=r"down\.fits did not answer in 5 tries .* try again later"
    ):
        image.read(Box(0, 0, 9, 9))
    with pytest.raises(InputError, match="did not answer"):
        images.open_image(f"{bucket.url}/down.fits")


@pytest.mark.parametrize("url", ["s3://sky/none.fits", "s3://no-such-bucket/a.fits"])
def test_a_missing_object_is_reported(url: str, bucket: Bucket) -> None:
    with pytest.raises(InputError, match=f"{url} does not exist") as error:
        images.open_image(url)
    assert "\n" not in str(error.value)


def test_a_forbidden_object_is_reported(bucket: Bucket) -> None:
    url = bucket.put("closed.fits", plain()[0])
    bucket.traffic.fault = lambda *_: "403"
    with pytest.raises(InputError, match=r"access to .* is denied .* check the credentials"):
        images.open_image(url)


def test_a_web_server_without_ranges_is_reported(web: tuple[str, Site]) -> None:
    web[1].ranges = False
    (web[1].folder / "a.fits").write_bytes(plain()[0])
    with pytest.raises(InputError, match="does not support byte ranges; copy it to a local"):
        images.open_image(f"{web[0]}/a.fits")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        file_systems.fsspec.core, "url_to_fs", Mock(side_effect=ImportError("Install s3fs"))
    )
    with pytest.raises(InputError, match=r"Install s3fs; pip install s3fs, or 'fcnpipe\[remote\]'"):
        images.open_image("s3://sky/a.fits")


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "url",
    [
        "https://someone:hunter2@archive.test/a.fits",
        "https://hunter2@archive.test/a.fits",
        "s3://KEY:hunter2@bucket/a.fits",
        "https://archive.test/a.fits?X-Amz-Algorithm=A&X-Amz-Signature=hunter2",
        "https://archive.test/a.fits?X-Goog-Credential=hunter2",
        "https://archive.test/a.fits?sv=2&sig=hunter2",
        "https://archive.test/a.fits?token=hunter2",
        "simplecache::https://archive.test/a.fits?access_token=hunter2",
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SpecError, match="set credentials in the environment") as error:
        images.open_image(url)
    assert "hunter2" not in str(error.value)


def test_a_harmless_query_in_a_url_is_kept(web: tuple[str, Site]) -> None:
    (web[1].folder / "a.fits").write_bytes(plain()[0])
    image = images.open_image(f"{web[0]}/a.fits?download=1")
    assert image.info.shape == (1, 230, 310)
