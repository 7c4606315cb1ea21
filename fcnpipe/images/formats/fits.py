"""Reader of FITS images: plain, scaled, tile-compressed, gzip or bzip2 files, local or behind a URL.

::

    plain            rows of the box, strip by strip -> byte swap, BSCALE, BZERO, BLANK -> float32
                     (behind a URL: all rows of the box are fetched concurrently)
    tile-compressed  box -> cells (whole compression tiles), decoded once and cached -> box
    gzip, bzip2      decompressed once to a temporary file, then as above
"""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any, cast

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box, TileGrid, round_up
from fcnpipe.core.records import ImageInfo
from fcnpipe.images.axes import band_index, fold_axes, number_bands, shorten
from fcnpipe.images.base import Reader
from fcnpipe.images.decompression import DecompressedFile, open_decompressed, peek_decompressed
from fcnpipe.images.digests import digest_file
from fcnpipe.images.errors import LIBRARY_ERRORS, first_line, reading_error, silence_warnings
from fcnpipe.images.file_access import (
    open_bytes,
    read_rows,
)
from fcnpipe.images.hdu_sizes import check_sizes
from fcnpipe.images.headers import is_structural
from fcnpipe.images.scaling import AS_STORED, Scaling
from fcnpipe.remote import ObjectVersion

CACHE_BYTES = 256 << 20
"""Size of the cache of decoded cells; it holds a row of 1,100-px boxes of an image 60,000 px wide."""
CELL_ROWS = 64
"""Minimum height of a cell of an image that is compressed by rows, px."""
CELL_EDGE = 512
"""Minimum edge of a cell of an image that is compressed by rectangles, px."""
MAX_TILE_PIXELS = 1 << 28
"""Maximum size of a compression tile of which less than 1 byte in `MAX_PIXELS_PER_BYTE` px is stored, px."""
MAX_PIXELS_PER_BYTE = 4096
"""Maximum number of pixels of a large compression tile per stored byte; PLIO stores runs of 4095 px."""
_DESCRIPTOR_BYTES = 8
"""Size of the table entry of a compression tile."""
_MAGIC = b"SIMPLE  ="
_NOT_INHERITED = re.compile(
    r"COMMENT|HISTORY|EXTNAME|EXTVER|INHERIT|WCSAXES.?|(CRPIX|CRVAL|CTYPE|CUNIT|CDELT|CROTA)\d+.?"
    r"|(CD|PC|PV|PS)\d+_\d+.?|[AB]P?_.*|(LON|LAT)POLE.?|NEXTEND"
)


def recognises(path: str) -> bool:
    """Return whether the content of a file, after decompression, starts like a FITS file."""
    return peek_decompressed(path, len(_MAGIC)) == _MAGIC


def open_reader(path: str, hdu: int | str | None) -> Reader:
    """Open one HDU.

    Raises
    ------
    InputError
        If there is no such HDU or image, if its axes are not those of an image, or if the file is shorter
        than its header states.
    """
    file = open_decompressed(path)
    with _open_hdu_list(file) as hdus:
        index = _choose_hdu(path, hdus, hdu)
        try:
            return _make_reader(file, hdus.astropy_list, index)
        except InputError:
            raise
        except LIBRARY_ERRORS as error:
            raise _reading_error(path, error) from None


# ---------------------------------------------------------------- files


class _AstropyList(fits.HDUList):  # type: ignore[misc]
    def update_extend(self) -> None:
        """Leave EXTEND as it is: astropy would read the second HDU on opening, before its sizes are checked."""


class _HduList:
    """The HDUs of an open file, in order; the sizes in each header are checked before astropy reads it."""

    def __init__(self, file: DecompressedFile) -> None:
        path, version = file.content_path(), file.content_version
        self._source = open_bytes(path, version)
        try:
            check_sizes(self._source, 0, "HDU 0")
            self._source.seek(0)
            source = self._source if isinstance(version, ObjectVersion) else path
            self.astropy_list = _AstropyList.fromfile(
                source, mode="readonly", memmap=False, lazy_load_hdus=True
            )
        except BaseException:
            self._source.close()
            raise

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for number in count():
            check_sizes(self._source, start, f"HDU {number}")
            try:
                hdu = self.astropy_list[number]
            except IndexError:
                return
            yield hdu
            place = hdu.fileinfo()
            stop = place["datLoc"] + place["datSpan"]
            if stop <= start:
                raise ValueError(f"HDU {number} ends at byte {stop}, but it starts at byte {start}")
            start = stop

    def __getitem__(self, index: int) -> Any:
        return next(islice(self, index, None))

    def close(self) -> None:
        self.astropy_list.close()
        self._source.close()


@contextmanager
def _open_hdu_list(file: DecompressedFile) -> Iterator[_HduList]:
    with silence_warnings():
        hdus = _open_with_astropy(file)
        try:
            yield hdus
        finally:
            hdus.close()


def _open_with_astropy(file: DecompressedFile) -> _HduList:
    try:
        return _HduList(file)
    except LIBRARY_ERRORS as error:
        raise _reading_error(file.path, error) from None


def _reading_error(path: str, error: BaseException) -> InputError:
    reason = first_line(error)
    return reading_error(
        error, f"{path} cannot be read as FITS: {reason}; if truncated, copy it again"
    )


# ---------------------------------------------------------------- choice of the HDU


def _choose_hdu(path: str, hdus: _HduList, hdu: int | str | None) -> int:
    try:
        index = _first_image(hdus) if hdu is None else _find_hdu(hdus, hdu)
        if index is not None and _is_image(hdus.astropy_list[index]):
            return index
        listed = _list_hdus(hdus)
    except LIBRARY_ERRORS as error:
        raise _reading_error(path, error) from None
    if index is None and hdu is None:
        raise InputError(f"{path} holds no image, only {listed}: use a file with an image")
    if index is None:
        raise InputError(f"{path} has no HDU {hdu!r}, only {listed}: choose one of them")
    raise InputError(f"{path}: HDU {hdu!r} holds no image; the file has {listed}")


def _first_image(hdus: _HduList) -> int | None:
    return next((i for i, hdu in enumerate(hdus) if _is_image(hdu) and len(hdu.shape) >= 2), None)


def _find_hdu(hdus: _HduList, wanted: int | str) -> int | None:
    if isinstance(wanted, int) or wanted.strip().isdigit():
        return next((i for i, _ in enumerate(hdus) if i == int(wanted)), None)
    name, _, version = wanted.strip().upper().partition(",")
    return next((i for i, hdu in enumerate(hdus) if _matches(hdu, name, version.strip())), None)


def _matches(hdu: Any, name: str, version: str) -> bool:
    """Return whether an HDU has this EXTNAME, and this EXTVER unless that is empty."""
    return _read_name(hdu).upper() == name.strip() and version in ("", str(hdu.ver))


def _read_name(hdu: Any) -> str:
    """Return the name of an HDU; empty if its card cannot be read."""
    try:
        return str(hdu.name)
    except fits.VerifyError:
        return ""


def _is_image(hdu: Any) -> bool:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and bool(hdu.shape)


def _list_hdus(hdus: _HduList) -> str:
    first = list(islice(hdus, 21))
    lines = [
        f"{i} {_read_name(hdu) or 'unnamed'} {_describe_hdu(hdu)}" for i, hdu in enumerate(first)
    ]
    return ", ".join(lines[:20]) + (", ..." if len(lines) > 20 else "")


def _describe_hdu(hdu: Any) -> str:
    if not _is_image(hdu):
        return "(no image)"
    return "(" + shorten(" x ".join(str(n) for n in hdu.shape)) + ")"


# ---------------------------------------------------------------- readers


def _make_reader(file: DecompressedFile, hdus: fits.HDUList, index: int) -> Reader:
    hdu, name = hdus[index], f"{file.path} HDU {index}"
    shape = tuple(int(n) for n in hdu.shape)
    folded, dtype = fold_axes(shape, name), _stored_dtype(hdu.header)
    info = ImageInfo(
        shape=folded,
        dtype=dtype.newbyteorder("=").name,
        cards=_collect_cards(hdus, hdu),
        bands=number_bands(folded[0]),
        unit=str(hdu.header.get("BUNIT", "")).strip(),
    )
    place = hdu.fileinfo()
    extent = Extent(place["hdrLoc"], place["datLoc"], place["datLoc"] + place["datSpan"])
    if isinstance(hdu, fits.CompImageHDU):
        # The padding of the last block of 2880 bytes may be missing.
        _check_length(file, extent.stop - 2879, name)
        _check_tiles(hdu, shape, extent, name)
        return CompressedReader(file, index, shape, _choose_cell(hdu, folded), extent, info)
    size = dtype.itemsize * math.prod(folded)
    _check_length(file, extent.data + size, name)
    return PlainReader(file, extent, dtype.str, info, _read_scaling(hdu.header))


def _stored_dtype(header: fits.Header) -> np.dtype[Any]:
    bits = int(header["BITPIX"])
    kind = "f" if bits < 0 else "u" if bits == 8 else "i"
    return np.dtype(f">{kind}{abs(bits) // 8}")


def _read_scaling(header: fits.Header) -> Scaling:
    blank = header.get("BLANK") if header["BITPIX"] > 0 else None
    return Scaling(float(header.get("BSCALE", 1)), float(header.get("BZERO", 0)), blank)


def _collect_cards(hdus: fits.HDUList, hdu: Any) -> tuple[str, ...]:
    """Return the cards of an HDU and those that it inherits from the primary header."""
    cards = [card for card in hdu.header.cards if not is_structural(card)]
    if hdu is not hdus[0] and hdu.header.get("INHERIT") is True:
        cards += [card for card in hdus[0].header.cards if _is_inherited(card, hdu.header)]
    return tuple(filter(None, map(_card_text, cards)))


def _card_text(card: fits.Card) -> str:
    """Return the text of a card; empty if the card is so broken that it cannot be written."""
    try:
        return str(card)
    except fits.VerifyError:
        return ""


def _is_inherited(card: fits.Card, header: fits.Header) -> bool:
    own = not card.keyword or card.keyword in header
    return not (own or is_structural(card) or _NOT_INHERITED.fullmatch(card.keyword))


def _check_length(file: DecompressedFile, needed: int, name: str) -> None:
    if file.size_bytes < needed:
        raise InputError(
            f"{name} needs {needed} bytes but the file ends at {file.size_bytes}: truncated; "
            "copy it again"
        )


def _check_tiles(hdu: Any, shape: tuple[int, ...], extent: Extent, name: str) -> None:
    """Raise InputError if the stored bytes cannot hold the compression tiles that the header states."""
    stored = extent.stop - extent.data
    pairs = [(int(n), int(t)) for n, t in zip(shape, hdu.tile_shape, strict=True)]
    tiles, pixels = math.prod(-(-n // t) for n, t in pairs), math.prod(min(pair) for pair in pairs)
    if tiles * _DESCRIPTOR_BYTES > stored or pixels > max(
        MAX_TILE_PIXELS, MAX_PIXELS_PER_BYTE * stored
    ):
        raise InputError(
            f"{name} has axes {shorten(shape)} in {tiles} compression tiles of {pixels} px, too many for its {stored} "
            "stored bytes: ZNAXISn or ZTILEn is damaged; copy it again"
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """Position of an HDU in its file, bytes.

    Attributes
    ----------
    header, data, stop : int
        Start of the header, start of the data, end of the data with its padding.
    """

    header: int
    data: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlainReader:
    """Reader of an image that is stored as rows of numbers.

    Attributes
    ----------
    dtype : str
        Dtype of the stored numbers, big-endian.
    """

    file: DecompressedFile
    extent: Extent
    dtype: str
    info: ImageInfo
    scaling: Scaling

    @property
    def overhead_bytes(self) -> int:
        """One stored strip and one of float64. Objects behind URLs need the stored box in addition."""
        return 1 << 22

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield strips of the rows of a box."""
        item = np.dtype(self.dtype).itemsize
        shape = box.shape[0], box.shape[1] * item, self.info.shape[2] * item
        start = self._offset(band, box.y0, box.x0)
        if box.size == 0:
            return
        try:
            for rows in read_rows(
                self.file.content_path(), self.file.content_version, start, shape
            ):
                yield rows.view(self.dtype)
        except (OSError, ValueError, EOFError) as error:
            raise _reading_error(self.file.path, error) from None

    def _offset(self, band: int, y: int, x: int) -> int:
        """Return the position of a pixel in the file, bytes."""
        _, height, width = self.info.shape
        pixel = (band * height + y) * width + x
        return self.extent.data + pixel * np.dtype(self.dtype).itemsize

    def digest(self) -> str:
        """Return the digest of header, data and inherited cards."""
        return _digest_hdu(self.file, self.extent, self.info)


@dataclass(frozen=True, slots=True)
class CompressedReader:
    """Reader of a tile-compressed image, through ``.section`` of astropy.

    Attributes
    ----------
    index : int
        Number of the HDU.
    shape : tuple of int
        All axes of the array, as astropy sees it.
    cell : (int, int)
        Height and width of the parts that are decoded at a time: whole compression tiles.
    """

    file: DecompressedFile
    index: int
    shape: tuple[int, ...]
    cell: tuple[int, int]
    extent: Extent
    info: ImageInfo
    scaling: Scaling = AS_STORED

    @property
    def overhead_bytes(self) -> int:
        """The cache of decoded cells, and a few copies of the cell being decoded."""
        cell = 8 * self.cell[0] * self.cell[1]
        return min(CACHE_BYTES, 8 * math.prod(self.info.shape)) + 4 * cell

    def read_strips(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Yield a box, assembled from decoded cells."""
        grid = TileGrid(self.info.shape[1:], self.cell)
        values: NDArray[Any] | None = None
        for part in grid.cores_in(box):
            pixels = _read_part(self, band, part, grid.tile_at(part.y0, part.x0).core)
            if values is None:
                values = np.empty(box.shape, pixels.dtype)
            values[part.within(box)] = pixels
        if values is not None:
            yield values

    def digest(self) -> str:
        """Return the digest of header, compressed data and inherited cards."""
        return _digest_hdu(self.file, self.extent, self.info)


def _digest_hdu(file: DecompressedFile, extent: Extent, info: ImageInfo) -> str:
    span = extent.header, extent.stop
    return digest_file(file.content_path(), file.content_version, span, "".join(info.cards))


def _choose_cell(hdu: Any, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return height and width of a cell: whole compression tiles, large enough for one call of astropy."""
    _, height, width = shape
    tile = hdu.tile_shape[-2:] if isinstance(hdu, fits.CompImageHDU) else (1, width)
    minimum = (CELL_ROWS, width) if 2 * tile[1] > width else (CELL_EDGE, CELL_EDGE)
    return (
        min(round_up(minimum[0], int(tile[0])), height),
        min(round_up(minimum[1], int(tile[1])), width),
    )


# ---------------------------------------------------------------- decoded cells

_DECODER_LOCK = threading.RLock()
_DECODED_CELLS: OrderedDict[tuple[_OpenHdu, int, Box], NDArray[Any]] = OrderedDict()


class _OpenHdu:
    """An open HDU, which is closed when it is garbage-collected."""

    def __init__(self, reader: CompressedReader) -> None:
        with silence_warnings():
            hdus = _open_with_astropy(reader.file)
            self._finalizer = weakref.finalize(self, hdus.close)
            self._hdu = hdus[reader.index]
        self._shape, self._path = reader.shape, reader.file.path

    def decode(self, band: int, core: Box) -> NDArray[Any]:
        try:
            with silence_warnings():
                values = self._hdu.section[(*band_index(self._shape, band), *core.slices)]
        except LIBRARY_ERRORS as error:
            raise _reading_error(self._path, error) from None
        return cast(NDArray[Any], values)


@lru_cache(maxsize=16)
def _open_hdu(reader: CompressedReader, process: int) -> _OpenHdu:
    return _OpenHdu(reader)


def _read_part(reader: CompressedReader, band: int, part: Box, core: Box) -> NDArray[Any]:
    """Return a part of a decoded cell; the part is decoded alone if the cell is damaged elsewhere."""
    try:
        return _read_cell(reader, band, core)[part.within(core)]
    except InputError:
        with _DECODER_LOCK:
            return _open_hdu(reader, os.getpid()).decode(band, part)


def _read_cell(reader: CompressedReader, band: int, core: Box) -> NDArray[Any]:
    """Return a decoded cell, from the cache if possible; one thread decodes at a time.

    Notes
    -----
    The lock is per process, not per file: the HCOMPRESS decoder of astropy 8 keeps its state in static
    variables and releases the GIL (two threads fail with 'bad format code').
    """
    with _DECODER_LOCK:
        hdu = _open_hdu(reader, os.getpid())
        key = (hdu, band, core)
        if key not in _DECODED_CELLS:
            _DECODED_CELLS[key] = hdu.decode(band, core)
        _DECODED_CELLS.move_to_end(key)
        _shrink_cache()
        return _DECODED_CELLS[key]


def _shrink_cache() -> None:
    held = sum(cell.nbytes for cell in _DECODED_CELLS.values())
    while held > CACHE_BYTES and len(_DECODED_CELLS) > 1:
        held -= _DECODED_CELLS.popitem(last=False)[1].nbytes
