"""Readers of TIFF, PNG, JPEG and npy images.

Stored values are read without conversion. Colours are bands, and the alpha channel is dropped. The first row of
the file is y = 0. Compressed or tiled TIFF is decoded chunk by chunk; uncompressed TIFF and npy are read by rows.
PNG and JPEG cannot be read in part and are decoded whole, up to :data:`MAX_WHOLE_PIXELS`.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image as Pillow

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.core.records import ImageInfo
from fcnpipe.images.axes import check_real_dtype, fold_axes, number_bands
from fcnpipe.images.base import ZARR_CHUNKS_IN_FLIGHT, Reader
from fcnpipe.images.digests import digest_file
from fcnpipe.images.errors import LIBRARY_ERRORS, first_line, reading_error, silence_warnings
from fcnpipe.images.file_access import (
    FileVersion,
    file_size,
    file_version,
    open_bytes,
    peek,
    read_rows,
)
from fcnpipe.images.scaling import AS_STORED, Scaling

MAX_WHOLE_PIXELS = 1 << 28
"""Maximum size of an image that is decoded whole, px."""
MAX_CHUNK_BYTES = 1 << 28
"""Maximum size of a decoded chunk of TIFF, unless the file is larger than 1/`MAX_COMPRESSION` of it."""
MAX_COMPRESSION = 1 << 16
"""Maximum ratio of the size of a large decoded chunk to the size of the file; zstd reaches half of it."""

_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GDAL_NODATA = 42113
_CODEC_PACKAGE = "imagecodecs"
"""Package that tifffile needs for LZW, JPEG and other compressions of TIFF."""
_NPY_HEADERS = {
    1: np.lib.format.read_array_header_1_0,
    2: np.lib.format.read_array_header_2_0,
}
_COLOURS = ("red", "green", "blue")
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else its log goes to the terminal


def recognises(path: str) -> bool:
    """Return whether a file starts with the signature of one of these formats."""
    return peek(path).startswith((_NPY, _PNG, _JPEG, *_TIFF))


def open_reader(path: str, hdu: int | str | None) -> Reader:
    """Open a file; ``hdu`` is the number of a TIFF series.

    Raises
    ------
    InputError
        If the file is damaged, is not an image, or has no such series.
    """
    start = peek(path)
    if not start.startswith(_TIFF) and hdu is not None:
        raise InputError(f"hdu={hdu!r} was given but {path} holds one image: leave it out")
    try:
        with silence_warnings():
            return _choose_opener(start)(path, hdu)
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise _reading_error(path, error) from None


def _choose_opener(start: bytes) -> Callable[[str, int | str | None], Reader]:
    if start.startswith(_TIFF):
        return _open_tiff
    return _open_npy if start.startswith(_NPY) else _open_picture_whole


def _reading_error(path: str, error: BaseException) -> InputError:
    reason = first_line(error)
    fix = "install it, or write the image with deflate"
    if _CODEC_PACKAGE not in reason:
        fix = "if truncated, copy it again"
    return reading_error(error, f"{path} cannot be read: {reason}; {fix}")


@dataclass(frozen=True, slots=True)
class Axes:
    """Meaning of the axes of an array.

    Attributes
    ----------
    shape : tuple of int
        All axes.
    y, band : int
        Number of the y axis (the x axis follows it) and of the band axis; -1 if there is no band axis.
    bands : int
        Number of bands of the image; further ones are alpha channels.
    """

    shape: tuple[int, ...]
    y: int
    band: int
    bands: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Bands, height and width."""
        return self.bands, self.shape[self.y], self.shape[self.y + 1]

    def index(self, box: Box, band: int) -> tuple[slice | int, ...]:
        """Return the index of a box of a band in the array."""
        index: list[slice | int] = [0] * len(self.shape)
        if self.band >= 0:
            index[self.band] = band
        index[self.y : self.y + 2] = box.slices
        return tuple(index)

    def first_pixel(self, band: int) -> tuple[int, ...]:
        """Return the index of the first pixel of a band."""
        return tuple(band if axis == self.band else 0 for axis in range(len(self.shape)))


def _plain_axes(shape: tuple[int, ...], name: str) -> Axes:
    """Return the axes of a (..., band, y, x) array."""
    bands = fold_axes(shape, name)[0]
    leading = [i for i, n in enumerate(shape[:-2]) if n > 1]
    return Axes(shape, len(shape) - 2, leading[0] if leading else -1, bands)


def _make_info(axes: Axes, dtype: np.dtype[Any], name: str) -> ImageInfo:
    check_real_dtype(dtype, name)
    names = _COLOURS if axes.bands == 3 and axes.band > axes.y else number_bands(axes.bands)
    return ImageInfo(axes.image_shape, dtype.newbyteorder("=").name, bands=names)


# ---------------------------------------------------------------- uncompressed arrays


@dataclass(frozen=True, slots=True)
class RawReader:
    """Reader of an array that is stored uncompressed and contiguous: npy, uncompressed TIFF.

    Attributes
    ----------
    offset : int
        First byte of the pixels.
    dtype, order : str
        Dtype of a pixel with its byte order; memory order, ``C`` or ``F``.
    """

    path: str
    version: FileVersion
    offset: int
    dtype: str
    order: str
    axes: Axes
    info: ImageInfo
    scaling: Scaling = AS_STORED

    @property
    def overhead_bytes(self) -> int:
        """One stored strip and one of float64. Objects behind URLs need the stored box in addition."""
        return 1 << 22

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield strips of rows of a box; in Fortran order, the box from its contiguous columns."""
        if box.size == 0:
            return
        try:
            if self.order == "C":
                yield from self._read_band(box, band, self.axes.shape, self.axes.y)
                return
            transposed = Box(box.x0, box.y0, box.x1, box.y1)
            strips = self._read_band(
                transposed, band, self.axes.shape[::-1], len(self.axes.shape) - 2 - self.axes.y
            )
            yield np.concatenate([strip.copy() for strip in strips]).T
        except (OSError, ValueError, EOFError) as error:
            raise _reading_error(self.path, error) from None

    def _read_band(
        self, box: Box, band: int, shape: tuple[int, ...], y: int
    ) -> Iterator[NDArray[Any]]:
        """Yield strips of a band, read together with interleaved values such as the other colours."""
        index = self.axes.first_pixel(band)[:: 1 if self.order == "C" else -1]
        plane, which = _ravel(index[:y], shape[:y]), _ravel(index[y + 2 :], shape[y + 2 :])
        depth = math.prod(shape[y + 2 :])
        item = np.dtype(self.dtype).itemsize * depth
        start = self.offset + ((plane * shape[y] + box.y0) * shape[y + 1] + box.x0) * item
        rows = box.shape[0], box.shape[1] * item, shape[y + 1] * item
        for strip in read_rows(self.path, self.version, start, rows):
            yield strip.view(self.dtype).reshape(len(strip), box.shape[1], depth)[:, :, which]

    def digest(self) -> str:
        """Return the digest of the file."""
        return digest_file(self.path, self.version)


def _ravel(index: Sequence[int], shape: Sequence[int]) -> int:
    return int(np.ravel_multi_index(tuple(index), tuple(shape))) if shape else 0


def _open_npy(path: str, _: int | str | None) -> Reader:
    version = file_version(path)
    with open_bytes(path, version) as handle:
        major, minor = np.lib.format.read_magic(handle)
        if major not in _NPY_HEADERS:
            raise ValueError(f"npy of version {major}.{minor} is not supported")
        shape, fortran, dtype = _NPY_HEADERS[major](handle)
        offset, shape = handle.tell(), tuple(int(n) for n in shape)
    axes = _plain_axes(shape, path)
    info = _make_info(axes, dtype, path)
    _check_length(path, version, offset + math.prod(shape) * dtype.itemsize)
    return RawReader(path, version, offset, dtype.str, "F" if fortran else "C", axes, info)


def _check_length(path: str, version: FileVersion, needed: int) -> None:
    size = file_size(path, version)
    if size < needed:
        raise InputError(
            f"{path} needs {needed} bytes but ends at {size}: it is truncated; copy it again"
        )


# ---------------------------------------------------------------- TIFF


def _open_tiff(path: str, hdu: int | str | None) -> Reader:
    version = file_version(path)
    with open_bytes(path, version) as file, tifffile.TiffFile(file) as tiff:
        number = _series_number(path, tiff, hdu)
        series: Any = tiff.series[number]
        axes = _tiff_axes(series, path)
        info, scaling = _make_info(axes, series.dtype, path), Scaling(blank=_nodata(series))
        _check_length(path, version, _tiff_end(series))
        if series.dataoffset is not None and len(series.levels) == 1:
            dtype = series.dtype.newbyteorder(tiff.byteorder).str
            _check_length(
                path, version, series.dataoffset + math.prod(axes.shape) * series.dtype.itemsize
            )
            return RawReader(path, version, series.dataoffset, dtype, "C", axes, info, scaling)
        chunk = math.prod(series.keyframe.chunks) * series.dtype.itemsize
        _check_segments(path, series.keyframe)
    _check_chunk(path, version, chunk)
    overhead = min(2 * ZARR_CHUNKS_IN_FLIGHT * chunk, 2 * series.nbytes)
    return TiffReader(path, version, number, axes, overhead, info, scaling)


def _check_segments(path: str, page: Any) -> None:
    """Raise InputError if a page lists fewer strips or tiles than its size needs."""
    listed, needed = len(page.dataoffsets), math.prod(page.chunked)
    stored_bits = 8 * sum(int(count) for count in page.databytecounts)
    plain = page.compression == tifffile.COMPRESSION.NONE
    # tifffile may list contiguous strips as one.
    merged = plain and stored_bits >= page.size * int(np.min(page.bitspersample))
    if listed < needed and not merged:
        raise InputError(
            f"{path} needs {needed} strips or tiles for its size but lists {listed}: its header is damaged; "
            "copy it again"
        )


def _check_chunk(path: str, version: FileVersion, chunk_bytes: int) -> None:
    """Raise InputError if a decoded chunk is too large to be stored in the file."""
    limit = max(MAX_CHUNK_BYTES, MAX_COMPRESSION * file_size(path, version))
    if chunk_bytes > limit:
        raise InputError(
            f"{path} states strips or tiles of {chunk_bytes} bytes, but a file of its size may have {limit} at most: "
            "its header is damaged; copy it again"
        )


def _series_number(path: str, tiff: tifffile.TiffFile, hdu: int | str | None) -> int:
    count = len(tiff.series)
    if not count:
        raise ValueError("it holds no image")
    text = "0" if hdu is None else str(hdu)
    if not text.isdigit() or int(text) >= count:
        raise InputError(f"{path} has no series {hdu!r}: --hdu is a number from 0 to {count - 1}")
    return int(text)


def _tiff_axes(series: Any, path: str) -> Axes:
    """Return the axes of a series: Y, X, and at most one other axis longer than 1."""
    letters, shape = str(series.axes), tuple(int(n) for n in series.shape)
    others = [i for i, n in enumerate(shape) if n > 1 and letters[i] not in "YX"]
    if "YX" not in letters or len(others) > 1:
        raise InputError(
            f"{path} has axes {letters} {shape}: an image has (y, x) and one axis of bands "
            "at most; write one plane to a new file"
        )
    y, band = letters.index("YX"), others[0] if others else -1
    bands = shape[band] if others else 1
    fold_axes((bands, *shape[y : y + 2]), path)
    alpha = len(series.keyframe.extrasamples) if others and letters[band] == "S" else 0
    return Axes(shape, y, band, max(bands - alpha, 1))


def _tiff_end(series: Any) -> int:
    """Return the end of the last segment, since tifffile reads a truncated segment as zeros."""
    pages = (page for page in series.pages if page is not None)
    ends = (
        int(offset + count)
        for page in pages
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    return max(ends, default=0)


def _nodata(series: Any) -> float | None:
    """Return the no-data value of GDAL, or None."""
    tag = series.keyframe.tags.get(_GDAL_NODATA)
    try:
        value = float(tag.value)
    except (AttributeError, TypeError, ValueError):
        return None
    return None if math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class TiffReader:
    """Reader of a compressed or tiled TIFF series, which is decoded chunk by chunk."""

    path: str
    version: FileVersion
    series: int
    axes: Axes
    overhead_bytes: int
    info: ImageInfo
    scaling: Scaling

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield the stored numbers of a box."""
        try:
            opened = _open_series(self.path, self.version, self.series, os.getpid())
            yield np.asarray(opened.array[self.axes.index(box, band)])
        except LIBRARY_ERRORS as error:
            raise _reading_error(self.path, error) from None

    def digest(self) -> str:
        """Return the digest of the file."""
        return digest_file(self.path, self.version)


class _Series:
    """An open TIFF series, which is closed when it is garbage-collected."""

    def __init__(self, path: str, version: FileVersion, number: int) -> None:
        file = open_bytes(path, version)
        tiff = tifffile.TiffFile(file)
        self._finalizer = weakref.finalize(self, _close, tiff, file)
        store: Any = tiff.series[number].aszarr(level=0)
        self.array: Any = zarr.open_array(store, mode="r")


def _close(tiff: tifffile.TiffFile, file: BinaryIO) -> None:
    tiff.close()
    file.close()


@lru_cache(maxsize=16)
def _open_series(path: str, version: FileVersion, number: int, process: int) -> _Series:
    with silence_warnings():
        return _Series(path, version, number)


# ---------------------------------------------------------------- images that are decoded whole


@dataclass(frozen=True, slots=True)
class WholeReader:
    """Reader of a PNG or JPEG image, which is decoded whole once per process."""

    path: str
    version: FileVersion
    axes: Axes
    info: ImageInfo
    scaling: Scaling = AS_STORED

    @property
    def overhead_bytes(self) -> int:
        """The decoded image, and its parts while they are assembled."""
        return 2 * math.prod(self.axes.shape) * np.dtype(self.info.dtype).itemsize

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield a view of the decoded image."""
        try:
            yield _decode(self.path, self.version)[self.axes.index(box, band)]
        except LIBRARY_ERRORS as error:
            raise _reading_error(self.path, error) from None

    def digest(self) -> str:
        """Return the digest of the file."""
        return digest_file(self.path, self.version)


def _open_picture_whole(path: str, _: int | str | None) -> Reader:
    _check_depth(path)
    version = file_version(path)
    with open_bytes(path, version) as file, _open_picture(file) as image:
        width, height = image.size
    if width * height > MAX_WHOLE_PIXELS:
        raise InputError(
            f"{path} has {height} x {width} px, but PNG and JPEG are decoded whole and may have "
            f"{MAX_WHOLE_PIXELS} px at most: convert it to tiled TIFF or zarr"
        )
    values = _decode(path, version)
    grey = values.ndim == 2
    axes = Axes(values.shape, 0, -1 if grey else 2, 1 if grey else values.shape[2])
    return WholeReader(path, version, axes, _make_info(axes, values.dtype, path))


def _check_depth(path: str) -> None:
    """Raise InputError for a 16-bit colour PNG, which Pillow would silently reduce to 8 bits."""
    start = peek(path, 26)
    if start.startswith(_PNG) and start[24:25] == b"\x10" and start[25:] != b"\0":
        raise InputError(
            f"{path} is a 16-bit PNG with colour or alpha, of which only 8 bits would be read: "
            "convert it to TIFF"
        )


_PLAIN_MODES = {"LA": "L", "La": "L"} | dict.fromkeys(
    ("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"
)
"""Mode of Pillow -> mode that it is converted to."""


def _open_picture(file: BinaryIO) -> Pillow.Image:
    """Open a picture without the size limit of Pillow, which is below `MAX_WHOLE_PIXELS`.

    The limit is global: call this inside `silence_warnings`, whose lock protects it.
    """
    limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
    try:
        return Pillow.open(file)
    finally:
        Pillow.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=4)
def _decode(path: str, version: FileVersion) -> NDArray[Any]:
    """Return the stored values, (h, w) or (h, w, 3); palettes are resolved, alpha is dropped."""
    with silence_warnings(), open_bytes(path, version) as file, _open_picture(file) as image:
        plain = _PLAIN_MODES.get(image.mode)
        return np.asarray(image.convert(plain) if plain else image)
