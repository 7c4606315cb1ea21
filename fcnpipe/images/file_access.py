"""Local files and objects behind URLs: their versions, bytes and rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from fcnpipe import remote
from fcnpipe.core.errors import InputError, InputUnreachable
from fcnpipe.remote import Stamp, is_remote

PathLike = str | os.PathLike[str]
Version = tuple[int, int] | Stamp
"""Size and time of change of a local file, or what a server says of an object."""
STRIP_BYTES = 256 << 10
"""Bytes of a local file that are read at a time: from the cache of the system to that of a core."""
GAP_BYTES = 4 << 10
"""Bytes between two rows that are read along: a call of the system costs more."""


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


def size_of(path: str, when: Version) -> int:
    """Give the length of a file in bytes; of an object, as it was when it was opened."""
    return when.size_bytes if isinstance(when, Stamp) else os.path.getsize(path)


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
