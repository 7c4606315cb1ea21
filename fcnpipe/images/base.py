r"""What every image is, and what a new format must give: a `Reader` in one file of this folder.

::

    open_image --> Image --- band 0 --> Reader (FITS, zarr, TIFF, ...) --> cut(box) --> Scaling
                        \-- band 1 --> the same reader, or that of another file

Readers keep no open file: they are small frozen records that travel to workers by pickle, and each
process opens what it needs when it reads.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import threading
import tokenize
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from astropy.io import fits
from numba import njit, types
from numpy.typing import NDArray

from fcnpipe import remote
from fcnpipe.core.errors import InputChanged, InputError, InputUnreachable
from fcnpipe.core.geometry import Box
from fcnpipe.core.paths import split_part
from fcnpipe.core.records import ImageInfo
from fcnpipe.core.resource_usage import count_read
from fcnpipe.remote import Stamp, is_remote

Float = NDArray[np.float32]
PathLike = str | os.PathLike[str]
Version = tuple[int, int] | Stamp
"""Size and time of change of a local file, or what a server says of an object."""

STRIP = 128
"""Rows that are scaled at a time, so that the float64 intermediate stays in the cache."""
STRIP_BYTES = 256 << 10
"""Bytes of a local file that are read at a time: from the cache of the system to that of a core."""
GAP_BYTES = 4 << 10
"""Bytes between two rows that are read along: a call of the system costs more."""
COLOURS = 4
"""Most bands that an array has whose last axis they are: red, green, blue and alpha."""
CHUNKS_IN_FLIGHT = 10
"""Chunks that zarr decodes at a time, as it comes."""
_READ_BYTES = 1 << 20
_PART_BYTES = 32 << 20
_FILTERS = threading.RLock()
ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of what describes an array or a group of them."""
DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError, RuntimeError,
    SyntaxError, zlib.error, struct.error, tokenize.TokenError, fits.VerifyError,
)  # fmt: skip
"""What libraries raise when they meet a broken file."""
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|GROUPS|[PG]COUNT|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM"
    r"|TFIELDS|T(TYPE|FORM|DIM|NULL|UNIT)\d+|END|"
    r"Z(IMAGE|SIMPLE|TENSION|BITPIX|NAXIS\d*|EXTEND|[PG]COUNT|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|QUANTIZ"
    r"|DITHER0|BLANK|SCALE|ZERO|HECKSUM|DATASUM|BLOCKED|MASKCMP)"
)


class Reader(Protocol):
    """One file (or store, or HDU) of one format; picklable and hashable, without open handles.

    Notes
    -----
    A module of this folder also gives ``recognises(path) -> bool`` and
    ``open_reader(path, hdu) -> Reader``.
    """

    @property
    def info(self) -> ImageInfo:
        """What is known before a pixel is read."""
        ...

    @property
    def scaling(self) -> Scaling:
        """How a stored number becomes a pixel value."""
        ...

    @property
    def overhead_bytes(self) -> int:
        """Most memory that a process takes for reading, over and above the box itself."""
        ...

    def cut(self, box: Box, band: int) -> Iterator[NDArray[Any]]:
        """Give the stored numbers of a box as strips of its rows, (n, w) of any real dtype, from the top.

        Notes
        -----
        Safe from several threads. A strip may be overwritten when the next one is asked for.
        """
        ...

    def digest(self) -> str:
        """Hexadecimal digest of the content, read as a stream."""
        ...


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a stored number becomes a pixel value: ``offset + factor * stored``.

    Attributes
    ----------
    factor, offset : float
        FITS ``BSCALE`` and ``BZERO``, or CF ``scale_factor`` and ``add_offset``.
    blank : int or float, optional
        Stored number that means "no data" (FITS ``BLANK``, CF ``_FillValue``).

    Examples
    --------
    >>> Scaling(2.0, 1.0, blank=-9).to_float(np.array([[0, 3, -9]], np.int16))
    array([[ 1.,  7., nan]], dtype=float32)
    """

    factor: float = 1.0
    offset: float = 0.0
    blank: int | float | None = None

    def to_float(self, stored: NDArray[Any]) -> Float:
        """Give (h, w) float32, native and contiguous; NaN is blank.

        Notes
        -----
        Scaled in float64 and rounded once, so a value does not depend on the size of its array.
        Integers beyond 2**24 and doubles are rounded; out of float32's range they are infinite.
        """
        values = np.empty(stored.shape, np.float32)
        self.fill(values, stored)
        return values

    def fill(self, values: NDArray[Any], stored: NDArray[Any]) -> None:
        """Write into ``values`` what :meth:`to_float` gives; doubles are not rounded."""
        for start in range(0, len(stored), STRIP):
            rows = slice(start, start + STRIP)
            with np.errstate(over="ignore", invalid="ignore"):
                values[rows] = self._apply(stored[rows])

    def to_integer(self, stored: NDArray[Any]) -> NDArray[np.int64]:
        """Give (h, w) int64; blank, NaN and infinite are -1, that is all bits set.

        Notes
        -----
        Fractions are rounded away from zero: what is not zero in a mask stays so. Unsigned 64-bit
        numbers keep their bits.
        """
        if stored.dtype.kind == "f" or self.factor != 1 or not self.offset.is_integer():
            with np.errstate(invalid="ignore"):
                return _round_outwards(self._apply(stored.astype(np.float64)))
        shift = np.uint64(int(self.offset) % 2**64).astype(np.int64)
        values = stored.astype(np.int64) + shift
        if self.blank is not None:
            values[stored == self.blank] = -1
        return values

    def _apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        if self == AS_STORED:
            return stored
        values: NDArray[Any] = stored.astype("f4" if self._is_short(stored) else "f8")
        if self.factor != 1:
            values *= self.factor
        values += self.offset
        if self.blank is not None:
            values[stored == self.blank] = np.nan
        return values

    def _is_short(self, stored: NDArray[Any]) -> bool:
        """Whether float32 holds every value exactly (unsigned 16 bits kept as signed, mostly)."""
        short = stored.dtype.kind in "biu" and stored.dtype.itemsize <= 2
        shift = self.factor == 1 and self.offset.is_integer() and abs(self.offset) < 2**22
        return short and shift


AS_STORED = Scaling()
"""The stored number is the value."""


def _round_outwards(values: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.isfinite(values)
    whole = np.copysign(np.ceil(np.abs(values)), values)
    return np.where(known, whole, -1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one or more bands, read by box and never as a whole.

    Attributes
    ----------
    readers : tuple of Reader
        One for each file; the bands of the first come first.
    info : ImageInfo
        What is known before a pixel is read; its ``digest`` is empty, see :meth:`digest`.
    """

    readers: tuple[Reader, ...]
    info: ImageInfo

    def read(self, box: Box, band: int = 0) -> Float:
        """Give a box of a band.

        Parameters
        ----------
        box : Box
            Inside the image.
        band : int
            Counted from 0.

        Returns
        -------
        (h, w) float32
            Native and contiguous; NaN where there is no data (the ``BLANK`` of integers too).

        Raises
        ------
        InputError
            If the file is gone, damaged or shorter than it was.
        """
        values = np.empty(box.shape, np.float32)
        self._fill(values, box, band)
        return values

    def read_double(self, box: Box, band: int = 0) -> NDArray[np.float64]:
        """Give a box of a band, (h, w) float64: :meth:`read` for what a float32 may not hold."""
        values = np.empty(box.shape, np.float64)
        self._fill(values, box, band)
        return values

    def _fill(self, values: NDArray[Any], box: Box, band: int) -> None:
        reader, own = self._find(box, band)
        for rows, stored in _cut(reader, box, own):
            reader.scaling.fill(values[rows], stored)

    def read_integer(self, box: Box, band: int = 0) -> NDArray[np.int64]:
        """Give a box of a mask, (h, w) int64: every bit kept, -1 where there is no data.

        Raises
        ------
        InputError
            As for :meth:`read`.
        """
        reader, own = self._find(box, band)
        values = np.empty(box.shape, np.int64)
        for rows, stored in _cut(reader, box, own):
            values[rows] = reader.scaling.to_integer(stored)
        return values

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the content; reads all of it, as a stream.

        Notes
        -----
        FITS: header and data unit of the HDU, unpacked. zarr: every stored object below the array,
        metadata and chunks, in order of name. Other formats: the file.
        """
        digests = [reader.digest() for reader in self.readers]
        return digests[0] if len(digests) == 1 else _hash(",".join(digests).encode())

    @property
    def satur_level(self) -> float | None:
        """Least saturation level that a header states, image units; none if unknown."""
        levels = (find_number(r.info, ("SATURATE", "SATLEVEL")) for r in self.readers)
        return min((level for level in levels if level is not None), default=None)

    @property
    def gain(self) -> float | None:
        """Electrons per unit as the first header states, if positive; none if unknown."""
        value = find_number(self.info, ("GAIN", "EGAIN"))
        return value if value is not None and value > 0 else None

    @property
    def overhead_bytes(self) -> int:
        """Most memory that a process takes for reading, over and above the box itself."""
        return max(reader.overhead_bytes for reader in self.readers)

    def _find(self, box: Box, band: int) -> tuple[Reader, int]:
        bands, height, width = self.info.shape
        if not Box(0, 0, height, width).contains(box) or not 0 <= band < bands:
            raise IndexError(f"{box} of band {band} is not inside an image of {self.info.shape}")
        for reader in self.readers:
            if band < reader.info.shape[0]:
                return reader, band
            band -= reader.info.shape[0]
        raise AssertionError("bands of the readers add up to those of the image")


def _cut(reader: Reader, box: Box, band: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Give each strip of a box and the rows where it belongs."""
    start = 0
    for stored in reader.cut(box, band):
        count_read(stored.nbytes)
        yield slice(start, start + len(stored)), stored
        start += len(stored)


def stack_readers(readers: Sequence[Reader], names: Sequence[str]) -> Image:
    """Give one image with the bands of all readers, in order.

    Parameters
    ----------
    readers : sequence of Reader
        At least one.
    names : sequence of str
        File of each reader, for messages and for the names of the bands.

    Raises
    ------
    InputError
        If heights or widths differ.
    """
    first = readers[0].info
    for reader, name in zip(readers, names, strict=True):
        if reader.info.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name} is {say_shape(reader.info.shape)} px but {names[0]} is "
                f"{say_shape(first.shape)} px: bands of one image have one shape; resample them"
            )
    if len(readers) == 1:
        return Image((readers[0],), first)
    count = sum(reader.info.shape[0] for reader in readers)
    info = replace(first, shape=(count, *first.shape[1:]), bands=_name_bands(readers, names))
    return Image(tuple(readers), info)


def _name_bands(readers: Sequence[Reader], names: Sequence[str]) -> tuple[str, ...]:
    files = [split_part(name) for name in names]
    stems = [os.path.basename(file.rstrip("/")).split(".")[0] for file, _ in files]
    if len(set(stems)) < len(stems):
        parts = (f".{part}" if part else "" for _, part in files)
        stems = [stem + part for stem, part in zip(stems, parts, strict=True)]
    bands = [
        stem if len(reader.info.bands) == 1 else f"{stem}.{band}"
        for stem, reader in zip(stems, readers, strict=True)
        for band in reader.info.bands
    ]
    return tuple(bands) if len(set(bands)) == len(bands) else number_bands(len(bands))


def number_bands(count: int) -> tuple[str, ...]:
    """Give names for bands that have none: '0', '1', ..."""
    return tuple(str(i) for i in range(count))


def header_value(info: ImageInfo, key: str, default: Any = None) -> Any:
    """Give the value of a header card, or ``default`` if there is none.

    Examples
    --------
    >>> info = ImageInfo((1, 9, 9), "int16", (str(fits.Card("GAIN", 2.5)),))
    >>> header_value(info, "gain"), header_value(info, "SATURATE")
    (2.5, None)
    """
    value = _parse_cards(info.cards).get(key, default)
    return default if isinstance(value, fits.card.Undefined) else value


def find_number(info: ImageInfo, keys: Sequence[str]) -> float | None:
    """Give the first of these cards that holds a finite number, or none."""
    for key in keys:
        value = header_value(info, key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


@lru_cache(maxsize=16)
def _parse_cards(cards: tuple[str, ...]) -> dict[str, Any]:
    with quiet():
        header = fits.Header.fromstring("".join(pad_card(card) for card in cards))
        return _Upper((card.keyword, _value(card)) for card in header.cards)


class _Upper(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.upper(), default)


def _value(card: fits.Card) -> Any:
    try:
        return card.value
    except fits.VerifyError:
        return None


def pad_card(card: str) -> str:
    """Fill a card up to 80 characters, or a multiple of them."""
    return card.ljust(-(-len(card) // 80) * 80)


def is_structure(card: fits.Card) -> bool:
    """Whether a card says how the pixels are stored, which is no longer true of what is read."""
    return bool(_STRUCTURE.fullmatch(card.keyword))


def fold_axes(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Give (bands, height, width) of an array; axes of length 1 in front are dropped.

    Raises
    ------
    InputError
        If more than three axes are longer than 1, there are fewer than two, one is empty, or the bands
        come last.

    Examples
    --------
    >>> fold_axes((1, 3, 20, 30), "radio.fits"), fold_axes((20, 30), "a.fits")
    ((3, 20, 30), (1, 20, 30))
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) < 2 or sum(n > 1 for n in shape[:-2]) > 1:
        raise InputError(
            f"{name} has axes {shape}: an image has (y, x) or (band, y, x), and any others of "
            "length 1; cut out one plane or cube first"
        )
    if min(shape) == 0:
        raise InputError(
            f"{name} has axes {shape}: it has no pixels; every axis must be at least 1"
        )
    bands, height, width = math.prod(shape[:-2]), shape[-2], shape[-1]
    if width <= COLOURS and min(bands, height) > COLOURS**2:
        raise InputError(
            f"{name} has axes {shape}, as if they were (y, x, band): move the last one to the front"
        )
    return bands, height, width


def band_index(shape: Sequence[int], band: int) -> tuple[int, ...]:
    """Give the index into the axes before the last two that picks a band.

    Examples
    --------
    >>> band_index((1, 3, 1, 20, 30), 2)
    (0, 2, 0)
    """
    return tuple(band if n > 1 else 0 for n in shape[:-2])


def check_real(dtype: np.dtype[Any], name: str) -> None:
    """Refuse pixels that are not real numbers.

    Raises
    ------
    InputError
        If the dtype is complex, text, object or a record.
    """
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds {dtype} pixels: only integers and floats are images; "
            "write the modulus or the part you want to a new file"
        )


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, or its name; of a KeyError what it misses."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return (str(error) or type(error).__name__).splitlines()[0]


def say_shape(shape: Sequence[int]) -> str:
    """Give a shape for messages, '3 x 20 x 30', a single band left out."""
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return " x ".join(str(n) for n in shape)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of a library inside a block, one thread at a time.

    Notes
    -----
    Python keeps its warning filters for the process, not for the thread: the lock keeps two
    blocks from restoring each other's.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def locate(path: PathLike) -> str:
    """Give the absolute local path, or the URL: workers may run in another folder.

    Raises
    ------
    SpecError
        If a URL carries a password or a signature.
    InputError
        If a local path does not exist or cannot be read.
    """
    text = os.fspath(path).removeprefix("file://")
    if is_remote(text):
        return remote.check_url(text)
    text = os.path.abspath(os.path.expanduser(text))
    if not os.path.exists(text):
        raise InputError(f"{text} does not exist: check the path")
    if not os.access(text, os.R_OK):
        raise InputError(f"{text} cannot be read: check its permissions")
    return text


def damaged(error: BaseException, message: str) -> InputError:
    """Give the error of a file that cannot be read; what a server said is told as it is."""
    if isinstance(error, remote.Changed):
        return InputChanged(str(error))
    return (
        InputUnreachable(str(error))
        if isinstance(error, remote.RemoteError)
        else InputError(message)
    )


def open_bytes(path: str, when: Version | None = None) -> BinaryIO:
    """Open a local file or a URL, as it was when it had this stamp, for reading bytes."""
    if is_remote(path):
        file = remote.RemoteFile(path, when if isinstance(when, Stamp) else None)
        return cast(BinaryIO, file)
    return open(path, "rb")


def peek(path: str, count: int = 16) -> bytes:
    """Give the first bytes of a file; none of a folder or of what cannot be opened.

    Raises
    ------
    InputError
        If a server does not answer.
    """
    try:
        with open_bytes(path) as handle:
            return handle.read(count)
    except remote.Unreachable as error:
        raise InputUnreachable(str(error)) from None
    except OSError:
        return b""


def stamp(path: str) -> Version:
    """Give what changes when a file is rewritten: size and time (ns), or the server's stamp.

    Raises
    ------
    InputError
        If there is no such object, or its server does not answer.
    """
    if is_remote(path):
        try:
            return remote.look(path)
        except remote.RemoteError as error:
            raise InputUnreachable(str(error)) from None
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def trace(path: str, thorough: bool = False) -> str:
    """Give what changes with the content of a file, without reading it; empty if that takes long.

    Parameters
    ----------
    path : str
        Local path or URL, as `locate` gives it.
    thorough : bool
        Look at every file of a folder, and ask for the version of what lies behind a URL.

    Notes
    -----
    Number, size and time of change on disk. Times are compared for being equal, never for being
    later: a clock that is set does no harm.
    """
    if is_remote(path):
        return _ask_version(path) if thorough else ""
    if os.path.isdir(path):
        return _trace_folder(path) if thorough else ""
    return _trace_file(path)


def _ask_version(url: str) -> str:
    """Give the stamp of an object, or of all below a URL; of a web server's, that of its metadata."""
    try:
        return str(remote.look(url))
    except remote.Missing:
        return _hash(str(_look_below(url)).encode())


def _look_below(url: str) -> dict[str, Stamp]:
    if remote.can_list(url):
        return remote.list_objects(url)
    return remote.look_at_all(url, ZARR_METADATA)


def _trace_folder(path: str) -> str:
    files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    return _hash("\n".join(f"{file} {_trace_file(file)}" for file in files).encode())


def _trace_file(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def size_of(path: str, when: Version) -> int:
    """Give the length of a file in bytes; of an object, as it was when it was opened."""
    return when.size_bytes if isinstance(when, Stamp) else os.path.getsize(path)


def digest_file(
    path: str, when: Version, extent: tuple[int, int] | None = None, prefix: str = ""
) -> str:
    """Hexadecimal digest of a file or of part of it, from start to stop.

    Notes
    -----
    Of an object, what the server says names its content (ETag or generation) with size and date;
    the content itself where the server says nothing.
    """
    if isinstance(when, Stamp) and when.names_content:
        return new_digest(f"{prefix}{when}{extent}").hexdigest()
    start, stop = extent or (0, None)
    return hash_file(path, start, stop, prefix, when)


def hash_file(
    path: str,
    start: int = 0,
    stop: int | None = None,
    prefix: str = "",
    when: Version | None = None,
) -> str:
    """Hexadecimal SHA-256 of ``prefix`` and of the digests of a file's parts, from start to stop.

    Each part is :data:`_PART_BYTES` long, so that all cores can work on a large file.
    """
    if stop is None:
        stop = size_of(path, stamp(path) if when is None else when)
    digest = new_digest(prefix)
    cuts = range(start, stop, _PART_BYTES)
    ends = [min(cut + _PART_BYTES, stop) for cut in cuts]
    with ThreadPoolExecutor(max(1, min(len(cuts), os.cpu_count() or 1))) as pool:
        for part in pool.map(partial(_hash_part, path, when), cuts, ends):
            digest.update(part)
    return digest.hexdigest()


def _hash_part(path: str, when: Version | None, start: int, stop: int) -> bytes:
    digest = new_digest()
    with open_bytes(path, when) as handle:
        handle.seek(start)
        while start < stop and (block := handle.read(min(stop - start, _READ_BYTES))):
            digest.update(block)
            start += len(block)
    return digest.digest()


def read_rows(
    path: str, when: Version, start: int, shape: tuple[int, int, int]
) -> Iterator[NDArray[np.uint8]]:
    """Give bytes that lie in a file as rows: strips of them, (rows, bytes), from the top.

    Parameters
    ----------
    path, when
        File or object, and its stamp.
    start : int
        First byte of the first row.
    shape : (int, int, int)
        Number of rows, bytes of each, and bytes from one to the next.

    Raises
    ------
    EOFError
        If a local file ends before.

    Notes
    -----
    A local file is read and not mapped: one that is cut short while it is mapped ends the process,
    without a word. Its strips share one buffer; the rows of an object come at once, side by side.
    """
    count, wanted, step = shape
    if isinstance(when, Stamp):
        yield np.ascontiguousarray(remote.read_rows(path, when, start, wanted, step, count))
        return
    width = wanted if step - wanted > GAP_BYTES else step
    buffer = np.empty((min(max(STRIP_BYTES // width, 1), count), width), np.uint8)
    with open(path, "rb", buffering=0) as file:
        for y in range(0, count, len(buffer)):
            strip = buffer[: count - y]
            _fill_strip(file.fileno(), start + y * step, step, strip, wanted)
            yield strip[:, :wanted]


def _fill_strip(file: int, start: int, step: int, strip: NDArray[np.uint8], wanted: int) -> None:
    """Read rows one by one, or at once with what lies between them.

    Notes
    -----
    One by itself is not worth the kernel, which takes .3 s to load: who only plans reads one pixel.
    """
    rows, length = strip, wanted
    if strip.shape[1] == step:
        rows, length = strip.reshape(1, -1), (len(strip) - 1) * step + wanted
    if len(rows) == 1:
        _fill(file, start, memoryview(rows[0, :length].data))
        return
    done = 0
    while done < len(rows):
        begun = start + done * step
        done += _read_whole(file, begun, step, rows[done:].ctypes.data, len(rows) - done, length)
        if done < len(rows):  # the file has ended, a disk has failed, or a signal came between
            _fill(file, start + done * step, memoryview(rows[done, :length].data))
            done += 1


_numba: Any = types
_pread = _numba.ExternalFunction(
    "pread",
    _numba.intp(_numba.int32, _numba.uintp, _numba.uintp, _numba.int64),
)


@njit(cache=True, nogil=True)
def _read_whole(file, start, step, address, count, length):  # type: ignore[no-untyped-def]
    """Read rows to one place after another; give how many came whole before one did not.

    Notes
    -----
    A call of the system by the interpreter takes 2 us, this one 0.3: with a row of 4 kB each, half as long.
    """
    for row in range(count):
        if _pread(np.int32(file), address + row * length, length, start + row * step) != length:
            return row
    return count


def _fill(file: int, start: int, part: memoryview) -> None:
    while (count := os.preadv(file, (part,), start)) < len(part):
        if count == 0:
            raise EOFError(f"it ends before byte {start + len(part)}")
        start, part = start + count, part[count:]


def new_digest(prefix: str = "") -> hashlib._Hash:
    """Start a digest: of those without known collisions what CPUs have instructions for."""
    return hashlib.sha256(prefix.encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
